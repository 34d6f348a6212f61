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
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OLDEST_FP16 = (7, 0)  # compute capability (Volta) from which fp16 is fast
UNTESTED = ("xpu", "mps")  # GPUs of Intel and of Apple, on which nobody has run this
DEVICES = "choose auto, cpu, cuda, cuda:0, xpu, xpu:0 or mps"
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """A device and a precision. Weights, optimiser states, BN statistics and losses are fp32 in any precision.

    Attributes:
        device: where everything lives.
        dtype: what networks are autocast to; fp32: they are not.
        reason: why that precision, for the log.
        warning: for the log: that the device is untested, or why it is not on a GPU that the machine seems to have.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    warning: str = ""

    @property
    def precision(self) -> str:
        """As ``--precision`` names it."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    @property
    def autocasts(self) -> bool:
        """Whether networks run under autocast."""
        return self.dtype != torch.float32

    @property
    def scales(self) -> bool:
        """Whether losses are scaled, see ``Scaler``."""
        return self.dtype == torch.float16

    @property
    def memory_format(self) -> torch.memory_format:
        """The order in memory that convolutions are fastest in; on mps PyTorch's default, which is the surest there."""
        return torch.contiguous_format if self.device.type == "mps" else torch.channels_last

    @property
    def fused(self) -> bool:
        """Whether optimisers are PyTorch's fused ones; on mps, where these are young, they are the plain ones."""
        return self.device.type != "mps"

    def autocast(self) -> AbstractContextManager:
        """The context in which networks are called; outside it, everything is fp32."""
        dtype = self.dtype if self.autocasts else None  # of fp32 some versions warn, even where it is off
        return torch.autocast(self.device.type, dtype, enabled=self.autocasts)

    def place(self, module: Module) -> Module:
        """Moves a network to the device, its convolution weights in the order that is fastest there.

        Of several processes, its BatchNorm layers see the whole batch from now on.
        """
        see_whole_batch(module)
        return module.to(self.device, memory_format=self.memory_format)

    def about(self) -> list[str]:
        """Lines for the log."""
        return [f"runs on: {self}", *([f"warning: {self.warning}"] if self.warning else [])]

    def __str__(self) -> str:
        order = "channels_last" if self.memory_format == torch.channels_last else "default memory order"
        kind = f"{self.device}, {self.precision}{' autocast' if self.autocasts else ''}, {order} ({self.reason})"
        return kind if processes.size() == 1 else f"{processes.size()} processes, the first on {kind}"


def choose(device: str = "auto", precision: str = "auto") -> Compute:
    """Resolves ``--device auto|cpu|cuda[:i]|xpu[:i]|mps`` and ``--precision auto|fp32|bf16|fp16``.

    Raises:
        UserError: for a device that is not there, or with which PyTorch can do nothing; for a precision that it lacks.
    """
    found = _device(device)
    if found.type == "mps" and precision == "fp16":
        raise UserError("--precision fp16 is not for mps, where PyTorch 2.6 cannot scale losses", "choose fp32 or bf16")
    if found.type != "cpu":
        _check_works(found)
    if found.type == "xpu":
        torch.xpu.set_device(found)
    if found.type == "cuda":
        torch.cuda.set_device(found)  # for whatever asks for "the" GPU, such as Triton's kernels
        tf32 = precision != "fp32"  # in what is left of fp32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
    warning = f"--device {found.type} is untested" if found.type in UNTESTED else ""
    if device == "auto" and found.type == "cpu":
        warning = gpu_out_of_reach() or _left_alone()
    dtype, reason = _fastest(found) if precision == "auto" else (PRECISIONS[precision], "as asked")
    return Compute(found, dtype, reason, warning)


def _fastest(device: torch.device) -> tuple[torch.dtype, str]:
    """The precision for a device, and why."""
    if device.type in UNTESTED:
        return {"xpu": torch.bfloat16, "mps": torch.float32}[device.type], "chosen for what PyTorch has there"
    on_gpu = device.type == "cuda"
    if torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_has_bf16():
        return torch.bfloat16, "the hardware multiplies bf16"
    if on_gpu and torch.cuda.get_device_capability(device) >= OLDEST_FP16:
        return torch.float16, "the hardware multiplies fp16 and has no bf16 unit"
    return torch.float32, "the hardware has no bf16 unit"


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
        raise UserError(f"unknown device {name!r}", DEVICES) from None
    if device.type not in ("cpu", "cuda", *UNTESTED):
        raise UserError(f"device {name!r} is not supported", DEVICES)
    if device.type == "cpu":
        return device
    count = _count(device.type)
    if (device.index or 0) >= count:
        why = gpu_out_of_reach() if device.type == "cuda" and not count else ""
        of_kind = "GPUs" if device.type == "cuda" else f"{device.type} devices"
        raise UserError(f"device {name!r} is not there", why or f"{count} {of_kind} found; try --device auto")
    if processes.size() > 1 and device.type in UNTESTED:
        raise UserError(f"--device {name} is for one process", "start it without torchrun, or add --device cpu")
    if of > 1:
        raise UserError(f"--device {name} for {of} processes on a machine", "leave it out: each takes a GPU of its own")
    return torch.device(device.type, device.index or 0)


def _count(kind: str) -> int:
    """How many GPUs of a kind PyTorch can use."""
    if kind == "cuda":
        return _gpus()
    if kind == "xpu":
        return torch.xpu.device_count() if torch.xpu.is_available() else 0
    return int(torch.backends.mps.is_available())


def _left_alone() -> str:
    """That there is a GPU which auto does not choose; empty where there is none."""
    kind = next((kind for kind in UNTESTED if _count(kind)), "")
    return f"this machine has a GPU that auto leaves alone: --device {kind} takes it, untested" if kind else ""


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
        name = getattr(torch, device.type).get_device_name(device) if device.type != "mps" else "Apple's"
        what = f"{device} ({name}) cannot be used: {str(error).splitlines()[0]}"
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
    value = os.environ.get(visible)
    if value in ("", "-1"):
        return f"{found}: {visible} is {value or 'empty'}, which hides it; unset that, or choose --device cpu"
    try:
        torch.cuda.init()
        why = "it says no more"
    except (RuntimeError, AssertionError) as error:
        why = str(error).split(". ")[0].split("\n")[0]
    why += f" ({visible} is {value})" if value else ""
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
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Forgets the peak so far, where the system allows it (a GPU; Linux)."""
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the process's peak resident set, see proc(5)


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory taken so far, in MiB: allocated on a GPU, resident of the whole process on a CPU.

    None where the system does not tell (Windows, mps).
    """
    if device.type == "mps":
        return None
    if device.type != "cpu":
        return getattr(torch, device.type).max_memory_allocated(device) / 2**20
    try:
        import resource  # not there on every system, and needed on the CPU alone
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
