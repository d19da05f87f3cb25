#!/bin/bash
# Exports of SmolLM2's first layers (LAYERS=N, 11 for names of two digits; 30 is the whole) in every format, with the libraries that load them.
# jobs/smollm2.sh prepares the model where it is not there yet.
. "$(dirname "$0")/common.sh"
[ -n "${CLOQWORK_PYTHON:-}" ] || { echo "skipped: CLOQWORK_PYTHON is not set"; exit 77; }
"$PROJECT/jobs/smollm2.sh" --prepare || { echo "skipped: jobs/smollm2.sh --prepare has no model here"; exit 77; }
export_tests smollm2 "$PROJECT/models/smollm2"
