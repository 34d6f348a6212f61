"""What methods that invert a teacher ask of images besides its answers: a list of priors, by what the teacher has.

bn      its BatchNorm layers remember statistics     the images' are to be like them
tv, l2  it has none, or few that see maps            neighbouring pixels alike; pixels near the data's mean
patch   likewise, and it has attention layers        its patches are to differ from each other (PSAQ-ViT)
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from ..engine.context import Context
from ..errors import UserError
from ..losses.priors import image_norm, total_variation
from ..models.attention import PatchDiversity
from ..models.classifier import Normalise
from ..models.norm_statistics import NormStatistics, see_most_of

WITHOUT_STATISTICS = {"tv": 1.0, "l2": 0.1, "patch": 1.0}  # weights; chosen by us, see docs/teachers.md


class Weights(Protocol):
    """Of the priors; None for the last three: 0 where statistics see most of the teacher, else WITHOUT_STATISTICS."""

    bn: float
    tv: float | None
    l2: float | None
    patch: float | None


class Priors:
    """Those with a weight above 0, for one teacher.

    Args:
        context: the teacher, and what the data's mean and standard deviation are.
        wanted: weights.
        bn_mmt: see NormStatistics.

    Raises:
        UserError: if one that was asked for has nothing to listen to.
    """

    def __init__(self, context: Context, wanted: Weights, bn_mmt: float):
        self.statistics = NormStatistics(context.teacher, bn_mmt)
        self.attention = PatchDiversity(context.teacher)
        self.parts = {"bn": self.statistics, "patch": self.attention}
        has, covered = self._heard(context)
        lacks = {"bn": "no BatchNorm statistics", "patch": "no attention layers"}
        lacks = {name: what for name, what in lacks.items() if not has[name]}
        weights = {name: getattr(wanted, name) for name in ("bn", *WITHOUT_STATISTICS)}
        for name, weight in weights.items():
            if weight is None:
                weights[name] = 0.0 if covered else WITHOUT_STATISTICS[name]
            elif weight > 0 and name in lacks and name in context.asked:
                raise UserError(f"--{name} {weight:g}: the teacher has {lacks[name]}", "leave it out")
        self.weights = {name: weight for name, weight in weights.items() if weight > 0 and name not in lacks}
        few = {"bn": "BatchNorm statistics in few of its layers"} if has["bn"] else {}
        self._lacks = "" if covered else " and ".join((few | lacks).values())
        for name in self.parts.keys() - self.weights.keys():
            self.parts[name].remove()
        self._normalise = Normalise(context.spec.mean, context.spec.std)
        self._normalise.to(context.compute.device)

    def _heard(self, context: Context) -> tuple[dict[str, bool], bool]:
        """Which parts hear anything when the teacher looks at noise, and whether bn hears most of the teacher.

        What its forward goes round cannot be used.
        """
        noise = torch.rand(2, *context.spec.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(context.compute.device)
        with torch.no_grad(), self.statistics.listening(), self.attention.listening():
            covered = see_most_of(context.teacher, lambda: context.ask(context.teacher, noise))
        return {name: part.heard for name, part in self.parts.items()}, covered

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the teacher's forward passes leave here what the priors need of them."""
        with ExitStack() as stack:
            for name in self.parts.keys() & self.weights.keys():
                stack.enter_context(self.parts[name].listening())
            yield

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """ "loss_bn" and so on, unweighted, of pixels x (B, C, H, W) that the teacher has just heard."""
        losses = {
            "bn": self.statistics.loss,
            "tv": lambda: total_variation(x),
            "l2": lambda: image_norm(self._normalise(x)),
            "patch": self.attention.loss,
        }
        return {f"loss_{name}": losses[name]() for name in self.weights}

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """bn * L_bn + tv * L_tv + l2 * L_l2 + patch * L_patch of what :meth:`terms` gave."""
        return sum((weight * terms[f"loss_{name}"] for name, weight in self.weights.items()), start=0.0)

    def update_average(self) -> None:
        """Of the BatchNorm statistics: once a round."""
        self.statistics.update_average()

    def remove(self) -> None:
        """Takes the hooks off the teacher."""
        for part in self.parts.values():
            part.remove()

    def __str__(self) -> str:
        used = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items()) or "none"
        why = f" (the teacher has {self._lacks})" if self._lacks else ""
        return f"priors: {used}{why}"

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)
