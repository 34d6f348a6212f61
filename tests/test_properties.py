"""For any words and any damage: a command line is values or one line, a damaged file is never half believed."""

import argparse
import io
import pickle

import pytest
import torch
from conftest import same_state, small_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_scratch
from datafree import files
from datafree.cli.flags import distillation_configs
from datafree.cli.parser import Parser
from datafree.errors import UserError
from datafree.methods.aeahl_rg import AeahlRg
from datafree.models.loading import load_classifier

CONFIGS = {"main.py": distillation_configs(AeahlRg, "aeahl_rg", "attack"), "train_scratch.py": train_scratch.CONFIGS}
PARSERS = {program: Parser(program, "", configs) for program, configs in CONFIGS.items()}
WORDS = st.one_of(st.text(max_size=8), st.sampled_from(["--lr", "--hl", "--resume", "-", "--", "nan", "--mean"]))
AT, MASK = st.integers(0, 2**31), st.integers(1, 255)
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
@QUICK
@given(program=st.sampled_from(sorted(PARSERS)), line=st.lists(WORDS, max_size=5))
def test_any_words_at_all_are_values_or_one_line(program, line):
    if {"-h", "--help"} & set(line):
        return
    try:
        PARSERS[program].resolve(line)
    except UserError as error:
        assert "\n" not in str(error) and error.what and error.remedy


def whole_file(legacy):
    torch.manual_seed(0)
    content = {"state_dict": {"a": torch.randn(40, 3), "b": torch.arange(7), "c": torch.zeros(0)}, "arch": "x", "n": 3}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return content, buffer.getvalue()


FORMATS = {name: whole_file(name == "legacy") for name in ("zip", "legacy")}


def same(a, b):
    return a.keys() == b.keys() and same_state(a["state_dict"], b["state_dict"]) and (b["arch"], b["n"]) == ("x", 3)


def load(folder, content):
    """None where it is refused in one line."""
    path = folder / "file.pth"
    path.write_bytes(content)
    try:
        return files.load(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in error.what
        return None


def flipped(content, at, mask):
    at %= len(content)
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


@pytest.mark.slow
@QUICK
@given(name=st.sampled_from(sorted(FORMATS)), at=AT)
def test_a_file_loads_whole_and_is_refused_cut_anywhere(name, at, tmp_path):
    whole, content = FORMATS[name]
    assert load(tmp_path, content[: at % len(content)]) is None and same(whole, load(tmp_path, content))


@settings(QUICK, max_examples=150)
@given(at=AT, mask=MASK)
def test_a_file_with_any_byte_changed_is_refused_or_says_the_same(at, mask, tmp_path):
    found = load(tmp_path, flipped(FORMATS["zip"][1], at, mask))
    assert found is None or same(FORMATS["zip"][0], found)
    load(tmp_path, flipped(FORMATS["legacy"][1], at, mask))  # has no checksums: refused or read, but no crash


def test_every_bit_of_a_tensor_counts(tmp_path):
    """torch.load by itself would take all of these."""
    whole, content = FORMATS["zip"]
    start = content.index(whole["state_dict"]["a"].numpy().tobytes())
    for at in range(start, start + 40 * 3 * 4, 37):
        changed = flipped(content, at, 1)
        assert not same(whole, torch.load(io.BytesIO(changed), weights_only=True)) and load(tmp_path, changed) is None


@QUICK
@given(content=st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda rest: b"PK\x03\x04" + rest)))
def test_any_bytes_at_all_are_refused(content, tmp_path):
    assert load(tmp_path, content) is None


FOREIGN = {  # with an object, so that torch.load refuses them, whole
    "zip": lambda content, file: torch.save(content, file),
    "legacy": lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
    "pickle": lambda content, file: pickle.dump({name: value.numpy() for name, value in content["net"].items()}, file),
    "whole network": lambda _, file: torch.save(small_network(1), file, _use_new_zipfile_serialization=False),
}


@pytest.mark.slow
@settings(QUICK, max_examples=80)
@given(kind=st.sampled_from(sorted(FOREIGN)), at=AT, mask=MASK, cut=st.booleans())
def test_a_file_of_any_origin_changed_or_cut_anywhere_is_refused_in_one_line_or_loads(kind, at, mask, cut, tmp_path):
    buffer, path = io.BytesIO(), tmp_path / "file.pth"
    FOREIGN[kind]({"net": small_network(1).state_dict(), "args": argparse.Namespace(a=1)}, buffer)
    whole, network = buffer.getvalue(), small_network(2)
    path.write_bytes(whole[: at % len(whole)] if cut else flipped(whole, at, mask))
    try:
        load_classifier(network, path)
    except UserError as error:
        assert str(error).isprintable() and str(path) in error.what
        assert same_state(network.state_dict(), small_network(2).state_dict())
    else:
        assert kind != "zip" or same_state(network.state_dict(), small_network(1).state_dict())


def test_a_file_saved_without_checksums_loads(tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this PyTorch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        whole, content = whole_file(legacy=False)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(whole, load(tmp_path, content))
