"""Pickles are data: whatever they ask for, nothing runs, nothing is imported and nothing that is there is changed."""

import argparse
import collections
import copyreg
import io
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from datafree.weights.pickles import StandIn, Unpickler, as_array, read_legacy, read_plain, read_zip


class Calls:
    """Pickled, a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A folder that every attack would make; importing the module planted, too."""
    made = tmp_path / "executed"
    (tmp_path / "planted.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield made
    sys.modules.pop("planted", None)


def attacks(folder):
    """Pickles that make that folder, each in another way, or fail; with a protocol and opcodes of every kind."""
    made = str(folder)
    shell = f"mkdir '{made}'"
    text = f"__import__('os').mkdir({made!r})"
    for protocol in range(6):
        yield pickle.dumps(Calls(os.system, shell), protocol)
        yield pickle.dumps(Calls(eval, text), protocol)
        yield pickle.dumps(Calls(exec, text), protocol)
        yield pickle.dumps({"a": [Calls(os.mkdir, made)]}, protocol)
        yield pickle.dumps(Calls(__import__, "planted"), protocol)
    words, code = made.encode(), text.encode()
    short = bytes([len(code)]) + code
    yield b"(S'" + words + b"'\nios\nmkdir\n."  # INST
    yield b"(cos\nmkdir\nS'" + words + b"'\no."  # OBJ
    yield b"cos\nmkdir\n(S'" + words + b"'\ntR."  # REDUCE
    yield b"\x80\x02cos\nmkdir\nU" + bytes([len(words)]) + words + b"\x85\x81."  # NEWOBJ
    yield b"\x80\x04cos\nmkdir\n\x8c" + bytes([len(words)]) + words + b"\x85}\x92."  # NEWOBJ_EX
    yield b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c" + short + b"\x85R."  # STACK_GLOBAL
    yield b"\x80\x04\x8c\x02os\x8c\x0bpath.os.mkdir\x93\x8c" + bytes([len(words)]) + words + b"\x85R."  # nested
    yield b"cbuiltins\ngetattr\n(cos\nS'mkdir'\ntR(S'" + words + b"'\ntR."  # a module by GLOBAL of nothing
    yield b"ctorch\n_utils.torch.os.mkdir\n(S'" + words + b"'\ntR."  # through what is known
    yield b"ctorch.serialization\nos.mkdir\n(S'" + words + b"'\ntR."
    yield b"cfunctools\npartial\n(cos\nmkdir\nS'" + words + b"'\ntR)R."  # a stand-in called
    yield b"cplanted\nanything\n."
    yield b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nmkdir\nN(S'" + words + b"'\ntNtR."  # a function given to ours
    yield b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\neval\nN(S'" + code.replace(b"'", b"\\'") + b"'\ntNtR."
    yield b"ccollections\nOrderedDict\n)R(dS'__class__'\ncos\nmkdir\nsb."  # BUILD
    yield b"ccopyreg\n_reconstructor\n(cos\nmkdir\nc__builtin__\nobject\nNtR."


def outcome(read, content):
    """Of reading: the error, or None."""
    try:
        read(io.BytesIO(content))
    except Exception as error:
        return error


@pytest.mark.parametrize("read", [read_plain, read_legacy], ids=["pickle", "legacy"])
def test_no_attack_runs_or_imports(read, marker):
    whole = io.BytesIO()
    torch.save({}, whole, _use_new_zipfile_serialization=False)
    before = whole.getvalue()[:25] if read is read_legacy else b""  # magic number and version
    tried = list(attacks(marker))
    assert len(tried) > 40
    for attack in tried:
        modules = set(sys.modules)
        assert not isinstance(outcome(read, before + attack), OSError), attack
        assert not marker.exists(), attack
        assert [name for name in set(sys.modules) - modules if not name.startswith("encodings.")] == [], attack


def test_the_attacks_are_real(marker):
    """Python's own unpickler falls for them."""
    fell = 0
    for attack in attacks(marker):
        sys.modules.pop("planted", None)
        outcome(pickle.load, attack)  # some would need a module to be imported first
        if marker.exists():
            fell += 1
            marker.rmdir()
    assert fell > 30


BUILDS = {  # a name, and what is tried to be set on it: nothing that is there may change
    "class": b"ccollections\nOrderedDict\n",
    "function": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "dtype": b"ctorch\nfloat32\n",
    "size": b"ctorch\nSize\n",
    "parameter": b"ctorch.nn.parameter\nParameter\n",
    "module": b"ctorch.nn.modules.linear\nLinear\n",
}


@pytest.mark.parametrize("what", BUILDS)
@pytest.mark.parametrize("state", [b"(dS'evil'\nI1\ns", b"(N(dS'evil'\nI1\nst"], ids=["dict", "slots"])
def test_no_attribute_of_anything_that_is_there_is_set(what, state):
    Unpickler(io.BytesIO(BUILDS[what] + state + b"b.")).load()
    there = [collections.OrderedDict, torch._utils._rebuild_tensor_v2, torch.float32, torch.Size, nn.Parameter]
    assert not any(hasattr(each, "evil") for each in [*there, nn.Linear, StandIn, dict, tuple])


def test_what_an_attack_sets_on_one_name_is_not_there_for_the_next():
    first, second = Unpickler(io.BytesIO(b"(ca\nb\n(dS'name'\nI1\nsbca\nb\nl.")).load()
    assert first is not second and first.name == second.name == "a.b"


@pytest.mark.parametrize("opcode", [b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"], ids=["1", "2", "4"])
def test_numbers_that_stand_for_names_are_not_looked_up(opcode, monkeypatch):
    monkeypatch.setitem(copyreg._inverted_registry, 7, ("os", "mkdir"))
    monkeypatch.setitem(copyreg._extension_cache, 7, os.mkdir)
    with pytest.raises(pickle.UnpicklingError):
        Unpickler(io.BytesIO(b"\x80\x02" + opcode + b".")).load()


def test_the_older_format_writes_no_patch_of_source_text_and_reads_no_other_file(tmp_path, monkeypatch):
    """Beside a network's class it has its source, and PyTorch writes a patch where a class has dump_patches."""
    monkeypatch.chdir(tmp_path)
    whole = io.BytesIO()
    torch.save(nn.Sequential(nn.Linear(2, 2)), whole, _use_new_zipfile_serialization=False)
    content, _ = read_legacy(io.BytesIO(whole.getvalue()))
    assert isinstance(content, StandIn) and content.name == "torch.nn.modules.container.Sequential"
    assert not list(tmp_path.iterdir())


def test_a_compressed_record_or_one_that_claims_more_than_there_is_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(10), "b": argparse.Namespace()}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with open(tmp_path / "b.pth", "rb") as file, pytest.raises(zipfile.BadZipFile):
        read_zip(file)
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"a/data/0"))  # of the archive's directory
    path.write_bytes(whole[: entry + 24] + struct.pack("<I", 2**31) + whole[entry + 28 :])
    with open(path, "rb") as file, pytest.raises((EOFError, zipfile.BadZipFile)):
        read_zip(file)


@pytest.mark.parametrize("opcode", [pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8, pickle.FRAME])
def test_a_length_that_is_not_there_asks_for_no_memory(opcode):
    with pytest.raises(EOFError):
        Unpickler(io.BytesIO(b"\x80\x05" + opcode + struct.pack("<Q", 2**62))).load()


def test_a_tensor_cannot_reach_beyond_its_numbers():
    call = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storageq\x00ctorch\nFloatStorage\n"
    call += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x09\x85K\x01\x85\x89NtR."
    with pytest.raises(RuntimeError):
        Unpickler(io.BytesIO(call), lambda dtype, key, size: torch.zeros(size, dtype=dtype)).load()


# What is read


def saved(content, legacy, protocol):
    whole = io.BytesIO()
    torch.save(content, whole, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    whole.seek(0)
    return (read_legacy if legacy else read_zip)(whole)[0]


TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool]
TYPES += [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn, torch.uint16]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_come_out_as_torch_load_gives_them(legacy, protocol):
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    content = {str(kind): (10 * torch.rand(3, 2)).to(kind) for kind in TYPES}
    content |= {"view": base[1:3, ::2], "transposed": base.t(), "base": base, "empty": torch.zeros(0, 3)}
    content |= {
        "scalar": torch.tensor(3.0),
        "parameter": nn.Parameter(torch.ones(2)),
        "expanded": base[:1].expand(5, 4),
    }
    found = saved(content, legacy, protocol)
    assert found.keys() == content.keys()
    for name, value in content.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        one, two = (each.detach().contiguous().view(-1).view(torch.uint8) for each in (found[name], value))
        assert torch.equal(one, two), name
    assert found["view"].untyped_storage().data_ptr() == found["base"].untyped_storage().data_ptr()


def test_the_other_order_of_bytes_is_turned_round(tmp_path):
    value = torch.tensor([1.0, 2.0, -3.5])
    torch.save({"a": value}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            data = {"a/byteorder": b"big", "a/data/0": value.numpy().astype(">f4").tobytes()}.get(name, old.read(name))
            new.writestr(name, data)
    with open(tmp_path / "b.pth", "rb") as file:
        assert torch.equal(read_zip(file)[0]["a"], value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<f2", "<i8", "|u1", "|b1", "<u2"])
def test_numpy_arrays_come_out_as_tensors(protocol, kind):
    arrays = {"plain": np.arange(6).reshape(2, 3), "0-d": np.array(1), "turned": np.arange(24).reshape(2, 3, 4)}
    arrays["turned"], arrays["fortran"] = arrays["turned"].transpose(2, 0, 1), np.asfortranarray(arrays["plain"])
    arrays = {name: array.astype(kind) for name, array in arrays.items()}
    found, _ = read_plain(io.BytesIO(pickle.dumps(arrays, protocol)))
    for name, array in arrays.items():
        tensor = as_array(found[name])
        assert tensor.shape == array.shape and (tensor.numpy() == array).all(), name


def test_arrays_of_objects_or_words_are_none():
    for array in (np.array([{}, None], dtype=object), np.array(["a"]), np.array([1 + 2j]), np.zeros(2, "M8[s]")):
        found, _ = read_plain(io.BytesIO(pickle.dumps(array)))
        assert as_array(found) is None


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_in_a_plain_pickle_are_read(protocol):
    content = collections.OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2).t())
    found, strange = read_plain(io.BytesIO(pickle.dumps(content, protocol)))
    assert strange == [] and all(torch.equal(found[name], content[name]) for name in content)


def test_a_class_that_the_pickle_itself_makes_has_stand_ins_too():
    """As of cloudpickle, of a notebook's class: a call gives the class, NEWOBJ an object of it, BUILD its state."""
    made = b"\x80\x02ccloudpickle.cloudpickle\n_make_skeleton_class\n)R)\x81}X\x01\x00\x00\x00aK\x01sb."
    assert Unpickler(io.BytesIO(made)).load().state == {"a": 1}


def test_tensors_of_other_devices_come_from_their_numpy_arrays():
    made = pickle.dumps(Calls(torch._utils._rebuild_device_tensor_from_numpy, np.ones((2, 3), "f4"), 0, "xla:0", False))
    assert torch.equal(Unpickler(io.BytesIO(made)).load(), torch.ones(2, 3))


def test_a_stand_in_keeps_what_the_object_was_made_of():
    content = {"space": argparse.Namespace(lr=0.1), "some": collections.defaultdict(list, a=[1]), "deque": None}
    content["deque"] = collections.deque([1, 2])
    found, strange = read_plain(io.BytesIO(pickle.dumps(content)))
    assert found["space"].state == {"lr": 0.1} and found["some"].entries == {"a": [1]}
    assert found["deque"].elements == [1, 2]
    assert strange == ["argparse.Namespace", "collections.defaultdict", "builtins.list", "collections.deque"]
