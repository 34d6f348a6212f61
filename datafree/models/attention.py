"""Listens to what a teacher's attention layers give."""

from collections.abc import Collection
from math import isqrt
from typing import Any

from torch import Tensor, nn

from ..losses.priors import patch_diversity_loss, patch_similarity
from .classifier import Classifier
from .listening import Listener

MOST_TOKENS = 256  # of a layer that are compared with each other; chosen by us
MOST_EXTRA = 16  # tokens before the patches, of class, distillation, registers; chosen by us


def attention_layers(network: nn.Module) -> list[nn.Module]:
    """Its outermost layers of self-attention, known by their class's name."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in network.modules():  # a parent comes before its children
        if (
            module not in inside
            and "attention" in type(module).__name__.lower()
            and any(True for _ in module.children())
        ):
            found.append(module)
            inside.update(module.modules())
    return found


class PatchDiversity(Listener):
    """Of a teacher's batch, while asked to listen."""

    def __init__(self, teacher: Classifier):
        super().__init__(teacher)
        self.layers = attention_layers(teacher.network)
        self._heard: list[Tensor] = []
        self._maps: list[int] = []  # pixels of those that convolutions have made: of the patches, for one
        self._add([layer.register_forward_hook(self._hear) for layer in self.layers])
        convolutions = [m for m in teacher.network.modules() if isinstance(m, nn.Conv2d)] if self.layers else []
        self._add([layer.register_forward_hook(self._see) for layer in convolutions])

    def _see(self, layer: nn.Module, args: tuple, answer: Tensor) -> None:
        if self._listening:
            self._maps.append(answer.shape[-2] * answer.shape[-1])

    def _hear(self, layer: nn.Module, args: tuple, answer: Any) -> None:
        tokens = answer[0] if isinstance(answer, tuple | list) else answer
        if self._listening and isinstance(tokens, Tensor) and _holds_tokens(layer, tokens):
            with self.apart():
                self._heard.append(patch_similarity(patches(tokens, self._maps)))

    def forget(self) -> None:
        self._heard.clear()
        self._maps.clear()

    def loss(self) -> Tensor:
        """L_patch of the batch last heard."""
        return patch_diversity_loss(self._heard)

    @property
    def heard(self) -> bool:
        """Whether any layer gave tokens in the last forward pass."""
        return bool(self._heard)


def _holds_tokens(layer: nn.Module, answer: Tensor) -> bool:
    """Whether it is (B, N, width), or (B, H, W, width) of linear layers and not a map of convolutions."""
    linear = any(isinstance(module, nn.Linear) for module in layer.modules())
    return answer.shape[1] > 1 and (answer.ndim == 3 or (answer.ndim == 4 and linear))


def patches(tokens: Tensor, maps: Collection[int] = ()) -> Tensor:
    """Tokens that stand for patches: (B, N, width) with others before them, or (B, H, W, width) -> (B, n, width).

    Args:
        tokens: of a layer.
        maps: pixels of the maps that the patches may be of. Where there are as many tokens and a few more, these are
            the first; else one more than a square, which is the class token.
    """
    lone = tokens.ndim == 3
    tokens = tokens.flatten(1, -2)
    count = tokens.shape[1]
    of_map = max([0, *(n for n in maps if 0 <= count - n <= MOST_EXTRA)])
    if lone and of_map > 1:
        tokens = tokens[:, count - of_map :]
    elif lone and count > 2 and isqrt(count - 1) ** 2 == count - 1:
        tokens = tokens[:, 1:]
    return tokens[:, :: -(-tokens.shape[1] // MOST_TOKENS)]
