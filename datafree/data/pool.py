"""The pool of synthetic images: uint8 tensors, filled round by round, drawn from at random, batches ahead of time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .augment import to_levels
from .placement import Placement


@dataclass(frozen=True)
class Drawn:
    """A batch of the pool. ``twins`` and ``labels`` are there where the pool has them.

    Attributes:
        images: uint8 (B, 3, H, W).
        twins: their attacked counterparts, likewise.
        labels: hard labels of the images, int64 (B,).
    """

    images: Tensor
    twins: Tensor | None = None
    labels: Tensor | None = None


def bytes_per_image(img_size: int, twins: bool = False) -> int:
    """What the pool takes: 3*H*W bytes; with twins twice that and an int64 label."""
    return (1 + twins) * 3 * img_size**2 + 8 * twins


class ImagePool:
    """Room for ``capacity`` images, each of :func:`bytes_per_image`.

    Args:
        capacity: the most images it can hold.
        img_size: H = W in pixels.
        device: where drawn batches go; the pool lies there too unless ``placement`` says otherwise.
        twins: whether each image comes with an attacked counterpart and a hard label.
        placement: where the pool lies.
    """

    def __init__(
        self,
        capacity: int,
        img_size: int,
        device: torch.device | str = "cpu",
        twins: bool = False,
        placement: Placement | None = None,
    ):
        self.capacity, self.img_size, self.twins, self.size = capacity, img_size, twins, 0
        self.placement = placement or Placement(torch.device(device))
        self.bytes_per_image = bytes_per_image(img_size, twins)
        self._reader: ThreadPoolExecutor | None = None

    @cached_property
    def columns(self) -> list[Tensor]:
        """Images and, with twins, twins and labels: made when first needed."""
        shape = (self.capacity, 3, self.img_size, self.img_size)
        columns = [self.placement.empty(shape, torch.uint8) for _ in range(1 + self.twins)]
        return columns + ([self.placement.empty((self.capacity,), torch.int64)] if self.twins else [])

    def __len__(self) -> int:
        return self.size

    def add(self, x: Tensor, twins: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Takes in images (B, 3, H, W) in [0, 1], with their twins and labels. Raises ValueError where it is full."""
        given = [to_levels(x)] if twins is None else [to_levels(x), to_levels(twins), labels]
        start = self.size
        self.extend(len(x))
        for column, values in zip(self.columns, given, strict=True):
            column[start : self.size] = values

    def draw(self, batch_size: int, generator: torch.Generator) -> Drawn:
        """``batch_size`` images, drawn uniformly with replacement; ``generator`` is one of the CPU."""
        return self.request(batch_size, generator)()

    def request(self, batch_size: int, generator: torch.Generator) -> Callable[[], Drawn]:
        """Draws now and reads meanwhile: call what is returned for the images of :meth:`draw`."""
        indices = torch.randint(self.size, (batch_size,), generator=generator)
        if self.placement.kind == "device":
            indices = _sent(indices, self.placement.device)
            drawn = Drawn(*(column.index_select(0, indices) for column in self.columns))
            return lambda: drawn
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="pool")
        reading = self._reader.submit(self._read, indices)
        return lambda: Drawn(*(rows.to(self.placement.device, non_blocking=True) for rows in reading.result()))

    def _read(self, indices: Tensor) -> list[Tensor]:
        """Those rows in host memory, from where a GPU can fetch them by itself."""
        rows = [column.index_select(0, indices) for column in self.columns]
        return [values.pin_memory() for values in rows] if self.placement.device.type == "cuda" else rows

    def rows(self, start: int, end: int) -> list[Tensor]:
        """What the pool holds of images start..end-1, as views: for saving and restoring."""
        return [column[start:end] for column in self.columns]

    def extend(self, count: int) -> None:
        """Makes ``count`` more rows part of the pool. Raises ValueError where it is full."""
        if self.size + count > self.capacity:
            raise ValueError(f"the pool holds {self.capacity} images; {self.size + count} would be too many")
        self.size += count

    def clear(self) -> None:
        """Empties the pool."""
        self.size = 0


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for what it has to do."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
