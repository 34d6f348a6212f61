"""The pool of synthetic images: uint8 tensors on the device, filled round by round, drawn from at random."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .augment import to_levels


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


class ImagePool:
    """Room for ``capacity`` images of 3*H*W bytes each; with twins for twice that and a label.

    Args:
        capacity: the most images it can hold.
        img_size: H = W in pixels.
        device: where it lives.
        twins: whether each image comes with an attacked counterpart and a hard label.
    """

    def __init__(self, capacity: int, img_size: int, device: torch.device | str = "cpu", twins: bool = False):
        self.capacity, self.size = capacity, 0
        shape = (capacity, 3, img_size, img_size)
        self.columns = [torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(1 + twins)]
        if twins:
            self.columns.append(torch.empty(capacity, dtype=torch.int64, device=device))
        self.bytes_per_image = sum(column[0].nbytes for column in self.columns)

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
        """``batch_size`` images, drawn uniformly with replacement."""
        indices = torch.randint(self.size, (batch_size,), generator=generator, device=self.columns[0].device)
        return Drawn(*(column.index_select(0, indices) for column in self.columns))

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
