"""What a data set is to this package: a few numbers that distillation needs, and images that evaluation may want."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import UserError

Size = tuple[int, int]  # height, width in pixels
Shape = tuple[int, int, int]  # channels, height, width


def pair(size: int | Sequence[int]) -> Size:
    """Height and width, from one number for both or from two. Raises UserError for anything else."""
    try:
        sides = tuple(map(operator.index, (size,) if isinstance(size, Real) else size))
    except TypeError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise UserError(f"an image size is one whole number or two, not {size}", "height, then width")
    return sides[0], sides[-1]


def size_text(size: Size) -> str:
    """As people write it: "224x320"."""
    return f"{size[0]}x{size[1]}"


class MissingData(UserError):  # noqa: N818 (the house name)
    """A data set's images are not on disk and were not, or could not be, downloaded."""


class DamagedData(MissingData):
    """Some of a data set is on disk, but not all of it, or it cannot be read."""


class Images(Protocol):
    """One split of a data set.

    Attributes:
        crops: whether ``shuffled`` crops at random already.
        remarks: lines for the log on what was found, and what was not.
    """

    crops: bool
    remarks: tuple[str, ...]

    def __len__(self) -> int: ...

    def part(self, first: int, step: int) -> "Images":
        """Every step-th image from the first on."""
        ...

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order: uint8 images (B, 3, H, W) and int64 labels (B,) on ``device``."""
        ...

    def shuffled(
        self,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | str,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in an order (and with crops) that ``generator`` alone decides, in batches as above.

        ``drop_last`` leaves out a short last batch, unless it is the only one; ``part`` (first, step) takes of each
        batch every step-th image from the first on.
        """
        ...


@dataclass(frozen=True)
class DatasetSpec:
    """What distillation needs to know of a data set, and how to load it where evaluation or training wants it.

    Args:
        name: as on the command line.
        num_classes: number of classes.
        img_size: height and width in pixels, or one number for both.
        mean: per channel, of images in [0, 1]; normalisation is ``(image - mean) / std``. One channel or three.
        std: per channel, of images in [0, 1].
        flip: does a mirrored image keep its class?
        load: ``(data_root, train, download) -> images``. ``download`` allows, but does not force, use of the network.
            Raises MissingData where the split is not on disk and cannot be had, DamagedData where it is incomplete.
        class_names: what the classes are called, in the order of their indices; empty where indices are all there is.
    """

    name: str
    num_classes: int
    img_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    load: Callable[[Path, bool, bool], Images]
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", pair(self.img_size))

    @property
    def classes(self) -> dict[str, Any]:
        """What files say of them: ``num_classes`` and, where they have names, ``class_names``."""
        return {"num_classes": self.num_classes} | ({"class_names": list(self.class_names)} if self.class_names else {})

    @property
    def shape(self) -> Shape:
        """Of an image."""
        return len(self.mean), *self.img_size


def test_images(spec: DatasetSpec, data_root: Path, download: bool) -> tuple[Images | None, list[str]]:
    """The test set for evaluation, or None; with lines for the log, such as one that says why there is none.

    Raises:
        DamagedData: where some of it is there but cannot be used; a half-copied data set is no reason to go without.
    """
    try:
        images = spec.load(data_root, False, download)
        return images, list(getattr(images, "remarks", ()))
    except DamagedData:
        raise
    except MissingData as error:
        return None, [f"no accuracy, for want of test images: {error.what}"]


def batched(
    order: Sequence[int] | Tensor, batch_size: int, drop_last: bool = False, part: tuple[int, int] = (0, 1)
) -> Iterator[Sequence[int] | Tensor]:
    """Rows in that order, batch by batch: see ``Images.shuffled``. A rest that could not be shared out goes, too."""
    if drop_last:
        whole = batch_size if len(order) > batch_size else part[1]
        order = order[: len(order) // whole * whole]
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size][part[0] :: part[1]]


class TensorImages:
    """A split that fits in memory: one tensor, indexed where it lies; no loader, no workers.

    Args:
        images: uint8 (N, C, H, W), in grey or in colour: C is 1 or 3.
        labels: int64 (N,).
    """

    crops = False
    remarks: tuple[str, ...] = ()

    def __init__(self, images: Tensor, labels: Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 ({len(images)},), not {labels.dtype} {tuple(labels.shape)}")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "TensorImages":
        """The same split with its tensors on ``device``: done once, it spares a copy for every batch."""
        moved = TensorImages(self.images.to(device), self.labels.to(device))
        moved.remarks = self.remarks
        return moved

    def part(self, first: int, step: int) -> "TensorImages":
        """See ``Images.part``."""
        return TensorImages(self.images[first::step], self.labels[first::step])

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Images.batches``."""
        for images, labels in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            yield images.to(device), labels.to(device)

    def shuffled(
        self,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | str,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Images.shuffled``; the order depends on the kind of device that ``generator`` lives on."""
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.images.device)
        for chosen in batched(order, batch_size, drop_last, part):
            yield self.images[chosen].to(device), self.labels[chosen].to(device)
