#!/bin/bash
# Exports of the tiny model as bitsandbytes folders: their bytes, the libraries that load them, and broken ones.
. "$(dirname "$0")/common.sh"
export_tests bnb
