"""What a teacher says about real, synthetic and adversarial images; for notebooks/teacher_behavior.ipynb."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attack import perturb, pixel_limits
from ..data.augment import to_pixels
from ..data.datasets import TensorImages
from ..randomness import Streams
from ..reporting.run_networks import RunNetworks
from .adversarial import carlini_wagner
from .calibration import Judged, judge

BATCH = 64


@dataclass(frozen=True)
class Observed:
    """The teacher's answers; the hard label is the truth for real images, else the teacher's class of the clean image.

    Attributes:
        real: the test set.
        synthetic: of the run's generator.
        labelled_again: the same images, asked about a second time.
        attacked: the same images under the run's P.
        carlini_wagner: real images that the teacher knows, changed until it does not; some may have withstood.
    """

    real: Judged
    synthetic: Judged
    labelled_again: Judged
    attacked: Judged
    carlini_wagner: Judged

    def kinds(self) -> dict[str, Judged]:
        """By name: the real ones parted into right and wrong, of Carlini and Wagner's those that changed the class."""
        return {
            "real, right": self.real.where(self.real.agrees),
            "real, wrong": self.real.where(~self.real.agrees),
            "synthetic": self.synthetic,
            "synthetic under P": self.attacked,
            "real, Carlini-Wagner": self.carlini_wagner.where(~self.carlini_wagner.agrees),
        }


def observe(run: RunNetworks, synthetic_count: int, carlini_wagner_count: int, seed: int = 0) -> Observed:
    """Asks the run's teacher about everything.

    Args:
        run: of a run with the attack.
        synthetic_count: images of its generator.
        carlini_wagner_count: at most so many of the first real images are attacked, which takes long.
        seed: of the noise.

    Raises:
        UserError: where the run had no attack, or there is no test set.
    """
    real = observe_real(run, run.real_images())
    x = synthetic_images(run, synthetic_count, seed)
    synthetic = judge(run.teacher, run.augmentation, x, batch_size=BATCH)
    again = judge(run.teacher, run.augmentation, x, synthetic.labels, BATCH)
    attacked = judge(run.teacher, run.augmentation, under_P(run, x), synthetic.labels, BATCH)
    known = real.where(real.agrees.nonzero().flatten()[:carlini_wagner_count])
    changed = carlini_wagner(run.teacher, run.augmentation, known.x, run.spec.num_classes)
    moved = judge(run.teacher, run.augmentation, changed, known.labels, BATCH)
    return Observed(real, synthetic, again, attacked, moved)


def observe_real(run: RunNetworks, images: TensorImages) -> Judged:
    """The teacher on real images with their true labels."""
    return judge(run.teacher, run.augmentation, to_pixels(images.images), images.labels, BATCH)


@torch.no_grad()
def synthetic_images(run: RunNetworks, count: int, seed: int) -> Tensor:
    """Pixels (count, 3, H, W) in [0, 1] from the run's generator."""
    z = torch.randn(count, run.nz, generator=Streams(seed, run.compute.device)["noise"], device=run.compute.device)
    return torch.cat([run.generator(part) for part in z.split(BATCH)])


@torch.no_grad()
def under_P(run: RunNetworks, x: Tensor) -> Tensor:  # noqa: N802 (the method's name for it)
    """The attacked twins of pixels x, as pixels."""
    P, bound = run.perturbation
    mean, std = run.augmentation.mean, run.augmentation.std
    parts = (
        perturb(P, run.augmentation.normalise(part), bound, pixel_limits(run.augmentation)) for part in x.split(BATCH)
    )
    return torch.cat([part * std + mean for part in parts]).clamp(0, 1)


def captions(judged: Judged) -> list[str]:
    """For each image, its label, the prediction and the confidence."""
    told = zip(judged.labels.tolist(), judged.predicted.tolist(), judged.confidence.tolist(), strict=True)
    return [f"label {label}, says\n{predicted} ({c:.2f})" for label, predicted, c in told]
