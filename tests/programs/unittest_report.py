"""Runs a test module of CPython and writes one line of JSON a test to standard output.

    unittest_report.py MODULE [AFTER]

A test is named twice: when it begins and when it has come to an end, so that a reader knows which one ended the
interpreter, and can have the tests AFTER it run. What tests themselves write goes to standard error.
"""

import json
import os
import sys
import traceback
import unittest

from test import support

# As `python -m test` without -u: nothing that needs a network or much time.
support.use_resources = []
# Tests that wait for something wait shorter than they may take altogether.
support.SHORT_TIMEOUT = 20.0
support.LONG_TIMEOUT = 60.0

report = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def tell(**what):
    report.write(json.dumps(what) + "\n")
    report.flush()


class Result(unittest.TestResult):
    """The worst of what is said of a test, and of its subtests, counts."""

    def startTest(self, test):
        super().startTest(test)
        self.outcome, self.detail = "pass", ""
        tell(id=test.id(), outcome="begun")

    def stopTest(self, test):
        super().stopTest(test)
        tell(id=test.id(), outcome=self.outcome, detail=self.detail)

    def note(self, test, outcome, detail):
        if not hasattr(test, "_testMethodName"):
            # The fixture of a class or module: there is no test to stop.
            tell(id=test.id(), outcome=outcome, detail=detail)
        elif outcome == "fail" or self.outcome == "pass":
            # What was said first may be the cause of the rest.
            self.outcome, self.detail = outcome, f"{self.detail}\n{detail}".strip()

    def failed(self, test, error):
        self.note(test, "fail", "".join(traceback.format_exception(*error))[-2500:])

    addError = addFailure = failed

    def addSkip(self, test, reason):
        self.note(test, "skip", reason)

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.failed(test, error)

    def addUnexpectedSuccess(self, test):
        self.note(test, "fail", "unexpected success")


def flat(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def without(suite, skipped):
    """The suite less some tests; suites within stay, since they carry the fixtures."""
    kept = []
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            kept.append(without(test, skipped))
        elif test.id() not in skipped:
            kept.append(test)
    return type(suite)(kept)


def main():
    module, *after = sys.argv[1:]
    suite = unittest.defaultTestLoader.loadTestsFromName(module)
    names = [test.id() for test in flat(suite)]
    skipped = set(names[: names.index(after[0]) + 1]) if after else set()
    tell(id="", outcome="found", tests=len(names))
    without(suite, skipped).run(Result())
    tell(id="", outcome="ended")
    # Threads that a test has left behind do not hold the end up.
    report.close()
    os._exit(0)


main()
