"""What a run works with, put together: networks, method, targets, pool; ready for the loop (loop.py)."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from . import processes
from .configuration import plain
from .data.augmentation import Augmentation, to_levels
from .data.batch import Batch, Rows
from .data.placement import choose_placement
from .data.pool import ImagePool, bytes_per_image, image_column
from .data.specs import DatasetSpec, Images, TensorImages
from .engine.compiling import Compiling
from .engine.context import Context
from .engine.costs import Costs
from .engine.device import Compute
from .engine.evaluation import Evaluation, Score
from .engine.frozen import folded, frozen
from .engine.probe import fitted
from .engine.randomness import Streams
from .engine.recording import UP_TO, CudaGraph, Graph, obstacle_to_recording
from .engine.sharding import gathered
from .engine.student import Source, Student
from .errors import UserError
from .methods.base import Method
from .models.checksum import checksum
from .models.classifier import Classifier, check_has_values, duplicate
from .runs.budget import plan_within
from .runs.folder import folder_name
from .runs.length import LengthConfig
from .runs.snapshot import saved_part
from .targets import TARGETS, Targets, chosen

FRESH_IMAGES = 512  # judge agreement where there is no test set; chosen by us


@dataclass(frozen=True)
class Fresh:
    """Batches of a method without a pool, counted."""

    method: Method
    costs: Costs

    def drawn(self, count: int, size: int) -> Iterator[Rows]:
        """As the method gives them; one that comes again is made once."""
        before = None
        for batch in self.method.batches(count, size):
            if self.method.makes_images and batch is not before:
                self.costs.made(len(batch))
            before = batch
            yield batch.rows

    def made(self, drawn: Rows) -> Batch:
        """The batch itself."""
        return Batch.of(drawn)


@dataclass
class Job:
    """Everything that a run works with."""

    values: Namespace
    length: LengthConfig
    context: Context
    method: Method
    targets: Targets
    student: Student
    pool: ImagePool | None
    compiling: Compiling
    teacher_checksum: str  # as it was loaded
    remarks: list[str]  # for the log, from the look ahead
    planning_seconds: float = 0.0  # spent on a plan by budget

    @property
    def source(self) -> Source:
        """Where the student's batches come from: the pool, or the method itself."""
        return self.pool if self.method.pooled else Fresh(self.method, self.context.costs)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What is trained, by name."""
        return {"student": self.student.classifier, **self.method.networks, **self.targets.networks}

    @property
    def parts(self) -> dict[str, Any]:
        """What the next epoch depends on."""
        own = {"method": self.method, "targets": self.targets, "student": self.student}
        scaler = self.context.scaler
        return own | {"streams": self.context.streams} | ({"scaler": scaler} if scaler.is_enabled() else {})

    def score(self, evaluation: Evaluation) -> Score:
        """Of the student as it is."""
        fresh = None
        if evaluation.images is None:  # images that the student has not been trained on
            x = self.method.sample(-(-FRESH_IMAGES // processes.size()), "evaluation")
            fresh = TensorImages(to_levels(x), x.new_zeros(len(x)).long())
        with gathered(self.student.classifier):
            return evaluation.score(self.student.classifier, fresh)

    def sizes(self) -> str:
        """One line on how large things are."""
        networks = {"teacher": self.context.teacher, **self.networks}
        counts = [f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in networks.items()]
        rounds = self.length.epochs * len(self.length.rounds)
        pool = f"pool {self.pool.placement}" if self.pool is not None else "no pool"
        return f"parameters: {', '.join(counts)}; rounds: {rounds}; {pool}{self.compiling}"


def prepare(
    values: Namespace,
    spec: DatasetSpec,
    teacher: Classifier,
    student: Classifier,
    method: type[Method],
    compute: Compute,
    path: Path | None = None,
    training_images: Callable[[], Images] | None = None,
    asked: Iterable[str] = (),
) -> Job:
    """Networks, method, targets and pool, ready for :func:`loop`.

    Args:
        values: every flag.
        spec: what the images are like.
        teacher: trained, on the CPU. Frozen from now on.
        student: trained in place.
        method: the class behind ``values.method``.
        compute: device and precision.
        path: the run folder; where a run goes on, its saved state stands in for files that the method began with.
        training_images: gives the real training set, to yardsticks that need it.
        asked: the flags that were given.

    Raises:
        UserError: for whatever does not fit together, before anything is written.
    """
    check_has_values(teacher, "the teacher")
    check_has_values(student, "the student")
    loaded = checksum(teacher)
    streams, length = Streams(values.seed, compute.device), LengthConfig.of(values)
    targets = TARGETS[chosen(values.hl, values.no_aea, method.targets)]
    told = {
        name: plain(getattr(values, name, None)) for name in ("method", "dataset", "teacher", "student", "tag", "seed")
    }
    answering = folded(teacher)
    remarks = look_ahead(values, spec, teacher, student, compute)
    answering.memory_format, answering.autocast = teacher.memory_format, teacher.autocast
    answering.to(compute.device, memory_format=teacher.memory_format)
    context = Context(
        spec=spec,
        teacher=frozen(teacher, compute),
        answering=frozen(answering, compute),
        student=student,
        compute=compute,
        streams=streams,
        augmentation=Augmentation(values.crop_padding, spec.flip),
        rounds=length.epochs * len(length.rounds),
        warmup_rounds=length.warmup * len(length.rounds),
        origin=told | {"mode": method.label(values)},
        training_images=training_images or no_training_images,
        saved=partial(saved_part, path, "method") if path and values.resume else lambda: None,
        asked=frozenset(asked),
    )
    how = ways(values, compute, spec)
    learner = Student(context, Student.Config.of(values).share(), length.steps, how.new_graph, how.shard)
    maker = method(context, method.Config.of(values).share())
    aims = targets(context, targets.Config.of(values))
    pool = make_pool(values, maker, aims, context, length) if maker.pooled else None
    compiling = Compiling.chosen(compute, values.compile, values.no_compile, length.steps, how.compiled)
    busy = {f"network {i} of the method": network for i, network in enumerate(maker.busy)}
    networks = {"teacher": context.teacher, "teacher's copy": answering, **busy, **aims.networks}
    compiling.compile(networks | ({} if how.shard else {"student": student}), learner.objective)
    remarks = [*remarks, *how.remarks, *maker.remarks]
    return Job(values, length, context, maker, aims, learner, pool, compiling, loaded, remarks)


@dataclass(frozen=True)
class Ways:
    """How distillation steps are made: what was asked for, as far as it can be had.

    Attributes:
        new_graph: makes what they are recorded in; None: they are not.
        compiled: whether they are, as one.
        shard: whether the processes share out the student.
        remarks: for the log.
    """

    new_graph: Callable[[], Graph] | None
    compiled: bool
    shard: bool
    remarks: list[str]


def ways(values: Namespace, compute: Compute, spec: DatasetSpec) -> Ways:
    """What ``--step`` and ``--shard`` come to here. Raises UserError for fp16 with --shard."""
    several, new_graph, remarks = processes.size() > 1, None, []
    if values.shard and several and compute.scales:
        raise UserError("--shard is not for --precision fp16", "choose bf16 or fp32")
    if values.shard:
        alone = "warning: --shard: there is one process, which has the whole student"
        remarks.append(f"student: shared out over {processes.size()} processes" if several else alone)
    if values.step == "compiled" and several:
        remarks.append("warning: --step compiled: steps of several processes are not compiled as one")
    if values.step == "graph" or (values.step == "auto" and max(spec.shape[1:]) <= UP_TO):
        obstacle = obstacle_to_recording(compute)
        if not obstacle:
            new_graph = partial(CudaGraph, compute.device)
            remarks.append(
                "distillation steps: recorded as a CUDA graph (--step eager: not), which is compared with them"
            )
        elif values.step == "graph":
            remarks.append(f"warning: --step graph: steps are not recorded: {obstacle}")
    return Ways(new_graph, values.step == "compiled" and not several, values.shard and several, remarks)


def prepare_planned(
    values: Namespace,
    spec: DatasetSpec,
    teacher: Classifier,
    student: Classifier,
    method: type[Method],
    compute: Compute,
    path: Path,
    test: Callable[[], Images | None],
    began: float,
    **how: Any,
) -> Job:
    """As :func:`prepare`, ``epochs`` and ``warmup`` being set to what a budget buys where there is one.

    A run that goes on has its plan.

    Args:
        values, spec, teacher, student, method, compute, path, **how: see :func:`prepare`.
        test: loads the test set.
        began: see :func:`datafree.runs.budget.plan_within`.

    Raises:
        UserError: as prepare does; the budget buys not even one epoch, or the networks cannot be copied to try one.
    """
    length, plan = LengthConfig.of(values), None
    if length.budget and not (values.resume and os.path.exists(path / "config.json")):

        def trial() -> Job:
            short = Namespace(**{**vars(values), "epochs": values.warmup + 1, "resume": None})
            return prepare(short, spec, *(copy_of(network) for network in (teacher, student)), method, compute, **how)

        plan = plan_within(length.budget, length, trial, test, began)
        values.epochs, values.warmup = plan.epochs, plan.warmup
    job = prepare(values, spec, teacher, student, method, compute, path, **how)
    if plan:
        (amount, unit), job.planning_seconds = length.budget, plan.seconds
        bought = f"{plan.epochs} epochs, {plan.warmup} of them warm-up"
        job.remarks.append(f"budget {amount:,.10g} {unit}: {bought}, after {plan.seconds:.1f} s before it began")
    return job


def copy_of(network: Classifier) -> Classifier:
    """To be tried. Raises UserError where it cannot be copied."""
    try:
        return duplicate(network)
    except Exception:  # whatever its parts raise
        what = f"a budget is planned on copies of the networks, and {network.name} cannot be copied"
        raise UserError(what, "give --epochs instead") from None


def no_training_images() -> Images:
    """Raises UserError."""
    raise UserError("the method needs real training images", "give train=(images, labels), or choose another")


def make_pool(values: Namespace, method: Method, targets: Targets, context: Context, length: LengthConfig) -> ImagePool:
    """Room for all images of the run, where there is room. Raises UserError where there is none."""
    if not method.images_a_round:
        what = f"method {values.method} does not say how many images it makes a round"
        raise UserError(what, "give it a knob synthesis_batch_size or a property images_a_round")
    columns = {"images": image_column(context.spec.shape)} | method.columns | targets.columns
    rounds = len(length.rounds)
    capacity = method.images_in(length.epochs * rounds, length.warmup * rounds)
    place = choose_placement(capacity, bytes_per_image(columns), context.compute.device, values.run_root)
    crops = context.streams["distillation"]
    draws = crops if place.kind == "device" else context.streams.on_host("distillation")
    return ImagePool(capacity, columns, place, context.augmentation, crops, draws)


def look_ahead(
    values: Namespace, spec: DatasetSpec, teacher: Classifier, student: Classifier, compute: Compute
) -> list[str]:
    """Both on the device, with lines for the log. Raises UserError where one cannot do its part."""
    remarks = fitted(teacher, f"teacher {values.teacher_path or values.teacher}", spec.shape, compute)
    remarks += fitted(student, f"student {values.student}", spec.shape, compute, values.batch_size)
    return [f"teacher {teacher}", f"student {student}", *remarks]


def run_name(values: Namespace, method: type[Method]) -> str:
    """Of the run's folder."""
    label = method.label(values) + TARGETS[chosen(values.hl, values.no_aea, method.targets)].suffix
    return folder_name(label, values.dataset, values.teacher, values.student, values.tag)
