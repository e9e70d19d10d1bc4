"""Programs that people run, each with what it prints compared byte for byte: natively and in a sandbox."""

from __future__ import annotations

from dataclasses import dataclass

import places
import world
from places import Program

TIMEOUT_S = 180


@dataclass(frozen=True)
class Case:
    """A program to compare."""

    name: str
    what: str
    world: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    # Lines that differ, since a sandbox has one process: native line, line in a sandbox.
    differences: tuple[tuple[str, str], ...] = ()
    # Little enough for every run of the tests.
    quick: bool = True

    def program(self) -> Program:
        return Program(world.path(self.world), list(self.arguments), dict(self.environment), timeout_s=TIMEOUT_S)

    def expected(self, native: bytes) -> bytes:
        """What a sandbox is to print where the native program prints this."""
        for there, here in self.differences:
            native = native.replace(there.encode(), here.encode())
        return native


SITE = (("PYTHONPATH", "/opt/site"), ("PYTHONDONTWRITEBYTECODE", "1"))


def python(name: str, what: str, **more) -> Case:
    return Case(f"python-{name}", what, "python", ("/usr/bin/python3.11", f"/opt/programs/python/{name}.py"), SITE, **more)


def node(name: str, what: str, **more) -> Case:
    file = name if "." in name else f"{name}.js"
    return Case(f"node-{name.split('.')[0]}", what, "node", ("/usr/bin/node", f"/opt/programs/node/{file}"), **more)


def java(name: str, what: str, *options: str, **more) -> Case:
    start = ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", *options, "-cp", "/opt/classes", "Programs", name)
    return Case(f"java-{name}", what, "java", start, **more)


def binary(name: str, what: str, program: str, *arguments: str, **more) -> Case:
    return Case(name, what, "static", (f"/opt/bin/{program}", *arguments), **more)


REFUSED = "Function not implemented"

CASES = (
    python("threads", "CPython 3.11: threads, locks, queues, pools; 720 threads one after the other"),
    python(
        "second_process",
        "CPython 3.11: fork, subprocess, posix_spawn and multiprocessing raise OSError at once",
        differences=tuple(
            (f"{call} made\n", f"{call} refused: OSError {REFUSED}\n")
            for call in ("fork", "subprocess.run", "subprocess.Popen with a pipe", "os.posix_spawn", "multiprocessing")
        ),
    ),
    python("databases", "CPython 3.11: sqlite3 with a journal and a write-ahead log, from four threads"),
    python("tls", "CPython 3.11: an HTTPS server and its clients in one guest, TLS 1.2 and 1.3"),
    python("arrays", "numpy 2: linear algebra with its own and Python's threads, memory-mapped files"),
    python("frames", "pandas 3: groups, joins, time zones, files"),
    python("pictures", "Pillow: six formats and filters"),
    node("jit_workers", "Node 20: compiled and deoptimised code, WebAssembly, six worker threads with shared memory"),
    node(
        "http_fetch",
        "Node 20: http server, fetch, streams, zlib, crypto",
        differences=(("second process made\n", "second process ENOSYS\n"),),
    ),
    node("express_app", "Node 20: express and fetch against it"),
    node("sdk.mjs", "Node 20: AWS SDK v3 against an S3 server in the same guest", quick=False),
    java("jit", "OpenJDK 17: compiled and deoptimised code, parallel streams"),
    java("collector", "OpenJDK 17: garbage under pressure, OutOfMemoryError and on", "-Xmx96m"),
    java("faults", "OpenJDK 17: NullPointerException by SIGSEGV, StackOverflowError by guard pages"),
    java("threads", "OpenJDK 17: monitors, atomics, pools, interruption"),
    java("http", "OpenJDK 17: HTTP server and client, mapped files", quick=False),
    java(
        "process",
        "OpenJDK 17: ProcessBuilder refused",
        differences=(("second process ended with 0\n", "second process refused: java.io.IOException\n"),),
    ),
    binary("go-http", "static Go: net/http with and without TLS, deadlines, UNIX sockets", "goprograms", "http"),
    binary("go-preemption", "static Go: endless loops preempted by SIGURG, tickers", "goprograms", "preemption"),
    binary("go-collector", "static Go: garbage collection under a memory limit", "goprograms", "collector"),
    binary("go-panics", "static Go: faults of the processor as panics", "goprograms", "panics"),
    binary(
        "go-process",
        "static Go: os/exec refused",
        "goprograms",
        "process",
        differences=(
            ("second process made\n", "second process refused: fork/exec /bin/true: function not implemented\n"),
        ),
    ),
    binary(
        "rust-tokio",
        "static Rust with tokio: TCP, UDP, UNIX sockets, timers, blocking threads, files",
        "tokio-programs",
        differences=(
            ("second process ended: exit status: 0\n", f"second process refused: {REFUSED} (os error 38)\n"),
        ),
    ),
    binary("c++", "C++, dynamic: exceptions, threads, futures, SIGSEGV on an alternate stack", "cxxprograms"),
    binary("c++-static", "the same, static", "cxxprograms-static"),
    binary("busybox", "busybox sh: loops, functions, redirections, traps", "busybox", "sh", "/opt/programs/busybox.sh"),
)


@dataclass
class Outcome:
    """What came of a comparison; `None` is agreement."""

    case: Case
    complaint: str | None
    native: places.Came
    sandbox: places.Came


def compare(case: Case) -> Outcome:
    native = places.natively(case.program())
    sandbox = places.in_sandbox(case.program())
    return Outcome(case, complaint(case, native, sandbox), native, sandbox)


def complaint(case: Case, native: places.Came, sandbox: places.Came) -> str | None:
    if native.timed_out or native.status != 0:
        return f"does not run natively: status {native.status}: {native.text[-400:]}"
    if sandbox.timed_out:
        return f"no end after {TIMEOUT_S} s: {sandbox.text[-400:]}"
    if sandbox.status != native.status:
        return f"status {sandbox.status}: {sandbox.text[-1200:]}"
    if sandbox.out != case.expected(native.out):
        expected = case.expected(native.out).decode(errors="replace").splitlines()
        printed = sandbox.out.decode(errors="replace").splitlines()
        for there, here in zip(expected + ["(end)"], printed + ["(end)"], strict=False):
            if there != here:
                return f"printed {here!r} instead of {there!r}"
        return "printed less or more"
    return None
