"""What a method and its targets work with: they ask here for networks, random numbers and backward passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from .. import processes
from ..data.augmentation import Augmentation
from ..data.specs import DatasetSpec, Images
from ..models.classifier import Classifier
from .costs import Costs
from .device import Compute
from .randomness import Streams
from .readings import Readings
from .scaling import Scaler

Observer = Callable[[Tensor, Tensor], None]


@dataclass
class Left:
    """What some work has reported and counted."""

    readings: Readings = field(default_factory=Readings)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Context:
    """One run's surroundings.

    Attributes:
        spec: of the data that the images stand in for: size, class count, whether a mirrored image keeps its class.
        teacher: frozen, in eval mode.
        answering: the same, BatchNorm folded into its convolutions: quicker where only answers are wanted.
        student: trained by ``engine.student.Student`` alone.
        compute: device and precision.
        streams: random streams by purpose.
        augmentation: random crop and flip.
        training_images: loads the real training set, for yardsticks alone. Raises UserError where there is none.
        rounds, warmup_rounds: of the whole run, and how many of them are warm-up.
        origin: plain values that say where what is left comes from.
        saved: gives the method's state as it was saved, where this run goes on with one; else None. It is restored once
            all is built; what it says of shapes stands in for files that the method began with.
        asked: the flags that were given, not worked out or left at their defaults.
        observers: see :meth:`observe`.
        readings: see :meth:`report`.
        costs: passes through networks.
        judge_trains: whether the student judges in train mode, see :meth:`student_as_judge`.
        scaler: of losses, in fp16.
    """

    spec: DatasetSpec
    teacher: Classifier
    answering: Classifier
    student: Classifier
    compute: Compute
    streams: Streams
    augmentation: Augmentation
    training_images: Callable[[], Images] | None = None
    rounds: int = 0
    warmup_rounds: int = 0
    origin: dict[str, Any] = field(default_factory=dict)
    saved: Callable[[], Mapping[str, Any] | None] = lambda: None
    asked: frozenset[str] = frozenset()
    observers: list[Observer] = field(default_factory=list)
    readings: Readings = field(default_factory=Readings)
    costs: Costs = field(default_factory=Costs)
    judge_trains: bool = False
    scaler: Scaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = Scaler(self.compute)
        for role, classifier in (("teacher", self.teacher), ("teacher", self.answering), ("student", self.student)):
            classifier.counted = partial(self.costs.count, role)

    def report(self, terms: Mapping[str, Tensor]) -> None:
        """Scalars of one step, by name, any names: their means over the epoch reach metrics.csv and TensorBoard."""
        self.readings.add(terms)

    def read(self) -> Readings:
        """What was reported since the last call."""
        readings, self.readings = self.readings, Readings()
        return readings

    @contextmanager
    def aside(self) -> Iterator[Left]:
        """What is reported and counted within is kept apart; it is there at the end, for :meth:`take_in`."""
        readings, counts, left = self.read(), self.costs.take(), Left()
        try:
            yield left
        finally:
            left.readings, left.counts = self.read(), self.costs.take()
            self.readings = readings
            self.costs.add(counts)

    def take_in(self, left: Left) -> None:
        """As if it had been reported and counted just now."""
        self.readings.extend(left.readings)
        self.costs.add(left.counts)

    def observe(self, x: Tensor, teacher_logits: Tensor) -> None:
        """Shows images (B, C, H, W) with the teacher's logits on them to whoever learns from every iteration's."""
        for observer in self.observers:
            observer(x.detach(), teacher_logits.detach())

    def backward(self, loss: Tensor, parameters: Sequence[Tensor], own: Sequence[Tensor] = ()) -> Tensor:
        """Gradients into these parameters alone, anew: what they had before is gone. In fp16 see ``Scaler.unscale``.

        Args:
            loss: a scalar, the mean over the batch (of several processes: over this one's share).
            parameters: weights, and leaves that belong to the images of this batch alone, such as noise.
            own: which of them are of this batch alone; what is no nn.Parameter is so anyway.

        Returns:
            The loss, without a gradient (of several processes: that of the whole batch, as the gradients are).
        """
        for parameter in parameters:
            parameter.grad = None
        with self.student_as_judge() if self.student.recomputes else nullcontext():  # as it was asked
            self.scaler.scale(loss).backward(inputs=list(parameters))
        shared, rest, kept = [], [], {id(leaf) for leaf in own}
        for leaf in parameters:
            (shared if isinstance(leaf, nn.Parameter) and id(leaf) not in kept else rest).append(leaf)
        mean = processes.average(loss, shared, rest)
        self.scaler.unscale(parameters)
        return mean

    def ask(self, network: nn.Module, x: Tensor, role: str = "generator") -> Tensor:
        """What a network gives for x (B, ...) in the run's precision: logits in fp32 for a classifier's pixels.

        Args:
            network: a classifier counts its calls itself.
            x: what it takes.
            role: what any other is counted as.
        """
        if not isinstance(getattr(network, "module", network), Classifier):  # one in DistributedDataParallel, too
            self.costs.count(role, network, x)
        with self.compute.autocast():
            return network(x)

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """The teacher's logits on pixels x, no gradient wanted."""
        return self.ask(self.answering, x)

    @contextmanager
    def student_as_judge(self) -> Iterator[Classifier]:
        """Within, the student's weights want no gradient, and it is in eval mode, with ``judge_trains`` in train mode,
        its BatchNorm layers going by the batch and not remembering it; afterwards all is as before."""
        was_training = self.student.training
        wanted = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        layers = self.student.modules() if self.judge_trains else ()
        norms = [layer for layer in layers if isinstance(layer, BatchNorm) and layer.track_running_stats]
        try:
            for layer in norms:
                layer.track_running_stats = False
            yield self.student.train(self.judge_trains).requires_grad_(False)
        finally:
            self.student.train(was_training)
            for layer in norms:
                layer.track_running_stats = True
            for parameter in wanted:
                parameter.requires_grad_(True)
