"""Listens to what a teacher's head reads: its last features."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .classifier import Classifier


class HeadInput:
    """Of a teacher's batch, while asked to listen; its forward is not changed.

    The same features as of ``Classifier.features``, whose hook comes and goes with each call: one that stays lets the
    teacher be compiled once.

    Attributes:
        features: (B, ...) of the forward pass last heard, with their gradient; None where the head was not called, or
            there is none.
    """

    def __init__(self, teacher: Classifier):
        self.features: Tensor | None = None
        self._listening = False
        self._hooks = []
        if teacher.head is not None:
            self._hooks = [teacher.head.register_forward_pre_hook(self._hear, with_kwargs=True)]

    def _hear(self, head: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if self._listening:
            self.features = args[0] if args else kwargs["input"]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the teacher's forward passes leave their features here; outside they cost nothing."""
        self.features, self._listening = None, True
        try:
            yield
        finally:
            self._listening = False

    def remove(self) -> None:
        """Takes the hook off the teacher."""
        for hook in self._hooks:
            hook.remove()
