#!/usr/bin/env bash
# Installs what the tests need, builds, runs every test through ctest.
#
#   ./tests/run.sh                   everything but the tests of label `long`
#   ./tests/run.sh --long            these, too: the same properties on whole models and over every case, and under valgrind, for hours
#   ./tests/run.sh --quick           the unit and MPI tests alone (no Python packages needed)
#   ./tests/run.sh --sanitize        these under address and undefined behaviour sanitizers, in a build of their own
#   ./tests/run.sh [--...] ARGS      ARGS go to ctest, such as -R NAME, or -j 1: one after the other
#
# What can be set for the installation: see jobs/setup.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../jobs/setup.sh"

quick='' long='' build=('') labels=(-LE long)
case ${1:-} in
-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
--quick) quick=1 labels+=(-L 'unit|mpi'); shift ;;
--sanitize) quick=1 build=(sanitized -DCLOQWORK_SANITIZE=ON) labels+=(-L 'unit|mpi'); shift ;;
--long) long=1 labels=(-C long); shift ;;
esac

cd "$ROOT"
packages=("${PACKAGES[@]}" hdf5-tools procps)
if [ -z "$quick" ]; then
    packages+=(clang-14 libclang-rt-14-dev) # tests/fuzz
    [ "$(id -u)" -ne 0 ] || packages+=(slurm-wlm slurm-wlm-basic-plugins munge) # the virtual nodes of tests/slurm need root; else that test is skipped
fi
[ -z "$long" ] || packages+=(valgrind)
need_packages "${packages[@]}"
unset PYTHONDONTWRITEBYTECODE # Python compiles what is imported, once
[ -n "$quick" ] || need_venv tests & # beside the build: it is unpacking, mostly
run_environment
yield_if_oversubscribed 6
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
build_program "${build[@]}"
wait $! # with need_venv's code
if [ -x .venv/bin/python ]; then
    export CLOQWORK_PYTHON=$ROOT/.venv/bin/python
fi
exec ctest --test-dir "build/${build[0]}" -j "$(cores)" --output-on-failure "${labels[@]}" "$@" </dev/null
