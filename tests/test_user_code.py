"""The user's own files: alone, in a package, with a command line of their own."""

import contextlib
import sys

import pytest
from conftest import user_error

from datafree import user_code
from datafree.errors import UserError
from datafree.models.names import UNKNOWN, network_of


def package(folder, width):
    """models/nets.py, with relative imports, in a folder of its own."""
    (folder / "models/blocks").mkdir(parents=True)
    (folder / "models/__init__.py").write_text("")
    (folder / "models/blocks/__init__.py").write_text(f"WIDTH = {width}")
    late = "def late():\n    from . import blocks\n    return blocks.WIDTH\n"
    (folder / "models/nets.py").write_text(f"from .blocks import WIDTH\ndef make():\n    return WIDTH\n{late}")
    return folder / "models/nets.py"


def test_a_file_of_a_package_has_relative_imports_and_two_packages_may_have_one_name(tmp_path):
    before = set(sys.modules), list(sys.path)
    for name, width in (("a", 3), ("b", 7)):
        file = package(tmp_path / name, width)
        assert user_code.load(f"{file}:make", "model")() == width
        late = user_code.load(f"{file}:late", "model")
        with user_code.beside(file):
            assert late() == width
    assert (set(sys.modules), list(sys.path)) == before


def test_a_file_has_its_own_registry_and_datafree_beside_it_and_we_keep_ours(tmp_path):
    (tmp_path / "datafree").mkdir()
    (tmp_path / "datafree/__init__.py").write_text("")
    (tmp_path / "datafree/nets.py").write_text("WIDTH = 3\n")
    (tmp_path / "registry.py").write_text("import datafree.nets\ndef get_model():\n    return datafree.nets.WIDTH\n")
    (tmp_path / "own.py").write_text("from registry import get_model\nimport datafree.nets\n")
    before = {name: module for name, module in sys.modules.items() if not name.startswith("datafree_own_")}
    assert user_code.load(f"{tmp_path}/own.py:get_model", "model")() == 3
    assert user_code.load(f"{tmp_path}/registry.py:get_model", "model")() == 3
    after = {name: module for name, module in sys.modules.items() if not name.startswith("datafree_own_")}
    assert after == before and "datafree.errors" in before


def test_a_file_of_this_very_package_is_not_loaded_twice():
    from datafree.methods.aeahl_rg import AeahlRg

    assert user_code.load(f"{user_code.__file__.replace('user_code', 'methods/aeahl_rg')}:AeahlRg", "method") is AeahlRg


PARSES = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--width", {how})
args = parser.parse_args()
print("about to", file=sys.stderr)
"""


def test_a_file_that_parses_a_command_line_gets_an_empty_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main.py", "--teacher", "x"])
    (tmp_path / "net.py").write_text(PARSES.format(how="default=4"))
    assert user_code.load(f"{tmp_path}/net.py:args", "model").width == 4
    assert capsys.readouterr().err == "about to\n" and sys.argv == ["main.py", "--teacher", "x"]
    (tmp_path / "net.py").write_text(PARSES.format(how="required=True"))
    with user_error("SystemExit: 2, net.py: error: the following arguments are required: --width"):
        user_code.load(f"{tmp_path}/net.py:args", "model")
    assert capsys.readouterr().err == ""


SETS = """
import os, torch
from torch import nn
os.chdir(os.path.dirname(__file__))
torch.set_default_dtype(torch.float64), torch.set_default_device("meta"), torch.set_grad_enabled(False)
def make():
    found = open("beside.txt").read(), torch.zeros(1).dtype, torch.zeros(1).device.type, torch.is_grad_enabled()
    assert found == ("here", torch.float64, "meta", False), found
    return nn.Linear(1, 1)
def late():
    os.chdir("/")
    return make()
def gone():
    os.mkdir("gone"), os.chdir("gone"), os.rmdir(os.getcwd())
    1 / 0
"""


def test_what_a_file_sets_for_everybody_holds_for_its_own_code_alone(tmp_path, capsys):
    (tmp_path / "net.py").write_text(SETS)
    (tmp_path / "beside.txt").write_text("here")
    before = user_code._settings()
    for function in ("make", "make", "late", "gone"):
        with contextlib.suppress(UserError):
            network_of(f"{tmp_path}/net.py:{function}", 7, {}, UNKNOWN, "none")
        assert user_code._settings() == before
    sets = "net.py sets working folder, default dtype, default device, gradients for everybody"
    assert capsys.readouterr().err.count(sets) == 1


@pytest.mark.parametrize("name", ["num_classes", "n_class", "nc", "num_labels"])
def test_the_class_count_goes_to_whatever_it_is_called(name, tmp_path):
    (tmp_path / "net.py").write_text(
        f"from torch import nn\ndef make(width=4, {name}=1000):\n    return nn.Linear(width, {name})\n"
    )
    network, _ = network_of(f"{tmp_path}/net.py:make", 7, {}, UNKNOWN, "none")
    assert network.out_features == 7


@pytest.mark.parametrize("how", ["ones", "rand"])
def test_weights_that_a_file_gives_twice_alike_are_its_own_whatever_a_module_keeps_beside_them(how, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Linear):\n    def get_extra_state(self):\n"
        "        return {'seen': [1]}\n    def set_extra_state(self, state):\n        pass\ndef make():\n"
        f"    net = Net(4, 7)\n    net.weight.data = torch.{how}(7, 4)\n    net.bias.data.zero_()\n    return net\n"
    )
    name = f"{tmp_path}/net.py:make"
    if how == "ones":
        assert network_of(name, 7, {}, UNKNOWN, "own")[0].get_extra_state() == {"seen": [1]}
    else:
        with user_error("gives random weights", "--teacher_path"):
            network_of(name, 7, {}, UNKNOWN, "own")


def test_a_file_without_a_function_is_asked_for_one():
    with user_error("net.py is a file", "net.py:FUNCTION"):
        network_of("net.py", 7, {}, UNKNOWN, "none")
