#!/usr/bin/env bash
# The verbs of a small job on one rank under valgrind: nothing invalid is read or written, nothing undefined decides anything, nothing of ours is lost.
# Slow, so of label long (tests/CMakeLists.txt).
. "$(dirname "$0")/common.sh"
command -v valgrind >/dev/null || { echo "skipped: no valgrind"; exit 77; }
LIMIT=3600

smallest_model "$WORK/model"
cat >"$WORK/job.yaml" <<J
model: $WORK/model
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 3, length: 64 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 1, length: 64 }
sweep:
- { method: [cloq, refine, loftq, loftq-int, lasq-w, lqer, qera-exact, l4q, slim-llm, svd], bits: 2, group: 32, rank: 4 }
- { method: [{ quantizer: nf, init: lqer }, caldera, eora], bits: 4, group: 32, rank: 4 }
- { method: qa-lora, bits: 4, group: 8, rank: 4 }
- { method: billm, bits: 1, group: 32, rank: 4 }
- { method: cloq, bits: 3, group: 0, rank: 4, options: { optq_order: act, damping: 0.1 } }
- { method: refine, bits: 2, group: 32, rank: 4, options: { act_quantizer: cross } }
options: { magr_K: 3, l4q_steps: 3 }
J

# checked ARGS...: one rank; valgrind's word stands in $WORK/log. BLIS 0.9's kernels for sandybridge have no fused products, which valgrind is very slow at.
checked() {
  local rc=0
  OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_orte_tmpdir_base=$WORK/mpi BLIS_ARCH_TYPE=4 timeout -k 5 "$LIMIT" valgrind --quiet --error-exitcode=99 --num-callers=20 \
    --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite --suppressions="$PROJECT/tests/valgrind.supp" \
    --log-file="$WORK/log" "$CLOQWORK" "$@" </dev/null >"$WORK/out" 2>"$WORK/err" || rc=$?
  [ $rc -eq 0 ] || fault "$1 ended with $rc: $(tail -n 3 "$WORK/err"; head -n 60 "$WORK/log")"
}

checked plan "$WORK/job.yaml"
checked run "$WORK/job.yaml" --quiet
checked eval "$WORK/job.yaml" --quiet
checked verify "$WORK/run"
checked report "$WORK/run" --out "$WORK/page"
checked status "$WORK/run"
for format in gptq compressed-tensors dense; do checked export "$WORK/run" --setting refine-b2-g32 --to $format --out "$WORK/$format"; done
checked export "$WORK/run" --setting nf-lqer-b4-g32 --to bnb --out "$WORK/bnb"
checked verify "$WORK/gptq"
checked grams "$WORK/run" --to npy --out "$WORK/grams"
finish
