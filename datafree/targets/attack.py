"""Targets under the adversarial-example attack: real labels contradict the teacher now and then, so do these.

1. Train P       at every generator iteration, on its images x and the teacher's logits on them
       y- = argmin_c T(x)_c
       x' = clamp(x + bound * P(x))                    pixels in [0, 1]; P reads them normalised
       P <- Adam(log CE(T(x'), y-))
2. Attack        x' = clamp(x + bound * P(x));  (label, c), (label', c') = argmax and max of softmax T(x), T(x')
3. Swap          where label' = label and c' >= c:  x <-> x',  T(x) <-> T(x'),  c <-> c'
4. Attack with probability pa
       a ~ Bernoulli(pa) per sample
       the student gets x' and T(x') where a, else x and T(x);  its hard label is argmax T(x) in either case
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import processes
from ..configuration import knob
from ..data.batch import Batch, Column
from ..data.pool import image_column
from ..engine.context import Context
from ..engine.randomness import Streams, initialising
from ..errors import UserError
from ..losses.kd import confidence
from ..models.classifier import Normalise
from ..models.perturbation import SMALLEST, PerturbationNetwork
from .hard import Hard, taught

SMALLEST_CE = torch.finfo(torch.float32).eps  # below it fp32 cannot tell a cross-entropy from 0


def perturb(P: Callable[[Tensor], Tensor], x: Tensor, bound: float, normalise: nn.Module) -> Tensor:
    """x' = clamp(x + bound * P(x)): pixels (B, C, H, W) in [0, 1] to such pixels.

    Args:
        P: normalised images to [-1, 1], of the same shape.
        x: pixels.
        bound: in pixels of [0, 1].
        normalise: pixels to what P reads.
    """
    return torch.clamp(x + bound * P(normalise(x).contiguous(memory_format=torch.channels_last)), 0, 1)


def attack_loss(attacked_logits: Tensor, y_minus: Tensor) -> Tensor:
    """log of the mean over B (of all processes) of CE(T(x'), y-), in fp32: (B, C) and (B,) -> scalar, the log of nats.

    The logarithm keeps the gradient's size as the cross-entropy falls. Where that is 0 to fp32's precision, the loss is
    constant (-15.9) with gradient 0, rather than -inf with gradient NaN.
    """
    return processes.mean(F.cross_entropy(attacked_logits.float(), y_minus)).clamp_min(SMALLEST_CE).log()


def mix(clean: Tensor, attacked: Tensor, mask: Tensor) -> Tensor:
    """The attacked sample where ``mask`` (B,), else the clean one: (B, ...) twice -> a new (B, ...)."""
    return torch.where(mask.view(-1, *[1] * (clean.ndim - 1)), attacked, clean)


@dataclass(frozen=True)
class Pair:
    """Images (B, C, H, W) and their attacked twins, with the teacher's logits (B, classes) on both."""

    images: Tensor
    twins: Tensor
    logits: Tensor
    twin_logits: Tensor

    @property
    def labels(self) -> Tensor:
        """The hard labels of both twins: the class of the clean one, (B,)."""
        return self.logits.argmax(1)

    @property
    def succeeded(self) -> Tensor:
        """Where the attack changed the predicted class: bool (B,)."""
        return self.twin_logits.argmax(1) != self.labels


def swap(pair: Pair) -> tuple[Pair, Tensor]:
    """Twins of one class change places where the attacked one is no less confident.

    Returns:
        The pair after it, all tensors new, and which samples changed places: bool (B,).
    """
    swapped = ~pair.succeeded & (confidence(pair.twin_logits) >= confidence(pair.logits))
    after = Pair(
        images=mix(pair.images, pair.twins, swapped),
        twins=mix(pair.twins, pair.images, swapped),
        logits=mix(pair.logits, pair.twin_logits, swapped),
        twin_logits=mix(pair.twin_logits, pair.logits, swapped),
    )
    return after, swapped


def _drawn(streams: Streams, count: int, share: float) -> Tensor:
    """Which of so many samples are attacked: bool (count,), on the streams' device."""
    rng = streams["attack"]
    return torch.rand(count, generator=rng, device=rng.device) < share


class Attack(Hard):
    """Hard targets with P and its training. Draws which samples are attacked from the stream "attack"."""

    suffix = "-hl"

    @dataclass(frozen=True)
    class Config(Hard.Config):
        pa: float = knob(0.001, "share of samples attacked: raise it for more contradiction", low=0, high=1)
        attack_bound: float = knob(
            10.0, "largest change of a pixel: raise it until classes change", low=0, high=255, unit="1/255"
        )
        p_width: int = knob(64, "width of P; lower is faster", low=1, high=2**16, unit="CHANNELS")
        lr_p: float = knob(2e-4, "learning rate of P's Adam", above=0)
        p_betas: tuple[float, float] = knob((0.5, 0.999), "of P's Adam", low=0, high=0.9999, unit="BETA")
        no_swap: bool = knob(False, "no identity swap of clean and attacked samples")
        attack_at: str = knob(
            "pool", "once, as an image enters the pool, or every step (slow)", choices=("pool", "step")
        )

    def __init__(self, context: Context, config: "Attack.Config"):
        super().__init__(context, config)
        if min(context.spec.img_size) < SMALLEST:
            raise UserError(f"the attack needs images of at least {SMALLEST} pixels", "add --no_aea")
        with initialising(context.streams.seed, "P"):
            network = PerturbationNetwork(config.p_width, channels=context.spec.shape[0])
        self.P, self.bound = context.compute.place(network), config.attack_bound / 255
        self.normalise = context.compute.place(Normalise(context.spec.mean, context.spec.std))
        how = {"lr": config.lr_p, "betas": config.p_betas, "fused": context.compute.fused}
        self.optimizer = torch.optim.Adam(self.P.parameters(), **how)
        self._drawn = torch.compiler.disable(_drawn)  # TorchDynamo knows no random streams
        self.observed = False  # whether there was anything to train P on
        context.observers.append(self.train_step)

    @property
    def columns(self) -> dict[str, Column]:
        if self.config.attack_at == "step":
            return {}
        return {"twins": image_column(self.context.spec.shape), "labels": ((), torch.int64)}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"P": self.P}

    def train_step(self, x: Tensor, teacher_logits: Tensor) -> None:
        """Step 1: one update of P on pixels x (B, C, H, W) and the teacher's logits on them; reports "loss_gap"."""
        y_minus, self.observed = teacher_logits.argmin(1), True
        self.P.train()
        attacked_logits = self.context.ask(self.context.answering, self.perturbed(x))
        loss = attack_loss(attacked_logits, y_minus)
        self.context.backward(loss, list(self.P.parameters()))
        self.optimizer.step()
        self.context.report({"loss_gap": loss})

    def perturbed(self, x: Tensor) -> Tensor:
        """x' of pixels x (B, C, H, W), P in the mode it is in."""
        return perturb(partial(self.context.ask, self.P, role="P"), x, self.bound, self.normalise)

    @torch.no_grad()
    def pair(self, x: Tensor) -> Pair:
        """Step 2: pixels with their twins, each computed by itself (P in eval mode), before any swap."""
        self.P.eval()
        twins = self.perturbed(x)
        return Pair(x, twins, self.context.answers(x), self.context.answers(twins))

    def swapped_pair(self, x: Tensor) -> Pair:
        """Steps 2 and 3; reports how many attacks succeeded and how many twins changed places."""
        pair = self.pair(x)
        after, swapped = (pair, torch.zeros_like(pair.succeeded)) if self.config.no_swap else swap(pair)
        rates = {"attack_success": pair.succeeded, "swap_rate": swapped}
        self.context.report({name: chosen.float().mean() for name, chosen in rates.items()})
        return after

    def prepare(self, batch: Batch) -> Batch:
        """Attacks images as they enter the pool, which keeps their twins, too, and the hard labels of both."""
        if self.config.attack_at == "step":
            return batch
        pair = self.swapped_pair(batch.images)
        return Batch(pair.images, batch.columns | {"twins": pair.twins, "labels": pair.labels})

    def lesson(self, batch: Batch) -> Batch:
        """Step 4. Twins and labels come with the images; or, as for a method without a pool always, the whole batch is
        attacked anew: as published, and dearer than all the rest of the step.

        Raises:
            UserError: P has had nothing to learn from.
        """
        if not self.observed:
            remedy = "let it call context.observe(x, teacher_logits) in every iteration, or set --no_aea"
            raise UserError("the method shows the attack no images to learn from", remedy)
        attacked = self._drawn(self.context.streams, len(batch), self.config.pa)
        self.context.report({"attacked_rate": attacked.float().mean()})
        if "twins" not in batch.columns:
            pair = self.swapped_pair(batch.images)
            images, logits = mix(pair.images, pair.twins, attacked), mix(pair.logits, pair.twin_logits, attacked)
            return taught(images, logits, pair.labels)
        images = mix(batch.images, batch.columns["twins"], attacked)
        teacher_logits = self.context.answers(images)
        return taught(images, teacher_logits, mix(teacher_logits.argmax(1), batch.columns["labels"], attacked))

    def files(self) -> dict[str, dict[str, Any]]:
        """P for analysis, with what it takes to use it."""
        content = {"kind": "perturbation_network", "config": self.P.config, "bound": self.bound}
        return {"gap.pth": content | {"state_dict": self.P.state_dict(), "origin": self.context.origin}}

    def state_dict(self) -> dict[str, Any]:
        return {"P": self.P.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.P.load_state_dict(state["P"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.observed = bool(self.optimizer.state)
