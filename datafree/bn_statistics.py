"""What a batch looks like to the teacher's BatchNorm layers, against what they remember of real data.

mu_l, var_l = mean and biased variance of layer l's input over batch and positions, in fp32
blend       = (1 - bn_mmt) * of this batch + bn_mmt * running average over rounds      (no average yet: this batch)
L_bn        = sum_l ||mu_l - mu^_l|| + ||var_l - var^_l||                              (losses.bn_loss)
once a round: running average <- the blend of the round's last batch
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .losses import bn_loss


class _ChannelMoments(torch.autograd.Function):
    """(B, C, ...) in any precision -> mean (C,), biased variance (C,) in fp32, without an fp32 copy of the input."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        # The kernel behind training-mode batch norm. The fp32 running statistics, which momentum 0 leaves as they are,
        # make it return fp32 for a bf16 input; without them it would round its fp32 sums to bf16.
        dtype = torch.promote_types(x.dtype, torch.float32)
        unused = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        # dL/dx = grad_mean/n + (x - mean) * 2*grad_variance/n: an affine map a channel, which is what batch_norm is.
        x, mean = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        return F.batch_norm(x, mean, torch.ones_like(mean), 2 * grad_variance / n, grad_mean / n, False, 0.0, 0.0)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all dimensions but the second: (B, C, ...) -> (C,), (C,). Differentiable."""
    return _ChannelMoments.apply(x)


class BNStatistics:
    """Listens to the inputs of a teacher's BN layers while asked to, and turns them into L_bn.

    Args:
        teacher: the network; its forward is not changed.
        momentum: bn_mmt in [0, 1), the weight on the average over rounds. 0 compares each batch alone.
    """

    def __init__(self, teacher: nn.Module, momentum: float):
        self.layers = [module for module in teacher.modules() if _has_statistics(module)]
        self.momentum = momentum
        self.average: list[Tensor] | None = None  # means, then variances
        self._batch: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._listening = False
        self._hooks = [layer.register_forward_pre_hook(self._hear) for layer in self.layers]

    def _hear(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._listening:
            self._batch[layer] = channel_moments(inputs[0])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the teacher's forward passes leave their statistics here; outside they cost nothing."""
        self._batch.clear()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    def remove(self) -> None:
        """Takes the hooks off the teacher."""
        for hook in self._hooks:
            hook.remove()

    def _blend(self) -> list[Tensor]:
        """Means then variances of the last batch, blended with the average over rounds."""
        heard = list(self._batch.values())
        batch = [mean for mean, _ in heard] + [variance for _, variance in heard]
        if self.average is None:
            return batch
        return [(1 - self.momentum) * now + self.momentum * past for now, past in zip(batch, self.average, strict=True)]

    def loss(self) -> Tensor:
        """L_bn of the batch last heard; zero for a teacher without BN layers."""
        if not self._batch:
            return torch.zeros(())
        blend, layers = self._blend(), list(self._batch)
        kept = [layer.running_mean for layer in layers], [layer.running_var for layer in layers]
        return bn_loss(blend[: len(layers)], blend[len(layers) :], *kept)

    def update_average(self) -> None:
        """Takes the last batch into the average: once a round."""
        if self._batch:
            self.average = [value.detach().clone() for value in self._blend()]
        self._batch.clear()

    def state_dict(self) -> dict[str, list[Tensor] | None]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, list[Tensor] | None]) -> None:
        average = state["average"]
        self.average = None if average is None else [value.to(self.layers[0].running_mean) for value in average]


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
