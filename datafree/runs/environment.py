"""What a run's numbers depend on besides its flags."""

import platform
import subprocess
from pathlib import Path

import torch

from .. import processes


def environment(device: str) -> dict[str, str]:
    """What a number depends on besides the arguments: versions, commit, device."""
    import numpy
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "git_commit": _git_commit(),
        "device": device,
        "threads": str(torch.get_num_threads()),
        "processes": str(processes.size()),
    }


def _git_commit() -> str:
    """The commit that this code is at, with "+" where files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
