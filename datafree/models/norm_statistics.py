"""Listens to the inputs of a teacher's BatchNorm layers, and turns them into L_bn.

blend = (1 - bn_mmt) * of this batch + bn_mmt * running average over rounds      (no average yet: this batch)
L_bn  = losses.batchnorm.bn_loss(blend, what the layers remember)                   or another distance
once a round: running average <- the blend of the round's last batch
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..losses.batchnorm import bn_loss, channel_moments, concatenated
from .classifier import Classifier


class NormStatistics:
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
        self.layers, self.momentum, self.distance = teacher.norm_layers, momentum, distance
        self.average: Tensor | None = None  # means, then variances, of all layers
        self._moments: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._blend: Tensor | None = None
        self._listening = False
        self._running: dict[tuple[nn.Module, ...], tuple[Tensor, Tensor]] = {}
        self._hooks = [layer.register_forward_pre_hook(self._hear, with_kwargs=True) for layer in self.layers]
        self._nothing = torch.zeros((), device=teacher.mean.device)

    def _hear(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if self._listening:
            self._moments[layer] = channel_moments(args[0] if args else kwargs["input"])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the teacher's forward passes leave their statistics here; outside they cost nothing."""
        self._moments.clear()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    @property
    def heard(self) -> bool:
        """Whether the last forward pass went through any of the layers."""
        return bool(self._moments)

    def remove(self) -> None:
        """Takes the hooks off the teacher."""
        for hook in self._hooks:
            hook.remove()

    def loss(self) -> Tensor:
        """L_bn of the batch last heard; zero for a teacher without BN layers."""
        if not self._moments:
            return self._nothing
        layers, (means, variances) = tuple(self._moments), zip(*self._moments.values(), strict=True)
        batch = concatenated(means, variances)
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
        self._moments.clear()

    def state_dict(self) -> dict[str, Tensor | None]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        average = state["average"]
        self.average = None if average is None else average.to(self._nothing.device)
