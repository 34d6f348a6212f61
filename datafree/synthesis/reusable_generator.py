"""Meta-learned inversion with the reusable generator (AEAHL-RG, after Fast-Datafree).

theta' <- theta (g1, g2, d);  z ~ N(0, I) (B, nz);  y ~ U{0..C-1}
for k = 1..K
    x    <- G_theta'(z);  x~ <- normalise(augment(x))
    L    =  bn * L_bn + oh * L_oh + adv * L_adv
    meta gradient += dL/dtheta'
    theta', z <- Adam(lr_g, lr_z)
    remember the x of the lowest L
theta <- meta step: FOMAML, Reptile, or plainly theta'
return the best x
"""

import copy
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ..bn_statistics import BNStatistics
from ..data.augment import Augmentation
from ..device import Compute
from ..errors import UserError
from ..losses import adversarial_loss, one_hot_loss
from ..models.generator import ReusableGenerator
from ..randomness import Streams
from ..readings import Readings

PARTS = ("g1", "g2", "d")


@dataclass(frozen=True)
class SynthesisSettings:
    """The knobs of a synthesis round, named as on the command line."""

    num_classes: int
    synthesis_batch_size: int
    nz: int
    g_steps: int
    lr_g: float
    lr_z: float
    adam_betas: tuple[float, float]
    bn: float
    oh: float
    adv: float
    bn_mmt: float
    meta: str

    @classmethod
    def of(cls, args: Namespace, num_classes: int) -> "SynthesisSettings":
        """From the command line's values of the same names."""
        named = (field.name for field in fields(cls) if field.name != "num_classes")
        return cls(num_classes=num_classes, **{name: getattr(args, name) for name in named})


@dataclass
class SynthesisRound:
    """What a round gives.

    Attributes:
        images: (B, 3, H, W) in [0, 1], the generator's output in the iteration of the lowest loss.
        readings: of the K iterations: each unweighted term, their weighted sum ("loss_generator"), P's loss.
    """

    images: Tensor
    readings: Readings

    @property
    def terms(self) -> dict[str, float]:
        """The mean over the iterations of each. Raises NotFiniteError if one became NaN or infinite."""
        return self.readings.means()

    @property
    def generator_loss(self) -> list[float]:
        """The weighted sum of every iteration, K values. Raises as ``terms`` does."""
        return self.readings.of("loss_generator")


# A meta step turns what the inner loop found into theta's gradient. Each is (theta, theta', summed gradients).
def fomaml_gradient(theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]) -> list[Tensor]:
    """First-order MAML (Finn et al. 2017): the sum of the gradients met along the inner loop."""
    return summed


def reptile_gradient(theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]) -> list[Tensor]:
    """Reptile (Nichol et al. 2018): from where the inner loop ended to where it started."""
    return torch._foreach_sub(theta, adapted)


META_GRADIENTS = {"fomaml": fomaml_gradient, "reptile": reptile_gradient, "none": None}


class ReusableGeneratorSynthesis:
    """Makes a batch of images a round and improves the generator on the way.

    Args:
        generator: G on the device. A part with ``part_rates`` 0 is frozen: weights and BN statistics.
        teacher: frozen and in eval mode.
        student: read here, never trained; left in the mode and with the gradients it came with.
        settings: the knobs.
        part_rates: factor on lr_g for each of g1, g2, d (see ``modes``).
        augmentation: differentiable, pixels to classifier input.
        compute: device and precision.
        streams: random streams; this class draws from "synthesis" alone.
        attack_step: called once an iteration with the images as the teacher saw them and its logits on them, both
            detached; returns a loss to report (the attack's training; no part of the objective).

    Raises:
        UserError: if the teacher has no BatchNorm and ``bn`` is not 0.
    """

    def __init__(
        self,
        generator: ReusableGenerator,
        teacher: nn.Module,
        student: nn.Module,
        settings: SynthesisSettings,
        part_rates: dict[str, float],
        augmentation: Augmentation,
        compute: Compute,
        streams: Streams,
        attack_step: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        self.attack_step = attack_step
        self.generator, self.teacher, self.student = generator, teacher, student
        self.augmentation, self.settings, self.compute, self.streams = augmentation, settings, compute, streams
        self.bn_statistics = BNStatistics(teacher, settings.bn_mmt)
        if settings.bn > 0 and not self.bn_statistics.layers:
            raise UserError("the teacher has no BatchNorm layers to invert", "set --bn 0")

        self.rates = {part: rate for part, rate in part_rates.items() if rate > 0}
        for part in PARTS:
            network = getattr(generator, part)
            network.requires_grad_(part in self.rates).train(part in self.rates)
        self.adapted = copy.deepcopy(generator)  # theta', its frozen parts never differ from theta's
        self.meta_optimizer = self._adam(generator, settings.lr_g * settings.g_steps)

    def _adam(self, generator: ReusableGenerator, lr: float, z: Tensor | None = None) -> torch.optim.Adam:
        """Adam over the trained parts, each at its own rate, and over z where given."""
        groups = [
            {"params": list(getattr(generator, part).parameters()), "lr": lr * rate}
            for part, rate in self.rates.items()
        ]
        if z is not None:
            groups.append({"params": [z], "lr": self.settings.lr_z})
        return torch.optim.Adam(groups, betas=self.settings.adam_betas, fused=True)

    def _trained(self, generator: ReusableGenerator) -> list[Tensor]:
        return [parameter for part in self.rates for parameter in getattr(generator, part).parameters()]

    def synthesize(self, adversarial: bool) -> SynthesisRound:
        """One round. ``adversarial`` is False while the student knows nothing (warm-up): L_adv is 0 then."""
        settings, rng = self.settings, self.streams["synthesis"]
        B, device = settings.synthesis_batch_size, self.compute.device
        self.adapted.load_state_dict(self.generator.state_dict())
        theta, adapted = self._trained(self.generator), self._trained(self.adapted)
        z = torch.randn(B, settings.nz, generator=rng, device=device).requires_grad_()
        y = torch.randint(settings.num_classes, (B,), generator=rng, device=device)
        inner_optimizer = self._adam(self.adapted, settings.lr_g, z)
        summed = [torch.zeros_like(parameter) for parameter in adapted]
        best_x, best_loss, readings = None, torch.inf, Readings()

        with _Reading(self.student):
            for _ in range(settings.g_steps):
                with self.compute.autocast():
                    x = self.adapted(z)  # (B, nz) -> (B, 3, H, W)
                terms = self._terms(x, y, adversarial and settings.adv > 0)
                loss = self._objective(terms)
                inner_optimizer.zero_grad()
                loss.backward()
                torch._foreach_add_(summed, [parameter.grad for parameter in adapted])
                inner_optimizer.step()
                better = loss.detach() < best_loss
                best_x = x.detach() if best_x is None else torch.where(better, x.detach(), best_x)
                best_loss = torch.where(better, loss.detach(), best_loss)
                readings.add({f"loss_{name}": value for name, value in terms.items()} | {"loss_generator": loss})

        self.bn_statistics.update_average()
        self._meta_step(theta, adapted, summed)
        self._keep_running_statistics()
        return SynthesisRound(best_x, readings)

    def _terms(self, x: Tensor, y: Tensor, adversarial: bool) -> dict[str, Tensor]:
        """The unweighted terms on images x (B, 3, H, W), y (B,)."""
        augmented = self.augmentation(x, self.streams["synthesis"])
        with self.compute.autocast(), self.bn_statistics.listening():
            teacher_logits = self.teacher(augmented)
        L_bn = self.bn_statistics.loss().to(x.device)
        L_oh = one_hot_loss(teacher_logits, y)
        L_adv = torch.zeros((), device=x.device)
        if adversarial:
            with self.compute.autocast():
                student_logits = self.student(augmented)
            L_adv = adversarial_loss(teacher_logits, student_logits)
        terms = {"bn": L_bn, "oh": L_oh, "adv": L_adv}
        if self.attack_step is not None:
            terms["gap"] = self.attack_step(augmented.detach(), teacher_logits.detach())
        return terms

    def _objective(self, terms: dict[str, Tensor]) -> Tensor:
        L_bn, L_oh, L_adv = terms["bn"], terms["oh"], terms["adv"]
        return self.settings.bn * L_bn + self.settings.oh * L_oh + self.settings.adv * L_adv

    @torch.no_grad()
    def _meta_step(self, theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]) -> None:
        """theta <- Adam on the meta gradient, lr = lr_g * K; with plain updating theta <- theta'."""
        meta_gradient = META_GRADIENTS[self.settings.meta]
        if meta_gradient is None:
            torch._foreach_copy_(theta, adapted)
            return
        for parameter, gradient in zip(theta, meta_gradient(theta, adapted, summed), strict=True):
            parameter.grad = gradient
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad()

    @torch.no_grad()
    def _keep_running_statistics(self) -> None:
        """Only theta' runs forward, so only its BN layers have seen activations: hand their statistics to theta."""
        for kept, seen in zip(self.generator.buffers(), self.adapted.buffers(), strict=True):
            kept.copy_(seen)

    @torch.no_grad()
    def sample(self, count: int, stream: str) -> Tensor:
        """Images (count, 3, H, W) in [0, 1] from fresh noise of the named stream, the generator in eval mode."""
        z = torch.randn(count, self.settings.nz, generator=self.streams[stream], device=self.compute.device)
        modes = {module: module.training for module in self.generator.modules()}
        with self.compute.autocast():
            x = torch.cat([self.generator.eval()(part) for part in z.split(self.settings.synthesis_batch_size)])
        for module, mode in modes.items():
            module.training = mode
        return x

    def state_dict(self) -> dict:
        """All that the next round depends on, the random streams apart."""
        return {
            "generator": self.generator.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "bn_statistics": self.bn_statistics.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.bn_statistics.load_state_dict(state["bn_statistics"])


class _Reading:
    """Within, a network is in eval mode and its weights want no gradient; afterwards both are as before."""

    def __init__(self, network: nn.Module):
        self.network = network

    def __enter__(self) -> None:
        self.was_training = self.network.training
        self.wanted = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.network.eval().requires_grad_(False)

    def __exit__(self, *exception: object) -> None:
        self.network.train(self.was_training)
        for parameter in self.wanted:
            parameter.requires_grad_(True)
