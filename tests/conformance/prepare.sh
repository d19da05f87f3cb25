#!/bin/bash
# jobs/prepare.py against a plain script of what the literature does, on text and tokenizers made here.
set -u
[ -n "${CLOQWORK_PYTHON:-}" ] || { echo "CLOQWORK_PYTHON is not set: skipped"; exit 77; }
"$CLOQWORK_PYTHON" -c 'import numpy, tokenizers' 2>/dev/null || { echo "numpy or tokenizers is missing: skipped"; exit 77; }
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
"$CLOQWORK_PYTHON" "$PROJECT/tests/conformance/prepare.py" "$folder" "$PROJECT/jobs/prepare.py"
