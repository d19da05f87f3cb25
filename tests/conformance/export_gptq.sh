#!/bin/bash
# Exports of the tiny model as GPTQ folders: their bytes, the libraries that load them, and broken ones.
. "$(dirname "$0")/common.sh"
export_tests gptq
