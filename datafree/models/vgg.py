"""VGG networks with batch normalisation for small images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def _block(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    """3x3 conv, BN, ReLU for each width; the last ReLU is left to the caller, as in the published checkpoints."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        in_channels = width
    return nn.Sequential(*layers[:-1])


class VGG(nn.Module):
    """(B, 3, H, W) -> (B, num_classes), with widths[-1][-1] features.

    "Very Deep Convolutional Networks for Large-Scale Image Recognition" (Simonyan and Zisserman, 2014), in the small
    form of "Contrastive Representation Distillation" (Tian, Krishnan and Isola, 2019): five blocks of 3x3 convs.

    Differs from the paper: BN after every conv; one linear layer in place of three and no dropout; max-pool after
    blocks 0, 1, 2 only (and 3 where the input is 64 high), then a global average pool.

    Args:
        widths: channels of each conv, for each of the five blocks.
        num_classes: number of logits.
    """

    def __init__(self, widths: Sequence[Sequence[int]], num_classes: int):
        super().__init__()
        if len(widths) != 5:
            raise ValueError(f"a VGG has five blocks, not {len(widths)}")
        in_widths = (3, *(block[-1] for block in widths))
        self.block0, self.block1, self.block2, self.block3, self.block4 = map(_block, in_widths, widths)
        self.classifier = nn.Linear(in_widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[-2]
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(F.relu(block(x), inplace=True), 2)  # halves H and W
        x = F.relu(self.block3(x), inplace=True)
        if height == 64:
            x = F.max_pool2d(x, 2)
        x = F.relu(self.block4(x), inplace=True)  # (B, 512, 4, 4) for 32x32 and for 64x64
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))  # -> (B, 512) -> (B, num_classes)
