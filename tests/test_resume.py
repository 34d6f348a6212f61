"""A run that was interrupted and resumed ends bit for bit as one left alone; what is not its state is refused."""

import os
import shlex
import shutil
import signal

import pytest
import torch
from programs import (  # noqa: F401
    FOLDER,
    PROGRAMS,
    QUICK,
    Crash,
    at_epoch,
    epochs_of,
    error_of,
    few_digits,
    finished,
    json_of,
    run,
    tree,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datafree import files
from datafree.runs.folder import RunFolder
from datafree.runs.snapshot import Snapshot
from scripts.kill_test import differences

pytestmark = pytest.mark.usefixtures("few_digits")
FORMS = {
    "two rounds an epoch, saved every other": ["--ep_steps", "4", "--save_every", "2", "--epochs", "4"],
    "saved every hour": ["--save_every", "3600s"],
    "reuse_finetune": ["--mode", "reuse_finetune"],
    "reuse_fix": ["--mode", "reuse_fix"],
    "hard loss": ["--hl", "--p_width", "4"],
    "hard loss, attack at every step": [*"--hl --p_width 4 --attack_at step --pa 0.5 --ep_steps 3".split()],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run left alone."""
    root = tmp_path_factory.mktemp("alone")
    finished([*QUICK, "--run_root", root])
    return root / FOLDER


@pytest.mark.parametrize("form", FORMS)
def test_resuming_with_the_folder_alone_changes_nothing(form, alone, tmp_path, at_epoch):  # noqa: F811
    flags = [*QUICK, *FORMS[form]]
    if "reuse" in form:
        flags += ["--reuse_generator_path", alone / "gan_reuse.pth", "--reuse_decoder_path", alone / "decoder.pth"]
    finished([*flags, "--run_root", tmp_path / "whole"])
    at_epoch(3 if "--epochs" in FORMS[form] else 2)
    assert run([*flags, "--run_root", tmp_path / "cut"])[0] == 143
    (whole,), (cut,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    assert json_of(cut / "status.json")["state"] == "stopped" and not (cut / "summary.json").exists()
    finished(["--resume", cut])
    assert differences(whole, cut) == []
    assert "hard" not in form or (cut / "gap.pth").exists()


def test_a_signal_leaves_one_line_with_the_command_to_go_on_and_the_log_is_continued(alone, tmp_path, at_epoch):  # noqa: F811
    root = tmp_path / "with a space"
    at_epoch(2, lambda folder: os.kill(os.getpid(), signal.SIGINT))
    left, first, stderr = run([*QUICK, "--run_root", root])
    assert left == 130 and stderr.count("\n") == 1
    assert stderr.startswith("stopped after epoch 2; go on: python main.py --resume ")
    _, program, *line = shlex.split(stderr.partition("go on: ")[2])
    second = finished(line, PROGRAMS[program])
    assert differences(alone, root / FOLDER) == []
    assert (root / FOLDER / "log.txt").read_text() == first + second
    epochs = [line.split()[1] for line in (first + second).splitlines() if line.startswith("epoch")]
    assert epochs == ["1/3", "2/3", "3/3"]


def test_a_run_begun_with_resume_and_stopped_in_its_last_epoch_is_finished_by_a_resumption(alone, tmp_path, at_epoch):  # noqa: F811
    at_epoch(3)
    line = [*QUICK, "--run_root", tmp_path, "--resume"]
    assert run(line)[0] == 143
    finished(line)
    assert differences(alone, tmp_path / FOLDER) == []


def test_how_often_a_run_is_saved_may_change_when_it_is_resumed(alone, tmp_path, at_epoch):  # noqa: F811
    at_epoch(1)
    assert run([*QUICK, "--run_root", tmp_path, "--save_every", "3"])[0] == 143
    assert json_of(tmp_path / FOLDER / "status.json")["epoch"] == 1  # not due: saved because it was stopped
    finished(["--resume", tmp_path / FOLDER, "--save_every", "1s"])
    assert differences(alone, tmp_path / FOLDER) == []


def crash_at(monkeypatch, name, occurrence):
    """Ends the run while it writes that file for that time; what a kill would leave behind stays there."""
    seen = []

    def strike(path):
        if path.name == name:
            seen.append(path)
            if len(seen) == occurrence:
                (path.parent / f".{path.name}.0abc_xyz").write_bytes(b"half of it")
                raise Crash

    whole, record, append = files.write_whole, RunFolder.record, Snapshot._append
    monkeypatch.setattr(files, "write_whole", lambda path, write: (strike(path), whole(path, write)))
    monkeypatch.setattr(RunFolder, "record", lambda self, *row: (record(self, *row), strike(self.path / "metrics.csv")))
    monkeypatch.setattr(Snapshot, "_append", lambda self: (append(self), strike(self.folder / "pool.bin")))


POINTS = {
    "before there is a config.json": ("config.json", 1),
    "before the first state": ("last.pth", 1),
    "with a pool longer than the state knows of": ("pool.bin", 2),
    "with a row more than the state knows of": ("last.pth", 3),
    "with a student later than the state": ("best.pth", 2),
    "before a student was written": ("student_last.pth", 2),
    "while the status is written": ("status.json", 3),
    "while the images are written": ("synthetic.png", 2),
    "after the last epoch": ("generator_loss.npy", 1),
    "while the reusable parts are written": ("decoder.pth", 1),
    "at the very end": ("summary.json", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_loses_no_more_than_the_epoch_under_way(point, alone, tmp_path):
    line, folder = [*QUICK, "--run_root", tmp_path], tmp_path / FOLDER
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, *POINTS[point])
        run(line)
    assert list(folder.glob(".*.0abc_xyz"))
    finished([*line, "--resume"])
    assert differences(alone, folder) == [] and not list(folder.glob(".*.0abc_xyz"))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in ("loss_bn", "seconds_synthesis"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3], name


def test_a_moved_and_renamed_run_resumes_where_it_is(alone, tmp_path, at_epoch):  # noqa: F811
    at_epoch(2)
    run([*QUICK, "--run_root", tmp_path / "before"])
    shutil.move(tmp_path / "before" / FOLDER, tmp_path / "renamed é")
    finished(["--resume", tmp_path / "renamed é"])
    assert differences(alone, tmp_path / "renamed é") == [] and not list((tmp_path / "before").iterdir())


def test_resuming_a_finished_run_says_so_and_changes_none_of_its_results(alone, tmp_path):
    shutil.copytree(alone, tmp_path / FOLDER)
    for line in (["--resume", tmp_path / FOLDER], [*QUICK, "--run_root", tmp_path, "--resume"]):
        assert finished(line) == f"{tmp_path / FOLDER} is complete: nothing to resume\n"
    before, after = tree(alone), tree(tmp_path / FOLDER)
    assert {name for name in before if before[name] != after.get(name)} == {"log.txt"} and before.keys() == after.keys()


# Refusals


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run stopped after two epochs, to be copied."""
    root = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, "last.pth", 3)
        run([*QUICK, "--run_root", root])
    return root / FOLDER


def test_a_damaged_state_is_refused_in_one_line_and_left_as_it_is(half, tmp_path):
    folder = shutil.copytree(half, tmp_path / FOLDER)
    os.truncate(folder / "pool.bin", 100)
    state = [path.read_bytes() for path in sorted(folder.glob("*.pth"))]
    assert "pool.bin has 100 bytes" in error_of(["--resume", folder])
    assert [path.read_bytes() for path in sorted(folder.glob("*.pth"))] == state
    assert epochs_of(folder) == ["1", "2", "3"] and json_of(folder / "status.json")["state"] == "failed"


def test_a_flag_that_config_json_contradicts_is_refused_by_name_and_one_that_it_confirms_is_not(half, tmp_path):
    folder = shutil.copytree(half, tmp_path / FOLDER)
    before = tree(tmp_path)
    same = [*QUICK, "--run_root", tmp_path, "--resume"]
    for line, words in (
        (["--resume", folder, "--lr", "0.2"], "--lr was 0.1 in"),
        ([*same, "--epochs", "9"], f"--epochs was 3 in {folder}, not 9"),
        (["--resume", folder, "--hl"], "--hl was False"),
        (["--resume", folder, "--pa", "0.1"], "--pa belongs to the hard loss"),
    ):
        assert words in error_of(line)
    assert tree(tmp_path) == before
    line = ["--resume", folder, "--lr", "0.1", "--kd-steps", "2", "--device", "cpu"]
    assert "finished" in finished(line) and torch.load(folder / "last.pth", weights_only=True)["progress"]["epoch"] == 3
