"""The point of it all, on real digits with a fraction of the presets' length: a student learns, and reuse is ahead."""

import csv

import pytest
from programs import finished

FIRST = ["--epochs", "9", "--warmup", "1"]
SECOND = ["--teacher", "wrn16_1", "--epochs", "5", "--warmup", "1", "--kd_steps", "40"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("learning")]


def column(folder, name):
    """A column of metrics.csv, None where the cell is empty."""
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row[name]) if row[name] else None for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a short run in mode anew."""
    run_root = tmp_path_factory.mktemp("learning")
    finished([*FIRST, "--run_root", run_root])
    return run_root / "anew-digits-resnet20-resnet8"


def test_a_student_that_never_saw_a_digit_learns_to_read_them(first):
    assert column(first, "accuracy")[-1] > 50  # chance is 10


def test_a_reused_generator_reaches_a_loss_and_an_accuracy_sooner_than_a_new_one(first):
    run_root = first.parent
    reuse = ["--reuse_generator_path", first / "gan_reuse.pth", "--reuse_decoder_path", first / "decoder.pth"]
    finished([*SECOND, "--run_root", run_root])
    finished([*SECOND, "--run_root", run_root, "--mode", "reuse_common", *reuse])
    anew, reused = (run_root / f"{mode}-digits-wrn16_1-resnet8" for mode in ("anew", "reuse_common"))
    losses = column(anew, "loss_generator"), column(reused, "loss_generator")
    assert losses[1][1] < losses[0][-1]  # in its second epoch where the new one is not in its last
    assert column(reused, "accuracy")[-1] > column(anew, "accuracy")[-1] + 25
