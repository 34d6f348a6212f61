"""Files: written whole or not at all, read as data and never as code, every damage named in one line."""

import io
import os
import pickle

import pytest
import torch
from conftest import ROOT, user_error
from programs import without_privileges
from torch import nn

from datafree import files
from datafree.errors import UserError

TEACHER = ROOT / "checkpoints/pretrained/digits_resnet20.pth"


class Payload:
    """Unpickled, makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


# Reading


def test_what_is_saved_loads_as_tensors_and_plain_values(path):
    content = {"a": torch.arange(3), "b": {"c": [1, 2.5, None, True, "text"]}}
    files.save(content, path)
    for found in (torch.load(path, weights_only=True), files.load(path)):
        assert torch.equal(found["a"], content["a"]) and found["b"] == content["b"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_cut_short_or_with_a_flipped_byte_is_damaged_wherever(path, legacy):
    torch.save(torch.load(TEACHER, weights_only=True), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in (0, 1, 100, 10_000, len(whole) // 2, len(whole) - 1000)]
    for at in () if legacy else (0, len(whole) // 2, len(whole) - 30):  # start, weights, directory
        damaged.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with user_error("teacher checkpoint", str(path), "damaged"):
            files.load(path, "teacher checkpoint")


def test_a_file_of_another_kind_is_no_checkpoint(path):
    lfs = b"version https://git-lfs.github.com/spec/v1\n"
    for content in (b"<!DOCTYPE html>", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(50), lfs):
        path.write_bytes(content)
        with user_error(str(path), "not a checkpoint"):
            files.load(path)


def test_what_is_not_a_file_is_named_and_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    missing = (tmp_path / "nothing.pth", tmp_path / "file/teacher.pth", tmp_path / "données/élève.pth")
    for names, words in (
        (missing, "does not exist"),
        ((tmp_path, tmp_path / "pipe", "/dev/zero"), "not a file"),
        (("n" * 300, "name/" * 1500), "File name too long"),
    ):
        for name in names:
            with user_error("teacher checkpoint", str(name).rstrip("/"), words):
                files.load(name, "teacher checkpoint")


def test_an_unreadable_file_is_named(path):
    path.write_bytes(TEACHER.read_bytes())
    path.chmod(0o200)
    with without_privileges(path.parent), user_error(str(path), "cannot be read"):
        files.load(path)


@pytest.mark.parametrize(
    "how", ["torch.save", "legacy torch.save", "pickle.dump", "new pickle.dump", "beside a state dict"]
)
def test_a_file_that_wants_to_run_code_is_refused_and_not_run(path, tmp_path, recwarn, how):
    payload, marker = Payload(tmp_path / "executed"), tmp_path / "executed"
    if "pickle.dump" in how:
        path.write_bytes(pickle.dumps(payload, protocol=4 if "new" in how else 2))
    elif how == "beside a state dict":
        torch.save({"state_dict": {"a": torch.zeros(3)}, "extra": payload}, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "torch.save")
    with user_error(str(path), "not a checkpoint" if "new" in how else "it calls posix.mkdir"):
        files.load(path)
    assert not marker.exists() and not recwarn.list  # the error is one line, nothing above it
    if how == "torch.save":  # the payload is real
        torch.load(path, weights_only=False)
        assert marker.is_dir()


def test_a_network_that_older_code_saved_whole_is_called_what_it_is(path):
    torch.save(nn.Linear(2, 2), path)
    with user_error(
        "whole modules", "Linear, such as a network saved whole", "state_dict()", "nothing in the file was"
    ):
        files.load(path)


def test_tensors_saved_on_a_gpu_load_on_the_cpu(path, monkeypatch):
    for zipped in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
            torch.save({"a": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped)
        assert b"cuda:0" in path.read_bytes()
        assert files.load(path)["a"].device.type == "cpu"


# Writing


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_failure_half_way_keeps_what_was_there_and_leaves_nothing_else(path, error, before):
    if before:
        path.write_bytes(before)

    def half(file):
        file.write(b"half of the new")
        file.flush()
        raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        files.write_whole(path, half)
    assert names_in(path.parent) == ["file.pth"] * bool(before) and (not before or path.read_bytes() == before)


def test_a_place_where_nothing_can_be_written_is_named_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing/a.pth", tmp_path / "file/a.pth"):
        with user_error(str(path), "cannot write"):
            files.save({}, path)
    with without_privileges(tmp_path), user_error("cannot write", "Permission denied"):
        files.save({}, tmp_path / "a.pth")
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "file/a.pth", "no folder to write in")):
        with user_error(str(path), words):
            files.check_writable(path)
    files.check_writable(tmp_path / "new/folder/a.pth")
    assert names_in(tmp_path) == ["file"]


def test_the_new_file_replaces_the_old_one_for_all_but_those_who_are_reading_it(path):
    path.write_bytes(b"a longer old file")
    with open(path, "rb") as reader:
        files.write_whole(path, lambda file: file.write(b"new"))
        assert reader.read() == b"a longer old file"
    assert path.read_bytes() == b"new" and names_in(path.parent) == ["file.pth"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_a_killed_process_was_writing_is_removed_and_nothing_like_it(tmp_path):
    mine = [".best.pth.swp", "best.pth.bak", "best.pth~", ".best.pth.0abc_xy", ".other.pth.0abc_xyz"]
    for name in [*mine, ".best.pth.0abc_xyz"]:
        (tmp_path / name).write_text("")
    files.remove_unfinished(tmp_path, ["best.pth"])
    assert names_in(tmp_path) == sorted(mine)


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"whole\n")

    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 9:
                raise OSError(28, "No space left on device")
            return super().write(data[:5])

    with Full(path, "ab") as file, pytest.raises(OSError, match="No space"):
        files.append(file, b"half of it")
    assert path.read_bytes() == b"whole\n"
