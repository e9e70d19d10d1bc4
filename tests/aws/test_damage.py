"""What is broken from outside: snapshot files, workers in the middle of a call."""

import os
import pathlib
import signal
import threading

import pytest

import server as gust
from conftest import ECHO, call, create, private, refused

BUSY = """
import time
def handler(event, context):
    end = time.monotonic() + event
    while time.monotonic() < end:
        pass
    return "done"
"""


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def flip(part):
    def flipped(file):
        with open(file, "r+b") as opened:
            opened.seek(int(file.stat().st_size * part))
            byte = opened.read(1)
            opened.seek(-1, os.SEEK_CUR)
            opened.write(bytes([byte[0] ^ 0x40]))

    return flipped


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, flip(0.0), flip(0.5), flip(0.999), os.unlink],
    ids=["truncated", "empty", "altered header", "altered middle", "altered end", "gone"],
)
def test_damaged_snapshots_are_refused_and_made_again(data_dir, damage):
    with gust.running(data_dir=data_dir) as server:
        if not server.has_snapshots:
            pytest.skip("SKIPPED: without KVM there are no snapshots")
        create(server.client(), "kept", ECHO)
        assert call(server.client(), "kept", 1)["Payload"] == 1
    snapshots = [file for file in (data_dir / "node" / "snapshots").iterdir() if file.is_file()]
    assert snapshots
    for file in snapshots:
        damage(file)
    with gust.running(data_dir=data_dir) as server:
        for number in range(3):
            assert call(server.client(), "kept", number)["Payload"] == number
        starts = [called["start"] for called in private(server, "functions/kept")["calls"]]
        assert starts[0] == "booted", starts
    # What was made again is whole.
    with gust.running(data_dir=data_dir) as server:
        assert call(server.client(), "kept", 9)["Payload"] == 9
        assert private(server, "functions/kept")["calls"][0]["start"] != "booted"


def children(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def ticks(pid):
    """Processor time of a process and of what it has started, in ticks; none once it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12]) + sum(ticks(child) for child in children(pid))
    except FileNotFoundError:
        return 0


def busiest_worker(server):
    """The worker whose guest spins."""
    (zygote,) = children(server.process.pid)
    before = {}
    while True:
        for worker in children(zygote):
            if ticks(worker) > before.setdefault(worker, ticks(worker)) + 20:
                return worker


def test_a_worker_that_is_killed_fails_its_call_only():
    with gust.running() as server:
        client = server.client()
        create(client, "busy", BUSY, Timeout=60)
        failed = []

        def busy():
            with refused("ServiceException", 500, "lost") as seen:
                call(client, "busy", 50)
            failed.append(seen)

        caller = threading.Thread(target=busy)
        caller.start()
        os.kill(busiest_worker(server), signal.SIGKILL)
        caller.join(60)
        assert failed, "the call that ran fails with a stated error"
        assert call(client, "busy", 0)["Payload"] == "done", "the next one works"
