"""Generators trained against a student, or for a teacher alone, without a pool: DAFL, ZSKT, DFAD, DFQ, MAD.

a round:
    G times
        z ~ N(0, I) (B, nz);  x <- G(z)
        L <- dafl   oh * L_oh + act * L_act + balance * L_ie               the student has no say
             zskt   L_adv = -KL(T(x) || S(x))                              S as a judge: as it is, and stays
             dfad   L_adv = -mean |T(x) - S(x)|
             dfq    adv * L_adv + oh * L_oh + balance * L_ie + ent * L_ent + bn * L_bn      warm-up: adv = 0
             mad    L_adv as zskt;  then G^ <- ema * G^ + (1 - ema) * G
        G <- Adam(lr_g)
    kd_steps times the student learns from fresh images
             dafl   those of the G step, where kd_steps is 1
             zskt   G(z) of the round's z, the same at every step
             mad    half from G, half from G^

L_oh is CE(T(x), argmax T(x)); the other terms stand in losses/adversarial.py, how L_bn is heard in
models/norm_statistics.py. Sources, presets and where the reference codes differ: docs/methods.md.
"""

import copy
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import configuration
from ..configuration import knob
from ..data.batch import TEACHER_LOGITS, Batch
from ..engine.context import Context
from ..engine.randomness import initialising
from ..engine.student import step_decay
from ..errors import UserError
from ..losses.adversarial import activation_loss, balance_loss, kl_disagreement, l1_disagreement, sample_entropy
from ..losses.batchnorm import bn_loss, gaussian_bn_loss
from ..losses.kd import one_hot_loss
from ..models.generator import ImageGenerator, NormalisedNetwork, StandardisedNetwork
from ..models.generator_files import LASTING_FILE, load_generative_network, part
from ..models.head_input import HeadInput
from ..models.norm_statistics import NormStatistics
from .base import Leaving, Method
from .inversion import saved_width

ADAM = {"optimizer": "adam", "lr": 2e-3, "lr_min": 0.0, "weight_decay": 0.0}  # of a student
OUTPUTS = {"normalised": NormalisedNetwork, "standardised": StandardisedNetwork, "free": ImageGenerator}


@dataclass(frozen=True)
class Common(configuration.Config):
    """The knobs of all five."""

    synthesis_batch_size: int | None = knob(
        None, "images of a generator step (default: batch_size)", low=1, high=2**16, unit="IMAGES"
    )
    g_steps: int = knob(1, "generator steps a round; kd_steps of the student follow", low=1, unit="G")
    nz: int = knob(256, "length of the noise vector z", low=1, high=2**16, unit="N")
    ngf: int = knob(64, "width of the generator; lower is faster", low=1, high=2**16, unit="CHANNELS")
    g_output: str = knob(
        "normalised",
        "normalised: with the data's mean and standard deviation, as published, and pixels beyond [0, 1]; "
        "standardised: the same within [0, 1]; free: as they come, with a low lr_g",
        choices=(*OUTPUTS,),
    )
    lr_g: float = knob(1e-3, "learning rate of the generator; lower it where all images are alike", above=0)
    anneal_g: int | None = knob(
        None,
        "generator steps over which lr_g falls to 0 along a cosine; 0: it stays (default: all but those of the "
        "warm-up for zskt, dfq and mad, else 0)",
        low=0,
        unit="STEPS",
    )
    lr_g_steps: tuple[float, ...] | None = knob(
        None, "divide lr_g by 10 at these shares of the run, in place of the cosine", above=0, high=1, unit="SHARE"
    )
    adam_betas: tuple[float, float] = knob((0.9, 0.999), "of Adam", low=0, high=0.9999, unit="BETA")
    clip_g: float = knob(0.0, "largest norm of the generator's gradient; 0: any", low=0, unit="NORM")
    reuse_path: Path | None = knob(None, f"{LASTING_FILE} of an earlier run, to begin with", unit="FILE")


class Adversarial(Method):
    """What the five share: a generator, its steps, fresh images. Draws from "synthesis", "distillation" and "sample".

    The generator ends in a BatchNorm that gives normalised images, without weights behind a tanh, as in DAFL, DFAD and
    DFQ (in ZSKT with weights and no tanh), or with ``g_output`` in a sigmoid. It stays in train mode while the student
    learns, as in DAFL, ZSKT and DFAD; in DFQ's reference it is in eval mode then.

    Attributes:
        annealed: whether lr_g falls along a cosine unless told otherwise.
        needs_student: whether all that the generator learns from is the student's answers: then there is no warm-up.
        disagreement: L_adv of the logits (B, classes) of teacher and student.
    """

    pooled = False
    defaults: dict[str, Any] = {"warmup": 0, "ep_steps": 400, "T": 1.0}  # noqa: RUF012 (read only)
    annealed = False
    needs_student = True
    disagreement: Callable[[Tensor, Tensor], Tensor] = staticmethod(kl_disagreement)

    @dataclass(frozen=True)
    class Config(Common):
        judge: str = knob(
            "eval",
            "the student's mode while the generator learns from it; train: its BatchNorm layers go by the batch",
            choices=("eval", "train"),
        )

    def __init__(self, context: Context, config: Any):
        super().__init__(context, config)
        self.teacher = context.answering
        context.judge_trains = getattr(config, "judge", "eval") == "train"
        self.generator = context.compute.place(self._first_generator()).train()
        self.parameters = [parameter for parameter in self.generator.parameters() if parameter.requires_grad]
        how = {"lr": config.lr_g, "betas": config.adam_betas, "fused": context.compute.fused}
        self.optimizer = torch.optim.Adam(self.parameters, **how)
        self.annealed_steps, self.steps = 0, (context.rounds - context.warmup_rounds) * config.g_steps  # warm-up apart
        self.steps_to_anneal = (self.steps if self.annealed else 0) if config.anneal_g is None else config.anneal_g

    def _first_generator(self) -> ImageGenerator:
        """At random, or of an earlier run, as wide as it was there. Raises UserError where that does not fit."""
        context, config, (channels, *size) = self.context, self.config, self.context.spec.shape
        path, width, kind = config.reuse_path, config.ngf, OUTPUTS[config.g_output]
        free = config.g_output == "free"
        like_data = {} if free else {"mean": context.spec.mean, "std": context.spec.std}
        saved = context.saved() if path else None
        if saved is not None:  # restored once all is built: the file, which may be gone, is not needed any more
            path, width = None, saved_width(saved, "conv_blocks.0.weight") or width
        if path is None:
            with initialising(context.streams.seed, "generator"):
                return kind(config.nz, width, size, channels, **like_data)
        generator = load_generative_network(path, config.nz, context.spec.shape, kind, **like_data)
        if like_data:
            generator.take(**like_data)  # not those that it was made for
        return generator

    def finish(self) -> Leaving:
        content = part(self.generator, self.generator.kind, self.generator.config, self.context.origin)
        remark = f"{LASTING_FILE}: the next task can begin with it (--reuse_path)"
        return Leaving(files={LASTING_FILE: content}, remark=remark)

    @classmethod
    def complete(cls, values: Namespace) -> None:
        if values.warmup and cls.needs_student:
            what = f"method {values.method} learns from the student, which warm-up leaves as it is"
            raise UserError(what, "give --warmup 0")
        if values.anneal_g and values.lr_g_steps:
            raise UserError("--anneal_g and --lr_g_steps both say how lr_g falls", "give one of them")
        if values.synthesis_batch_size is None:
            values.synthesis_batch_size = values.batch_size

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def synthesize(self, warmup: bool) -> None:
        """The G steps of a round. The student judges as --judge says; ZSKT's and DFAD's codes have it in train mode."""
        for _ in range(self.config.g_steps):
            self.generator_step(self._noise(self.config.synthesis_batch_size), warmup)

    def generator_step(self, z: Tensor, warmup: bool) -> Batch:
        """One step on noise z (B, nz). Gives the images made, before the step, with the teacher's logits on them."""
        x = self.context.ask(self.generator, z)  # (B, nz) -> (B, C, H, W)
        loss, teacher_logits = self.objective(x, warmup)
        self.context.backward(loss, self.parameters)
        if self.config.clip_g > 0:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_g)
        self._anneal(warmup)
        self.optimizer.step()
        self.context.report({"loss_generator": loss})
        self.context.observe(x, teacher_logits)
        return Batch(x.detach(), {TEACHER_LOGITS: teacher_logits.detach()})

    def objective(self, x: Tensor, warmup: bool) -> tuple[Tensor, Tensor]:
        """L of images x (B, C, H, W), and the teacher's logits (B, classes). Here the student's disagreement alone."""
        teacher_logits = self.context.ask(self.teacher, x)
        L_adv = self.disagreement(teacher_logits, self._judged(x))
        self.context.report({"loss_adv": L_adv})
        return L_adv, teacher_logits

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """Fresh images at every step."""
        for _ in range(count):
            yield Batch(self._fresh(self.generator, size))

    @torch.no_grad()
    def sample(self, count: int, stream: str = "sample") -> Tensor:
        """In eval mode. The running statistics are of its own last batches: nothing has to be measured anew."""
        z = self._noise(count, stream).split(self.config.synthesis_batch_size)
        self.generator.eval()
        x = torch.cat([self.context.ask(self.generator, part) for part in z])
        self.generator.train()
        return x.clamp(0, 1)

    def _judged(self, x: Tensor) -> Tensor:
        """The student's logits, as a judge: it is not changed."""
        with self.context.student_as_judge() as student:
            return self.context.ask(student, x)

    def _noise(self, count: int, stream: str = "synthesis") -> Tensor:
        rng = self.context.streams[stream]
        return torch.randn(count, self.config.nz, generator=rng, device=self.context.compute.device)

    @torch.no_grad()
    def _fresh(self, generator: nn.Module, count: int) -> Tensor:
        """For the student: images of new noise."""
        return self.context.ask(generator, self._noise(count, "distillation"))

    def _anneal(self, warmup: bool) -> None:
        """Sets the rate of the next step: lr_g * (1 + cos(pi * n / N)) / 2 after n of N steps, or as lr_g_steps say."""
        done, total = self.annealed_steps, self.steps_to_anneal
        if warmup:
            return
        if self.config.lr_g_steps:
            factor = step_decay(done, self.steps, self.config.lr_g_steps)
        else:
            factor = (1 + math.cos(math.pi * min(done / total, 1.0))) / 2 if total else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_g * factor
        self.annealed_steps += 1

    def state_dict(self) -> dict[str, Any]:
        own = {"optimizer": self.optimizer.state_dict(), "annealed_steps": self.annealed_steps}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.annealed_steps = state["annealed_steps"]


class Dafl(Adversarial):
    """Images that the teacher is sure of, that excite its features, of all classes alike (Chen et al. 2019)."""

    defaults = Adversarial.defaults | {"kd_steps": 1}
    needs_student = False

    @dataclass(frozen=True)
    class Config(Common):
        oh: float = knob(1.0, "weight of L_oh: raise it for images of clearer class", low=0)
        act: float = knob(0.1, "weight of L_act: raise it for images that excite the teacher's last features", low=0)
        balance: float = knob(5 / math.log(10), "weight of L_ie: raise it where some classes hardly come", low=0)

    def __init__(self, context: Context, config: "Dafl.Config"):
        super().__init__(context, config)
        self.head = HeadInput(self.teacher)
        noise = torch.rand(2, *context.spec.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), self.head.listening():
            context.ask(self.teacher, noise.to(context.compute.device))
        self.act = 0.0 if self.head.features is None else config.act

    @property
    def remarks(self) -> list[str]:
        return ["no L_act: the teacher's forward calls no last linear layer"] if self.act < self.config.act else []

    def synthesize(self, warmup: bool) -> None:
        for _ in range(self.config.g_steps):
            self.newest = self.generator_step(self._noise(self.config.synthesis_batch_size), warmup)

    def objective(self, x: Tensor, warmup: bool) -> tuple[Tensor, Tensor]:
        context, config = self.context, self.config
        with self.head.listening():
            teacher_logits = context.ask(self.teacher, x)
        L_oh = one_hot_loss(teacher_logits, teacher_logits.argmax(1))
        L_act = activation_loss(self.head.features) if self.act > 0 else torch.zeros_like(L_oh)
        L_ie = balance_loss(teacher_logits)
        loss = config.oh * L_oh + self.act * L_act + config.balance * L_ie
        context.report({"loss_oh": L_oh, "loss_act": L_act, "loss_balance": L_ie})
        return loss, teacher_logits

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """One step learns from the very batch of the generator's, one forward pass of the teacher serving both."""
        if count == 1 and len(self.newest) == size:
            yield self.newest
        else:
            yield from super().batches(count, size)


class Zskt(Adversarial):
    """Images on which the student's answer is furthest from the teacher's (Micaelli and Storkey 2019)."""

    defaults = Adversarial.defaults | {"kd_steps": 10, "clip_g": 50.0, "clip_grad": 50.0} | ADAM
    annealed = True

    @classmethod
    def complete(cls, values: Namespace) -> None:
        super().complete(values)
        if values.synthesis_batch_size != values.batch_size:
            what = f"--synthesis_batch_size {values.synthesis_batch_size} is not --batch_size {values.batch_size}"
            raise UserError(f"{what}, and zskt has one z for both", "leave the former out")

    def synthesize(self, warmup: bool) -> None:
        self.z = self._noise(self.config.synthesis_batch_size)  # the round's
        for _ in range(self.config.g_steps):
            self.generator_step(self.z, warmup)

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """G does not change meanwhile: one batch, with the teacher's answers, is that of every step."""
        with torch.no_grad():
            x = self.context.ask(self.generator, self.z)
        batch = Batch(x, {TEACHER_LOGITS: self.context.answers(x)})
        for _ in range(count):
            yield batch


class Dfad(Adversarial):
    """As ZSKT, by the distance of the logits, with fresh images at every step (Fang et al. 2019)."""

    defaults = Adversarial.defaults | {"kd_steps": 5, "kd_loss": "l1"}
    disagreement = staticmethod(l1_disagreement)


BN_LOSSES = {"kl": gaussian_bn_loss, "l2": bn_loss}


class Dfq(Adversarial):
    """Disagreement, and images that the teacher takes for what it was trained on (Choi et al. 2020)."""

    defaults = Adversarial.defaults | {"kd_steps": 10, "adam_betas": (0.5, 0.999), "nesterov": True}
    annealed = True
    needs_student = False

    @dataclass(frozen=True)
    class Config(Adversarial.Config):
        adv: float = knob(1.0, "weight of L_adv: raise it for images that the student finds harder", low=0)
        oh: float = knob(0.0, "weight of L_oh: raise it for images of clearer class", low=0)
        balance: float = knob(0.01, "weight of L_ie: raise it where some classes hardly come", low=0)
        ent: float = knob(0.01, "weight of L_ent: raise it for images that the teacher is sure of", low=0)
        bn: float = knob(0.01, "weight of L_bn: raise it for images closer to the teacher's training data", low=0)
        bn_form: str = knob(
            "kl", "kl: divergence of normal distributions; l2: distance of the statistics", choices=(*BN_LOSSES,)
        )

    def __init__(self, context: Context, config: "Dfq.Config"):
        super().__init__(context, config)
        self.teacher = context.teacher  # with its BatchNorm layers
        if config.bn > 0 and not self.teacher.norm_layers:
            raise UserError(f"{self.teacher.name} has no BatchNorm layers for L_bn", "give --bn 0, or another method")
        self.statistics = NormStatistics(self.teacher, 0.0, BN_LOSSES[config.bn_form])

    def objective(self, x: Tensor, warmup: bool) -> tuple[Tensor, Tensor]:
        context, config = self.context, self.config
        with self.statistics.listening():
            teacher_logits = context.ask(self.teacher, x)
        L_ie, L_ent = balance_loss(teacher_logits), sample_entropy(teacher_logits)
        L_oh, L_bn = one_hot_loss(teacher_logits, teacher_logits.argmax(1)), self.statistics.loss()
        L_adv = torch.zeros_like(L_ie) if warmup else self.disagreement(teacher_logits, self._judged(x))
        loss = config.adv * L_adv + config.oh * L_oh + config.balance * L_ie + config.ent * L_ent + config.bn * L_bn
        terms = {"loss_oh": L_oh, "loss_balance": L_ie, "loss_ent": L_ent, "loss_bn": L_bn}
        context.report(terms | ({} if warmup else {"loss_adv": L_adv}))
        return loss, teacher_logits


class Mad(Adversarial):
    """As ZSKT, half of the images from a slow copy of the generator, against forgetting (Do et al. 2022)."""

    defaults = Adversarial.defaults | {"kd_steps": 5, "adam_betas": (0.5, 0.999)}
    annealed = True

    @dataclass(frozen=True)
    class Config(Adversarial.Config):
        ema: float = knob(0.95, "of the slow copy, kept at a generator step; 0: it is no slower", low=0, high=0.9999)

    def __init__(self, context: Context, config: "Mad.Config"):
        super().__init__(context, config)
        self.slow = copy.deepcopy(self.generator).requires_grad_(False)  # G^

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "slow generator": self.slow}

    def generator_step(self, z: Tensor, warmup: bool) -> Batch:
        batch = super().generator_step(z, warmup)
        with torch.no_grad():
            torch._foreach_lerp_([*self.slow.parameters()], [*self.generator.parameters()], 1 - self.config.ema)
        return batch

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """In train mode both: the statistics of BatchNorm are those of the batch, G^ needs no average of them."""
        shares = {self.generator: size - size // 2, self.slow: size // 2}
        for _ in range(count):
            yield Batch(torch.cat([self._fresh(generator, share) for generator, share in shares.items() if share]))
