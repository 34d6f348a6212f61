# Sourced by the other scripts: makes .venv where there is none, and installs what the named requirements file asks for.
# A second call finds both done and takes no time.
#   prepare requirements.txt
#   prepare requirements-dev.txt .venv-lowest constraints.txt     in another place, with versions that a file fixes
prepare() {
    local requirements=$1 place=${2:-.venv} constraints=${3:-} bin stamp
    bin=$(programs_of "$place")
    if ! "$bin/python" -c "" 2>/dev/null; then
        make_environment "$place"
        bin=$(programs_of "$place")
    fi
    stamp=$place/installed-$(cat requirements*.txt ${constraints:+"$constraints"} | cksum | cut -d' ' -f1)-$requirements
    if [ ! -e "$stamp" ]; then
        echo "installing $requirements (several GB with PyTorch; a minute or more)"
        "$bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -r "$requirements" \
            ${constraints:+-c "$constraints"} >"$place/pip.txt" 2>&1 ||
            fail "installing $requirements failed: $(why_pip_failed "$bin/python" "$place/pip.txt")"
        # pip would compile on one core, and what is seldom imported; some packages hold files that are not for this Python
        trap 'exit 130' INT
        "$bin/python" -m compileall -q -j 0 -x '[\\/](tests?|testing._internal|transformers.models)[\\/]' "$place" >/dev/null 2>&1 || true
        trap - INT
        touch "$stamp"
    fi
    export PATH="$PWD/$bin:$PATH"
}

fail() {
    echo "error: $1" >&2
    exit 2
}

programs_of() {
    if [ -d "$1/Scripts" ]; then echo "$1/Scripts"; else echo "$1/bin"; fi # the former on Windows
}

make_environment() {
    local place=$1 python=${PYTHON:-python3} clear=
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "$python is missing or older than 3.10 — install a newer one, or name it: PYTHON=python3.12 bash $0"
    if [ ! -w . ]; then fail "$PWD cannot be written — copy the folder to where it can"; fi
    if [ -e "$place/pyvenv.cfg" ]; then clear=--clear; fi # of a Python that is gone
    echo "making $place"
    "$python" -m venv $clear "$place" || {
        rm -f "$(programs_of "$place")/python" # else the next call would take half an environment for a whole one
        fail "$python cannot make a virtual environment — install its venv package (Debian: python3-venv)"
    }
}

# In one line, from what pip wrote, what is wrong and what to do. The network comes before the versions: without it pip
# says that it finds none.
why_pip_failed() {
    local python=$1 said=$2 machine newest wanted
    machine=$("$python" -c 'import platform as p; print("Python", p.python_version(), "on", p.system(), p.machine())')
    if grep -qiE 'No space left|Disk quota|Errno (28|122)' "$said"; then
        echo "the disk is full — PyTorch takes 5 GB with CUDA, and TMPDIR (${TMPDIR:-/tmp}) some more meanwhile"
    elif grep -qiE 'SSLError|CERTIFICATE_VERIFY_FAILED' "$said"; then
        echo "the certificate of the package index is not known here — name your network's with PIP_CERT=FILE"
    elif grep -qiE 'Retry\(total=0|Max retries|Read timed out|Connection broken|IncompleteRead|ProxyError' "$said"; then
        echo "no way to the package index — check the network (and HTTPS_PROXY or PIP_INDEX_URL, where you need them)"
    elif grep -qiE 'No module named .?pip' "$said"; then
        echo "the environment was made without pip — remove it and call this again"
    elif grep -qiE 'No matching distribution' "$said"; then
        wanted=$(grep -oiE 'No matching distribution found for [^ ]+' "$said" | tail -n 1 | sed 's/.* //')
        newest=$(grep -oE 'from versions: [^)]*' "$said" | tail -n 1 | sed 's/.*[ ,]//')
        echo "there is no $wanted for $machine (the newest for it: ${newest:-none}) — PyTorch 2.6 and newer is for Python" \
            "3.10 to 3.14 (PYTHON=python3.12; newer ones: see pytorch.org), and not for Macs with a processor of Intel"
    elif grep -qiE 'Failed (building|to build)|metadata-generation-failed|subprocess-exited-with-error' "$said"; then
        echo "a package is not there ready-made for $machine — take a Python of 3.10 to 3.14: PYTHON=python3.12"
    elif grep -q 'ResolutionImpossible' "$said"; then
        echo "$(grep -iE '^ERROR: Cannot install' "$said" | tail -n 1 | cut -c8-300) — all that pip said is in $said"
    else
        wanted=$(grep -iE '^ERROR' "$said" | tail -n 1 | cut -c1-200)
        echo "${wanted:-pip ended without a word, for want of memory perhaps} — all that pip said is in $said"
    fi
}

# The lower bounds in the requirements files as exact versions, one a line: torch>=2.6 gives torch==2.6.
lower_bounds() {
    sed -nE 's/^([A-Za-z0-9_.-]+)(\[[^]]*\])? *>= *([0-9][^ ,;#]*).*/\1==\3/p' requirements*.txt | sort -u
}

# A headless browser for the tests of the report, on a CI machine that has none and lets us install one; elsewhere those
# tests are skipped where no browser is found.
browser() {
    local name
    for name in chromium chromium-browser google-chrome; do
        if command -v "$name" >/dev/null; then return 0; fi
    done
    if [ -n "${CI:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing chromium"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 ||
            echo "no browser could be installed: its tests are skipped"
    fi
}
