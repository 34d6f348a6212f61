"""Distillation from Python, and the loop's own decisions: rounds and epochs, the images shown, the one warning."""

import os
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import CLASSES, MEAN, ROOT, SIZE, STD, same_state, small_classifier, small_network, state_of, user_error
from programs import at_epoch, epochs_of, error_of, json_of, rows_of  # noqa: F401

import datafree
import registry
from datafree import api, job
from datafree.data.specs import TensorImages
from datafree.engine.evaluation import Score
from datafree.engine.student import Student
from datafree.loop import warn_if_at_chance
from datafree.runs.length import LengthConfig
from datafree.runs.stopping import Stopped
from scripts.kill_test import differences

FLAGS = {"epochs": 3, "warmup": 1, "kd_steps": 2, "batch_size": 8, "synthesis_batch_size": 8, "precision": "fp32"}
SHAPE = {"num_classes": CLASSES, "img_size": SIZE, "mean": MEAN, "std": STD}
OWN = {"g_steps": 1, "nz": 4, "ngf": 2}  # of AEAHL-RG


def distil(path, student=None, teacher=None, **flags):
    teacher, student = teacher or small_network(1), student or small_network(2)
    return api.distil(teacher, student, **SHAPE, **(FLAGS | OWN | {"run_root": path} | flags)).folder


@pytest.mark.slow
def test_importing_the_package_costs_nothing_gives_what_it_names_and_programs_begin_without_what_few_need():
    code = "import datafree, sys; print({'torch', 'numpy'} & sys.modules.keys(), datafree.distil.__name__)\n"
    code += "import main, train_scratch; print({'torchvision', 'torch._dynamo'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (found.stdout, found.stderr) == ("set() distil\nset()\n", "")
    with pytest.raises(AttributeError):
        datafree.no_such_name  # noqa: B018


def test_what_comes_back_is_the_student_its_folder_and_its_results_and_the_teacher_is_as_it_was(tmp_path):
    teacher, student = small_network(1), small_network(2)
    before, images = state_of(teacher), torch.randint(256, (20, 3, SIZE, SIZE), dtype=torch.uint8)
    test = images, torch.arange(20) % CLASSES
    flags = FLAGS | OWN | {"run_root": tmp_path, "precision": "bf16", "student_img_size": (6, 9)}
    found = datafree.distil(teacher, student, **SHAPE, test=test, **flags)
    assert found.student.network is student and not found.student.training and found.student.img_size == (6, 9)
    assert same_state(state_of(teacher), before) and all(p.requires_grad for p in teacher.parameters())
    assert {p.dtype for p in teacher.parameters()} == {torch.float32} and teacher.training
    with torch.no_grad():
        right = found.student(images / 255).argmax(1) == test[1]
    assert found.results["accuracy_last"] == pytest.approx(100 * right.double().mean().item(), abs=10)  # bf16 there
    assert found.results == json_of(found.folder / "summary.json")


def test_two_modules_are_distilled_in_place_and_the_run_folder_comes_back(tmp_path, capsys):
    teacher, student = small_network(1), small_network(2)
    before, taught = state_of(student), state_of(teacher)
    folder = distil(str(tmp_path), student, teacher, tag="mine")
    assert folder == tmp_path / "anew-own-teacher-student-mine"
    left = torch.load(folder / "student_last.pth", weights_only=True)["state_dict"]
    assert same_state(state_of(student), left) and not torch.equal(left["fc.weight"], before["fc.weight"])
    assert same_state(state_of(teacher), taught)
    summary = json_of(folder / "summary.json")
    assert summary["accuracy_last"] is None and 0 <= summary["agreement"] <= 100 and summary["images"] == 24
    assert epochs_of(folder) == ["1", "2", "3"] and (folder / "gan_reuse.pth").exists()
    assert "finished: agreement" in capsys.readouterr().out
    config = json_of(folder / "config.json")  # reports show it as they show main.py's
    assert config["program"] == "datafree.distil" and config["defaults"]["lr"] == Student.Config.lr
    assert config["groups"]["student"] == [each.name for each in fields(Student.Config)]


def test_a_prior_that_the_teacher_cannot_give_is_refused_where_it_was_asked_for(tmp_path):
    with user_error("--patch 1: the teacher has no attention layers"):
        distil(tmp_path, patch=1.0)
    assert not any(tmp_path.iterdir())


UNFIT = {  # what is given instead: what is said
    "one number for the mean": ({"mean": 0.5}, "mean is 0.5 — give a value a channel"),
    "a mean of levels": ({"mean": (123.6, 116.0, 103.0)}, "mean is (123.6"),
    "two channels": ({"mean": (0.5, 0.5)}, "one or three"),
    "a std of nothing": ({"std": (0, 0, 0)}, "std is (0, 0, 0)"),
    "half a pixel": ({"img_size": 8.5}, "one whole number or two, not 8.5"),
    "a shape for a size": ({"img_size": (3, 8, 8)}, "not (3, 8, 8)"),
    "a loader for a test set": ({"test": torch.utils.data.DataLoader([])}, "test is a DataLoader, no set of images"),
    "a method's name": ({"method": "aeahl_rg"}, "method is 'aeahl_rg', no class"),
    "another class": ({"method": dict}, "no class on datafree.methods.base.Method"),
    "a flag without effect": ({"kd_loss": "l1", "T": 4}, "--T has no effect with --kd_loss l1"),
    "a number for a word": ({"tag": 3}, "--tag: 3 is not a word"),
    "a word for flip": ({"flip": "false"}, "flip is 'false'"),
    "a word for a switch": ({"hl": "no"}, "--hl: 'no' is not True or False"),
    "a number for a path": ({"run_root": 3}, "--run_root: 3 is not a path"),
}


@pytest.mark.parametrize(("given", "words"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_is_said_in_one_line(given, words, tmp_path):
    with user_error(words):
        api.distil(small_network(1), small_network(2), **(SHAPE | FLAGS | OWN | {"run_root": tmp_path} | given))
    assert not any(tmp_path.iterdir())


def test_numbers_of_numpy_and_torch_will_do_so_will_a_device_and_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"num_classes": np.int64(CLASSES), "img_size": np.int64(SIZE), "mean": np.array(MEAN)}
    given |= {"std": torch.tensor(STD), "device": torch.device("cpu"), "run_root": "~/runs", "lr": np.float32(0.1)}
    images = np.zeros((20, 3, SIZE, SIZE), dtype=np.uint8)
    with torch.no_grad():
        found = api.distil(
            small_network(1), small_network(2), **(FLAGS | OWN | given), test=(images, np.arange(20) % CLASSES)
        )
    assert found.folder == tmp_path / "runs/anew-own-teacher-student" and found.results["accuracy_last"] == 20
    assert found.student.input_format["mean"] == pytest.approx(MEAN)


def test_a_methods_own_defaults_hold_and_give_way_to_what_is_given():
    values, _ = api.values_from(registry.METHODS["zskt"], {"lr": 0.01})
    assert (values.kd_steps, values.ep_steps, values.warmup, values.T, values.optimizer) == (10, 400, 0, 1, "adam")
    assert (values.lr, values.lr_min, values.epochs) == (0.01, 0, 420)


def test_class_names_are_of_all_classes_or_of_none(tmp_path):
    with user_error(f"class_names: 2 names of {CLASSES} classes"):
        distil(tmp_path, class_names=["a", "b"])


def test_teacher_and_student_may_have_formats_of_their_own_be_attacked_and_measured_on_images(tmp_path):
    student = small_classifier(2, mean=(0, 0, 0), std=(1, 1, 1), size=12)
    images = TensorImages(torch.randint(256, (20, 3, SIZE, SIZE), dtype=torch.uint8), torch.arange(20) % CLASSES)
    folder = distil(tmp_path, student, small_classifier(1), hl=True, p_width=2, test=images)
    assert folder.name == "anew-hl-own-teacher-student" and (folder / "gap.pth").exists()
    summary = json_of(folder / "summary.json")
    assert 0 <= summary["accuracy_last"] <= 100 and 0 <= summary["accuracy_teacher"] <= 100


@pytest.mark.slow
def test_no_flip_wins_over_flip(tmp_path, monkeypatch):
    told, make = [], job.Augmentation
    monkeypatch.setattr(job, "Augmentation", lambda *how: (told.append(how[1]), make(*how))[1])
    for no_flip in (False, True):
        distil(tmp_path / str(no_flip), flip=True, no_flip=no_flip)
    assert told == [True, False]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"epoch_count": 3}, "there is no flag epoch_count"),
        ({"pa": 0.1}, "there is no flag pa"),
        ({"g_steps": 0}, "--g_steps: 0 is out of range"),
        ({"epochs": "3"}, "--epochs: '3' is not a whole number"),
        ({"warmup": 3}, "3 epochs of warm-up"),
        ({"mode": "reuse_fix"}, "nothing to reuse"),
        ({"device": "banana"}, "banana"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(tmp_path, flags, words):
    with user_error(words):
        distil(tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_resume_and_the_same_flags_only(tmp_path, at_epoch):  # noqa: F811
    alone = distil(tmp_path / "alone")
    at_epoch(2, lambda folder: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="call it again with resume=True"):
        distil(tmp_path)
    with user_error("--lr was 0.2 in", "not 0.5"):
        distil(tmp_path, lr=0.5, resume=True)
    with user_error("--flip was False in", "not True"):
        distil(tmp_path, flip=True, resume=True)
    message = error_of(["--resume", tmp_path / alone.name])
    assert "is a run of datafree.distil" in message and "resume=True" in message
    assert differences(alone, distil(tmp_path, resume=True)) == []


# The loop


@pytest.mark.slow
def test_an_epoch_of_two_rounds_synthesises_twice_and_the_cosine_spans_all_its_steps(tmp_path):
    folder = distil(tmp_path, epochs=4, ep_steps=4, kd_steps=2, lr=0.1, lr_min=0.001, seed=3)
    rows, summary = rows_of(folder), json_of(folder / "summary.json")
    assert [(row["epoch"], row["round"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6"), ("4", "8")]
    assert (summary["epochs"], summary["rounds"], summary["images"]) == (4, 8, 64)
    assert (folder / "pool.bin").stat().st_size == 64 * 3 * SIZE * SIZE
    state = torch.load(folder / "last.pth", weights_only=True)
    assert state["pool_chunks"] == [8] * 8 and state["student"]["scheduler"]["last_epoch"] == 3 * 4
    assert state["student"]["scheduler"]["T_max"] == 12 and len(state["progress"]["generator_loss"]) == 8
    cosine = 0.001 + (0.1 - 0.001) * (1 + torch.cos(torch.pi * torch.tensor([0, 4, 8, 12]) / 12)) / 2
    assert [float(row["lr"]) for row in rows] == pytest.approx(cosine.tolist(), rel=1e-4)


def test_eval_every_leaves_cells_empty_but_not_those_of_the_last_epoch(tmp_path):
    rows = rows_of(distil(tmp_path, epochs=5, eval_every=3))
    assert [bool(row["agreement"]) for row in rows] == [False, False, True, False, True]


def epochs_warned_at(reached, eval_every, warmup=2, begin=1):
    """At which of 12 epochs the student's score, always the same, is warned about."""
    said, job = [], Namespace(context=Namespace(spec=Namespace(num_classes=10)), values=Namespace())
    job.length = LengthConfig(epochs=12, warmup=warmup, eval_every=eval_every)
    run = Namespace(folder=Namespace(log=said.append), progress=Namespace(generator_loss=[]))
    for epoch in range(begin, 13):
        if epoch > warmup and (epoch % eval_every == 0 or epoch == 12):
            before = len(said)
            warn_if_at_chance(job, run, reached, epoch)
            if len(said) > before:
                assert "near chance" in said[-1] and "--lr" in said[-1] and "--kd_steps" in said[-1]
                yield epoch


def test_a_student_at_chance_after_a_third_of_the_run_gives_one_warning_and_none_after_a_resumption():
    at_chance = Score(accuracy=10.0, agreement=99.0)
    assert [list(epochs_warned_at(at_chance, eval_every)) for eval_every in (1, 3, 5, 99)] == [[4], [6], [5], [12]]
    assert list(epochs_warned_at(at_chance, 1, warmup=8)) == [9] and list(epochs_warned_at(at_chance, 1, begin=5)) == []
    assert list(epochs_warned_at(Score(agreement=11.0), 1)) == [4]
    assert list(epochs_warned_at(Score(accuracy=40.0, agreement=0.0), 1)) == []
