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
