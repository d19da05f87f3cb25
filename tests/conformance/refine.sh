#!/bin/bash
# Methods that refine codes for the adapter that follows: a matrix with known losses (fixture.py), then a sweep over the tiny model, verified by the
# program, and by numpy (refine.py).
. "$(dirname "$0")/../scenario/common.sh"
python=${CLOQWORK_PYTHON:-}
[ -n "$python" ] || { echo "CLOQWORK_PYTHON is not set: skipped"; exit 77; }
"$python" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py or numpy is missing: skipped"; exit 77; }
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

OMPI_MCA_ess_singleton_isolated=1 "$python" "$PROJECT/tests/conformance/fixture.py" "${REFINE_DRIVER:-$BUILD/tests/conformance_refine}" ||
  fault "the known losses are not found"

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 16, length: 256 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 8, length: 256, sampling: sequential }
sweep:
  - { method: [refine, varpro, bidup, projq, gptq-intrinsic, cloq, cloq-nomagr], bits: [2, 3], group: 32, rank: [3, 8] }
  - { method: refine, bits: [2, 3], group: 32, rank: [3, 8], options: { refine_rounds: 6+4 } }
  - { method: refine, bits: 2, group: 32, rank: [3, 8], options: { refine_rounds: 6+4, refine_candidates: on } }
  - { method: refine, bits: 2, group: 32, rank: [3, 8], options: { refine_rounds: 6+4, grid_zero: real } }
  - { method: refine, bits: 2, group: 32, rank: [3, 8], options: { refine_rounds: 6+4, optq_order: natural } }
  - { method: varpro, bits: [2, 3], group: 32, rank: [3, 8], options: { joint_grid: refit } }
J
on 2 calibrate "$WORK/job.yaml" --layers 0-1 --quiet || fault "calibrate ended with $?"
on 2 solve "$WORK/job.yaml" --layers 0-1 --quiet || fault "solve ended with $?"
on 2 verify "$WORK/job.yaml" --layers 0-1 >"$WORK/out" 2>&1 || fault "verify ended with $?: $(cat "$WORK/out")"
"$python" "$PROJECT/tests/conformance/refine.py" "$PROJECT/data/tiny" "$WORK/run" || fault "numpy finds something else"
finish
