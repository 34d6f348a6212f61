"""How many epochs a budget buys: the parts of an epoch are tried on copies, before the run begins.

an epoch of warm-up    rounds * synthesis
an epoch               rounds * synthesis + steps * distillation, and now and then an evaluation and a saved state, of
                       which with --save_async the copy alone is waited for: for its file the next one waits, where it
                       takes longer than what is between, and the run at its end
the plan               the most epochs within the budget, the share of warm-up as it was
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .. import files, processes
from ..configuration import Config, knob
from ..data.specs import Images
from ..engine.costs import Costs, passes
from ..engine.device import Compute, synchronise
from ..engine.evaluation import Evaluation
from ..engine.randomness import global_draws_forgotten
from ..errors import UserError
from .run import period, saves_behind
from .snapshot import Snapshot

SHARE = 0.01  # of the seconds, over which each part is timed; chosen by us
LARGEST = 2**20  # epochs


@dataclass(frozen=True)
class BudgetConfig(Config):
    """What a run may cost; it then plans its epochs itself."""

    budget_seconds: float | None = knob(
        None, "plans --epochs so that the run takes so long, evaluation and saving included", above=0, unit="S"
    )
    budget_teacher_passes: float | None = knob(
        None, "plans --epochs for so many images through the teacher, forward and backward", above=0, unit="N"
    )

    def check(self) -> None:
        super().check()
        if self.budget_seconds and self.budget_teacher_passes:
            raise UserError("--budget_seconds and --budget_teacher_passes exclude each other", "leave one out")

    @property
    def budget(self) -> tuple[float, str] | None:
        """How much, and of what."""
        if self.budget_seconds:
            return self.budget_seconds, "s"
        return (self.budget_teacher_passes, "teacher passes") if self.budget_teacher_passes else None


class Length(Protocol):
    """See ``runs.length.LengthConfig``."""

    epochs: int
    warmup: int
    eval_every: int
    rounds: list[int]


@dataclass(frozen=True)
class Prices:
    """Of a round's synthesis in warm-up and later, of a distillation step, an evaluation, and of what comes once.

    Saving is spread over the epochs: of a state that is saved in every fifth a fifth; so is what is written behind
    them, all but the last file, which comes once.
    """

    warmup: float
    synthesis: float
    step: float
    evaluation: float = 0.0
    once: float = 0.0
    saving: float = 0.0
    writing: float = 0.0

    def of(self, length: Length, epochs: int, warmup: int) -> float:
        """A run of so many epochs, warm-up among them."""
        rounds, learning = len(length.rounds), epochs - warmup
        evaluations = sum(epoch % length.eval_every == 0 or epoch == epochs for epoch in range(warmup + 1, epochs + 1))
        an_epoch = rounds * self.synthesis + sum(length.rounds) * self.step
        worked = warmup * rounds * self.warmup + learning * an_epoch + evaluations * self.evaluation
        behind = worked / epochs + (epochs - 1) * self.writing  # the first file begins after the first epoch
        return self.once + epochs * self.saving + max(worked, behind)


def planned(budget: float, unit: str, prices: Prices, length: Length) -> tuple[int, int]:
    """Epochs, and how many of them are warm-up.

    Raises:
        UserError: where not even one epoch of distillation is within the budget, or an epoch costs nothing of it.
    """

    def within(epochs: int) -> bool:
        return prices.of(length, epochs, warm(epochs)) <= budget

    def warm(epochs: int) -> int:
        return min(round(length.warmup / length.epochs * epochs), epochs - 1)

    if prices.of(length, 1, 0) == prices.once + prices.saving:
        raise UserError(f"an epoch takes no {unit}: the budget sets no end to it", "give --budget_seconds or --epochs")
    if not within(1):
        what = f"the budget of {budget:g} {unit} is less than one epoch takes, {prices.of(length, 1, 0):.3g}"
        raise UserError(what, "raise it, or make epochs shorter: --ep_steps, --kd_steps, --synthesis_batch_size")
    low, high = 1, 2
    while within(high) and high < LARGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low, warm(low)


class Trial:
    """Times a stretch of work, and counts its teacher passes, again and again until that says something.

    Args:
        costs: where passes are counted.
        compute: its device is waited for.
        enough: seconds; what takes longer is done once.
    """

    def __init__(self, costs: Costs, compute: Compute, enough: float):
        self.costs, self.compute, self.enough = costs, compute, enough

    def __call__(self, work: Callable[[], Any], unmeasured: int = 1) -> tuple[float, float]:
        """Seconds and teacher passes of one call; not of the first ones, which are slower, unless they take long."""
        seconds, counts, end = [], [], None
        while processes.agreed(end is None or time.perf_counter() < end):
            synchronise(self.compute.device)
            self.costs.take()
            began = time.perf_counter()
            work()
            synchronise(self.compute.device)
            took = processes.agreed(time.perf_counter() - began)
            if unmeasured == 0 or took > self.enough:
                end = began + self.enough if end is None else end
                seconds.append(took)
                counts.append(passes(self.costs.take()))
            unmeasured = max(0, unmeasured - 1)
        return sum(seconds) / len(seconds), sum(counts) / len(counts)


@dataclass(frozen=True)
class Plan:
    """Epochs of a run, those of warm-up among them, and the seconds that it took to find out."""

    epochs: int
    warmup: int
    seconds: float


def plan_within(
    budget: tuple[float, str],
    length: Length,
    make: Callable[[], Any],
    test: Callable[[], Images | None],
    began: float,
) -> Plan:
    """What a budget buys.

    Args:
        budget: how much, and of what.
        length: of the run without a budget, whose share of warm-up it keeps.
        make: gives a ``job.Job`` on copies of the networks.
        test: loads the test set.
        began: when the program did, by ``time.perf_counter``; what has passed since is of the budget, too.

    Raises:
        UserError: as :func:`planned` does.
    """
    amount, unit = budget
    with global_draws_forgotten():
        tried = prices(make(), test(), SHARE * amount if unit == "s" else 0.0)
    tried, seconds = processes.agreed((tried, time.perf_counter() - began))
    left = amount - seconds if unit == "s" else amount
    if left <= 0:
        what = f"the budget of {amount:g} s is less than the {seconds:.1f} s that went before the run begins"
        raise UserError(what, "raise it, or give --epochs")
    of_unit = Prices(*(price[unit != "s"] for price in tried))
    return Plan(*planned(left, unit, of_unit, length), seconds)


def prices(job: Any, images: Images | None, enough: float) -> list[tuple[float, float]]:
    """Seconds and teacher passes of what ``Prices`` lists, found by trying it."""
    method, pool, costs = job.method, job.pool, job.context.costs
    trial = Trial(costs, job.context.compute, enough)

    def synthesize(warmup: bool) -> None:
        batch = method.synthesize(warmup)
        if batch is not None and pool is not None:
            pool.clear()
            pool.add(job.targets.prepare(batch))

    evaluation: list[Evaluation] = []
    began = trial(lambda: evaluation.append(Evaluation(job.context.teacher, images, job.context.compute)), 0)
    warmup = trial(lambda: synthesize(True)) if job.length.warmup else (0.0, 0.0)
    later = trial(lambda: synthesize(False))
    count = max(job.length.rounds)
    step = tuple(each / count for each in trial(lambda: job.student.learn(job.source, job.targets, count)))
    scored = trial(lambda: job.score(evaluation[0]))
    ended = trial(method.finish, 0)
    count, in_seconds = period(job.values.save_every)
    copied = written = 0.0
    saved = 0.0 if in_seconds else trial(lambda: save_aside(job))[0]
    if saved and saves_behind(job.values.save_async):
        copied, written, saved = trial(Snapshot(Path(), job.parts, job.pool).taken)[0], saved, 0.0
    once = began[0] + ended[0] + written, ended[1]
    return [warmup, later, step, (scored[0], 0.0), once, ((copied + saved) / count, 0.0), (written / count, 0.0)]


def save_aside(job: Any) -> None:
    """Writes what an epoch saves where the run will, into a folder that goes. Several processes call it together."""
    root = job.values.run_root if os.path.isdir(job.values.run_root) else None
    with tempfile.TemporaryDirectory(dir=root, prefix=".budget-") as own:
        folder = Path(processes.agreed(own))
        Snapshot(folder, job.parts, job.pool).save()
        if processes.first():
            files.save(job.student.classifier.state_dict(), folder / "student_last.pth")
        processes.wait_for_all()
