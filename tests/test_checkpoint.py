"""Files: written whole or not at all, read as data and never as code, every damage named in one line."""

import os
import pickle
import resource

import pytest
import torch
from conftest import ROOT, SmallClassifier, same_state, small_classifier, state_of, user_error
from torch import nn

from datafree import checkpoint
from datafree.errors import UserError
from registry import MODELS

TEACHER = ROOT / "checkpoints/pretrained/digits_resnet20.pth"


class Attack:
    """Pickles to a call that makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


# Reading


@pytest.mark.parametrize(
    "wrap", [dict, lambda state: {"state_dict": state}, lambda state: {"state_dict": state, "arch": "x", "epoch": 3}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_and_wrapped_state_dicts_with_and_without_module_prefix_load(path, wrap, prefix):
    source, model = small_classifier(1), small_classifier(2)
    torch.save(wrap({prefix + key: value for key, value in source.state_dict().items()}), path)
    checkpoint.load_classifier(model, path)
    assert same_state(state_of(model), state_of(source))


def test_a_classifier_comes_with_what_else_the_file_says(path):
    facts = {"arch": "small", "accuracy": 99.5, "epochs": 3, "notes": None}
    checkpoint.save({"state_dict": small_classifier(1).state_dict(), **facts}, path)
    told = checkpoint.load_classifier(small_classifier(2), path)
    assert told == {"arch": "small", "accuracy": 99.5, "epochs": 3}


def test_what_is_saved_loads_as_tensors_and_plain_values(path):
    content = {"a": torch.arange(3), "b": {"c": [1, 2.5, None, True, "text"]}}
    checkpoint.save(content, path)
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["a"], content["a"]) and found["b"] == content["b"]
    assert checkpoint.load(path)["b"] == content["b"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_damaged_whatever_its_length(path, share, legacy):
    torch.save(torch.load(TEACHER, weights_only=True), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with user_error(str(path), "damaged"):
        checkpoint.load(path, "teacher checkpoint")


def test_a_file_that_lacks_its_last_byte_is_damaged(path):
    path.write_bytes(TEACHER.read_bytes()[:-1])
    with user_error(str(path), "damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>not found</html>",
        b"hello",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(50),
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_file_of_another_kind_is_no_checkpoint(path, content):
    path.write_bytes(content)
    with user_error(str(path), "not a checkpoint"):
        checkpoint.load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with user_error("teacher checkpoint", str(tmp_path / "nothing.pth"), "does not exist"):
        checkpoint.load(tmp_path / "nothing.pth", "teacher checkpoint")
    with user_error("teacher checkpoint", str(tmp_path), "not a file"):
        checkpoint.load(tmp_path, "teacher checkpoint")


@pytest.mark.parametrize(
    "how", ["torch.save", "legacy torch.save", "pickle.dump", "new pickle.dump", "within a state dict"]
)
def test_a_file_that_wants_to_run_code_is_refused_and_not_run(path, tmp_path, recwarn, how):
    attack = Attack(tmp_path / "executed")
    if "pickle.dump" in how:
        path.write_bytes(pickle.dumps(attack, protocol=4 if "new" in how else 2))
    elif how == "within a state dict":
        torch.save({"state_dict": small_classifier(1).state_dict(), "extra": attack}, path)
    else:
        torch.save(attack, path, _use_new_zipfile_serialization=how == "torch.save")
    with user_error(str(path), "not a checkpoint" if "new" in how else "code"):
        checkpoint.load_classifier(small_classifier(2), path)
    assert not (tmp_path / "executed").exists()
    assert not recwarn.list  # the error is one line, nothing above it
    if how == "torch.save":  # the attack is real
        torch.load(path, weights_only=False)
        assert (tmp_path / "executed").exists()


def test_a_whole_pickled_module_is_refused(path):
    torch.save(small_classifier(1), path)
    with user_error(str(path), "code or whole modules", "state_dict()"):
        checkpoint.load_classifier(small_classifier(2), path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"state_dict": {}},
        {"state_dict": {"fc.weight": 1.0}},
        {"state_dict": None},
        torch.zeros(3),
        "text",
        {"epoch": 3},
    ],
)
def test_a_file_without_a_state_dict_says_so(path, content):
    torch.save(content, path)
    with user_error(str(path), "no state_dict"):
        checkpoint.load_classifier(small_classifier(1), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["conv2.weight", "bn1.running_var"])
def test_weights_and_statistics_that_are_not_finite_are_named(path, key, value):
    state = state_of(small_classifier(1))
    state[key].view(-1)[0] = value
    torch.save({"state_dict": state}, path)
    with user_error(str(path), "NaN or infinite", key):
        checkpoint.load_classifier(small_classifier(2), path)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("resnet20", "resnet8"),
        ("resnet8", "resnet20"),
        ("wrn16_1", "wrn16_2"),
        ("resnet8", "vgg8"),
        ("resnet8", "resnet8x4"),
    ],
)
def test_another_architecture_is_named_as_such(path, wanted, given):
    torch.save({"state_dict": MODELS[given](10).state_dict()}, path)
    with user_error(str(path), "another architecture"):
        checkpoint.load_classifier(MODELS[wanted](10), path)


@pytest.mark.parametrize("name", ["resnet8", "wrn16_1", "vgg8", "mobilenetv2", "resnet18"])
def test_another_number_of_classes_is_named_as_such(path, name):
    torch.save({"state_dict": MODELS[name](100).state_dict()}, path)
    with user_error(str(path), "100 classes", "10 are wanted"):
        checkpoint.load_classifier(MODELS[name](10), path)


def test_a_refused_file_leaves_the_network_as_it_was(path):
    model = small_classifier(2)
    before = state_of(model)
    good = state_of(small_classifier(1))
    for change in (
        {"fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)},
        {"conv1.weight": torch.full((4, 3, 3, 3), float("nan"))},
        {"extra": torch.zeros(1)},
    ):
        torch.save({"state_dict": good | change}, path)
        with user_error(str(path)):
            checkpoint.load_classifier(model, path)
        assert same_state(state_of(model), before)


# Writing


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failure_half_way_keeps_the_old_file_and_leaves_nothing_else(path, error):
    path.write_bytes(b"old")

    def half(file):
        file.write(b"half of the new")
        file.flush()
        raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        checkpoint.write_whole(path, half)
    assert path.read_bytes() == b"old" and names_in(path.parent) == ["file.pth"]


def test_a_new_file_that_fails_is_not_there_at_all(path):
    def fail(file):
        raise OSError(28, "No space left on device")

    with user_error(str(path), "No space left on device"):
        checkpoint.write_whole(path, fail)
    assert names_in(path.parent) == []


def test_a_full_disk_is_the_users_to_mend_and_keeps_the_old_file(path):
    """A limit on the size of files stands in for the disk."""
    checkpoint.save({"a": torch.zeros(3)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with user_error(str(path), "cannot write"):
            checkpoint.save({"a": torch.zeros(2**20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and names_in(path.parent) == ["file.pth"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing" / "a.pth", tmp_path / "file" / "a.pth"):
        with user_error(str(path), "cannot write"):
            checkpoint.save({}, path)


def test_the_new_file_replaces_the_old_one_and_can_be_read_by_others(path):
    path.write_bytes(b"a longer old file")
    checkpoint.write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and names_in(path.parent) == ["file.pth"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_that_is_being_read_is_not_changed_under_the_reader(path):
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        checkpoint.write_whole(path, lambda file: file.write(b"new"))
        assert reader.read() == b"old"


def test_load_into_reports_a_module_without_matrices(path):
    with user_error("another architecture"):
        checkpoint.load_into(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3).state_dict(), path, "checkpoint")
    checkpoint.load_into(SmallClassifier(), SmallClassifier().state_dict(), path, "checkpoint")
