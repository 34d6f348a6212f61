"""Going on with a run: its arguments come from config.json, or are compared with it."""

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import Parser, Preset, plain_values
from .errors import UserError

# What may differ between the first start and a resumption: none of it changes a number (device: beyond rounding).
FREE = {"resume", "overwrite", "dry_run", "device", "data_root", "run_root", "download"}


def resolve(parser: Parser, argv: list[str], preset: Preset) -> argparse.Namespace:
    """The arguments of a run: from the command line or, with ``--resume RUN``, from that run's config.json.

    Raises:
        UserError: as :meth:`Parser.resolve` does; with ``--resume RUN``, if RUN is no run folder or if a flag is given
            that says something else than its config.json.
    """
    args = parser.resolve(argv, preset)
    if not isinstance(args.resume, Path):
        return args
    folder, config = args.resume, _config(args.resume)
    given = parser.given(argv)
    for name, value in plain_values(given).items():
        if name not in FREE and _json(value) != _json(config.get(name)):
            raise UserError(f"--{name} was {config.get(name)} in {folder}", "leave it out, or start another with --tag")
    for name in vars(args).keys() & config.keys() - vars(given).keys():
        setattr(args, name, parser.from_plain(name, config[name]))
    args.resume, args.overwrite, args.dry_run = folder, False, given.dry_run if "dry_run" in given else False
    return args


def run_path(args: argparse.Namespace, name: str) -> Path:
    """Where the run is or will be. Raises UserError where a run to be resumed was started with other arguments."""
    path = args.resume if isinstance(args.resume, Path) else args.run_root / name
    if args.resume:
        _check_unchanged(args, path)
    return path


def _check_unchanged(args: argparse.Namespace, folder: Path) -> None:
    if not (folder / "config.json").exists():
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
    except (OSError, ValueError):
        raise UserError(f"{folder} is no run folder: no readable config.json in it", "name one under run/") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not what a run writes", "start anew with --overwrite")
    return config
