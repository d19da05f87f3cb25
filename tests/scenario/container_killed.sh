#!/bin/bash
# A writer that is killed at any moment: what stands under the final name is whole, what stands under a temporary name is refused
# (or whole, if only its renaming was missing), and the next writer is not disturbed by it.
set -u
program=$BUILD/tests/mpi_container
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
file=$folder/layer.h5 refused=0
for delay in 01 02 03 05 07 11 13 17 19 23; do
  rm -f "$file"
  "$program" forever "$file" >/dev/null 2>&1 &
  writer=$!
  for _ in $(seq 300); do [ -e "$file" ] && break; sleep 0.1; done
  sleep "0.$delay"
  kill -9 $writer && wait $writer 2>/dev/null
  "$program" check "$file" || { echo "after $delay: the finished file is not whole"; exit 1; }
  for temporary in "$file".tmp.*; do
    [ -e "$temporary" ] || continue
    "$program" check "$temporary" 2>"$folder/said"
    code=$?
    [ $code -eq 0 ] || [ $code -eq 3 ] || { echo "after $delay: exit code $code"; cat "$folder/said"; exit 1; }
    [ $code -eq 3 ] && { refused=$((refused + 1)); cat "$folder/said"; }
  done
done
echo "$refused unfinished files, all refused"
