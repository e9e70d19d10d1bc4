#!/usr/bin/env bash
# Shows Gust at work, from a fresh clone on Debian 12 with Rust: installs or names what is missing, builds, starts a
# server of its own on a free port, deploys the examples, calls them with the command line and with an unmodified boto3
# script, shows where the time of a cold start goes, and measures it against its peers. Ends what it started, and
# leaves nothing in the clone.
#
#   scripts/demo.sh              the whole
#   ROUNDS=100 scripts/demo.sh   a longer measurement
#
# Set CARGO_TARGET_DIR or GUST_CACHE to build or keep runtimes elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

rounds="${ROUNDS:-10}"
need_tools
command -v crun >/dev/null || install crun || true

say "building"
cargo build --release --locked -p gust
gust="$CARGO_TARGET_DIR/release/gust"
build_runtimes "$gust" python3.11 provided.al2023
make_venv

work="$(mktemp -d)"
chmod 711 "$work"
mkdir "$work/data"
ln -s "$cache/data/runtimes" "$work/data/runtimes"
server=
finish() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" || true; fi
    rm -rf "$work"
}
trap finish EXIT

# run COMMAND...: shows a command, then runs it.
run() {
    printf '\n$ gust %s\n' "$*"
    "$gust" "$@"
}

say "starting a server"
"$gust" up --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/up" &
server=$!
until grep -q '^next:' "$work/up"; do
    kill -0 "$server" 2>/dev/null || exit 1
    sleep 0.05
done
sed '/^next:/,$d' "$work/up"
GUST_ENDPOINT="$(grep -o 'http://[0-9.:]*' "$work/up" | head -n 1)"
export GUST_ENDPOINT

say "deploying the examples"
for example in hello json-hash s3-client counter; do
    "$gust" deploy "examples/$example" | head -n 1
done

say "calling them"
run invoke hello '{"name": "you"}' --tail
run invoke json-hash '{"any": ["document"]}'
run invoke s3-client
run invoke counter
run invoke counter

say "the same with an unmodified boto3 script: only the endpoint is another"
printf '\n$ AWS_ENDPOINT_URL=%s python3 examples/boto3-client.py\n' "$GUST_ENDPOINT"
AWS_ENDPOINT_URL="$GUST_ENDPOINT" AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_DEFAULT_REGION=us-east-1 \
    "$cache/venv/bin/python" examples/boto3-client.py

say "any program in a micro-VM, without the server"
printf '\n$ echo 1 2 3 | gust run provided.al2023 -- wc -w\n'
echo 1 2 3 | "$gust" run --data-dir "$cache/data" provided.al2023 -- wc -w
run run --data-dir "$cache/data" --stats python3.11 -- python3 -c 'import os; print(os.uname().sysname, sum(range(10)))'

say "where the time of its last calls went"
run describe hello

say "cold starts against their peers, $rounds rounds"
unset GUST_ENDPOINT
"$gust" bench coldstart --rounds "$rounds" --data-dir "$cache/data" --report-dir "$cache/bench-results"

say "done; start a server of your own with: $gust up --data-dir $cache/data"
