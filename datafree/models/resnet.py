"""Four-stage residual networks, 64 to 512 channels, with a stem for small images: resnet18, resnet34, resnet50."""

import torch.nn.functional as F
from torch import Tensor, nn


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The identity where the shape stays, else a 1x1 conv with BN."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """(B, in_channels, H, W) -> (B, channels, H/stride, W/stride): two 3x3 convs and a shortcut (He et al., 2015)."""

    expansion = 1  # output channels per inner channel

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """(B, in_channels, H, W) -> (B, 4 * channels, H/stride, W/stride): 1x1, 3x3, 1x1 convs around a shortcut.

    From He et al. (2015). Differs: the stride is on the 3x3 conv, not on the first 1x1.
    """

    expansion = 4  # output channels per inner channel

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """(B, 3, H, W) -> (B, num_classes), with 512 * block.expansion features.

    The ImageNet layout of "Deep Residual Learning for Image Recognition" (He, Zhang, Ren and Sun, 2015) in the form
    that kuangliu's pytorch-cifar made common: four stages of 64, 128, 256, 512 channels with strides 1, 2, 2, 2.

    Differs from the paper: the stem is a 3x3 conv of stride 1 without max-pool; weights start from PyTorch's defaults,
    as in the published code. The pool is global: at 32x32 that is the usual 4x4.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks in each of the four stages.
        num_classes: number of logits.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, int, int, int], num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(block, 64, 64, layers[0], stride=1)
        self.layer2 = self._stage(block, 64 * block.expansion, 128, layers[1], stride=2)
        self.layer3 = self._stage(block, 128 * block.expansion, 256, layers[2], stride=2)
        self.layer4 = self._stage(block, 256 * block.expansion, 512, layers[3], stride=2)
        self.linear = nn.Linear(512 * block.expansion, num_classes)

    @staticmethod
    def _stage(
        block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, blocks: int, stride: int
    ) -> nn.Sequential:
        rest = (block(channels * block.expansion, channels, 1) for _ in range(blocks - 1))
        return nn.Sequential(block(in_channels, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, 3, H, W) -> (B, 64, H, W)
        x = self.layer2(self.layer1(x))  # -> (B, 128 * expansion, H/2, W/2)
        x = self.layer4(self.layer3(x))  # -> (B, 512 * expansion, H/8, W/8)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))  # -> (B, features) -> (B, num_classes)
