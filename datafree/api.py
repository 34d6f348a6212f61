"""Distillation from Python: the same job that main.py does.

    found = distil(teacher, student, num_classes=10, img_size=32, mean=(.5, .5, .5), std=(.5, .5, .5), epochs=40)
    found.student, found.results["accuracy_last"], found.folder

The loop is in loop.py, what it works with in job.py. How images are made is a method (datafree/methods/), what the
student learns of them is its targets (datafree/targets/), and everything else is bookkeeping (datafree/runs/).
"""

import json
import numbers
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .cli.flags import distillation_configs
from .cli.resume import check_same, keep_plan
from .configuration import Config, check_effect, described, resolve
from .data.specs import DatasetSpec, Images, TensorImages, pair
from .engine import device
from .errors import UserError
from .job import prepare_planned, run_name
from .loop import run_job
from .methods.aeahl_rg import AeahlRg
from .methods.base import Method
from .models.classifier import Classifier, duplicate, is_lazy
from .models.loading import load_classifier
from .models.names import classifier_of, format_of, given_format
from .targets import chosen
from .user_code import plain_settings

PROGRAM = "datafree.distil"  # as config.json calls it
# Flags without a use here.
OF_MAIN = {"dry_run", "preset", "data_root", "download", "workers"}


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


@plain_settings()
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
            their own. The teacher is copied, where it can be, and not changed; its weights are its own or, with the
            flag ``teacher_path``, those of a file.
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
    num_classes = whole_number("num_classes", num_classes)
    test, train = as_images("test", test, num_classes), as_images("train", train, num_classes)
    if not isinstance(flip, bool | np.bool_):
        raise UserError(f"flip is {flip!r}", "give True or False")
    values.flip = flip = bool(flip) and not values.no_flip  # in config.json, to be compared at a resumption
    if len(class_names) not in (0, num_classes):
        raise UserError(f"class_names: {len(class_names)} names of {num_classes} classes", "name all of them, or none")
    takes = pair(img_size), *(of_channels(name, each) for name, each in (("mean", mean), ("std", std)))
    spec = DatasetSpec("own", num_classes, *takes, flip, lambda *_: test, tuple(class_names))
    (teacher, lent), compute = copied(teacher, student), device.choose(values.device, values.precision)
    values.precision = compute.precision
    path = values.run_root / run_name(values, method)
    if values.resume:
        keep_plan(values, path, PROGRAM)
        check_same(values, path, configs, PROGRAM)
    how = {"training_images": (lambda: train) if train is not None else None, "asked": flags}
    networks = [
        as_classifier(network, role, values, spec) for role, network in (("teacher", teacher), ("student", student))
    ]
    networks[0].borrowed = lent
    try:
        loaded = loaded_weights(networks[0], values, lent)
        job = prepare_planned(values, spec, *networks, method, compute, path, lambda: test, began, **how)
        config, remarks = described(PROGRAM, configs, values), [*compute.about(), job.sizes(), *loaded, *job.remarks]
        run_job(job, path, test, config, remarks)
    finally:
        networks[1].release()  # whoever saves it whole needs nothing of ours
        if lent:
            networks[0].requires_grad_().release()
    results = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return Distilled(networks[1].eval(), path, results)


def as_classifier(network: Any, role: str, values: Namespace, spec: DatasetSpec) -> Classifier:
    """A network with its input format: its own, the flags', or the data's. Raises UserError for what is none."""
    if not isinstance(network, nn.Module):
        raise UserError(f"the {role} is a {type(network).__name__}, no torch.nn.Module", "give the network itself")
    if isinstance(network, Classifier):
        return network
    return classifier_of(network, role, spec.num_classes, given_format(values, role), format_of(spec))


def loaded_weights(teacher: Classifier, values: Namespace, lent: bool) -> list[str]:
    """Fills the teacher from the file that the flags name, where they do. Returns lines for the log."""
    if not values.teacher_path:
        if values.teacher_weights:
            raise UserError("teacher_weights names weights in a file", "give the file with teacher_path")
        return []
    if lent:
        raise UserError("the teacher cannot be copied, and is yours to change", "load its weights into it yourself")
    values.teacher_path = Path(values.teacher_path).expanduser()
    given = given_format(values, "teacher")
    return load_classifier(teacher, values.teacher_path, given=given, key=values.teacher_weights).remarks


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
    values = resolve(configs, given, lambda known: method.defaults)
    for config in configs.values():
        config.of(values)
    check_effect(configs, flags, values)
    for name in ("run_root", "data_root"):
        setattr(values, name, Path(getattr(values, name)).expanduser())
    method.complete(values)
    return values, configs


def copied(teacher: nn.Module, student: nn.Module) -> tuple[nn.Module, bool]:
    """A copy, which will be frozen and rounded where that is faster; or itself where it cannot be copied, and True.

    Raises UserError where it has no weights yet, or cannot be copied and has weights that the student is to learn.
    """
    if isinstance(teacher, nn.Module) and is_lazy(teacher):
        raise UserError(
            "the teacher has lazy layers, without weights yet", "call it on an image, then load its weights"
        )
    try:
        return duplicate(teacher), False
    except Exception:  # whatever its parts raise
        weights = [{*each.parameters()} for each in (teacher, student) if isinstance(each, nn.Module)]
        if len(weights) == 2 and weights[0] & weights[1]:
            raise UserError("teacher and student share weights, and cannot be copied", "give two networks") from None
        return teacher, True


def whole_number(name: str, value: Any) -> int:
    """Above 0, of any type that is one. Raises UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name} is {value!r}", "give a whole number above 0")
    return int(value)


def of_channels(name: str, values: Any) -> tuple[float, ...]:
    """The mean or the std. Raises UserError where it is none of pixels in [0, 1]."""
    values = values.detach().cpu().double() if isinstance(values, Tensor) else values
    numbers = np.asarray(values, dtype=float)
    inside = (numbers >= 0) & (numbers <= 1) if name == "mean" else numbers > 0
    if numbers.shape not in ((1,), (3,)) or not inside.all():
        raise UserError(f"{name} is {values}", "give a value a channel, one or three, of pixels in [0, 1]")
    return tuple(numbers.tolist())


def as_images(name: str, given: Any, num_classes: int) -> Images | None:
    """Images as the loop takes them, from (images, labels). Raises UserError where they are none."""
    remedy = "give (uint8 images (N, C, H, W), labels (N,))"
    if isinstance(given, tuple | list):
        try:
            images, labels = map(torch.as_tensor, given)
            given = TensorImages(images, labels.long())
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{name} is no set of images: {error}", remedy) from None
    elif given is not None and not hasattr(given, "batches"):
        raise UserError(f"{name} is a {type(given).__name__}, no set of images", remedy)
    if isinstance(given, TensorImages):
        if not len(given):
            raise UserError(f"{name} holds no images", "leave it out where there are none")
        if not 0 <= int(given.labels.min()) <= int(given.labels.max()) < num_classes:
            raise UserError(f"{name} has labels beyond 0..{num_classes - 1}", "number its classes as the teacher does")
    return given
