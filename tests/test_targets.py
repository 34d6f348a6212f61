"""What turning parts of the targets off means, and what a run with them records and leaves."""

import csv

import pytest
import torch
from conftest import CLASSES, CPU, MEAN, SIZE, STD, same_state, small_network, state_of, user_error
from test_aeahl_rg import context_of

from datafree.api import distil
from datafree.data.batch import Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool, image_column
from datafree.engine.student import Student
from datafree.models.perturbation import load_perturbation
from datafree.targets import TARGETS, Attack, Hard, Soft, chosen


def taught(targets, **changes):
    """The student after a few steps on pool images, and what was reported."""
    context = context_of()
    rng, aims = context.streams["distillation"], targets(context, targets.Config(**changes))
    aims.observed = True  # of the attack: P is as it began
    columns = {"images": image_column((3, SIZE, SIZE))} | aims.columns
    pool = ImagePool(12, columns, Placement(CPU), context.augmentation, rng, rng)
    pool.add(aims.prepare(Batch(torch.rand(12, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)))))
    Student(context, Student.Config(batch_size=6, lr=0.1), 4).learn(pool, aims, 4)
    return state_of(context.student), context.read().series


def test_flags_choose_the_targets_and_the_name_of_the_folder():
    names = {(False, False): "soft", (True, True): "hard", (True, False): "attack"}
    assert {flags: chosen(*flags) for flags in names} == names
    assert chosen(False, False, "labels") == "labels"
    with user_error("--hl has no use here"):
        chosen(True, False, "labels")
    suffixes = {"soft": "", "hard": "-hl-noaea", "attack": "-hl", "labels": ""}
    assert {name: targets.suffix for name, targets in TARGETS.items()} == suffixes


def test_alpha_one_beta_zero_is_no_hard_loss_to_the_last_bit():
    (soft, read), (hard, more) = taught(Soft), taught(Hard, alpha=1.0, beta=0.0)
    assert same_state(soft, hard) and read["loss_kd"] == more["loss_kd"] and len(read["loss_kd"]) == 4
    assert not same_state(soft, taught(Hard)[0])


def test_pa_zero_without_swap_is_the_hard_loss_without_attack_to_the_last_bit_and_pa_one_is_not():
    how = {"p_width": 2, "no_swap": True, "attack_bound": 255.0}
    (hard, read), (unattacked, more) = taught(Hard), taught(Attack, pa=0.0, **how)
    assert same_state(hard, unattacked) and read.items() <= more.items()
    assert read["label_disagreement"] == 4 * [0] and more["attacked_rate"] == 4 * [0]
    attacked, all_of_them = taught(Attack, pa=1.0, **how)
    assert not same_state(hard, attacked) and all_of_them["attacked_rate"] == 4 * [1]


@pytest.mark.slow
def test_a_run_with_the_attack_records_its_rates_and_leaves_p(tmp_path):
    of = {"num_classes": CLASSES, "img_size": SIZE, "mean": MEAN, "std": STD, "epochs": 3, "warmup": 1, "kd_steps": 3}
    of |= {"synthesis_batch_size": 4, "batch_size": 5, "g_steps": 2, "ngf": 2, "nz": 4, "p_width": 2, "device": "cpu"}
    folder = distil(
        small_network(1), small_network(2), run_root=tmp_path, hl=True, pa=0.5, attack_bound=51.0, **of
    ).folder
    with open(folder / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    for column in ("attack_success", "swap_rate", "attacked_rate", "label_disagreement"):
        assert 0 <= float(row[column]) <= 1
    assert float(row["loss_hard"]) > 0 and row["loss_gap"]
    P, bound = load_perturbation(folder / "gap.pth")
    state = torch.load(folder / "last.pth", weights_only=True)["targets"]["P"]
    assert bound == pytest.approx(0.2) and not P.training and same_state(state, state_of(P))
