"""What is counted: every pass through a network, by purpose, against counting by hand."""

import json

import pandas as pd
import pytest
import torch
from conftest import loss_on
from programs import QUICK, few_digits, finished  # noqa: F401
from test_aeahl_rg import context_of

from datafree.data.batch import Batch
from datafree.engine.costs import passes
from datafree.targets import Soft

N = 3
ROUND = 8  # images a round and a step, as QUICK has it: 3 epochs, 1 of warm-up, 2 iterations and 2 steps each


def both(name, images):
    return {f"{name}_forward": images, f"{name}_backward": images}


@pytest.mark.parametrize("way", ["no grad", "images", "weights", "neither"])
def test_a_backward_pass_is_counted_where_one_will_follow(way):
    context = context_of()
    x = torch.rand(N, *context.spec.shape, requires_grad=way == "images")
    network = context.student if way == "weights" else context.teacher
    with torch.set_grad_enabled(way != "no grad"):
        context.ask(network, x)
    role = "student" if way == "weights" else "teacher"
    expected = both(role, N) if way in ("images", "weights") else {f"{role}_forward": N}
    assert context.costs.take() == expected and context.costs.take() == {}
    assert passes(expected) == {"no grad": N, "images": 2 * N, "weights": 0, "neither": N}[way]


def test_whoever_calls_a_classifier_is_counted_and_nothing_is_once_it_is_released():
    context = context_of()
    x = torch.rand(N, *context.spec.shape)
    context.teacher(x)
    loss_on(Soft(context, Soft.Config()), Batch(x), context.student)
    with context.student_as_judge() as student:
        student(x)
    expected = {"teacher_forward": 2 * N, "student_forward": 2 * N, "student_backward": N}
    assert context.costs.take() == expected
    context.teacher.release()
    context.teacher(x)
    assert context.costs.take() == {}


def test_other_networks_count_as_what_they_are_said_to_be():
    context, layer = context_of(), torch.nn.Linear(2, 2)
    context.ask(layer, torch.rand(N, 2))
    context.ask(layer.requires_grad_(False), torch.rand(N, 2), role="P")
    assert context.costs.take() == both("generator", N) | {"P_forward": N}


@pytest.mark.slow
@pytest.mark.parametrize("hl", [False, True])
def test_a_run_counts_what_one_counts_by_hand(tmp_path, few_digits, hl):  # noqa: F811
    finished([*QUICK, "--run_root", tmp_path, *["--hl", "--attack_at", "step", "--p_width", "4"] * hl])
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    summary, metrics = json.loads((folder / "summary.json").read_text()), pd.read_csv(folder / "metrics.csv")
    synthesis = both("teacher", 3 * 2 * ROUND) | both("generator", 3 * 2 * ROUND) | both("student", 2 * 2 * ROUND)
    distillation = {"teacher_forward": 2 * 2 * ROUND} | both("student", 2 * 2 * ROUND)
    if hl:  # P is trained through the teacher at every iteration; at a step both twins are answered for
        synthesis |= both("P", 3 * 2 * ROUND) | both("teacher", 2 * 3 * 2 * ROUND)
        distillation |= {"P_forward": 2 * 2 * ROUND, "teacher_forward": 2 * 2 * 2 * ROUND}
    scored = {"teacher_forward": 2 * 4 * ROUND + 2, "generator_forward": (20 + 2 * 4) * ROUND}
    costs = summary["costs"]
    assert costs["synthesis"] == synthesis | {"images_made": 3 * ROUND}
    assert costs["distillation"] == distillation and costs["finish"] == scored
    looked_at = costs["evaluation"]["teacher_forward"]  # the test set, once; the student in two epochs
    assert costs["evaluation"] == {"teacher_forward": looked_at, "student_forward": 2 * looked_at}
    epochs = [passes(synthesis) // 3 + passes(distillation) // 2 * learns for learns in (0, 1, 1)]
    assert list(metrics.teacher_passes) == epochs
    assert summary["teacher_passes"] == sum(epochs) + 2 * 4 * ROUND + 2
    for network in ("student", "generator"):
        ways = (f"{network}_forward", f"{network}_backward")
        by_hand = sum(part.get(way, 0) for part in (synthesis, distillation, scored) for way in ways)
        assert summary[f"{network}_passes"] == by_hand > 0
