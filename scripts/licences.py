#!/usr/bin/env python3
"""Checks the dependencies against the policy in deny.toml, without anything that must be installed first: every crate
has an allowed licence and comes from the registry. `cargo deny check` does more where it is installed."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def allowed(expression, licences):
    """Whether an SPDX expression can be met: OR by one side, AND by both, WITH as one licence."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            token += f" {tokens.pop(0)} {tokens.pop(0)}"
        return token in licences

    return either()


def main():
    policy = tomllib.loads((ROOT / "deny.toml").read_text())
    licences = set(policy["licenses"]["allow"])
    banned = {ban["name"] for ban in policy["bans"]["deny"]}
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    members = set(metadata["workspace_members"])
    problems = []
    crates = [package for package in metadata["packages"] if package["id"] not in members]
    for package in crates:
        name = f"{package['name']} {package['version']}"
        if not package["license"] or not allowed(package["license"], licences):
            problems.append(f"{name}: licence {package['license']} is not among those of deny.toml")
        if not (package["source"] or "").startswith("registry+"):
            problems.append(f"{name}: comes from {package['source']}, not from the registry")
        if package["name"] in banned:
            problems.append(f"{name}: is banned by deny.toml")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(crates)} dependencies, {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
