"""How long a run is: epochs, in which there are rounds, in which there are steps."""

from dataclasses import dataclass

from ..configuration import knob
from ..errors import UserError
from .budget import BudgetConfig


@dataclass(frozen=True)
class LengthConfig(BudgetConfig):
    """How long a run is, and how it is divided."""

    epochs: int = knob(420, "length of the run, warm-up included", low=1, unit="N", names=("epoch",))
    ep_steps: int | None = knob(None, "distillation steps an epoch (default: kd_steps)", low=1, unit="STEPS")
    kd_steps: int = knob(400, "distillation steps a round: after each synthesis", low=1, unit="STEPS")
    warmup: int = knob(20, "first epochs, of synthesis only", low=0, unit="EPOCHS")
    eval_every: int = knob(1, "how often the student is evaluated; the last epoch always is", low=1, unit="EPOCHS")

    def check(self) -> None:
        super().check()
        if self.ep_steps is not None and self.ep_steps < self.kd_steps:
            what = f"--ep_steps {self.ep_steps} is less than --kd_steps {self.kd_steps}"
            raise UserError(what, "an epoch holds a round or more: lower --kd_steps")
        if self.warmup >= self.epochs:
            what = f"{self.warmup} epochs of warm-up leave none of {self.epochs} to distil in"
            raise UserError(what, "lower --warmup or raise --epochs")

    @property
    def rounds(self) -> list[int]:
        """Distillation steps of each round of an epoch; the last may be short."""
        whole, rest = divmod(self.ep_steps or self.kd_steps, self.kd_steps)
        return [self.kd_steps] * whole + [rest] * bool(rest)

    @property
    def steps(self) -> int:
        """All distillation steps of the run."""
        return (self.epochs - self.warmup) * sum(self.rounds)
