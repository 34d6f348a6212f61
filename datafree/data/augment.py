"""Augmentation of a whole batch at once, every sample with its own random numbers, differentiable, on any device.

A crop and a flip only say which row and which column each output pixel is read from. Both are applied as products with
0/1 selection matrices, x' = R x C^T per sample: an exact copy of pixels (zero where the crop leaves the image), one
batched matrix product instead of a gather, whose backward pass is slow and, on a GPU, not reproducible.
"""

import torch
from torch import Tensor

from .datasets import DatasetSpec


def _selection(source: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Source indices (B, size) -> 0/1 matrices (B, size, size); an index outside the image selects nothing."""
    return (source.unsqueeze(2) == torch.arange(size, device=source.device)).to(dtype)


def random_crop_flip(x: Tensor, generator: torch.Generator, padding: int = 4, flip: bool = False) -> Tensor:
    """Shifts each sample by -padding..padding pixels both ways (zeros come in) and mirrors every other one at random.

    Args:
        x: images (B, 3, H, W), floating point.
        generator: random stream on x's device; draws the same amount whatever the settings.
        padding: largest shift in pixels; 0 leaves the position alone.
        flip: whether samples are mirrored left to right with probability 1/2.
    """
    B, _, H, W = x.shape
    shift = torch.randint(-padding, padding + 1, (2, B, 1), generator=generator, device=x.device)
    mirrored = torch.rand(B, 1, generator=generator, device=x.device) < 0.5
    if padding == 0 and not flip:
        return x
    rows = torch.arange(H, device=x.device) + shift[0]  # (B, H)
    columns = torch.arange(W, device=x.device) + shift[1]  # (B, W)
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    R, C = _selection(rows, H, x.dtype), _selection(columns, W, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return R.unsqueeze(1) @ x.contiguous() @ C.mT.unsqueeze(1)


class Augmentation:
    """Pixels in [0, 1] to what a classifier takes: random crop and flip, then normalisation.

    Args:
        spec: the data set, for its mean, standard deviation and whether a mirrored image keeps its class.
        device: where the batches live.
        padding: largest shift of the random crop, in pixels.
    """

    def __init__(self, spec: DatasetSpec, device: torch.device, padding: int = 4):
        self.padding, self.flip = padding, spec.flip
        self.mean = torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, in the memory order that the networks want."""
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Random crop and flip, then normalise: (B, 3, H, W) in [0, 1] -> same shape."""
        return self.normalise(random_crop_flip(x, generator, self.padding, self.flip))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 levels to floating-point pixels: 0..255 -> [0, 1]."""
    return images.float() / 255


def to_levels(x: Tensor) -> Tensor:
    """Floating-point pixels to uint8 levels, to the nearest: [0, 1] -> 0..255."""
    return (x.detach().clamp(0, 1) * 255).round().to(torch.uint8)
