"""train_scratch.py as a user runs it: a teacher where main.py looks for it, nothing overwritten, resumable."""

import os

import pytest
import torch
from programs import SCRATCH_FOLDER, TINY, epochs_of, error_of, few_digits, finished, json_of, rows_of, run  # noqa: F401

import main
import train_scratch
from datafree.engine.training import Training
from scripts.kill_test import differences

LINE = ["--model", "resnet8", "--epochs", "3", "--batch_size", "16", "--precision", "fp32"]


@pytest.mark.slow
def test_a_teacher_that_it_wrote_is_where_main_looks_for_it_with_the_accuracy_that_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_scratch.main([*LINE, "--crop-padding", "2"])
    content = torch.load("checkpoints/pretrained/digits_resnet8.pth", weights_only=True)
    assert (content["arch"], content["dataset"], content["num_classes"]) == ("resnet8", "digits", 10)
    folder = tmp_path / "run" / SCRATCH_FOLDER
    assert list(rows_of(folder)[0])[:5] == ["epoch", "loss", "accuracy_train", "accuracy", "lr"]
    assert epochs_of(folder) == ["1", "2", "3"] and json_of(folder / "status.json")["state"] == "finished"
    assert json_of(folder / "summary.json")["accuracy_last"] == content["accuracy"]
    main.main([*TINY, "--teacher", "resnet8"])
    teacher = json_of(tmp_path / "run/anew-digits-resnet8-resnet8/summary.json")["accuracy_teacher"]
    assert teacher == pytest.approx(content["accuracy"])


@pytest.mark.parametrize("schedule", [[], ["--lr_decay_milestones", "1"]], ids=["cosine", "steps"])
@pytest.mark.slow
def test_stopped_and_resumed_it_ends_as_the_one_left_alone(schedule, tmp_path, monkeypatch):
    flags = [*LINE, *schedule, "--save_every", "2", "--output", tmp_path / "t.pth"]
    finished([*flags, "--run_root", tmp_path / "whole"], train_scratch)
    (tmp_path / "t.pth").unlink()
    epoch = Training.epoch
    monkeypatch.setattr(Training, "epoch", lambda self: (os.kill(os.getpid(), 15), epoch(self))[1])
    status, _, stderr = run([*flags, "--run_root", tmp_path], train_scratch)
    assert status == 143 and "go on: python train_scratch.py --resume" in stderr and not (tmp_path / "t.pth").exists()
    folder = tmp_path / SCRATCH_FOLDER
    monkeypatch.undo()
    finished(["--resume", folder], train_scratch)
    assert differences(tmp_path / "whole" / folder.name, folder) == []
    assert (tmp_path / "t.pth").read_bytes() == (folder / "student_last.pth").read_bytes()


def test_an_existing_teacher_is_not_overwritten_unless_told_nor_anything_written_in_a_dry_run(tmp_path):
    path = tmp_path / "t.pth"
    shown = finished(["--dry_run", "--run_root", tmp_path / "run", "--output", path], train_scratch)
    assert "model=resnet20" in shown and f"writes to: {tmp_path}/run/scratch-digits-resnet20, {path}" in shown
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"mine")
    line = [*LINE, "--epochs", "1", "--output", path, "--run_root", tmp_path / "run"]
    assert f"{path} exists" in error_of(line, train_scratch) and "exists" in error_of(
        [*line, "--resume"], train_scratch
    )
    assert path.read_bytes() == b"mine" and not (tmp_path / "run").exists()
    finished([*line, "--overwrite"], train_scratch)
    assert torch.load(path, weights_only=True)["arch"] == "resnet8"


def test_a_loss_or_a_weight_that_is_not_finite_is_named_and_no_teacher_written(tmp_path, monkeypatch):
    line = [*LINE, "--output", tmp_path / "t.pth", "--run_root"]
    message = error_of([*line, tmp_path / "a", "--lr", "1e30"], train_scratch)
    assert "loss became" in message and "in epoch 1, step" in message
    epoch = Training.epoch

    def spoilt(self):
        row = epoch(self)
        self.classifier.head.weight.data[0, 0] = float("nan")
        return row

    monkeypatch.setattr(Training, "epoch", spoilt)
    assert "model's fc.weight became nan in epoch 1" in error_of([*line, tmp_path / "b"], train_scratch)
    assert not list(tmp_path.rglob("*.pth"))
    assert json_of(tmp_path / "b" / SCRATCH_FOLDER / "status.json")["state"] == "failed"
