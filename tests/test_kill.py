"""Real processes, real signals at random moments: every run ends as the run left alone does."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "flags",
    ["--signal KILL --hl", "--signal TERM", "--signal KILL --program train_scratch.py --kills 3 --rounds 2"],
)
def test_interruptions_at_random_moments_change_nothing(flags):
    command = [sys.executable, "scripts/kill_test.py", "--kills", "10", "--rounds", "6", *flags.split()]
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.match(r"(\d+) SIG", done.stdout)[1]) >= (3 if "scratch" in flags else 10)
    assert done.stdout.endswith(": 0 differences\n") and done.stderr == ""
