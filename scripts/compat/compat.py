#!/usr/bin/env python3
"""Real programs and their own test suites, natively and in a sandbox: `scripts/compat/compat.py STEP ...`.

Steps: `inputs` (build what is missing), `programs`, `go`, `cpython` (run and compare), `docs` (write the results into
docs/compatibility.md); all of them without one. `--only NAME` (repeatable) runs some programs, packages or modules.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial

import places
import report
import suites
import world
from places import COMPAT, Program

STEPS = ("inputs", "programs", "go", "cpython", "docs")
GO_PACKAGES = ("os", "io", "sync", "net", "time")
PYTHON_MODULES = (
    "json", "re", "ssl", "socket", "threading", "asyncio", "zipfile", "hashlib", "datetime", "tempfile",
)  # fmt: skip
# Tests that ask name servers of the internet for names, each again for half a minute when there is no network: they alone
# would take 20 minutes. None passes natively then.
GO_LEFT_OUT = {
    "net": (
        "TestLookupCNAME", "TestLookupGmailMX", "TestLookupGmailNS", "TestLookupGmailTXT", "TestLookupGoogleSRV",
        "TestLookupNoData", "TestLookupNoSuchHost",
    ),
}  # fmt: skip
# A run that takes longer has hung.
GO_TIMEOUT_S = 900
PYTHON_TIMEOUT_S = 900


def go_program(package: str, extra: list[str]) -> Program:
    directory = f"/go/src/{package}"
    arguments = [f"/go/tests/{package}.test", "-test.v", f"-test.timeout={GO_TIMEOUT_S - 20}s", *extra]
    return Program(
        world.path("static"), arguments, {"GOROOT": "/go", "PWD": directory}, directory, GO_TIMEOUT_S
    )


def python_program(module: str, extra: list[str]) -> Program:
    arguments = ["/usr/bin/python3.11", "/opt/programs/unittest_report.py", f"test.test_{module}", *extra]
    return Program(
        world.path("python"), arguments, {"PYTHONDONTWRITEBYTECODE": "1"}, "/tmp", PYTHON_TIMEOUT_S
    )


def compare_suite(kind: str, name: str) -> suites.Comparison:
    if kind == "go":
        how = (partial(go_program, name), suites.read_go, suites.go_on_with_go, GO_LEFT_OUT.get(name, ()))
    else:
        how = (partial(python_program, name), suites.read_unittest, suites.go_on_with_unittest)
    cached = COMPAT / "results" / f"native-{kind}-{name}.json"
    if cached.exists():
        native = suites.Results(**json.loads(cached.read_text()))
    else:
        native = suites.run(places.natively, *how)
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(json.dumps(native.__dict__))
    began = time.monotonic()
    sandbox = suites.run(places.in_sandbox, *how)
    came = suites.compare(name, native, sandbox)
    print(
        f"{kind} {name}: {came.passes} of {came.native_passes} native passes, {len(came.second_process)} need a second "
        f"process, {len(came.failures)} other failures ({time.monotonic() - began:.0f} s)",
        flush=True,
    )
    for test, detail in came.failures.items():
        print(f"  {test}: {detail.strip().splitlines()[-1] if detail.strip() else ''}", flush=True)
    return came


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a package, module or program")
    options = parser.parse_args()
    steps = options.steps or list(STEPS)
    for step in steps:
        if step not in STEPS:
            parser.error(f"there is no step {step}: {', '.join(STEPS)}")
    for reason in (places.can_run_natively(), places.can_run_in_sandbox()):
        if reason and set(steps) - {"docs"}:
            print(f"cannot compare here: {reason}", file=sys.stderr)
            return 1
    if "inputs" in steps:
        world.build()
    failed = False
    for kind, names in (("go", GO_PACKAGES), ("cpython", PYTHON_MODULES)):
        if kind not in steps:
            continue
        for name in [name for name in names if not options.only or name in options.only]:
            came = compare_suite(kind, name)
            failed |= bool(came.failures)
            report.keep(kind, name, came.as_json())
    if "programs" in steps:
        failed |= report.run_programs(options.only)
    if "docs" in steps:
        report.write()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
