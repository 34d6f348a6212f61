"""What calls of PyTorch do, counted as they are made, on whatever device: operations, what they move, what is kept.

With B images a + b * B: counted with FEW and with MORE, and told of any number.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from floors import Measure, flops
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FEW, MORE = 2, 3  # images


@dataclass(frozen=True)
class Counts:
    """What calls do.

    Attributes:
        flops: floating-point operations, as floors.flops counts them.
        moved: bytes that operations read and write where each is run by itself, as eager PyTorch does.
        started: operations that read or write anything, likewise.
        saved: bytes kept for the way back, weights apart.
    """

    flops: float
    moved: float
    started: float
    saved: float

    def each(self, times: int) -> "Counts":
        """Of one of so many."""
        return Counts(*(value / times for value in vars(self).values()))


@dataclass(frozen=True)
class Line:
    """Counts with FEW and with MORE images: what does not grow with the batch, and what each image adds."""

    few: Counts
    more: Counts

    def at(self, images: float) -> Counts:
        """With so many."""
        pairs = zip(vars(self.few).values(), vars(self.more).values(), strict=True)
        return Counts(*(few + (more - few) * (images - FEW) / (MORE - FEW) for few, more in pairs))


def counted(measure: Measure, networks: Iterable[nn.Module] = ()) -> Counts:
    """Of one call, the weights and statistics of ``networks`` not counted as saved."""
    saved = Saved(networks)
    with Moved() as moved, saved:
        operations = flops(measure)
    return Counts(operations, moved.bytes, moved.operations, saved.bytes)


class Moved(TorchDispatchMode):
    """What operations read and write, nothing being fused or cached, and how many do; a view moves nothing."""

    bytes = operations = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        given, made = tensors((args, kwargs)), tensors(result)
        if operator._schema.is_mutable or places(made) - places(given):
            self.operations += 1
            self.bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in (*given, *made))
        return result


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps for backward passes, each memory once, that of ``networks`` not at all."""

    def __init__(self, networks: Iterable[nn.Module]):
        super().__init__(self._keep, lambda x: x)
        self._of_networks = places([x for network in networks for x in of_network(network)])
        self._kept: dict[int, torch.UntypedStorage] = {}  # held, so that no other takes the place of one

    def _keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self._of_networks:
            self._kept[storage.data_ptr()] = storage
        return x

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())


def tensors(tree: Any) -> list[Tensor]:
    """In lists and dictionaries of whatever depth."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def of_network(network: nn.Module) -> list[Tensor]:
    """Weights and statistics."""
    return [*network.parameters(), *network.buffers()]


def places(found: Iterable[Tensor]) -> set[int]:
    """In memory."""
    return {x.untyped_storage().data_ptr() for x in found}


def size(*trees: Any) -> int:
    """Bytes of all tensors there; of a network, its weights and statistics."""
    return sum(x.nbytes for tree in trees for x in (of_network(tree) if isinstance(tree, nn.Module) else tensors(tree)))
