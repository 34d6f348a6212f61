"""Names to models, data sets, methods and published hyper-parameters.

A model is one ``MODELS.add`` entry, a function of the number of classes, or such a function under ``@MODELS.register``;
a data set is one ``DATASETS.add``, a method one ``METHODS.add``. Flags that depend on the task: ``PRESETS``.
"""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from datafree.data.class_names import NAMES
from datafree.data.digits import load_digits, load_digits100
from datafree.data.folders import load_imagenet, load_tiny_imagenet
from datafree.data.imagefolder import imagefolder_spec
from datafree.data.specs import DatasetSpec, pair
from datafree.data.torchvision_sets import load_cifar10, load_cifar100, load_mnist, load_svhn
from datafree.errors import UserError
from datafree.methods.adversarial import ADAM, Dafl, Dfad, Dfq, Mad, Zskt
from datafree.methods.aeahl_rg import AeahlRg
from datafree.methods.base import Method
from datafree.methods.cmi import Cmi
from datafree.methods.deepinversion import DeepInversion
from datafree.methods.fast import Fast, FastMeta
from datafree.methods.nayer import Nayer
from datafree.methods.noise import Noise
from datafree.methods.real_images import Kd, Scratch
from datafree.models.cifar_resnet import CifarResNet
from datafree.models.classifier import Classifier
from datafree.models.lenet import LeNet5
from datafree.models.names import (
    UNKNOWN,
    InputFormat,
    Weights,
    brings_weights,
    classifier_of,
    format_of,
    network_of,
)
from datafree.models.resnet import BasicBlock, Bottleneck, ResNet
from datafree.models.shufflenetv2 import ShuffleNetV2
from datafree.models.vgg import VGG
from datafree.models.wide_resnet import WideResNet
from datafree.registration import Registry
from datafree.runs.folder import slug

METHODS = Registry("method")
METHODS.add("aeahl_rg", AeahlRg)
METHODS.add("cmi", Cmi)
METHODS.add("deepinversion", DeepInversion)
METHODS.add("dafl", Dafl)
METHODS.add("zskt", Zskt)
METHODS.add("dfad", Dfad)
METHODS.add("dfq", Dfq)
METHODS.add("mad", Mad)
METHODS.add("kd", Kd)
METHODS.add("noise", Noise)
METHODS.add("scratch", Scratch)
METHODS.add("fast_meta", FastMeta)
METHODS.add("fast", Fast)
METHODS.add("nayer", Nayer)

MODELS = Registry("model")  # functions of the class count


def of_torchvision(name: str) -> Callable[[int], nn.Module]:
    """That classifier, without weights."""

    def build(num_classes: int) -> nn.Module:
        from torchvision import models  # a second to import, which few programs need

        return models.get_model(name, weights=None, num_classes=num_classes)

    return build


for depth, widen in ((16, 1), (16, 2), (40, 1), (40, 2)):
    MODELS.add(f"wrn{depth}_{widen}", partial(WideResNet, depth, widen))
for depth in (8, 20, 32, 56, 110):
    MODELS.add(f"resnet{depth}", partial(CifarResNet, depth, (16, 16, 32, 64)))
for depth in (8, 32):
    MODELS.add(f"resnet{depth}x4", partial(CifarResNet, depth, (32, 64, 128, 256)))
MODELS.add("resnet18", partial(ResNet, BasicBlock, (2, 2, 2, 2)))
MODELS.add("resnet34", partial(ResNet, BasicBlock, (3, 4, 6, 3)))
MODELS.add("resnet50", partial(ResNet, Bottleneck, (3, 4, 6, 3)))
MODELS.add("vgg8", partial(VGG, ((64,), (128,), (256,), (512,), (512,))))
MODELS.add("vgg11", partial(VGG, ((64,), (128,), (256, 256), (512, 512), (512, 512))))
MODELS.add("vgg13", partial(VGG, ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))))
MODELS.add("shufflenetv2", partial(ShuffleNetV2, (116, 232, 464), 1024, (3, 7, 3)))
MODELS.add("mobilenetv2", of_torchvision("mobilenet_v2"))
MODELS.add("lenet5", partial(LeNet5, (6, 16, 120, 84)))
MODELS.add("lenet5_half", partial(LeNet5, (3, 8, 60, 42)))
MODELS.add("lenet5_bn", partial(LeNet5, (6, 16, 120, 84), batch_norm=True))
MODELS.add("resnet50_imagenet", of_torchvision("resnet50"))
MODELS.add("resnet18_imagenet", of_torchvision("resnet18"))
MODELS.add("mobilenetv2_imagenet", of_torchvision("mobilenet_v2"))

# What a network reads whatever the data are; all others are built for the data.
READS = dict.fromkeys(("lenet5", "lenet5_half", "lenet5_bn"), InputFormat((32, 32), 1))

DATASETS = Registry("data set")

# Mean and standard deviation: those of svhn, cifar10, cifar100 and tiny_imagenet are what the published teachers of
# CMI, Fast-Datafree and the paper's code were trained with, those of mnist what the teachers of DAFL and DFAD were
# (its own), those of imagenet are torchvision's; 0.5 of the digits was chosen by us.
HALF = (0.5, 0.5, 0.5)
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)  # grey
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

DATASETS.add("digits", DatasetSpec("digits", 10, 32, HALF, HALF, flip=False, load=load_digits))
DATASETS.add("digits100", DatasetSpec("digits100", 100, 32, HALF, HALF, flip=False, load=load_digits100))
DATASETS.add("mnist", DatasetSpec("mnist", 10, 32, MNIST_MEAN, MNIST_STD, flip=False, load=load_mnist))
DATASETS.add("svhn", DatasetSpec("svhn", 10, 32, HALF, HALF, flip=False, load=load_svhn))
DATASETS.add("cifar10", DatasetSpec("cifar10", 10, 32, CIFAR10_MEAN, CIFAR10_STD, flip=True, load=load_cifar10))
DATASETS.add("cifar100", DatasetSpec("cifar100", 100, 32, CIFAR100_MEAN, CIFAR100_STD, flip=True, load=load_cifar100))
DATASETS.add(
    "tiny_imagenet",
    DatasetSpec("tiny_imagenet", 200, 64, HALF, HALF, flip=True, load=load_tiny_imagenet),
)
DATASETS.add("imagenet", DatasetSpec("imagenet", 1000, 224, IMAGENET_MEAN, IMAGENET_STD, flip=True, load=load_imagenet))


IMAGEFOLDER = "imagefolder:"


def dataset_spec(values: Namespace) -> DatasetSpec:
    """The data set that ``--dataset`` names; for ``imagefolder:PATH`` with the flags that describe it.

    Raises:
        UserError: for an unknown name, a folder that is none, or a flag that the named data set has no use for.
    """
    described = {name: getattr(values, name) for name in ("img_size", "num_classes", "mean", "std")}
    workers = getattr(values, "workers", None)  # an earlier version's config.json has none
    if values.dataset.startswith(IMAGEFOLDER):
        path = Path(values.dataset.removeprefix(IMAGEFOLDER)).expanduser()
        size, mean, std = (
            described["img_size"] or 224,
            described["mean"] or IMAGENET_MEAN,
            described["std"] or IMAGENET_STD,
        )
        if len(mean) != len(std):
            what = f"--mean has a number for each of {len(mean)} channels, --std for {len(std)}"
            raise UserError(what, "give both: one number each for grey images, three for colours")
        spec = imagefolder_spec(path, pair(size), mean, std, described["num_classes"], workers)
    elif values.dataset not in DATASETS and (
        Path(values.dataset).expanduser().exists() or values.dataset.lower().startswith(IMAGEFOLDER.rstrip(":"))
    ):
        raise UserError(f"unknown data set {values.dataset!r}", f"a folder of images is {IMAGEFOLDER}PATH")
    else:
        spec = DATASETS[values.dataset]
        for name, value in described.items():
            if value is not None:
                raise UserError(f"--{name} is fixed for {spec.name}", "leave it out; it describes imagefolder:PATH")
        if spec.load in (load_tiny_imagenet, load_imagenet):  # these read image files
            spec = replace(spec, load=partial(spec.load, workers=workers))
    names = spec.class_names or NAMES.get(spec.name, ())
    return replace(spec, flip=spec.flip and not getattr(values, "no_flip", False), class_names=names)


def pretrained_path(dataset: str, model: str) -> Path:
    """Where train_scratch.py leaves a checkpoint, from the working folder."""
    return Path("checkpoints/pretrained") / f"{slug(dataset)}_{slug(model)}.pth"


def teacher_file(dataset: str, model: str) -> Path | None:
    """Where main.py looks for a teacher: in the working folder, else beside this file. None where it has weights."""
    path = pretrained_path(dataset, model)
    there = [each for each in (path, Path(__file__).resolve().parent / path) if each.exists()]
    return there[0] if there else None if brings_weights(model) else path


def classifier(
    name: str, spec: DatasetSpec, given: InputFormat = UNKNOWN, weights: Weights = "none", download: bool = False
) -> Classifier:
    """The named network for a data set, its input format what is given, else its own, else the data set's.

    Raises UserError as :func:`datafree.models.names.network_of` does.
    """
    of_data, given = format_of(spec), given.over(READS.get(name, UNKNOWN))
    network, own = network_of(name, spec.num_classes, MODELS, given.over(of_data), weights, download)
    return classifier_of(network, name, spec.num_classes, given.over(own), of_data)


CIFAR, DIGITS = ("cifar10", "cifar100"), ("digits", "digits100")
FASTS, LIKE_CMI = ("fast_meta", "fast"), ("cmi", "deepinversion", "noise")
LIKE_FAST, WITHOUT_POOL = ("aeahl_rg", *FASTS), ("dafl", "zskt", "dfad", "dfq", "mad")
POOLED, NATURAL = (*LIKE_FAST, "nayer", *LIKE_CMI), (*CIFAR, "svhn", "imagefolder")
Names = str | tuple[str, ...] | None

# Flags of main.py by (method, data set, teacher): one name, several, or None for any; later rows win. --preset paper
# takes the first list, --preset fast both: what we have chosen, and what was published where we have chosen nothing.
PAPER: list[tuple[Names, Names, Names, dict[str, Any]]] = [
    # The papers' and their codes' (docs/methods.md), as are the flags' own defaults. ImageNet's 50,000 test images are
    # read and decoded at every evaluation: at most twenty times a run.
    (None, "imagenet", None, {"batch_size": 64, "eval_every": 21}),
    (LIKE_FAST, CIFAR, "vgg11", {"adv": 1.0}),
    (LIKE_FAST, CIFAR, "wrn40_2", {"adv": 1.1, "oh": 0.4}),
    (FASTS, (*CIFAR, "tiny_imagenet"), None, {"epochs": 220}),
    ("fast_meta", (*CIFAR, "tiny_imagenet"), None, {"reset_l0": 0.636}),
    ("aeahl_rg", "tiny_imagenet", None, {"g_steps": 50}),
    ("aeahl_rg", "imagenet", None, {"g_steps": 50, "synthesis_batch_size": 64}),
    ("nayer", CIFAR, None, {"epochs": 120, "batch_size": 512}),
    ("nayer", "cifar100", None, {"g_steps": 40}),
    ("nayer", "tiny_imagenet", None, {"epochs": 120, "lr": 0.1, "kd_steps": 1000, "synthesis_batch_size": 200}),
    ("nayer", "tiny_imagenet", None, {"g_steps": 60, "loops": 4, "warmup_loops": 20}),
    ((*LIKE_CMI, "kd", "scratch"), CIFAR, None, {"epochs": 200, "lr": 0.1}),
    ("deepinversion", CIFAR, None, {"adi": 1.0}),
    ("cmi", CIFAR, "resnet34", {"features": "stages"}),
    ("dafl", CIFAR, None, {"epochs": 2000, "ep_steps": 120, "batch_size": 1024, "nz": 1000, "lr_g": 0.02}),
    ("dafl", CIFAR, None, {"lr": 0.1, "lr_steps": (0.4, 0.8), "weight_decay": 5e-4}),
    ("dafl", "cifar10", None, {"oh": 0.05, "act": 0.01}),
    ("dafl", "cifar100", None, {"oh": 0.5, "balance": 20 / math.log(10)}),
    ("dafl", "mnist", None, {"epochs": 200, "ep_steps": 120, "batch_size": 512, "nz": 100, "lr_g": 0.2}),
    ("dafl", "mnist", None, ADAM | {"lr_min": 2e-3}),
    ("zskt", (*CIFAR, "svhn"), None, {"epochs": 800, "ep_steps": 1000, "batch_size": 128, "nz": 100}),
    ("zskt", ("cifar10", "svhn"), None, {"at": 2500.0}),
    ("dfad", CIFAR, None, {"epochs": 500, "ep_steps": 250, "lr": 0.1, "weight_decay": 5e-4}),
    ("dfad", CIFAR, None, {"lr_steps": (0.2, 0.4), "lr_g_steps": (0.2, 0.4)}),
    ("dfad", "mnist", None, {"epochs": 40, "ep_steps": 250, "batch_size": 512, "nz": 100, "lr": 0.01, "lr_min": 0.01}),
    ("dfq", CIFAR, None, {"epochs": 250, "warmup": 50, "ep_steps": 4000, "nz": 512, "lr": 0.1, "lr_min": 0.0}),
    ("dfq", CIFAR, None, {"weight_decay": 0.0}),
    ("mad", CIFAR, None, {"epochs": 200, "lr": 0.1}),
    (("kd", "scratch"), "mnist", None, {"epochs": 12, "kd_steps": 235, "batch_size": 256, "crop_padding": 0} | ADAM),
    ("kd", "mnist", None, {"T": 1.0}),
]
FAST: list[tuple[Names, Names, Names, dict[str, Any]]] = [
    # Chosen by us for two CPU cores.
    (None, "digits", None, {"epochs": 40, "kd_steps": 60, "warmup": 2, "batch_size": 64, "lr": 0.1}),
    (None, "digits100", None, {"epochs": 60, "kd_steps": 80, "warmup": 4, "batch_size": 64, "lr": 0.1}),
    (None, DIGITS, None, {"attack_bound": 25.0, "p_width": 16}),
    # Many small rounds: docs/speed.md.
    (LIKE_FAST, "digits", None, {"epochs": 56, "kd_steps": 30, "warmup": 4, "batch_size": 32, "lr": 0.2, "echo": 3}),
    (LIKE_FAST, "digits", None, {"synthesis_batch_size": 32, "g_steps": 5, "ngf": 8, "lr_g": 5e-3}),
    (LIKE_FAST, "digits", None, {"oh": 1.5, "bn_mmt": 0.0}),
    ("aeahl_rg", "digits", None, {"meta": "none"}),
    (LIKE_FAST, "digits100", None, {"synthesis_batch_size": 128, "g_steps": 10, "ngf": 32}),
    ("nayer", "digits", None, {"synthesis_batch_size": 60, "loops": 1, "warmup_loops": 2, "g_steps": 10, "ngf": 32}),
    (LIKE_CMI, "digits", None, {"epochs": 8, "kd_steps": 100, "synthesis_batch_size": 64}),
    ("deepinversion", "digits", None, {"g_steps": 50}),
    ("cmi", "digits", None, {"epochs": 6, "g_steps": 40, "ngf": 16, "lr_g": 2e-3, "negatives": 256}),
    ("cmi", "digits", None, {"features": "stages"}),
    (WITHOUT_POOL, DIGITS, None, {"batch_size": 32, "ngf": 16, "g_output": "standardised"}),
    ("dafl", DIGITS, None, {"epochs": 8, "ep_steps": 120, "kd_steps": 2, "lr_g": 0.02} | ADAM),
    (("zskt", "dfad"), DIGITS, None, {"batch_size": 64, "kd_steps": 5}),
    ("zskt", DIGITS, None, {"epochs": 7, "ep_steps": 200, "lr_g": 2e-3, "clip_g": 5.0, "clip_grad": 5.0}),
    ("dfad", DIGITS, None, {"epochs": 8, "ep_steps": 150, "lr_g": 5e-4, "lr": 0.2}),
    ("dfq", DIGITS, None, {"epochs": 8, "ep_steps": 160, "kd_steps": 4, "warmup": 1, "lr_g": 5e-3}),
    ("mad", DIGITS, None, {"epochs": 7, "ep_steps": 160, "kd_steps": 4, "lr_g": 5e-3} | ADAM | {"lr": 4e-3}),
    # Without BatchNorm, as lenet5_half is, lr 0.2 of SGD leaves a student at chance.
    (POOLED, "mnist", None, {"epochs": 20, "warmup": 1, "kd_steps": 150, "batch_size": 256, "crop_padding": 0} | ADAM),
    (LIKE_FAST, "mnist", None, {"synthesis_batch_size": 256, "g_steps": 10, "ngf": 16}),
    ("noise", "mnist", None, {"noise": "normal", "T": 1.0}),
    ("nayer", "mnist", None, {"synthesis_batch_size": 250, "loops": 1, "warmup_loops": 2, "g_steps": 20, "ngf": 16}),
    # Measured on CIFAR-10 (JPEG), resnet20 > resnet8, for aeahl_rg alone: docs/speed.md.
    (POOLED, NATURAL, None, {"epochs": 80, "warmup": 1, "kd_steps": 150, "batch_size": 64, "lr": 0.2, "echo": 3}),
    (LIKE_FAST, NATURAL, None, {"synthesis_batch_size": 128, "ngf": 32, "oh": 1.5}),
    ("aeahl_rg", NATURAL, None, {"meta": "none"}),
    ("nayer", NATURAL, None, {"synthesis_batch_size": 250, "loops": 1, "warmup_loops": 2, "g_steps": 20}),
    ("fast_meta", NATURAL, None, {"reset_l0": 0.636}),
]
PRESETS = {"paper": PAPER, "fast": [*PAPER, *FAST]}
PUBLISHED = ("cifar10", "cifar100", "svhn", "tiny_imagenet", "imagenet")  # where paper is the default


def as_tuple(names: Names) -> tuple[str | None, ...]:
    """One name or None as the only one of several."""
    return names if isinstance(names, tuple) else (names,)


def preset_name(values: Namespace) -> str:
    """``--preset``, else paper for the data sets of the papers, else fast."""
    return getattr(values, "preset", None) or ("paper" if values.dataset in PUBLISHED else "fast")


def distillation_preset(values: Namespace, method: type[Method]) -> dict[str, Any]:
    """What the preset says for the data set, then the method's own defaults, then the preset for it and the teacher."""
    task = values.method, values.dataset.split(":")[0], values.teacher
    of_all: dict[str, Any] = {}
    of_method = dict(method.defaults)
    for *wanted, preset in PRESETS[preset_name(values)]:
        if all(names is None or name in as_tuple(names) for name, names in zip(task, wanted, strict=True)):
            (of_all if wanted[0] is None else of_method).update(preset)
    return of_all | of_method


# Flags of train_scratch.py by data set, chosen by us for two CPU cores.
TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 60, "batch_size": 64},
    "digits100": {"epochs": 30, "batch_size": 128},
}


def training_preset(values: Namespace) -> dict[str, Any]:
    """What TRAINING_PRESETS says for the data set."""
    return TRAINING_PRESETS.get(values.dataset, {})
