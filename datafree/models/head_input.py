"""Listens to what a teacher's head reads: its last features."""

from torch import Tensor, nn

from .classifier import Classifier
from .listening import Listener


class HeadInput(Listener):
    """Of a teacher's batch, while asked to listen.

    Attributes:
        features: (B, ...) of the forward pass last heard, with their gradient; None where the head was not called, or
            there is none.
    """

    def __init__(self, teacher: Classifier):
        super().__init__(teacher)
        self.features: Tensor | None = None
        if teacher.head is not None:
            self._add([teacher.head.register_forward_pre_hook(self._hear, with_kwargs=True)])

    def _hear(self, head: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if self._listening:
            self.features = args[0] if args else kwargs["input"]

    def forget(self) -> None:
        self.features = None
