"""The pool of synthetic images: one uint8 tensor on the device, filled round by round, drawn from at random."""

import torch
from torch import Tensor

from .augment import to_levels


class ImagePool:
    """Room for ``capacity`` images, 3*H*W bytes each.

    Args:
        capacity: the most images it can hold.
        img_size: H = W in pixels.
        device: where it lives.
    """

    def __init__(self, capacity: int, img_size: int, device: torch.device | str = "cpu"):
        self.capacity = capacity
        self.images = torch.empty(capacity, 3, img_size, img_size, dtype=torch.uint8, device=device)
        self.bytes_per_image = self.images[0].nbytes
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def add(self, x: Tensor) -> None:
        """Takes in images (B, 3, H, W) in [0, 1]. Raises ValueError where they do not fit."""
        start = self.size
        self.extend(len(x))
        self.images[start : self.size] = to_levels(x)

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """uint8 images (batch_size, 3, H, W), drawn uniformly with replacement."""
        indices = torch.randint(self.size, (batch_size,), generator=generator, device=self.images.device)
        return self.images.index_select(0, indices)

    def rows(self, start: int, end: int) -> list[Tensor]:
        """What the pool holds of images start..end-1, as views: for saving and restoring."""
        return [self.images[start:end]]

    def extend(self, count: int) -> None:
        """Makes ``count`` more rows part of the pool. Raises ValueError where it is full."""
        if self.size + count > self.capacity:
            raise ValueError(f"the pool holds {self.capacity} images; {self.size + count} would be too many")
        self.size += count

    def clear(self) -> None:
        """Empties the pool."""
        self.size = 0
