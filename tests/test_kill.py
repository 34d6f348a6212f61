"""Real processes, real signals at random moments: every run ends as the run left alone does."""

import re

import pytest
import torch
from conftest import SINCE_2_7
from programs import OF_LENET, OF_RESNET8, few_digits  # noqa: F401

from scripts import kill_test

pytestmark = pytest.mark.slow

LINES = {
    "KILL": "--epochs 6 --hl --p_width 4 --ep_steps 4 --kd_steps 2 --save_every 3",
    "KILL of a run that does not wait for its files": "--epochs 5 --save_async",
    "TERM": "--epochs 5",
    "KILL of two": "--epochs 4 --processes 2",
    "TERM of two, which share out the student where it can be": "--epochs 4 --processes 2" + " --shard" * SINCE_2_7,
    "INT": "--epochs 3 --program train_scratch.py --batch_size 32 --precision fp32",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd lets no process with a GPU fork: run the script itself")
@pytest.mark.parametrize("signal", LINES)
def test_interruptions_at_random_moments_change_nothing(signal, capfd):
    signal, line = signal.split()[0], LINES[signal]
    networks = () if "train_scratch" in line else OF_RESNET8 if "--shard" in line else OF_LENET
    assert kill_test.main(["--kills", "4", "--signal", signal, *line.split(), *networks]) == 0
    told = capfd.readouterr().out
    assert int(re.match(rf"(\d+) SIG{signal}", told)[1]) >= 4 and told.endswith(": 0 differences\n")
    if "--processes 2" in line:
        assert all(f"to {who}" in told for who in ("process 0", "process 1", "all"))
