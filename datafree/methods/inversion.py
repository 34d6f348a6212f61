"""What methods that invert a teacher share: the loss and its weights, the best of K, meta gradients, statistics."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from .. import configuration
from ..configuration import knob
from ..engine.context import Context
from ..losses.kd import adversarial_loss, one_hot_loss
from .base import Method
from .priors import Priors

AUTO = "(default: 0 where BatchNorm sees most of the teacher)"
RECALIBRATION = 20  # batches; chosen by us


@dataclass(frozen=True)
class LossConfig(configuration.Config):
    """The weights of L, see :meth:`Inversion.objective`."""

    bn: float = knob(10.0, "weight of L_bn: raise it for images closer to the teacher's training data", low=0)
    tv: float | None = knob(None, f"weight of L_tv: raise it for smoother images {AUTO}", low=0)
    l2: float | None = knob(None, f"weight of L_l2: raise it for paler images {AUTO}", low=0)
    patch: float | None = knob(None, f"weight of L_patch: raise it for more varied patches {AUTO}", low=0)
    oh: float = knob(0.5, "weight of L_oh: raise it for images of clearer class", low=0)
    adv: float = knob(1.33, "weight of L_adv: raise it for images that the student finds harder", low=0)
    bn_mmt: float = knob(
        0.9,
        "weight of the statistics of earlier rounds beside the batch's; 0: each batch alone",
        low=0,
        high=0.9999,
    )


@dataclass(frozen=True)
class GeneratorConfig(configuration.Config):
    """Of a generator that learns together with its noise z."""

    synthesis_batch_size: int = knob(256, "images made a round", low=1, high=2**16, unit="IMAGES")
    g_steps: int = knob(10, "generator iterations a round; more give better images, slower", low=1, unit="K")
    nz: int = knob(256, "length of the noise vector z", low=1, high=2**16, unit="N")
    ngf: int = knob(64, "width of the generator; lower is faster", low=1, high=2**16, unit="CHANNELS")
    lr_g: float = knob(2e-3, "learning rate of the generator in an iteration; of the meta step, times g_steps", above=0)
    lr_z: float = knob(0.01, "learning rate of z", above=0)
    adam_betas: tuple[float, float] = knob((0.5, 0.999), "of Adam", low=0, high=0.9999, unit="BETA")


class Inversion(Method):
    """A method whose images are to look to the teacher like what it was trained on. Its Config is a LossConfig."""

    def __init__(self, context: Context, config: Any):
        super().__init__(context, config)
        self.priors = Priors(context, config, config.bn_mmt)

    @property
    def remarks(self) -> list[str]:
        return [str(self.priors)]

    def objective(self, x: Tensor, y: Tensor, adversarial: bool) -> Tensor:
        """L = bn * L_bn(x~) + oh * L_oh(x~, y) + adv * L_adv(x~) of images x (B, C, H, W) in [0, 1] for classes y (B,).

        x~ is x cropped and flipped at random. Without BatchNorm in the teacher other priors stand in for L_bn.

        A new term: its weight is a field of Config, its value is added to ``loss`` and, by a name that begins with
        "loss_", to what ``context.report`` gets, which makes it a column of metrics.csv. What asks the images alone, or
        layers of the teacher, is a prior (priors.py).
        """
        context, config = self.context, self.config
        x = context.augmentation(x, context.streams["synthesis"])  # x~
        with self.priors.listening():
            teacher_logits = context.ask(context.teacher, x)
        L_priors = self.priors.terms(x)  # by name: L_bn, or what stands in for it
        L_oh = one_hot_loss(teacher_logits, y)
        L_adv = torch.zeros_like(L_oh)
        if adversarial and config.adv > 0:
            with context.student_as_judge() as student:
                L_adv = adversarial_loss(teacher_logits, context.ask(student, x))
        loss = self.priors.weighted(L_priors) + config.oh * L_oh + config.adv * L_adv
        context.report(L_priors | {"loss_oh": L_oh, "loss_adv": L_adv, "loss_generator": loss})
        context.observe(x, teacher_logits)
        return loss


class MetaInversion(Inversion):
    """One whose generator theta is meta-learnt: a round adapts theta', a copy of it, together with the noise z.

    Its Config is a GeneratorConfig, too. Draws from the streams "synthesis", "sample" and "recalibration".

    Args:
        generator: (B, nz) -> images (B, C, H, W) in [0, 1].
        rates: of its trained parts, by name, as factors on lr_g; "" is the generator whole.
    """

    def __init__(self, context: Context, config: Any, generator: nn.Module, rates: Mapping[str, float]):
        super().__init__(context, config)
        self.generator, self.rates = context.compute.place(generator).train(), rates  # theta
        self.adapted = copy.deepcopy(self.generator)  # theta'
        self.meta_optimizer = self.adam(self.generator, config.lr_g * config.g_steps)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    @property
    def busy(self) -> list[nn.Module]:
        return [self.adapted]

    def trained(self, generator: nn.Module) -> list[Tensor]:
        """Parameters of the trained parts."""
        return [parameter for name in self.rates for parameter in generator.get_submodule(name).parameters()]

    def adam(self, generator: nn.Module, lr: float, z: Tensor | None = None) -> torch.optim.Adam:
        """Adam over the trained parts, each at its own rate, and over z where given."""
        groups = [
            {"params": list(generator.get_submodule(name).parameters()), "lr": lr * rate}
            for name, rate in self.rates.items()
        ]
        if z is not None:
            groups.append({"params": [z], "lr": self.config.lr_z})
        return torch.optim.Adam(groups, betas=self.config.adam_betas, fused=self.context.compute.fused)

    def noise(self, rng: torch.Generator, count: int | None = None) -> Tensor:
        """z ~ N(0, I), (count, nz), as many as a batch has unless told."""
        shape = (count or self.config.synthesis_batch_size, self.config.nz)
        return torch.randn(shape, generator=rng, device=self.context.compute.device)

    @torch.no_grad()
    def recalibrate(self) -> None:
        """Gives theta BN statistics of its own, always from the same noise: they depend on its weights alone."""
        rng = self.context.streams.again("recalibration")
        noise = [self.noise(rng) for _ in range(RECALIBRATION)]
        self.context.costs.count("generator", self.generator, torch.cat(noise))
        with self.context.compute.autocast():
            recalibrate(self.generator, noise)

    @torch.no_grad()
    def sample(self, count: int, stream: str = "sample") -> Tensor:
        self.recalibrate()
        z = self.noise(self.context.streams[stream], count)
        self.generator.eval()
        x = torch.cat([self.context.ask(self.generator, part) for part in z.split(self.config.synthesis_batch_size)])
        self.generator.train()
        return x

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "priors": self.priors.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.priors.load_state_dict(state["priors"])


class Best:
    """The images of the lowest loss so far, and what goes with them; nothing is read from the device."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def keep(self, images: Tensor, loss: Tensor, *beside: Tensor) -> None:
        """Takes (B, C, H, W), and tensors beside it, if its loss, a scalar, is lower than any before."""
        new = [each.detach() for each in (loss, images, *beside)]
        old = self._kept or new
        better = new[0] < old[0]
        self._kept = [torch.where(better, *pair) for pair in zip(new, old, strict=True)]

    @property
    def loss(self) -> Tensor:
        return self._kept[0]

    @property
    def images(self) -> Tensor:
        return self._kept[1]

    @property
    def beside(self) -> list[Tensor]:
        return self._kept[2:]


# A meta step turns what the inner loop found into theta's gradient. Each is (theta, theta', summed gradients).
def fomaml_gradient(theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]) -> list[Tensor]:
    """First-order MAML (Finn et al. 2017): the sum of the gradients met along the inner loop."""
    return summed


def reptile_gradient(theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]) -> list[Tensor]:
    """Reptile (Nichol et al. 2018): from where the inner loop ended to where it started."""
    return torch._foreach_sub(theta, adapted)


META_GRADIENTS = {"fomaml": fomaml_gradient, "reptile": reptile_gradient, "none": None}


@torch.no_grad()
def meta_step(
    kind: str, optimizer: torch.optim.Optimizer, theta: list[Tensor], adapted: list[Tensor], summed: list[Tensor]
) -> None:
    """theta <- the optimiser's step on the meta gradient; "none": theta <- theta'."""
    meta_gradient = META_GRADIENTS[kind]
    if meta_gradient is None:
        torch._foreach_copy_(theta, adapted)
        return
    for parameter, gradient in zip(theta, meta_gradient(theta, adapted, summed), strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def recalibrate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Sets the running statistics of its BN layers to their means over these batches, its weights as they are.

    A meta-learnt generator never runs forward itself, only its copies do: without this, its statistics are others'.
    """
    update_bn(inputs, network)


def saved_width(state: Mapping[str, Any], first: str) -> int | None:
    """Of a generative network in a saved state, by the name of its first BN's weight. None where there is none.

    One from an earlier run may be of another ngf.
    """
    weight = state.get("generator", {}).get(first)
    return None if weight is None else len(weight) // 2
