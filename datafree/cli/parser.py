"""The command line: flags from the fields of Config dataclasses, and what is said of a flag that there is not.

Every flag is accepted with hyphens or underscores. Everything here ends up as plain values in a namespace.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

from ..configuration import Config, Preset, as_text, check_effect, checked, convert, described, kind_of, plain, resolve
from ..errors import UserError, nearest_names

_UNSET = object()


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that states each default by itself, and none where the default is nothing."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, False) or (action.nargs == 0 or action.dest == "help"):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Flags in groups, one a Config; a mistake is answered in one line with nearest names.

    Args:
        prog, description: for --help.
        configs: by title.
        elsewhere: of flags that belong to something not chosen, what to say: by name, (whose it is, what to do).
        add_help: whether --help is one of them.

    Raises:
        UserError: where two configs have a flag of one name.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        configs: Mapping[str, type[Config]] | None = None,
        elsewhere: Mapping[str, tuple[str, str]] | None = None,
        add_help: bool = True,
    ):
        super().__init__(
            prog=prog, description=description, formatter_class=Help, allow_abbrev=False, add_help=add_help
        )
        self.configs, self.elsewhere = dict(configs or {}), dict(elsewhere or {})
        for title, config in self.configs.items():
            group = self.add_argument_group(title)
            for each in fields(config):
                try:
                    _add(group, each, config)
                except argparse.ArgumentError:
                    raise UserError(
                        f"{title} has a flag --{each.name} of its own", f"{prog} has it: rename it"
                    ) from None

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        return super().parse_known_args([_underscored(arg) for arg in args], namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help")

    def resolve(self, argv: Sequence[str], preset: Preset = lambda known: {}) -> argparse.Namespace:
        """Command line, then ``preset``, then defaults. Raises UserError for an unknown flag or a malformed value."""
        return resolve(self.configs, vars(self.given(argv)), preset)

    def given(self, argv: Sequence[str]) -> argparse.Namespace:
        """Only what the command line says. Raises UserError as :meth:`resolve` does."""
        unset = argparse.Namespace(**dict.fromkeys(self.names(), _UNSET))
        parsed, unknown = self.parse_known_args(list(argv), unset)
        if unknown:
            self._refuse(unknown[0])
        return argparse.Namespace(**{name: value for name, value in vars(parsed).items() if value is not _UNSET})

    def from_plain(self, name: str, value: Any) -> Any:
        """A flag's value as it was before ``configuration.plain``. Raises UserError if the flag takes no such one."""
        config, each = next((c, f) for c in self.configs.values() for f in fields(c) if f.name == name)
        kind, items = kind_of(each, config)
        types = {bool: (bool,), int: (int,), float: (int, float)}.get(kind, (str,))
        try:
            if value == plain(each.default):
                return each.default
            if (
                isinstance(value, list)
                and value
                and items in (0, len(value))
                and all(type(item) in types for item in value)
            ):
                return tuple(convert(each, kind, str(item)) for item in value)
            if items is None and type(value) in types:
                return checked(each, kind(value))
        except ValueError:
            pass
        raise UserError(f"--{name} cannot be {value!r}", f"see {self.prog} --help")

    def names(self) -> list[str]:
        """Of the values that the command line sets."""
        return [each.name for config in self.configs.values() for each in fields(config)]

    def _refuse(self, token: str) -> NoReturn:
        if not token.startswith("-"):
            raise UserError(f"unexpected argument {token!r}", "every value follows a flag, as in --dataset digits")
        flag = token.split("=")[0]
        if flag.removeprefix("--") in self.elsewhere:
            whose, remedy = self.elsewhere[flag.removeprefix("--")]
            raise UserError(f"{flag} belongs to {whose}", remedy)
        raise UserError(f"unknown flag {flag}", nearest_names(flag, self._option_string_actions))

    def check(self, values: argparse.Namespace, argv: Sequence[str]) -> None:
        """Raises UserError for values out of range or that contradict each other, or leave a given one no effect."""
        for config in self.configs.values():
            config.of(values)
        check_effect(self.configs, vars(self.given(argv)), values)

    def config(self, values: argparse.Namespace) -> dict[str, Any]:
        """For config.json: see :func:`configuration.described`."""
        return described(self.prog, self.configs, values)

    def grouped(self, values: argparse.Namespace) -> list[str]:
        """The resolved values as text lines, in the groups of --help."""
        shown = {title: [each.name for each in fields(config)] for title, config in self.configs.items()}
        return [
            f"{title}: " + "  ".join(f"{name}={as_text(getattr(values, name))}" for name in names)
            for title, names in shown.items()
            if names
        ]

    def origins(
        self, argv: Sequence[str], name: str, preset: Mapping[str, Any], values: argparse.Namespace
    ) -> list[str]:
        """Which values the command line gives, which the preset of that name or the method's own defaults say.

        The others are the flags' defaults, or worked out.
        """
        given, known = vars(self.given(argv)), vars(values)
        of_preset = [name for name in preset if name not in given and name in known and known[name] == preset[name]]
        named = {"given": list(given), f"from the preset {name}": of_preset}
        return [f"{origin}: {' '.join(names)}" for origin, names in named.items() if names]


def number(kind: type, low: float) -> Callable[[str], Any]:
    """A type for ``add_argument`` of scripts that have no Config: a finite number of at least ``low``."""

    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is out of range: at least {low:g}")
        return value

    read.__name__ = {int: "whole number", float: "number"}[kind]  # as argparse calls it
    return read


def _add(group: argparse._ArgumentGroup, each: Field, config: type[Config]) -> None:
    about, (kind, items) = each.metadata, kind_of(each, config)
    names = [f"--{name}" for name in (each.name, *about["names"])]
    if kind is bool:
        group.add_argument(*names, action="store_true", help=about["help"])
        return

    def read(text: str) -> Any:
        try:
            return convert(each, kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    how: dict[str, Any] = {"type": read, "default": each.default, "help": about["help"].replace("%", "%%")}
    if items is not None:
        how["nargs"], how["action"] = items or "+", _Tuple
    if about["optional_value"]:
        how["nargs"], how["const"] = "?", True
    how["metavar"] = "{" + ",".join(about["choices"]) + "}" if about["choices"] else about["unit"]
    group.add_argument(*names, **how)


class _Tuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[override]
        setattr(namespace, self.dest, tuple(values))


def _underscored(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if not flag.startswith("--") or " " in flag:  # a value may be flags of another program
        return argument
    return "--" + flag[2:].replace("-", "_") + equals + value
