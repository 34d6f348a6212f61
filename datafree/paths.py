"""Paths in config.json: from the root, found again where a folder or the project moved; and names told without them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDERS = ("imagefolder:", "hf:", "timm:local-dir:")  # before the path in the name of a data set, or of a network


def split(text: str) -> tuple[str, str, str]:
    """A name in its parts: what stands before a path, the path, what stands behind; no path: ("", "", name).

    imagefolder:PATH, hf:FOLDER, FILE.py:NAME, and a path from the root.
    """
    for before in FOLDERS:
        if text.startswith(before):
            return before, text.removeprefix(before), ""
    file, dot, name = text.rpartition(".py:")
    if dot:
        return "", f"{file}.py", f":{name}"
    return ("", text, "") if os.path.isabs(text) else ("", "", text)


def portable(text: str) -> str:
    """A name, or a flag's value, without the folders that lead to what it names; what is of the hub stays."""
    if text.startswith("timm:hf"):
        return text
    prefix = next((each for each in FOLDERS if text.startswith(each)), "")
    path = text.removeprefix(prefix).rstrip("/\\")
    if prefix == "hf:" and re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) and not Path(path).exists():
        return text
    return prefix + re.split(r"[/\\]", path)[-1]


def absolute(value: Any) -> Any:
    """As config.json holds it: a path, or a name with the path of something that is there, from the root."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, str):
        before, path, behind = split(value)
        return f"{before}{Path(path).absolute()}{behind}" if path and os.path.exists(path) else value
    return [absolute(item) for item in value] if isinstance(value, tuple | list) else value


def found_again(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a run whose folder is now there, its paths following as far as they lay beside the folder.

    Of a project that was at /a/project and is at /b/project, /a/project/t.pth becomes /b/project/t.pth, unless it is
    still there, or the old project is and the new one lacks it.
    """
    was, now = _parting(config.get("run_root"), Path(folder))
    if was is None:
        return dict(config)
    return {name: _moved(value, was, now) if isinstance(value, str) else value for name, value in config.items()}


def _parting(run_root: Any, folder: Path) -> tuple[Path | None, Path]:
    """The old and the new place of the highest folder that has moved with the run; (None, ...) where none has."""
    now = Path(os.path.abspath(folder)).parent
    if not isinstance(run_root, str) or not os.path.isabs(run_root):
        return None, now
    was = Path(os.path.abspath(run_root))
    while was != now and was.name == now.name:
        was, now = was.parent, now.parent
    return (None if was == now else was), now


def _moved(value: str, was: Path, now: Path) -> str:
    before, path, behind = split(value)
    if not path or os.path.exists(path) or not Path(path).is_relative_to(was):
        return value
    there = now / Path(path).relative_to(was)
    return f"{before}{there}{behind}" if there.exists() or not was.exists() else value


def same_place(before: Any, now: Any) -> bool:
    """Whether two values of config.json mean the same: equal, or one file or folder; or the first is gone, and the
    second, a name of the same kind, is where the user says that it is by now."""
    kind, new, behind = split(now) if isinstance(now, str) else ("", "", "")
    if before == now or not new or not isinstance(before, str):
        return before == now
    if not (before.startswith(kind) and before.endswith(behind) and os.path.exists(new)):
        return False
    old = before.removeprefix(kind).removesuffix(behind)  # of an older run it may begin in the working folder
    return not os.path.exists(old) or os.path.samefile(old, new)
