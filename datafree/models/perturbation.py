"""P, the perturbation network of the attack: images to perturbations of the same shape.

The image-to-image ResNet generator of "Generative Adversarial Perturbations" (Poursaeed, Katsman, Gao and Belongie,
2018), without its dropout. Nearly all of its multiplications are in the 3x3 convolutions of the residual blocks. On a
CPU in bf16 these are computed by minimal filtering ("Fast Algorithms for Convolutional Neural Networks", Lavin and
Gray, 2015): as matrices over all positions at once,

    y = out @ ((taps @ weight) * (into @ x))    * : a product over channels at each of 36 points of every 4x4 tile

with four times fewer multiplications. Weights, and the result up to rounding, are those of the plain convolution.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4  # outputs a side of a tile, from TILE + 2 inputs
# Where the tile's polynomials are evaluated, infinity apart: closer to 1 than the usual 0, +-1, +-2, for half the
# rounding error in bf16 (measured: 1.2 % against 2.6 %, 0.3 % for the plain convolution).
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
MOST_POSITIONS = 64  # the matrices grow with the square of the positions; up to 8x8 the method was measured to pay


def _powers(count: int) -> Tensor:
    """Values of 1, x, ..., x^(count-1) at POINTS and, in the last row, at infinity: (TILE + 2, count)."""
    finite = torch.tensor(POINTS, dtype=torch.float64).unsqueeze(1) ** torch.arange(count)
    return torch.cat([finite, torch.eye(count, dtype=torch.float64)[-1:]])


def _one_axis(size: int) -> tuple[Tensor, Tensor]:
    """Along one axis: (points, tiles, size) from reflect-padded inputs, (size, points, tiles) to outputs."""
    tiles, points = size // TILE, TILE + 2
    reflected = F.pad(torch.eye(size, dtype=torch.float64).unsqueeze(0), (0, 0, 1, 1), "reflect")[0]  # (size + 2, size)
    windows = torch.stack([reflected[tile * TILE :][:points] for tile in range(tiles)])  # (tiles, points, size)
    into = torch.einsum("pq,tqs->pts", torch.linalg.inv(_powers(points)).mT, windows)
    out = torch.einsum("tu,pi->tiup", torch.eye(tiles, dtype=torch.float64), _powers(TILE))
    return into, out.reshape(size, tiles, points).mT


@cache
def _filtering(h: int, w: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """into (36 * tiles, h*w), taps (36, 9), out (h*w, 36 * tiles) for images of h x w."""
    (into_h, out_h), (into_w, out_w), powers = _one_axis(h), _one_axis(w), _powers(3)
    into = torch.einsum("pty,qux->pqtuyx", into_h, into_w).reshape(-1, h * w)
    out = torch.einsum("ypt,xqu->yxpqtu", out_h, out_w).reshape(h * w, -1)
    return into.to(dtype), torch.kron(powers, powers).to(dtype), out.to(dtype)


def filtered_conv(x: Tensor, weight: Tensor) -> Tensor:
    """The 3x3 convolution of reflect-padded x by minimal filtering: (B, I, h, w), (O, I, 3, 3) -> (B, O, h, w).

    h and w multiples of TILE; any floating-point type.
    """
    B, I, h, w = x.shape  # noqa: E741
    O = len(weight)  # noqa: E741
    into, taps, out = _filtering(h, w, x.dtype)
    x = into @ x.permute(2, 3, 0, 1).reshape(h * w, B * I)  # (h*w, B*I) -> (36 * tiles, B*I)
    weight = taps @ weight.to(x.dtype).permute(2, 3, 1, 0).reshape(9, I * O)  # (9, I*O) -> (36, I*O)
    x = torch.bmm(x.view(len(taps), -1, I), weight.view(-1, I, O))  # (36, tiles * B, I) -> (36, tiles * B, O)
    x = out @ x.view(-1, B * O)  # (36 * tiles, B*O) -> (h*w, B*O)
    return x.view(h, w, B, O).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def reflect_pad(x: Tensor, margin: int) -> Tensor:
    """Pads by reflection in x's own precision, where CPU autocast would take a detour through fp32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.pad(x, 4 * (margin,), "reflect")


class ReflectConv(nn.Conv2d):
    """``Conv2d(..., padding=kernel // 2, padding_mode="reflect")`` of stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, padding_mode="reflect", bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(reflect_pad(x, self.padding[0]), self.weight, self.bias)


class ReflectConv3x3(ReflectConv):
    """From and to as many channels, without bias; fast in bf16 on a CPU.

    In fp32 minimal filtering gains nothing (measured), and a GPU is fast enough as it is.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        tiled = h % TILE == w % TILE == 0 and h * w <= MOST_POSITIONS
        if tiled and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return filtered_conv(x, self.weight)
        return super().forward(x)


class ReflectConv7x7(ReflectConv):
    """To three channels, with bias, two rows and two columns of output at a time.

    A kernel with three outputs leaves most of a vector unit idle. Four shifted copies of it make twelve outputs at
    stride 2, which are then spread over the 2x2 positions that they belong to. H and W even.
    """

    def __init__(self, channels: int):
        super().__init__(channels, 3, 7, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        shifted = [F.pad(self.weight, (b, 1 - b, a, 1 - a)) for a in (0, 1) for b in (0, 1)]
        kernel = torch.stack(shifted, 1).flatten(0, 1)  # four times (3, C, 7, 7) -> (12, C, 8, 8)
        y = F.conv2d(reflect_pad(x, 3), kernel, self.bias.repeat_interleave(4), stride=2)
        return F.pixel_shuffle(y, 2)  # (B, 12, H/2, W/2) -> (B, 3, H, W)


class _ResidualBlock(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))): (B, C, h, w) -> same shape. No ReLU behind the sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            ReflectConv3x3(channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            ReflectConv3x3(channels),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _bn_relu(conv: nn.Module) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


class PerturbationNetwork(nn.Module):
    """P: images (B, 3, H, W) -> (B, 3, H, W) in [-1, 1], float32; H and W multiples of 4, at least 8.

    A convolution in front of a BN has no bias, which the BN would take away again.

    Args:
        width: channels of the first layer; twice and four times as many follow. The cost goes with its square.
        blocks: residual blocks, at a quarter of H and W.
    """

    def __init__(self, width: int = 64, blocks: int = 6):
        super().__init__()
        self.config = {"width": width, "blocks": blocks}
        w = width
        down = {"stride": 2, "padding": 1, "bias": False}
        up = {**down, "output_padding": 1}
        self.layers = nn.Sequential(
            *_bn_relu(ReflectConv(3, w, 7)),
            *_bn_relu(nn.Conv2d(w, 2 * w, 3, **down)),
            *_bn_relu(nn.Conv2d(2 * w, 4 * w, 3, **down)),  # -> (B, 4w, H/4, W/4)
            *(_ResidualBlock(4 * w) for _ in range(blocks)),
            *_bn_relu(nn.ConvTranspose2d(4 * w, 2 * w, 3, **up)),
            *_bn_relu(nn.ConvTranspose2d(2 * w, w, 3, **up)),  # -> (B, w, H, W)
            ReflectConv7x7(w),
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).float().tanh()


def _initialise(module: nn.Module) -> None:
    """Conv weights N(0, 0.02), BN weights N(1, 0.02), biases 0; the second number is the standard deviation."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
