#!/usr/bin/env bash
# Builds the fuzz targets and runs all of them.
#
#   ./tests/fuzz/run.sh               30 seconds in all, as the tests do
#   ./tests/fuzz/run.sh SECONDS       so long in all; an hour is 3600
#   ./tests/fuzz/run.sh SECONDS NAME  one target
#
# Every target first reads what was found before (found/NAME) and where it starts (corpus/NAME; containers: tests/compat, too), then makes
# inputs from these. It ends with the number of executions. What it finds is kept in build/fuzz/finds: a fixed one belongs into found/NAME.
# With clang 14 of Debian or CLANG=name; what it learns is kept in build/fuzz/learnt, for the next run.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../jobs/setup.sh"

seconds=${1:-30} clang=${CLANG:-clang-14} here=$ROOT/tests/fuzz build=$ROOT/build/fuzz
case ${seconds} in
'' | *[!0-9]*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
names=(safetensors npy checkpoint job container)
[ $# -lt 2 ] || names=("$2")
[ "$clang" != clang-14 ] || need_packages "${PACKAGES[@]}" clang-14 libclang-rt-14-dev
run_environment
mkdir -p "$build"
quiet "$build/configure.log" "configuring" cmake -S "$ROOT" -B "$build" -DCMAKE_C_COMPILER="$clang" -DCMAKE_BUILD_TYPE=None -DCLOQWORK_FUZZ=ON -DCLOQWORK_TESTS=OFF
quiet "$build/build.log" "building" cmake --build "$build" -j "${BUILD_JOBS:-$(cores)}" --target fuzz

scratch=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/cloqwork-fuzz.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

export LSAN_OPTIONS=suppressions=$ROOT/tests/sanitizers.supp:print_suppressions=0 ASAN_OPTIONS=allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
share=$((seconds / ${#names[@]}))
[ $share -ge 1 ] || share=1
total=0 failed=0
for name in "${names[@]}"; do
    mkdir -p "$build/learnt/$name" "$build/finds/$name"
    seeds=("$here/corpus/$name")
    [ "$name" != container ] || seeds+=("$ROOT/tests/compat/0.1.0")
    [ ! -d "$here/found/$name" ] || seeds+=("$here/found/$name")
    rc=0
    "$build/tests/fuzz/fuzz_$name" -max_total_time=$share -timeout=60 -rss_limit_mb=2048 -max_len=20000 -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="$build/finds/$name/" "$build/learnt/$name" "${seeds[@]}" >"$build/$name.log" 2>&1 </dev/null || rc=$?
    count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$name.log")
    total=$((total + ${count:-0}))
    say "$name" "${count:-no} executions"
    if [ $rc -ne 0 ]; then
        failed=$((failed + 1))
        grep -E 'ERROR|SUMMARY|does not hold|runtime error|^ *#[0-6] |Test unit written' "$build/$name.log" >&2 || tail -n 20 "$build/$name.log" >&2
    fi
done
say total "$total executions, $failed targets with finds"
[ $failed -eq 0 ]
