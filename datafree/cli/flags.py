"""The flags that are no part's own: what the task is, and the machine. Defaults are the paper's for CIFAR."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import configuration
from ..configuration import Config, knob
from ..engine.device import PRECISIONS
from ..engine.recording import UP_TO
from ..engine.student import Student
from ..errors import UserError
from ..methods.base import Method
from ..runs.length import LengthConfig
from ..runs.run import SavingConfig
from ..targets import TARGETS

RESUME = "go on after the last saved epoch; given a run folder, with the flags in its config.json"
WORKERS = "threads that read image files (default: as many as the job has processors, at most 8)"
PRETRAINED = "checkpoints/pretrained/<dataset>_<teacher>.pth"
Sizes, Channels = tuple[int, ...] | None, tuple[float, ...] | None
PIXELS = {"low": 1, "high": 2**16, "unit": "PIXELS", "counts": (1, 2)}
OF_CHANNELS = {"unit": "R", "counts": (1, 3)}
NETWORKS = "a name of registry.py, torchvision:NAME, timm:NAME, hf:NAME or FILE.py:FUNCTION"
FORMAT = "(default: its file's or library's, else the data set's)"


def _one_or_three(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"{channels} is neither 1 nor 3")


def size_knob(whose: str) -> Any:
    """A flag: one number, or height and width."""
    return knob(None, f"height and width of the images that the {whose} takes {FORMAT}", **PIXELS)


def channels_knob(whose: str) -> Any:
    """A flag: grey or colours."""
    return knob(
        None,
        f"1 for a {whose} that takes grey images, 3 for colours (default: as its first layer)",
        check=_one_or_three,
    )


def mean_knob(whose: str) -> Any:
    """A flag: a number a channel."""
    return knob(
        None, f"mean of pixels in [0, 1] that the {whose} was trained with {FORMAT}", low=0, high=1, **OF_CHANNELS
    )


def std_knob(whose: str) -> Any:
    """A flag: a number a channel."""
    return knob(None, f"their standard deviation, of the {whose} {FORMAT}", above=0, **OF_CHANNELS)


def _dataset(text: str) -> None:
    if not text or text == "imagefolder:":
        raise ValueError(f"{text!r} names no data set; give a name or imagefolder:PATH")


def _tag(text: str) -> None:
    if not text or not all(letter.isalnum() or letter in "._-+=" for letter in text) or text.startswith("."):
        raise ValueError(f"{text!r} is no label: letters, digits and . _ - + = only")


@dataclass(frozen=True)
class DataConfig(Config):
    """Which images the networks are for."""

    dataset: str = knob("digits", "a data set of registry.py, or imagefolder:PATH", unit="NAME", check=_dataset)
    img_size: Sizes = knob(None, "imagefolder: one number, or height and width (default: 224)", **PIXELS)
    num_classes: int | None = knob(None, "imagefolder: classes (default: as found)", low=1, high=2**16, unit="N")
    mean: Channels = knob(
        None,
        "imagefolder: mean of pixels in [0, 1], a number a channel, one for grey images (default: ImageNet's)",
        low=0,
        high=1,
        **OF_CHANNELS,
    )
    std: Channels = knob(None, "imagefolder: their standard deviation, likewise", above=0, **OF_CHANNELS)
    crop_padding: int = knob(4, "largest shift of the random crop; 0 turns it off", low=0, unit="PIXELS")
    no_flip: bool = knob(False, "mirror no image: where left and right matter, as in letters and road signs")


@dataclass(frozen=True)
class TaskConfig(DataConfig):
    """What is distilled into what, and how."""

    method: str = knob("aeahl_rg", "how images are made: a name of registry.py, or FILE.py:CLASS", unit="NAME")
    preset: str | None = knob(
        None,
        "what is not given: paper, as published; fast, chosen for less time (default: paper for cifar10, cifar100, "
        "svhn, tiny_imagenet, imagenet, else fast)",
        choices=("paper", "fast"),
        free=True,  # by itself it changes no number: all that it says is kept, and compared
    )
    teacher: str = knob("resnet20", NETWORKS, unit="MODEL")
    student: str = knob("resnet8", "likewise; trained from scratch", unit="MODEL")
    teacher_path: Path | None = knob(  # free: at --resume its weights are compared
        None, f"the teacher's checkpoint (default: {PRETRAINED})", unit="FILE", free=True
    )
    teacher_weights: str | None = knob(
        None, "which of several sets of weights in that file, such as model_ema (default: docs/teachers.md)", unit="KEY"
    )
    teacher_img_size: Sizes = size_knob("teacher")
    teacher_channels: int | None = channels_knob("teacher")
    teacher_mean: Channels = mean_knob("teacher")
    teacher_std: Channels = std_knob("teacher")
    student_img_size: Sizes = size_knob("student")
    student_channels: int | None = channels_knob("student")
    student_mean: Channels = mean_knob("student")
    student_std: Channels = std_knob("student")
    hl: bool = knob(False, "hard loss: the teacher's class as well as its softened answer", names=("hard_loss",))
    no_aea: bool = knob(False, "hard loss without the adversarial-example attack")

    def check(self) -> None:
        if self.no_aea and not self.hl:
            raise UserError("--no_aea is about the hard loss", "add --hl")


@dataclass(frozen=True)
class MachineConfig(SavingConfig):
    """Where and how it runs. None of it changes a number, but for precision and seed."""

    device: str = knob("auto", "where to run", unit="auto|cpu|cuda[:i]|xpu[:i]|mps", free=True)
    precision: str = knob("auto", "bf16 or fp16: faster where the hardware has it", choices=("auto", *PRECISIONS))
    seed: int = knob(0, "same seed, same numbers on the same machine", low=0, high=2**63 - 1, unit="N")
    workers: int | None = knob(None, WORKERS, low=0, high=2**10, unit="THREADS", free=True)
    data_root: Path = knob(Path("data"), "where data sets are, or are downloaded to", unit="DIR", free=True)
    run_root: Path = knob(Path("run"), "where run folders are made", unit="DIR", free=True)
    tag: str | None = knob(None, "appended to the run folder's name", unit="NAME", check=_tag)
    resume: Path | None = knob(None, RESUME, unit="RUN", optional_value=True, free=True)
    overwrite: bool = knob(False, "remove what an earlier run left in the folder", free=True)
    dry_run: bool = knob(False, "resolve and print everything, build the models, stop", free=True)

    def check(self) -> None:
        if self.resume and self.overwrite:
            raise UserError(
                "--resume and --overwrite exclude each other", "go on with the one, start anew with the other"
            )


@dataclass(frozen=True)
class DistillationMachineConfig(MachineConfig):
    """Of main.py."""

    compile: bool = knob(
        False, "torch.compile the networks, as in a long run on an NVIDIA GPU anyway: slow start, faster steps"
    )
    no_compile: bool = knob(False, "eager networks on a GPU, too")
    step: str = knob(
        "auto",
        "graph: record distillation steps as a CUDA graph, on an NVIDIA GPU; compiled: torch.compile each as one; "
        f"auto: graph up to {UP_TO} pixels where there can be one, else eager",
        choices=("auto", "eager", "compiled", "graph"),
    )
    shard: bool = knob(
        False, "torchrun: share the student out over the processes (FSDP2), where it does not fit into one", free=True
    )
    download: bool = knob(
        False, "fetch what is absent: the data set, for evaluation alone, and the weights that a name means", free=True
    )

    def check(self) -> None:
        super().check()
        if self.compile and self.no_compile:
            raise UserError("--compile and --no_compile contradict each other", "leave one out")


def distillation_configs(method: type[Method], name: str, targets: str) -> dict[str, type[Config]]:
    """Those of main.py with that method and those targets, by title, in the order of --help.

    Raises:
        UserError: where the method has a flag that the others have, or a default for one that there is not.
    """
    own = f"method {name}"
    configs = {
        "task": TaskConfig,
        own: method.Config,
        f"targets {targets}": TARGETS[targets].Config,
        "student": Student.Config,
        "length": LengthConfig,
        "machine": DistillationMachineConfig,
    }
    known = set().union(
        *(names_of(config) for config in configs.values()), *(names_of(each.Config) for each in TARGETS.values())
    )
    for flag in sorted(method.defaults.keys() - known):
        raise UserError(f"{own} has a default for --{flag}", "there is no such flag")
    of_config = {"program", "groups", "defaults", "format", "environment", "teacher_checksum"}
    reserved = {"help"} | of_config
    taken = reserved.union(*(names_of(config) for title, config in configs.items() if title != own))
    for flag in sorted(taken & names_of(method.Config)):
        raise UserError(f"{own} has a flag --{flag} of its own", "main.py has one of that name: rename it")
    return configs


def names_of(config: type[Config]) -> set[str]:
    """Of its flags, second names among them."""
    return {name for each in fields(config) for name in (each.name, *each.metadata["names"])}


def flags_of_others(methods: dict[str, type[Method]], configs: dict[str, type[Config]]) -> dict[str, tuple[str, str]]:
    """Of flags that none of ``configs`` has but other methods or other targets do: whose, and how to choose those."""
    owners: dict[str, list[str]] = {}
    for name, method in methods.items():
        for each in fields(method.Config):
            owners.setdefault(each.name, []).append(name)
    told = {
        flag: (f"method{'s' * (len(names) > 1)} {', '.join(names)}", "choose such a --method, or leave the flag out")
        for flag, names in owners.items()
    }
    known = set().union(*(names_of(config) for config in configs.values()))
    remedies = {"soft": "", "hard": "add --hl --no_aea, or --hl", "attack": "add --hl (without --no_aea)"}
    if not names_of(TARGETS["soft"].Config) <= known:  # the method has targets of its own
        remedies = dict.fromkeys(remedies, "leave it out: what this method's student learns is its own")
    for name, remedy in remedies.items():
        whose = "targets that ask the teacher" if name == "soft" else f"the hard loss ({name} targets)"
        for each in fields(TARGETS[name].Config):
            told.setdefault(each.name, (whose, remedy))
    return {name: about for name, about in told.items() if name not in known}


def free_names(configs: dict[str, type[configuration.Config]]) -> set[str]:
    """Of flags in which a resumed run may differ from its first start."""
    return {each.name for config in configs.values() for each in fields(config) if each.metadata["free"]}
