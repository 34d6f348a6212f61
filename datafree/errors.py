"""The one exception that a user is meant to see.

Raised wherever the cause lies in what the program was given (an argument, a file, a folder, a full disk).
The entry points print it as a single line, ``error: <what> — <what to do>``, and leave with status 2.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MOST_SHOWN = 40  # names of a list; chosen by us
RATES = {  # the flag to lower where one of these terms, or weights of these networks, became NaN or infinite
    "--lr": ("loss_kd", "loss_hard", "student", "loss", "model"),
    "--lr_g": (
        *("loss_bn", "loss_tv", "loss_l2", "loss_patch", "loss_oh", "loss_act", "loss_balance", "loss_ent"),
        *("g1", "g2", "d", "generator", "slow generator"),
    ),
    "--lr_p": ("loss_gap", "P"),
}


class UserError(Exception):
    """Something the user can put right.

    Args:
        what: what is wrong, in one line, naming the offending value.
        remedy: what to do about it, in one line.
    """

    def __init__(self, what: str, remedy: str):
        self.what = " ".join(str(what).split())
        self.remedy = " ".join(str(remedy).split())
        super().__init__(f"{self.what} — {self.remedy}")


def printable(text: object) -> str:
    """As text that is safe to show: a name in somebody's file may hold what a terminal obeys."""
    text = str(text)
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


def nearest_names(name: str, known: Iterable[str], most: int = 4) -> str:
    """A phrase that names what the user may have meant: the nearest known names, else all of them."""
    known = sorted(known)
    begun = [entry for entry in known if entry.startswith(name)]
    alike = [entry for entry in difflib.get_close_matches(name, known, n=most, cutoff=0.5) if entry not in begun]
    near = (begun + alike)[:most]
    if near:
        return f"did you mean {', '.join(near)}?"
    shown = known if len(known) <= MOST_SHOWN else [*known[:MOST_SHOWN], f"... ({len(known)} in all)"]
    return f"known: {', '.join(shown)}"


class NotFiniteError(ArithmeticError):
    """A loss term became NaN or infinite.

    Args:
        term: its name.
        value: what it became.
        step: where in the round, from 1.
    """

    def __init__(self, term: str, value: float, step: int):
        self.term, self.value, self.step = term, value, step
        super().__init__(f"{term} became {value} in step {step}")


def check_finite(rows: Tensor, names: Sequence[str]) -> None:
    """Raises NotFiniteError for the first value that is not: rows (steps, terms) on the CPU, a name a term."""
    bad = (~rows.isfinite()).nonzero()
    if len(bad):
        step, term = bad[0].tolist()
        raise NotFiniteError(names[term], rows[step, term].item(), step + 1)


@contextmanager
def not_finite_in(where: str) -> Iterator[None]:
    """Within, a NotFiniteError becomes a UserError that says where it happened."""
    try:
        yield
    except NotFiniteError as bad:
        rate = next((rate for rate, names in RATES.items() if bad.term.split("'")[0] in names), "--lr or --lr_g")
        remedy = f"start another with a lower {rate}, or with --precision fp32; the state before it is kept"
        if (where, bad.step) == ("epoch 1", 1) and bad.term.startswith("loss_"):
            remedy = "nothing is trained yet: the teacher itself answers so; mend its forward, or try --precision fp32"
        raise UserError(f"{bad.term} became {bad.value} in {where}, step {bad.step}", remedy) from None


def check_weights_finite(networks: Mapping[str, nn.Module], step: int) -> None:
    """Raises NotFiniteError for the first network with a weight or statistic that is not, after so many steps.

    The last update of a round can spoil weights that no loss has met yet; saved, they would spoil every resumption.
    """
    for name, network in networks.items():
        state = network.state_dict(keep_vars=True).items()  # of layers that keep more, not of tensors alone
        values = {key: value.detach() for key, value in state if isinstance(value, Tensor) and _changes(key, value)}
        good = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
        for (key, value), is_finite in zip(values.items(), good, strict=True):
            if not is_finite:
                raise NotFiniteError(f"{name}'s {key}", value[~value.isfinite()][0].item(), step)


def _changes(name: str, value: Tensor) -> bool:
    """Whether training may change it: a mask, say, may well be -inf."""
    return isinstance(value, nn.Parameter) or value.requires_grad or "running_" in name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, on the CPU or a GPU, is what an operation lacked; PyTorch has several ways to say so."""
    said = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in said)
    )


def first_line(error: BaseException) -> str:
    """Of what it says; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
