#!/bin/bash
# Settings that follow their own prefix, against transformers: the merged export of such a setting is the prefix of all its inputs, so that its
# activations give the Grams, the cross products, and with them the targets (sequential.py).
. "$(dirname "$0")/../scenario/common.sh"
python=${CLOQWORK_PYTHON:-}
if [ -z "$python" ] || ! "$python" -c 'from importlib.metadata import version; [version(n) for n in ("torch", "transformers", "numpy", "h5py")]' 2>/dev/null; then
  echo "skipped: CLOQWORK_PYTHON names no Python with torch, transformers, numpy and h5py"
  exit 77
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS=1
cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 8, length: 256, sampling: sequential }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 4, length: 256, sampling: sequential }
sweep:
  - { method: cloq-nomagr, bits: 2, group: 64, rank: 8, options: { act_quantizer: prefix }, label: prefix }
  - { method: refine, bits: 2, group: 64, rank: 8, options: { act_quantizer: cross, refine_rounds: 3+2 }, label: half }
  - { method: cloq-nomagr, bits: 2, group: 64, rank: 8, options: { act_quantizer: cross, xgram_alpha: 1 }, label: full }
J
on 2 run "$WORK/job.yaml" --quiet >/dev/null || fault "run ended with $?"
for setting in "$WORK"/run/solutions/*; do
  on 1 export "$WORK/job.yaml" --setting "$(basename "$setting")" --rank 8 --to dense --merge --dtype float32 --out "$WORK/$(basename "$setting")" \
    --quiet >/dev/null || fault "export of $setting ended with $?"
done
"$python" "$PROJECT/tests/conformance/sequential.py" "$PROJECT/data/tiny" "$WORK/run" "$WORK" || fault "transformers finds something else"
# a target that is not what was solved for
"$python" - "$WORK" <<'P'
import glob, sys, h5py
(path,) = glob.glob(sys.argv[1] + "/run/solutions/*full*/grams/layer-002.h5")
with h5py.File(path, "r+") as f:
    f["mlp_in/target_up_proj"][3, 5] += 1e-3
P
rc=0
on 2 verify "$WORK/job.yaml" >"$WORK/out" 2>&1 || rc=$?
[ $rc -eq 3 ] && grep -q 'mlp_in/target_up_proj' "$WORK/out" || fault "a changed target: expected verify to name it with code 3, found $rc: $(head -c 600 "$WORK/out")"
finish
