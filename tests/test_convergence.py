"""Epochs and seconds to a goal, on folders with known numbers."""

import json

import pytest
from conftest import user_error

from datafree.analysis.convergence import draw, measure, read_cells, table


@pytest.fixture
def make(tmp_path):
    """Makes a run of these accuracies and losses, its first epoch a warm-up, 1 s + 2 s an epoch."""

    def make(name, accuracies=(None, 50, 90), losses=(8, 4, 2), seed=0, complete=True, counter="epoch", **config):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        task = {"dataset": "digits", "teacher": "wrn16_1", "student": "resnet8", "mode": "anew"}
        (folder / "config.json").write_text(json.dumps({**task, "seed": seed, **config}))
        rows = [
            f"{n},{'' if accuracy is None else accuracy},{loss},1,2,100"
            for n, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1)
        ]
        header = f"{counter},accuracy,loss_generator,seconds_synthesis,seconds_distillation,seconds_evaluation"
        (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
        if complete:
            (folder / "summary.json").write_text(json.dumps({"accuracy_last": accuracies[-1]}))

    return make


def reached(tmp_path, pattern, accuracies=(), losses=()):
    runs, _ = read_cells({"label": pattern}, tmp_path)
    return measure(runs, {"accuracy": accuracies, "loss_generator": losses})


@pytest.mark.parametrize("counter", ["epoch", "round"])  # as older runs called it
def test_an_accuracy_is_reached_from_below_and_a_loss_from_above_each_for_the_first_time(make, tmp_path, counter):
    make("a", (None, 91, 50, 95), (8, 2, 9, 1), counter=counter)
    found = reached(tmp_path, "run/a", [90, 95, 96], [8, 2, 1, 0.5]).fillna(0)
    assert found.epochs.tolist() == [2, 4, 0, 1, 2, 4, 0]
    assert found.seconds.tolist() == [6, 12, 0, 3, 6, 12, 0]  # evaluation left out


def test_means_are_over_the_runs_that_got_there_and_the_others_are_counted(make, tmp_path):
    for seed, accuracies in enumerate([(None, 90, 95), (None, 80, 90), (None, 70, 80)]):
        make(f"s{seed}", accuracies, seed=seed)
    rows = table(reached(tmp_path, "run/s?", [90, 99], [8])).astype(str).to_numpy().tolist()
    assert rows[0] == ["label", "accuracy ≥ 90 %", "3", "1", "2.5 ± 0.7 (2 of 3)", "7.5 ± 2.1 (2 of 3)"]
    assert rows[1] == ["label", "accuracy ≥ 99 %", "3", "3", "not reached", "not reached"]
    assert rows[2] == ["label", "generator loss ≤ 8", "3", "0", "1.0 ± 0.0", "3.0 ± 0.0"]


def test_accuracy_goals_are_left_out_where_there_was_no_test_set(make, tmp_path):
    make("a", (None, None, None))
    assert reached(tmp_path, "run/a", [90], [4]).measure.tolist() == ["loss_generator"]


def test_runs_without_an_end_and_labels_without_runs_are_left_out_and_said(make, tmp_path):
    make("s0", seed=0)
    make("s1", seed=1, complete=False)
    runs, notes = read_cells({"a": "run/s?", "b": ["run/none", "run/neither"]}, tmp_path)
    assert runs.label.tolist() == ["a"]
    assert "run/s1" in notes[0] and "incomplete" in notes[0] and "b" in notes[1] and "run/neither" in notes[1]
    with user_error("no finished run"):
        read_cells({"b": "run/none"}, tmp_path)


def test_a_label_that_mixes_methods_or_settings_is_refused(make, tmp_path):
    make("a", seed=0, lr=0.1)
    make("b", seed=1, lr=0.2)
    make("c", seed=1, lr=0.1, mode="reuse_common")
    with user_error("'mixed'", "lr 0.1", "lr 0.2"):
        read_cells({"mixed": "run/[ab]"}, tmp_path)
    with user_error("'mixed'", "reuse_common"):
        read_cells({"mixed": ["run/a", "run/c"]}, tmp_path)


def test_the_picture_has_a_line_a_method(make, tmp_path, monkeypatch):
    make("a0", seed=0)
    make("a1", (None, 60, 80), seed=1)
    make("r0", (None, 90, 95), (2, 1, 0.1), mode="reuse_common")
    runs, _ = read_cells({"new": "run/a?", "reused": "run/r?"}, tmp_path)
    drawn = []
    monkeypatch.setattr("datafree.analysis.convergence.save", lambda figure, *_, **__: drawn.append(figure))
    draw(runs, tmp_path / "picture.png", {"accuracy": [90], "loss_generator": [2]})
    loss, accuracy = drawn[0].axes
    means = {line.get_label(): list(line.get_ydata()) for line in accuracy.get_lines()}
    assert means["anew (n = 2)"] == [55, 85] and means["reuse_common (n = 1)"] == [90, 95]
    assert loss.get_yscale() == "log" and loss.get_legend()
