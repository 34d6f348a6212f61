"""Three-stage residual networks for small images: resnet8 to resnet110, and the four times wider x4."""

import torch.nn.functional as F
from torch import Tensor, nn


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock

    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    first = BasicBlock(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


class CifarResNet(nn.Module):
    """(B, 3, H, W) -> (B, num_classes), with widths[3] features.

    The CIFAR network of "Deep Residual Learning for Image Recognition" (He, Zhang, Ren and Sun, 2015): a 3x3 stem,
    three stages of (depth - 2) / 6 basic blocks with strides 1, 2, 2, then an average pool. The x4 widths are those of
    "Contrastive Representation Distillation" (Tian, Krishnan and Isola, 2019).

    Differs from the paper, as the published checkpoints do: where the shape changes, the shortcut is a 1x1 conv with BN
    rather than subsampling with zeros for the new channels. The pool is global: at 32x32 that is the usual 8x8.

    Args:
        depth: number of layers, shortcuts not counted; 2 + a multiple of 6.
        widths: channels of the stem and of the three stages.
        num_classes: number of logits.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"the depth of a CifarResNet is 6n + 2 with n >= 1, not {depth}")
        stem, w1, w2, w3 = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, w1, blocks, stride=1)
        self.layer2 = _stage(w1, w2, blocks, stride=2)
        self.layer3 = _stage(w2, w3, blocks, stride=2)
        self.fc = nn.Linear(w3, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, 3, H, W) -> (B, stem, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # -> (B, w3, H/4, W/4)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # -> (B, w3) -> (B, num_classes)
