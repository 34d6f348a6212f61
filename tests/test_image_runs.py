"""Both programs on folders of image files: what the log says, what the flags do, and a signal to everything at once."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from programs import TINY, epochs_of, error_of, finished, json_of, rows_of, script

import train_scratch
from datafree.data import folder_images
from datafree.engine.evaluation import Evaluation
from registry import MODELS
from scripts.kill_test import differences

LENGTH = 6  # images a class


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of three classes whose images are darker or brighter, 32x32, and a teacher of no great wisdom."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        for label, name in enumerate("abc"):
            (root / "pets" / split / name).mkdir(parents=True)
            for i in range(LENGTH):
                noise = np.random.default_rng(100 * label + i).integers(0, 86, (32, 32, 3)) + 85 * label
                Image.fromarray(noise.astype(np.uint8)).save(root / "pets" / split / name / f"{i}.png")
    torch.manual_seed(0)
    torch.save(MODELS["resnet8"](3).state_dict(), root / "t.pth")
    return root


def flags(pets, root):
    data = ["--dataset", f"imagefolder:{pets}/pets", "--img_size", "32", "--mean", ".5", ".5", ".5"]
    return [*data, "--std", ".5", ".5", ".5", "--run_root", root]


def distilling(pets, root, *more):
    return [*TINY, *flags(pets, root), "--teacher", "resnet8", "--teacher_path", pets / "t.pth", *more]


def training(pets, root, *more):
    line = ["--model", "resnet8", "--epochs", "2", "--batch_size", "4", "--precision", "fp32"]
    return [*line, *flags(pets, root), "--output", root / "t.pth", *more]


@pytest.mark.slow
def test_the_log_says_which_folder_the_test_images_are_from(pets, tmp_path):
    shown = finished(distilling(pets, tmp_path))
    assert f"\ntest set: {pets}/pets/test, 18 images, in memory\n" in shown and "of 18 test images" in shown
    shown = finished(training(pets, tmp_path), train_scratch)
    assert f"\ntraining set: {pets}/pets/train, 18 images, in memory\ntest set: {pets}/pets/test, 18" in shown


def test_without_test_images_train_scratch_trains_and_says_that_there_is_no_accuracy(pets, tmp_path):
    shutil.copytree(pets / "pets/train", tmp_path / "pets/train")
    shown = finished(training(tmp_path, tmp_path), train_scratch)
    assert f"\nno accuracy, for want of test images: no images in {tmp_path}/pets/val\n" in shown
    assert "finished: no accuracy, for want of test images, after" in shown
    content, (folder,) = torch.load(tmp_path / "t.pth", weights_only=True), tmp_path.glob("scratch-*")
    assert content["accuracy"] is None and epochs_of(folder) == ["1", "2"]
    assert all(row["accuracy_train"] and "accuracy" not in row for row in rows_of(folder))
    assert json_of(folder / "summary.json")["accuracy_last"] is None
    finished([folder, "--out", tmp_path / "out"], script("export"))
    assert "accuracy" not in json_of(tmp_path / "out/config.json")["origin"]
    finished([folder], script("report"))
    shutil.rmtree(tmp_path / "pets/train")
    assert "holds neither train/ nor val/" in error_of(training(tmp_path, tmp_path, "--overwrite"), train_scratch)


@pytest.mark.slow
def test_what_is_left_says_what_the_classes_are_called(pets, tmp_path):
    finished(training(pets, tmp_path), train_scratch)
    finished(distilling(pets, tmp_path))
    left = [tmp_path / "t.pth", *tmp_path.glob("anew-*/best.pth"), *tmp_path.glob("anew-*/student_last.pth")]
    assert len(left) == 3
    for path in left:
        content = torch.load(path, weights_only=True)
        assert (content["num_classes"], content["class_names"]) == (3, ["a", "b", "c"])


def test_images_of_the_wanted_size_reach_the_networks_as_they_are(pets, tmp_path, monkeypatch):
    seen, init = [], Evaluation.__init__

    def look(self, teacher, images, *how):
        seen.append(images)
        init(self, teacher, images, *how)

    monkeypatch.setattr(Evaluation, "__init__", look)
    finished(distilling(pets, tmp_path))
    first = np.asarray(Image.open(pets / "pets/test/a/0.png")).transpose(2, 0, 1)
    assert np.array_equal(seen[0].images[0].numpy(), first) and seen[0].images.shape == (18, 3, 32, 32)


@pytest.mark.parametrize(("crops", "padding", "flip"), [(False, 4, True), (True, 0, True), (False, 2, False)])
def test_training_shifts_images_of_the_wanted_size_and_mirrors_unless_told_not_to(
    pets, tmp_path, monkeypatch, crops, padding, flip
):
    told = []
    make = train_scratch.Augmentation
    monkeypatch.setattr(train_scratch, "Augmentation", lambda *how: (told.append(how), make(*how))[1])
    if crops:
        monkeypatch.setattr(folder_images, "size_of", lambda path: (32, 33))
    more = [] if flip else ["--no-flip", "--crop_padding", "2"]
    finished(training(pets, tmp_path, *more), train_scratch)
    assert told == [(padding, flip)]


def test_how_many_read_changes_no_number_and_may_be_another_when_resumed(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_images, "IN_MEMORY", 0)
    monkeypatch.setattr(folder_images, "size_of", lambda path: (32, 33))  # so training crops at random
    shown = finished(training(pets, tmp_path / "one", "--workers", "1"), train_scratch)
    assert "18 images, read by 1 thread" in shown
    finished(training(pets, tmp_path / "four", "--workers", "4"), train_scratch)
    folders = [tmp_path / name / "scratch-pets-resnet8" for name in ("one", "four")]
    assert differences(*folders) == [] and len(rows_of(folders[0])) == 2
    assert json_of(folders[1] / "config.json")["workers"] == 4
    assert "complete" in finished(["--resume", folders[1], "--workers", "2"], train_scratch)


@pytest.mark.slow
def test_in_memory_or_from_the_disk_the_accuracy_is_the_same(pets, tmp_path, monkeypatch):
    finished(distilling(pets, tmp_path / "memory"))
    monkeypatch.setattr(folder_images, "IN_MEMORY", 0)
    assert "read by 3 threads" in finished(distilling(pets, tmp_path / "disk", "--workers", "3"))
    folders = [tmp_path / name / "anew-pets-resnet8-resnet8" for name in ("memory", "disk")]
    assert differences(*folders) == []


def test_another_class_count_than_there_are_folders_is_one_line_with_both_numbers(pets, tmp_path):
    told = error_of(distilling(pets, tmp_path, "--num_classes", "12"))
    assert "--num_classes says 12" in told and "has 3 class folders" in told and not list(tmp_path.iterdir())


def test_a_bad_image_ends_a_run_in_one_line_that_names_it(pets, tmp_path):
    bad = pets / "pets/test/b/0.png"
    whole = bad.read_bytes()
    try:
        bad.write_bytes(whole[:100])
        assert f"cannot read the image {bad} (" in error_of(distilling(pets, tmp_path))
    finally:
        bad.write_bytes(whole)


GROUP = """
import sys
from datafree.data import folder_images
folder_images.IN_MEMORY = 0
import main
from datafree.cli.program import run_program
run_program(main.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_process_group_stops_the_run_in_good_order(pets, tmp_path, number):
    line = distilling(pets, tmp_path, "--workers", "4", "--epochs", "400", "--save_every", "200")
    process = subprocess.Popen(
        [sys.executable, "-c", GROUP, *map(str, line)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for shown in process.stdout:
        if shown.startswith("epoch   3/"):
            os.killpg(process.pid, number)
            break
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr.startswith("stopped after epoch ") and stderr.count("\n") == 1 and "go on: python main.py" in stderr
    folder = tmp_path / "anew-pets-resnet8-resnet8"
    done = torch.load(folder / "last.pth", weights_only=True)["progress"]["epoch"]
    assert done >= 3 and epochs_of(folder) == [str(epoch + 1) for epoch in range(done)]
    assert json_of(folder / "status.json")["state"] == "stopped"
