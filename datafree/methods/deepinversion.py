"""DeepInversion (Yin et al. 2020): the pixels of a batch are the parameters; with ``--adi`` its adaptive form.

a round:
    x ~ N(0, 1) (B, C, H, W), normalised as the data are;  y ~ U{0..C-1}
    for g_steps
        x~ <- x as pixels, the whole batch shifted round its edges and mirrored, or not
        L   = oh * CE(T(x~), y) + bn * L_bn(x~) + adi * (1 - JS(T(x~), S(x~)))     L_adi not in warm-up
              + tv * L_tv(x) + l2 * L_l2(x) + patch * L_patch(x~)                  without BN; 0 where there is one
        remember the x of the lowest L
        x  <- Adam(dL/dx, lr_x), clipped to what pixels can be
    the best x, as pixels, goes to the pool
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import configuration
from ..configuration import knob
from ..data.augmentation import roll_flip
from ..data.batch import Batch
from ..engine.context import Context
from ..losses.kd import competition_loss, one_hot_loss
from ..models.classifier import Normalise
from .base import Method
from .inversion import Best
from .priors import Priors

AUTO = "(default: 0 where BatchNorm sees most of the teacher)"


class DeepInversion(Method):
    """See the top of the file. Draws from the streams "synthesis" and "sample".

    What Adam moves is x = (pixels - mean) / std with the data's mean and standard deviation, as in the authors' code:
    an lr_x of 0.1 is a tenth of a standard deviation (on CIFAR-10, 5 of 255 levels) a step, and x ~ N(0, 1) begins near
    what the data are like. The networks take pixels, and normalise them as each was trained.
    """

    defaults = {"warmup": 0}  # noqa: RUF012 (read only)

    @dataclass(frozen=True)
    class Config(configuration.Config):
        synthesis_batch_size: int = knob(256, "images made a round", low=1, high=2**16, unit="IMAGES")
        g_steps: int = knob(1000, "iterations a round; more give better images, slower (the paper: 2000)", low=1)
        lr_x: float = knob(0.1, "learning rate of the images, in standard deviations of the data", above=0)
        adam_betas: tuple[float, float] = knob((0.5, 0.99), "of Adam", low=0, high=0.9999, unit="BETA")
        jitter: float = knob(
            0.125, "largest shift of the batch, as a share of height and width; 0: none", low=0, high=0.5
        )
        bn: float = knob(10.0, "weight of L_bn: raise it for images closer to the teacher's training data", low=0)
        tv: float | None = knob(None, f"weight of L_tv: raise it for smoother images {AUTO}", low=0)
        l2: float | None = knob(None, f"weight of L_l2: raise it for paler images {AUTO}", low=0)
        patch: float | None = knob(None, f"weight of L_patch: raise it for more varied patches {AUTO}", low=0)
        oh: float = knob(1.0, "weight of L_oh: raise it for images of clearer class", low=0)
        adi: float = knob(
            0.0, "weight of L_adi: above 0 for images that teacher and student see differently (the paper's ADI)", low=0
        )

    def __init__(self, context: Context, config: "DeepInversion.Config"):
        super().__init__(context, config)
        self.priors = Priors(context, config, bn_mmt=0.0)
        self.normalise = Normalise(context.spec.mean, context.spec.std).to(context.compute.device)
        black = self.normalise.mean.new_zeros(())
        self.range = self.normalise(black), self.normalise(black + 1)  # of x: (1, C, 1, 1) twice
        self.reach = tuple(int(config.jitter * side) for side in context.spec.shape[1:])

    @property
    def remarks(self) -> list[str]:
        return [str(self.priors)]

    def synthesize(self, warmup: bool) -> Batch:
        return Batch(self.inverted("synthesis", adversarial=not warmup and self.config.adi > 0))

    def sample(self, count: int, stream: str = "sample") -> Tensor:
        """Rounds of their own, without the student: as dear as any, for there is no generator."""
        rounds = -(-count // self.config.synthesis_batch_size)
        return torch.cat([self.inverted(stream, adversarial=False, told=False) for _ in range(rounds)])[:count]

    @torch.enable_grad()
    def inverted(self, stream: str, adversarial: bool, told: bool = True) -> Tensor:
        """A round: the best images (B, C, H, W) in [0, 1]. ``told``: whether its terms and images are shown around."""
        context, config, rng, best = self.context, self.config, self.context.streams[stream], Best()
        B, device = config.synthesis_batch_size, context.compute.device
        x = torch.randn(B, *context.spec.shape, generator=rng, device=device).clamp(*self.range).requires_grad_()
        y = torch.randint(context.spec.num_classes, (B,), generator=rng, device=device)
        adam = torch.optim.Adam([x], lr=config.lr_x, betas=config.adam_betas, fused=context.compute.fused)
        for _ in range(config.g_steps):
            pixels = self.normalise.undone(x)
            loss = self.objective(pixels, y, rng, adversarial, told)
            loss = context.backward(loss, [x])
            best.keep(pixels, loss)  # before the step: the images that this loss is of
            adam.step()
            with torch.no_grad():
                x.clamp_(*self.range)
        return best.images.clamp(0, 1)  # rounding may have left it

    def objective(self, pixels: Tensor, y: Tensor, rng: torch.Generator, adversarial: bool, told: bool) -> Tensor:
        """L of pixels (B, C, H, W) for classes y (B,)."""
        context, config = self.context, self.config
        seen = roll_flip(pixels, rng, self.reach, context.spec.flip)  # x~
        with self.priors.listening():
            teacher_logits = context.ask(context.teacher, seen)
        L_priors = self.priors.terms(pixels)  # by name: L_bn, or what stands in for it
        L_oh = one_hot_loss(teacher_logits, y)
        L_adi = torch.zeros_like(L_oh)
        if adversarial:
            with context.student_as_judge() as student:
                L_adi = competition_loss(teacher_logits, context.ask(student, seen))
        loss = config.oh * L_oh + self.priors.weighted(L_priors) + config.adi * L_adi
        if told:
            context.report(L_priors | {"loss_oh": L_oh, "loss_adi": L_adi, "loss_generator": loss})
            context.observe(seen, teacher_logits)
        return loss
