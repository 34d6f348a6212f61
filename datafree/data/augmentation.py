"""Augmentation of a whole batch at once, every sample with its own random numbers, on any device; pixels to pixels.

A crop and a flip only say which row and which column each output pixel is read from: one gather, exact in every
precision. No pixel is read twice, so its backward pass is the gather of the opposite crop.
"""

from math import log

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
    shifts, mirrored = draw_crops(len(x), generator, padding, x.device)
    return x if padding == 0 and not flip else crop_flip(x, shifts, mirrored, flip)


def draw_crops(count: int, generator: torch.Generator, padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All that chance decides of so many crops: shifts down and right (2, B, 1), and which are mirrored (B, 1)."""
    shifts = torch.randint(-padding, padding + 1, (2, count, 1), generator=generator, device=device)
    return shifts, torch.rand(count, 1, generator=generator, device=device) < 0.5


def crop_flip(x: Tensor, shifts: Tensor, mirrored: Tensor, flip: bool) -> Tensor:
    """Images (B, C, H, W) shifted and, where ``flip``, mirrored as :func:`draw_crops` says."""
    (_, _, H, W), (down, right) = x.shape, shifts
    i, j = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    there, back = (i + down, j + right), (i - down, j - right)
    if flip:  # output j reads column right + W-1-j, so column j is read by output right + W-1-j
        there, back = ((pair[0], torch.where(mirrored, j.flip(0) + right, pair[1])) for pair in (there, back))
    return _CropFlip.apply(x, there, back)


def roll_flip(x: Tensor, generator: torch.Generator, reach: tuple[int, int], flip: bool = False) -> Tensor:
    """Shifts a whole batch alike, what leaves at one side coming in at the other, and mirrors it or not.

    Args:
        x: images (B, C, H, W); differentiable.
        generator: random stream on x's device; draws the same amount whatever the settings. Nothing is read from it.
        reach: largest shift in pixels, down or up and right or left.
        flip: whether the batch is mirrored left to right with probability 1/2.
    """
    (B, _, H, W), device = x.shape, x.device
    down, right = (torch.randint(-most, most + 1, (1, 1), generator=generator, device=device) for most in reach)
    mirrored = torch.rand(1, 1, generator=generator, device=device) < 0.5
    i, j = torch.arange(H, device=device), torch.arange(W, device=device)
    there, back = ((i - down) % H, (j - right) % W), ((i + down) % H, (j + right) % W)
    if flip:  # output j reads column W-1-j - right, so column j is read by output W-1-j - right
        turned = (j.flip(0) - right) % W
        there, back = ((rows, torch.where(mirrored, turned, columns)) for rows, columns in (there, back))
    return _CropFlip.apply(x, *((rows.expand(B, H), columns.expand(B, W)) for rows, columns in (there, back)))


def _resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """The rows of a crop at full size as weights on the image's rows: starts and lengths (B,) in pixels -> (B, H, H).

    Row i of the crop is at start + (i + 1/2) * length / H - 1/2, between two rows of the image; at the edge, on the
    last.
    """
    at = torch.arange(size, device=start.device)
    place = start[:, None] + (at + 0.5) * (length / size)[:, None] - 0.5
    return (1 - (place.clamp(0, size - 1).unsqueeze(2) - at).abs()).clamp(min=0)


def random_resized_crop_flip(
    x: Tensor,
    generator: torch.Generator,
    area: tuple[float, float] = (0.25, 1.0),
    flip: bool = False,
) -> Tensor:
    """Cuts a rectangle out of each sample, resizes it to H x W (bilinear), and mirrors every other one at random.

        share ~ U(area), log r ~ U(log 3/4, log 4/3):  w = sqrt(share * r) * W, h = sqrt(share / r) * H

    at most W and H (torchvision's draws such a crop again); its place is uniform, not rounded to a pixel. Resampling is
    a product with a matrix of weights on either side, whose gradient is deterministic on a GPU, as that of
    ``grid_sample`` is not; in TF32, where that is on, to 11 bits.

    Args:
        x: images (B, C, H, W), floating point; differentiable.
        generator: random stream on x's device; draws the same amount whatever the settings. Nothing is read from it.
        area: smallest and largest share of the image's area.
        flip: whether samples are mirrored left to right with probability 1/2.
    """
    B, _, H, W = x.shape
    share, ratio, down, right, side = torch.rand(5, B, generator=generator, device=x.device)
    share, ratio = area[0] + (area[1] - area[0]) * share, torch.exp((2 * ratio - 1) * log(4 / 3))
    height, width = ((share / ratio).sqrt().clamp(max=1) * H, (share * ratio).sqrt().clamp(max=1) * W)
    with torch.autocast(x.device.type, enabled=False):
        rows = _resampling(down * (H - height), height, H)
        columns = _resampling(right * (W - width), width, W)
        if flip:
            columns = torch.where((side < 0.5)[:, None, None], columns.flip(1), columns)
        # (B, 1, H, H) @ (B, C, H, W) @ (B, 1, W, W)
        return rows.unsqueeze(1).to(x.dtype) @ x @ columns.transpose(1, 2).unsqueeze(1).to(x.dtype)


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

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What chance decides, for :meth:`cut`; as much is drawn as by a call."""
        return draw_crops(count, generator, self.padding, generator.device)

    def cut(self, x: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        """As a call does, with nothing left to chance."""
        return x if self.padding == 0 and not self.flip else crop_flip(x, shifts, mirrored, self.flip)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 levels to floating-point pixels: 0..255 -> [0, 1]."""
    return images.float() / 255


def to_levels(x: Tensor) -> Tensor:
    """Floating-point pixels to uint8 levels, to the nearest: [0, 1] -> 0..255. Raises TypeError for levels."""
    if not x.is_floating_point():
        raise TypeError(f"{x.dtype} are no pixels in [0, 1]")
    return (x.detach().clamp(0, 1) * 255).round().to(torch.uint8)
