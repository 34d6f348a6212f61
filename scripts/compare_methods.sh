#!/usr/bin/env bash
# All methods on one task at one budget, over seeds, ending in a table and a plot: see --help, and compare_methods.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements.txt
exec python scripts/compare_methods.py "$@"
