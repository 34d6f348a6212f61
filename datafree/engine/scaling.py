"""Loss scaling (Micikevicius et al. 2018): fp16 rounds small gradients to 0, so those of s times the loss are found.

g <- grad(s * loss) / s,    s = 65536 at first
an overflow in any g (infinite or NaN):    s <- s / 2, and the step is not made
none in 2000 steps:                        s <- 2 s
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from .. import processes
from .device import Compute


class Scaler(torch.amp.GradScaler):
    """PyTorch's, for whoever steps with it; and :meth:`unscale` for gradients that others step with.

    One for all backward passes of a run. In fp32 and bf16 it does nothing.
    """

    def __init__(self, compute: Compute):
        super().__init__(compute.device.type, enabled=compute.scales)

    def tensors(self) -> list[Tensor]:
        """What :meth:`update` changes, once a loss was scaled."""
        return [self._scale, self._growth_tracker] if self.is_enabled() else []

    @torch.no_grad()
    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Divides gradients, left by a scaled loss, by the scale; after an overflow in any process they are all 0.

        They are 0, and the step is not skipped, since a method steps with optimisers of its own and adds gradients up,
        and asking whether there was an overflow would wait for the GPU. So Adam's momentum goes on in that step.
        """
        if not self.is_enabled():
            return
        owner = SimpleNamespace(param_groups=[{"params": parameters}])  # all of an optimiser that it looks at
        self.unscale_(owner)
        (overflow,) = self._found_inf_per_device(owner).values()  # 0 or 1, which update() reads
        processes.total(overflow)  # noise is of one process alone
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(overflow > 0, 0)
        self.update()
