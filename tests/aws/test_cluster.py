"""A server with nodes that have joined it: `gust node` processes with data directories of their own. (Nodes with network
namespaces of their own are tested in crates/gust-cluster.)"""

import collections
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import botocore.exceptions
import pytest

import server as gust
from conftest import call, create, private, raw, refused

SLOW = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"
COUNT = "n = 0\ndef handler(event, context):\n    global n\n    n += 1\n    return n\n"
ENVIRONMENT = {**os.environ, "GUST_CONFIG": "/dev/null", "GUST_ISOLATION": gust.ISOLATION}
START_TIMEOUT_S = 30


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def token(data_dir, *options):
    command = [gust.GUST, "cluster", "token", "--data-dir", str(data_dir), *options]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()


class Node:
    """One `gust node`."""

    def __init__(self, join, *arguments):
        self.data_dir = pathlib.Path(tempfile.mkdtemp(prefix="gust-node-"))
        self.data_dir.chmod(0o711)
        command = [gust.GUST, "node", "--join", join, "--data-dir", str(self.data_dir), "--quiet", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        watchdog = threading.Timer(START_TIMEOUT_S, self.process.kill)
        watchdog.start()
        said = self.process.stdout.readline()
        watchdog.cancel()
        if not said:
            self.close()
        assert said, f"the node did not start: {self.errors}"
        self.log = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stderr:
            self.log.append(line)
            print(line, end="")

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.errors = self.process.stderr.read()
        self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.data_dir, ignore_errors=True)


class Cluster:
    """A server with one place for an instance of its own, and nodes."""

    def __init__(self, stack, data_dir, *options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.stack = stack
        self.data_dir = data_dir
        self.start(*options)

    def start(self, *options):
        self.server = self.stack.enter_context(
            gust.running(
                "--instances", "1", "--retry-wait-ms", "200", "--cluster-listen", self.address, *options,
                data_dir=self.data_dir))
        self.stack.callback(lambda errors=self.server.errors: print("".join(errors)))
        self.client = self.server.client(max_pool_connections=32)

    def node(self, *arguments):
        before = self.nodes()
        node = Node(f"{token(self.data_dir)}@{self.address}", "--instances", "2", *arguments)
        self.stack.callback(node.close)
        until(lambda: self.nodes() > before)
        return node

    def nodes(self):
        return private(self.server, "stats")["fleet"]["nodes"]


@pytest.fixture
def cluster(data_dir):
    with contextlib.ExitStack() as stack:
        yield Cluster(stack, data_dir)


def calls_at_once(cluster, name, count, event):
    """Starts calls, all at once."""
    pool = concurrent.futures.ThreadPoolExecutor(count)
    return [pool.submit(call, cluster.client, name, event) for _ in range(count)]


def test_calls_that_have_no_place_run_on_nodes(cluster):
    create(cluster.client, "slow", SLOW, Timeout=60)
    cluster.node(), cluster.node()
    assert cluster.nodes() == 3
    running = calls_at_once(cluster, "slow", 5, 2)
    until(lambda: private(cluster.server, "stats")["fleet"]["running"] == 5)
    assert [done.result()["Payload"] for done in running] == [2] * 5
    calls = private(cluster.server, "functions/slow")["calls"]
    assert len({made["instance"] for made in calls}) == 5, calls
    if cluster.server.has_snapshots:
        # Nodes that have never booted the function restore it.
        assert not [made for made in calls if made["start"] == "booted"], calls


def test_a_node_that_is_killed_fails_what_ran_there_alone(cluster):
    create(cluster.client, "slow", SLOW, Timeout=60)
    first, _second = cluster.node(), cluster.node()
    running = calls_at_once(cluster, "slow", 5, 8)
    until(lambda: private(cluster.server, "stats")["fleet"]["running"] == 5)
    # All have been sent, and none is over.
    time.sleep(2)
    first.end(signal.SIGKILL)
    lost = 0
    for done in running:
        try:
            assert done.result()["Payload"] == 8
        except botocore.exceptions.ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 500
            assert "was lost. It can be tried again." in str(error), error
            lost += 1
    assert lost == 2
    # Nothing else fails.
    assert call(cluster.client, "slow", 0)["Payload"] == 0
    until(lambda: cluster.nodes() == 2)


def test_an_event_whose_node_is_lost_is_run_again(cluster):
    create(cluster.client, "slow", SLOW, Timeout=60)
    first = cluster.node()
    held = calls_at_once(cluster, "slow", 1, 6)
    until(lambda: private(cluster.server, "stats")["fleet"]["running"] == 1)
    accepted = cluster.client.invoke(FunctionName="slow", InvocationType="Event", Payload=b"3")
    until(lambda: private(cluster.server, "stats")["fleet"]["running"] == 2)
    first.end(signal.SIGKILL)
    # The server has seen it: a node that joins before could be taken for the one that is gone.
    until(lambda: cluster.nodes() == 1)
    cluster.node()
    event = accepted["ResponseMetadata"]["RequestId"]
    until(lambda: event in [made["request_id"] for made in private(cluster.server, "functions/slow")["calls"]])
    assert held[0].result()["Payload"] == 6


class Load:
    """Clients that call one after the other for the length of a block; no call may fail."""

    def __init__(self, cluster, name, clients):
        self.cluster, self.name = cluster, name
        self.wanted, self.answered, self.errors = True, 0, []
        self.threads = [threading.Thread(target=self.run) for _ in range(clients)]

    def run(self):
        while self.wanted:
            try:
                assert call(self.cluster.client, self.name, 0.02)["Payload"] == 0.02
                self.answered += 1
            except Exception as error:
                return self.errors.append(error)

    def more(self, count):
        enough = self.answered + count
        until(lambda: self.answered >= enough or self.errors)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.wanted = False
        for thread in self.threads:
            thread.join()
        assert not self.errors, self.errors


def test_nodes_are_upgraded_under_load_without_a_failed_call(cluster):
    create(cluster.client, "slow", SLOW, Timeout=60)
    old = cluster.node()
    with Load(cluster, "slow", 4) as load:
        load.more(40)
        cluster.node()
        load.more(40)
        assert old.end(signal.SIGTERM) == 0
        load.more(40)
        until(lambda: cluster.nodes() == 2)


class Kept(threading.Thread):
    """A client that keeps one connection, never tries anything again, and opens another one only when it is told to."""

    def __init__(self, cluster, name):
        super().__init__()
        self.address, self.name = cluster.server.endpoint.removeprefix("http://"), name
        self.wanted, self.answered, self.error = True, 0, None

    def run(self):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            while self.wanted:
                connection.request("POST", f"/2015-03-31/functions/{self.name}/invocations", b"0.001")
                response = connection.getresponse()
                body = response.read()
                assert (response.status, body) == (200, b"0.001"), (response.status, body)
                self.answered += 1
        except Exception as error:
            self.error = error
        finally:
            connection.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.wanted = False
        self.join()
        assert self.error is None and self.answered > 0, self.error


def began(cluster, name):
    """The ids of the invocations that have begun, from the function's log."""
    lines = raw(cluster.server, "GET", f"/_gust/v1/functions/{name}/logs?lines=10000")[2].decode()
    return collections.Counter(re.findall(r"START RequestId: ([0-9a-f-]{36})", lines))


def test_a_server_is_upgraded_under_load_without_a_failed_call(cluster):
    create(cluster.client, "slow", SLOW, Timeout=60)
    create(cluster.client, "event", SLOW, Timeout=60)
    cluster.node()
    accepted = []
    with Load(cluster, "slow", 3) as load, Kept(cluster, "slow"):
        for upgrade in range(3):
            load.more(30)
            # One that goes on in the old process while the new one serves, and events: running, waiting and new.
            across = calls_at_once(cluster, "slow", 1, 2)
            for _ in range(6):
                response = cluster.client.invoke(FunctionName="event", InvocationType="Event", Payload=b"0.5")
                accepted.append(response["ResponseMetadata"]["RequestId"])
            assert cluster.server.upgrade() == 0
            assert across[0].result()["Payload"] == 2
            until(lambda: cluster.nodes() == 2)
            cluster.client.update_function_configuration(FunctionName="event", Description=f"upgrade {upgrade}")
        load.more(30)
        until(lambda: private(cluster.server, "stats")["events_waiting"] == 0)
    counted = began(cluster, "event")
    assert counted == collections.Counter(accepted), "each event was run once"
    print(*(line for line in cluster.server.errors if "has taken over" in line))


def test_a_server_that_starts_again_finds_its_nodes(data_dir):
    # Each instance is kept for a fixed time, so that it is certain which one serves a call.
    with contextlib.ExitStack() as stack:
        starts_again(Cluster(stack, data_dir, "--mode", "sync"))


def starts_again(cluster):
    create(cluster.client, "count", COUNT)
    create(cluster.client, "slow", SLOW, Timeout=60)
    cluster.node()
    # The server's own place is taken, so this one runs on the node.
    held = calls_at_once(cluster, "slow", 1, 3)
    until(lambda: private(cluster.server, "stats")["fleet"]["running"] == 1)
    assert call(cluster.client, "count")["Payload"] == 1
    instance = private(cluster.server, "functions/count")["calls"][-1]["instance"]
    held[0].result()
    assert call(cluster.client, "count")["Payload"] == 2
    assert private(cluster.server, "functions/count")["calls"][-1]["instance"] == instance
    assert cluster.server.stop() == 0
    cluster.start("--mode", "sync")
    began = time.monotonic()
    until(lambda: cluster.nodes() == 2)
    print(f"the node was back {(time.monotonic() - began) * 1000:.0f} ms after the server")
    assert call(cluster.client, "count")["Payload"] == 3
    assert private(cluster.server, "functions/count")["calls"][-1]["instance"] == instance


def test_tokens_are_used_once_and_functions_can_be_removed(cluster, data_dir):
    join = f"{token(data_dir)}@{cluster.address}"
    first = Node(join)
    cluster.stack.callback(first.close)
    until(lambda: cluster.nodes() == 2)
    command = [gust.GUST, "node", "--join", join, "--data-dir", str(data_dir / "other")]
    second = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert second.returncode != 0 and "wrong, used or expired" in second.stderr, second
    wrong = subprocess.run([*command[:3], "secret", *command[4:]], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert wrong.returncode != 0 and "TOKEN@HOST:PORT" in wrong.stderr and "secret" not in wrong.stderr, wrong
    nothing = subprocess.run(
        [gust.GUST, "node", "--data-dir", str(data_dir / "other")], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert nothing.returncode != 0 and "gust cluster token" in nothing.stderr, nothing
    create(cluster.client, "slow", SLOW, Timeout=60)
    for done in calls_at_once(cluster, "slow", 3, 1):
        done.result()
    library = first.data_dir / "cluster/library/files"
    assert any(library.iterdir())
    cluster.client.delete_function(FunctionName="slow")
    until(lambda: not any(library.iterdir()))
    with refused("ResourceNotFoundException"):
        call(cluster.client, "slow", 0)


def gust_cluster(cluster, *arguments):
    command = [gust.GUST, "cluster", *arguments, "--endpoint", cluster.server.endpoint]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done


def linked(cluster):
    return {node["name"] for node in json.loads(gust_cluster(cluster, "nodes", "--output", "json").stdout)}


def test_a_node_that_is_thrown_out_stays_out(cluster):
    create(cluster.client, "slow", SLOW, Timeout=60)
    bad = cluster.node()
    [name] = linked(cluster)
    good = cluster.node()
    [other] = linked(cluster) - {name}
    table = gust_cluster(cluster, "nodes").stdout
    assert all(text in table for text in ["NAME", name, other]), table
    # One in the server, two on each node; those on the bad one are lost at once.
    running = calls_at_once(cluster, "slow", 5, 8)
    until(lambda: private(cluster.server, "stats")["fleet"]["running"] == 5)
    time.sleep(2)
    assert f"threw {name} out\n" == gust_cluster(cluster, "revoke", name).stderr
    errors = [error for done in running if (error := done.exception())]
    assert len(errors) == 2 and all(f"{name} was lost" in str(error) for error in errors), errors
    assert linked(cluster) == {other}
    # Neither its process nor its next one gets in again, nor into the server's next one.
    refused = subprocess.run(
        [gust.GUST, "cluster", "revoke", "Not A Name", "--endpoint", cluster.server.endpoint],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and "is no name of a node" in refused.stderr, refused
    assert "no node of this name was linked" in gust_cluster(cluster, "revoke", "unknown-1").stderr
    assert cluster.server.stop() == 0
    cluster.start()
    until(lambda: linked(cluster) == {other})
    # It goes on trying, and says why that does not help.
    seen = len(bad.log)
    until(lambda: any("CertificateRevoked" in line for line in bad.log[seen:]))
    bad.end(signal.SIGTERM)
    assert linked(cluster) == {other} and good.process.poll() is None
    assert call(cluster.client, "slow", 0)["Payload"] == 0
