#!/bin/bash
# Exports of the tiny model as dense folders: their bytes, the libraries that load them, and broken ones.
. "$(dirname "$0")/common.sh"
export_tests dense
