"""LeNet-5 for grey images of 32x32 pixels, as data-free distillation on MNIST takes it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5(nn.Module):
    """(B, 1, 32, 32) -> (B, num_classes), with widths[3] features.

    "Gradient-Based Learning Applied to Document Recognition" (LeCun et al., 1998) in the form of DAFL (Chen et al.,
    2019): three 5x5 convolutions, the third of which sees all that is left, and two linear layers. The names of the
    weights are DAFL's and DFAD's.

    Differs from the paper: ReLU and max-pool; every map of the second convolution reads all of the first; a linear
    layer gives the logits.

    Args:
        widths: channels of the three convolutions, and of the first linear layer.
        num_classes: number of logits.
        batch_norm: BatchNorm behind each convolution, for methods that ask for its statistics; not published.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, batch_norm: bool = False):
        super().__init__()
        w1, w2, w3, w4 = widths
        norm = nn.BatchNorm2d if batch_norm else lambda channels: nn.Identity()
        self.conv1, self.bn1 = nn.Conv2d(1, w1, 5), norm(w1)
        self.conv2, self.bn2 = nn.Conv2d(w1, w2, 5), norm(w2)
        self.conv3, self.bn3 = nn.Conv2d(w2, w3, 5), norm(w3)
        self.fc1, self.fc2 = nn.Linear(w3, w4), nn.Linear(w4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)  # (B, 1, 32, 32) -> (B, w1, 14, 14)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)  # -> (B, w2, 5, 5)
        x = F.relu(self.bn3(self.conv3(x))).flatten(1)  # -> (B, w3)
        return self.fc2(F.relu(self.fc1(x)))  # -> (B, w4) -> (B, num_classes)
