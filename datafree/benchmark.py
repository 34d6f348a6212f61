"""What the hot path costs, against floors: what plain PyTorch needs for the networks alone.

floor_kd     teacher forward without gradient; student forward, backward, SGD step; one ready batch
floor_synth  K times: generator, teacher and student forward, backward to the images and on into the generator, Adam
floor_train  forward, backward and SGD step of the teacher on one ready batch
             all in plain fp32, default memory format, eager, a nearest up-sampling before each convolution of G
unit         forward and backward of the registry's resnet18 on 64x3x32x32, likewise: a yardstick of the machine

kd, synth, attack, eval, save, round: the code that main.py runs, with drawing, augmentation, losses and logging;
train: that of train_scratch.py.
All are measured in turn, over and over, so that what else the machine does falls on all of them.
"""

import copy
import io
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import checkpoint
from .data.datasets import DatasetSpec, TensorImages
from .data.pool import ImagePool
from .device import Compute
from .evaluation import Evaluation
from .models.generator import Decoder, GenerativeNetwork, ReusableGenerator, UpsampledConv
from .progress import Progress, round_line
from .registration import Registry
from .rounds import HARD_LOSS_METRICS, METRICS, fill_pool, one_round
from .run_folder import RunFolder
from .snapshot import Snapshot
from .task import Task
from .training import Training, TrainingSettings

Measure = Callable[[], object]
TRAIN_STEPS = 4
MATRICES = (1024, 2048, 4096)  # sides of the products whose rate is the yardstick


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
            took = _seconds(measure, device)
            if turn >= warm_up:
                seconds[name].append(took)
    return {name: Times(values) for name, values in seconds.items()}


def _seconds(measure: Measure, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    measure()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PlainGenerator(ReusableGenerator):
    """G as one would write it first: nearest up-sampling, then a 3x3 convolution. Same parameters, same result."""

    def __init__(self, nz: int, ngf: int, img_size: int):
        super().__init__(*(_with_upsampling(GenerativeNetwork(nz, ngf, img_size)) for _ in range(2)), Decoder())


class _PlainUpsampledConv(UpsampledConv):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2), self.weight, padding=1)


def _with_upsampling(network: GenerativeNetwork) -> GenerativeNetwork:
    for name, layer in list(network.conv_blocks.named_children()):
        if isinstance(layer, UpsampledConv):
            setattr(network.conv_blocks, name, _PlainUpsampledConv(layer.in_channels, layer.out_channels))
    return network


def floor_kd(teacher: nn.Module, student: nn.Module, x: Tensor) -> Measure:
    """One distillation step on a ready batch x (B, 3, H, W), nothing around it. Works on plain copies."""
    teacher, student = _plain(teacher).eval(), _plain(student).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    x = x.contiguous()

    def step() -> None:
        with torch.no_grad():
            target = teacher(x).softmax(1)
        loss = F.cross_entropy(student(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def floor_synth(
    teacher: nn.Module, student: nn.Module, generator: PlainGenerator, batch_size: int, g_steps: int
) -> Measure:
    """K generator iterations on a ready z, nothing around them. Works on plain copies."""
    teacher, student = (_plain(network).eval().requires_grad_(False) for network in (teacher, student))
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
    model, y = _plain(model).train(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def training(model: nn.Module, args: Namespace, task: Task) -> Measure:
    """An epoch of train_scratch.py over TRAIN_STEPS batches of random images."""
    spec, size = task.spec, TRAIN_STEPS * args.batch_size
    settings = TrainingSettings(1, args.batch_size, 1e-3, 0.9, 5e-4, None)
    images = TensorImages(
        torch.randint(256, (size, 3, spec.img_size, spec.img_size)).to(torch.uint8), torch.zeros(size).long()
    )
    model = task.compute.place(copy.deepcopy(model).requires_grad_())
    shared = (task.synthesis.augmentation, task.compute, task.streams)
    return Training(model, images.to(task.compute.device), settings, *shared).epoch


def unit(resnet18: nn.Module, device: torch.device) -> Measure:
    """Forward and backward of that network on 64 images of 32x32 pixels."""
    model, x = resnet18.to(device).train(), torch.randn(64, 3, 32, 32, device=device)

    def step() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return step


def random_classifier(models: Registry, name: str, spec: DatasetSpec) -> nn.Module:
    """Of random weights, with the BN statistics that these meet on noise, so that its answers stay finite."""
    model = models[name](spec.num_classes).train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(16, 3, spec.img_size, spec.img_size))
    return model


def saved(model: nn.Module, path: Path) -> Path:
    """The model as a checkpoint in a file."""
    checkpoint.save({"state_dict": model.state_dict()}, path)
    return path


def matmul_rate(compute: Compute, sizes: Sequence[int] = MATRICES, repeats: int = 5) -> float:
    """The most floating-point operations a second of a square matrix product in this precision.

    The best of all sizes and of two ways to ask for it, as a product and as a 1x1 convolution: on a CPU these are
    computed by different libraries, of which either may be the faster one.
    """
    dtype, best = torch.bfloat16 if compute.bf16 else torch.float32, 0.0
    for size in sizes:
        a = torch.randn(size, size, device=compute.device, dtype=dtype)
        pixels = a.view(1, 1, size, size).permute(0, 3, 1, 2)  # channels last, as the networks' activations
        ways = {"product": lambda a=a: a @ a, "conv": lambda x=pixels, a=a: F.conv2d(x, a[:, :, None, None])}
        with torch.no_grad():
            times = timed(ways, repeats, compute.device)
        best = max(best, *(2 * size**3 / min(each.seconds) for each in times.values()))
    return best


def _plain(network: nn.Module) -> nn.Module:
    """A copy in fp32 and the default memory format, without hooks."""
    network = copy.deepcopy(network).float().to(memory_format=torch.contiguous_format)
    for module in network.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return network


def floors(
    teacher: nn.Module, student: nn.Module, args: Namespace, img_size: int, device: torch.device
) -> dict[str, Measure]:
    """All floors for a pair of networks, by name."""
    teacher, student = teacher.to(device), student.to(device)
    x = torch.randn(args.batch_size, 3, img_size, img_size, device=device)
    generator = PlainGenerator(args.nz, args.ngf, img_size)
    return {
        "floor_kd": floor_kd(teacher, student, x),
        "floor_synth": floor_synth(teacher, student, generator, args.synthesis_batch_size, args.g_steps),
        "floor_train": floor_train(teacher, x),
    }


def flops(measure: Measure) -> int:
    """Floating-point operations of one call, two a multiplication with addition; products and convolutions count."""
    with FlopCounterMode(display=False) as counter:
        measure()
    return counter.get_total_flops()


class HotPath:
    """What main.py runs, cut into pieces to be measured one by one.

    Args:
        args: resolved flags of main.py.
        task: built from them; its state moves on with every call.
        folder: where a run folder may be made.
    """

    TEST_IMAGES = 1000

    def __init__(self, args: Namespace, task: Task, folder: Path):
        self.args, self.task = args, task
        size, device = task.spec.img_size, task.compute.device
        self.images = torch.rand(args.synthesis_batch_size, 3, size, size, device=device)
        shape = (self.TEST_IMAGES, 3, size, size)
        test = TensorImages(torch.randint(256, shape).to(torch.uint8), torch.zeros(self.TEST_IMAGES).long())
        self.evaluation = Evaluation(task.teacher, test, task.synthesis.augmentation, task.compute)
        self.pool = filled_pool(task, 1000)
        self.folder = RunFolder(folder, METRICS + HARD_LOSS_METRICS * args.hl)
        self.folder.start()
        parts = {"synthesis": task.synthesis, "distillation": task.distillation, "streams": task.streams}
        parts |= {"attack": task.attack} if task.attack else {}
        self.snapshot, self.progress = Snapshot(folder, parts, task.pool), Progress()
        self.measures: dict[str, Measure] = {
            "kd": lambda: task.distillation.run(self.pool, args.kd_steps).means(),
            "synth": lambda: task.synthesis.synthesize(adversarial=True).terms,
            "eval": lambda: self.evaluation.score(task.student),
            "round": self.round,
            "save": lambda: self.snapshot.save({}),
        }
        if task.attack:
            self.measures["attack"] = self.attack

    def __enter__(self) -> "HotPath":
        return self

    def __exit__(self, *exception: object) -> None:
        self.folder.close()

    def round(self) -> None:
        """A whole round as rounds.py does it, saving apart."""
        self.task.pool.clear()
        with redirect_stdout(io.StringIO()):
            row = one_round(self.args, self.task, self.folder, self.evaluation, self.progress, 1)
            self.folder.record(row, round_line(row, "round", self.task.rounds))

    def attack(self) -> None:
        """K steps of P's training, and the attack of a batch that enters the pool."""
        x = self.task.synthesis.augmentation.normalise(self.images)
        with torch.no_grad(), self.task.compute.autocast():
            logits = self.task.teacher(x)
        for _ in range(self.args.g_steps):
            self.task.attack.train_step(x, logits)
        self.task.pool.clear()
        fill_pool(self.task, self.images)


def filled_pool(task: Task, count: int) -> ImagePool:
    """A pool of ``count`` random images, as the task's distillation wants it."""
    twins = bool(task.attack and task.attack.in_pool)
    pool = ImagePool(count, task.spec.img_size, task.compute.device, twins)
    pool.extend(count)
    for column in pool.rows(0, count):
        column.random_(0, 256 if column.dtype == torch.uint8 else task.spec.num_classes)
    return pool
