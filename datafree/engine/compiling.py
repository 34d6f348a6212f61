"""torch.compile where it can work; where it cannot, one line that says why, and networks as they are."""

import logging
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import processes
from ..errors import first_line
from .device import Compute

OLDEST_GPU = (7, 0)  # compute capability that Triton makes kernels for
# Distillation steps, from which on networks are compiled on CUDA unasked: compiling takes minutes, and spares a step of
# small networks some milliseconds. Chosen by us, and not measured.
LONG = 20_000


class Compiling:
    """Whether the networks of a run are compiled, or a step as one; its text ends a line of the log.

    Args:
        on: whether networks are.
        obstacle: why nothing is, where it was wanted.
        step: whether distillation steps are.

    Attributes:
        say: takes the line that says so where PyTorch fails at a network after all.
    """

    def __init__(self, on: bool, obstacle: str = "", step: bool = False):
        self.on, self.obstacle, self.step = on, obstacle, step
        self.say: Callable[[str], object] = partial(print, file=sys.stderr)
        self._networks: dict[str, nn.Module] = {}
        self._called, self._compiled_before = "", 0

    @classmethod
    def chosen(cls, compute: Compute, asked: bool, refused: bool, steps: int, step: bool = False) -> "Compiling":
        """Networks where asked, and unless refused on CUDA, where starting kernels one by one is what takes the time of
        small networks, in a run of that many steps that is long enough, of one process: batches that several share
        interrupt compiled code at each BatchNorm. A step only where asked; nothing without what it takes."""
        pays = compute.device.type == "cuda" and steps >= LONG and processes.size() == 1
        networks = asked or (pays and not refused)
        if not (networks or step):
            return cls(False)
        obstacle = obstacle_on(compute.device)
        return cls(networks and not obstacle, obstacle, step and not obstacle)

    def __str__(self) -> str:
        if self.obstacle:
            return f"; networks not compiled: {self.obstacle}"
        return "; networks compiled" * self.on + "; distillation steps compiled" * self.step

    def compile(self, networks: Mapping[str, nn.Module], step: nn.Module | None = None) -> None:
        """In place, what is to be; each is compiled when first called, with all that it calls.

        A network at which PyTorch fails runs as it is; where it has failed at the first of them, so do all the others,
        for then it is the machine that cannot.
        """
        networks = (dict(networks) if self.on else {}) | ({"distillation step": step} if self.step else {})
        if not networks:
            return
        config = torch._dynamo.config
        config.suppress_errors = True
        config.skip_nnmodule_hook_guards = False  # else a student of the teacher's class would run the teacher's hooks
        config.cache_size_limit = max(64, config.cache_size_limit)  # counts over all networks, modes and batch sizes
        self._networks, self._compiled_before = networks, _frames_compiled()
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # on a CPU: that there is no GPU
        log = logging.getLogger("torch._dynamo.convert_frame")
        for former in [each for each in log.filters if isinstance(each, _Failures)]:
            log.removeFilter(former)
        log.addFilter(_Failures(self._failed))
        for name, network in networks.items():
            network.compile(dynamic=False)
            network._compiled_call_impl = partial(self._call, name, network._compiled_call_impl)

    def _call(self, name: str, compiled: Callable, *args: Any, **kwargs: Any) -> Any:
        self._called = name
        return compiled(*args, **kwargs)

    def _failed(self, reason: str) -> None:
        """Says so, once a network, and has it run as it is from the next call on."""
        one = _frames_compiled() > self._compiled_before
        names = [self._called] if one else list(self._networks)
        known = [name for name in names if name in self._networks]
        for name in known:
            self._networks.pop(name)._compiled_call_impl = None
        if known:
            who = known[0] if one else "networks"
            self.say(f"warning: {who} not compiled, which is slower and else the same: {reason}")


class _Failures(logging.Filter):
    """Turns PyTorch's pages about each failure into a call with one line; TORCHDYNAMO_VERBOSE=1 shows them."""

    def __init__(self, failed: Callable[[str], None]):
        super().__init__()
        self.failed = failed

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno < logging.WARNING or error is None:
            return True
        self.failed(_reason(error))
        return torch._dynamo.config.verbose


def _reason(error: BaseException) -> str:
    """An error in one line: what a compiler printed, where there is something, else its own first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Output:" in lines[:-1]:
        return lines[lines.index("Output:") + 1]
    return first_line(error)


def _frames_compiled() -> int:
    return torch._dynamo.utils.counters["frames"]["ok"]


def obstacle_on(device: torch.device) -> str:
    """What torch.compile lacks here, in words; empty where nothing that it needs is known to be missing."""
    on_gpu = device.type in ("cuda", "xpu")
    if device.type == "mps":
        return "torch.compile for mps is a prototype"
    if on_gpu and find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(device)} is too old for Triton"
    language, variable, names = ("C", "CC", ("gcc", "clang")) if on_gpu else ("C++", "CXX", _cpp_compilers())
    named = os.environ.get(variable)
    if not any(map(_program, [named] if named else names)):
        return f"no {language} compiler" + (f" at {variable}={named}" if named else f" ({' or '.join(names)})")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's header files are not installed (Debian: python3-dev)"
    return ""


def _cpp_compilers() -> tuple[str, ...]:
    """That PyTorch looks for on this system."""
    return {"win32": ("cl",), "darwin": ("clang++",)}.get(sys.platform, ("g++",))


def _program(command: str) -> str | None:
    """Where the program of a command is; the variables may hold a wrapper and flags, as in ``ccache g++ -m64``."""
    words = [command] if os.path.exists(command) else shlex.split(command, posix=os.name != "nt")
    return shutil.which(words[0]) if words else None
