"""What methods that invert a teacher share: the best of K, meta gradients, statistics of a generator."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


class Best:
    """The images of the lowest loss so far, and what goes with them; nothing is read from the device."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def keep(self, images: Tensor, loss: Tensor, *beside: Tensor) -> None:
        """Takes (B, C, H, W), and tensors beside it, if its loss, a scalar, is lower than any before."""
        new = [each.detach() for each in (loss, images, *beside)]
        old = self._kept or new
        better = new[0] < old[0]
        self._kept = [torch.where(better, *pair) for pair in zip(new, old, strict=True)]

    @property
    def loss(self) -> Tensor:
        return self._kept[0]

    @property
    def images(self) -> Tensor:
        return self._kept[1]

    @property
    def beside(self) -> list[Tensor]:
        return self._kept[2:]


# A meta step turns what the inner loop found into theta's gradient. Each is (theta, theta', summed gradients).
def fomaml_gradient(theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]) -> list[Tensor]:
    """First-order MAML (Finn et al. 2017): the sum of the gradients met along the inner loop."""
    return summed


def reptile_gradient(theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]) -> list[Tensor]:
    """Reptile (Nichol et al. 2018): from where the inner loop ended to where it started."""
    return torch._foreach_sub(theta, adapted)


META_GRADIENTS = {"fomaml": fomaml_gradient, "reptile": reptile_gradient, "none": None}


@torch.no_grad()
def meta_step(
    kind: str, optimizer: torch.optim.Optimizer, theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]
) -> None:
    """theta <- the optimiser's step on the meta gradient; "none": theta <- theta'."""
    meta_gradient = META_GRADIENTS[kind]
    if meta_gradient is None:
        torch._foreach_copy_(theta, adapted)
        return
    for parameter, gradient in zip(theta, meta_gradient(theta, adapted, summed), strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def recalibrate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Sets the running statistics of its BN layers to their means over these batches, its weights as they are.

    A meta-learnt generator never runs forward itself, only its copies do: without this, its statistics are others'.
    """
    update_bn(inputs, network)
