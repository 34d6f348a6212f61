"""P, the perturbation network of the attack: images to perturbations of the same shape.

The image-to-image ResNet generator of "Generative Adversarial Perturbations" (Poursaeed, Katsman, Gao and Belongie,
2018), without its dropout.
"""

from torch import Tensor, nn


def _conv_bn(in_channels: int, out_channels: int, kernel: int, **how) -> list[nn.Module]:
    """A convolution and its BN; no bias, which the BN would take away again."""
    return [nn.Conv2d(in_channels, out_channels, kernel, bias=False, **how), nn.BatchNorm2d(out_channels)]


def _up(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A transposed convolution that doubles H and W, BN, ReLU."""
    up = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False)
    return [up, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class _ResidualBlock(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))): (B, C, h, w) -> same shape, h and w at least 2. No ReLU behind the sum."""

    def __init__(self, channels: int):
        super().__init__()
        same = {"padding": 1, "padding_mode": "reflect"}
        self.layers = nn.Sequential(
            *_conv_bn(channels, channels, 3, **same),
            nn.ReLU(inplace=True),
            *_conv_bn(channels, channels, 3, **same),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PerturbationNetwork(nn.Module):
    """P: images (B, 3, H, W) -> (B, 3, H, W) in [-1, 1], float32; H and W multiples of 4, at least 8.

    Args:
        width: channels w of the first layer; 2w and 4w follow. The cost goes with its square.
        blocks: residual blocks, all at 4w channels and a quarter of H and W.
    """

    def __init__(self, width: int = 64, blocks: int = 6):
        super().__init__()
        self.config = {"width": width, "blocks": blocks}
        w = width
        self.layers = nn.Sequential(
            *_conv_bn(3, w, 7, padding=3, padding_mode="reflect"),
            nn.ReLU(inplace=True),
            *_conv_bn(w, 2 * w, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            *_conv_bn(2 * w, 4 * w, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            *(_ResidualBlock(4 * w) for _ in range(blocks)),
            *_up(4 * w, 2 * w),
            *_up(2 * w, w),
            nn.Conv2d(w, 3, 7, padding=3, padding_mode="reflect"),
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).float().tanh()


def _initialise(module: nn.Module) -> None:
    """Conv weights N(0, 0.02), BN weights N(1, 0.02), biases 0 (standard deviations)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
