"""Where and in which precision the networks run."""

import os
import subprocess
import sys
import warnings
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from .. import processes
from ..errors import UserError
from .whole_batch import see_whole_batch

DEVICE_FILE = Path("/dev/nvidia0")  # of the first NVIDIA GPU, on Linux
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """A device and a precision. Weights, optimiser states, BN statistics and losses are fp32 in either precision.

    Attributes:
        device: where everything lives.
        bf16: whether networks run under bf16 autocast.
        reason: why that precision, for the log.
        warning: why it is not on a GPU that the machine seems to have.
    """

    device: torch.device
    bf16: bool
    reason: str
    warning: str = ""

    @property
    def precision(self) -> str:
        """As ``--precision`` names it."""
        return "bf16" if self.bf16 else "fp32"

    def autocast(self) -> AbstractContextManager:
        """The context in which networks are called; outside it, everything is fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def place(self, module: Module) -> Module:
        """Moves a network to the device, its convolution weights in channels-last order (faster on CPU and GPU).

        Of several processes, its BatchNorm layers see the whole batch from now on.
        """
        see_whole_batch(module)
        return module.to(self.device, memory_format=torch.channels_last)

    def about(self) -> list[str]:
        """Lines for the log."""
        return [f"runs on: {self}", *([f"warning: {self.warning}"] if self.warning else [])]

    def __str__(self) -> str:
        kind = f"{self.device}, {'bf16 autocast' if self.bf16 else 'fp32'}, channels_last ({self.reason})"
        return kind if processes.size() == 1 else f"{processes.size()} processes, the first on {kind}"


def choose(device: str = "auto", precision: str = "auto") -> Compute:
    """Resolves ``--device auto|cpu|cuda[:i]`` and ``--precision auto|fp32|bf16``.

    Raises:
        UserError: for a device that is not there, or with which PyTorch can do nothing.
    """
    found = _device(device)
    if found.type == "cuda":
        _check_works(found)
        torch.cuda.set_device(found)  # for whatever asks for "the" GPU, such as Triton's kernels
        tf32 = precision != "fp32"  # in what is left of fp32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
    warning = gpu_out_of_reach() if device == "auto" and found.type == "cpu" else ""
    if precision != "auto":
        return Compute(found, precision == "bf16", "as asked", warning)
    on_gpu = found.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_has_bf16()
    reason = "the hardware multiplies bf16" if native else "the hardware has no bf16 unit"
    return Compute(found, native, reason, warning)


def _device(name: str) -> torch.device:
    which, of = processes.local()
    if of > 1 and (name == "cuda" or (name == "auto" and _gpus())):  # a GPU each
        if _gpus() < of:
            what = f"{of} processes on a machine with {_gpus()} GPUs"
            raise UserError(what, "start one a GPU (torchrun --nproc_per_node), or add --device cpu")
        return torch.device("cuda", which)
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if _gpus() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}", "choose auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported", "choose auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= _gpus():
        why = "" if _gpus() else gpu_out_of_reach()
        raise UserError(f"device {name!r} is not there", why or f"{_gpus()} GPUs found; try --device auto")
    if device.type == "cuda" and of > 1:
        raise UserError(f"--device {name} for {of} processes on a machine", "leave it out: each takes a GPU of its own")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _gpus() -> int:
    """How many PyTorch can use; without the page that it prints where it finds a driver too old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _check_works(device: torch.device) -> None:
    """Raises UserError for a GPU that this build of PyTorch has no kernels for, or that is full or another's alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        what = f"{device} ({torch.cuda.get_device_name(device)}) cannot be used: {str(error).splitlines()[0]}"
        raise UserError(what, "choose another --device, such as cpu, or a build of PyTorch for that GPU") from None


def gpu_out_of_reach() -> str:
    """Why PyTorch does not see the NVIDIA GPU that this machine seems to have, and what to do; empty where it has none.

    Not asked where PyTorch sees one.
    """
    if not (DEVICE_FILE.exists() or _nvidia_smi_answers()):
        return ""
    found, visible = "this machine seems to have an NVIDIA GPU that PyTorch does not see", "CUDA_VISIBLE_DEVICES"
    if torch.version.cuda is None:
        return f"{found}: this is a build of PyTorch without CUDA; install one with it (pytorch.org, Get started)"
    if visible in os.environ:
        value = os.environ[visible]
        return f"{found}: {visible} is {value or 'empty'}, which hides it; unset that, or choose --device cpu"
    try:
        torch.cuda.init()
        why = "it says no more"
    except (RuntimeError, AssertionError) as error:
        why = str(error).split(". ")[0].split("\n")[0]
    return f"{found}: {why}; a driver that is too old for CUDA {torch.version.cuda} has to be updated (nvidia-smi)"


def _nvidia_smi_answers() -> bool:
    """Whether the driver's program is there; it leaves with 6 where it finds no GPU, as on a cluster's login nodes."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=10).returncode != 6
    except (OSError, subprocess.SubprocessError):
        return False


def _cpu_has_bf16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def synchronise(device: torch.device) -> None:
    """Waits for what a GPU has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Forgets the peak so far, where the system allows it (a GPU; Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the process's peak resident set, see proc(5)


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory taken so far, in MiB: allocated on a GPU, resident of the whole process on a CPU.

    None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource  # not there on every system, and needed on the CPU alone
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
