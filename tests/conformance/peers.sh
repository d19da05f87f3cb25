#!/bin/bash
# Codes and factors of the methods against the libraries they come from and their papers' formulas, on the small model and, where it is, on SmolLM2.
. "$(dirname "$0")/common.sh"
python=${CLOQWORK_PYTHON:-}
[ -n "$python" ] || { echo "skipped: CLOQWORK_PYTHON is not set"; exit 77; }
missing=$("$python" -c 'from importlib.metadata import version
for n in "torch transformers peft bitsandbytes h5py numpy".split():
    try: version(n)
    except Exception: print(n)')
[ -z "$missing" ] || { echo "skipped: $python lacks" $missing; exit 77; }
folder=$(mktemp -d "${TMPDIR:-/tmp}/cloqwork-peers.XXXXXX") || exit 1
trap 'rm -rf "$folder"' EXIT
# peers MODEL RANK LAYERS LINEARS
peers() {
  local model=$1
  shift
  mkdir "$folder/$(basename "$model")"
  "$python" "$PROJECT/tests/conformance/peers.py" "$model" "$folder/$(basename "$model")" "$@" 2>"$folder/log" || { tail -n 40 "$folder/log"; exit 1; }
}
peers "$PROJECT/data/tiny" 8 2 q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj
if "$PROJECT/jobs/smollm2.sh" --prepare; then
  peers "$PROJECT/models/smollm2" 16 1 q_proj,k_proj,down_proj
else
  echo "jobs/smollm2.sh --prepare has no model here: the small model alone"
fi
