#!/usr/bin/env bash
# The verbs of a small job on one rank under valgrind: nothing invalid is read or written, nothing undefined decides anything, nothing of ours is lost.
# Slow: of label long (tests/CMakeLists.txt).
. "$(dirname "$0")/common.sh"
command -v valgrind >/dev/null || { echo "skipped: no valgrind"; exit 77; }
LIMIT=3600

small_job "$WORK/job.yaml" "$WORK/run"
# the cheapest calls that reach every quantizer, adapter and export
METHODS='[{method: [cloq, refine, loftq, qera-exact, l4q], bits: 2, group: 64, rank: 4}, {quantizer: nf, init: lqer, bits: 4, group: 64, rank: 4}]'

# checked ARGS...: one rank; valgrind's word stands in $WORK/log
checked() {
  local rc=0
  OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_orte_tmpdir_base=$WORK/mpi timeout -k 5 "$LIMIT" valgrind --quiet --error-exitcode=99 --num-callers=20 \
    --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite --suppressions="$PROJECT/tests/valgrind.supp" \
    --log-file="$WORK/log" "$CLOQWORK" "$@" </dev/null >"$WORK/out" 2>"$WORK/err" || rc=$?
  [ $rc -eq 0 ] || fault "$1 ended with $rc: $(tail -n 3 "$WORK/err"; head -n 40 "$WORK/log")"
}

job=("$WORK/job.yaml" --set "sweep=$METHODS" --set options.l4q_steps=3 --set calibration.windows=2 --set heldout.windows=1 --quiet)
checked plan "${job[@]}"
checked run "${job[@]}"
checked eval "${job[@]}" --settings 'refine*'
checked verify "$WORK/run"
checked report "$WORK/run" --out "$WORK/page"
checked status "$WORK/run"
for format in gptq compressed-tensors dense; do checked export "$WORK/run" --settings 'refine*' --to $format --out "$WORK/$format"; done
checked export "$WORK/run" --settings 'nf*' --to bnb --out "$WORK/bnb"
checked verify "$WORK/gptq"
checked grams "$WORK/run" --to npy --out "$WORK/grams"
finish
