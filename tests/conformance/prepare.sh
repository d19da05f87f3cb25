#!/bin/bash
# jobs/prepare.py against what the literature does in a few plain lines, with the tokenizers library and transformers.
# Needs CLOQWORK_PYTHON, an interpreter with numpy, tokenizers and transformers; exits 77 (skipped) without.
set -u
python=${CLOQWORK_PYTHON:-}
if [ -z "$python" ] || ! "$python" -c 'from importlib.metadata import version; [version(n) for n in ("numpy", "tokenizers", "transformers")]' 2>/dev/null; then
  echo "skipped: CLOQWORK_PYTHON names no Python with numpy, tokenizers and transformers"
  exit 77
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
folder=$(mktemp -d "${TMPDIR:-/tmp}/cloqwork-prepare.XXXXXX") || exit 1
trap 'rm -rf "$folder"' EXIT
"$python" "$PROJECT/tests/conformance/prepare.py" "$PROJECT" "$folder"
