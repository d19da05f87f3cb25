#!/usr/bin/env bash
# All methods side by side on SmolLM2-135M-Instruct: one calibration, every method at 2, 3 and 4 bits and several ranks, one table.
#
#   ./jobs/compare.sh               prepares models/smollm2 (once), builds, runs jobs/compare.yaml with 2 ranks, prints the table
#   RANKS=4 ./jobs/compare.sh       more ranks
#
# What can be set for the installation: see jobs/setup.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case ${1:-} in
-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
?*) die "compare: $1: expected no argument (RANKS=N sets the number of ranks)" ;;
esac

cd "$ROOT"
./jobs/smollm2.sh --prepare
need_packages "${PACKAGES[@]}"
run_environment
build_program
run_job jobs/compare.yaml runs/compare
