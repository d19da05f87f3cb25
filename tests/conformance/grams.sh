#!/bin/bash
# Grams as numpy and safetensors read them, and Grams that numpy made as the program takes them.
set -u
. "$(dirname "$0")/../scenario/common.sh"
python=${CLOQWORK_PYTHON:-}
[ -n "$python" ] || { echo "CLOQWORK_PYTHON is not set: skipped"; exit 77; }
"$python" -c 'import h5py, numpy, safetensors' 2>/dev/null || { echo "h5py, numpy or safetensors is missing: skipped"; exit 77; }
small_job "$WORK/job.yaml" "$WORK/run"
on 2 calibrate "$WORK/job.yaml" --quiet || fault "calibrate ended with $?"
on 2 grams "$WORK/run" --to npy --out "$WORK/npy" --quiet || fault "npy ended with $?"
on 2 grams "$WORK/run" --to safetensors --out "$WORK/safetensors" --quiet || fault "safetensors ended with $?"
"$python" "$PROJECT/tests/conformance/grams.py" "$WORK" || fault "numpy sees something else"
# float64 and Fortran order, without grams.json: from numpy, and from safetensors
for from in own-npy own-safetensors; do
  on 2 grams "$WORK/job.yaml" --set output="$WORK/$from-run" --set "heldout=null" --from "$WORK/$from" --tokens 1024 --quiet || fault "$from ended with $?"
  on 1 grams "$WORK/$from-run" --to npy --out "$WORK/$from-again" --quiet || fault "again ended with $?"
done
"$python" "$PROJECT/tests/conformance/grams.py" "$WORK" again || fault "Grams that numpy made came back as something else"
finish
