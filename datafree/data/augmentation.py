"""Augmentation of a whole batch at once, every sample with its own random numbers, on any device; pixels to pixels.

A crop and a flip only say which row and which column each output pixel is read from: one gather, exact in every
precision. No pixel is read twice, so its backward pass is the gather of the opposite crop.
"""

import torch
from torch import Tensor


def gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x[b, c, rows[b, i], columns[b, j]], zero where an index lies outside: (B, C, H, W), (B, H), (B, W) -> as x."""
    B, C, H, W = x.shape
    inside = ((rows >= 0) & (rows < H)).unsqueeze(2) & ((columns >= 0) & (columns < W)).unsqueeze(1)  # (B, H, W)
    index = rows.clamp(0, H - 1).unsqueeze(2) * W + columns.clamp(0, W - 1).unsqueeze(1)
    read = x.reshape(B, C, H * W).gather(2, index.view(B, 1, H * W).expand(-1, C, -1)).view(B, C, H, W)
    return torch.where(inside.unsqueeze(1), read, 0)


class _CropFlip(torch.autograd.Function):
    """The gather of ``there``, with that of ``back`` as its gradient; each is (rows, columns)."""

    @staticmethod
    def forward(ctx, x: Tensor, there: tuple[Tensor, Tensor], back: tuple[Tensor, Tensor]) -> Tensor:
        ctx.back = back
        return gather(x, *there)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return gather(grad, *ctx.back), None, None


def random_crop_flip(x: Tensor, generator: torch.Generator, padding: int = 4, flip: bool = False) -> Tensor:
    """Shifts each sample by -padding..padding pixels both ways (zeros come in) and mirrors every other one at random.

    Args:
        x: images (B, C, H, W) of any type; differentiable where that has gradients.
        generator: random stream on x's device; draws the same amount whatever the settings.
        padding: largest shift in pixels; 0 leaves the position alone.
        flip: whether samples are mirrored left to right with probability 1/2.
    """
    B, _, H, W = x.shape
    down, right = torch.randint(-padding, padding + 1, (2, B, 1), generator=generator, device=x.device)
    mirrored = torch.rand(B, 1, generator=generator, device=x.device) < 0.5
    if padding == 0 and not flip:
        return x
    i, j = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    there, back = (i + down, j + right), (i - down, j - right)
    if flip:  # output j reads column right + W-1-j, so column j is read by output right + W-1-j
        there, back = ((pair[0], torch.where(mirrored, j.flip(0) + right, pair[1])) for pair in (there, back))
    return _CropFlip.apply(x, there, back)


class Augmentation:
    """Random crop and flip with the settings of a task.

    Args:
        padding: largest shift of the crop, in pixels.
        flip: whether a mirrored image keeps its class.
    """

    def __init__(self, padding: int = 4, flip: bool = False):
        self.padding, self.flip = padding, flip

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) -> same shape and type."""
        return random_crop_flip(x, generator, self.padding, self.flip)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 levels to floating-point pixels: 0..255 -> [0, 1]."""
    return images.float() / 255


def to_levels(x: Tensor) -> Tensor:
    """Floating-point pixels to uint8 levels, to the nearest: [0, 1] -> 0..255."""
    return (x.detach().clamp(0, 1) * 255).round().to(torch.uint8)
