#!/usr/bin/env bash
# All tests of Gust, from a fresh clone on Debian 12 with Rust: installs or names what is missing, builds, checks the
# style, and runs the unit, process and AWS tests. Build output lies outside the clone.
#
#   scripts/test.sh              everything
#   scripts/test.sh lint unit    only these steps: lint, unit, process, aws
#
# Set CARGO_TARGET_DIR or GUST_CACHE to build or keep runtimes elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${GUST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gust}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
export GUST_TEST_RUNTIMES="${GUST_TEST_RUNTIMES:-$cache/data/runtimes}"
runtimes=(python3.11 provided.al2023)
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(lint unit process aws)

say() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

wanted() {
    local step
    for step in "${steps[@]}"; do [ "$step" = "$1" ] && return 0; done
    return 1
}

need_tools() {
    local missing=()
    command -v cc >/dev/null || missing+=(build-essential)
    command -v apt-get >/dev/null && { command -v dpkg-deb >/dev/null || missing+=(dpkg); }
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    if ! command -v cargo >/dev/null; then
        echo "cargo is missing: install Rust 1.95 or newer (rustup)" >&2
        exit 1
    fi
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        say "installing ${missing[*]}"
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
    else
        echo "missing: ${missing[*]}; install them with: apt-get install ${missing[*]}" >&2
        exit 1
    fi
}

# Only what the runtimes are built from decides whether they are built again.
build_runtimes() {
    local stamp="$cache/data/runtimes/.built-from" from name
    from="$(git ls-files -s crates/gust-image runtimes Cargo.lock 2>/dev/null | sha256sum | cut -d' ' -f1)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$from" ]; then return; fi
    say "building runtimes: ${runtimes[*]}"
    for name in "${runtimes[@]}"; do
        "$gust" runtime build --force --data-dir "$cache/data" "$name"
    done
    echo "$from" >"$stamp"
}

need_tools
gust="$CARGO_TARGET_DIR/debug/gust"

if wanted lint; then
    say "style"
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    scripts/licences.py
fi

say "building"
cargo build --workspace --locked
build_runtimes

if wanted unit; then
    say "unit tests"
    cargo test --workspace --locked --lib --bins
fi

if wanted process; then
    say "process tests"
    cargo test --workspace --locked --test '*'
fi

if wanted aws; then
    say "AWS clients: boto3 and awscli from PyPI"
    venv="$cache/venv"
    want="$(sha256sum tests/aws/requirements.txt | cut -d' ' -f1)"
    if [ "$(cat "$venv/.made-from" 2>/dev/null)" != "$want" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q --disable-pip-version-check -r tests/aws/requirements.txt
        echo "$want" >"$venv/.made-from"
    fi
    GUST_BIN="$gust" "$venv/bin/python" -B -m pytest -c tests/aws/pytest.ini tests/aws
fi

say "all passed"
