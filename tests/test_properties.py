"""For any command line and any damage: where values come from, and that a damaged file is never half believed."""

import io
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import same_state
from datafree.arguments import plain_values
from datafree.flags import distillation_parser, training_parser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datafree import checkpoint
from datafree.errors import UserError

PARSERS = {"main.py": distillation_parser(), "train_scratch.py": training_parser()}
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def values_of(action):
    """Words that may follow a flag, and what they come to."""
    if action.nargs == 0:
        return st.just(([], True))
    if action.choices:
        return st.sampled_from(sorted(action.choices)).map(lambda word: ([word], word))
    if action.type is Path or action.type is None:
        words = st.text("abz019_./ é", min_size=1, max_size=12)
        return words.map(lambda word: ([word], Path(word) if action.type is Path else word))

    def accepted(word):
        try:
            return action.type(word) is not None
        except Exception:
            return False

    words = st.one_of(
        st.integers(0, 300).map(str),
        st.floats(0, 5, allow_nan=False).map(repr),
        st.text("ab9.-_", min_size=1, max_size=9),
    ).filter(lambda word: accepted(word) and not word.startswith("-"))
    if action.nargs is None:
        return words.map(lambda word: ([word], action.type(word)))
    count = action.nargs if isinstance(action.nargs, int) else 2
    return st.lists(words, min_size=count, max_size=count).map(
        lambda several: (several, [action.type(word) for word in several])
    )


@st.composite
def settings_of(draw, program):
    """Some flags of a program: name -> (action, words, value)."""
    actions = [action for action in PARSERS[program]._actions if action.dest not in ("help", "resume")]
    chosen = draw(st.lists(st.sampled_from(actions), max_size=6, unique_by=lambda action: action.dest))
    return {action.dest: (action, *draw(values_of(action))) for action in chosen}


def spelt(draw, action, words):
    """One of the ways to write a flag with its value."""
    flag = draw(st.sampled_from(action.option_strings))
    flag = "--" + "".join(draw(st.sampled_from("_-")) if letter in "_-" else letter for letter in flag[2:])
    return [f"{flag}={words[0]}"] if len(words) == 1 and draw(st.booleans()) else [flag, *words]


@pytest.mark.parametrize("program", PARSERS)
@QUICK
@given(data=st.data())
def test_the_command_line_goes_before_the_preset_and_the_preset_before_the_default_however_flags_are_spelt(
    program, data
):
    parser = PARSERS[program]
    typed, preset = (data.draw(settings_of(program)) for _ in range(2))
    line = [word for action, words, _ in typed.values() for word in spelt(data.draw, action, words)]
    found = vars(parser.resolve(line, lambda known: {name: value for name, (_, _, value) in preset.items()}))
    assert found.keys() == set(parser.names())
    for name, value in found.items():
        source = typed.get(name) or preset.get(name)
        assert value == (source[2] if source else parser.get_default(name)), name


@pytest.mark.parametrize("program", PARSERS)
@QUICK
@given(data=st.data())
def test_what_config_json_keeps_of_a_value_gives_the_value_back(program, data):
    parser = PARSERS[program]
    typed = data.draw(settings_of(program))
    line = [word for action, words, _ in typed.values() for word in spelt(data.draw, action, words)]
    args = parser.resolve(line, lambda known: {})
    for name, plain in plain_values(args).items():
        plain = list(plain) if isinstance(plain, tuple) else plain  # as JSON has it
        value = vars(args)[name]
        assert parser.from_plain(name, plain) == (list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize("program", PARSERS)
@QUICK
@given(
    line=st.lists(
        st.one_of(st.text(max_size=8), st.sampled_from(["--lr", "--hl", "--resume", "-", "--", "nan"])), max_size=5
    )
)
def test_any_words_at_all_are_values_or_one_line(program, line):
    if {"-h", "--help"} & set(line):
        return
    try:
        PARSERS[program].resolve(line, lambda known: {})
    except UserError as error:
        assert "\n" not in str(error) and error.what and error.remedy


# The loader


def whole_file(legacy):
    torch.manual_seed(0)
    content = {"state_dict": {"a": torch.randn(40, 3), "b": torch.arange(7), "c": torch.zeros(0)}, "arch": "x", "n": 3}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return content, buffer.getvalue()


FORMATS = {name: whole_file(name == "legacy") for name in ("zip", "legacy")}


def same(a, b):
    return (
        isinstance(b, dict)
        and a.keys() == b.keys()
        and same_state(a["state_dict"], b["state_dict"])
        and all(a[key] == b[key] for key in ("arch", "n"))
    )


def load(path, content):
    path.write_bytes(content)
    try:
        return checkpoint.load(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in error.what
        return None


@pytest.mark.parametrize("name", FORMATS)
@QUICK
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(name, data, tmp_path):
    _, content = FORMATS[name]
    assert load(tmp_path / "cut.pth", content[: data.draw(st.integers(0, len(content) - 1))]) is None


@settings(QUICK, max_examples=300)
@given(data=st.data())
def test_a_file_with_any_byte_changed_is_refused_or_says_the_same(data, tmp_path):
    whole, content = FORMATS["zip"]
    at, mask = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    found = load(tmp_path / "flipped.pth", content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])
    assert found is None or same(whole, found)


@QUICK
@given(data=st.data())
def test_a_file_of_the_format_without_checksums_is_refused_or_read_but_never_crashes(data, tmp_path):
    _, content = FORMATS["legacy"]
    at, mask = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    load(tmp_path / "flipped.pth", content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])


@QUICK
@given(content=st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda rest: b"PK\x03\x04" + rest)))
def test_any_bytes_at_all_are_refused(content, tmp_path):
    assert load(tmp_path / "bytes.pth", content) is None


def test_every_bit_of_a_tensor_counts(tmp_path):
    """torch.load by itself would take all of these."""
    whole, content = FORMATS["zip"]
    start = content.index(whole["state_dict"]["a"].numpy().tobytes())
    for at in range(start, start + 40 * 3 * 4, 37):
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        (tmp_path / "a.pth").write_bytes(changed)
        assert not same(whole, torch.load(tmp_path / "a.pth", weights_only=True))
        assert load(tmp_path / "a.pth", changed) is None


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_loads(name, tmp_path):
    whole, content = FORMATS[name]
    assert same(whole, load(tmp_path / "whole.pth", content))


def test_a_file_saved_without_checksums_loads(tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this PyTorch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        whole, content = whole_file(legacy=False)
    finally:
        torch.serialization.set_crc32_options(True)
    assert all(record.CRC == 0 for record in zipfile.ZipFile(io.BytesIO(content)).infolist())
    assert same(whole, load(tmp_path / "whole.pth", content))
