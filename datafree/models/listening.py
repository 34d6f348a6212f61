"""What layers of a classifier are given or give, kept while somebody listens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from .classifier import Classifier


def _as_it_was(x: Tensor) -> tuple[Tensor, int]:
    return x, x._version


def _as_it_is(kept: tuple[Tensor, int]) -> Tensor:
    x, version = kept
    if x._version != version:  # as PyTorch says it of what it keeps itself
        raise RuntimeError("what a layer was given or gave has been changed in place, and its gradient needs it")
    return x


class Listener(ABC):
    """Hooks that stay, so that the network is compiled once. Its forward is not changed.

    They go with :meth:`remove`, or when the classifier is released.
    """

    def __init__(self, classifier: Classifier):
        self._classifier, self._listening = classifier, False
        self._hooks: list[RemovableHandle] = []

    def _add(self, hooks: list[RemovableHandle]) -> None:
        self._hooks += hooks
        self._classifier.hooks += hooks

    def apart(self) -> AbstractContextManager:
        """Within, what a hook computes of a layer's tensors keeps by itself what its gradient needs.

        Else a network that recomputes would take it for its own, and miss it on the way back, where nobody listens.
        Compiled code has no use for this.
        """
        needed = self._classifier.recomputes and not torch.compiler.is_compiling()
        return saved_tensors_hooks(_as_it_was, _as_it_is) if needed else nullcontext()

    @abstractmethod
    def forget(self) -> None:
        """What was kept of earlier forward passes."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the classifier's forward passes leave here what is kept of them; outside they cost nothing."""
        self.forget()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    def remove(self) -> None:
        """Takes the hooks off the network."""
        for hook in self._hooks:
            hook.remove()
        self._classifier.hooks = [hook for hook in self._classifier.hooks if hook not in self._hooks]
        self._hooks = []
