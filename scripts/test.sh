#!/usr/bin/env bash
# All tests of Gust, from a fresh clone on Debian 12 with Rust: installs or names what is missing, builds, checks the
# style, and runs the unit, process and AWS tests, and unmodified programs in micro-VMs. Build output lies outside the clone.
#
#   scripts/test.sh              everything
#   scripts/test.sh lint unit    only these steps: lint, unit, process, aws, programs, fuzz
#
# Set CARGO_TARGET_DIR or GUST_CACHE to build or keep runtimes elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

export GUST_TEST_RUNTIMES="${GUST_TEST_RUNTIMES:-$cache/data/runtimes}"
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(lint unit process aws programs fuzz)
for step in "${steps[@]}"; do
    case "$step" in
    lint | unit | process | aws | programs | fuzz) ;;
    *) echo "there is no step $step: lint, unit, process, aws, programs, fuzz" >&2; exit 2 ;;
    esac
done

wanted() {
    local step
    for step in "${steps[@]}"; do [ "$step" = "$1" ] && return 0; done
    return 1
}

aws_tests() {
    GUST_BIN="$gust" GUST_TEST_ISOLATION="$1" "$cache/venv/bin/python" -B -m pytest -c tests/aws/pytest.ini "${@:2}"
}

need_tools
gust="$CARGO_TARGET_DIR/debug/gust"

if wanted lint; then
    say "style"
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    scripts/licences.py
fi

say "building"
cargo build --workspace --locked
build_runtimes "$gust" python3.11 nodejs20.x java17 provided.al2023 provided.al2

if wanted unit; then
    say "unit tests"
    cargo test --workspace --locked --lib --bins
fi

if wanted process; then
    say "process tests"
    cargo test --workspace --locked --test '*'
fi

if wanted aws; then
    make_venv
    if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
        say "AWS clients, functions in KVM micro-VMs"
        aws_tests kvm tests/aws
    else
        say "NO /dev/kvm: micro-VMs are NOT tested"
    fi
    say "AWS clients, functions in processes"
    aws_tests process tests/aws/test_{cluster,damage,go,handlers,invoke,java,nodejs,packages,provided,scaling}.py
fi

if wanted programs; then
    make_venv
    say "unmodified programs, natively and in micro-VMs"
    GUST_BIN="$gust" "$cache/venv/bin/python" -B -m pytest -c tests/programs/pytest.ini tests/programs
fi

if wanted fuzz; then
    say "fuzz targets, 3 seconds each"
    scripts/fuzz.sh 3
fi

say "all passed"
