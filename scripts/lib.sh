# What the scripts share; sourced by them in the root of the clone.
# shellcheck shell=bash

cache="${GUST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gust}"
export GUST_CACHE="$cache"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"

say() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

# Installs Debian packages, or says which ones are missing.
install() {
    [ $# -eq 0 ] && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        say "installing $*"
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
    else
        echo "missing: $*; install them with: apt-get install $*" >&2
        return 1
    fi
}

# What building and testing need.
need_tools() {
    local missing=()
    # The fuzzer is written in C++.
    { command -v cc && command -v c++; } >/dev/null || missing+=(build-essential)
    command -v apt-get >/dev/null && { command -v dpkg-deb >/dev/null || missing+=(dpkg); }
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    if ! command -v cargo >/dev/null; then
        echo "cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2
        exit 1
    fi
    install "${missing[@]}" || exit 1
}

# build_runtimes GUST NAME...: only what runtimes are built from decides whether they are built again.
build_runtimes() {
    local gust="$1" name from stamp
    shift
    from="$(git ls-files -s crates/gust-image runtimes Cargo.lock 2>/dev/null | sha256sum | cut -d' ' -f1)"
    for name in "$@"; do
        stamp="$cache/data/runtimes/.$name.built-from"
        if [ "$(cat "$stamp" 2>/dev/null)" = "$from" ] && [ -e "$cache/data/runtimes/$name.img" ]; then continue; fi
        say "building the runtime $name"
        "$gust" runtime build --force --data-dir "$cache/data" "$name"
        echo "$from" >"$stamp"
    done
}

# make_venv: a virtual environment with unmodified clients from PyPI, in $cache/venv.
make_venv() {
    local venv="$cache/venv" want
    want="$(sha256sum tests/aws/requirements.txt | cut -d' ' -f1)"
    if [ "$(cat "$venv/.made-from" 2>/dev/null)" = "$want" ]; then return; fi
    say "installing boto3 and awscli from PyPI"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r tests/aws/requirements.txt
    echo "$want" >"$venv/.made-from"
}
