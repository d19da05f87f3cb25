#!/bin/bash
# Containers as h5py and numpy see them, and files that h5py made as the container sees them.
set -u
[ -n "${CLOQWORK_PYTHON:-}" ] || { echo "CLOQWORK_PYTHON is not set: skipped"; exit 77; }
"$CLOQWORK_PYTHON" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py or numpy is missing: skipped"; exit 77; }
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/run"
"$MPIRUN" -n 2 "$BUILD/tests/mpi_container" sample "$folder/run/layer-000.h5" || exit 1
mv "$folder/run" "$folder/moved"
"$CLOQWORK_PYTHON" "$PROJECT/tests/conformance/container.py" "$folder/moved" "$BUILD/tests/mpi_container"
