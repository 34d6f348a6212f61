"""What a data set is to this package: a few numbers that distillation needs, and images that evaluation may want."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from ..errors import UserError

Size = tuple[int, int]  # height, width in pixels
Shape = tuple[int, int, int]  # channels, height, width
UNREADABLE = (OSError, SyntaxError, ValueError)  # what PIL raises at bytes that are no image


def pair(size: int | Sequence[int]) -> Size:
    """Height and width, from one number for both or from two. Raises UserError for anything else."""
    sides = (size,) if isinstance(size, int) else tuple(map(int, size))
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise UserError(f"an image size is one number or two, not {' '.join(map(str, sides))}", "height, then width")
    return sides[0], sides[-1]


def size_text(size: Size) -> str:
    """As people write it: "224x320"."""
    return f"{size[0]}x{size[1]}"


class MissingData(UserError):  # noqa: N818 (the house name)
    """A data set's images are not on disk and were not, or could not be, downloaded."""


class DamagedData(MissingData):
    """Some of a data set is on disk, but not all of it, or it cannot be read."""


class Images(Protocol):
    """One split of a data set. ``crops`` says that ``shuffled`` crops at random already."""

    crops: bool

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order: uint8 images (B, 3, H, W) and int64 labels (B,) on ``device``."""
        ...

    def shuffled(
        self, batch_size: int, generator: torch.Generator, device: torch.device | str, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in an order (and with crops) that ``generator`` alone decides, in batches as above.

        ``drop_last`` leaves out a short last batch, unless it is the only one.
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
    def shape(self) -> Shape:
        """Of an image."""
        return len(self.mean), *self.img_size


def test_images(spec: DatasetSpec, data_root: Path, download: bool) -> tuple[Images | None, list[str]]:
    """The test set for evaluation, or None with a line that says why there is none.

    Raises:
        DamagedData: where some of it is there but cannot be used; a half-copied data set is no reason to go without.
    """
    try:
        return spec.load(data_root, False, download), []
    except DamagedData:
        raise
    except MissingData as error:
        return None, [f"no accuracy, agreement on synthetic images instead: {error.what}"]


class TensorImages:
    """A split that fits in memory: one tensor, indexed where it lies; no loader, no workers.

    Args:
        images: uint8 (N, C, H, W), in grey or in colour: C is 1 or 3.
        labels: int64 (N,).
    """

    crops = False

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
        return TensorImages(self.images.to(device), self.labels.to(device))

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Images.batches``."""
        for images, labels in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            yield images.to(device), labels.to(device)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, device: torch.device | str, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Images.shuffled``; the order depends on the kind of device that ``generator`` lives on."""
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.images.device)
        if drop_last and len(order) > batch_size:
            order = order[: len(order) // batch_size * batch_size]
        for chosen in order.split(batch_size):
            yield self.images[chosen].to(device), self.labels[chosen].to(device)


class FolderImages:
    """A split too large for memory: read from ``<folder>/<class>/*`` by worker processes, a pass at a time.

    ``batches`` resizes the shorter side to 256/224 img_size and crops the centre, ``shuffled`` crops at random
    (torchvision's RandomResizedCrop with its defaults): the usual ImageNet evaluation and training. The crop of an
    image is seeded by the pass and the image, so it does not depend on how many workers there are.

    Args:
        samples: path and class index of each image, as torchvision's ImageFolder lists them.
        img_size: height and width in pixels of what comes out.
        workers: processes that read; by default one a core, at most eight (chosen by us).
    """

    crops = True

    def __init__(self, samples: list[tuple[str, int]], img_size: int, workers: int | None = None):
        self.samples, self.img_size = samples, pair(img_size)
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        self._loaders: dict[tuple[int, bool], DataLoader] = {}  # of whole passes in order: their workers stay

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Images.batches``. Raises DamagedData at an image that cannot be read."""
        pin = torch.device(device).type == "cuda"
        if (batch_size, pin) not in self._loaders:
            crop = v2.Compose([v2.Resize(round(max(self.img_size) * 256 / 224)), v2.CenterCrop(self.img_size)])
            images = _Cropped(self.samples, crop, seed=0)
            loader = self._loader(images, pin, batch_size=batch_size, persistent_workers=self.workers > 0)
            self._loaders = {(batch_size, pin): loader}
        return self._read(self._loaders[batch_size, pin], device)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, device: torch.device | str, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Images.shuffled``. Raises DamagedData at an image that cannot be read."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        images = _Cropped(self.samples, v2.RandomResizedCrop(self.img_size), seed)
        order = torch.Generator().manual_seed(seed)
        how = {"shuffle": True, "generator": order, "drop_last": drop_last and len(self) > batch_size}
        pin = torch.device(device).type == "cuda"
        return self._read(self._loader(images, pin, batch_size=batch_size, **how), device)

    def _loader(self, images: "_Cropped", pin: bool, **how: Any) -> DataLoader:
        return DataLoader(images, num_workers=self.workers, collate_fn=_stack, pin_memory=pin, **how)

    def _read(self, loader: DataLoader, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            if isinstance(batch, str):
                raise DamagedData(f"cannot read the image {batch}", "put a good copy there, or remove it")
            pixels, labels = batch
            yield tuple(values.to(device, non_blocking=loader.pin_memory) for values in (pixels, labels))


class _Cropped(Dataset):
    """Cropped uint8 images (3, H, W) with labels; for an image that cannot be read, its path and the reason.

    The reason travels as text because a UserError raised in a worker would arrive as another exception.
    """

    def __init__(self, samples: list[tuple[str, int]], crop: Callable, seed: int):
        self.samples, self.crop, self.seed = samples, crop, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        path, label = self.samples[index]
        try:
            image = default_loader(path)
        except UNREADABLE as error:
            return f"{path} ({type(error).__name__})"
        with torch.random.fork_rng(devices=[]):  # torchvision's random crops know the global generator only
            torch.default_generator.manual_seed((self.seed + index) % 2**63)
            return v2.functional.pil_to_tensor(self.crop(image)), label


def _stack(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    """A batch, or the first complaint among its items."""
    for item in items:
        if isinstance(item, str):
            return item
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
