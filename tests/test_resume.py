"""A run that was interrupted and resumed ends bit for bit as one left alone; what is not its state is refused."""

import json
import os
import shlex
import shutil
import signal

import pytest
import torch
from programs import (  # noqa: F401
    FOLDER,
    OF_RESNET8,
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

import main
from datafree import files
from datafree.cli import resume
from datafree.runs.folder import RunFolder
from datafree.runs.snapshot import Snapshot
from scripts.kill_test import differences

pytestmark = pytest.mark.slow

FORMS = {
    "reuse_fix, residual networks": f"--mode reuse_fix {shlex.join(OF_RESNET8)} --student resnet8",
    "hard loss, two rounds an epoch, saved every other": "--hl --p_width 4 --ep_steps 4 --save_every 2",
    "hard loss, fp16, averages of earlier rounds": "--hl --p_width 4 --precision fp16 --bn_mmt 0.9",
    "hard loss, attack at every step": "--hl --p_width 4 --attack_at step --pa 0.5 --ep_steps 3",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a tiny run left alone."""
    root = tmp_path_factory.mktemp("alone")
    finished([*QUICK, "--run_root", root])
    return root / FOLDER


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_resuming_with_the_folder_alone_changes_nothing(form, alone, tmp_path, at_epoch):  # noqa: F811
    flags = [*QUICK, *shlex.split(FORMS[form])]
    if "reuse" in form:
        flags += ["--reuse_generator_path", alone / "gan_reuse.pth", "--reuse_decoder_path", alone / "decoder.pth"]
    finished([*flags, "--run_root", tmp_path / "whole"])
    at_epoch(1 if "saved" in form else 2)  # where a save is not due
    assert run([*flags, "--run_root", tmp_path / "cut"])[0] == 143
    (whole,), (cut,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    assert json_of(cut / "status.json")["state"] == "stopped" and not (cut / "summary.json").exists()
    finished(["--resume", cut])
    assert differences(whole, cut) == [] and ("hard" not in form or (cut / "gap.pth").exists())


def test_a_signal_leaves_one_line_with_the_command_to_go_on_and_the_log_is_continued(alone, tmp_path, at_epoch):  # noqa: F811
    folder = tmp_path / "with a space" / FOLDER
    at_epoch(2, lambda folder: os.kill(os.getpid(), signal.SIGINT))
    left, first, stderr = run([*QUICK, "--run_root", folder.parent])
    assert left == 130 and stderr.count("\n") == 1
    before, _, command = stderr.partition("; go on: python main.py ")
    second = finished(shlex.split(command))
    assert before == "stopped after epoch 2" and differences(alone, folder) == []
    assert (folder / "log.txt").read_text() == first + second
    epochs = [line.split()[1] for line in (first + second).splitlines() if line.startswith("epoch")]
    assert epochs == ["1/3", "2/3", "3/3"]


def test_stopped_moved_saved_otherwise_and_stopped_in_its_last_epoch_it_is_finished_by_a_resumption(
    alone, tmp_path, monkeypatch
):
    record = RunFolder.record
    monkeypatch.setattr(RunFolder, "record", lambda *row: (record(*row), os.kill(os.getpid(), signal.SIGTERM)))
    line, moved = [*QUICK, "--run_root", tmp_path / "before", "--save_every", "3", "--resume"], tmp_path / "renamed é"
    assert run(line)[0] == 143  # there was nothing to resume yet
    assert json_of(tmp_path / "before" / FOLDER / "status.json")["epoch"] == 1  # saved because it was stopped
    shutil.move(tmp_path / "before" / FOLDER, moved)
    assert [run(["--resume", moved, "--save_every", "1s"])[0] for _ in range(3)] == [143, 143, 0]
    assert differences(alone, moved) == [] and not list((tmp_path / "before").iterdir())


def crash_at(monkeypatch, name, occurrence):
    """Ends the run while it writes that file for that time; what a kill would leave behind stays there."""
    seen = []

    def strike(path):
        if path.name == name:
            seen.append(path)
            if len(seen) == occurrence:
                (path.parent / f".{path.name}.0abc_xyz").write_bytes(b"half of it")
                raise Crash

    whole, append = files.write_whole, Snapshot._append
    monkeypatch.setattr(files, "write_whole", lambda path, write: (strike(path), whole(path, write)))
    monkeypatch.setattr(
        Snapshot, "_append", lambda self, images: (append(self, images), strike(self.folder / "pool.bin"))
    )


POINTS = {
    "before there is a config.json": ("config.json", 1),
    "before the first state": ("last.pth", 1),
    "with a pool longer than the state knows of": ("pool.bin", 2),
    "with a row more than the state knows of": ("last.pth", 3),
    "while a student is written": ("student_last.pth", 2),
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


def test_resuming_a_finished_run_says_so_and_changes_none_of_its_results(alone, tmp_path):
    shutil.copytree(alone, tmp_path / FOLDER)
    for line in (["--resume", tmp_path / FOLDER], [*QUICK, "--run_root", tmp_path, "--resume"]):
        assert finished(line) == f"{tmp_path / FOLDER} is complete: nothing to resume\n"
    before, after = tree(alone), tree(tmp_path / FOLDER)
    assert {name for name in before if before[name] != after.get(name)} == {"log.txt"} and before.keys() == after.keys()


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that crashed in its third epoch, to be copied."""
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
    assert [path.read_bytes() for path in sorted(folder.glob("*.pth"))] == state and len(epochs_of(folder)) == 3


def test_a_flag_that_config_json_contradicts_is_refused_by_name_and_one_that_it_confirms_is_not(half, tmp_path):
    folder = shutil.copytree(half, tmp_path / FOLDER)
    before = tree(tmp_path)
    for line, words in (
        (["--resume", folder, "--lr", "0.1"], f"--lr was 0.2 in {folder} — leave it out"),
        ([*QUICK, "--run_root", tmp_path, "--resume", "--epochs", "9"], f"--epochs was 3 in {folder}, not 9"),
        (["--resume", folder, "--hl"], "--hl was False"),
        (["--resume", folder, "--pa", "0.1"], "--pa belongs to the hard loss"),
    ):
        assert words in error_of(line)
    assert tree(tmp_path) == before
    line = ["--resume", folder, "--lr", "0.2", "--kd-steps", "2", "--device", "cpu"]
    assert "finished" in finished(line) and torch.load(folder / "last.pth", weights_only=True)["progress"]["epoch"] == 3


def test_a_flag_that_is_newer_than_the_run_has_its_default_and_not_the_presets(half, tmp_path):
    folder, names = shutil.copytree(half, tmp_path / half.name), ("kd_loss", "clip_grad", "at")
    config = json_of(folder / "config.json")
    text = json.dumps({name: value for name, value in config.items() if name not in names})
    (folder / "config.json").write_text(text)
    given = ["--resume", str(folder)]
    preset = {"at": 9.0, "clip_grad": 5.0}
    values = resume.arguments(main.command_line(given)[0], given, lambda known: preset)
    assert (values.at, values.clip_grad, values.kd_loss) == (0, 0, "kl")
    line = [*QUICK, "--run_root", tmp_path, "--resume"]
    assert "--at was 0.0 in" in error_of([*line, "--at", "9"])
    finished(line)
    assert epochs_of(folder) == ["1", "2", "3"]
