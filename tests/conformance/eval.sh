#!/bin/bash
# `cloqwork eval` against plain Python: weights decoded from the container, merged into a transformers model, log-softmax in double.
# Needs CLOQWORK_PYTHON, an interpreter with torch, transformers, numpy and h5py; exits 77 (skipped) without.
# eval.sh JOB.yaml: the settings of that job, which must have run, instead of a small one on the tiny model.
. "$(dirname "$0")/../scenario/common.sh"
python=${CLOQWORK_PYTHON:-}
if [ -z "$python" ] || ! "$python" -c 'from importlib.metadata import version; [version(n) for n in ("torch", "transformers", "numpy", "h5py")]' 2>/dev/null; then
  echo "skipped: CLOQWORK_PYTHON names no Python with torch, transformers, numpy and h5py"
  exit 77
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
job=${1:-}
shift
if [ -z "$job" ]; then
  job=$WORK/job.yaml
  cat >"$job" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 16, length: 128 }
eval: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 12, length: 300 }
targets: [q_proj, k_proj, o_proj, gate_proj, down_proj]
sweep:
  - { method: cloq, bits: [2, 3], group: 64, rank: [4, 16] }
  - { method: cloq-rtn, bits: 4, group: 0, rank: 8 }
  - { method: nf4-cloq, bits: 4, group: 64, rank: 8 }
options: { magr_K: 10, nf_double: on }
J
  on 2 run "$job" --quiet >/dev/null || fault "run ended with $?"
fi
LIMIT=600 on 2 eval "$job" --json --quiet "$@" >"$WORK/eval.json" || fault "eval ended with $?"
"$python" "$PROJECT/tests/conformance/eval.py" "$WORK/eval.json" || fault "eval and Python differ"
finish
