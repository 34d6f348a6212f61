"""The command line: flags, their checks, and where each value comes from.

    value = command line, else the preset for this data set and teacher, else the flag's default

Every flag is accepted with hyphens or underscores. Everything here ends up as plain values in a namespace.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError, nearest_names

_UNSET = object()
Preset = Callable[[argparse.Namespace], Mapping[str, Any]]


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that states each default by itself, and none where the default is nothing."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, False) or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes hyphens for underscores and answers a mistake in one line with nearest names."""

    def __init__(self, **keywords: Any):
        super().__init__(formatter_class=Help, allow_abbrev=False, **keywords)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        return super().parse_known_args([_underscored(arg) for arg in args], namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help")

    def resolve(self, argv: Sequence[str], preset: Preset) -> argparse.Namespace:
        """Parses and fills in: command line, then ``preset``, then defaults.

        Args:
            argv: the command line without the program's name.
            preset: from the values known so far (command line and defaults) to those of a data set and teacher.

        Raises:
            UserError: for an unknown flag, a missing or malformed value.
        """
        destinations = self.names()
        given = vars(self.given(argv))
        resolved = {name: self.get_default(name) for name in destinations} | given
        for name, value in preset(argparse.Namespace(**resolved)).items():
            if name not in destinations:
                raise ValueError(f"a preset sets {name!r}, which is no flag")
            if name not in given:
                resolved[name] = value
        return argparse.Namespace(**resolved)

    def given(self, argv: Sequence[str]) -> argparse.Namespace:
        """Only what the command line says. Raises UserError as :meth:`resolve` does."""
        unset = argparse.Namespace(**dict.fromkeys(self.names(), _UNSET))
        parsed, unknown = self.parse_known_args(list(argv), unset)
        if unknown:
            self._refuse(unknown[0])
        return argparse.Namespace(**{name: value for name, value in vars(parsed).items() if value is not _UNSET})

    def from_plain(self, name: str, value: Any) -> Any:
        """A flag's value as it was before :func:`plain_values`.

        Raises:
            UserError: if it is none that the flag takes.
        """
        action = next(action for action in self._actions if action.dest == name)
        if value is None and action.default is None:
            return None
        if action.nargs == 0:
            if isinstance(value, bool):
                return value
        elif isinstance(value, list) == (action.nargs is not None):
            items = value if isinstance(value, list) else [value]
            if items and all(type(item) in (str, int, float) for item in items):
                first, *others = map(str, items)
                words = [f"--{name}={first}"] if not others else [f"--{name}", first, *others]
                return getattr(self.given(words), name)
        raise UserError(f"--{name} cannot be {value!r}", f"see {self.prog} --help")

    def names(self) -> list[str]:
        """Of the values that the command line sets."""
        return [action.dest for action in self._actions if action.dest != "help"]

    def _refuse(self, token: str) -> NoReturn:
        if not token.startswith("-"):
            raise UserError(f"unexpected argument {token!r}", "every value follows a flag, as in --dataset digits")
        flag = token.split("=")[0]
        raise UserError(f"unknown flag {flag}", nearest_names(flag, self._option_string_actions))

    def groups(self) -> dict[str, list[str]]:
        """The names of the flags' values under the titles of --help."""
        named = {
            group.title: [action.dest for action in group._group_actions if action.dest != "help"]
            for group in self._action_groups
        }
        return {title: names for title, names in named.items() if names}

    def grouped(self, values: argparse.Namespace) -> list[str]:
        """The resolved values as text lines, in the groups of --help."""
        lines = []
        for title, names in self.groups().items():
            pairs = [f"{name}={as_text(getattr(values, name))}" for name in names if hasattr(values, name)]
            if pairs:
                lines.append(f"{title}: " + "  ".join(pairs))
        return lines


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def as_text(value: Any) -> str:
    """A value as the command line takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def plain_values(values: argparse.Namespace) -> dict[str, Any]:
    """The namespace as JSON can hold it: paths become strings."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(values).items()}


def number(kind: type, low: float, high: float = float("inf"), above: bool = False) -> Callable[[str], Any]:
    """A checker for argparse: a finite int or float in [low, high], or in (low, high] with ``above``."""

    def check(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole number' if kind is int else 'a number'}"
            ) from None
        inside = (low < value if above else low <= value) and value <= high and abs(value) != float("inf")
        if not inside:
            bounds = f"{'above' if above else 'at least'} {low:g}" + (
                f", at most {high:g}" if high < float("inf") else ""
            )
            raise argparse.ArgumentTypeError(f"{text} is out of range: {bounds}")
        return value

    return check


def tag(text: str) -> str:
    """A checker for argparse: a run's label, as it may stand in a folder's name."""
    if not text or not all(letter.isalnum() or letter in "._-+=" for letter in text) or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is no label: letters, digits and . _ - + = only")
    return text


def add_machine_flags(parser: Parser) -> argparse._ArgumentGroup:
    """The flags that every entry point has: where data and results are, device, precision, seed."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:i]", help="where to run")
    machine.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16"), help="bf16 is faster where the hardware has it"
    )
    machine.add_argument(
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=0,
        metavar="N",
        help="same seed, same numbers on the same machine",
    )
    machine.add_argument(
        "--data_root", type=Path, default=Path("data"), metavar="DIR", help="where data sets are, or are downloaded to"
    )
    machine.add_argument("--run_root", type=Path, default=Path("run"), metavar="DIR", help="where run folders are made")
    machine.add_argument("--tag", type=tag, default=None, metavar="NAME", help="appended to the run folder's name")
    machine.add_argument(
        "--resume",
        nargs="?",
        const=True,
        type=Path,
        metavar="RUN",
        help="go on after the last saved round; given a run folder, with the flags in its config.json",
    )
    machine.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in the folder")
    machine.add_argument("--dry_run", action="store_true", help="resolve and print everything, build the models, stop")
    return machine
