#!/bin/bash
# Every method of the field in one sweep: verified by the program, then every loss, code and relation again by numpy (methods.py).
. "$(dirname "$0")/../scenario/common.sh"
python=${CLOQWORK_PYTHON:-}
[ -n "$python" ] || { echo "CLOQWORK_PYTHON is not set: skipped"; exit 77; }
"$python" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py or numpy is missing: skipped"; exit 77; }

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 16, length: 256 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 8, length: 256, sampling: sequential }
sweep:
  - method: [cloq, cloq-nomagr, cloq-rtn, qlora-int, svd, lqer, qera-approx, qera-exact, eora, caldera, odlri, loftq-int, slim-llm, l4q,
             { quantizer: rtn, init: lasq-w }, { quantizer: rtn, init: lasq-q }, { quantizer: optq, init: lqer }, { quantizer: optq, init: svd }]
    bits: [2, 3]
    group: 32
    rank: [4, 8]
  - { method: qa-lora, bits: [2, 3], group: 32, rank: [2, 4] }
  - { method: [loftq, lasq-w, lasq-q, lasq-e, { quantizer: nf, init: cloq }, { quantizer: nf, init: svd }], bits: [2, 3, 4], group: 32, rank: [4, 8] }
  - { method: [nf4-cloq, qlora], bits: 4, group: 32, rank: [4, 8] }
  - { method: billm, bits: 1, group: 32, rank: [4, 8] }
  - { method: [loftq, loftq-int], bits: 2, group: 32, rank: [4, 8], options: { loftq_T: 1 } }
  - { method: lasq-q, bits: 2, group: 32, rank: [4, 8], options: { lasq_base: q0 } }
  - { method: [cloq-rtn, cloq-nomagr], bits: 2, group: 32, rank: [4, 8], options: { adapter_damping: 0.1 } }
  - { method: [cloq-rtn, cloq-nomagr, l4q], bits: 2, group: 32, rank: [4, 8], options: { grid_zero: real } }
  - { method: [cloq-rtn, cloq-nomagr], bits: 3, group: 0, rank: [4, 8], options: { grid_type: sym } }
  - { method: [cloq-nomagr, slim-llm], bits: 2, group: 32, rank: [4, 8], options: { optq_order: act } }
  - { method: caldera, bits: 2, group: 32, rank: [4, 8], options: { joint_grid: refit, joint_rounds: 3 } }
  - { method: caldera, bits: 2, group: 32, rank: [4, 8], options: { joint_start: adapter } }
J
on 2 calibrate "$WORK/job.yaml" --layers 0-1 --quiet || fault "calibrate ended with $?"
on 2 solve "$WORK/job.yaml" --layers 0-1 --quiet || fault "solve ended with $?"
on 2 verify "$WORK/job.yaml" --layers 0-1 >"$WORK/out" 2>&1 || fault "verify ended with $?: $(cat "$WORK/out")"
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$python" "$PROJECT/tests/conformance/methods.py" "$PROJECT/data/tiny" "$WORK/run" || fault "numpy finds something else"
finish
