"""Test suites that others wrote, test by test: natively and in a sandbox.

A suite is run whole; when a test ends it early (a crash, or no end in time) it goes on after that test, so that one
bad test costs one result. A test is compared only when it passes natively.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from places import Came, Program

# Times that one run of a suite goes on after a test that ended it.
RESUMES_MAX = 40
# Text of a failure that is kept.
DETAIL_MAX = 6000

# How a failure tells that it needs a second process: fork, vfork and posix_spawn are refused in a sandbox, which has one
# process by design.
SECOND_PROCESS = re.compile(
    r"fork/exec |_fork_exec|_posixsubprocess|os\.fork\(|os\.forkpty|os\.posix_spawn|os\.exec[lv]|_spawnvef|multiprocessing|"
    r"can't fork|StartProcess|failed to start|starting process|ForkExec",
)
# Go tests that start their own program anew to look at what it prints, and drop the error of starting it.
SILENT_SECOND_PROCESS = {"TestMutexMisuse", "TestIssue76126"}
# Tests of watching processes, which are skipped where there is no file that stands for one.
WATCHES_PROCESSES = "operating system does not support pidfds"
REFUSED = re.compile(r"[Ff]unction not implemented|Errno 38")


@dataclass
class Results:
    """Outcome of each test: pass, fail, skip, crash, hang."""

    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def add(self, test: str, outcome: str, detail: str = "") -> None:
        self.outcomes[test] = outcome
        if outcome != "pass":
            self.details[test] = detail[-DETAIL_MAX:]

    def needs_process(self, test: str) -> bool:
        detail = self.details.get(test, "")
        if test in SILENT_SECOND_PROCESS or detail == WATCHES_PROCESSES:
            return True
        return bool(SECOND_PROCESS.search(detail) and REFUSED.search(detail))


@dataclass
class Pass:
    """What one run of a suite's program told: results, and the test that was under way at its end."""

    results: list[tuple[str, str, str]]
    open_test: str | None
    complete: bool


def run(place: Callable[[Program], Came], program: Callable[[list[str]], Program], read: Callable[[Came], Pass],
        go_on: Callable[[str, Results], list[str]], left_out: tuple[str, ...] = ()) -> Results:
    """Runs a suite to its end in a place. `go_on` gives the arguments that leave out what is known already, to begin with
    the tests that are `left_out`."""
    known = Results()
    for test in left_out:
        known.add(test, "skip")
    extra = go_on("", known) if left_out else []
    came = None
    for _ in range(RESUMES_MAX):
        came = place(program(extra))
        told = read(came)
        for test, outcome, detail in told.results:
            known.add(test, outcome, detail)
        if told.complete or told.open_test is None:
            break
        how = "hang" if came.timed_out else "crash"
        known.add(told.open_test, how, came.text)
        extra = go_on(told.open_test, known)
    if len(known.outcomes) == len(left_out):
        raise ToldNothing(came.text[-2000:] if came else "it was not started")
    return known


GO_MARKER = re.compile(r"=== (?:RUN|CONT|NAME)\s+(\S+)")
GO_ENDED = re.compile(r"\s*--- (PASS|FAIL|SKIP): (\S+)")


def read_go(came: Came) -> Pass:
    """Reads `-test.v`: whole tests and examples, with what they and their parts wrote."""
    results: list[tuple[str, str, str]] = []
    wrote: dict[str, list[str]] = {}
    opened: list[str] = []
    current = ""
    for line in came.text.splitlines():
        if marker := GO_MARKER.match(line):
            current = marker[1].split("/")[0]
            if line.startswith("=== RUN") and current not in opened:
                opened.append(current)
        elif ended := GO_ENDED.match(line):
            if "/" not in ended[2]:
                results.append((ended[2], ended[1].lower(), "\n".join(wrote.get(ended[2], []))))
        else:
            wrote.setdefault(current, []).append(line.strip())
    done = {name for name, _, _ in results}
    still = [name for name in opened if name not in done]
    # A panic after too long a time names who was running; tests that wait for their turn are innocent.
    named = re.search(r"running tests:\n\s+(\S+)", came.text)
    to_blame = named[1].split("/")[0] if named else current if current in still else next(iter(still), None)
    complete = re.search(r"^(PASS|FAIL)$", came.text, re.M) is not None and not still
    return Pass(results, None if complete else to_blame, complete)


def go_on_with_go(test: str, known: Results) -> list[str]:
    names = "|".join(re.escape(name) for name in known.outcomes)
    return [f"-test.skip=^({names})$"]


def read_unittest(came: Came) -> Pass:
    """Reads what `unittest_report.py` wrote."""
    results, begun, complete = [], None, False
    for line in came.out.decode("utf-8", "replace").splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        match told["outcome"]:
            case "begun":
                begun = told["id"]
            case "found":
                pass
            case "ended":
                complete = True
            case outcome:
                begun = None
                results.append((told["id"], outcome, told.get("detail", "")))
    return Pass(results, begun, complete)


def go_on_with_unittest(test: str, known: Results) -> list[str]:
    return [test]


class ToldNothing(Exception):
    """A suite did not run at all: that says nothing of its tests."""


@dataclass
class Comparison:
    """A suite in both places."""

    name: str
    native_passes: int = 0
    passes: int = 0
    # By name, with what they said.
    second_process: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict:
        return self.__dict__


def compare(name: str, native: Results, sandbox: Results) -> Comparison:
    """Counts the tests that pass natively by what they do in a sandbox."""
    came = Comparison(name)
    for test, outcome in sorted(native.outcomes.items()):
        if outcome != "pass":
            continue
        came.native_passes += 1
        here = sandbox.outcomes.get(test, "missing")
        if here == "pass":
            came.passes += 1
        elif sandbox.needs_process(test):
            came.second_process[test] = sandbox.details[test].strip().splitlines()[-1]
        else:
            came.failures[test] = f"{here}: {sandbox.details.get(test, '')}"
    return came
