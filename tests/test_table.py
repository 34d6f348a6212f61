"""The table averages what may be averaged, and says what it leaves out; folders with known numbers, made by hand."""

import csv
import json

import pytest
from conftest import user_error
from programs import script

from datafree.reporting.published import PUBLISHED
from datafree.reporting.results import Task, collect
from datafree.reporting.run_reader import read_run
from datafree.reporting.tables import Table, accuracies, tables

PAIR = {"dataset": "digits", "teacher": "wrn16_1", "student": "resnet8"}


@pytest.fixture
def made(tmp_path):
    """Makes a run folder; of its accuracies the first is the last round's. None: without an end."""
    folders = []

    def make(accuracy=(90.0, 91.0), seed=0, summary=None, **config):
        folder = tmp_path / f"run{len(folders)}"
        folder.mkdir()
        folders.append(folder)
        machine = {"tag": f"s{seed}", "run_root": str(folder), "environment": {"device": "cpu, fp32"}}
        task = {} if "model" in config else {"mode": "anew", **PAIR, "teacher_path": f"somewhere{seed}/t.pth"}
        (folder / "config.json").write_text(json.dumps({"seed": seed, "lr": 0.1, **machine, **task, **config}))
        (folder / "metrics.csv").write_text("round,accuracy\n1,80\n")
        if accuracy:
            last, best = accuracy
            numbers = {"accuracy_last": last, "accuracy_best": best, "seconds_total": 10.0 * (seed + 1)}
            rest = {} if "model" in config else {"accuracy_teacher": 99.5, "agreement": 97.0 + seed, "images": 640}
            (folder / "summary.json").write_text(json.dumps({**numbers, **rest, **(summary or {})}))
        return read_run(folder)

    return make


def row(cells, measure="accuracy_last", **how):
    """The only row of a table of accuracies, by column."""
    table = accuracies(cells, measure, "title", **how)
    (cells_of_row,) = table.rows
    return dict(zip(table.header, cells_of_row, strict=True))


def test_a_cell_is_mean_and_sample_deviation_over_its_seeds(made):
    runs = [made((last, last + 1), seed) for seed, last in enumerate((97.0, 98.0, 99.0))]
    cells, notes = collect(runs)
    assert notes == []
    assert row(cells)["anew"] == "98.00 ± 1.00 (3)" and row(cells, "accuracy_best")["anew"] == "99.00 ± 1.00 (3)"
    assert row(cells)["teacher"] == "99.50" and row(cells)["pair"] == "wrn16_1 > resnet8"
    (costs,) = tables(cells)[2].rows
    assert costs[2:] == ["anew", "3", "-", "20.0 ± 10.0", "-", "640 ± 0", "cpu, fp32"]


def test_methods_are_told_apart_by_the_hard_loss_and_stand_in_order(made):
    hard = [{"hl": True, "no_aea": True}, {"hl": True}, {"mode": "reuse_common"}, {}]
    cells, _ = collect([made(**flags) for flags in hard])
    assert [cell.method for cell in cells] == ["anew", "anew-hl-noaea", "anew-hl", "reuse_common"]


def test_a_run_without_an_end_is_counted_out_marked_and_named(made):
    runs = [made((90.0, 90.0), 0), made((92.0, 92.0), 1), made(None, 2)]
    cells, (note,) = collect(runs)
    assert row(cells)["anew"] == "91.00 ± 1.41 (2 of 3, 1 incomplete)"
    assert str(runs[2].path) in note and note.startswith("incomplete")
    assert row(collect(runs[2:])[0])["anew"] == "- (0 of 1, 1 incomplete)"


def test_runs_that_differ_in_more_than_the_seed_stand_apart_with_what_differs(made):
    cells, (note,) = collect([made((90.0, 90.0), 0), made((91.0, 91.0), 1), made((70.0, 70.0), 2, lr=0.5)])
    assert row(cells)["anew (lr 0.1)"] == "90.50 ± 0.71 (2)" and row(cells)["anew (lr 0.5)"] == "70.00 (1)"
    assert note.startswith("warning") and "lr 0.1" in note and "lr 0.5" in note and "tag" not in note


def test_a_setting_that_only_some_runs_record_sets_them_apart(made):
    cells, (note,) = collect([made(seed=0), made(seed=1, meta="fomaml")])
    assert len(cells) == 2 and "meta not recorded" in note and "meta fomaml" in note


def test_what_was_reused_must_be_the_same_but_for_the_seed(made):
    def reusing(seed, run):
        files = {"reuse_generator_path": f"{run}/gan_reuse.pth", "reuse_decoder_path": f"{run}/decoder.pth"}
        return made(seed=seed, mode="reuse_common", **files)

    first = [reusing(seed, f"run/anew-digits-resnet20-resnet8-s{seed}") for seed in (0, 1)]
    assert row(collect(first)[0])["reuse_common"].endswith("(2)")
    cells, (note,) = collect([*first, reusing(2, "elsewhere/anew-digits100-resnet20-resnet8-s2")])
    assert [len(cell.runs) for cell in cells] == [2, 1] and "anew-digits100" in note


def test_a_seed_that_comes_twice_is_one_sample_and_a_folder_named_twice_one_run(made):
    runs = [made((90.0, 90.0), 0), made((99.0, 99.0), 0)]
    cells, (note,) = collect([*runs, runs[0]])
    assert row(cells)["anew"] == "90.00 (1)"
    assert "twice" in note and all(str(run.path) in note for run in runs)


def test_without_a_test_set_agreement_stands_there_and_says_so(made):
    runs = [made((None, None), seed) for seed in (0, 1)]
    assert row(collect(runs)[0])["anew"] == "agreement 97.50 ± 0.71 (2, no test set)"
    assert row(collect(runs)[0], "accuracy_best")["anew"] == "- (0 of 2, 2 without a test set)"
    some = collect([*runs, made((80.0, 80.0), 2)])[0]
    assert row(some)["anew"] == "80.00 (1 of 3, 2 without a test set)"


def test_a_student_trained_on_real_data_stands_beside_its_pair_and_other_networks_below(made):
    scratch = {"program": "train_scratch.py", "dataset": "digits"}
    runs = [made(), made((99.0, 99.9), model="resnet8", **scratch), made((98.0, 98.0), model="resnet20", **scratch)]
    table = accuracies(collect(runs)[0], "accuracy_last", "title")
    assert table.header == ["data set", "pair", "teacher", "scratch", "anew"]
    assert table.rows == [
        ["digits", "wrn16_1 > resnet8", "99.50", "99.00 (1)", "90.00 (1)"],
        ["digits", "resnet20", "-", "98.00 (1)", "-"],
    ]


def test_teachers_of_two_accuracies_are_shown_both_and_said(made):
    cells, (note,) = collect([made(seed=0), made(seed=1, summary={"accuracy_teacher": 98.0})])
    assert row(cells)["teacher"] == "98.00, 99.50" and "98.00, 99.50" in note


def test_published_numbers_stand_in_columns_of_their_own_and_only_for_their_task(made):
    cells, _ = collect([made(dataset="cifar100", teacher="vgg11", student="resnet18")])
    shown = row(cells, published=True)
    assert (shown["published: AEAHL-RG"], shown["published: Fast-10"]) == ("68.93", "67.44")
    assert shown["anew"] == "90.00 (1)" and shown["published: teacher"] == "71.32"
    assert {row(collect([made()])[0], published=True)[f"published: {source}"] for source in PUBLISHED} == {"-"}
    assert PUBLISHED["AEAHL-RG"][Task("cifar10", "wrn40_2", "wrn16_2")] == 92.37


def test_latex_escapes_what_it_would_read_otherwise():
    text = Table("50 % of a_b", ["R&D", "#1"], [["x > y ± 1", "{$5} ~ c^2 \\ d"]]).latex()
    assert r"\caption{50 \% of a\_b}" in text and r"R\&D & \#1 \\" in text
    assert r"x $>$ y $\pm$ 1 & \{\$5\} \textasciitilde{} c\textasciicircum{}2 \textbackslash{} d \\" in text


def test_a_bar_in_a_cell_does_not_end_it_in_markdown():
    assert r"| a\|b |" in Table("title", ["h"], [["a|b"]]).markdown()


def test_the_script_prints_markdown_and_writes_all_three_forms(made, tmp_path, capsys):
    runs = [made((last, last), seed) for seed, last in enumerate((90.0, 92.0))] + [made(None, 2)]
    files = {form: tmp_path / "new" / f"table.{form}" for form in ("markdown", "latex", "csv")}
    flags = [word for form, file in files.items() for word in (f"--{form}", str(file))]
    script("table").main([*(str(run.path) for run in runs), *flags])
    printed = capsys.readouterr().out
    assert "| 91.00 ± 1.41 (2 of 3, 1 incomplete) |" in printed and printed == files["markdown"].read_text()
    latex = files["latex"].read_text()
    assert r"91.00 $\pm$ 1.41 (2 of 3, 1 incomplete)" in latex and f"% incomplete, not counted: {runs[2].path}" in latex
    (line,) = csv.DictReader(files["csv"].open(newline=""))
    assert (line["method"], line["n"], line["seeds"], line["incomplete"]) == ("anew", "2", "0 1", "1")
    assert float(line["accuracy_last_mean"]) == 91 and float(line["accuracy_last_std"]) == pytest.approx(2**0.5)
    assert line["peak_memory_mb_mean"] == "" and line["peak_memory_mb_n"] == "0"


def test_what_is_no_run_among_the_paths_is_passed_over_folders_with_a_note(made, tmp_path):
    read_all = script("table").read_all
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "analysis").mkdir()
    runs, (note,) = read_all([tmp_path / "notes.md", tmp_path / "analysis", made().path])
    assert [run.path for run in runs] == [tmp_path / "run0"] and str(tmp_path / "analysis") in note
    with user_error("no run folder"):
        read_all([tmp_path / "notes.md", tmp_path / "analysis"])


def test_a_damaged_summary_is_named(made):
    path = made().path
    (path / "summary.json").write_text("{")
    with user_error("summary.json", "damaged"):
        read_run(path)
