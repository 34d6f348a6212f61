#!/usr/bin/env bash
# Lint and tests, in the same environment as quickstart.sh. Arguments go to pytest: bash scripts/test.sh -k generator
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements-dev.txt
browser

ruff check .
ruff format --check .
# Two small processes beat one with two threads: most tests are too small to share.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest -q -n "${WORKERS:-auto}" "$@"
