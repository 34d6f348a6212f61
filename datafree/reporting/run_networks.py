"""The networks and numbers of a finished run, read back ready to use: for analyses and notebooks.

run = RunNetworks("run/anew-digits-resnet20-resnet8", registry)
x = run.generator(torch.randn(64, run.nz))          (64, 256) -> (64, 3, 32, 32) in [0, 1]
logits = run.teacher(run.augmentation.normalise(x))
"""

from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from .. import checkpoint, device, reuse
from ..attack import load_perturbation
from ..data.augment import Augmentation
from ..data.datasets import DatasetSpec, TensorImages, test_images
from ..errors import UserError
from ..models.generator import Decoder, ReusableGenerator
from ..models.perturbation import PerturbationNetwork
from .run_reader import read_run


class Names(Protocol):
    """What is needed of the module ``registry``."""

    MODELS: Any

    def dataset_spec(self, args: Namespace) -> DatasetSpec:
        """The data set of a run's arguments."""


class RunNetworks:
    """A run's networks, each loaded when first asked for, on the device, frozen and in eval mode.

    Args:
        path: the run folder.
        names: the module ``registry``, which knows models and data sets.
        compute: where they go and in which precision they are meant to run; by default as ``device.choose()`` says.

    Raises:
        UserError: where the folder is no run's, or, as a network is asked for, where its file is missing or another's.
    """

    def __init__(self, path: Path | str, names: Names, compute: device.Compute | None = None):
        self.run = read_run(path)
        self.path, self.config, self._names = self.run.path, self.run.config, names
        self.compute = compute or device.choose()
        self.spec: DatasetSpec = names.dataset_spec(Namespace(**self.config))
        self.augmentation = Augmentation(self.spec, self.compute.device, self.config["crop_padding"])
        self.nz: int | None = self.config.get("nz")  # a run of train_scratch.py has no generator

    @cached_property
    def teacher(self) -> nn.Module:
        return self._classifier(self.config["teacher"], self.config["teacher_path"], "teacher checkpoint")

    @cached_property
    def student(self) -> nn.Module:
        """As it was after the last round; the trained model, of a run of train_scratch.py."""
        name = self.config["student"] if "student" in self.config else self.config["model"]
        return self._classifier(name, self.path / "student_last.pth", "student checkpoint")

    @cached_property
    def generator(self) -> ReusableGenerator:
        """G with g1 = the abandoned network, g2 = the one kept for reuse, and d."""
        names = (reuse.ABANDONED_FILE, reuse.GENERATOR_FILE)
        networks = [reuse.load_generative_network(self.path / name, self.nz, self.spec.img_size) for name in names]
        decoder = Decoder()
        reuse.load_decoder(decoder, self.path / reuse.DECODER_FILE, self.spec.img_size)
        return self._ready(ReusableGenerator(*networks, decoder))

    @cached_property
    def perturbation(self) -> tuple[PerturbationNetwork, float]:
        """P and its bound in pixels of [0, 1]. Raises UserError where the run had no attack."""
        network, bound = load_perturbation(self.path / "gap.pth")
        return self._ready(network), bound

    def real_images(self) -> TensorImages:
        """The test set. Raises UserError where it is absent or too large for one tensor."""
        images, remark = test_images(self.spec, Path(self.config["data_root"]), download=False)
        if not isinstance(images, TensorImages):
            raise UserError(f"no test images of {self.spec.name} in one tensor", " ".join(remark) or "name another set")
        return images.to(self.compute.device)

    def _classifier(self, name: str, path: Path | str, what: str) -> nn.Module:
        model = self._names.MODELS[name](self.spec.num_classes)
        checkpoint.load_classifier(model, path, what)
        return self._ready(model)

    def _ready(self, network: nn.Module) -> nn.Module:
        return self.compute.place(network).eval().requires_grad_(False)
