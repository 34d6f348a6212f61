"""Files and folders of every common format are read by what is in them; what cannot be read is called what it is."""

import argparse
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import user_error
from programs import without_privileges
from torch import nn

from datafree.weights.reading import read
from datafree.weights.sets import sets_in

STATE = {"conv.weight": torch.arange(24.0).view(2, 3, 2, 2), "fc.bias": torch.tensor([0.5, -1.0, 3.0])}


class Payload:
    """Unpickled, makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def found_in(path):
    """The first set of weights in a file or folder."""
    return sets_in(read(path, "teacher checkpoint").value)[0].values


def is_state(values):
    return values.keys() == STATE.keys() and all(torch.equal(values[name], STATE[name]) for name in STATE)


def as_bytes(save):
    file = io.BytesIO()
    save(file)
    return file.getvalue()


FORMATS = {
    "zip": as_bytes(lambda file: torch.save(STATE, file)),
    "legacy": as_bytes(lambda file: torch.save(STATE, file, _use_new_zipfile_serialization=False)),
    "protocol 4": as_bytes(lambda file: torch.save(STATE, file, pickle_protocol=4)),
    "safetensors": safetensors.torch.save(STATE),
    "npz": as_bytes(lambda file: np.savez(file, **{name: value.numpy() for name, value in STATE.items()})),
    "npy of a dictionary": as_bytes(lambda file: np.save(file, {n: value.numpy() for n, value in STATE.items()})),
    "npy of a list": as_bytes(lambda file: np.save(file, np.array([{n: v.numpy() for n, v in STATE.items()}, 3], "O"))),
    "names that are paths": as_bytes(lambda file: np.savez(file, **{n.replace(".", "/"): STATE[n] for n in STATE})),
    "names in bytes": pickle.dumps({name.encode(): value.numpy() for name, value in STATE.items()}),
    "pickle of arrays": pickle.dumps({name: value.numpy() for name, value in STATE.items()}),
    "pickle of tensors": pickle.dumps(STATE),
    "zip with an object": as_bytes(lambda file: torch.save({"a": argparse.Namespace(), "model": STATE}, file)),
}


@pytest.mark.parametrize(
    "name", ["a.pth", "a.pt", "a.th", "a.bin", "a.ckpt", "a.safetensors", "a.pth.tar", "a", "a b.x"]
)
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_read_by_its_bytes_whatever_it_is_called(tmp_path, name, form):
    (tmp_path / name).write_bytes(FORMATS[form])
    assert is_state(found_in(tmp_path / name))


def test_a_file_saved_without_checksums_is_read_with_other_objects_in_it(tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this PyTorch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": STATE, "other": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert is_state(found_in(tmp_path / "a.pth"))


# Folders


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": "safetensors", "pytorch_model.bin": None, "config.json": None},
        {"pytorch_model.bin": "zip", "config.json": None, "training_args.bin": None, "optimizer.pt": None},
        {"open_clip_pytorch_model.bin": "zip", "open_clip_config.json": None},
        {"best.ckpt": "legacy", "README.md": None},
    ],
)
def test_of_a_folder_the_file_that_hugging_face_names_so_is_read_or_the_only_one(tmp_path, files):
    for name, form in files.items():
        (tmp_path / name).write_bytes(b"other" if form is None else FORMATS[form])
    assert is_state(found_in(tmp_path))


def test_a_snapshot_in_hugging_faces_cache_is_read_through_its_links(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots/0a1b").mkdir(parents=True)
    (tmp_path / "blobs/f00").write_bytes(FORMATS["safetensors"])
    (tmp_path / "snapshots/0a1b/model.safetensors").symlink_to(tmp_path / "blobs/f00")
    assert is_state(found_in(tmp_path))


def in_parts(folder, index="model.safetensors.index.json", first="model-1-of-2", second="model-2-of-2"):
    names = list(STATE)
    for file, name in ((first, names[0]), (second, names[1])):
        (folder / file).write_bytes(safetensors.torch.save({name: STATE[name]}))
    places = {names[0]: first, names[1]: second}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / index


def test_weights_in_parts_are_put_together_by_their_index(tmp_path):
    index = in_parts(tmp_path)
    assert is_state(found_in(tmp_path)) and is_state(found_in(index))
    index.rename(tmp_path / "pytorch_model.bin.index.json")
    assert is_state(found_in(tmp_path))


def test_a_part_that_is_missing_or_lacks_a_weight_is_named(tmp_path):
    index = in_parts(tmp_path)
    (tmp_path / "model-2-of-2").write_bytes(safetensors.torch.save({"other": STATE["fc.bias"]}))
    with user_error("model-2-of-2 lacks fc.bias"):
        read(tmp_path, "teacher checkpoint")
    (tmp_path / "model-2-of-2").unlink()
    with user_error(str(tmp_path), "lacks its part model-2-of-2"):
        read(tmp_path, "teacher checkpoint")
    for text in ("{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "[" * 100_000):
        index.write_text(text)
        with user_error("no index of weights"):
            read(tmp_path, "teacher checkpoint")


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "", "sub/part"])
def test_an_index_names_files_beside_it_alone(tmp_path, place):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with user_error("not beside it"):
        read(tmp_path, "teacher checkpoint")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "a folder without weights in it"),
        (["config.json"], "name the file; looked for: model.safetensors, pytorch_model.bin"),
        (["a.pth", "b.pth"], "a folder of several: a.pth, b.pth"),
        (["__0_0.distcp", ".metadata"], "a distributed checkpoint"),
        (["data.pkl", "version"], "a checkpoint that was unpacked — download the file itself"),
        (["saved_model.pb"], "a TensorFlow model"),
    ],
)
def test_a_folder_that_holds_none_or_several_says_so(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_text("")
    with user_error("teacher checkpoint", str(tmp_path), "is", words):
        read(tmp_path, "teacher checkpoint")


# What is not read


def tarred(names):
    def write(file):
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())

    return as_bytes(write)


def zipped(names):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, "")

    return as_bytes(write)


def scripted():
    return as_bytes(lambda file: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file))


def exported():
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    return as_bytes(lambda file: torch.export.save(program, file))


PAGE = b"<!DOCTYPE html>\n<html><head><title>Google Drive - Virus scan warning</title>"
KINDS = [  # name, bytes, what is said, what is advised
    ("a.pth", b"", "is empty", "copy or download it again"),
    ("a.pth", bytes(5000), "nothing but zeros", "copy or download it again"),
    ("a.pth", PAGE, "is a web page", "the download gave a page"),
    ("a.pth", b"\n\n  <HTML>" + bytes(range(32, 127)) * 100, "is a web page", "the download"),
    ("a.pth", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML text", "the download"),
    (
        "a.pth",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    ("a.pth", gzip.compress(b"a"), "compressed by gzip", "unpack it"),
    ("a.pth", bz2.compress(b"a"), "compressed by bzip2", "unpack it"),
    ("a.pth", lzma.compress(b"a"), "compressed by xz", "unpack it"),
    ("a.pth", b"\x28\xb5\x2f\xfd" + bytes(9), "compressed by zstd", "unpack it"),
    ("a.pth", b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive", "unpack it"),
    ("a.pth", b"Rar!\x1a\x07\x01\0", "a rar archive", "unpack it"),
    ("a.pth.tar", tarred(["a/best.pth", "a/log.txt"]), "a tar archive of a/best.pth, a/log.txt", "name the file in it"),
    ("a.pth", tarred(["sys_info", "pickle", "storages", "tensors"]), "PyTorch's first format", "save it anew"),
    ("a.pth", zipped(["weights/best.pth", "b", "c", "d"]), "a zip archive of weights/best.pth, b, c, ...", "unpack it"),
    ("a.zip", zipped(["metadata.json", "config.json", "model.weights.h5"]), "a Keras model", "convert it"),
    ("a.onnx", b"\x08\x08\x12\x07pytorch\x1a\x052.6.0", "an ONNX model", "exported from"),
    ("a.pth", b"\x08\x08\x12\x07pytorch\x1a\x052.6.0", "an ONNX model", "exported from"),
    ("a.pth", b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file", "convert it"),
    ("a.ckpt", bytes(range(128, 256)) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "a TensorFlow model", "convert it"),
    ("model.ckpt.data-00000-of-00001", bytes(range(128, 256)), "a TensorFlow model", "convert it"),
    ("checkpoint", b'model_checkpoint_path: "model.ckpt-1"\n', "TensorFlow's list", "convert it"),
    ("a.tflite", b"\x1c\0\0\0TFL3" + bytes(9), "a TensorFlow Lite model", "convert it"),
    ("flax_model.msgpack", b"\x81\xa6params", "a Flax model", "convert it"),
    ("a.npy", as_bytes(lambda file: np.save(file, np.ones(3))), "a single numpy array", "numpy.savez"),
    ("a.gguf", b"GGUF\3\0\0\0", "a GGUF file", "convert it"),
    ("a.pth", b"\x89PNG\r\n\x1a\n" + bytes(99), "an image", "name the file that holds the weights"),
    ("a.pth", b"\xff\xd8\xff\xe0\0\x10JFIF", "an image", "name the file that holds the weights"),
    ("a.pth", b"RIFF\0\0\0\0WEBPVP8 ", "an image", "name the file that holds the weights"),
    ("config.json", b'{"architectures": ["ResNet"]}', "JSON text", "name the file that holds the weights"),
    ("a.yaml", b"model: resnet\nclasses: 10\n", "YAML text", "name the file that holds the weights"),
    ("train.py", "# Lehrer für die Ziffern\nimport torch\n".encode(), "text that begins '# lehrer", "name the file"),
    ("._a.pth", b"\0\5\x16\7" + bytes(80), "what macOS puts beside a file", "without ._"),
    ("a.pth", bytes(range(200, 256)), "begins with the bytes c8 c9 ca", "copy it anew if it is one"),
    ("a.pth", FORMATS["zip"][:300], "damaged: it is cut short", "copy or download it again"),
    ("a.pth", FORMATS["legacy"][:-3], "is damaged (EOFError)", "copy or download it again"),
    ("a.pth", FORMATS["safetensors"][:-3], "is damaged (SafetensorError)", "copy or download it again"),
    ("a.pkl", FORMATS["pickle of arrays"][:-30], "is damaged (", "copy or download it again"),
]


@pytest.mark.parametrize(("name", "content", "said", "advised"), KINDS, ids=[f"{row[0]}-{row[2]}" for row in KINDS])
def test_what_cannot_be_read_is_called_what_it_is_with_a_way_on(tmp_path, name, content, said, advised, recwarn):
    (tmp_path / name).write_bytes(content)
    with user_error("teacher checkpoint", str(tmp_path / name), said, advised) as caught:
        read(tmp_path / name, "teacher checkpoint")
    assert caught is None and not recwarn.list


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's, on TorchScript
def test_programs_that_pytorch_saves_are_called_what_they_are(tmp_path):
    for make, words in ((scripted, "a TorchScript archive"), (exported, "a torch.export archive")):
        (tmp_path / "a.pt").write_bytes(make())
        with user_error(words, "save its weights", "OWN.py:FUNCTION"):
            read(tmp_path / "a.pt", "teacher checkpoint")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_cut_short_or_with_a_flipped_byte_is_damaged_wherever(tmp_path, legacy):
    path = tmp_path / "a.pth"
    for content in (STATE, {"model": STATE, "other": argparse.Namespace(a=1)}):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        damaged = [whole[:length] for length in (1, 30, len(whole) // 2, len(whole) - 10)]
        for at in () if legacy else range(0, len(whole), 97):
            damaged.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        for content_now in damaged:
            path.write_bytes(content_now)
            try:
                values = found_in(path)
            except Exception as error:
                assert type(error).__name__ == "UserError" and "amaged" in str(error), error
            else:  # a byte of padding or of a date
                assert is_state(values)


def test_what_is_not_there_is_no_file_or_may_not_be_read_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").write_bytes(FORMATS["zip"])
    for name, words in (("nothing.pth", "does not exist"), ("file/a.pth", "does not exist"), ("pipe", "not a file")):
        with user_error("teacher checkpoint", name, words):
            read(tmp_path / name, "teacher checkpoint")
    with user_error("https:/host/a.pth is an address", "download it"):
        read(Path("https://host/a.pth"), "teacher checkpoint")
    (tmp_path / "locked").chmod(0o200)
    with without_privileges(tmp_path), user_error("locked cannot be read", "check its permissions"):
        read(tmp_path / "locked", "teacher checkpoint")


# Malice


@pytest.mark.parametrize("how", ["alone", "beside weights", "as weights", "as a key"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_file_that_wants_to_run_code_is_read_past_it_and_nothing_runs(tmp_path, how, form, recwarn):
    payload, marker, path = Payload(tmp_path / "executed"), tmp_path / "executed", tmp_path / "a.pth"
    content = {"alone": payload, "beside weights": {"extra": payload, "model": STATE}, "as a key": {payload: STATE}}
    content = content | {"as weights": {"model": STATE | {"more.weight": payload}}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content[how]))
    else:
        torch.save(content[how], path, _use_new_zipfile_serialization=form == "zip")
    found = read(path, "teacher checkpoint")
    sets = sets_in(found.value)
    assert found.strange == [f"{os.mkdir.__module__}.mkdir"] and not marker.exists() and not recwarn.list
    assert [is_state(each.values) for each in sets] == ([] if how == "alone" else [True])
    with contextlib.suppress(TypeError):  # what it gives cannot be a key
        pickle.loads(pickle.dumps(content[how]))
    assert marker.is_dir()  # the payload is real


def test_neither_a_tar_archive_nor_torchscript_is_reached_through_a_file_that_is_two_things(tmp_path, monkeypatch):
    """PyTorch would unpack the one and compile the other, where its unpickler is not the strict one."""
    reached = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: reached.append("jit"))
    monkeypatch.setattr(tarfile.TarFile, "extract", lambda *args, **kwargs: reached.append("tar"))
    head = FORMATS["legacy"][:15].decode("latin1")
    with tarfile.open(tmp_path / "a.pth", "w", format=tarfile.GNU_FORMAT, encoding="latin1") as archive:
        for name in (head, "storages", "tensors", "pickle"):  # begins as a file of torch.save
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with user_error("a.pth"):
        read(tmp_path / "a.pth", "teacher checkpoint")
    torch.save({"a": argparse.Namespace()}, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "a") as archive:
        archive.writestr("b/constants.pkl", b"\x80\x02).")
    with user_error("a TorchScript archive"):
        read(tmp_path / "b.pth", "teacher checkpoint")
    # an archive in an archive's comment: which of the two is read depends on the reader
    outer = as_bytes(lambda file: torch.save({"a": argparse.Namespace()}, file))
    (tmp_path / "c.pth").write_bytes(outer + (tmp_path / "b.pth").read_bytes())
    (tmp_path / "d.pth").write_bytes((tmp_path / "b.pth").read_bytes() + outer)
    for name in ("c.pth", "d.pth"):
        try:
            read(tmp_path / name, "teacher checkpoint")
        except Exception as error:
            assert type(error).__name__ == "UserError"
    assert reached == []
