"""Distillation whole: what main.py runs, and the same job from Python.

    found = distil(teacher, student, num_classes=10, img_size=32, mean=(.5, .5, .5), std=(.5, .5, .5), epochs=40)
    found.student, found.results["accuracy_last"], found.folder

The loop is :func:`loop`. How images are made is a method (datafree/methods/), what the student learns of them is its
targets (datafree/targets/), and everything else is bookkeeping (datafree/runs/).
"""

import copy
import json
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .cli.flags import LengthConfig, distillation_configs
from .cli.resume import TEACHER_CHECKSUM, check_same, check_teacher, keep_plan
from .configuration import Config, described, plain, resolve
from .data.augmentation import Augmentation, to_levels
from .data.batch import Batch
from .data.placement import choose_placement
from .data.pool import ImagePool, bytes_per_image, image_column
from .data.specs import DatasetSpec, Images, TensorImages, pair
from .engine import device
from .engine.advice import against_chance
from .engine.compiling import Compiling
from .engine.context import Context
from .engine.costs import Costs
from .engine.device import Compute
from .engine.evaluation import Evaluation, Score, near_chance
from .engine.frozen import folded, frozen
from .engine.probe import fitted
from .engine.randomness import Streams
from .engine.student import Source, Student
from .errors import UserError
from .methods.aeahl_rg import AeahlRg
from .methods.base import Method
from .models.checksum import checksum
from .models.classifier import Classifier
from .models.names import classifier_of, format_of, given_format
from .runs.budget import plan_by_budget
from .runs.folder import OWN_FILES, folder_name
from .runs.run import Run, opened
from .runs.snapshot import saved_part
from .targets import TARGETS, Targets, chosen

OF_MAIN = {"dry_run", "teacher_path", "teacher_weights", "data_root", "download", "workers"}  # flags without a use here
FRESH_IMAGES = 512  # judge agreement where there is no test set; chosen by us
PICTURES = 20  # times a run that synthetic images are shown; chosen by us


@dataclass(frozen=True)
class Fresh:
    """Batches of a method without a pool, counted."""

    method: Method
    costs: Costs

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """As the method gives them."""
        for batch in self.method.batches(count, size):
            self.costs.made(len(batch))
            yield batch


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
        return own | {"streams": self.context.streams}

    def score(self, evaluation: Evaluation) -> Score:
        """Of the student as it is."""
        fresh = None
        if evaluation.images is None:  # images that the student has not been trained on
            x = self.method.sample(FRESH_IMAGES, "evaluation")
            fresh = TensorImages(to_levels(x), x.new_zeros(len(x)).long())
        return evaluation.score(self.student.classifier, fresh)

    def sizes(self) -> str:
        """One line on how large things are."""
        networks = {"teacher": self.context.teacher, **self.networks}
        counts = [f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in networks.items()]
        rounds = self.length.epochs * len(self.length.rounds)
        pool = f"pool {self.pool.placement}" if self.pool is not None else "no pool"
        return f"parameters: {', '.join(counts)}; rounds: {rounds}; {pool}{self.compiling}"


def loop(job: Job, run: Run, evaluation: Evaluation) -> None:
    """All of it, for every method."""
    method, targets, student, pool, length = job.method, job.targets, job.student, job.pool, job.length
    costs = job.context.costs
    for epoch in run.epochs():
        warmup, batch = epoch <= length.warmup, None
        for kd_steps in length.rounds:
            batch = method.synthesize(warmup)
            if batch is not None and pool is not None:
                pool.add(targets.prepare(batch))
                costs.made(len(batch))
            run.lap("synthesis", costs.take())
            if not warmup:
                student.learn(job.source, targets, kd_steps)
            run.lap("distillation", costs.take())
        take_stock(job, run, evaluation, epoch, batch)
        run.save()
    leave(job, run, evaluation)


def take_stock(job: Job, run: Run, evaluation: Evaluation, epoch: int, batch: Batch | None) -> None:
    """The end of an epoch: reads what was reported, evaluates the student, shows the newest images, records."""
    length, last = job.length, epoch == job.length.epochs
    row = {"lr": job.student.lr} | run.terms(epoch, job.context.read(), job.networks, sum(length.rounds))
    evaluated = epoch > length.warmup and (last or epoch % length.eval_every == 0)
    if evaluated:
        row |= evaluate(job, run, evaluation, epoch)
    if last or epoch % max(1, length.epochs // PICTURES) == 0:
        run.folder.show_images(epoch, job.method.sample(64) if batch is None else batch.images)
    run.lap("evaluation", job.context.costs.take())
    run.record(epoch, {"round": epoch * len(length.rounds)} | row)
    if evaluated:
        warn_if_at_chance(job, run, run.progress.score, epoch)


def evaluate(job: Job, run: Run, evaluation: Evaluation, epoch: int) -> dict[str, float | None]:
    """Accuracy and agreement of the student as it is."""
    score = job.score(evaluation)
    about = {"arch": job.values.student, "dataset": job.context.spec.name, "epoch": epoch}
    about |= job.context.spec.classes | {"input_format": job.student.classifier.input_format}
    run.scored(score, about | {"state_dict": job.student.classifier.state_dict()})
    return {"accuracy": score.accuracy, "agreement": score.agreement}


def warn_if_at_chance(job: Job, run: Run, score: Score, epoch: int) -> None:
    """One line, at the first evaluation after a third of the epochs, if the student has learnt nothing until then."""
    length = job.length
    from_here = max(math.ceil(length.epochs / 3), length.warmup + 1)
    looks = min(length.epochs, math.ceil(from_here / length.eval_every) * length.eval_every)
    reached = score.agreement if score.accuracy is None else score.accuracy
    if epoch == looks and near_chance(reached, job.context.spec.num_classes):
        lr_g = getattr(job.values, "lr_g", None)
        run.folder.log(against_chance(reached, run.progress.generator_loss, epoch, lr_g))


def leave(job: Job, run: Run, evaluation: Evaluation) -> None:
    """The end of a run: what the next task can use, and the summary."""
    run.folder.save_array("generator_loss.npy", run.progress.generator_loss)
    left = job.method.finish()
    run.spend("finish", job.context.costs.take())
    for name, content in {**left.files, **job.targets.files()}.items():
        if name in OWN_FILES:
            raise UserError(f"method {job.values.method} leaves a file {name}, as the run itself does", "rename it")
        run.folder.save(name, content)
    if left.remark:
        run.folder.log(left.remark)
    about = {"accuracy_teacher": evaluation.accuracy_teacher, "confidence_teacher": evaluation.confidence_teacher}
    about |= {"agreement": run.progress.score.agreement}
    about |= {"rounds": job.length.epochs * len(job.length.rounds), "images": 0 if job.pool is None else len(job.pool)}
    run.finish(about | left.summary | spent_of_budget(job, run))


def spent_of_budget(job: Job, run: Run) -> dict[str, float]:
    """Budget and what was spent of it, said in the log; nothing where there was none."""
    if job.length.budget is None:
        return {}
    amount, unit = job.length.budget
    spent = run.folder.seconds() + run.progress.planning_seconds if unit == "s" else run.progress.teacher_passes
    run.folder.log(f"budget {amount:,.10g} {unit}: spent {spent:,.0f}, {100 * spent / amount:.1f} %")
    return {"budget": amount, "budget_spent": spent}


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
    loaded = checksum(teacher)
    streams, length = Streams(values.seed, compute.device), LengthConfig.of(values)
    targets = TARGETS[chosen(values.hl, values.no_aea, method.targets)]
    told = {
        name: plain(getattr(values, name, None)) for name in ("method", "dataset", "teacher", "student", "tag", "seed")
    }
    answering = folded(teacher)
    remarks = look_ahead(values, spec, teacher, student, compute)
    answering.memory_format, answering.bf16 = teacher.memory_format, teacher.bf16
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
    learner = Student(context, Student.Config.of(values), length.steps)
    maker, aims = method(context, method.Config.of(values)), targets(context, targets.Config.of(values))
    pool = make_pool(values, maker, aims, context, length) if method.pooled else None
    compiling = Compiling.chosen(compute, values.compile, values.no_compile)
    if compiling.on:
        busy = {f"network {i} of the method": network for i, network in enumerate(maker.busy)}
        teachers = {"teacher": context.teacher, "teacher's copy": answering}
        compiling.compile({**teachers, "student": student, **busy, **aims.networks})
    return Job(values, length, context, maker, aims, learner, pool, compiling, loaded, [*remarks, *maker.remarks])


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


def run_job(job: Job, path: Path, images: Images | None, config: Mapping[str, Any], remarks: Sequence[str]) -> None:
    """Opens the folder, goes on with what is there where asked to, and runs the loop to its end.

    Raises:
        UserError: where the folder cannot be used, or a loss became NaN. Stopped: after a signal.
    """
    compute = job.context.compute
    check_teacher(job.values, path, config["program"], job.teacher_checksum)
    config = {**config, TEACHER_CHECKSUM: job.teacher_checksum}
    with opened(path, job.values, config, remarks, job.parts, compute, job.pool) as run:
        if run is not None:
            job.compiling.say = run.folder.log
            if run.progress.epoch == 0:
                run.progress.planning_seconds = getattr(job.values, "planning_seconds", 0.0)
            evaluation = Evaluation(job.context.teacher, images, compute)
            for line in evaluation.about_teacher():
                run.folder.log(line)
            job.context.costs.take()  # what was spent before the first round is no round's
            loop(job, run, evaluation)


@dataclass(frozen=True)
class Distilled:
    """What :func:`distil` gives.

    Attributes:
        student: trained, in eval mode; takes pixels in [0, 1]. The network inside is the one that was given.
        folder: the run's, with everything that was recorded.
        results: what its summary.json says: accuracy_last, agreement, seconds_total, ...
    """

    student: Classifier
    folder: Path
    results: dict[str, Any]


@torch.inference_mode(False)  # whatever the caller is in: networks are trained here
def distil(
    teacher: Classifier | nn.Module,
    student: Classifier | nn.Module,
    *,
    num_classes: int,
    img_size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = False,
    class_names: Sequence[str] = (),
    test: Images | tuple[Tensor, Tensor] | None = None,
    train: Images | tuple[Tensor, Tensor] | None = None,
    method: type[Method] = AeahlRg,
    **flags: Any,
) -> Distilled:
    """Distils a teacher into a student, which is trained in place, without data.

    Args:
        teacher, student: networks that take images of that size, normalised by mean and std, unless the flags
            ``teacher_img_size``, ``student_mean`` and so on say otherwise; or Classifiers, which bring a format of
            their own. The teacher is copied, where it can be, and not changed.
        num_classes, img_size: of the synthetic images; the size one number, or height and width.
        mean, std: a value a channel, of images in [0, 1]: one channel or three.
        flip: whether a mirrored image keeps its class.
        class_names: what the classes are called, for whoever gets the student.
        test: real images to measure accuracy on: uint8 (N, C, H, W), with labels (N,).
        train: likewise, for the yardsticks that are not data-free, ``kd`` and ``scratch``; others do not look at it.
        method: how images are made.
        **flags: of main.py, by name: epochs, kd_steps, seed, hl, run_root, tag, ...

    Raises:
        UserError: for a flag that there is not, a value out of range, or whatever else does not fit.
    """
    began = time.perf_counter()
    values, configs = values_from(method, flags)
    test, train = as_images(test, num_classes), as_images(train, num_classes)
    flip = flip and not values.no_flip
    if len(class_names) not in (0, num_classes):
        raise UserError(f"class_names: {len(class_names)} names of {num_classes} classes", "name all of them, or none")
    takes = pair(img_size), *(of_channels(name, each) for name, each in (("mean", mean), ("std", std)))
    spec = DatasetSpec("own", num_classes, *takes, flip, lambda *_: test, tuple(class_names))
    (teacher, lent), of_data = copied(teacher), format_of(spec)
    classifiers = []
    for role, network in (("teacher", teacher), ("student", student)):
        if not isinstance(network, nn.Module):
            raise UserError(f"the {role} is a {type(network).__name__}, no torch.nn.Module", "give the network itself")
        if not isinstance(network, Classifier):
            network = classifier_of(network, role, num_classes, given_format(values, role), of_data)
        classifiers.append(network)
    classifiers[0].borrowed = lent
    compute = device.choose(values.device, values.precision)
    values.precision = compute.precision
    path = values.run_root / run_name(values, method)
    real = (lambda: train) if train is not None else None

    def trial(values: Namespace) -> Job:
        networks = map(copy.deepcopy, classifiers)
        return prepare(values, spec, *networks, method, compute, training_images=real, asked=flags)

    if values.resume:
        keep_plan(values, path, "datafree.distil")
        check_same(values, path, configs, "datafree.distil")
    plan = plan_by_budget(values, LengthConfig.of(values), trial, lambda: test, path, began)
    job = prepare(values, spec, *classifiers, method, compute, path, real, flags)
    config, remarks = (
        described("datafree.distil", configs, values),
        [*compute.about(), job.sizes(), *job.remarks, *plan],
    )
    try:
        run_job(job, path, test, config, remarks)
    finally:
        job.student.classifier.release()  # whoever saves it whole needs nothing of ours
        if lent:
            job.context.teacher.requires_grad_().release()
    results = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return Distilled(job.student.classifier.eval(), path, results)


def values_from(method: type[Method], flags: Mapping[str, Any]) -> tuple[Namespace, dict[str, type[Config]]]:
    """Every flag of main.py with that method, from those given; and their configs. Raises UserError as distil does."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method is {method!r}, no class on datafree.methods.base.Method", "give the class itself")
    given = {"method": method.__name__, "teacher": "teacher", "student": "student", "dataset": "own"}
    given |= {name: value.item() if isinstance(value, np.generic) else value for name, value in flags.items()}
    given |= {"device": str(given["device"])} if "device" in given else {}
    targets = chosen(given.get("hl", False), given.get("no_aea", False), method.targets)
    configs = distillation_configs(method, method.__name__, targets)
    unknown = sorted(given.keys() - {name for config in configs.values() for name in config.__dataclass_fields__})
    if unknown:
        raise UserError(f"there is no flag {unknown[0]}", "see main.py --help")
    of_main = sorted(flags.keys() & OF_MAIN)
    if of_main:
        raise UserError(f"{of_main[0]} is for main.py", "from Python the networks and images are given themselves")
    values = resolve(configs, given, lambda known: {})
    for config in configs.values():
        config.of(values)
    for name in ("run_root", "data_root"):
        setattr(values, name, Path(getattr(values, name)).expanduser())
    method.complete(values)
    return values, configs


def copied(teacher: nn.Module) -> tuple[nn.Module, bool]:
    """A copy, which will be frozen and rounded where that is faster; or itself where it cannot be copied, and True."""
    try:
        return copy.deepcopy(teacher), False
    except Exception:  # whatever its parts raise
        return teacher, True


def of_channels(name: str, values: Any) -> tuple[float, ...]:
    """The mean or the std. Raises UserError where it is none of pixels in [0, 1]."""
    numbers = np.asarray(values, dtype=float) if not isinstance(values, Tensor) else values.double().numpy(force=True)
    inside = (numbers >= 0) & (numbers <= 1) if name == "mean" else numbers > 0
    if numbers.shape not in ((1,), (3,)) or not inside.all():
        raise UserError(f"{name} is {values}", "give a value a channel, one or three, of pixels in [0, 1]")
    return tuple(numbers.tolist())


def as_images(test: Any, num_classes: int) -> Images | None:
    """Images as the loop takes them, from (images, labels). Raises UserError where they are none."""
    remedy = "give (uint8 images (N, C, H, W), labels (N,))"
    if isinstance(test, tuple | list):
        try:
            images, labels = map(torch.as_tensor, test)
            test = TensorImages(images, labels.long())
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"test is no test set: {error}", remedy) from None
    elif test is not None and not hasattr(test, "batches"):
        raise UserError(f"test is a {type(test).__name__}, no test set", remedy)
    if isinstance(test, TensorImages):
        if not len(test):
            raise UserError("test holds no images", "leave it out where there are none")
        if not 0 <= int(test.labels.min()) <= int(test.labels.max()) < num_classes:
            raise UserError(f"test has labels beyond 0..{num_classes - 1}", "number its classes as the teacher does")
    return test


def run_name(values: Namespace, method: type[Method]) -> str:
    """Of the run's folder."""
    label = method.label(values) + TARGETS[chosen(values.hl, values.no_aea, method.targets)].suffix
    return folder_name(label, values.dataset, values.teacher, values.student, values.tag)
