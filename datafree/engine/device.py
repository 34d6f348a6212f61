"""Where and in which precision the networks run."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..errors import UserError

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """A device and a precision. Weights, optimiser states, BN statistics and losses are fp32 in either precision.

    Attributes:
        device: where everything lives.
        bf16: whether networks run under bf16 autocast.
        reason: why that precision, for the log.
    """

    device: torch.device
    bf16: bool
    reason: str

    @property
    def precision(self) -> str:
        """As ``--precision`` names it."""
        return "bf16" if self.bf16 else "fp32"

    def autocast(self) -> AbstractContextManager:
        """The context in which networks are called; outside it, everything is fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def place(self, module: Module) -> Module:
        """Moves a network to the device, its convolution weights in channels-last order (faster on CPU and GPU)."""
        return module.to(self.device, memory_format=torch.channels_last)

    def compiles(self, asked: bool, refused: bool) -> bool:
        """Whether networks are compiled: where asked, and on a GPU, where starting kernels one by one is what takes
        the time of small networks, unless refused or nothing is there to compile with."""
        return asked or (self.device.type == "cuda" and not refused and find_spec("triton") is not None)

    def __str__(self) -> str:
        return f"{self.device}, {'bf16 autocast' if self.bf16 else 'fp32'}, channels_last ({self.reason})"


def choose(device: str = "auto", precision: str = "auto") -> Compute:
    """Resolves ``--device auto|cpu|cuda[:i]`` and ``--precision auto|fp32|bf16``.

    Raises:
        UserError: for a device that is not there.
    """
    found = _device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)  # for whatever asks for "the" GPU, such as Triton's kernels
        tf32 = precision != "fp32"  # in what is left of fp32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
    if precision != "auto":
        return Compute(found, precision == "bf16", "as asked")
    on_gpu = found.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_has_bf16()
    return Compute(found, native, "the hardware multiplies bf16" if native else "the hardware has no bf16 unit")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}", "choose auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported", "choose auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} is not there", f"{torch.cuda.device_count()} GPUs found; try --device auto")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _cpu_has_bf16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def reset_peak_memory(device: torch.device) -> None:
    """Forgets the peak so far, where the system allows it (a GPU; Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the process's peak resident set, see proc(5)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory taken so far, in MiB: allocated on a GPU, resident of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not there on every system, and needed on the CPU alone
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def compile_networks(networks: Sequence[nn.Module]) -> None:
    """In place; each is compiled when first called, and runs as it is where PyTorch cannot compile it (it says so)."""
    config = torch._dynamo.config
    config.suppress_errors = True
    config.skip_nnmodule_hook_guards = False  # else a student of the teacher's class would run the teacher's hooks
    config.cache_size_limit = max(64, config.cache_size_limit)  # counts over all networks, modes and batch sizes
    for network in networks:
        network.compile(dynamic=False)
