"""Unmodified programs in micro-VMs print what they print natively.

Needs root (namespaces for the native runs), /dev/kvm, runtimes and `gust`: `scripts/test.sh programs`. The programs and what
they run on are built by scripts/compat/world.py.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts/compat"))

import places
import programs
import world

WHY_NOT = places.can_run_natively() or places.can_run_in_sandbox()


@pytest.fixture(scope="session")
def built(request):
    if missing := world.missing_tools(request.param):
        pytest.skip(f"programs are NOT tested: {', '.join(missing)} missing")
    world.build((request.param,))
    return request.param


QUICK = [pytest.param(case.world, case, id=case.name) for case in programs.CASES if case.quick]


@pytest.mark.skipif(WHY_NOT is not None, reason=f"programs are NOT tested: {WHY_NOT}")
@pytest.mark.parametrize(("built", "case"), QUICK, indirect=["built"])
def test_prints_what_it_prints_natively(built, case):
    assert built == case.world
    came = programs.compare(case)
    assert came.complaint is None, came.complaint
