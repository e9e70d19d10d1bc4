"""Keeps what came of comparisons, and writes it into docs/compatibility.md between markers."""

from __future__ import annotations

import json
import platform
import subprocess

import programs
from places import CLONE, COMPAT

DOCUMENT = CLONE / "docs/compatibility.md"
RESULTS = COMPAT / "results"


def keep(kind: str, name: str, came: dict) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{kind}-{name}.json").write_text(json.dumps(came, indent=1))


def kept(kind: str) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{kind}-*.json"))]


def run_programs(only: list[str]) -> bool:
    """Compares programs; whether one failed."""
    failed = False
    for number, case in enumerate(programs.CASES):
        if only and case.name not in only:
            continue
        came = programs.compare(case)
        print(f"{case.name}: {came.complaint or 'same output'}", flush=True)
        failed |= came.complaint is not None
        keep("programs", f"{number:02}-{case.name}", {"name": case.name, "what": case.what, "complaint": came.complaint})
    return failed


def first_line(text: str) -> str:
    return " ".join(text.split())[:120].replace("|", "\\|")


def program_table() -> str:
    rows = ["| program | what it does | in a sandbox |", "|---|---|---|"]
    for came in kept("programs"):
        rows.append(f"| {came['name']} | {came['what']} | {first_line(came['complaint'] or 'as natively')} |")
    return "\n".join(rows)


def suite_table(kind: str, unit: str) -> str:
    all_of = kept(kind)
    rows = [f"| {unit} | pass natively | pass in a sandbox | need a second process | fail |", "|---|---|---|---|---|"]
    for came in all_of:
        rows.append(
            f"| {came['name']} | {came['native_passes']} | {came['passes']} | {len(came['second_process'])} "
            f"| {len(came['failures'])} |"
        )
    total = [sum(came["native_passes"] for came in all_of), sum(came["passes"] for came in all_of)]
    total += [sum(len(came[what]) for came in all_of) for what in ("second_process", "failures")]
    rows.append("| **all** | " + " | ".join(f"**{number}**" for number in total) + " |")
    failures = [
        f"- `{test}` ({came['name']}): {first_line(detail.strip().splitlines()[-1] if detail.strip() else 'no word')}"
        for came in all_of
        for test, detail in came["failures"].items()
    ]
    text = "\n".join(rows)
    if failures:
        text += "\n\nWhat fails:\n\n" + "\n".join(failures)
    return text


def versions() -> str:
    go = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout.strip()
    kernel = ".".join(platform.release().split(".")[:2])
    return f"Linux {kernel}, {go or 'no Go'}"


def put(document: str, section: str, text: str) -> str:
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, found, rest = document.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{DOCUMENT} has no section between {start} and {end}")
    return f"{before}{start}\n{text}\n{end}{after}"


def write() -> None:
    document = DOCUMENT.read_text()
    for section, text in (
        ("programs", program_table()),
        ("go", f"{versions()}.\n\n{suite_table('go', 'package')}"),
        ("cpython", suite_table("cpython", "module")),
    ):
        document = put(document, section, text)
    DOCUMENT.write_text(document)
    print(f"wrote {DOCUMENT}")
