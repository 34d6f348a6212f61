"""A run's folder: one process at a time, nothing of anybody else's removed, rows whole, and a status for who waits."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import filelock
import pytest
import torch
from conftest import user_error
from programs import epochs_of, json_of, rows_of, tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datafree.errors import UserError
from datafree.runs import folder as folders
from datafree.runs.folder import WRITTEN, RunFolder, folder_name, read_status


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def row(epoch, **more):
    return {"epoch": epoch, "round": epoch, **more}


# One process


def test_a_folder_in_use_by_another_process_is_refused_however_it_is_asked_for_until_that_is_killed(path):
    path.mkdir()
    (path / "best.pth").write_bytes(b"of the other run")
    hold = (
        "import fcntl, sys, time; lock = open(sys.argv[1] + '/.lock', 'a'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", hold, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        before = tree(path)
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with user_error("in use by another run"):
                RunFolder(path, **how)
        assert tree(path) == before
        holder.kill()
    RunFolder(path, resume=True).close()


def test_a_folder_is_free_again_after_a_refusal_and_after_the_run(path):
    RunFolder(path).close()
    for _ in range(2):
        with user_error("not empty", "--resume", "--overwrite", "--tag"):
            RunFolder(path)
    with RunFolder(path, resume=True), user_error("in use"):
        RunFolder(path, resume=True)
    RunFolder(path, overwrite=True).close()


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), OSError(38, "x"), NotImplementedError()])
def test_a_file_system_without_locks_is_no_reason_not_to_run(path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    RunFolder(path).close()


# What is removed


def test_overwrite_removes_all_that_a_run_wrote_and_nothing_else(path):
    with RunFolder(path) as folder:
        folder.start()
        folder.record(row(1, loss=1.0), "one")
        folder.show_images(1, torch.rand(4, 3, 8, 8))
        folder.save("of_a_method.pth", {"a": 1})
        folder.save_json("summary.json", {})
    events = list(path.glob("tensorboard/events*"))
    for name in WRITTEN:
        (path / name).touch()
    (path / ".best.pth.0abc_xyz").write_bytes(b"half")
    mine = ["best.pth.bak", "last.pth~", "notes.txt", "tensorboard/notes", "plots/metrics.csv", "of_mine.pth"]
    for name in mine:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")
    RunFolder(path, overwrite=True).close()
    left = {name for name, content in tree(path).items() if content is not None}
    assert events and left == {*mine, ".lock", "log.txt"} and (path / "log.txt").read_bytes() == b""
    assert all((path / name).read_text() == "mine" for name in mine)


@pytest.mark.parametrize("files", [["../mine", "a/b", "", "..", 3, None], "mine", None, {"mine": 1}])
def test_a_status_that_somebody_wrote_by_hand_removes_nothing_elsewhere(path, files):
    path.mkdir()
    (path.parent / "mine").write_text("mine")
    (path / "status.json").write_text(json.dumps({"files": files}))
    RunFolder(path, overwrite=True).close()
    assert (path.parent / "mine").exists() and not (path / "status.json").exists()


@pytest.mark.parametrize("how", ["overwrite", "resume"])
def test_a_folder_where_a_file_goes_stops_it_before_anything_is_removed(how, path):
    for name in ("last.pth", "summary.json", "of_a_method.pth"):
        (path / name).mkdir(parents=True)
        (path / "status.json").write_text(json.dumps({"files": ["of_a_method.pth"]}))
        (path / "best.pth").write_text("old")
        before = tree(path)
        with user_error(f"{name} is a folder"):
            RunFolder(path, **{how: True})
        assert before.items() <= tree(path).items()
        (path / name).rmdir()


# Rows


def test_a_column_gets_its_place_when_it_first_comes_and_empty_cells_above(path):
    with RunFolder(path) as folder:
        folder.start()
        folder.record(row(1, loss_bn=0.25, lr=0.1, seconds_a=1.0), "one")
        folder.record(row(2, loss_bn=1 / 3, lr=0.1, accuracy=None, loss_kd=2.0, seconds_a=2.0), "two")
        folder.record(row(3, accuracy=5.0, lr=0.1), "three")
    lines = (path / "metrics.csv").read_text().splitlines()
    assert lines == [
        "epoch,round,loss_bn,loss_kd,accuracy,lr,seconds_a",
        *("1,1,0.25,,,0.1,1", "2,2,0.333333,2,,0.1,2", "3,3,,,5,0.1,"),
    ]
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss_bn")] == [1, 2] and "epoch" not in events.Tags()["scalars"]
    assert [event.value for event in events.Scalars("accuracy")] == [5.0]


@pytest.mark.slow
def test_resuming_drops_the_rows_beyond_the_saved_epoch_in_metrics_and_tensorboard_and_takes_new_columns(path):
    with RunFolder(path) as folder:
        folder.start()
        for epoch in (1, 2, 3):
            folder.record(row(epoch, loss=float(epoch)), "")
    time.sleep(1.1)  # TensorBoard orders its files by the second
    with RunFolder(path, resume=True) as folder:
        folder.start(1)
        assert epochs_of(path) == ["1"]
        for epoch in (2, 3):
            folder.record(row(epoch, loss=10.0 * epoch, late=7.0), "")
    assert [(r["loss"], r["late"]) for r in rows_of(path)] == [("1", ""), ("20", "7"), ("30", "7")]
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 20), (3, 30)]


@pytest.mark.parametrize("rest", [b"", b"epoch,round,loss\r\n", b"epoch,round,loss\r\n1,1,0.5\r\n2,2", b"\0\xff,"])
def test_rows_that_were_lost_are_said_to_be_lost_and_the_run_goes_on(path, rest, capsys):
    path.mkdir()
    (path / "metrics.csv").write_bytes(rest)
    with RunFolder(path, resume=True) as folder:
        folder.start(2)
        folder.record(row(3, loss=1.0), "")
    assert "metrics.csv has lost rows" in capsys.readouterr().out
    assert epochs_of(path) == ["1"] * (b"1,1" in rest) + ["3"]


# Configuration, status, names


def test_a_resumption_keeps_the_first_config_and_says_what_differs_in_the_environment(path, capsys):
    first = {"lr": 0.1, "environment": {"torch": "2.6", "threads": "2"}}
    for resume in (False, True):
        with RunFolder(path, resume=resume) as folder:
            folder.save_config(first)
    assert "warning" not in capsys.readouterr().out
    with RunFolder(path, resume=True) as folder:
        folder.save_config({"lr": 0.1, "environment": {"torch": "2.7", "threads": "2"}})
    assert "torch 2.6 -> 2.7" in capsys.readouterr().out
    assert json_of(path / "config.json") == {"format": 2, **first}


def test_the_status_names_process_and_epoch_and_of_a_failure_the_message(path):
    with RunFolder(path) as folder:
        folder.status("running", epoch=3, epochs=9)
        folder.save("foo.pth", {})
        with pytest.raises(ValueError, match="no plain file name"):
            folder.save("../foo.pth", {})
        told = {"state": "running", "process": os.getpid(), "files": ["foo.pth"], "epoch": 3, "epochs": 9}
        assert read_status(path) == told
    for error, message in (
        (UserError("a", "b"), "a — b"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RuntimeError("\n it failed\nand a page of why"), "it failed"),
    ):
        with pytest.raises(type(error)), RunFolder(path, resume=True) as folder:
            folder.status("running", epoch=3)
            raise error
        status = read_status(path)
        assert (status["state"], status["message"], status["epoch"]) == ("failed", message, 3)
    assert read_status(path.parent) == {}


def test_a_folders_name_has_the_last_name_of_each_path_in_it():
    assert (
        folder_name("anew", "imagefolder:/data/pets/", "a/b.py:net,depth=20", None, "tag")
        == "anew-pets-b-net-depth=20-tag"
    )
    assert folder_name("anew", "timm:vit,img_size=32", "hf:ORG/NAME", "hf:../a b/") == (
        "anew-timm-vit-img_size=32-hf-NAME-hf-a-b"
    )


def test_a_notebook_is_known_by_its_shell_and_not_by_what_was_imported(monkeypatch):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    of_colab = type("Shell", (type(shell),), {})()
    for found, is_one in ((None, False), (object(), False), (shell, True), (of_colab, True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda found=found: found))
        assert folders._in_notebook() == is_one
    monkeypatch.delitem(sys.modules, "IPython")
    assert not folders._in_notebook()


def test_a_notebook_shows_one_bar_and_no_line_an_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "_in_notebook", lambda: True)
    with RunFolder(tmp_path / "run") as folder:
        folder.start()
        for epoch in folder.epochs(30):
            folder.record(row(epoch, loss=0.5, accuracy=50.0 + epoch), f"line {epoch}")
            if epoch == 20:
                folder.log("warning: of note")
    out, err = capsys.readouterr()
    assert out == "warning: of note\n"
    assert "30/30" in err and "accuracy=80" in err and "line" not in err
    assert (tmp_path / "run/log.txt").read_text().splitlines().count("line 30") == 1


def test_the_bar_of_a_notebook_is_a_widget_where_these_are_installed(monkeypatch):
    for installed, notebook, module in ((1, 1, "tqdm.notebook"), (0, 1, "tqdm.std"), (1, 0, "tqdm.std")):
        monkeypatch.setattr(folders, "find_spec", lambda name, installed=installed: installed)
        assert folders._bar(notebook).__module__ == module
