"""Listens to the inputs of BatchNorm layers, and turns them into L_bn, or into features of images.

blend = (1 - bn_mmt) * of this batch + bn_mmt * running average over rounds      (no average yet: this batch)
L_bn  = losses.batchnorm.bn_loss(blend, what the layers remember)                   or another distance
once a round: running average <- the blend of the round's last batch
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import processes
from ..losses.batchnorm import bn_loss, channel_moments, concatenated
from .classifier import Classifier
from .listening import Listener


class NormInputs(Listener):
    """What is kept of the inputs of a classifier's BatchNorm layers, while asked to listen."""

    def __init__(self, classifier: Classifier):
        super().__init__(classifier)
        self.layers = classifier.norm_layers
        self._heard: dict[nn.Module, Any] = {}  # in the order of the forward pass
        self._add([layer.register_forward_pre_hook(self._hear, with_kwargs=True) for layer in self.layers])

    @abstractmethod
    def kept(self, x: Tensor) -> Any:
        """Of a layer's input (B, C, ...)."""

    def _hear(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if self._listening:
            with self.apart():
                self._heard[layer] = self.kept(args[0] if args else kwargs["input"])

    def forget(self) -> None:
        self._heard.clear()

    @property
    def heard(self) -> bool:
        """Whether the last forward pass went through any of the layers."""
        return bool(self._heard)


class SpatialMeans(NormInputs):
    """Features of images: the mean of each channel over positions, at every BatchNorm layer (CMI, Fang et al. 2021).

    Args:
        teacher: see NormInputs.
        stages: whether of all layers that work at one resolution only the last one counts.
    """

    def __init__(self, teacher: Classifier, stages: bool = False):
        super().__init__(teacher)
        self.stages = stages

    def kept(self, x: Tensor) -> tuple[tuple[int, ...], Tensor]:
        return tuple(x.shape[2:]), x.flatten(2).mean(2, dtype=torch.float32) if x.ndim > 2 else x.float()

    def features(self) -> Tensor:
        """Of the batch last heard: (B, width), fp32, the layers side by side, with its gradient."""
        heard = dict(self._heard.values()).values() if self.stages else (mean for _, mean in self._heard.values())
        return torch.cat([*heard], dim=1)


class NormStatistics(NormInputs):
    """Of a teacher's batch, while asked to listen.

    Args:
        teacher: its forward is not changed.
        momentum: bn_mmt in [0, 1), the weight on the average over rounds. 0 compares each batch alone.
        distance: ``losses.batchnorm.bn_loss``, or what takes the same arguments.
    """

    def __init__(
        self,
        teacher: Classifier,
        momentum: float,
        distance: Callable[[Tensor, Tensor, Tensor], Tensor] = bn_loss,
    ):
        super().__init__(teacher)
        self.momentum, self.distance = momentum, distance
        self.average: Tensor | None = None  # means, then variances, of all layers
        self._blend: Tensor | None = None
        self._running: dict[tuple[nn.Module, ...], tuple[Tensor, Tensor]] = {}
        self._nothing = torch.zeros((), device=teacher.mean.device)

    def kept(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return channel_moments(x)

    def loss(self) -> Tensor:
        """L_bn of the batch last heard; zero for a teacher without BN layers."""
        if not self._heard:
            return self._nothing
        layers, (means, variances) = tuple(self._heard), zip(*self._heard.values(), strict=True)
        batch = processes.whole_moments(concatenated(means, variances))
        self._blend = batch if self.average is None else torch.lerp(batch, self.average, self.momentum)
        return self.distance(self._blend, *self._remembered(layers))

    def _remembered(self, layers: tuple[nn.Module, ...]) -> tuple[Tensor, Tensor]:
        """Running statistics of the layers in the order they were heard, as one vector, and its segments' lengths."""
        if layers not in self._running:
            kept = concatenated([layer.running_mean for layer in layers], [layer.running_var for layer in layers])
            lengths = torch.tensor(2 * [len(layer.running_mean) for layer in layers], device=kept.device)
            self._running = {layers: (kept, lengths)}
        return self._running[layers]

    def update_average(self) -> None:
        """Takes the last batch whose loss was asked for into the average: once a round."""
        if self._blend is not None:
            self.average, self._blend = self._blend.detach(), None
        self._heard.clear()

    def state_dict(self) -> dict[str, Tensor | None]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        average = state["average"]
        self.average = None if average is None else average.to(self._nothing.device)


def see_most_of(classifier: Classifier, look: Callable[[], Tensor]) -> bool:
    """Whether there is such a layer for at least every second one that works on maps or tokens.

    Only layers count that see several values of a channel in one image: statistics over images alone, as of a
    BatchNorm1d in the head, say nothing of what an image looks like.

    Args:
        look: asks the classifier for its logits of some images (B, classes).
    """
    working, seen = set(), set()
    called: list[tuple[set, nn.Module, Tensor, int]] = []

    def work(layer: nn.Module, args: tuple, output: Tensor) -> None:
        called.append((working, layer, output, layer.weight.shape[0]))

    def see(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        called.append((seen, layer, args[0] if args else kwargs["input"], len(layer.running_mean)))

    layers = [m for m in classifier.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(work) for layer in layers]
    hooks += [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in classifier.norm_layers]
    try:
        images = len(look())
    finally:
        for hook in hooks:
            hook.remove()
    for found, layer, x, channels in called:
        if x.numel() > images * channels:
            found.add(layer)
    return bool(seen) and 2 * len(seen) >= len(working)
