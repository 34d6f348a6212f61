"""The house has floors: each room imports only what is below it. Read from the import statements themselves."""

import ast
from functools import cache

import pytest
from conftest import ROOT

LOW = {"errors", "processes"}
FILES = {*LOW, "paths", "registration", "configuration", "files", "user_code"}
ENGINE = {"models", "data", "losses", "configuration", *LOW}
ABOVE = {"api", "cli", "methods", "targets", "engine", "runs", "models", "weights", "data", "losses", *FILES}
ALLOWED = {  # room: the rooms beside itself that it may import
    "errors": set(),
    "processes": {"errors"},
    "paths": set(),
    "registration": LOW,
    "configuration": {*LOW, "paths"},
    "files": LOW,
    "user_code": LOW,
    "losses": LOW,
    "data": {*LOW, "files", "configuration"},
    "weights": {"files", "errors"},
    "models": {"data", "losses", "weights", "files", "user_code", *LOW},
    "engine": ENGINE,
    "runs": {"engine", "models", "data", "losses", *FILES},
    "targets": {"engine", *ENGINE},
    "methods": {"engine", "runs", "user_code", *ENGINE},
    "cli": ABOVE - {"api"},
    "job": ABOVE - {"api", "cli"},
    "loop": {*ABOVE, "job"} - {"api", "cli"},
    "api": {*ABOVE, "job", "loop"},
    "reporting": ABOVE,
    "analysis": {*ABOVE, "reporting"},
    "export": {*ABOVE, "reporting"},
}
SHARED = {"methods.base", "methods.inversion", "methods.priors"}  # not the file of one method
MODULES = {
    ".".join(path.relative_to(ROOT / "datafree").with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "datafree").rglob("*.py"))
}
HOUSE = sorted(MODULES.keys() - {"__init__"})


@cache
def imports_of(module):
    """What a module imports: (dotted name from the root, name taken from it or None)."""
    path, found = MODULES[module], []
    package = ("datafree", *path.relative_to(ROOT / "datafree").parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            found += [(".".join([*above, *filter(None, [node.module])]), alias.name) for alias in node.names]
    return found


def of_ours(module):
    """The modules of the house that a module imports, with the name that it takes from each."""
    for where, name in imports_of(module):
        if where.partition(".")[0] == "datafree":
            found = where.removeprefix("datafree").removeprefix(".")
            inside = ".".join(filter(None, [found, name]))
            yield (inside, None) if inside in MODULES else (found, name)


def test_the_reader_sees_every_form_of_import():
    assert ("engine.context", "Context") in set(of_ours("methods.aeahl_rg"))  # from ..engine.context import Context
    assert ("configuration", None) in set(of_ours("methods.aeahl_rg"))  # from .. import configuration
    assert ("methods.base", "Leaving") in set(of_ours("methods.aeahl_rg"))  # from .base import Leaving
    assert len(HOUSE) > 50 and {name.partition(".")[0] for name in HOUSE} == ALLOWED.keys()


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_is_below_it(room):
    wrong = [
        f"{module}: {found}"
        for module in HOUSE
        for found, _ in of_ours(module)
        if module.partition(".")[0] == room and found.partition(".")[0] not in {room, *ALLOWED[room]}
    ]
    assert wrong == []


def test_no_method_imports_another_and_of_the_runs_they_know_the_folders_name_alone():
    for module in HOUSE:
        if module.startswith("methods."):
            for found, name in of_ours(module):
                assert not found.startswith("methods.") or found in {module, *SHARED}, (module, found)
                assert not found.startswith("runs") or (found, name) == ("runs.folder", "folder_name"), (module, name)


def test_nothing_in_the_house_imports_what_one_runs():
    outside = {"main", "train_scratch", "registry", "scripts", "tests"}
    assert [
        (module, where) for module in HOUSE for where, _ in imports_of(module) if where.partition(".")[0] in outside
    ] == []
