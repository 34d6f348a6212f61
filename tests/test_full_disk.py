"""A disk that is full, read-only or gone: an error in one line, the last good state kept, and the run goes on later.

A limit on the size of files (RLIMIT_FSIZE) makes a write call itself fail; a small tmpfs is really full.
"""

import contextlib
import io
import os
import resource
import shutil
import subprocess
import threading

import pytest
import torch
from conftest import user_error
from programs import FOLDER, QUICK, TINY_SCRATCH, SmallDisk, epochs_of, error_of, few_digits, finished  # noqa: F401

import train_scratch
from datafree import files
from datafree.runs.folder import RunFolder
from datafree.runs.run import Progress
from datafree.runs.snapshot import Snapshot
from scripts.kill_test import differences

pytestmark = pytest.mark.slow


@pytest.fixture
def tmpfs(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "-l", disk.path], check=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    finished([*QUICK, "--run_root", root])
    return root / FOLDER


@contextlib.contextmanager
def no_file_longer_than(count):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def quiet(printed):
    """Within, what is printed goes there and to no file, which might have no space either."""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield


WRITERS = {
    "log.txt": lambda folder, snapshot: folder.log("a line"),
    "metrics.csv": lambda folder, snapshot: folder.record({"epoch": 1, "loss": 1.0}, "one"),
    "synthetic.png": lambda folder, snapshot: folder.show_images(1, torch.rand(64, 3, 32, 32)),
    "a .pth": lambda folder, snapshot: folder.save("best.pth", {"a": torch.rand(10**6)}),
    "generator_loss.npy": lambda folder, snapshot: folder.save_array("generator_loss.npy", [1.0] * 10**5),
    "summary.json": lambda folder, snapshot: folder.save_json("summary.json", {"a": "b"}),
    "last.pth": lambda folder, snapshot: snapshot.save(),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_reports_a_full_disk_and_leaves_old_files_whole(writer, tmp_path):
    printed, hook, progress = io.StringIO(), threading.excepthook, Progress(epoch=1)
    with quiet(printed), RunFolder(tmp_path) as folder:
        snapshot = Snapshot(tmp_path, {"progress": progress})
        folder.start()
        folder.save("best.pth", {"old": 1})
        snapshot.save()
        progress.epoch = 2
        with no_file_longer_than(0), user_error("cannot write"):
            WRITERS[writer](folder, snapshot)
    assert threading.excepthook is hook and "Traceback" not in printed.getvalue()
    assert torch.load(tmp_path / "best.pth", weights_only=True) == {"old": 1}
    Snapshot(tmp_path, {"progress": progress}).load()
    assert progress.epoch == 1 and (tmp_path / "metrics.csv").read_bytes() == b"epoch\r\n"
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".") and file.name != ".lock"]


def test_a_failure_in_the_thread_of_tensorboard_is_reported_by_the_run_and_by_nothing_else(tmp_path, monkeypatch):
    printed = io.StringIO()
    with quiet(printed), RunFolder(tmp_path) as folder:
        folder.start()
        folder.record({"epoch": 1, "loss": 1.0}, "")
        monkeypatch.setattr(files, "append", lambda *_: None)  # the other files have all the space they want
        with no_file_longer_than(0), user_error("cannot write"):
            for number in range(2, 2000):
                folder.record({"epoch": number, "loss": 1.0}, "")
    assert "Traceback" not in printed.getvalue() and "Exception" not in printed.getvalue()


@pytest.mark.parametrize("how", [[], ["--save_async"]], ids=["waiting", "going on"])
@pytest.mark.parametrize("free", [0, 100_000, 700_000])
def test_a_run_that_met_a_full_disk_goes_on_when_there_is_space_and_ends_as_the_one_left_alone(free, how, tmpfs, alone):
    line, folder, write = [*QUICK, *how, "--run_root", tmpfs.path], tmpfs.path / FOLDER, Snapshot._write
    with pytest.MonkeyPatch.context() as patch:
        if free:
            tmpfs.leave(free)
        else:  # full from the second epoch on
            patch.setattr(Snapshot, "_write", lambda self, *state: (write(self, *state), tmpfs.leave(0)))
        assert error_of(line).startswith("error: cannot write")
    tmpfs.free()
    finished([*line, "--resume"])
    assert differences(alone, folder) == [] and epochs_of(folder) == ["1", "2", "3"]


def test_a_full_disk_where_the_teacher_goes_loses_no_training(tmpfs, tmp_path):
    line = [*TINY_SCRATCH, "--run_root", tmp_path / "run", "--output", tmpfs.path / "made/t.pth"]
    tmpfs.leave(0)
    assert "t.pth" in error_of(line, train_scratch)
    tmpfs.free()
    shown = finished([*line, "--resume"], train_scratch)
    assert not [line for line in shown.splitlines() if line.startswith("epoch ")]
    assert files.load(tmpfs.path / "made/t.pth")["arch"] == "resnet8"


def test_a_read_only_file_system_is_named_before_the_first_epoch(tmpfs, alone):
    shutil.copytree(alone, tmpfs.path / FOLDER)
    tmpfs.mount("-o", "remount,ro")
    for how in ([], ["--overwrite"], ["--resume"], ["--tag", "new"]):
        assert "Read-only" in error_of([*QUICK, "--run_root", tmpfs.path, *how])
    scratch = [*TINY_SCRATCH, "--output", tmpfs.path / "t.pth", "--run_root", tmpfs.path / "x"]
    assert "cannot write" in error_of(scratch, train_scratch)
    assert differences(alone, tmpfs.path / FOLDER) == []


def test_a_folder_that_vanishes_stops_the_run_and_one_that_was_moved_keeps_its_state_where_it_is_now(tmp_path, alone):
    save = Snapshot.save
    for act in (shutil.rmtree, lambda folder: os.rename(folder, tmp_path / "moved")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Snapshot, "save", lambda self, act=act: (save(self), act(self.folder)))
            message = error_of([*QUICK, "--run_root", tmp_path])
        assert "cannot write" in message and "No such file or directory" in message
        assert not (tmp_path / FOLDER).exists()
    finished(["--resume", tmp_path / "moved"])
    assert differences(alone, tmp_path / "moved") == []
