"""What a run that has begun says of itself in its folder's config.json, for whoever goes on with it."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..paths import absolute, found_again, same_place
from .folder import FORMAT

TEACHER_CHECKSUM = "teacher_checksum"  # in config.json


def read_config(folder: Path, program: str) -> dict[str, Any]:
    """config.json, its paths found again where the folder has moved.

    Raises:
        UserError: where there is none, or it is of another program or version.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        remedy = "name one under run/; a run that was stopped before it wrote any starts again with --overwrite"
        raise UserError(f"{folder} is no run folder: no readable config.json in it", remedy) from None
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not what a run writes", "start anew with --overwrite")
    if config.get("format") != FORMAT:
        what = f"{folder} was written by another version, whose runs cannot be resumed here"
        raise UserError(what, "finish it with that version, or start anew with --overwrite")
    whose = config.get("program", program)
    if whose != program:
        by_hand = f"python {whose} --resume {folder}" if whose.endswith(".py") else "call that again with resume=True"
        raise UserError(f"{folder} is a run of {whose}", by_hand)
    return found_again(config, folder)


def check_teacher(values: argparse.Namespace, path: Path, program: str, checksum: str) -> None:
    """Raises UserError where the run at ``path`` was begun with other weights than those of that checksum.

    A run that was begun before checksums were kept knows its teacher's path alone.
    """
    if not (values.resume and os.path.exists(path / "config.json")):
        return
    config, file = read_config(path, program), getattr(values, "teacher_path", None)
    same = same_place(config.get("teacher_path"), absolute(file))
    if not (config[TEACHER_CHECKSUM] == checksum if TEACHER_CHECKSUM in config else same):
        what = f"{file or 'the teacher'} is another teacher, by its weights or its input format, than {path} began with"
        before = f" (then at {config['teacher_path']})" if config.get("teacher_path") else ""
        raise UserError(what, f"give that one{before}, or start another run with --tag")
