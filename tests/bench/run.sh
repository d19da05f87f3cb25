#!/usr/bin/env bash
# Benchmarks: tables for people; for scripts a line per figure, BENCH <name> <value>, and JSON with everything: machine, load, versions, figures, and
# behind RAW the times they were made from. Figures are ratios measured side by side in one run.
#
#   ./tests/bench/run.sh              the figures that are not marked *
#   ./tests/bench/run.sh NAME...      the named ones; what stands on one line comes from one run
#
#     forward   fwd_gram_smollm2_of_peak   fwd_gram_7b_of_peak   fwd_gram_70b_of_peak *   eval_smollm2_of_peak   eval_7b_of_peak
#     kernels   kernels_4096   kernels_4096x11008   kernels_8192: cholesky, optq, magr, sweep and adapter_4096x4096_of_peak, …
#     scaling   ranks2_efficiency ranks2_calibrate_efficiency ranks2_solve_efficiency teams2_calibrate_efficiency teams2_solve_efficiency
#               threads2_vs_ranks2 *: seconds of one rank with two threads of BLIS over those of two ranks
#     peers     optq_vs_torch magr_vs_torch adapter_vs_torch_qera
#               e2e_vs_gptqmodel memory_vs_gptqmodel loss_vs_gptqmodel *
#               gptqmodel_eora *: whether its adapter ends within 10 minutes (EORA_SECONDS), after e2e_vs_gptqmodel
#     adapter   adapter_4096_vs_root_svd rank_sweep_cost
#     files     export_of_write   container_of_write
#     memory    peak_memory_vs_plan
#     sweeps    sweep_cost sweep_fourth_method
#     refine    refine_vs_cloq_loss_2bit refine_vs_cloq_loss_3bit refine_vs_cloq_time   refine_vs_cloq_time_7b *
#     70B       layer70b_peak_gib layer70b_factor_optq_of_peak layer70b_adapter_share *: a layer of random weights, heavy-tailed activations and
#               outlier channels, solved at 2, 3 and 4 bits (LAYER70B_BITS) and rank 64 by cloq without MagR
#               layer70b_refine_of_peak *: then by refine, 3+2 rounds
#
#   RANKS=2, WINDOWS=N (windows of 2048 tokens of `forward`, of `scaling`, of e2e_vs_gptqmodel and of `70B`)
#   BENCH_MODEL=models/smollm2 (what GPTQModel is compared on; jobs/smollm2.sh --prepare makes it)
#   BENCH_DIR=folder of the made-up checkpoints (0.4 to 2 GB each) and runs, BENCH_JSON=file (default: BENCH_DIR/DATE.json)
#   BENCH_SMALL=1: everything as small as it runs, to see that it does; the figures mean nothing then
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../jobs/setup.sh"
cd "$ROOT"
load=$(cat /proc/loadavg)
need_packages "${PACKAGES[@]}"
run_environment
build_program
ranks=${RANKS:-2}
small=${BENCH_SMALL:-}
smollm2=${BENCH_MODEL:-models/smollm2}
dir=${BENCH_DIR:-${TMPDIR:-/tmp}/cloqwork-bench}
log=$dir/log.$$
mkdir -p "$dir"
yield_if_oversubscribed "$ranks"
names=("$@")
[ $# -gt 0 ] || names=(fwd_gram_smollm2_of_peak fwd_gram_7b_of_peak eval_smollm2_of_peak eval_7b_of_peak kernels_4096 kernels_4096x11008 kernels_8192 optq_vs_torch
    ranks2_efficiency adapter_4096_vs_root_svd peak_memory_vs_plan export_of_write container_of_write sweep_cost refine_vs_cloq_loss_2bit)

# Everything printed goes into the record too, whole or not.
complete=false
exec 3>&1 > >(tee "$log" >&3)
copier=$!
finish() {
    exec >&3
    wait "$copier" || true
    python3 tests/bench/record.py "$log" "${BENCH_JSON:-$dir/$(date +%Y-%m-%dT%H-%M-%S).json}" "$load" $complete
    rm -f "$log"
}
trap finish EXIT

# Of what comes from one run, the first name that is asked for makes it.
declare -A made=()
once() {
    [ -z "${made[$1]:-}" ] || return 0
    made[$1]=1
    "$@"
}

# checkpoint SHAPE: a made-up one of tests/bench/write.c, and tokens.npy beside it, 65536 ids of its vocabulary; sets model.
checkpoint() {
    local shape=$1
    [ -z "$small" ] || shape=small
    model=$dir/model-$shape
    build/tests/bench_write "$model" "$shape"
    [ -e "$model/tokens.npy" ] || python3 -c '
import array, json, random, sys
vocabulary, count = json.load(open(sys.argv[1] + "/config.json"))["vocab_size"], 65536
header = "{\x27descr\x27: \x27<i4\x27, \x27fortran_order\x27: False, \x27shape\x27: (%d,), }" % count
header += " " * (-(len(header) + 11) % 64) + "\n"
with open(sys.argv[1] + "/tokens.npy", "wb") as f:
    f.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    array.array("i", random.Random(0).choices(range(vocabulary), k=count)).tofile(f)
' "$model"
}

kernels() {
    [ -z "$small" ] || set -- 256 512
    mpirun -n "$ranks" build/tests/bench_kernels "$1" "$2"
}

torch_peers() {
    need_venv tests
    local size=4096
    [ -z "$small" ] || size=512
    "$PYTHON" tests/bench/peers.py build/tests/bench_kernels --size $size --ranks "$ranks"
}

# stages MODEL LABEL WINDOWS LENGTH LAYERS WAYS...: calibrating and solving (cloq without MagR, 3 bits) these layers in each way, RANKS:TEAM or 1:1:THREADS, in
# turns; prints RAW scaling_LABEL_STAGE_WAY and the wall seconds of the whole command, its start, reading and writing included.
stages() {
    local model=$1 label=$2 windows=$3 length=$4 layers=$5 job=$dir/scaling.yaml run=$dir/scaling way stage start ranks team threads
    shift 5
    local tokens=$model/tokens.npy
    [ -e "$tokens" ] || tokens=$model/calib.npy
    printf 'model: %s\ncalibration: {tokens: %s, windows: %s, length: %s}\nsweep: {method: cloq-nomagr, bits: 3, rank: 64}\n' "$model" "$tokens" "$windows" "$length" >"$job"
    for way in "$@"; do
        rm -rf "$run"
        IFS=: read -r ranks team threads <<<"$way"
        for stage in calibrate solve; do
            start=$EPOCHREALTIME
            (
                [ -z "$threads" ] || with_threads "$threads"
                mpirun -n "$ranks" build/cloqwork $stage "$job" --set output="$run" --set parallel.team="$team" --layers "$layers" --quiet
            )
            awk -v name="scaling_${label}_${stage}_$way" -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "RAW %s %.3f\n", name, b - a }'
        done
    done
    rm -rf "$run"
}

# with_threads N: our processes take BLIS with threads, from its package unpacked beside the checkpoints, and may use every core.
with_threads() {
    local lib
    lib=/usr/lib/$(gcc -print-multiarch)
    if [ ! -e "$dir/blis-openmp$lib/blis-openmp/libblis.so.4" ]; then
        (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download libblis4-openmp && dpkg -x libblis4-openmp_*.deb blis-openmp && rm libblis4-openmp_*.deb) >&2
    fi
    export LD_LIBRARY_PATH=$dir/blis-openmp$lib/blis-openmp:$lib/lapack OMP_NUM_THREADS=$1 BLIS_NUM_THREADS=$1 OMPI_MCA_hwloc_base_binding_policy=none
}

threads_against_ranks() {
    local model length=2048
    checkpoint 7b
    (with_threads 2) # fetched before anything is timed
    [ -z "$small" ] || length=128
    stages "$model" threads "${WINDOWS:-4}" $length 0 1:1:2 2:2 1:1:2 2:2 | tee "$dir/scaling.log"
    awk '
        !($2 in best) || $3 < best[$2] { best[$2] = $3 }
        function show(stage,   name, value) {
            name = "scaling_threads_" stage "_"
            value = best[name "1:1:2"] / best[name "2:2"]
            printf "%-9s one rank with two threads %.2f s, two ranks %.2f s\nBENCH threads2_vs_ranks2_%s %.3f\n", stage, best[name "1:1:2"], best[name "2:2"], stage, value
            return value
        }
        END { calibrate = show("calibrate"); solve = show("solve"); printf "BENCH threads2_vs_ranks2 %.3f\n", calibrate < solve ? calibrate : solve }
    ' "$dir/scaling.log"
}

# One rank against two: a layer of Llama-2-7B. One team of one rank against two: layers of SmolLM2 (or the tiny model), since streams flow from team to team
# a few windows at a time and with few layers and windows a team would wait for its first.
scaling() {
    local model length=2048 teams=$smollm2 layers=0-5
    checkpoint 7b
    [ -e "$teams/config.json" ] || teams=data/tiny
    [ -z "$small" ] || { length=128 teams=data/tiny layers=0-1; }
    {
        stages "$model" ranks "${WINDOWS:-4}" $length 0 2:2 1:1 2:2
        stages "$teams" teams 16 $length $layers 2:1 1:1 2:1 1:1
    } | tee "$dir/scaling.log"
    awk '
        !($2 in best) || $3 < best[$2] { best[$2] = $3 }
        function show(what, stage, two,   name, value) {
            name = "scaling_" what "_" stage "_"
            value = best[name "1:1"] / best[name two] / 2
            printf "%-9s 1 -> 2 %s: %.2f s, %.2f s\nBENCH %s2_%s_efficiency %.3f\n", stage, what, best[name "1:1"], best[name two], what, stage, value
            return value
        }
        END {
            calibrate = show("ranks", "calibrate", "2:2"); solve = show("ranks", "solve", "2:2")
            show("teams", "calibrate", "2:1"); show("teams", "solve", "2:1")
            printf "BENCH ranks2_efficiency %.3f\n", calibrate < solve ? calibrate : solve
        }
    ' "$dir/scaling.log"
}

# SmolLM2 at 4 bits, 64 columns a scale, 4 x 2048 tokens (GPTQModel's time goes with them: 16 would take it half an hour): GPTQModel from loading to saving, its imports not counted; ours from the job to the exported folder,
# with an adapter of rank 16 more (cloq without MagR: the same quantizer). Judged on held-out tokens.
gptqmodel() {
    local run=$dir/e2e peer=$dir/gptqmodel windows=${WINDOWS:-4} heldout=8 length=2048
    [ -z "$small" ] || windows=2 heldout=2 length=256
    [ -e "$smollm2/config.json" ] || ./jobs/smollm2.sh --prepare
    need_venv tests
    rm -rf "$run" "$run-heldout" "$run-grams" "$run-dense" "$run-gptq" "$peer"
    OMP_NUM_THREADS=$ranks python3 tests/bench/measure.py gptqmodel_process "$PYTHON" tests/bench/gptqmodel_peer.py "$smollm2" "$smollm2/calib.npy" "$peer" --windows $windows \
        --length $length --threads "$ranks" >"$dir/gptqmodel.log" 2>&1 || die "bench: GPTQModel failed; its log is $dir/gptqmodel.log"
    grep -a '^RAW' "$dir/gptqmodel.log"
    printf 'model: %s\noutput: %s\ncalibration: {tokens: %s/calib.npy, windows: %s, length: %s}\nsweep: {method: cloq-nomagr, bits: 4, group: 64, rank: 16}\n' \
        "$smollm2" "$run" "$smollm2" $windows $length >"$run.yaml"
    cat >"$run.sh" <<END
mpirun -n $ranks build/cloqwork run $run.yaml --quiet >/dev/null
mpirun -n $ranks build/cloqwork export $run --to gptq --out $run-gptq --quiet >/dev/null
END
    python3 tests/bench/measure.py cloqwork_process bash -e "$run.sh"
    mpirun -n "$ranks" build/cloqwork export "$run" --to dense --merge --dtype float32 --out "$run-dense" --quiet >/dev/null
    mpirun -n "$ranks" build/cloqwork calibrate "$run.yaml" --set output="$run-heldout" --set calibration.tokens="$smollm2/heldout.npy" --set calibration.windows=$heldout \
        --set calibration.sampling=sequential --quiet
    mpirun -n "$ranks" build/cloqwork grams "$run-heldout" --to npy --out "$run-grams" --quiet >/dev/null
    "$PYTHON" tests/bench/judge_models.py "$smollm2" "$run-grams" "$smollm2/heldout.npy" "$peer" "$run-dense/base" --windows 4 --length $length --threads "$ranks"
}

figures_of_gptqmodel() {
    gptqmodel | tee "$dir/e2e.log"
    awk '$1 == "RAW" { v[$2] = $3 } END {
        printf "GPTQModel %.1f s (%.1f s with its imports), %.2f GiB; cloqwork with adapter and export %.1f s, %.2f GiB\n", v["gptqmodel_seconds"],
            v["gptqmodel_process_seconds"], v["gptqmodel_process_gib"], v["cloqwork_process_seconds"], v["cloqwork_process_gib"]
        printf "BENCH e2e_vs_gptqmodel %.2f\nBENCH memory_vs_gptqmodel %.3f\n", v["gptqmodel_seconds"] / v["cloqwork_process_seconds"],
            v["cloqwork_process_gib"] / v["gptqmodel_process_gib"]
    }' "$dir/e2e.log"
}

gptqmodel_eora() {
    local rc=0
    [ -e "$dir/gptqmodel" ] || die "bench: gptqmodel_eora: expected $dir/gptqmodel of e2e_vs_gptqmodel"
    need_venv tests
    OMP_NUM_THREADS=$ranks timeout "${EORA_SECONDS:-600}" "$PYTHON" tests/bench/gptqmodel_peer.py "$smollm2" "$smollm2/calib.npy" "$dir/gptqmodel" --windows 2 \
        --threads "$ranks" --eora 16 >"$dir/eora.log" 2>&1 || rc=$?
    printf 'EoRA of GPTQModel, 2 windows, rank 16: code %s (124: stopped after %s s); its log is %s\n' $rc "${EORA_SECONDS:-600}" "$dir/eora.log"
    grep -a '^RAW' "$dir/eora.log" || true
}

# Bytes of a solution's file over seconds of its writing (with reading back and syncing), over the rate of a plain write of as many bytes: a layer of
# Llama-2-7B, 4 bits, rank 16. The best of three, in turns.
container_of_write() {
    local run=$dir/container job=$dir/container.yaml model length=2048 bytes
    [ -z "$small" ] || length=128
    checkpoint 7b
    printf 'model: %s\noutput: %s\ncalibration: {tokens: %s/tokens.npy, windows: 1, length: %s}\n' "$model" "$run" "$model" $length >"$job"
    printf 'sweep: {method: cloq-rtn, bits: 4, group: 128, rank: 16}\noptions: {adapter_tolerance: 0.1}\n' >>"$job"
    rm -rf "$run"
    mpirun -n "$ranks" build/cloqwork calibrate "$job" --quiet
    for _ in 1 2 3; do
        rm -rf "$run/solutions"
        mpirun -n "$ranks" build/cloqwork solve "$job" --quiet
        bytes=$(stat -c %s "$run"/solutions/*/layer-000.h5)
        tail -n 1 "$run/metrics.jsonl" | awk -v bytes="$bytes" 'match($0, /"write":[0-9.e-]+/) { print "RAW container_bytes", bytes; print "RAW container_seconds", substr($0, RSTART + 8, RLENGTH - 8) }'
        printf 'RAW plain_seconds %s\n' "$(mpirun -n "$ranks" build/tests/bench_write "$dir" "$bytes")"
    done | tee "$dir/container.log"
    awk '!($2 in best) || $3 < best[$2] { best[$2] = $3 } END {
        mb = best["container_bytes"] / 1e6
        printf "container of %.1f MB: %.0f MB/s, plain write %.0f MB/s\nBENCH container_of_write %.3f\n", mb, mb / best["container_seconds"], mb / best["plain_seconds"], best["plain_seconds"] / best["container_seconds"]
    }' "$dir/container.log"
    rm -rf "$run"
}

# layer_70b METHOD: the settings of that method, in a run that is kept: calibrated once, cloq-nomagr's codes serve refine. Products are timed before and after.
layer_70b() {
    local method=$1 run=$dir/layer-70b job=$dir/layer-70b.yaml model length=4096 windows=${WINDOWS:-4} rates=()
    windows=$(((windows + 1) / 2))
    [ -z "$small" ] || length=256
    checkpoint 70b
    printf 'model: %s\noutput: %s\ncalibration: {tokens: %s/tokens.npy, windows: %s, length: %s, sampling: sequential}\n' "$model" "$run" "$model" "$windows" $length >"$job"
    printf 'sweep:\n- {method: cloq-nomagr, bits: [%s], group: 64, rank: 64}\n- {method: refine, bits: [%s], group: 64, rank: 64, options: {refine_rounds: 3+2, refine_stop: 0}}\n' \
        "${LAYER70B_BITS:-2, 3, 4}" "${LAYER70B_BITS:-2, 3, 4}" >>"$job"
    read -ra rates < <(mpirun -n "$ranks" build/tests/bench_kernels rates)
    if [ "$method" = cloq-nomagr ]; then
        rm -rf "$run"
        mpirun -n "$ranks" build/cloqwork calibrate "$job" --quiet
    else
        rm -rf "$run"/solutions/refine*
    fi
    python3 tests/bench/measure.py "layer70b_$method" mpirun -n "$ranks" build/cloqwork solve "$job" --settings "$method*" --quiet | tee "$dir/layer-70b.log"
    read -ra rates < <(echo "${rates[@]}" "$(mpirun -n "$ranks" build/tests/bench_kernels rates)")
    python3 tests/bench/layer70b.py "$run" "$model" "$method" "$dir/layer-70b.log" "${rates[@]}"
}

evaluate() { mpirun -n "$ranks" build/tests/bench_eval "$dir" "$1" "${WINDOWS:-$2}"; }
fwd_gram() { mpirun -n "$ranks" build/tests/bench_fwd_gram "$dir" "$1" "${WINDOWS:-$2}"; }

adapter() {
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
    build/tests/bench_write "$dir/model-7b" 7b
    mpirun -n "$ranks" build/cloqwork run jobs/tiny.yaml --set model="$dir/model-7b" --set output="$run" --set calibration.windows=1 \
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
    build/tests/bench_write "$dir/model-7b" 7b
    printf 'model: %s\noutput: %s\ncalibration: {tokens: data/tiny/calib.npy, windows: 4, length: 2048}\nsweep:\n' "$dir/model-7b" "$run" >"$run.yaml"
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
    fwd_gram_70b_of_peak) fwd_gram 70b 4 ;;
    eval_smollm2_of_peak) evaluate smollm2 2 ;;
    eval_7b_of_peak) evaluate 7b 2 ;;
    kernels_4096) kernels 4096 4096 ;;
    kernels_4096x11008) kernels 4096 11008 ;;
    kernels_8192) kernels 8192 8192 ;;
    ranks2_efficiency | ranks2_calibrate_efficiency | ranks2_solve_efficiency | teams2_calibrate_efficiency | teams2_solve_efficiency) once scaling ;;
    optq_vs_torch | magr_vs_torch | adapter_vs_torch_qera) once torch_peers ;;
    e2e_vs_gptqmodel | memory_vs_gptqmodel | loss_vs_gptqmodel) once figures_of_gptqmodel ;;
    gptqmodel_eora) gptqmodel_eora ;;
    adapter_4096_vs_root_svd | rank_sweep_cost) once adapter ;;
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
    container_of_write) container_of_write ;;
    sweep_cost | sweep_fourth_method) once sweep_cost ;;
    refine_vs_cloq_loss_2bit | refine_vs_cloq_loss_3bit | refine_vs_cloq_time) once refine_vs_cloq ;;
    refine_vs_cloq_time_7b) refine_vs_cloq_7b ;;
    layer70b_peak_gib | layer70b_factor_optq_of_peak | layer70b_adapter_share) once layer_70b cloq-nomagr ;;
    threads2_vs_ranks2) threads_against_ranks ;;
    layer70b_refine_of_peak) layer_70b refine ;;
    *) die "bench: $name: unknown figure; see the head of tests/bench/run.sh" ;;
    esac
done
complete=true
