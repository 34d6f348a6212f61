"""The reusable generator: two generative networks and a decoder.

    x = d((g1(z) + g2(z)) / 2),    z ~ N(0, I)

g1 and g2 have the same architecture and independent weights; d and one of the two are what the next task reuses.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.specs import Size, pair

# Nearest x2 up-sampling repeats each pixel, so a 3-tap kernel behind it sums neighbouring taps into a 4-tap
# transposed kernel of stride 2: row a holds the taps that reach transposed position a.
_FOLD = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


class UpsampledConv(nn.Conv2d):
    """A 3x3 convolution behind a nearest x2 up-sampling, computed on the small grid.

    Same parameters, same result as ``conv2d(interpolate(x, scale_factor=2), weight, padding=1)`` up to rounding, with
    2.25 times fewer multiplications: it is one transposed convolution with a folded 4x4 kernel.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        self.register_buffer("fold", torch.tensor(_FOLD), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # taps are summed in fp32, and rounded once
            kernel = torch.einsum("ak,bl,oikl->ioab", self.fold, self.fold, self.weight)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)  # (B, I, h, w) -> (B, O, 2h, 2w)


def first_grid(img_size: int | Size) -> tuple[Size, int]:
    """Where a generative network starts: (height and width of its first grid, number of x2 up-samplings).

    Two up-samplings from H/4 as published; above 64 pixels five from H/32, since the first linear layer would have
    103 M parameters at 224 pixels otherwise (the limit of 64 is chosen by us). A size that cannot be halved that often
    is grown to the next that can.
    """
    height, width = pair(img_size)
    upsamplings = 2 if max(height, width) <= 64 else 5
    return (-(-height // 2**upsamplings), -(-width // 2**upsamplings)), upsamplings


class GenerativeNetwork(nn.Module):
    """g: (B, nz) -> images (B, C, H, W) in [0, 1], the middle of a larger image where the size is no round number.

    Layer names follow the released code (``l1.0``, ``conv_blocks.{0,2,3,6,7,9}``), where positions 1 and 5 are the
    up-samplings that :class:`UpsampledConv` has taken in.

    Args:
        nz: length of the noise vector.
        ngf: width; the first layers have ``2 * ngf`` channels, the last ``ngf``.
        img_size: H and W in pixels, or one number for both.
        channels: C.
    """

    kind = "generative_network"  # in the files that hold one
    last: type[nn.Module] = nn.Sigmoid

    def __init__(self, nz: int = 256, ngf: int = 64, img_size: int | Size = 32, channels: int = 3):
        super().__init__()
        self.img_size = pair(img_size)
        self.config = {"nz": nz, "ngf": ngf, "img_size": self.img_size, "channels": channels}
        self.grid, upsamplings = first_grid(img_size)
        self.l1 = nn.Sequential(nn.Linear(nz, 2 * ngf * self.grid[0] * self.grid[1]))
        widths = [2 * ngf] * upsamplings + [ngf]
        layers = OrderedDict({"0": nn.BatchNorm2d(2 * ngf)})
        for i in range(upsamplings):
            layers[str(4 * i + 2)] = UpsampledConv(widths[i], widths[i + 1])
            layers[str(4 * i + 3)] = nn.BatchNorm2d(widths[i + 1])
            layers[str(4 * i + 4)] = nn.LeakyReLU(0.2, inplace=True)
        layers[str(4 * upsamplings + 1)] = nn.Conv2d(ngf, channels, 3, padding=1)
        layers[str(4 * upsamplings + 2)] = self.last()
        self.conv_blocks = nn.Sequential(layers)

    def forward(self, z: Tensor) -> Tensor:
        x = self.l1(z).view(len(z), -1, *self.grid)  # (B, nz) -> (B, 2*ngf, H/4, W/4)
        if self.conv_blocks[1].weight.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        x, (height, width) = self.conv_blocks(x), self.img_size  # -> (B, C, H or more, W or more)
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]  # -> (B, C, H, W)


class ExactSigmoid(nn.Sigmoid):
    """In fp32: bf16 has too few steps between 0.5 and 1 for the 256 levels of a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class ImageGenerator(GenerativeNetwork):
    """A generative network that no decoder follows: what it gives are the images, float32."""

    kind = "generator"
    last = ExactSigmoid


class ExactTanh(nn.Tanh):
    """In fp32, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class StandardisedNetwork(ImageGenerator):
    """g whose images have the data's mean and standard deviation, over batch and pixels, up to the sigmoid's bend.

        x = sigmoid(logit(mean) + std / (mean * (1 - mean)) * n),    n the last convolution's output, normalised

    Images cannot pale, and the sigmoid cannot go blind, whatever the learning rate.

    Args:
        mean, std: of the data, a value a channel; taken as at least 0.1 from black and white, and at most 0.5.
    """

    kind = "standardised generator"

    def __init__(self, *how: Any, mean: Sequence[float], std: Sequence[float]):
        super().__init__(*how)
        *layers, sigmoid = self.conv_blocks.named_children()
        norm = nn.BatchNorm2d(len(mean)).requires_grad_(False)
        self.conv_blocks = nn.Sequential(OrderedDict([*layers, ("standardised", norm), sigmoid]))
        self.take(mean, std)

    @torch.no_grad()
    def take(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Those of other data from now on."""
        norm, mean = self.conv_blocks.standardised, torch.tensor(mean).clamp(0.1, 0.9)
        norm.bias.copy_(mean.logit())
        norm.weight.copy_(torch.tensor(std).clamp(max=0.5) / (mean * (1 - mean)))


class NormalisedNetwork(StandardisedNetwork):
    """g as DAFL, DFAD and DFQ have it: x = mean + std * n, n the tanh of the last convolution, normalised.

    Pixels may leave [0, 1]: the images are for networks, clip them to look at them.
    """

    kind = "normalised generator"

    def __init__(self, *how: Any, **like_data: Sequence[float]):
        super().__init__(*how, **like_data)
        *layers, (_, norm), _ = self.conv_blocks.named_children()
        self.conv_blocks = nn.Sequential(OrderedDict([*layers, ("tanh", ExactTanh()), ("standardised", norm)]))

    @torch.no_grad()
    def take(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.conv_blocks.standardised.bias.copy_(torch.tensor(mean))
        self.conv_blocks.standardised.weight.copy_(torch.tensor(std))


class Decoder(nn.Module):
    """d: images (B, C, H, W) -> images (B, C, H, W) in [0, 1], any H and W (after DenseFuse, Li and Wu 2019)."""

    def __init__(self, channels: int = 3):
        super().__init__()
        layers = OrderedDict()
        for number, (inputs, outputs) in enumerate(((channels, 8), (8, 16), (16, 8)), start=2):
            layers[f"Conv{number}"] = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(inputs, outputs, 3, padding=1),
                    bn=nn.BatchNorm2d(outputs),
                    relu=nn.ReLU(inplace=True),
                )
            )
        layers["Conv5"] = nn.Sequential(OrderedDict(conv=nn.Conv2d(8, channels, 3, padding=1)))
        self.layers = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        # The sigmoid in fp32: bf16 has too few steps between 0.5 and 1 for the 256 levels of a pixel.
        return self.layers(x).float().sigmoid()


class ReusableGenerator(nn.Module):
    """G: noise (B, nz) -> images (B, C, H, W) in [0, 1], float32.

    g1 and g2 may differ in width but not in ``nz`` or image size.
    """

    def __init__(self, g1: GenerativeNetwork, g2: GenerativeNetwork, d: Decoder):
        super().__init__()
        self.g1, self.g2, self.d = g1, g2, d

    def forward(self, z: Tensor) -> Tensor:
        return self.d((self.g1(z) + self.g2(z)) / 2)


@torch.no_grad()
def draw_anew(network: nn.Module, rng: torch.Generator) -> None:
    """First values as PyTorch draws them, from a stream on the network's device.

    Linear layers and convolutions: U(-b, b), b = 1 / sqrt(inputs of an output). BatchNorm: weight 1, bias 0, and no
    statistics.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters(recurse=False):
                parameter.uniform_(-bound, bound, generator=rng)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()


@torch.no_grad()
def draw_as_dcgan(network: nn.Module, rng: torch.Generator) -> None:
    """First values of Radford et al. 2015, from a stream on the network's device: weights ~ N(0, 0.02), biases 0.

    Linear layers and convolutions. BatchNorm: weights ~ N(1, 0.02), biases 0, and no statistics.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            norm = isinstance(module, nn.BatchNorm2d)
            module.weight.normal_(float(norm), 0.02, generator=rng)
            if module.bias is not None:
                module.bias.zero_()
            if norm:
                module.reset_running_stats()
