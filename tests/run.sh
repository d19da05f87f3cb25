#!/usr/bin/env bash
# Installs what the tests need, builds, runs every test through ctest.
#
#   ./tests/run.sh                   everything
#   ./tests/run.sh --quick           the unit and MPI tests alone (no Python packages needed)
#   ./tests/run.sh --long            everything, and every fault, 200 kills and 100 signals: hours
#   ./tests/run.sh [--quick] ARGS    ARGS go to ctest, such as -R NAME
#
# What can be set for the installation: see jobs/setup.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../jobs/setup.sh"

quick= labels=()
case ${1:-} in
-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
--quick) quick=1 labels=(-L 'unit|mpi'); shift ;;
--long) labels=(-C long); shift ;;
esac

cd "$ROOT"
need_packages "${PACKAGES[@]}" hdf5-tools procps
if [ -z "$quick" ] && [ "$(id -u)" -eq 0 ]; then # the virtual nodes of tests/slurm need root; without it that test is skipped
    need_packages slurm-wlm slurm-wlm-basic-plugins munge
fi
[ -n "$quick" ] || need_packages clang-14 libclang-rt-14-dev # tests/fuzz
[ -n "$quick" ] || need_venv tests
if [ -x .venv/bin/python ]; then
    export CLOQWORK_PYTHON=$ROOT/.venv/bin/python
fi
run_environment
yield_if_oversubscribed 6
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
build_program

exec ctest --test-dir build --output-on-failure "${labels[@]}" "$@" </dev/null
