"""Rounds and seconds to a goal, on folders with known numbers; the notebook runs on them as it stands."""

import csv
import json
import sys
from types import ModuleType

import pytest
from conftest import ROOT, user_error

from datafree.analysis import convergence
from datafree.analysis.convergence import goals, measure, read_cells, table

NOTEBOOK = ROOT / "notebooks" / "convergency.ipynb"


@pytest.fixture
def make(tmp_path):
    """Makes a run of these accuracies and losses, its first round a warm-up, 1 s + 2 s a round."""

    def make(name, accuracies=(None, 50, 90), losses=(8, 4, 2), seed=0, mode="anew", complete=True, **config):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        task = {"dataset": "digits", "teacher": "wrn16_1", "student": "resnet8", "mode": mode}
        (folder / "config.json").write_text(json.dumps({**task, "seed": seed, **config}))
        rows = [
            f"{n},{'' if accuracy is None else accuracy},{loss},1,2"
            for n, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1)
        ]
        header = "round,accuracy,loss_generator,seconds_synthesis,seconds_distillation"
        (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
        if complete:
            (folder / "summary.json").write_text(json.dumps({"accuracy_last": accuracies[-1]}))

    return make


def reached(tmp_path, pattern, *wanted):
    cells, _ = read_cells({"label": pattern}, tmp_path)
    return measure(cells, wanted)


def test_an_accuracy_is_reached_from_below_and_a_loss_from_above_each_for_the_first_time(make, tmp_path):
    make("a", (None, 91, 50, 95), (8, 2, 9, 1))
    found = reached(tmp_path, "run/a", *goals([90, 95, 96], [8, 2, 1, 0.5]))
    assert [each.rounds for each in found] == [[2], [4], [None], [1], [2], [4], [None]]
    assert [each.seconds for each in found] == [[6], [12], [None], [3], [6], [12], [None]]
    assert [each.not_reached for each in found] == [0, 0, 1, 0, 0, 0, 1]


def test_means_are_over_the_runs_that_got_there_and_the_others_are_counted(make, tmp_path):
    make("s0", (None, 90, 95), seed=0)
    make("s1", (None, 80, 90), seed=1)
    make("s2", (None, 70, 80), seed=2)
    shown = table(reached(tmp_path, "run/s?", *goals([90, 99], []))).rows
    assert shown[0] == ["label", "accuracy ≥ 90 %", "3", "1", "2.5 ± 0.7 (2 of 3)", "7.5 ± 2.1 (2 of 3)"]
    assert shown[1] == ["label", "accuracy ≥ 99 %", "3", "3", "not reached", "not reached"]


def test_accuracy_goals_are_left_out_where_there_was_no_test_set(make, tmp_path):
    make("a", (None, None, None))
    assert [str(each.goal) for each in reached(tmp_path, "run/a", *goals([90], [4]))] == ["generator loss ≤ 4"]


def test_runs_without_an_end_and_labels_without_runs_are_left_out_and_said(make, tmp_path):
    make("s0", seed=0)
    make("s1", seed=1, complete=False)
    cells, notes = read_cells({"a": "run/s?", "b": ["run/none", "run/neither"]}, tmp_path)
    assert [len(cell.runs) for cell in cells.values()] == [1] and list(cells) == ["a"]
    assert "run/s1" in notes[0] and "incomplete" in notes[0] and "b" in notes[1] and "run/neither" in notes[1]
    with user_error("no finished run"):
        read_cells({"b": "run/none"}, tmp_path)


def test_a_label_that_mixes_methods_or_settings_is_refused(make, tmp_path):
    make("a", seed=0, lr=0.1)
    make("b", seed=1, lr=0.2)
    make("c", seed=1, mode="reuse_common")
    with user_error("'mixed'", "lr 0.1", "lr 0.2"):
        read_cells({"mixed": "run/[ab]"}, tmp_path)
    with user_error("'mixed'", "reuse_common"):
        read_cells({"mixed": ["run/a", "run/c"]}, tmp_path)


def test_the_notebook_runs_and_writes_picture_and_numbers(make, tmp_path, monkeypatch, capsys):
    make("anew-s0", seed=0)
    make("anew-s1", (None, 60, 80), seed=1)
    make("reuse-s0", (None, 90, 95), (2, 1, 1), mode="reuse_common")
    (tmp_path / "registry.py").write_text("")  # what the first cell knows the repository's root by
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    display = ModuleType("IPython.display")  # only Jupyter brings the real one
    display.Markdown, display.Image = print, lambda filename: print(filename)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    runs = {"new": "run/anew-s?", "reused": "run/reuse-s?"}
    names = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            parameters = "parameters" in cell["metadata"].get("tags", ())
            exec("".join(cell["source"]), names)
            names |= {"RUNS": runs, "ACCURACIES": [90], "LOSSES": [2]} if parameters else {}
    assert "| reused | accuracy ≥ 90 % | 1 | 0 | 2.0 | 6.0 |" in capsys.readouterr().out
    made = tmp_path / "run" / "analysis"
    assert (made / "convergence.png").read_bytes().startswith(b"\x89PNG")
    lines = list(csv.DictReader((made / "convergence.csv").open(newline="")))
    assert [(line["label"], line["measure"], line["n"], line["not_reached"]) for line in lines] == [
        *(("new", "accuracy", "2", "1"), ("new", "loss_generator", "2", "0")),
        *(("reused", "accuracy", "1", "0"), ("reused", "loss_generator", "1", "0")),
    ]
    assert lines[1]["rounds_mean"] == "3" and lines[1]["rounds_std"] == "0.0" and lines[0]["rounds_std"] == ""
    assert lines[0]["method"] == "anew" and lines[2]["method"] == "reuse_common"


def test_what_the_notebook_shows_names_no_folder_of_the_machine_it_ran_on():
    text = NOTEBOOK.read_text()
    shown = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", ())]
    assert shown and not any(place in json.dumps(shown) for place in ("/tmp", "/home", "/root", "Traceback"))
    assert len(text) < 400_000


def test_goals_read_as_a_reader_would_say_them():
    assert [str(goal) for goal in convergence.goals([90], [0.5])] == ["accuracy ≥ 90 %", "generator loss ≤ 0.5"]
