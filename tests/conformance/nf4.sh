#!/bin/bash
# NF4 settings of a run as numpy decodes them, and as bitsandbytes quantizes and reads them.
set -u
[ -n "${CLOQWORK_PYTHON:-}" ] || { echo "CLOQWORK_PYTHON is not set: skipped"; exit 77; }
"$CLOQWORK_PYTHON" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py or numpy is missing: skipped"; exit 77; }
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
cat >"$folder/job.yaml" <<J
model: $PROJECT/data/tiny
output: $folder/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 8, length: 128 }
sweep: { method: { quantizer: nf4, init: cloq }, bits: 4, group: [32, 64], rank: [4, 16] }
options: { nf_double: [off, on] }
J
"$MPIRUN" -n 2 "$CLOQWORK" run "$folder/job.yaml" --quiet >"$folder/out" 2>&1 </dev/null || { cat "$folder/out"; exit 1; }
"$CLOQWORK_PYTHON" "$PROJECT/tests/conformance/nf4.py" "$folder/run" "$PROJECT/data/tiny"
