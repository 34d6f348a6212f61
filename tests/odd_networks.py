"""Networks that are right, and that a simple tool would not bear: what users hold."""

import torch
import torch.nn.functional as F
from conftest import CLASSES, SIZE
from torch import nn
from torch.utils.checkpoint import checkpoint


class Body(nn.Module):
    """Convolution, a norm, a linear head."""

    def __init__(self, norm=None):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

    def middle(self, x):
        return self.norm(self.conv(x))

    def forward(self, x):
        return self.fc(self.middle(x).relu().mean((2, 3)))


class ExtraState(Body):
    def get_extra_state(self):
        return {"seen": [1]}

    def set_extra_state(self, state):
        assert state == {"seen": [1]}


class Masked(Body):
    """With -inf in a buffer, as the masks of attention have it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4,), -torch.inf).masked_fill(torch.arange(4) < 3, 0))

    def forward(self, x):
        return self.fc((self.middle(x).relu().mean((2, 3)) + self.mask).softmax(1))


class Fourier(Body):
    """With a filter of complex numbers."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.ones(4, SIZE - 2, SIZE // 2, dtype=torch.complex64))

    def middle(self, x):
        x = super().middle(x)
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[-2:])


class AlwaysDrops(Body):
    def middle(self, x):
        return F.dropout(super().middle(x))


class DoubleInside(Body):
    """Works in float64 for a while, beside weights in fp32."""

    def __init__(self):
        super().__init__()
        self.register_buffer("colours", torch.eye(3, dtype=torch.float64))

    def forward(self, x):
        return super().forward(torch.einsum("bchw,cd->bdhw", x.double(), self.colours).float())


class SilentModes(Body):
    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(4, CLASSES)

    def train(self, mode=True):
        super().train(mode)

    def eval(self):
        super().eval()

    def forward(self, x):
        h = self.middle(x).relu().mean((2, 3))
        return (self.fc(h), self.aux(h)) if self.training else self.fc(h)


class Checkpointed(Body):
    def middle(self, x):
        return checkpoint(super().middle, x, use_reentrant=False)
