"""Requirements files bring what the code imports: an environment for tests has more, and would miss nothing."""

import ast
import sys
from contextlib import suppress
from importlib import metadata

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = {path.stem for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"))} | {"datafree"}
CODE = [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("datafree/**/*.py")]
NOTEBOOKS_ALONE = {"analysis/teacher_behavior.py"}


def brought_by(name):
    """What an installation of a requirements file brings: names of distributions."""
    lines = [line for line in (ROOT / name).read_text().split("\n") if line]
    found = {each for line in lines if line.startswith("-r ") for each in brought_by(line.removeprefix("-r "))}
    waiting = [Requirement(line) for line in lines if not line.startswith("-r ")]
    while waiting:
        each = waiting.pop()
        name = canonicalize_name(each.name)
        if name not in found and (each.marker is None or each.marker.evaluate({"extra": ""})):
            found.add(name)
            with suppress(metadata.PackageNotFoundError):  # what a CPU does without, say
                waiting += map(Requirement, metadata.requires(name) or [])
    return found


def needed_at_once(path):
    """Other people's packages that importing a file imports."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in body if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OURS


def test_whatever_a_file_imports_at_once_comes_with_the_requirements():
    brought = {name: brought_by(name) for name in ("requirements.txt", "requirements-notebooks.txt")}
    makers, missed = metadata.packages_distributions(), {}
    for path in CODE:
        alone = any(path.match(f"*/{name}") for name in NOTEBOOKS_ALONE)
        there = brought["requirements-notebooks.txt" if alone else "requirements.txt"]
        for package in needed_at_once(path):
            if not {canonicalize_name(maker) for maker in makers.get(package, ())} & there:
                missed.setdefault(package, []).append(str(path.relative_to(ROOT)))
    assert not missed
    assert "scipy" in brought["requirements.txt"]  # with which torchvision reads svhn
