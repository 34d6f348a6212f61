"""main.py as a user runs it, on tiny tasks: what it writes, how it fails, and that numbers come twice."""

import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import FP32, ROOT, same_state
from programs import (  # noqa: F401
    COLOUR,
    FOLDER,
    QUICK,
    TINY,
    epochs_of,
    error_of,
    few_digits,
    finished,
    json_of,
    rows_of,
    run,
)

import registry
from datafree import job
from datafree.engine.evaluation import percentage_equal, predict
from datafree.engine.student import Student
from datafree.models.loading import load_classifier
from datafree.targets.attack import Attack
from scripts.kill_test import differences

NETWORKS = ["gan_reuse.pth", "gan_abandon.pth", "decoder.pth", "student_last.pth", "best.pth", "synthetic.pth"]
COLUMNS = [
    *("epoch", "round", "loss_bn", "loss_oh", "loss_adv", "loss_generator", "loss_kd", "accuracy", "agreement", "lr"),
    *("teacher_passes", "seconds_synthesis", "seconds_distillation", "seconds_evaluation"),
]
SUMMARY = {
    *("accuracy_last", "accuracy_best", "accuracy_teacher", "agreement", "epochs", "rounds", "seconds_total", "images"),
    *("seconds_synthesis", "peak_memory_mb", "costs", "score_g1", "score_g2", "reused_network"),
    *("teacher_passes", "student_passes", "generator_passes"),
}


@pytest.fixture(scope="module")
def anew(tmp_path_factory):
    """The folder of a tiny run in mode anew."""
    root = tmp_path_factory.mktemp("run")
    finished([*QUICK, "--run_root", root])
    assert [entry.name for entry in root.iterdir()] == [FOLDER]
    return root / FOLDER


def parts_of(folder):
    return ["--reuse_generator_path", folder / "gan_reuse.pth", "--reuse_decoder_path", folder / "decoder.pth"]


def state_in(folder, name):
    content = torch.load(folder / name, weights_only=True)
    return content["state_dict"] if isinstance(content, dict) else {"": content}


# What a run leaves


def test_every_file_of_a_run_folder_is_written_and_pth_files_hold_tensors_and_plain_values(anew):
    names = {entry.name for entry in anew.iterdir()}
    others = {"config.json", "log.txt", "metrics.csv", "summary.json", "status.json", "generator_loss.npy", "last.pth"}
    assert {*NETWORKS, *others, "synthetic.png", "pool.bin", "tensorboard"} <= names
    assert list((anew / "tensorboard").glob("events.out.tfevents.*"))
    assert (anew / "synthetic.png").read_bytes().startswith(b"\x89PNG")
    for path in anew.glob("*.pth"):
        torch.load(path, weights_only=True)
    x = torch.load(anew / "synthetic.pth", weights_only=True)
    assert x.shape == (8, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1


def test_metrics_have_a_row_an_epoch_whose_columns_agree_with_each_other_and_with_the_generator_loss(anew):
    rows = rows_of(anew)
    assert list(rows[0]) == COLUMNS and epochs_of(anew) == [row["round"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        bn, oh, adv, total = (float(row[f"loss_{name}"]) for name in ("bn", "oh", "adv", "generator"))
        assert total == pytest.approx(10 * bn + 1.5 * oh + 1.33 * adv, rel=1e-4)
    assert [rows[0][name] for name in ("loss_kd", "accuracy", "agreement", "loss_adv")] == ["", "", "", "0"]  # warm-up
    for row in rows[1:]:
        assert float(row["loss_kd"]) > 0 and 0 <= float(row["accuracy"]) <= 100 and 0 <= float(row["agreement"]) <= 100
    losses = np.load(anew / "generator_loss.npy")
    means = [float(row["loss_generator"]) for row in rows]
    assert losses.shape == (6,) and losses.reshape(3, 2).mean(1).tolist() == pytest.approx(means, rel=1e-4)


def test_config_has_every_flag_and_what_else_the_numbers_depend_on(anew):
    config = json_of(anew / "config.json")
    assert (config["format"], config["program"], config["method"]) == (2, "main.py", "aeahl_rg")
    assert list(config["groups"]) == ["task", "method aeahl_rg", "targets soft", "student", "length", "machine"]
    assert {name for names in config["groups"].values() for name in names} == config["defaults"].keys() <= config.keys()
    assert (config["epochs"], config["kd_steps"], config["ep_steps"], config["seed"], config["ngf"]) == (3, 2, 2, 0, 4)
    assert config["defaults"]["ngf"] == 64 and config["environment"]["torch"] == torch.__version__
    assert {"python", "numpy", "torchvision", "git_commit", "device"} <= config["environment"].keys()


def test_summary_and_log_agree_with_the_metrics(anew):
    summary, rows = json_of(anew / "summary.json"), rows_of(anew)
    assert summary.keys() >= SUMMARY and (summary["rounds"], summary["images"]) == (3, 24)
    assert summary["accuracy_last"] == pytest.approx(float(rows[-1]["accuracy"]), rel=1e-5)
    assert summary["agreement"] == pytest.approx(float(rows[-1]["agreement"]), rel=1e-5)
    assert summary["reused_network"] == min(("g1", "g2"), key=lambda part: summary[f"score_{part}"])
    assert 0 < summary["seconds_synthesis"] < summary["seconds_total"]
    lines = (anew / "log.txt").read_text().splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 3 and any("next task gets" in line for line in lines)
    (warned,) = (at for at, line in enumerate(lines) if line.startswith("warning: the student is still near chance"))
    assert lines[warned - 1].startswith("epoch 2/3 ") and lines[warned + 1].startswith("epoch 3/3 ")
    assert lines[-1].startswith(f"finished: accuracy {summary['accuracy_last']:.2f} % after ")
    assert any(line.startswith("teacher: ") and "of 64 test images" in line for line in lines)


def test_the_student_file_gives_the_reported_accuracy(anew):
    spec = registry.DATASETS["digits"]
    student = registry.classifier("lenet5_bn", spec)
    told = load_classifier(student, anew / "student_last.pth").about
    assert percentage_equal(*predict(student, spec.load("data", False, False), FP32)) == pytest.approx(told["accuracy"])
    assert (told["arch"], told["dataset"], told["epoch"], told["num_classes"]) == ("lenet5_bn", "digits", 3, 10)


@pytest.mark.slow
def test_the_scripts_themselves_give_the_same_numbers_print_their_log_alone_and_fail_in_one_line(anew, tmp_path):
    """In other processes, and on all the test images, which change accuracy and nothing else."""
    commands = [["main.py", *QUICK, "--run_root", tmp_path], ["train_scratch.py", "--model", "resnet21"]]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    started = [subprocess.Popen([sys.executable, *map(str, line)], env=environment, **pipes) for line in commands]
    (stdout, stderr), (silence, error) = (process.communicate(timeout=300) for process in started)
    assert (started[1].returncode, silence) == (2, "") and error.startswith("error: unknown model 'resnet21' — did")
    assert error.count("\n") == 1 and (started[0].returncode, stderr) == (0, "")
    assert stdout == (tmp_path / FOLDER / "log.txt").read_text()
    unequal = {line.split(" ")[0].rstrip(":") for line in differences(anew, tmp_path / FOLDER)}
    assert unequal <= {"last.pth", "best.pth", "student_last.pth", "metrics.csv", "summary.json"}
    for name in NETWORKS:
        assert name == "best.pth" or same_state(state_in(anew, name), state_in(tmp_path / FOLDER, name)), name
    for one, other in zip(rows_of(anew), rows_of(tmp_path / FOLDER), strict=True):
        assert all(one[name] == other[name] for name in COLUMNS if name.startswith(("loss", "lr")))


@pytest.mark.slow
def test_another_seed_gives_another_student_and_a_tag_another_folder(anew, tmp_path):
    shutil.copytree(anew, tmp_path / FOLDER)
    finished([*QUICK, "--seed", "1", "--tag", "second", "--run_root", tmp_path])
    assert not same_state(*(state_in(folder, "student_last.pth") for folder in (anew, tmp_path / f"{FOLDER}-second")))


def test_dry_run_shows_everything_and_writes_nothing(tmp_path):
    shown = finished(["--dry-run", "--run-root", tmp_path / "run", "--bn", "7", "--ep_steps=120"])
    sizes = "parameters: teacher 272,474, student 78,042, g1 "  # of resnet20 and resnet8, counted by hand
    for words in (
        "bn=7.0",
        "kd_steps=30 ",
        "mode=anew",
        sizes,
        "rounds: 224;",
        f"writes to: {tmp_path}/run/anew-digits-",
    ):
        assert words in shown
    shown = finished(["--epochs", "5", "--method", "nayer", "--g_steps", "3", "--dry_run"])
    told = {title: {*names.split()} for title, _, names in (line.partition(": ") for line in shown.splitlines())}
    assert told["given"] == {"epochs", "method", "g_steps", "dry_run"}
    assert {"kd_steps", "warmup", "batch_size", "loops"} <= told["from the preset fast"]
    assert not {"epochs", "g_steps", "p_width", "momentum"} & told["from the preset fast"]
    assert "networks compiled" in finished([*QUICK, "--compile", "--dry_run"]) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_committed_teachers_know_985_of_1000_held_out_digits():
    images = registry.load_digits("data", False, False)
    for name in ("resnet20", "wrn16_1"):
        teacher = registry.classifier(name, registry.DATASETS["digits"])
        told = load_classifier(teacher, ROOT / f"checkpoints/pretrained/digits_{name}.pth").about
        assert len(images) == 360 and percentage_equal(*predict(FP32.place(teacher), images, FP32)) >= 98.5
        assert told["arch"] == name and told["dataset"] == "digits"


def test_a_teacher_that_is_not_where_it_is_looked_for_is_named_with_the_place(tmp_path):
    assert "checkpoints/pretrained/digits_vgg8.pth does not exist" in error_of(["--teacher", "vgg8", "--tag", "t"])


# Reuse


@pytest.mark.slow
def test_a_reuse_mode_trains_on_from_what_another_students_task_left(anew, tmp_path):
    finished([*QUICK, "--mode", "reuse_common", *parts_of(anew), "--student", "wrn16_1", "--run_root", tmp_path])
    folder = tmp_path / "reuse_common-digits-lenet5_bn-wrn16_1"
    left, now = (state_in(where, "decoder.pth")["layers.Conv5.conv.weight"] for where in (anew, folder))
    assert 0 < (left - now).abs().max() < 0.5  # from there, not from random


@pytest.mark.slow
def test_without_paths_reuse_takes_what_the_anew_run_of_the_same_task_left(anew, tmp_path):
    shutil.copytree(anew, tmp_path / FOLDER)
    finished([*QUICK, "--mode", "reuse_fix", "--run_root", tmp_path, "--reuse_pick", "g2"])
    folder = tmp_path / FOLDER.replace("anew", "reuse_fix")
    assert json_of(folder / "config.json")["reuse_generator_path"] == str(tmp_path / FOLDER / "gan_reuse.pth")
    for name in ("gan_reuse.pth", "decoder.pth"):  # weights stay; statistics are those of the new mixture
        before, after = state_in(anew, name), state_in(folder, name)
        weights = [key for key in before if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        assert all(torch.equal(before[key], after[key]) for key in weights), name


# Without the data set


@pytest.mark.slow
def test_without_images_it_distils_from_a_teacher_file_alone_says_so_in_one_line_and_its_parts_serve_other_classes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(job, "FRESH_IMAGES", 8)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for arch, classes in (("resnet8", 100), ("wrn40_2", 10)):
        state = registry.classifier(arch, registry.DATASETS[f"cifar{classes}"]).state_dict()
        torch.save({"state_dict": state}, tmp_path / f"{arch}.pth")
    line = [*COLOUR, "--data_root", tmp_path, "--run_root", tmp_path]
    finished([*line, "--dataset", "cifar100", "--teacher_path", tmp_path / "resnet8.pth"])
    folder = tmp_path / "anew-cifar100-resnet8-resnet8"
    lines, summary = (folder / "log.txt").read_text().splitlines(), json_of(folder / "summary.json")
    assert sum("no accuracy" in line for line in lines) == 1 and "finished: agreement" in lines[-1]
    assert summary["accuracy_last"] is summary["accuracy_best"] is summary["accuracy_teacher"] is None
    assert rows_of(folder)[-1].get("accuracy", "") == "" and 0 <= summary["agreement"] <= 100
    line += ["--dataset", "cifar10", "--teacher", "wrn40_2", "--teacher_path", tmp_path / "wrn40_2.pth"]
    finished([*line, "--mode", "reuse_common", *parts_of(folder)])
    second = tmp_path / "reuse_common-cifar10-wrn40_2-resnet8"
    assert torch.load(second / "student_last.pth", weights_only=True)["num_classes"] == 10
    assert json_of(second / "config.json")["adv"] == 1.1  # published for that teacher


# Teachers that go wrong


@pytest.mark.slow
def test_a_teacher_whose_classes_have_another_order_is_warned_of_before_the_first_epoch(tmp_path):
    state = torch.load(ROOT / "checkpoints/pretrained/digits_resnet20.pth", weights_only=True)["state_dict"]
    state |= {name: state[name].roll(1, 0) for name in ("fc.weight", "fc.bias")}
    torch.save(state, tmp_path / "rolled.pth")
    log = finished([*TINY, "--teacher", "resnet20", "--teacher_path", tmp_path / "rolled.pth", "--run_root", tmp_path])
    warning = re.search(r"warning: the teacher is right on [0-5]\.\d\d %.*order", log)
    assert warning and warning.start() < log.index("epoch 1/")


# Numbers that go bad


def test_a_loss_that_is_not_finite_stops_the_run_by_its_name_and_the_status_says_so(tmp_path):
    message = error_of([*QUICK, "--lr", "1e30", "--epochs", "5", "--run_root", tmp_path])
    assert "loss_kd became" in message or "student's" in message
    status = json_of(tmp_path / FOLDER / "status.json")
    assert status["state"] == "failed" and f"error: {status['message']}\n" == message and status["epoch"] >= 1


@pytest.mark.slow
def test_a_run_goes_on_from_the_state_before_a_bad_number(tmp_path, monkeypatch):
    line, train_step, calls = [*QUICK, "--hl", "--p_width", "4", "--run_root", tmp_path], Attack.train_step, []

    def spoilt(self, x, teacher_logits):
        calls.append(1)
        train_step(self, x * (float("nan") if len(calls) == 4 else 1), teacher_logits)

    monkeypatch.setattr(Attack, "train_step", spoilt)
    assert "loss_gap became nan in epoch 2, step 2" in error_of(line)
    folder = tmp_path / FOLDER.replace("anew", "anew-hl")
    assert torch.load(folder / "last.pth", weights_only=True)["progress"]["epoch"] == 1 and epochs_of(folder) == ["1"]
    finished([*line, "--resume"])
    assert epochs_of(folder) == ["1", "2", "3"] and json_of(folder / "status.json")["state"] == "finished"


def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_saved(tmp_path, monkeypatch):
    learn, bad = Student.learn, float("nan")
    monkeypatch.setattr(
        Student, "learn", lambda self, *how: (learn(self, *how), self.classifier.head.bias.data[:1].fill_(bad))
    )
    assert "student's fc2.bias became nan in epoch 2" in error_of([*QUICK, "--run_root", tmp_path])
    assert torch.load(tmp_path / FOLDER / "last.pth", weights_only=True)["progress"]["epoch"] == 1
    assert not (tmp_path / FOLDER / "student_last.pth").exists()
