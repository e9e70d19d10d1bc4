#!/usr/bin/env python3
"""Runs gVisor's system call tests on this machine and in a sandbox, and compares them case by case.

    scripts/compat/gvisor.py --binaries DIRECTORY --image IMAGE --runner RUN [--only GLOB] [--results FILE]
                             [--document docs/compatibility.md]

DIRECTORY holds the tests as static programs, one for each `NAME_test`; docs/compatibility.md says how they are built.
RUN is `gust`, or the example program of the personality, which needs no jail and is built quicker
(`cargo build -p gust-linux --example run`).

Cases run in batches, each in a process or a sandbox of its own. A case that hangs or ends its program costs itself:
the batch goes on after it. What natively passes (run as an unprivileged user) is the denominator.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

# Cases of one process: many enough to spread its start, few enough for a command line.
BATCH_CASES = 150
# Seconds after which a case hangs. The longest that pass need about 20 on an idle machine.
CASE_SECONDS = 75
# Most bytes of output that are kept of a case, for its report.
KEPT_BYTES = 4000
# Where the sandbox sees the programs; a directory that every runtime's image has.
GUEST_PLACE = "/opt"
# An unprivileged user natively: the sandbox gives no capabilities either.
NOBODY = 65534

# A program cannot be started while a copy of it is written, nor while another child that is just being made has the
# copy open for writing: copies and starts take turns.
starting = threading.Lock()

BEGAN = re.compile(r"\[ RUN      \] (\S+)")
ENDED = re.compile(r"\[ {0,7}(OK|FAILED|SKIPPED) {1,2}\] (\S+?),?(?: |$)")
START, END = "<!-- gvisor -->", "<!-- /gvisor -->"


class Native:
    """Runs a test program on this machine, as a user without rights, in a directory of its own in memory."""

    def __init__(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="gust-gvisor-", dir="/dev/shm"))
        self.root.chmod(0o755)

    def command(self, program, arguments):
        place = self.root / f"{program.name}.tmp"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        copy = self.root / program.name
        if not copy.exists():
            shutil.copy(program, copy)
            copy.chmod(0o755)
        user = {}
        if os.getuid() == 0:
            os.chown(place, NOBODY, NOBODY)
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        environment = {"TEST_TMPDIR": str(place), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
        return [str(copy), *arguments], {"env": environment, **user}

    def forget(self, program):
        (self.root / program.name).unlink(missing_ok=True)
        shutil.rmtree(self.root / f"{program.name}.tmp", ignore_errors=True)

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)


class Sandbox:
    """Runs a test program in a sandbox, under the same user."""

    def __init__(self, runner, image):
        self.runner, self.image = runner, image
        self.stage = pathlib.Path(tempfile.mkdtemp(prefix="gust-gvisor-"))

    def command(self, program, arguments):
        place = self.stage / program.name
        if not place.exists():
            place.mkdir()
            shutil.copy(program, place / program.name)
            (place / program.name).chmod(0o755)
        if pathlib.Path(self.runner).name == "gust":
            # Its images are kept with the stage: each is used a few times, and would push a user's own out.
            environment = {**os.environ, "GUST_CACHE": str(self.stage / "cache")}
            user, mount = f"{NOBODY}:{NOBODY}", f"{place}:{GUEST_PLACE}"
            options = ["--user", user, "--workdir", "/", "--memory", "2048", "--tmp", "512", "--mount", mount]
            command = [self.runner, "run", *options, "--env", "TEST_TMPDIR=/tmp", "--env", "HOME=/tmp", self.image]
            return [*command, "--", f"{GUEST_PLACE}/{program.name}", *arguments], {"env": environment}
        environment = {
            **os.environ,
            "GUEST_MOUNTS": f"{GUEST_PLACE}={place}",
            "GUEST_USER": str(NOBODY),
            "GUEST_CPUS": str(len(os.sched_getaffinity(0))),
            "GUEST_ENV": "TEST_TMPDIR=/tmp PATH=/usr/bin:/bin HOME=/tmp",
        }
        return [self.runner, self.image, f"{GUEST_PLACE}/{program.name}", *arguments], {"env": environment}

    def forget(self, program):
        shutil.rmtree(self.stage / program.name, ignore_errors=True)

    def close(self):
        shutil.rmtree(self.stage, ignore_errors=True)


def lines_of(process):
    """The output line by line as it comes; None when one case took too long."""
    stream, pending, case_began = process.stdout, b"", time.monotonic()
    while True:
        left = case_began + CASE_SECONDS - time.monotonic()
        ready, _, _ = select.select([stream], [], [], max(left, 0))
        if not ready:
            yield None
            return
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            if pending:
                yield pending.decode(errors="replace")
            return
        *whole, pending = (pending + data).split(b"\n")
        for line in whole:
            if b"[ RUN      ]" in line:
                case_began = time.monotonic()
            yield line.decode(errors="replace")


def start(place, program, arguments):
    with starting:
        command, how = place.command(program, arguments)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            **how,
        )


def run_batch(place, program, cases):
    """Runs cases until one ends the program. Gives outcome and output of each that began, and whether all had a turn."""
    process = start(place, program, ["--gtest_filter=" + ":".join(cases)])
    outcomes, current, kept, hung = {}, None, [], False
    wanted = set(cases)
    for line in lines_of(process):
        if line is None:
            hung = True
            break
        began, ended = BEGAN.search(line), ENDED.search(line)
        if began and began.group(1) in wanted:
            current, kept = began.group(1), []
        elif ended and ended.group(2) == current:
            outcomes[current] = (ended.group(1), "\n".join(kept)[-KEPT_BYTES:])
            current = None
        else:
            kept.append(line)
    if hung:
        os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    try:
        # What the program left running.
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    if current:
        how = "HUNG" if hung else f"ENDED {process.returncode}"
        outcomes[current] = (how, "\n".join(kept)[-KEPT_BYTES:])
    elif not outcomes:
        # Not one began: the program does not start, and will not for the others.
        outcomes = {case: (f"ENDED {process.returncode}", "\n".join(kept)[-KEPT_BYTES:]) for case in cases}
    return outcomes


def run_cases(place, program, cases):
    """Runs all cases, going on after each that hangs or ends its program."""
    outcomes, left = {}, list(cases)
    while left:
        batch = left[:BATCH_CASES]
        done = run_batch(place, program, batch)
        outcomes.update(done)
        left = [case for case in left if case not in outcomes]
    return outcomes


def list_cases(native, program):
    process = start(native, program, ["--gtest_list_tests"])
    listed = process.communicate(timeout=60)[0].decode(errors="replace")
    if process.returncode != 0:
        raise RuntimeError(f"{program} does not list its cases: {listed[-KEPT_BYTES:]}")
    cases, suite = [], None
    for line in listed.splitlines():
        name = line.split("#")[0].rstrip()
        if name.endswith(".") and not name.startswith(" "):
            suite = name
        elif name.startswith("  ") and suite:
            if not suite.startswith("DISABLED_") and "DISABLED_" not in name:
                cases.append(suite + name.strip())
    return cases


def table(results):
    lines = [
        "| tests | cases | pass natively | of these pass in a sandbox | |",
        "|---|---:|---:|---:|---:|",
    ]
    all_cases = all_native = all_both = 0
    for name in sorted(results):
        cases = results[name]
        native = [case for case in cases.values() if case["native"] == "OK"]
        both = [case for case in native if case["sandbox"] == "OK"]
        share = f"{100 * len(both) // len(native)} %" if native else ""
        lines.append(f"| {name.removesuffix('_test')} | {len(cases)} | {len(native)} | {len(both)} | {share} |")
        all_cases, all_native, all_both = all_cases + len(cases), all_native + len(native), all_both + len(both)
    share = f"{100 * all_both / max(all_native, 1):.1f} %"
    lines.append(f"| **all {len(results)}** | **{all_cases}** | **{all_native}** | **{all_both}** | **{share}** |")
    hung = [
        f"`{name}`" for cases in results.values() for name, case in cases.items() if case["sandbox"] == "HUNG"
    ]
    if hung:
        lines.append(f"\nOf the failures, these were still running after {CASE_SECONDS} s: {', '.join(hung)}.")
    hung = len(hung)
    return "\n".join(lines), f"{all_both} of {all_native} native passes ({share}), {hung} hung"


def write_document(path, text):
    document = path.read_text() if path.exists() else "# Compatibility\n"
    if START not in document:
        document = document.rstrip("\n") + f"\n\n## gVisor's system call tests\n\n{START}\n{END}\n"
    before, rest = document.split(START, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{START}\n{text}\n{END}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=pathlib.Path, required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--runner", required=True)
    parser.add_argument("--only", default="*", help="names of programs, as a pattern; several with commas")
    parser.add_argument("--jobs", type=int, default=3, help="programs that run at once")
    parser.add_argument("--results", type=pathlib.Path, help="JSON: what natively passed is taken from it, not run again")
    parser.add_argument("--document", type=pathlib.Path)
    options = parser.parse_args()
    results = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    patterns = options.only.split(",")
    programs = [
        path
        for path in sorted(options.binaries.glob("*_test"))
        if any(fnmatch.fnmatch(path.name.removesuffix("_test"), pattern) for pattern in patterns)
    ]
    if not programs:
        sys.exit(f"gvisor.py: {options.binaries} has no test program {options.only}")
    native, sandbox = Native(), Sandbox(options.runner, options.image)
    writing = threading.Lock()

    def run(program):
        began = time.monotonic()
        cases = results.get(program.name)
        if cases is None:
            names = list_cases(native, program)
            outcomes = run_cases(native, program, names)
            cases = {name: {"native": outcomes[name][0]} for name in names}
        for name, (outcome, output) in run_cases(sandbox, program, list(cases)).items():
            cases[name]["sandbox"] = outcome
            cases[name]["output"] = "" if outcome == "OK" else output
        native.forget(program)
        sandbox.forget(program)
        wanted = [case for case in cases.values() if case["native"] == "OK"]
        passed = sum(case["sandbox"] == "OK" for case in wanted)
        with writing:
            results[program.name] = cases
            print(f"{program.name}: {passed} of {len(wanted)}, {time.monotonic() - began:.0f} s", flush=True)
            if options.results:
                options.results.write_text(json.dumps(results, indent=1))

    try:
        # Most of them sleep most of the time.
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for done in [pool.submit(run, program) for program in programs]:
                done.result()
    finally:
        native.close()
        sandbox.close()
    text, summary = table(results)
    print(summary)
    if options.document:
        write_document(options.document, text)


if __name__ == "__main__":
    main()
