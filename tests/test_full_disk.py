"""A disk that is full, read-only or gone: an error in one line, the last good state kept, and the run goes on later.

"tmpfs" is a real file system of a few MB (needs the right to mount; skipped without). "limit" is the system's limit on
the size of files (RLIMIT_FSIZE), which makes the write call itself fail and needs no rights.
"""

import contextlib
import csv
import io
import os
import shutil
import threading

import pytest
import torch
from datafree.run_folder import RunFolder
from datafree.snapshot import Snapshot
from programs import NAME, TINY, TINY_SCRATCH, LimitedFiles, SmallDisk, error_of, finished, run, without_privileges

import train_scratch
from datafree import checkpoint
from datafree.data.pool import ImagePool
from datafree.errors import UserError
from scripts.kill_test import differences

COLUMNS = ["round", "loss"]


@pytest.fixture(params=[SmallDisk, LimitedFiles], ids=["tmpfs", "limit"])
def disk(request, tmp_path):
    made = request.param(tmp_path / "disk")
    yield made
    made.remove()


@pytest.fixture
def tmpfs(tmp_path):
    made = SmallDisk(tmp_path / "disk")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    finished([*TINY, "--run_root", root])
    return root / NAME


@contextlib.contextmanager
def quiet(printed):
    """Within, what is printed goes there and to no file, which might have no space either."""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield


WRITERS = {
    "log.txt": lambda folder, snapshot: folder.log("a line " * 2000),
    "metrics.csv and TensorBoard": lambda folder, snapshot: folder.record({"round": 1, "loss": 1.0}, "one"),
    "synthetic.png and .pth": lambda folder, snapshot: folder.show_images(1, torch.rand(64, 3, 32, 32)),
    "a small .pth": lambda folder, snapshot: folder.save("student_last.pth", {"a": torch.rand(3)}),
    "a large .pth": lambda folder, snapshot: folder.save("best.pth", {"a": torch.rand(10**6)}),
    "generator_loss.npy": lambda folder, snapshot: folder.save_array("generator_loss.npy", [1.0] * 10**5),
    "summary.json": lambda folder, snapshot: folder.save_json("summary.json", {"a": "b" * 9999}),
    "pool.bin and last.pth": lambda folder, snapshot: snapshot.save({"round": 2}),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("free", [0, 4096])
def test_every_writer_reports_a_full_disk_and_leaves_old_files_whole(writer, free, disk):
    if free and writer.startswith(("metrics", "a small")):
        pytest.skip("4 KB are enough")
    pool, printed, hook = ImagePool(100, 32), io.StringIO(), threading.excepthook
    with quiet(printed), RunFolder(disk.path / "run", COLUMNS) as folder:
        snapshot = Snapshot(folder.path, {}, pool)
        folder.start()
        folder.save("best.pth", {"old": torch.zeros(3)})
        snapshot.save({"round": 1})
        pool.add(torch.rand(50, 3, 32, 32))
        disk.leave(free)
        try:
            with pytest.raises(UserError) as caught:
                WRITERS[writer](folder, snapshot)
        finally:
            disk.free()
    assert threading.excepthook is hook
    assert "cannot write" in str(caught.value) and "\n" not in str(caught.value)
    assert "Traceback" not in printed.getvalue()
    assert torch.load(disk.path / "run/best.pth", weights_only=True)["old"].tolist() == [0, 0, 0]
    assert Snapshot(disk.path / "run", {}, ImagePool(100, 32)).load() == {"round": 1}
    assert (disk.path / "run/metrics.csv").read_bytes() in (b"round,loss\r\n", b"round,loss\r\n1,1\r\n")
    assert not [file for file in (disk.path / "run").iterdir() if file.name.startswith(".") and file.name != ".lock"]


def test_a_failure_in_the_thread_of_tensorboard_is_reported_by_the_run_and_by_nothing_else(disk, monkeypatch):
    printed = io.StringIO()
    with quiet(printed), RunFolder(disk.path / "run", COLUMNS) as folder:
        folder.start()
        monkeypatch.setattr(folder, "_append", lambda *_: None)  # the other files have all the space they want
        disk.leave(0)
        try:
            with pytest.raises(UserError, match="cannot write"):
                for number in range(1, 2000):
                    folder.record({"round": number, "loss": 1.0}, "")
        finally:
            disk.free()
    assert "Traceback" not in printed.getvalue() and "Exception" not in printed.getvalue()


@pytest.mark.parametrize("free", [0, 100_000, 600_000, 2_600_000])
def test_a_run_that_met_a_full_disk_goes_on_when_there_is_space_and_ends_as_the_one_left_alone(free, disk, alone):
    line = [*TINY, "--run_root", disk.path / "run"]
    with pytest.MonkeyPatch.context() as patch:
        if free:
            disk.leave(free)
        else:  # full from the second round on
            save = Snapshot.save
            patch.setattr(Snapshot, "save", lambda self, progress: (save(self, progress), disk.leave(0)))
        try:
            status, _, stderr = run(line)
        finally:
            disk.free()
    if status:
        assert status == 2 and stderr.startswith("error: cannot write") and stderr.count("\n") == 1, stderr
        finished([*line, "--resume"])
    else:
        assert isinstance(disk, LimitedFiles)  # no file of the run is as large as that
    assert differences(alone, disk.path / "run" / NAME) == []
    rounds = [row["round"] for row in csv.DictReader((disk.path / "run" / NAME / "metrics.csv").open(newline=""))]
    assert rounds == ["1", "2", "3"]


def test_a_full_disk_where_the_teacher_goes_loses_no_training(tmpfs, tmp_path):
    line = [*TINY_SCRATCH, "--run_root", tmp_path / "run", "--output", tmpfs.path / "made/t.pth"]
    tmpfs.leave(0)
    assert "t.pth" in error_of(line, train_scratch)
    tmpfs.free()
    shown = finished([*line, "--resume"], train_scratch)
    assert "epoch" not in shown.partition("writes to")[2].partition("\n")[2].partition("finished")[0]
    assert checkpoint.load(tmpfs.path / "made/t.pth")["arch"] == "resnet8"


def test_a_read_only_file_system_is_named_before_the_first_round(tmpfs, alone):
    """Read-only for real: the tmpfs is mounted anew."""
    shutil.copytree(alone, tmpfs.path / NAME)
    tmpfs.make_read_only()
    try:
        for how in ([], ["--overwrite"], ["--resume"]):
            assert "Read-only" in error_of([*TINY, "--run_root", tmpfs.path, *how])
        assert "Read-only" in error_of([*TINY, "--tag", "new", "--run_root", tmpfs.path])
        scratch = [*TINY_SCRATCH, "--output", tmpfs.path / "t.pth", "--run_root", tmpfs.path / "x"]
        assert "cannot write" in error_of(scratch, train_scratch)
    finally:
        tmpfs.make_writable()
    assert differences(alone, tmpfs.path / NAME) == []


@pytest.mark.parametrize("refused", [6, 13])
def test_a_file_system_that_turns_read_only_in_mid_run_keeps_the_last_state(refused, alone, tmp_path):
    """No system lets it happen on demand while files are open, so opening a file fails instead."""
    line, opened, made = [*TINY, "--run_root", tmp_path], [], checkpoint.tempfile.NamedTemporaryFile

    def open_or_refuse(*args, **keywords):
        opened.append(1)
        if len(opened) >= refused:
            raise OSError(30, "Read-only file system")
        return made(*args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.tempfile, "NamedTemporaryFile", open_or_refuse)
        assert "Read-only file system" in error_of(line)
    finished([*line, "--resume"])
    assert differences(alone, tmp_path / NAME) == []


def test_a_folder_without_permission_is_named(tmp_path):
    above = [folder for folder in tmp_path.parents if str(folder).startswith("/tmp/")] + [tmp_path]
    kept = {folder: folder.stat().st_mode for folder in above}
    for folder in above:
        folder.chmod(0o755)
    try:
        with without_privileges(), pytest.raises(UserError, match="Permission denied"):
            RunFolder(tmp_path / "run", COLUMNS)
        with without_privileges(), pytest.raises(UserError, match="Permission denied"):
            checkpoint.save({}, tmp_path / "a.pth")
    finally:
        for folder, before in kept.items():
            folder.chmod(before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["the folder", "its root"])
def test_a_folder_that_vanishes_stops_the_run_with_an_error(lost, tmp_path, monkeypatch):
    root, save = tmp_path / "run", Snapshot.save

    def save_and_lose(self, progress):
        save(self, progress)
        shutil.rmtree(self.folder if lost == "the folder" else root)

    monkeypatch.setattr(Snapshot, "save", save_and_lose)
    message = error_of([*TINY, "--run_root", root])
    assert "cannot write" in message and "No such file or directory" in message
    assert not (root / NAME).exists()


def test_a_folder_moved_away_in_mid_run_keeps_its_state_where_it_is_now(tmp_path, alone):
    with pytest.MonkeyPatch.context() as patch:
        save = Snapshot.save

        def save_and_move(self, progress):
            save(self, progress)
            os.rename(self.folder, tmp_path / "moved")

        patch.setattr(Snapshot, "save", save_and_move)
        error_of([*TINY, "--run_root", tmp_path])
    finished(["--resume", tmp_path / "moved"])
    assert differences(alone, tmp_path / "moved") == []
