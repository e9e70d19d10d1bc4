"""Where a program runs: natively, or in a sandbox.

Both places show a program the same root file system (a directory, a "world"), the same user, an empty /tmp, and a network
with nothing but loopback. Natively that takes namespaces of Linux and root; a sandbox takes /dev/kvm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLONE = HERE.parents[1]
CACHE = Path(os.environ.get("GUST_CACHE", Path.home() / ".cache/gust"))
# What is built for the comparison, and what came out; may be elsewhere than runtimes and build output.
COMPAT = Path(os.environ.get("GUST_COMPAT", CACHE / "compat"))
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", CACHE / "target"))

USER = 1000
MEMORY_MIB = 2048
TMP_MIB = 512
# How `gust run` ends a program whose time is up, and how much longer it may take to.
TIMEOUT_STATUS = 124
GRACE_S = 15
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}

@dataclass
class Came:
    """What came of a run."""

    status: int
    out: bytes
    err: bytes
    timed_out: bool = False

    @property
    def text(self) -> str:
        return (self.out + self.err).decode("utf-8", "replace")


@dataclass
class Program:
    """A program with its arguments, in a world."""

    world: Path
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/tmp"
    timeout_s: int = 120

    def variables(self) -> dict[str, str]:
        return ENVIRONMENT | self.environment


class Refused(Exception):
    """This machine cannot run programs in one of the places."""


def gust() -> Path:
    """The `gust` program: `GUST_BIN`, or the last one that was built."""
    if named := os.environ.get("GUST_BIN"):
        return Path(named)
    built = [path for profile in ("debug", "release") if (path := TARGET / profile / "gust").exists()]
    if not built:
        raise Refused(f"there is no gust in {TARGET}: run cargo build")
    return max(built, key=lambda path: path.stat().st_mtime)


def can_run_natively() -> str | None:
    """Why not, or `None`."""
    if os.geteuid() != 0:
        return "namespaces need root"
    probe = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "ip", "link", "set", "lo", "up"], capture_output=True
    )
    return None if probe.returncode == 0 else f"unshare failed: {probe.stderr.decode().strip()}"


def can_run_in_sandbox() -> str | None:
    """Why not, or `None`."""
    return None if os.access("/dev/kvm", os.R_OK | os.W_OK) else "there is no /dev/kvm"


def natively(program: Program) -> Came:
    what = {
        "world": str(program.world),
        "directory": program.directory,
        "arguments": program.arguments,
        "environment": program.variables(),
        "user": USER,
        "tmp_mib": TMP_MIB,
    }
    command = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    return _run([*command, sys.executable, str(HERE / "enter.py"), json.dumps(what)], program.timeout_s)


def in_sandbox(program: Program) -> Came:
    # The images of worlds are kept beside them: they are large, and would push a user's own out.
    came = _run(sandbox_command(program), program.timeout_s + GRACE_S, GUST_CACHE=str(COMPAT))
    came.timed_out |= came.status == TIMEOUT_STATUS
    return came


def sandbox_command(program: Program) -> list[str]:
    command = [str(gust()), "run", "--user", f"{USER}:{USER}", "--workdir", program.directory]
    command += ["--memory", str(MEMORY_MIB), "--tmp", str(TMP_MIB), "--timeout", str(program.timeout_s)]
    for name, value in program.variables().items():
        command += ["--env", f"{name}={value}"]
    return [*command, str(program.world), "--", *program.arguments]


def _run(command: list[str], timeout_s: int, **environment: str) -> Came:
    # Files, so that what a run has written is kept when its time is up.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=os.environ | environment
        )
        timed_out = False
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            status = process.wait()
        out.seek(0)
        err.seek(0)
        return Came(status, out.read(), err.read(), timed_out)
