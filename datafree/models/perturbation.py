"""P, the perturbation network of the attack: images to perturbations of the same shape.

The image-to-image ResNet generator of "Generative Adversarial Perturbations" (Poursaeed, Katsman, Gao and Belongie,
2018), without its dropout.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import files
from ..errors import UserError
from .loading import load_into, state_dict_of

SMALLEST = 8  # height and width in pixels: a quarter of it is reflected at the border


class ReflectConv(nn.Conv2d):
    """``Conv2d(..., padding=kernel // 2, padding_mode="reflect")`` of stride 1.

    It pads in x's own precision, where CPU autocast would take a detour through fp32.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, padding_mode="reflect", bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = F.pad(x, 4 * (self.padding[0],), "reflect")
        return F.conv2d(x, self.weight, self.bias)


class _ResidualBlock(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))): (B, C, h, w) -> same shape. No ReLU behind the sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_bn_relu(ReflectConv(channels, channels, 3)), ReflectConv(channels, channels, 3), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _bn_relu(conv: nn.Module) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


class PerturbationNetwork(nn.Module):
    """P: images (B, C, H, W) -> (B, C, H, W) in [-1, 1], float32; H and W at least 8.

    A convolution in front of a BN has no bias, which the BN would take away again.

    Args:
        width: channels of the first layer; twice and four times as many follow. The cost goes with its square.
        blocks: residual blocks, at a quarter of H and W.
        channels: C.
    """

    def __init__(self, width: int = 64, blocks: int = 6, channels: int = 3):
        super().__init__()
        self.config = {"width": width, "blocks": blocks, "channels": channels}
        w = width
        down = {"stride": 2, "padding": 1, "bias": False}
        up = {**down, "output_padding": 1}
        self.layers = nn.Sequential(
            *_bn_relu(ReflectConv(channels, w, 7)),
            *_bn_relu(nn.Conv2d(w, 2 * w, 3, **down)),
            *_bn_relu(nn.Conv2d(2 * w, 4 * w, 3, **down)),  # -> (B, 4w, H/4, W/4)
            *(_ResidualBlock(4 * w) for _ in range(blocks)),
            *_bn_relu(nn.ConvTranspose2d(4 * w, 2 * w, 3, **up)),
            *_bn_relu(nn.ConvTranspose2d(2 * w, w, 3, **up)),  # -> (B, w, H, W)
            ReflectConv(w, channels, 7, bias=True),
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height % 4 or width % 4:
            x = F.pad(x, (0, -width % 4, 0, -height % 4), "replicate")
        return self.layers(x)[:, :, :height, :width].float().tanh()


def _initialise(module: nn.Module) -> None:
    """Conv weights N(0, 0.02), BN weights N(1, 0.02), biases 0; the second number is the standard deviation."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def load_perturbation(path: Path | str) -> tuple[PerturbationNetwork, float]:
    """P from a run's gap.pth, in eval mode on the CPU, and its bound in pixels of [0, 1].

    Raises:
        UserError: if the file is not what a run wrote.
    """
    what = "perturbation network"
    content = files.load(path, what)
    if not isinstance(content, dict) or content.get("kind") != "perturbation_network":
        raise UserError(f"{what} {path} holds something else", "give the gap.pth of a run with --hl")
    network = PerturbationNetwork(**content["config"])
    load_into(network, state_dict_of(content, path, what), path, what)
    return network.eval(), content["bound"]
