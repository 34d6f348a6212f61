"""Which flag is the likely cause of a run that goes wrong."""

from collections.abc import Sequence

STUCK = 0.01  # a fall from one epoch to the next, as a share, that is none; chosen by us
HALF = 0.5  # of the first epoch's loss: a generator that got there has learnt something; chosen by us


def against_chance(reached: float, generator_loss: Sequence[float], epoch: int, lr_g: float | None) -> str:
    """The warning for a student near chance.

    Args:
        reached: its accuracy or agreement, %.
        generator_loss: one value an iteration of the epochs so far; empty where none is reported.
        epoch: how many they are.
        lr_g: learning rate of the generator; None for a method that has none.
    """
    said = f"warning: the student is still near chance ({reached:.1f} %)"
    if lr_g is not None and epoch > 2 and len(generator_loss) >= epoch:
        first, before, last = (_mean(generator_loss, epoch, which) for which in (1, epoch - 1, epoch))
        if last > before - STUCK * abs(before) and last > first - HALF * abs(first):
            told = f"{first:,.4g} at first, {last:,.4g} now"
            return f"{said}, and the generator's loss does not fall ({told}) - lower --lr_g"
    more = "the method needs more steps to make them" if lr_g is None else "lower --lr_g or raise --g_steps"
    return f"{said} - lower --lr, or raise --kd_steps; if the images in synthetic.png are all alike, {more}"


def _mean(values: Sequence[float], epochs: int, epoch: int) -> float:
    """Of one epoch, counted from 1, where each has as many values."""
    each = len(values) // epochs
    return sum(values[(epoch - 1) * each : epoch * each]) / each
