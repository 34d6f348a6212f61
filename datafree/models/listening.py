"""What layers of a classifier are given or give, kept while somebody listens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle

from .classifier import Classifier


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
