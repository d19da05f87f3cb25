#!/bin/bash
# Exports of the methods beside cloq, each in a format that holds it: their bytes, and the libraries that load them.
[ -w /dev/shm ] && export TMPDIR=/dev/shm # hundreds of small files, each synced
. "$(dirname "$0")/common.sh"
export_tests methods
