"""What images an attacker of the teacher may have: real ones, noise, or what parts of a run's generator make.

The reused network, and likewise the abandoned one, is met as the next task meets it: beside a fresh g1, in front of d.
All generators run on the statistics of their own batch, as in synthesis; a fresh g1 has no running ones.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.augment import to_pixels
from ..data.datasets import TensorImages
from ..errors import UserError
from ..models.generator import ReusableGenerator
from ..randomness import Streams
from ..reporting.run_networks import RunNetworks
from ..reuse import ABANDONED_FILE, DECODER_FILE, GENERATOR_FILE, build_generator

REAL, NOISE = "real samples", "random noise"
REUSED, ABANDONED, FULL = "reused network, fresh g1", "abandoned network, fresh g1", "full generator"
SOURCES = (REAL, NOISE, REUSED, ABANDONED, FULL)


@dataclass(frozen=True)
class AttackerImages:
    """One attacker's images.

    Attributes:
        x: pixels in [0, 1], (B, 3, H, W).
        labels: their true classes, (B,), or None: whoever has no labels asks the teacher.
    """

    x: Tensor
    labels: Tensor | None = None


def split_off(images: TensorImages, count: int, seed: int) -> tuple[TensorImages, TensorImages]:
    """So many images at random for the attacker, and all others, to judge by.

    Raises:
        UserError: where no others are left.
    """
    if count >= len(images):
        raise UserError(f"{count} attacker images leave none of {len(images)} to judge by", "take fewer")
    order = torch.randperm(len(images), generator=Streams(seed)["attacker"]).to(images.labels.device)
    return tuple(TensorImages(images.images[part], images.labels[part]) for part in (order[:count], order[count:]))


def attacker_images(
    run: RunNetworks, count: int, seed: int, real: TensorImages
) -> Iterator[tuple[str, AttackerImages]]:
    """Each of SOURCES with its images, all of that seed: noise, z (one for all generators) and fresh g1.

    Args:
        run: for its generator's parts and image size.
        count: images from each source.
        seed: of an attacker; another seed, another one.
        real: the real images that the attacker has, see :func:`split_off`.
    """
    device, streams = run.compute.device, Streams(seed, run.compute.device)
    size = run.spec.img_size
    yield REAL, AttackerImages(to_pixels(real.images), real.labels)
    yield NOISE, AttackerImages(torch.rand(count, 3, size, size, generator=streams["pixels"], device=device))
    z = torch.randn(count, run.nz, generator=streams["noise"], device=device)
    yield REUSED, AttackerImages(generated(with_fresh_g1(run, GENERATOR_FILE, seed), z))
    yield ABANDONED, AttackerImages(generated(with_fresh_g1(run, ABANDONED_FILE, seed), z))
    yield FULL, AttackerImages(generated(run.generator, z))


def with_fresh_g1(run: RunNetworks, file: str, seed: int) -> ReusableGenerator:
    """G whose g2 and d are the run's, g2 from that file, and whose g1 is random as a new run's of that seed."""
    parts = run.path / file, run.path / DECODER_FILE
    return run.compute.place(build_generator(seed, run.nz, run.config["ngf"], run.spec.img_size, *parts))


@torch.no_grad()
def generated(generator: ReusableGenerator, z: Tensor) -> Tensor:
    """Images (B, 3, H, W) for noise (B, nz), with the batch's own statistics; the generator itself is left alone."""
    return copy.deepcopy(generator).train()(z)
