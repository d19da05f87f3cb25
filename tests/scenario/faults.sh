#!/usr/bin/env bash
# Every operation that can fail made to fail, on each rank of 3, in each verb of a night: faults.c says what must hold after each. And a few of them
# in the program as a user runs it: one line, one exit code, and the next run makes the bytes of an undisturbed one.
#
#   SHARE   seconds for each verb's faults, drawn (default 1); 0: all of them
#   SEED    of the draw (default 2013)
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null && command -v h5dump >/dev/null || exit 77
SEED=${SEED:-2013}
echo "seed $SEED"

# A job that takes every kind of operation: the grid's adapters go through ScaLAPACK.
smallest_model "$WORK/model"
cat >"$WORK/job.yaml" <<J
model: $WORK/model
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 3, length: 32 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 1, length: 32 }
sweep: { method: [cloq], bits: [4], group: [32], rank: [4] }
options: { magr_K: 1, adapter_solver: grid }
J

while read -r verb target folder; do
  "$MPIRUN" -n 3 "$BUILD/tests/scenario_faults" "$verb" "$WORK/$target" "$WORK/$folder" "${SHARE:-1}" "$SEED" </dev/null 2>"$WORK/err" ||
    fault "$verb: $(grep -v '^ *$' "$WORK/err" | head -3)"
done <<'V'
calibrate job.yaml run
solve job.yaml run/solutions
collect job.yaml run/run.h5
verify job.yaml run/nothing
eval job.yaml run/eval
export job.yaml export
verify export run/nothing
V

# The program itself
datasets "$WORK/run" >"$WORK/expected"
RANDOM=$SEED
for rank in 0 1 2; do
  total=$(CLOQWORK_FAULT=$rank:0 on 3 run "$WORK/job.yaml" --quiet --set output="$WORK/faulty" 2>&1 >/dev/null | sed -n "s/.*rank $rank: \([0-9]*\) operations.*/\1/p")
  rm -rf "$WORK/faulty"
  [ "${total:-0}" -gt 1000 ] || fault "expected thousands of operations that can fail on rank $rank, found ${total:-none}"
  at=$(((RANDOM * 32768 + RANDOM) % ${total:-1000} + 1)) rc=0
  CLOQWORK_FAULT=$rank:$at on 3 run "$WORK/job.yaml" --quiet --set output="$WORK/faulty" >/dev/null 2>"$WORK/err" || rc=$?
  case $rc in 3 | 4 | 5 | 6 | 70) ;; *) fault "fault $rank:$at: expected code 3, 4, 5, 6 or 70, found $rc" ;; esac
  [ "$(grep -c '^cloqwork: ' "$WORK/err")" -eq 1 ] || fault "fault $rank:$at: expected one line, found: $(head -c 600 "$WORK/err")"
  on 3 run "$WORK/job.yaml" --quiet --set output="$WORK/faulty" >/dev/null || fault "fault $rank:$at: the run after it ended with $?"
  datasets "$WORK/faulty" | cmp -s - "$WORK/expected" || fault "fault $rank:$at: datasets differ from the undisturbed run"
  no_temporaries "$WORK/faulty"
  rm -rf "$WORK/faulty"
done
finish
