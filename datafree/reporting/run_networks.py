"""The networks and numbers of a finished run, read back ready to use: for analyses and notebooks.

run = RunNetworks("run/anew-digits-resnet20-resnet8", registry)
x = run.generator(torch.randn(64, run.nz))          (64, 256) -> (64, 3, 32, 32) in [0, 1]
logits = run.teacher(x)                             a classifier takes pixels
"""

from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from ..data.specs import Images, TensorImages, test_images
from ..engine.device import choose
from ..engine.evaluation import predict
from ..engine.probe import fitted
from ..engine.randomness import Streams
from ..errors import UserError
from ..methods.aeahl_rg import build_generator
from ..models.classifier import Classifier, Normalise
from ..models.generator_files import ABANDONED_FILE, DECODER_FILE, GENERATOR_FILE, load_generative_network
from ..models.loading import load_classifier
from ..models.names import given_format
from ..models.perturbation import load_perturbation
from ..targets.attack import perturb
from .run_reader import read_run

PARTS = GENERATOR_FILE, DECODER_FILE, ABANDONED_FILE


class RunNetworks:
    """A run's networks, each loaded when first asked for, on the device, frozen and in eval mode.

    ``names`` is the module ``registry``; device and precision are as of the flags; ``num_classes`` is that of an image
    folder which the run counted, and which may be gone. Raises UserError where the folder is no run's, or, as a network
    is asked for, where its file is missing or another's.
    """

    def __init__(
        self,
        path: Path | str,
        names: Any,
        device: str = "auto",
        precision: str = "auto",
        num_classes: int | None = None,
    ):
        self.run, self._names = read_run(path), names
        self.path, self.config, self.compute = self.run.path, self.run.config, choose(device, precision)
        if num_classes and self.config["dataset"].startswith("imagefolder:"):
            self.config = self.config | {"num_classes": num_classes}
        self.spec = names.dataset_spec(Namespace(**self.config))
        self.nz: int | None = self.config.get("nz")  # None where there is no generator
        self.class_names = list(self.spec.class_names or map(str, range(self.spec.num_classes)))

    @cached_property
    def teacher(self) -> Classifier:
        path, weights = self.config["teacher_path"], self.config.get("teacher_weights")
        return self._classifier("teacher", path, "teacher checkpoint", "file" if path else "own", weights)

    @cached_property
    def student(self) -> Classifier:
        """As it was after the last epoch; the trained model, of a run of train_scratch.py."""
        return self.student_in("student_last.pth")

    def student_in(self, file: str) -> Classifier:
        """The student with the weights in a file of the folder."""
        role = "student" if "student" in self.config else "model"
        return self._classifier(role, self.path / file, "student checkpoint")

    def generator_of_next_task(self, seed: int, abandoned: bool = False) -> nn.Module:
        """G as the next task of that seed meets it: g1 random, d this run's, g2 the network kept (or the other one)."""
        parts = self.path / (ABANDONED_FILE if abandoned else GENERATOR_FILE), self.path / DECODER_FILE
        return self._ready(build_generator(seed, self.nz, self.config["ngf"], self.spec.shape, *parts))

    @cached_property
    def generator(self) -> nn.Module:
        """G with g1 = the abandoned network, g2 = the one kept for reuse, and d: noise (B, nz) to pixels."""
        generator, file = self.generator_of_next_task(seed=0), self.path / ABANDONED_FILE
        generator.g1 = self._ready(load_generative_network(file, self.nz, self.spec.shape))
        return generator

    @cached_property
    def _attack(self) -> tuple[nn.Module, float]:
        network, bound = load_perturbation(self.path / "gap.pth")
        return self._ready(network), bound

    @torch.no_grad()
    def perturb(self, x: Tensor) -> Tensor:
        """Pixels (B, C, H, W) to attacked pixels by the run's P. Raises UserError where the run had no attack."""
        P, bound = self._attack
        return perturb(P, x, bound, self._ready(Normalise(self.spec.mean, self.spec.std)))

    def test_images(self) -> tuple[Images | None, list[str]]:
        """The test set, or None with a line that says why there is none. Raises UserError where it is damaged."""
        return test_images(self.spec, Path(self.config["data_root"]), download=False)

    def real_images(self) -> TensorImages:
        """The test set on the device. Raises UserError where it is absent or too large for one tensor."""
        images, remark = self.test_images()
        if not isinstance(images, TensorImages):
            raise UserError(f"no test images of {self.spec.name} in one tensor", " ".join(remark) or "name another set")
        return images.to(self.compute.device)

    def predict(self, classifier: Classifier, images: Images, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Predicted and true classes of a whole data set, in its order: (N,) and (N,) int64."""
        return predict(classifier, images, self.compute, batch_size)

    def stream(self, seed: int, name: str, on_host: bool = False) -> torch.Generator:
        """Random numbers for one purpose, on the device or on the CPU."""
        return Streams(seed, "cpu" if on_host else self.compute.device)[name]

    def _classifier(
        self, role: str, path: Path | str | None, what: str, weights: str = "none", key: str | None = None
    ) -> Classifier:
        given = given_format(Namespace(**self.config), role)
        classifier = self._names.classifier(self.config[role], self.spec, given, weights)
        if path:
            load_classifier(classifier, path, what, given, key)
        fitted(classifier, f"{what} {path}", self.spec.shape, self.compute)
        return classifier.eval().requires_grad_(False)

    def _ready(self, network: nn.Module) -> nn.Module:
        return self.compute.place(network).eval().requires_grad_(False)


def origin_of(path: Path) -> dict[str, Any]:
    """What a part of a generator says of itself: what it ``holds``, its ``origin`` and ``config``; else why not."""
    try:
        content = files.load(path, "reuse file")
    except UserError as error:
        return {"holds": error.what, "origin": {}, "config": {}}
    content = {"origin": {}, "config": {}} | (content if isinstance(content, dict) else {})
    return content | {"holds": content["origin"].get("part", content.get("kind"))}
