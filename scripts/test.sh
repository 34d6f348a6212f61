#!/usr/bin/env bash
# Lint and tests, in the same environment as quickstart.sh. Other arguments go to pytest: bash scripts/test.sh -k generator
#   --quick    what one runs after each edit: without the tests that take long
#   --lowest   the tests alone, in an environment of its own (.venv-lowest) with the oldest versions that the requirements
#              files allow; PYTHON=python3.10 names the Python to make it with, which those versions must have been made for
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
quick=() lowest=
while :; do
    case ${1:-} in
        --quick) quick=(-m "not slow") ;;
        --lowest) lowest=yes ;;
        *) break ;;
    esac
    shift
done
# Two small processes beat one with two threads: most tests are too small to share.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset PYTHONDONTWRITEBYTECODE # the tests start many programs: what one has compiled the next ones need not
if [ -n "$lowest" ]; then
    bounds=$(mktemp)
    trap 'rm -f "$bounds"' EXIT
    lower_bounds >"$bounds"
    echo "lower bounds: $(tr '\n' ' ' <"$bounds")"
    prepare requirements-dev.txt .venv-lowest "$bounds"
else
    if [ ${#quick[@]} = 0 ]; then browser & fi
    prepare requirements-dev.txt
    wait
    ruff check .
    ruff format --check .
fi
python -m pytest -q -n "${WORKERS:-auto}" --dist worksteal ${quick[@]+"${quick[@]}"} "$@"
