#!/bin/bash
# export_smollm2.sh on the whole model.
export LAYERS=30
. "$(dirname "$0")/export_smollm2.sh"
