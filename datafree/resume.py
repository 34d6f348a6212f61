"""Going on with a run: its arguments come from config.json, or are compared with it."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .arguments import Parser, Preset, plain_values
from .errors import UserError

# What may differ between the first start and a resumption: none of it changes a number, but for the device's rounding.
FREE = {"resume", "overwrite", "dry_run", "device", "data_root", "run_root", "download"}
OF_ONE_START = {"resume", "overwrite", "dry_run"}  # of these, config.json says nothing about a resumption


def resolve(parser: Parser, argv: list[str], preset: Preset) -> argparse.Namespace:
    """The arguments of a run: from the command line or, with ``--resume RUN``, from that run's config.json.

    Raises:
        UserError: as :meth:`Parser.resolve` does; with ``--resume RUN``, if RUN is no run folder of this program or if
            a flag is given that says something else than its config.json.
    """
    given = parser.given(argv)
    folder = getattr(given, "resume", None)
    if folder and getattr(given, "overwrite", False):
        raise UserError("--resume and --overwrite exclude each other", "go on with the one, start anew with the other")
    if not isinstance(folder, Path):
        return parser.resolve(argv, preset)
    config = _config(folder)
    if config.get("program", parser.prog) != parser.prog:
        raise UserError(f"{folder} is a run of {config['program']}", f"python {config['program']} --resume {folder}")
    for name, value in plain_values(given).items():
        if name not in FREE and _json(value) != _json(config.get(name)):
            raise UserError(f"--{name} was {config.get(name)} in {folder}", "leave it out, or start another with --tag")
    kept = _kept(parser, config, folder)
    return parser.resolve(argv, lambda known: {**preset(argparse.Namespace(**{**vars(known), **kept})), **kept})


def _kept(parser: Parser, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What config.json says, each value checked as one from the command line is."""
    names = [name for name in parser.names() if name in config and name not in OF_ONE_START]
    try:
        return {name: parser.from_plain(name, config[name]) for name in names}
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error.what}", "restore it, or start anew with --overwrite") from None


def run_path(args: argparse.Namespace, name: str) -> Path:
    """Where the run is or will be. Raises UserError where a run to be resumed was started with other arguments."""
    path = args.resume if isinstance(args.resume, Path) else args.run_root / name
    if args.resume:
        _check_unchanged(args, path)
    return path


def _check_unchanged(args: argparse.Namespace, folder: Path) -> None:
    if not os.path.exists(folder / "config.json"):
        return
    config, now = _config(folder), plain_values(args)
    for name, value in now.items():
        if name not in FREE and name in config and _json(config[name]) != _json(value):
            raise UserError(
                f"--{name} was {config[name]} in {folder}, not {value}", "say the same, or start another run with --tag"
            )


def _json(value: Any) -> str:
    return json.dumps(value)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        remedy = "name one under run/; a run that was stopped before it wrote any starts again with --overwrite"
        raise UserError(f"{folder} is no run folder: no readable config.json in it", remedy) from None
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not what a run writes", "start anew with --overwrite")
    return config
