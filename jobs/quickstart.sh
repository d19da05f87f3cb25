#!/usr/bin/env bash
# From a fresh machine to a model that can be fine-tuned: installs what is missing, builds, calibrates and quantizes the small model of
# data/tiny at 2, 3 and 4 bits with its adapters, by refine and by CLoQ, exports one of them, and prints the Python lines that load and train it.
# Run it again at any time: what is done is not done twice.
#
#   ./jobs/quickstart.sh            2 ranks
#   RANKS=4 ./jobs/quickstart.sh    more of them
#
# What can be set for the installation: see jobs/setup.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case ${1:-} in
-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
?*) die "quickstart: $1: this script takes no arguments (RANKS=N sets the number of ranks)" ;;
esac

cd "$ROOT"
need_packages "${PACKAGES[@]}"
run_environment
build_program
say built "build/cloqwork"
run_job jobs/tiny.yaml runs/tiny
export_setting runs/tiny refine-b4-g64 16 gptq
