"""Where a network looks: the last feature map at each resolution, as attention maps."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier
from .listening import Listener

Size = tuple[int, ...]


class StageMaps(Listener):
    """Of a classifier's batch, while asked to listen, at each resolution the last map (B, C, H, W) that it makes there.

        Q = a / |a|,  a = mean over channels of x^2, of all positions side by side                 (B, H * W)

    A map is what a part of the network gives that is a convolution or holds one: in a ResNet or Wide ResNet the outputs
    of its stages (groups), in a VGG those of the last convolutions before its poolings. For attention transfer
    (Zagoruyko and Komodakis 2017), in the form of ZSKT's code.
    """

    def __init__(self, classifier: Classifier):
        super().__init__(classifier)
        self._heard: dict[Size, Tensor] = {}
        parts = [m for m in classifier.network.modules() if any(isinstance(each, nn.Conv2d) for each in m.modules())]
        self._add([part.register_forward_hook(self._hear) for part in parts])

    def _hear(self, part: nn.Module, args: tuple, output: Any) -> None:
        if self._listening and isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:] != (1, 1):
            self._heard[tuple(output.shape[2:])] = output

    def forget(self) -> None:
        self._heard.clear()

    def take(self) -> dict[Size, Tensor]:
        """Q of the batch last heard, by resolution, with its gradient; the maps are let go."""
        maps = {size: F.normalize(x.float().square().mean(1).flatten(1)) for size, x in self._heard.items()}
        self.forget()
        return maps
