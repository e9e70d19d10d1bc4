#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/ on their kept inputs, and then on new ones for a while.
#
#   scripts/fuzz.sh                 every target, 5 seconds each
#   scripts/fuzz.sh 60              ... a minute each
#   scripts/fuzz.sh 1000000x        ... a million inputs each
#   scripts/fuzz.sh 60 elf image    only these targets
#
# Runs of a number of inputs are long ones: they are built apart, without tracing comparisons, which is 1.3 to 2 times as quick.
#
# It needs the stable compiler and a C++ compiler; the counters are those of `cargo fuzz`, without its sanitizer. What is
# found lies in $GUST_FUZZ_DIR/crashes (by default beside the build output), and the run fails. Inputs that reach something
# new stay in $GUST_FUZZ_DIR/corpus; `scripts/fuzz.sh keep` puts the smallest of them that reach as much into
# fuzz/corpus. A table of what was run is printed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# Longest input in bytes, longest time for one in seconds, most memory in MiB.
max_len=4096
timeout_s=20
rss_mib=3072
# Most inputs of a target's kept corpus, and most bytes of them.
kept_max=150
kept_bytes_max=100000

dir="${GUST_FUZZ_DIR:-$CARGO_TARGET_DIR/fuzz}"
mapfile -t all < <(sed -n 's/^name = "\(.*\)"$/\1/p' fuzz/Cargo.toml | grep -vx -e gust-fuzz -e seeds)

amount="${1:-5}"
[ $# -gt 0 ] && shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")
for target in "${targets[@]}"; do
    if [ ! -e "fuzz/targets/$target.rs" ]; then
        echo "there is no target $target: ${all[*]}" >&2
        exit 2
    fi
done
counters=(level=4 inline-8bit-counters pc-table trace-compares)
build="$dir/target"
case "$amount" in
keep) ;;
*x)
    bound="-runs=${amount%x}"
    counters=(level=3 inline-8bit-counters pc-table)
    build="$dir/target-long"
    ;;
*) bound="-max_total_time=$amount" ;;
esac
if [[ ! "$amount" =~ ^(keep|[0-9]+x?)$ ]]; then
    echo "how long is $amount? A number of seconds, a number of inputs with an x behind it, or keep" >&2
    exit 2
fi

say "building the fuzz targets"
flags="-Cpasses=sancov-module --cfg fuzzing"
for option in "${counters[@]}"; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$option"
done
host="$(rustc -vV | sed -n 's/^host: //p')"
# With a target named, build scripts and procedural macros are not built with counters.
RUSTFLAGS="$flags" CARGO_TARGET_DIR="$build" cargo build --manifest-path fuzz/Cargo.toml --release \
    --target "$host"
programs="$build/$host/release"

GUST_SEEDS="$dir/corpus" "$programs/seeds" >/dev/null 2>&1

if [ "$amount" = keep ]; then
    for target in "${targets[@]}"; do
        kept="fuzz/corpus/$target"
        merged="$(mktemp -d "$dir/merge.XXXXXX")"
        mkdir -p "$kept" "$dir/corpus/$target"
        "$programs/$target" -merge=1 -max_len=$max_len -rss_limit_mb=$rss_mib "$merged" "$kept" "$dir/corpus/$target" \
            >"$dir/$target.log" 2>&1
        rm -rf "$kept"
        mkdir -p "$kept"
        # Names are checksums, so in their order these are some of each kind.
        total=0 count=0
        while read -r name size; do
            [ "$size" -le 2048 ] && [ $((total + size)) -le "$kept_bytes_max" ] && [ "$count" -lt "$kept_max" ] || continue
            total=$((total + size)) count=$((count + 1))
            cp "$merged/$name" "$kept/$name"
        done < <(cd "$merged" && find . -type f -printf '%f %s\n' | sort)
        rm -rf "$merged"
        echo "$target: $(find "$kept" -type f | wc -l) inputs, $(du -sb "$kept" | cut -f1) bytes"
    done
    exit 0
fi

mkdir -p "$dir/crashes"
failed=()
table="$(printf '| %-15s | %12s | %12s | %8s | %8s | %8s |' target inputs inputs/s edges features crashes)"
for target in "${targets[@]}"; do
    say "$target"
    mkdir -p "$dir/corpus/$target" "fuzz/corpus/$target"
    log="$dir/$target.log"
    crashes=0
    if ! "$programs/$target" "$bound" -max_len=$max_len -timeout=$timeout_s -rss_limit_mb=$rss_mib \
        -artifact_prefix="$dir/crashes/$target-" -print_final_stats=1 -verbosity=1 \
        "$dir/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1; then
        crashes=1
        failed+=("$target")
        tail -n 40 "$log"
    fi
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -n 1; }
    last="$(grep -E '^#[0-9]+.* cov: ' "$log" | tail -n 1)"
    edges="$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' <<<"$last")"
    features="$(sed -n 's/.* ft: \([0-9]*\).*/\1/p' <<<"$last")"
    row="$(printf '| %-15s | %12s | %12s | %8s | %8s | %8s |' "$target" "$(stat number_of_executed_units)" \
        "$(stat average_exec_per_sec)" "$edges" "$features" "$crashes")"
    echo "$row"
    table+=$'\n'"$row"
done
printf '\n%s\n' "$table"
if [ ${#failed[@]} -gt 0 ]; then
    echo "inputs that must not do what they do are in $dir/crashes: ${failed[*]}" >&2
    exit 1
fi
