#!/bin/bash
# A disk that is full, from "everything fits" down to "not one block is left": every write gives either a whole file or one line that
# says why, and leaves nothing. The small disk is a tmpfs that only this test's processes see; skipped where mounting is not allowed.
set -u
small=$(mktemp -d) || exit 1
trap 'rmdir "$small"' EXIT
unshare -m mount -t tmpfs -o size=8m tmpfs "$small" 2>/dev/null || { echo "cannot mount a tmpfs: skipped"; exit 77; }
for ranks in 1 3; do
  unshare -m sh -c 'mount -t tmpfs -o size=8m tmpfs "$1" && exec "$2" -n "$3" "$4" full "$1"' sh "$small" "$MPIRUN" "$ranks" "$BUILD/tests/mpi_container" >"$small.log" 2>&1
  code=$?
  cat "$small.log"
  # what HDF5 says when it could not flush a file
  if [ $code -ne 0 ] || grep -q 'infinite loop' "$small.log"; then rm -f "$small.log"; exit 1; fi
  rm -f "$small.log"
done
