#!/bin/bash
# Exports of the tiny model as compressed-tensors folders: their bytes, the libraries that load them, and broken ones.
. "$(dirname "$0")/common.sh"
export_tests compressed-tensors
