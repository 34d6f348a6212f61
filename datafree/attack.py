"""The adversarial-example attack behind the hard loss: real labels contradict the teacher now and then, so do these.

1. Train P       at every generator iteration, on its images x~ and the teacher's logits on them
       y- = argmin_c T(x~)_c
       x' = clamp(x~ + bound * P(x~))                  bound in pixel units, clamped to the valid pixel range
       P <- Adam(log CE(T(x'), y-))
2. Attack        x' = clamp(x + bound * P(x));  (label, c), (label', c') = argmax and max of softmax T(x), T(x')
3. Swap          where label' = label and c' >= c:  x <-> x',  T(x) <-> T(x'),  c <-> c'
4. Attack with probability pa
       a ~ Bernoulli(pa) per sample
       the student gets x' and T(x') where a, else x and T(x);  its hard label is argmax T(x) in either case
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoint
from .data.augment import Augmentation
from .device import Compute
from .errors import UserError
from .models.perturbation import PerturbationNetwork

SMALLEST_CE = torch.finfo(torch.float32).eps  # below it fp32 cannot tell a cross-entropy from 0


@dataclass(frozen=True)
class AttackSettings:
    """The knobs of the attack.

    Attributes:
        bound: largest change of a pixel, in pixels of [0, 1].
        pa: share of samples attacked.
        width: of P.
        lr_p, betas: of P's Adam.
        swap: whether step 3 is done.
        at: when steps 2 and 3 are done: once, as an image enters the "pool", or anew at every distillation "step".
    """

    bound: float
    pa: float
    width: int
    lr_p: float
    swap: bool
    at: str = "pool"
    betas: tuple[float, float] = (0.5, 0.999)

    @classmethod
    def of(cls, args: Namespace) -> "AttackSettings":
        """From the command line, where the bound counts in levels of 255."""
        return cls(
            args.attack_bound / 255, args.pa, args.p_width, args.lr_p, not args.no_swap, args.attack_at, args.adam_betas
        )


def pixel_limits(augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """What pixels 0 and 1 become under normalisation: (1, 3, 1, 1) twice."""
    return -augmentation.mean / augmentation.std, (1 - augmentation.mean) / augmentation.std


def perturb(P: nn.Module, x: Tensor, bound: float, limits: tuple[Tensor, Tensor]) -> Tensor:
    """x' = clamp(x + bound * P(x)): normalised images to normalised images, (B, 3, H, W).

    Args:
        P: images to [-1, 1], of the same shape.
        x: images, already normalised.
        bound: in pixels of [0, 1]; in normalised units it is ``bound / std``, another number for each channel.
        limits: the valid range of normalised images, see :func:`pixel_limits`.
    """
    low, high = limits
    return torch.clamp(x + bound * (high - low) * P(x), low, high)  # high - low = 1 / std


def least_likely_class(teacher_logits: Tensor) -> Tensor:
    """y- = argmin_c T(x)_c: (B, C) -> (B,)."""
    return teacher_logits.argmin(1)


def attack_loss(attacked_logits: Tensor, y_minus: Tensor) -> Tensor:
    """log of the mean over B of CE(T(x'), y-), in fp32: (B, C) and (B,) -> scalar, the log of nats.

    The logarithm keeps the gradient's size as the cross-entropy falls. Where that is 0 to fp32's precision, the loss is
    constant (-15.9) with gradient 0, rather than -inf with gradient NaN.
    """
    return F.cross_entropy(attacked_logits.float(), y_minus).clamp_min(SMALLEST_CE).log()


def _per_sample(mask: Tensor, values: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (values.ndim - 1))


def mix(clean: Tensor, attacked: Tensor, mask: Tensor) -> Tensor:
    """The attacked sample where ``mask`` (B,), else the clean one: (B, ...) twice -> a new (B, ...)."""
    return torch.where(_per_sample(mask, clean), attacked, clean)


def choose_attacked(batch_size: int, pa: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Which samples are attacked, each with probability ``pa``: bool (B,). 0 chooses none, 1 all."""
    return torch.rand(batch_size, generator=generator, device=device) < pa


def confidence(logits: Tensor) -> Tensor:
    """c = max_c softmax(logits)_c, in fp32: (B, C) -> (B,)."""
    return logits.float().softmax(1).amax(1)


@dataclass(frozen=True)
class Pair:
    """Normalised images (B, 3, H, W) and their attacked twins, with the teacher's logits (B, C) on both."""

    clean_images: Tensor
    attacked_images: Tensor
    clean_logits: Tensor
    attacked_logits: Tensor

    @property
    def labels(self) -> Tensor:
        """The hard labels of both twins: the class of the clean one, (B,)."""
        return self.clean_logits.argmax(1)

    @property
    def clean_confidence(self) -> Tensor:
        return confidence(self.clean_logits)

    @property
    def attacked_confidence(self) -> Tensor:
        return confidence(self.attacked_logits)

    @property
    def succeeded(self) -> Tensor:
        """Where the attack changed the predicted class: bool (B,)."""
        return self.attacked_logits.argmax(1) != self.labels


def swap(pair: Pair) -> tuple[Pair, Tensor]:
    """Twins of one class change places where the attacked one is no less confident.

    Returns:
        The pair after it, all tensors new, and which samples changed places: bool (B,).
    """
    swapped = ~pair.succeeded & (pair.attacked_confidence >= pair.clean_confidence)
    after = Pair(
        clean_images=mix(pair.clean_images, pair.attacked_images, swapped),
        attacked_images=mix(pair.attacked_images, pair.clean_images, swapped),
        clean_logits=mix(pair.clean_logits, pair.attacked_logits, swapped),
        attacked_logits=mix(pair.attacked_logits, pair.clean_logits, swapped),
    )
    return after, swapped


@dataclass(frozen=True)
class Twins:
    """What enters the pool, after the swap.

    Attributes:
        images, twins: pixels in [0, 1], (B, 3, H, W).
        labels: hard labels, (B,).
        rates: attack_success and swap_rate, shares of B, on the device.
    """

    images: Tensor
    twins: Tensor
    labels: Tensor
    rates: dict[str, Tensor]


class Attack:
    """P and its training. Draws no random numbers.

    Args:
        network: P, on the device.
        teacher: frozen and in eval mode.
        settings: the knobs.
        augmentation: for the normalisation that images come in.
        compute: device and precision.
    """

    def __init__(
        self,
        network: PerturbationNetwork,
        teacher: nn.Module,
        settings: AttackSettings,
        augmentation: Augmentation,
        compute: Compute,
    ):
        self.network, self.teacher, self.settings, self.compute = network, teacher, settings, compute
        self.augmentation, self.limits = augmentation, pixel_limits(augmentation)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr_p, betas=settings.betas, fused=True)

    @property
    def in_pool(self) -> bool:
        """Whether images are attacked once, as they enter the pool."""
        return self.settings.at == "pool"

    def train_step(self, x: Tensor, teacher_logits: Tensor) -> Tensor:
        """One update of P on normalised images x (B, 3, H, W) and the teacher's logits on them; returns its loss."""
        y_minus = least_likely_class(teacher_logits)
        self.network.train()
        with self.compute.autocast():
            attacked_logits = self.teacher(perturb(self.network, x, self.settings.bound, self.limits))
        loss = attack_loss(attacked_logits, y_minus)
        self.optimizer.zero_grad()
        loss.backward(inputs=list(self.network.parameters()))  # and into nothing else
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def attack(self, x: Tensor) -> Tensor:
        """The attacked twins of normalised images, each computed by itself (P in eval mode)."""
        self.network.eval()
        with self.compute.autocast():
            return perturb(self.network, x, self.settings.bound, self.limits)

    @torch.no_grad()
    def pair(self, x: Tensor, teacher_logits: Tensor | None = None) -> Pair:
        """Normalised images with their twins, before any swap. The logits on x are computed where not given."""
        attacked = self.attack(x)
        with self.compute.autocast():
            clean_logits = self.teacher(x) if teacher_logits is None else teacher_logits.detach()
            return Pair(x, attacked, clean_logits, self.teacher(attacked))

    def swapped_pair(self, x: Tensor, teacher_logits: Tensor | None = None) -> tuple[Pair, Tensor]:
        """Steps 2 and 3: :meth:`pair`, then :func:`swap` unless it is turned off."""
        pair = self.pair(x, teacher_logits)
        if self.settings.swap:
            return swap(pair)
        return pair, torch.zeros_like(pair.succeeded)

    @torch.no_grad()
    def twins(self, x: Tensor) -> Twins:
        """Steps 2 and 3 for pixels x (B, 3, H, W) in [0, 1], as they enter the pool."""
        pair = self.pair(self.augmentation.normalise(x))
        attacked = pair.attacked_images * self.augmentation.std + self.augmentation.mean
        swapped = swap(pair)[1] if self.settings.swap else torch.zeros_like(pair.succeeded)
        rates = {"attack_success": pair.succeeded.float().mean(), "swap_rate": swapped.float().mean()}
        return Twins(mix(x, attacked, swapped), mix(attacked, x, swapped), pair.labels, rates)

    def exported(self) -> dict:
        """P for analysis, with what it takes to use it: plain values and tensors."""
        return {
            "kind": "perturbation_network",
            "config": self.network.config,
            "bound": self.settings.bound,
            "state_dict": self.network.state_dict(),
        }

    def state_dict(self) -> dict:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def load_perturbation(path: Path | str) -> tuple[PerturbationNetwork, float]:
    """P from a run's gap.pth, in eval mode on the CPU, and its bound in pixels of [0, 1].

    Raises:
        UserError: if the file is not what a run wrote.
    """
    what = "perturbation network"
    content = checkpoint.load(path, what)
    if not isinstance(content, dict) or content.get("kind") != "perturbation_network":
        raise UserError(f"{what} {path} holds something else", "give the gap.pth of a run with --hl")
    network = PerturbationNetwork(**content["config"])
    checkpoint.load_into(network, checkpoint.state_dict_of(content, path, what), path, what)
    return network.eval(), content["bound"]
