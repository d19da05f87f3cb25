#!/bin/bash
# The forward pass against transformers, for a small random checkpoint of every architecture; or for the model folders given.
# Needs CLOQWORK_PYTHON, an interpreter with torch, transformers and safetensors; exits 77 (skipped) without.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${CLOQWORK_PYTHON:-}
if [ -z "$python" ] || ! "$python" -c 'from importlib.metadata import version; [version(n) for n in ("torch", "transformers", "safetensors")]' 2>/dev/null; then
  echo "skipped: CLOQWORK_PYTHON names no Python with torch, transformers and safetensors"
  exit 77
fi
driver=${FORWARD_DRIVER:-$BUILD/tests/conformance_forward}
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
exec "$python" "$here/forward.py" "$driver" "$@"
