#!/bin/bash
# The lines that the quickstart ends with, run as a newcomer would: they load the export, generate, and training lowers the loss.
. "$(dirname "$0")/common.sh"
[ -n "${CLOQWORK_PYTHON:-}" ] || { echo "skipped: CLOQWORK_PYTHON is not set"; exit 77; }
"$CLOQWORK_PYTHON" -c 'from importlib.metadata import version; version("gptqmodel"), version("peft")' 2>/dev/null || { echo "skipped: no gptqmodel or peft"; exit 77; }
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
"$PROJECT/jobs/quickstart.sh" >"$folder/table" 2>"$folder/log" </dev/null || { tail -n 20 "$folder/log"; exit 1; }
sed -n '/^import torch/,$p' "$folder/table" >"$folder/snippet.py"
[ "$(wc -l <"$folder/snippet.py")" -gt 10 ] || { echo "expected Python lines at the end of the quickstart, found: $(tail -n 5 "$folder/table")"; exit 1; }
cd "$PROJECT" && "$CLOQWORK_PYTHON" "$folder/snippet.py" >"$folder/out" 2>"$folder/log" </dev/null || { tail -n 20 "$folder/log"; exit 1; }
grep -E '^(It is a truth|[0-4] [0-9.]+$)' "$folder/out"
grep -q '^It is a truth universally acknowledged..........' "$folder/out" || { echo "expected ten further tokens, found: $(cat "$folder/out")"; exit 1; }
awk '/^[0-4] [0-9.]+$/ { n++; if (n > 1 && $2 >= last) exit 1; last = $2 } END { exit n != 5 }' "$folder/out" || { echo "expected five losses, each below the one before"; exit 1; }
