"""How the library that an architecture comes from keeps a classifier, and how it is loaded there again.

timm            config.json as on the hub              timm.create_model("local-dir:DIR", pretrained=True)
torchvision     the state dict                         torchvision.models.get_model(NAME, ...).load_state_dict(...)
transformers    config.json, preprocessor_config.json  AutoModelForImageClassification.from_pretrained(DIR)
this one        the state dict                         registry.MODELS[NAME](num_classes).load_state_dict(...)
"""

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.classifier import Classifier
from ..models.names import with_arguments
from .origin import Origin

WEIGHTS_FILE, CONFIG_FILE, PREPROCESSOR_FILE = "model.safetensors", "config.json", "preprocessor_config.json"


class Library:
    """Of networks with a name of registry.py, or made by a function of the user's own.

    Args:
        student: on the CPU, in eval mode, its layers of the types that it was made with.
        origin: where it comes from.
    """

    name, needs = "pytorch", ("safetensors",)

    def __init__(self, student: Classifier, origin: Origin):
        self.student, self.origin = student, origin

    @property
    def architecture(self) -> str:
        """As the library calls it; of the user's own, the function that makes it, or the class."""
        return _split(self.origin.architecture)[0] or type(self.student.network).__name__

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network is made of, besides its name and the number of classes."""
        return _split(self.origin.architecture)[1]

    @property
    def file(self) -> str | None:
        """The module that defines a function of the user's own, where that is what made the network."""
        file, _, _ = self.origin.architecture.rpartition(":")
        return file.removesuffix(".py") if file.endswith(".py") else None

    @property
    def first(self) -> tuple[str, nn.Conv2d] | None:
        """The first convolution by name, where it was made anew for other channels than a builder's three."""
        layers = [(name, m) for name, m in self.student.network.named_modules() if isinstance(m, nn.Conv2d)]
        return layers[0] if layers and self.student.channels != 3 and not self.file else None

    def config(self) -> dict[str, Any]:
        """What config.json needs to say for the library."""
        return {"architecture": self.architecture, "num_classes": self.student.num_classes} | (
            {"arguments": self.arguments} if self.arguments else {}
        )

    def files(self) -> dict[str, dict[str, Any]]:
        """Further JSON files."""
        return {}

    def load(self, folder: Path) -> nn.Module:
        """The network from its files, in eval mode; it takes normalised images.

        What the file lacks would show: a network is emptied first.
        """
        from safetensors.torch import load_file

        network = copy.deepcopy(self.student.network)
        with torch.no_grad():
            for value in network.state_dict().values():
                value.fill_(float("nan") if value.is_floating_point() else 0)
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return network


class Torchvision(Library):
    """Whatever a builder of torchvision made, under whichever name it went here."""

    name = "torchvision"

    def __init__(self, student: Classifier, origin: Origin):
        super().__init__(student, origin)
        self._named = origin.architecture.startswith("torchvision:")

    @property
    def architecture(self) -> str:
        return super().architecture if self._named else _builder(self.student)

    @property
    def arguments(self) -> dict[str, Any]:
        return super().arguments if self._named else {}

    def load(self, folder: Path) -> nn.Module:
        from safetensors.torch import load_file
        from torchvision import models

        with torch.random.fork_rng(devices=[]):
            made = {"weights": None, "num_classes": self.student.num_classes, **self.arguments}
            network = models.get_model(self.architecture, **made)
        if self.first:
            network.set_submodule(self.first[0], copy.deepcopy(self.first[1]))
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return network.eval()


class Timm(Library):
    """A folder as timm keeps on the hub."""

    name, needs = "timm", ("timm", "safetensors")

    @property
    def architecture(self) -> str:
        named = self.student.network.pretrained_cfg.get("architecture") or super().architecture  # of the hub's, too
        return named.partition(".")[0]  # without the tag of weights that are not these

    @property
    def arguments(self) -> dict[str, Any]:
        channels = {} if self.student.channels == 3 else {"in_chans": self.student.channels}
        return channels | super().arguments

    def config(self) -> dict[str, Any]:
        made = self.student.network
        made_of = made.pretrained_cfg
        taken = {
            "input_size": [self.student.channels, *self.student.img_size],
            "fixed_input_size": bool(made_of.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # as Classifier does: to the size, whatever the aspect ratio
            **{name: self.student.input_format[name] for name in ("mean", "std")},
            "num_classes": made.num_classes,  # 1 of a student that gives one logit for two
            "classifier": made_of.get("classifier"),
        }
        if self.student.channels == 3:  # else timm would sum up the channels of the layer that it names
            taken["first_conv"] = made_of.get("first_conv")
        if self.origin.class_names:
            taken["label_names"] = list(self.origin.class_names)
        config = {"architecture": self.architecture, "num_classes": made.num_classes, "pretrained_cfg": taken}
        config["num_features"] = self.student.network.num_features
        return config | ({"model_args": self.arguments} if self.arguments else {})

    def load(self, folder: Path) -> nn.Module:
        import timm

        with (
            tempfile.TemporaryDirectory() as plain
        ):  # timm reads its name as an address, in which # and ? mean something
            os.symlink(folder, os.path.join(plain, "export"))
            return timm.create_model(f"local-dir:{plain}/export", pretrained=True).eval()


class Transformers(Library):
    """A folder for ``from_pretrained``."""

    name, needs = "transformers", ("transformers", "safetensors")

    @property
    def architecture(self) -> str:
        return type(self.student.network).__name__

    def config(self) -> dict[str, Any]:
        config = copy.deepcopy(self.student.network.config)
        names = self.origin.class_names or [f"LABEL_{i}" for i in range(self.student.num_classes)]  # as it calls them
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        config.architectures = [self.architecture]
        told = json.loads(config.to_json_string()) | {"dtype": "float32"}
        return {key: value for key, value in told.items() if key != "_name_or_path"}  # a folder of this machine

    def files(self) -> dict[str, dict[str, Any]]:
        height, width = self.student.img_size
        return {
            PREPROCESSOR_FILE: {
                "image_processor_type": "ViTImageProcessor",  # of all, the one that does no more than what is said here
                "do_resize": True,
                "size": {"height": height, "width": width},
                "resample": 2,  # PIL's number for bilinear
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": self.student.input_format["mean"],
                "image_std": self.student.input_format["std"],
            }
        }

    def load(self, folder: Path) -> nn.Module:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        return transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()


def library_of(student: Classifier, origin: Origin) -> Library:
    """By the name's beginning, or by where the network's class is from."""
    prefix, module = origin.architecture.partition(":")[0], type(student.network).__module__
    if prefix == "timm":
        return Timm(student, origin)
    if module.startswith("transformers."):
        return Transformers(student, origin)
    if prefix == "torchvision" or (module.startswith("torchvision.models.") and _builder(student)):
        return Torchvision(student, origin)
    return Library(student, origin)


def _split(name: str) -> tuple[str, dict[str, Any]]:
    """``timm:NAME,img_size=32`` -> NAME and its arguments."""
    return with_arguments(name.rpartition(":")[2])


def _builder(student: Classifier) -> str | None:
    """Torchvision's name for such a network: the builder whose weights have its names and shapes, or None."""
    from torchvision import models

    module = type(student.network).__module__
    shapes = {key: value.shape for key, value in student.network.state_dict().items()}
    for name in models.list_models(module=models):
        if models.get_model_builder(name).__module__ == module:
            with torch.device("meta"):
                made = models.get_model(name, weights=None, num_classes=student.num_classes)
            if {key: value.shape for key, value in made.state_dict().items()} == shapes:
                return name
    return None
