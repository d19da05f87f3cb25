#!/bin/bash
# Exports of several architectures, with the libraries that load them.
. "$(dirname "$0")/common.sh"
script=architectures.py
export_tests architectures
