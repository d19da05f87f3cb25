#!/bin/bash
# export_smollm2.sh on the whole model; its adapters' strength is judged, too.
export LAYERS=30
. "$(dirname "$0")/export_smollm2.sh"
