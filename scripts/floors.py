"""What plain PyTorch needs for the networks alone: the floors that benchmark.py measures the hot path against.

floor_kd     teacher forward without gradient; student forward, backward, SGD step; one ready batch
floor_synth  K times: generator, teacher and student forward, backward to the images and on into the generator, Adam
floor_train  forward, backward and SGD step of the teacher on one ready batch
             all in plain fp32, default memory format, eager, a nearest up-sampling before each convolution of G, and
             on a CPU in a process of their own, which does with freed memory what the system does by itself; not
             where all is small
unit         forward and backward of the registry's resnet18 on 64x3x32x32, likewise: a yardstick of the machine
"""

import copy
import multiprocessing
import pickle
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import registry
from datafree.engine.device import Compute, synchronise
from datafree.errors import UserError
from datafree.models.generator import Decoder, GenerativeNetwork, ReusableGenerator, UpsampledConv

Measure = Callable[[], object]
MATRICES = (1024, 2048, 4096)  # sides of the products whose rate is the yardstick
MATRICES_ON_GPU = (2048, 4096, 8192)  # smaller ones end before the next is started


@dataclass(frozen=True)
class Times:
    """Seconds of one thing, one value a repeat."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the range between the fastest and the slowest repeat, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    def each(self, count: int) -> "Times":
        """Of one, where ``count`` were timed together."""
        return Times([seconds / count for seconds in self.seconds])

    def over(self, other: "Times") -> float:
        """How many times as long as ``other``: the median over repeats of the ratio within one repeat."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def timed(measures: Mapping[str, Measure], repeats: int, device: torch.device, warm_up: int = 1) -> dict[str, Times]:
    """Calls each in turn, ``warm_up + repeats`` times over, and keeps the seconds of the last ``repeats``."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(warm_up + repeats):
        for name, measure in measures.items():
            synchronise(device)
            start = time.perf_counter()
            measure()
            synchronise(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: Times(values) for name, values in seconds.items()}


def elsewhere(make: Callable[..., dict[str, Measure]], *args: object) -> dict[str, Measure]:
    """The measures that ``make(*args)`` gives, made and called in a process of their own, which ends with the last.

    Raises:
        UserError: here and in the measures, where that process has ended before.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    content = pickle.dumps((make, args))  # by itself it would share the tensors' memory
    context.Process(target=_serve, args=(there, content), daemon=True).start()
    there.close()

    def answer(name: str | None = None) -> Any:
        try:
            if name is not None:
                here.send(name)
            return here.recv()
        except (EOFError, OSError):
            raise UserError("the floors' process has ended", "see above, or the machine may want for memory") from None

    return {name: partial(answer, name) for name in answer()}


def _serve(pipe: Connection, content: bytes) -> None:
    with suppress(EOFError, OSError, KeyboardInterrupt):  # the other process has ended, or both end
        make, args = pickle.loads(content)
        measures = make(*args)
        pipe.send(list(measures))
        while True:
            measures[pipe.recv()]()
            pipe.send(None)


class _PlainUpsampledConv(UpsampledConv):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2), self.weight, padding=1)


def plain_generator(nz: int, ngf: int, shape: tuple[int, int, int]) -> ReusableGenerator:
    """G as one would write it first: nearest up-sampling, then a 3x3 convolution. Same parameters, same result."""
    generator = ReusableGenerator(
        *(GenerativeNetwork(nz, ngf, shape[1:], shape[0]) for _ in range(2)), Decoder(shape[0])
    )
    for module in generator.modules():
        if type(module) is UpsampledConv:
            module.__class__ = _PlainUpsampledConv
    return generator


def plain(network: nn.Module) -> nn.Module:
    """A copy in fp32 and the default memory format, without hooks."""
    network = copy.deepcopy(network).float().to(memory_format=torch.contiguous_format)
    for module in network.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return network


def floor_kd(teacher: nn.Module, student: nn.Module, x: Tensor) -> Measure:
    """One distillation step on a ready batch x (B, 3, H, W), nothing around it. Works on plain copies."""
    teacher, student = plain(teacher).eval(), plain(student).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with torch.no_grad():
            target = teacher(x).softmax(1)
        loss = F.cross_entropy(student(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def floor_synth(
    teacher: nn.Module, student: nn.Module, generator: ReusableGenerator, batch_size: int, g_steps: int
) -> Measure:
    """K generator iterations on a ready z, nothing around them. Works on plain copies."""
    teacher, student = (plain(network).eval().requires_grad_(False) for network in (teacher, student))
    device = next(teacher.parameters()).device
    generator = generator.to(device).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    z = torch.randn(batch_size, generator.g1.config["nz"], device=device)

    def iterations() -> None:
        for _ in range(g_steps):
            x = generator(z)
            loss = (teacher(x).logsumexp(1) + student(x).logsumexp(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return iterations


def floor_train(model: nn.Module, x: Tensor) -> Measure:
    """One step of training from scratch on a ready batch, nothing around it. Works on a plain copy."""
    model, y = plain(model).train(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def unit(resnet18: nn.Module, device: torch.device) -> Measure:
    """Forward and backward of that network on 64 images of 32x32 pixels."""
    model, x = resnet18.to(device).train(), torch.randn(64, 3, 32, 32, device=device)

    def step() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return step


def floors(
    teacher: nn.Module, student: nn.Module, values: Namespace, shape: tuple[int, int, int], device: torch.device
) -> dict[str, Measure]:
    """All floors for a pair of networks that take normalised images, by name, and the unit."""
    teacher, student = teacher.to(device), student.to(device)
    x = torch.randn(values.batch_size, *shape, device=device)
    generator = plain_generator(values.nz, values.ngf, shape)
    return {
        "floor_kd": floor_kd(teacher, student, x),
        "floor_synth": floor_synth(teacher, student, generator, values.synthesis_batch_size, values.g_steps),
        "floor_train": floor_train(teacher, x),
        "unit": unit(registry.MODELS["resnet18"](10), device),
    }


def flops(measure: Measure) -> int:
    """Floating-point operations of one call, two a multiplication with addition; products and convolutions count.

    Compiled networks run as they are meanwhile: what a compiler makes of them is not seen by whoever counts.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        measure()
    return counter.get_total_flops()


class _Counter(TorchDispatchMode):
    """Every operation that reaches a device, those of the backward pass too."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += 1
        return operator(*args, **(kwargs or {}))


def operations(measure: Measure) -> int:
    """Operations that one call starts, backward passes included; compiled networks run as they are meanwhile."""
    with torch.compiler.set_stance("force_eager"), _Counter() as counter:
        measure()
    return counter.count


def matmul_rate(compute: Compute, sizes: Sequence[int] | None = None, repeats: int = 5) -> float:
    """The most floating-point operations a second of a square matrix product in this precision.

    The best of all sizes and of two ways to ask for it, as a product and as a 1x1 convolution: on a CPU these are
    computed by different libraries, of which either may be the faster one. Sizes: MATRICES unless given.
    """
    sizes = sizes or (MATRICES_ON_GPU if compute.device.type == "cuda" else MATRICES)
    dtype, best = compute.dtype, 0.0
    for size in sizes:
        a = torch.randn(size, size, device=compute.device, dtype=dtype)
        pixels = a.view(1, 1, size, size).permute(0, 3, 1, 2)  # channels last, as the networks' activations
        ways = {"product": lambda a=a: a @ a, "conv": lambda x=pixels, a=a: F.conv2d(x, a[:, :, None, None])}
        with torch.no_grad():
            times = timed(ways, repeats, compute.device)
        best = max(best, *(2 * size**3 / min(each.seconds) for each in times.values()))
    return best
