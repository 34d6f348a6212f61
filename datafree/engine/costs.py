"""What a run spends besides time: images through each network, forward and backward, counted as they go.

A pass is one image through a network, one way. The passes of the teacher, both ways, are what synthesis and
distillation of different methods can be compared by, whatever the machine.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .. import processes

MADE = "images_made"


class Costs:
    """A tally that whoever knows the purpose takes away from time to time.

    Names: ``<network>_forward`` and ``<network>_backward`` for teacher, student, generator and whatever else is run;
    ``images_made``. Of several processes each counts for all: they do the same.
    """

    def __init__(self) -> None:
        self.open: defaultdict[str, int] = defaultdict(int)

    def count(self, role: str, network: nn.Module, x: Tensor) -> None:
        """A forward pass of x (B, ...), and the backward pass that follows where anything in it wants a gradient."""
        images = len(x) * processes.size()
        self.open[f"{role}_forward"] += images
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in network.parameters())):
            self.open[f"{role}_backward"] += images

    def made(self, images: int) -> None:
        """Images that the student may learn from."""
        self.open[MADE] += images * processes.size()

    def add(self, counts: Mapping[str, int]) -> None:
        """So much more, as :meth:`take` gave it."""
        for name, count in counts.items():
            self.open[name] += count

    def take(self) -> dict[str, int]:
        """What was counted since the last call, by name."""
        counts, self.open = dict(self.open), defaultdict(int)
        return counts


def passes(counts: Mapping[str, int], network: str = "teacher") -> int:
    """Images through a network, forward and backward, of what :meth:`Costs.take` gave."""
    return counts.get(f"{network}_forward", 0) + counts.get(f"{network}_backward", 0)
