"""ShuffleNet V2 for small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _pointwise(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def _join(first: Tensor, second: Tensor) -> Tensor:
    """Puts two branches together and shuffles them, so that each half of the result holds channels of both."""
    return F.channel_shuffle(torch.cat([first, second], dim=1), 2)


class _BasicBlock(nn.Module):
    """One half of the channels passes as it is, the other through 1x1, depthwise 3x3, 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _pointwise(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise(half, stride=1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)), inplace=True)
        return _join(kept, out)


class _DownBlock(nn.Module):
    """Two branches of stride 2 read all channels: depthwise 3x3, 1x1 and 1x1, depthwise 3x3, 1x1."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _depthwise(in_channels, stride=2), nn.BatchNorm2d(in_channels)
        self.conv2, self.bn2 = _pointwise(in_channels, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(in_channels, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise(half, stride=2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return _join(left, right)


def _stage(in_channels: int, channels: int, basic_blocks: int) -> nn.Sequential:
    return nn.Sequential(_DownBlock(in_channels, channels), *(_BasicBlock(channels) for _ in range(basic_blocks)))


class ShuffleNetV2(nn.Module):
    """(B, 3, H, W) -> (B, num_classes), with last_width features.

    "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (Ma, Zhang, Zheng and Sun, 2018), in the
    form for 32x32 of kuangliu's pytorch-cifar and "Contrastive Representation Distillation" (Tian, Krishnan and Isola,
    2019): three stages, each of one block of stride 2 and some basic blocks.

    Differs from the paper: the stem is a 1x1 conv of stride 1 without max-pool; weights start from PyTorch's defaults,
    as in the published code. The pool is global: at 32x32 that is the usual 4x4.

    Args:
        widths: channels of the three stages; even numbers.
        last_width: channels of the 1x1 conv after the stages.
        blocks: basic blocks in each stage, the one of stride 2 not counted.
        num_classes: number of logits.
    """

    def __init__(self, widths: tuple[int, int, int], last_width: int, blocks: tuple[int, int, int], num_classes: int):
        super().__init__()
        w1, w2, w3 = widths
        self.conv1, self.bn1 = _pointwise(3, 24), nn.BatchNorm2d(24)
        self.layer1 = _stage(24, w1, blocks[0])
        self.layer2 = _stage(w1, w2, blocks[1])
        self.layer3 = _stage(w2, w3, blocks[2])
        self.conv2, self.bn2 = _pointwise(w3, last_width), nn.BatchNorm2d(last_width)
        self.linear = nn.Linear(last_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, 3, H, W) -> (B, 24, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # -> (B, w3, H/8, W/8)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)  # -> (B, last_width, H/8, W/8)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))  # -> (B, last_width) -> (B, num_classes)
