"""What attackers have, who is judged on what, and that table and plot say what the rows say."""

import pandas as pd
import pytest
import torch
from conftest import SIZE, same_state, state_of, user_error
from small_run import SmallRun

from datafree.analysis.bit_flip_experiment import (
    RANDOM,
    REAL,
    attacker_images,
    bit_flip_experiment,
    by_source,
    draw_bit_flips,
    split_off,
    table,
)
from datafree.analysis.quantisation import QuantisedModel


@pytest.fixture
def run(tmp_path):
    return SmallRun(tmp_path)


def test_attacker_and_judge_share_no_image_and_every_image_is_used(run):
    run.real_images().labels[:] = torch.arange(30)
    mine, others = split_off(run, 4, seed=0)
    assert len(mine) == 4 and sorted([*mine.labels.tolist(), *others.labels.tolist()]) == list(range(30))
    assert mine.labels.tolist() == split_off(run, 4, seed=0)[0].labels.tolist()
    assert mine.labels.tolist() != split_off(run, 4, seed=1)[0].labels.tolist()
    with user_error("30 attacker images"):
        split_off(run, 30, seed=0)


def test_every_source_has_other_images_and_another_seed_is_another_attacker(run):
    first, again, other = (attacker_images(run, 6, seed) for seed in (0, 0, 1))
    for name, x in first.items():
        assert x.shape == (6, 3, SIZE, SIZE) and x.min() >= 0 and x.max() <= 1
        assert torch.equal(x, again[name]) and not torch.equal(x, other[name])
    assert len({x.sum().item() for x in first.values()}) == len(first) == 5


def test_generating_leaves_statistics_and_mode_alone(run):
    before = state_of(run.generator)
    attacker_images(run, 5, seed=0)
    assert same_state(before, state_of(run.generator)) and not run.generator.training


def test_every_source_and_seed_is_attacked_from_the_same_start(run):
    quantised = QuantisedModel(run.teacher)
    before = state_of(quantised.model)
    rows = bit_flip_experiment(run, quantised, seeds=(0, 1), flips=2, attacker_batch=5, k_top=3)
    sources = [*attacker_images(run, 5, 0), RANDOM]
    assert list(rows.groupby(["source", "seed"], sort=False).groups) == [(s, n) for n in (0, 1) for s in sources]
    assert (rows[rows.flips == 0].groupby("seed").accuracy.nunique() == 1).all()
    assert rows.flips.tolist() == [0, 1, 2] * 12 and same_state(before, state_of(quantised.model))
    assert rows[rows.source == RANDOM].loss.isna().all() and rows[rows.source == REAL].loss.notna().all()


def rows_of(**accuracies):
    frames = [
        pd.DataFrame({"source": name[0], "seed": int(name[1]), "flips": range(len(values)), "accuracy": values})
        for name, values in accuracies.items()
    ]
    return pd.concat(frames)


def test_an_attack_that_ended_early_keeps_its_last_accuracy():
    rows = rows_of(a0=[90.0, 80.0], a1=[92.0, 60.0, 40.0])
    assert by_source(rows).loc["a"].to_numpy().tolist() == [[90, 80, 80], [92, 60, 40]]


def test_the_table_is_mean_and_sample_deviation_with_the_hardest_hit_first():
    rows = rows_of(w0=[90, 80, 70], w1=[90, 82, 74], h0=[90, 50, 10], h1=[90, 50, 10])
    head, _, first, second = table(rows, every=2).splitlines()
    assert head == "| attacker's images | n | 0 flips | 2 flips |"
    assert first == "| h | 2 | 90.0 ± 0.0 | 10.0 ± 0.0 |" and second == "| w | 2 | 90.0 ± 0.0 | 72.0 ± 2.8 |"
    assert "| 90.0 | 80.0 |" in table(rows_of(o0=[90, 80, 70]), every=1)


def test_the_plot_has_a_line_a_source(monkeypatch):
    drawn = []
    monkeypatch.setattr("datafree.analysis.bit_flip_experiment.save", lambda figure, _: drawn.append(figure))
    draw_bit_flips(rows_of(b0=[90, 80, 70], a0=[90, 50, 10], a1=[80, 30, 20]), 20.0, None)
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[0].axes[0].get_lines()}
    assert lines["a"] == [85, 40, 15] and lines["b"] == [90, 80, 70]
