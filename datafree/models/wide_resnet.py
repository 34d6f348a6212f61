"""Wide residual networks for small images."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two rounds of BN, ReLU, 3x3 conv, plus a shortcut. Where the width changes, the shortcut is a 1x1 conv that
    reads what the first BN and ReLU made of the input, else it is the input itself."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # The published checkpoints spell it so.
        self.convShortcut = None if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        return shortcut + self.conv2(out)  # not in place: x is the input of bn1, which hooks may keep


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Module:
    layer = nn.Sequential(
        _Block(in_channels, channels, stride), *(_Block(channels, channels, 1) for _ in range(blocks - 1))
    )
    return nn.Sequential(OrderedDict(layer=layer))


class WideResNet(nn.Module):
    """(B, 3, H, W) -> (B, num_classes), with 64 * widen_factor features.

    WRN-depth-widen_factor of "Wide Residual Networks" (Zagoruyko and Komodakis, 2016): a 3x3 stem of 16 channels, three
    stages of (depth - 4) / 6 pre-activation blocks with strides 1, 2, 2, then BN, ReLU, average pool.

    Differs from the paper: no dropout; the pool is global, which at 32x32 is the paper's 8x8 and lets in other sizes.

    Args:
        depth: number of layers; 4 + a multiple of 6.
        widen_factor: width of the stages in multiples of 16, 32, 64.
        num_classes: number of logits.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int):
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"the depth of a WideResNet is 6n + 4 with n >= 1, not {depth}")
        w1, w2, w3 = (base * widen_factor for base in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _stage(16, w1, blocks, stride=1)
        self.block2 = _stage(w1, w2, blocks, stride=2)
        self.block3 = _stage(w2, w3, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(w3)
        self.fc = nn.Linear(w3, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.conv1(x))  # (B, 3, H, W) -> (B, w1, H, W)
        x = self.block3(self.block2(x))  # -> (B, w3, H/4, W/4)
        x = F.relu(self.bn1(x), inplace=True)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # -> (B, w3) -> (B, num_classes)
