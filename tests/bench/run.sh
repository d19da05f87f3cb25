#!/usr/bin/env bash
# Benchmarks: tables for people and, for scripts, a line per figure: BENCH <name> <value>. Figures are ratios measured side by side in one run.
#
#   ./tests/bench/run.sh              all of them (about a quarter of an hour on two quiet cores)
#   ./tests/bench/run.sh NAME...      the named ones: fwd_gram_smollm2_of_peak fwd_gram_7b_of_peak fwd_gram_70b_of_peak
#                                     adapter_4096_vs_root_svd rank_sweep_cost peak_memory_vs_plan eval_smollm2_of_peak eval_7b_of_peak
#                                     export_of_write sweep_cost (and with it sweep_fourth_method)
#                                     refine_vs_cloq_loss_2bit (and with it refine_vs_cloq_loss_3bit, refine_vs_cloq_time) refine_vs_cloq_time_7b
#   RANKS=2 (default), WINDOWS=8 windows of 2048 tokens (70b: 2), BENCH_DIR=folder for the made-up checkpoints (404 MB for 7b, 1.7 GB for 70b)
#
# fwd_gram_70b and refine_vs_cloq_time_7b (half an hour) are run only when they are named.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../jobs/setup.sh"
cd "$ROOT"
need_packages "${PACKAGES[@]}"
run_environment
build_program
ranks=${RANKS:-2}
dir=${BENCH_DIR:-${TMPDIR:-/tmp}/cloqwork-bench}
mkdir -p "$dir"
yield_if_oversubscribed "$ranks"
names=("$@")
[ $# -gt 0 ] || names=(fwd_gram_smollm2_of_peak fwd_gram_7b_of_peak eval_smollm2_of_peak eval_7b_of_peak adapter_4096_vs_root_svd peak_memory_vs_plan export_of_write sweep_cost refine_vs_cloq_loss_2bit)

evaluate() { mpirun -n "$ranks" build/tests/bench_eval "$dir" "$1" "${WINDOWS:-$2}"; }
fwd_gram() { mpirun -n "$ranks" build/tests/bench_fwd_gram "$dir" "$1" "${WINDOWS:-$2}"; }

adapter_done=
adapter() { # both figures come from one run
    [ -z "$adapter_done" ] || return 0
    adapter_done=1
    need_venv tests
    "$PYTHON" tests/bench/adapter.py build/tests/bench_adapter
}

# The most memory of a rank that the run saw (private, and its share of the team's) over what plan says of the same job.
peak_memory() {
    local run=$dir/memory predicted
    rm -rf "$run"
    predicted=$(mpirun -n "$ranks" build/cloqwork plan jobs/tiny.yaml --set output="$run" "$@" --json | sed -n 's/.*"rank_bytes": \([0-9]*\).*/\1/p')
    mpirun -n "$ranks" build/cloqwork run jobs/tiny.yaml --set output="$run" "$@" --quiet >/dev/null
    awk -v ranks="$ranks" -v predicted="$predicted" '
        match($0, /"private_bytes_peak":[0-9]+/) { private = substr($0, RSTART + 21, RLENGTH - 21) }
        match($0, /"shared_bytes_peak":[0-9]+/) { shared = substr($0, RSTART + 20, RLENGTH - 20) }
        { now = private + shared / ranks; if (now > most) most = now }
        END { printf "memory of a rank: %.1f MiB seen, %.1f MiB planned\nBENCH peak_memory_vs_plan %.3f\n", most / 1048576, predicted / 1048576, most / predicted }
    ' "$run/metrics.jsonl"
}

# Seconds of writing the same bytes plainly over those of the export (best of five each, taken in turns): a made-up Llama-2-7B of one layer,
# 4 bits as GPTQ with its adapter. It is quantized by rounding, which is not what is measured.
export_of_write() {
    local run=$dir/export-run out=$dir/export bytes seconds plain=() export=()
    build/tests/bench_write "$dir/export-model" 7b
    mpirun -n "$ranks" build/cloqwork run jobs/tiny.yaml --set model="$dir/export-model" --set output="$run" --set calibration.windows=1 \
        --set heldout= --set 'sweep={method: cloq-rtn, bits: 4, group: 128, rank: 16}' --set options.adapter_tolerance=0.1 --quiet >/dev/null
    for _ in 1 2 3 4 5; do
        rm -rf "$out"
        read -r bytes seconds < <(mpirun -n "$ranks" build/cloqwork export "$run" --to gptq --out "$out" --json --quiet |
            awk -F'[:,]' '/"bytes"/ { b = $2 } /"seconds"/ { s = $2 } END { print b + 0, s + 0 }')
        export+=("$seconds")
        plain+=("$(mpirun -n "$ranks" build/tests/bench_write "$dir" "$bytes")")
    done
    printf '%s\n' "${plain[*]}" "${export[*]}" | awk -v bytes="$bytes" '
        { best[NR] = $1; for (i = 2; i <= NF; i++) if ($i < best[NR]) best[NR] = $i }
        END { printf "%.1f MB: plain write %.3f s (%.2f GB/s), export %.3f s\nBENCH export_of_write %.3f\n", bytes / 1e6, best[1], bytes / best[1] / 1e9, best[2], best[1] / best[2] }
    '
    rm -rf "$out"
}

# Seconds of solving METHODS BITS RANKS, all stages, in a run that has its Grams and nothing else.
solve_seconds() {
    rm -rf "$dir/sweep/solutions" "$dir/sweep/metrics.jsonl"
    mpirun -n "$ranks" build/cloqwork solve "$dir/sweep.yaml" --layers "$layers" --set "sweep={method: [$1], bits: [$2], rank: [$3]}" --quiet
    awk 'match($0, /"seconds": ?[{][^}]*/) { n = split(substr($0, RSTART + 10, RLENGTH - 10), x, /[:,]/); for (i = 2; i <= n; i += 2) s += x[i] } END { print s }' \
        "$dir/sweep/metrics.jsonl"
}

# A sweep of 3 methods x 3 bits x 4 ranks over the sum of its 9 quantizations, each alone at one rank; and the sweep with a fourth method,
# whose codes one of the three has, over the sweep without. Best of three each, taken in turns. On two layers of SmolLM2, or the tiny model.
sweep_cost() {
    local model=models/smollm2 layers=0-1 method bits
    [ -e $model/config.json ] || { model=data/tiny layers=0-5; }
    printf 'model: %s\noutput: %s\ncalibration: {tokens: %s/calib.npy, windows: 16, length: 256}\n' $model "$dir/sweep" $model >"$dir/sweep.yaml"
    printf 'sweep: {method: cloq, bits: 4, rank: 8}\n' >>"$dir/sweep.yaml"
    rm -rf "$dir/sweep"
    mpirun -n "$ranks" build/cloqwork calibrate "$dir/sweep.yaml" --layers $layers --quiet
    for _ in 1 2 3; do
        echo sweep "$(solve_seconds "cloq, cloq-nomagr, cloq-rtn" "2, 3, 4" "8, 16, 32, 64")"
        echo fourth "$(solve_seconds "cloq, cloq-nomagr, cloq-rtn, eora" "2, 3, 4" "8, 16, 32, 64")"
        for method in cloq cloq-nomagr cloq-rtn; do
            for bits in 2 3 4; do echo $method-$bits "$(solve_seconds $method $bits 64)"; done
        done
    done | awk '
        !($1 in best) || $2 < best[$1] { best[$1] = $2 }
        END {
            for (name in best) if (name != "sweep" && name != "fourth") alone += best[name]
            printf "36 settings and ranks: %.2f s; their 9 quantizations alone: %.2f s; with eora: %.2f s\n", best["sweep"], alone, best["fourth"]
            printf "BENCH sweep_cost %.3f\nBENCH sweep_fourth_method %.3f\n", best["sweep"] / alone, best["fourth"] / best["sweep"]
        }
    '
    rm -rf "$dir/sweep"
}

# refine (rank 16, group 64) over cloq on the held-out tokens at 2 and 3 bits, geometric mean over the matrices of two layers of SmolLM2 (or the tiny
# model), against the better of MagR's two published thresholds; and seconds of one rank of 6+4 rounds over those of cloq with the published
# iteration (pg, 150 steps) at 2 bits.
refine_vs_cloq() {
    local model=models/smollm2 layers=5-6 run=$dir/refine
    [ -e $model/config.json ] || { model=data/tiny layers=0-5; }
    printf 'model: %s\noutput: %s\ncalibration: {tokens: %s/calib.npy, windows: 16, length: 2048}\n' $model "$run" $model >"$run.yaml"
    printf 'heldout: {tokens: %s/heldout.npy, windows: 4, length: 2048}\n' $model >>"$run.yaml"
    printf 'sweep:\n- {method: cloq, bits: [2, 3], rank: 16, options: {magr_alpha: [1.0e-4, 1.0e-3]}}\n' >>"$run.yaml"
    printf -- '- {method: cloq, bits: 2, rank: 16, options: {magr_solver: pg}}\n- {method: refine, bits: [2, 3], rank: 16}\n- {method: refine, bits: 2, rank: 16, options: {refine_rounds: 6+4}}\n' >>"$run.yaml"
    rm -rf "$run"
    mpirun -n "$ranks" build/cloqwork calibrate "$run.yaml" --layers $layers --quiet
    mpirun -n "$ranks" build/cloqwork solve "$run.yaml" --layers $layers --quiet
    build/cloqwork report "$run" --json | python3 -c '
import json, sys
settings = {s["name"]: s["matrices"]["all"] for s in json.load(sys.stdin)["settings"]}
loss = lambda name: settings[name]["relative_loss_heldout"][-1]
for bits in 2, 3:
    cloq = {name: loss(name) for name in settings if name.startswith(f"cloq-b{bits}") and "pg" not in name}
    best = min(cloq, key=cloq.get)
    refine = f"refine-b{bits}-g64"
    print(f"{refine} {loss(refine):.5g}, {best} {cloq[best]:.5g}\nBENCH refine_vs_cloq_loss_{bits}bit {loss(refine) / cloq[best]:.3f}")
mine, published = (next(v["seconds"] for k, v in settings.items() if k.startswith(x) and y in k) for x, y in (("refine-b2", "6+4"), ("cloq-b2", "pg")))
print(f"seconds of one rank: refine {mine:.2f}, cloq with 150 steps {published:.2f}\nBENCH refine_vs_cloq_time {mine / published:.3f}")
'
    rm -rf "$run"
}

# The same seconds on one layer of the shape of Llama-2-7B, random weights: those of cloq with 150 steps are drawn as a line through 2 and 8 steps.
refine_vs_cloq_7b() {
    local run=$dir/refine-7b
    build/tests/bench_write "$dir/export-model" 7b
    printf 'model: %s\noutput: %s\ncalibration: {tokens: data/tiny/calib.npy, windows: 4, length: 2048}\nsweep:\n' "$dir/export-model" "$run" >"$run.yaml"
    printf -- '- {method: cloq, bits: 2, rank: 64, options: {magr_solver: pg, magr_K: [2, 8]}}\n' >>"$run.yaml"
    printf -- '- {method: refine, bits: 2, rank: 64, options: {refine_rounds: 6+4, refine_stop: 0}}\n' >>"$run.yaml"
    rm -rf "$run"
    mpirun -n "$ranks" build/cloqwork run "$run.yaml" --quiet >/dev/null
    build/cloqwork report "$run" --json | python3 -c '
import json, sys
seconds = {s["name"]: s["matrices"]["all"]["seconds"] for s in json.load(sys.stdin)["settings"]}
two, eight = (next(v for k, v in seconds.items() if k.endswith(f"magr_K_{steps}")) for steps in (2, 8))
published, mine = two + (eight - two) / 6 * 148, next(v for k, v in seconds.items() if k.startswith("refine"))
print(f"seconds of one rank: refine {mine:.1f}, cloq {two:.1f} with 2 steps, {eight:.1f} with 8, so {published:.1f} with 150\nBENCH refine_vs_cloq_time_7b {mine / published:.3f}")
'
    rm -rf "$run"
}

for name in "${names[@]}"; do
    case $name in
    fwd_gram_smollm2_of_peak) fwd_gram smollm2 8 ;;
    fwd_gram_7b_of_peak) fwd_gram 7b 8 ;;
    fwd_gram_70b_of_peak) fwd_gram 70b 2 ;;
    eval_smollm2_of_peak) evaluate smollm2 2 ;;
    eval_7b_of_peak) evaluate 7b 2 ;;
    adapter_4096_vs_root_svd | rank_sweep_cost) adapter ;;
    peak_memory_vs_plan)
        job=models/smollm2/config.json
        if [ -e "$job" ]; then
            peak_memory --set sweep.method=cloq --set model=models/smollm2 --set calibration.tokens=models/smollm2/calib.npy --set heldout.tokens=models/smollm2/heldout.npy \
                --set calibration.windows=8 --set calibration.length=2048 --set heldout.windows=4 --set heldout.length=2048 --set options.magr_K=5
        else
            peak_memory
        fi
        ;;
    export_of_write) export_of_write ;;
    sweep_cost) sweep_cost ;;
    refine_vs_cloq_loss_2bit | refine_vs_cloq_loss_3bit | refine_vs_cloq_time) refine_vs_cloq ;;
    refine_vs_cloq_time_7b) refine_vs_cloq_7b ;;
    *) die "bench: $name: unknown figure; see the head of tests/bench/run.sh" ;;
    esac
done
