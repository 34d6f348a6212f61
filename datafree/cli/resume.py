"""Going on with a run: its arguments come from config.json, or are compared with it."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from .. import processes
from ..configuration import Config, Preset, resolve
from ..errors import UserError
from ..paths import absolute, same_place, split
from ..runs.begun import read_config
from .flags import MachineConfig, TaskConfig, free_names
from .parser import Parser

OF_ONE_START = {"resume", "overwrite", "dry_run"}  # of these, config.json says nothing about a resumption


def beginning(argv: Sequence[str]) -> argparse.Namespace:
    """What decides which flags there are: method, hl, no_aea; from the command line, else from the run to be resumed.

    Raises:
        UserError: as :func:`arguments` does.
    """
    parser = Parser("main.py", "", {"task": TaskConfig, "machine": MachineConfig}, add_help=False)
    unset = argparse.Namespace(**dict.fromkeys(parser.names()))
    given, _ = parser.parse_known_args(list(argv), unset)
    values = {name: getattr(TaskConfig, name) for name in ("method", "hl", "no_aea")}
    if isinstance(given.resume, Path):
        config = read_config(given.resume, parser.prog)
        values |= {name: config[name] for name in values if name in config}
    values |= {name: getattr(given, name) for name in values if getattr(given, name) is not None}
    return argparse.Namespace(**values)


def arguments(parser: Parser, argv: Sequence[str], preset: Preset) -> argparse.Namespace:
    """The arguments of a run: from the command line or, with ``--resume RUN``, from that run's config.json.

    Raises:
        UserError: as :meth:`Parser.resolve` does; with ``--resume RUN``, if RUN is no run folder of this program and
            version, or if a flag is given that says something else than its config.json.
    """
    given = parser.given(argv)
    folder = getattr(given, "resume", None)
    if not isinstance(folder, Path):
        values = parser.resolve(argv, preset)
        if processes.started_anew():  # what was given has been done once
            values.resume, values.overwrite = True, False
        return values
    config, free = read_config(folder, parser.prog), free_names(parser.configs)
    for name, value in vars(given).items():
        if name not in free and not same_place(config.get(name), absolute(value)):
            before, path, behind = split(str(value))
            if (before or behind) and path and not os.path.exists(path):
                raise UserError(f"--{name}: there is no {path}", "check the path")
            raise UserError(f"--{name} was {config.get(name)} in {folder}", "leave it out, or start another with --tag")
    kept = {name: config[name] for name in parser.names() if name in config and name not in OF_ONE_START}
    kept |= {"run_root": str(folder.absolute().parent)}  # wherever it is by now
    try:
        kept = {name: parser.from_plain(name, value) for name, value in kept.items()}
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error.what}", "restore it, or start anew with --overwrite") from None
    return resolve(parser.configs, kept | vars(given), lambda known: {})  # a flag that is new since: its default


def run_path(parser: Parser, values: argparse.Namespace, name: str) -> Path:
    """Where the run is or will be. Raises UserError where a run to be resumed was started with other arguments."""
    path = values.resume if isinstance(values.resume, Path) else values.run_root / name
    if values.resume:
        keep_plan(values, path, parser.prog)
        check_same(values, path, parser.configs, parser.prog)
    return path


def keep_plan(values: argparse.Namespace, path: Path, program: str) -> None:
    """A run whose length was planned by a budget goes on with that plan."""
    budget = getattr(values, "budget_seconds", None) or getattr(values, "budget_teacher_passes", None)
    if budget and os.path.exists(path / "config.json"):
        config = read_config(path, program)
        values.epochs, values.warmup = config["epochs"], config["warmup"]


def check_same(values: argparse.Namespace, path: Path, configs: Mapping[str, type[Config]], program: str) -> None:
    """Raises UserError where there is a run at ``path`` that was started with other arguments."""
    if not os.path.exists(path / "config.json"):
        return
    defaults = {each.name: absolute(each.default) for config in configs.values() for each in fields(config)}
    config, free = defaults | read_config(path, program), free_names(configs)
    for name, value in vars(values).items():
        if name not in free and name in config and not same_place(config[name], absolute(value)):
            what = f"--{name} was {config[name]} in {path}, not {value}"
            raise UserError(what, "say the same, or start another run with --tag")


def check_teacher_file(values: argparse.Namespace) -> None:
    """Raises UserError where there is no file of the teacher's weights, with what to do about it."""
    path = values.teacher_path
    if path is not None and not (
        os.path.exists(path) or re.match(r"\w+:/", str(path))
    ):  # an address is told apart later
        remedy = "say where it is now: --teacher_path FILE"
        if not values.resume:
            remedy = "name it with --teacher_path FILE, or train it with train_scratch.py"
        raise UserError(f"teacher checkpoint {path} does not exist", remedy)
