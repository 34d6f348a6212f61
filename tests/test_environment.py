"""scripts/environment.sh: what pip says decides what the user is told; the lower bounds are those of the files."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

NO_NETWORK = (
    "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken "
    "by 'NewConnectionError('<pip>: Failed to establish a new connection: [Errno -2] Name or service not known')'\n"
    "ERROR: Could not find a version that satisfies the requirement torch>=2.6 (from versions: none)\n"
    "ERROR: No matching distribution found for torch>=2.6\n"
)
INTEL_MAC = (
    "ERROR: Could not find a version that satisfies the requirement torch>=2.6 (from versions: 2.0.0, 2.2.1, 2.2.2)\n"
    "ERROR: No matching distribution found for torch>=2.6\n"
)
SAID = {
    "no network": (NO_NETWORK, ["check the network"], ["Python 3.10"]),
    "Intel Mac": (
        INTEL_MAC,
        ["no torch>=2.6 for Python 3", "newest for it: 2.2.2", "3.10 to 3.14", "Intel"],
        ["network"],
    ),
    "disk full": (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
        ["full"],
        [],
    ),
    "certificate": ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))\n", ["PIP_CERT"], ["full"]),
    "nothing ready-made": ("error: metadata-generation-failed\n", ["3.10 to 3.14"], ["network"]),
    "conflict": (
        "ERROR: Cannot install a and b>=0.4 because these package versions have conflicting dependencies.\n"
        "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io\n",
        ["failed: Cannot install a and b>=0.4 because", ".venv/pip.txt"],
        ["ResolutionImpossible"],
    ),
    "nothing said": ("", ["failed: pip ended without a word", ".venv/pip.txt"], ["network"]),
    "something else": ("ERROR: it rains\n", ["ERROR: it rains", ".venv/pip.txt"], ["network"]),
}


@pytest.fixture
def checkout(tmp_path):
    """A folder with the scripts, and an environment in it whose pip fails with what is in said.txt."""
    at = tmp_path / "my checkout é"
    (at / ".venv/bin").mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", at / "scripts")
    for name in ROOT.glob("requirements*.txt"):
        shutil.copy(name, at)
    python = at / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nif [ "$2" = pip ]; then cat said.txt; exit 1; fi\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return at


def bash(code, where, **variables):
    line = ["bash", "-c", f"set -euo pipefail; source scripts/environment.sh; {code}"]
    how = {"env": os.environ | variables, "capture_output": True, "text": True, "check": False}
    how["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore it
    return subprocess.run(line, cwd=where, **how)


@pytest.mark.parametrize("what", SAID)
def test_a_failed_installation_is_one_line_that_says_why(what, checkout):
    said, there, absent = SAID[what]
    (checkout / "said.txt").write_text(said)
    done = bash("prepare requirements.txt", checkout)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: installing")
    assert all(words in done.stderr for words in there) and not any(words in done.stderr for words in absent)


def test_what_is_installed_is_not_installed_again_until_the_requirements_change(checkout):
    python = checkout / ".venv/bin/python"
    fails = 'if [ "$2" = compileall ]; then echo "for another Python" >&2; exit 1; fi'  # which does not matter
    python.write_text(f'#!/bin/sh\nif [ "$2" = pip ]; then echo called >> calls.txt; fi\n{fails}\n')
    for _ in range(2):
        done = bash("prepare requirements.txt; python -c ''", checkout)
        assert (done.returncode, done.stderr) == (0, "")
    assert (checkout / "calls.txt").read_text() == "called\n"
    (checkout / "requirements.txt").write_text("numpy\n")
    bash("prepare requirements.txt", checkout)
    assert (checkout / "calls.txt").read_text() == "called\ncalled\n"


def test_ctrl_c_while_packages_are_compiled_ends_it_and_they_are_not_taken_for_installed(checkout):
    python = checkout / ".venv/bin/python"
    python.write_text('#!/bin/sh\nif [ "$2" = compileall ]; then kill -INT $PPID; exit 1; fi\n')  # as compileall ends
    assert bash("prepare requirements.txt; touch went-on", checkout).returncode == 130
    assert not (checkout / "went-on").exists() and not [*(checkout / ".venv").glob("installed-*")]


@pytest.mark.parametrize(
    ("python", "words"), [("no-such-python", "missing or older than 3.10"), ("old", "missing or older than 3.10")]
)
def test_a_python_that_will_not_do_is_named(python, words, checkout):
    shutil.rmtree(checkout / ".venv")
    (checkout / "old").write_text("#!/bin/sh\nexit 1\n")
    (checkout / "old").chmod(0o755)
    done = bash("prepare requirements.txt", checkout, PYTHON=python if python != "old" else "./old")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_an_environment_that_could_be_made_by_half_only_is_not_taken_for_a_whole_one(checkout):
    shutil.rmtree(checkout / ".venv")
    half = 'mkdir -p "$3/bin"; ln -s /bin/true "$3/bin/python"; exit 1'  # as without Debian's python3-venv
    (checkout / "python").write_text(f'#!/bin/sh\nif [ "$2" = venv ]; then {half}; fi\n')
    (checkout / "python").chmod(0o755)
    for _ in range(2):
        done = bash("prepare requirements.txt", checkout, PYTHON="./python")
        assert done.returncode == 2 and "python3-venv" in done.stderr


def test_lower_bounds_are_read_from_the_requirements_files(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text(
        "torch>=2.6\nnumpy\nfilelock >= 3.12, <4\n# a>=1\nJinja2[x]>=3.1 # why\n"
    )
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\npytest>=8\n")
    assert bash("lower_bounds", tmp_path).stdout.split() == ["Jinja2==3.1", "filelock==3.12", "pytest==8", "torch==2.6"]
    ours = bash("lower_bounds", ROOT).stdout.split()
    assert "torch==2.6" in ours and "torchvision==0.21" in ours
