"""A network that carries its own input format: pixels in, logits out, whatever it was trained on.

logits = S(x),   x (B, C, H, W) in [0, 1] -> resized to S's size -> (x - S's mean) / S's std -> (B, classes)
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError


class _ExactLinear(nn.Linear):
    """In its weight's precision also under autocast: bf16 logits tie, and argmax then takes the lower class."""

    def forward(self, input: Tensor) -> Tensor:  # named as nn.Linear's: some call it by keyword
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class Classifier(nn.Module):
    """Pixels (B, C, H, W) in [0, 1] -> logits (B, num_classes), in fp32.

    State dicts are those of the network inside, so files stay those of the architecture.

    Args:
        network: takes normalised images of its own size. Its last linear layer is computed in fp32 from now on.
        name: what it is to the user.
        num_classes, img_size, mean, std: what it was, or is to be, trained on; mean and std a value a channel.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        num_classes: int,
        img_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        self.network, self.name, self.num_classes, self.img_size = network, name, num_classes, img_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        if type(self.head) is nn.Linear:
            self.head.__class__ = _ExactLinear

    @property
    def head(self) -> nn.Linear | None:
        """The last linear layer in the order of ``modules()``."""
        return next((m for m in reversed(list(self.network.modules())) if isinstance(m, nn.Linear)), None)

    @property
    def norm_layers(self) -> list[nn.Module]:
        """Those that remember statistics of what they were trained on."""
        return [m for m in self.network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]

    def normalise(self, x: Tensor) -> Tensor:
        """What the network takes, of pixels: its size, its mean and standard deviation, channels-last memory."""
        if x.shape[-2:] != (self.img_size, self.img_size):
            x = F.interpolate(x, (self.img_size, self.img_size), mode="bilinear", antialias=True)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.normalise(x)).float()

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes) and what the last linear layer reads (B, width), both with their gradients.

        Raises:
            UserError: the network has no linear layer, or its forward does not call the last one.
        """
        read: list[Tensor] = []
        head = self.head
        if head is None:
            raise UserError(f"{self.name} has no nn.Linear", "give a classifier whose last layer is an nn.Linear")

        def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
            read.append(args[0] if args else kwargs["input"])

        hook = head.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            logits = self(x)
        finally:
            hook.remove()
        if not read:
            what = f"the forward of {self.name} does not call its last nn.Linear"
            raise UserError(what, "let the layer that gives the logits be the last nn.Linear of the model")
        return logits, read[-1]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return self.network.load_state_dict(state, *args, **kwargs)
