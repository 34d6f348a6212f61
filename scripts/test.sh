#!/usr/bin/env bash
# Lint and tests, in the same environment as quickstart.sh. Other arguments go to pytest: bash scripts/test.sh -k generator
#   --quick   what one runs after each edit: without the tests that take long
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements-dev.txt
quick=()
if [ "${1:-}" = --quick ]; then
    shift
    quick=(-m "not slow")
else
    browser
fi

ruff check .
ruff format --check .
# Two small processes beat one with two threads: most tests are too small to share.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest -q -n "${WORKERS:-auto}" "${quick[@]}" "$@"
