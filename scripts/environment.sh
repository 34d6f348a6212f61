# Sourced by the other scripts: makes .venv where there is none, and installs what the named requirements file asks for.
# A second call finds both done and takes no time.
#   prepare requirements.txt
prepare() {
    local requirements=$1 python=${PYTHON:-python3} stamp
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "error: $python is older than 3.10 — install a newer one, or name it: PYTHON=python3.12 bash $0" >&2
            exit 2
        }
        echo "making .venv"
        "$python" -m venv .venv || {
            echo "error: $python cannot make a virtual environment — install its venv package (Debian: python3-venv)" >&2
            exit 2
        }
    fi
    stamp=.venv/installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$requirements
    if [ ! -e "$stamp" ]; then
        echo "installing $requirements (several GB with PyTorch; a minute or more)"
        .venv/bin/pip install --quiet --disable-pip-version-check -r "$requirements" || {
            echo "error: installing $requirements failed — check the network and the free disk space" >&2
            exit 2
        }
        touch "$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
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
