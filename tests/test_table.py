"""The table averages what may be averaged, and says what it leaves out; folders with known numbers, made by hand."""

import csv
import json

import pandas as pd
import pytest
from conftest import user_error
from programs import script

from datafree.reporting.results import collect, task_name
from datafree.reporting.run_reader import mean_and_std, read_run
from datafree.reporting.tables import accuracies, costs, latex, markdown

PAIR = {"dataset": "digits", "teacher": "wrn16_1", "student": "resnet8"}


@pytest.fixture
def made(tmp_path):
    """Makes a run folder; of its accuracies the first is the last epoch's. None: without an end."""
    folders = []

    def make(accuracy=(90.0, 91.0), seed=0, summary=None, **config):
        folder = tmp_path / f"run{len(folders)}"
        folder.mkdir()
        folders.append(folder)
        machine = {"tag": f"s{seed}", "run_root": str(folder), "environment": {"device": "cpu, fp32"}}
        task = {} if "model" in config else {"mode": "anew", **PAIR, "teacher_path": f"somewhere{seed}/t.pth"}
        (folder / "config.json").write_text(json.dumps({"seed": seed, "lr": 0.1, **machine, **task, **config}))
        (folder / "metrics.csv").write_text("epoch,accuracy\n1,80\n")
        if accuracy:
            last, best = accuracy
            numbers = {"accuracy_last": last, "accuracy_best": best, "seconds_total": 10.0 * (seed + 1)}
            rest = {} if "model" in config else {"accuracy_teacher": 99.5, "agreement": 97.0 + seed, "images_made": 640}
            (folder / "summary.json").write_text(json.dumps({**numbers, **rest, **(summary or {})}))
        return read_run(folder)

    return make


def row(runs, measure="accuracy_last", **how):
    """The only row of a table of accuracies, by column."""
    (cells,) = accuracies(collect(runs)[0], measure, **how).to_dict("records")
    return cells


def test_a_cell_is_mean_and_sample_deviation_over_its_seeds(made):
    runs = [made((last, last + 1), seed) for seed, last in enumerate((97.0, 98.0, 99.0))]
    frame, notes = collect(runs)
    assert notes == [] and row(runs)["anew"] == "98.00 ± 1.00 (3)"
    assert row(runs, "accuracy_best") == {
        "data set": "digits",
        "pair": "wrn16_1 > resnet8",
        "teacher": "99.50",
        "anew": "99.00 ± 1.00 (3)",
    }
    (cells,) = costs(frame).astype(str).to_numpy().tolist()
    assert cells[2:] == ["anew", "3", "-", "20.0 ± 10.0", *"----", "640 ± 0", "cpu, fp32"]


def test_a_task_is_named_without_the_folders_that_lead_to_it():
    named = task_name("imagefolder:/data/birds/", "/nets/own.py:net", "resnet8")
    assert named == "imagefolder:birds, own.py:net > resnet8"
    assert task_name("digits", "wrn16_1", "") == "digits, wrn16_1"


def test_mean_and_std_is_the_sample_s_and_counts_what_is_missing():
    assert mean_and_std([1.0, 2.0, 6.0]) == "3.00 ± 2.65"  # sqrt((4 + 1 + 9) / 2)
    assert mean_and_std([4.0]) == "4.00" and mean_and_std([None]) == "-"
    assert mean_and_std([1.0, None, 3.0]) == "2.00 ± 1.41 (2 of 3)"


def test_columns_are_methods_scratch_first_told_apart_by_the_hard_loss_whatever_their_names(made):
    runs = [made(mode="reuse_common"), made(), made(hl=True), made(hl=True, no_aea=True)]
    runs += [made(method="fast", mode=None, hl=True), made(method="my/own.py:Mine", mode=None)]
    runs += [made(method="aeahl_rg", format=2, seed=1), made(model="resnet8", dataset="digits")]
    columns = list(row(runs))[3:]
    assert columns == ["scratch", "Mine", "anew", "anew-hl", "anew-hl-noaea", "fast-hl", "reuse_common"]


def test_a_run_without_an_end_is_counted_out_marked_and_named(made):
    runs = [made((90.0, 90.0), 0), made((92.0, 92.0), 1), made(None, 2), made(None, 1)]
    frame, notes = collect(runs)
    assert row(runs)["anew"] == "91.00 ± 1.41 (2 of 3, 1 incomplete)" and len(frame) == 3
    assert len(notes) == 2 and all(note.startswith("incomplete") for note in notes) and str(runs[2].path) in notes[1]
    assert row(runs[2:3])["anew"] == "- (0 of 1, 1 incomplete)"


def test_runs_that_differ_in_more_than_the_seed_stand_apart_with_what_differs(made):
    runs = [made((90.0, 90.0), 0), made((91.0, 91.0), 1), made((70.0, 70.0), 2, lr=0.5)]
    (note,) = collect(runs)[1]
    assert row(runs)["anew (lr 0.1)"] == "90.50 ± 0.71 (2)" and row(runs)["anew (lr 0.5)"] == "70.00 (1)"
    assert note.startswith("warning") and "lr 0.1; lr 0.5" in note and "tag" not in note
    (note,) = collect([made(seed=0), made(seed=1, meta="fomaml")])[1]
    assert "meta not recorded; meta fomaml" in note


def test_what_was_reused_must_be_the_same_but_for_the_seed(made):
    def reusing(seed, run):
        return made(seed=seed, mode="reuse_common", reuse_decoder_path=f"{run}/decoder.pth")

    first = [reusing(seed, f"run/anew-digits-resnet20-resnet8-s{seed}") for seed in (0, 1)]
    assert row(first)["reuse_common"].endswith("(2)")
    frame, (note,) = collect([*first, reusing(2, "elsewhere/anew-digits100-resnet20-resnet8-s2")])
    assert sorted(frame.groupby("label").size()) == [1, 2] and "anew-digits100" in note


def test_a_seed_that_comes_twice_is_one_sample_and_a_folder_named_twice_one_run(made):
    runs = [made((90.0, 90.0), 0), made((99.0, 99.0), 0)]
    (note,) = collect([*runs, runs[0]])[1]
    assert row([*runs, runs[0]])["anew"] == "90.00 (1)"
    assert "twice" in note and note.index(str(runs[0].path)) < note.index(str(runs[1].path))


def test_without_a_test_set_agreement_stands_there_and_says_so(made):
    runs = [made((None, None), seed) for seed in (0, 1)]
    assert row(runs)["anew"] == "agreement 97.50 ± 0.71 (2, no test set)"
    assert row(runs, "accuracy_best")["anew"] == "- (0 of 2, 2 without a test set)"
    assert row([*runs, made((80.0, 80.0), 2)])["anew"] == "80.00 (1 of 3, 2 without a test set)"


def test_a_student_trained_on_real_data_stands_beside_its_pair_and_other_networks_below(made):
    scratch = {"program": "train_scratch.py", "dataset": "digits"}
    runs = [made((98.0, 98.0), model="resnet20", **scratch), made((99.0, 99.9), model="resnet8", **scratch), made()]
    table = accuracies(collect(runs)[0], "accuracy_last")
    assert list(table) == ["data set", "pair", "teacher", "scratch", "anew"]
    assert table.to_numpy().tolist() == [
        ["digits", "wrn16_1 > resnet8", "99.50", "99.00 (1)", "90.00 (1)"],
        ["digits", "resnet20", "-", "98.00 (1)", "-"],
    ]


def test_teachers_of_two_accuracies_are_shown_both_and_said(made):
    runs = [made(seed=0), made(seed=1, summary={"accuracy_teacher": 98.0})]
    (note,) = collect(runs)[1]
    assert row(runs)["teacher"] == "98.00, 99.50" and "98.00, 99.50" in note


def test_published_numbers_stand_in_columns_of_their_own_and_only_for_their_task(made):
    shown = row([made(dataset="cifar100", teacher="vgg11", student="resnet18")], published=True)
    others = [shown[f"published: {source}"] for source in ("teacher", "AEAHL-RG", "Fast-10")]
    assert others == ["71.32", "68.93", "67.44"] and shown["anew"] == "90.00 (1)"
    assert {value for name, value in row([made()], published=True).items() if "published" in name} == {"-"}


def test_no_cell_is_read_as_markup_in_latex_or_markdown():
    table = pd.DataFrame([["x > y ± 1", "{$5} ~ c^2 \\ d|e"]], columns=["R&D", "#1"])
    text = latex(table, "50 % of it")
    assert r"\caption{50 \% of it}" in text and r"R\&D & \#1 \\" in text and r"x $>$ y $\pm$ 1 & \{\$5\}" in text
    assert r"\textasciitilde \space c\textasciicircum 2 \textbackslash \space d$|$e" in text
    assert markdown(table).splitlines()[2] == r"| x > y ± 1 | {$5} ~ c^2 \ d\|e |"


def test_the_script_prints_markdown_and_writes_all_three_forms(made, tmp_path, capsys):
    runs = [made((last, last), seed, {"score_g1": 4.0}) for seed, last in enumerate((90.0, 92.0))] + [made(None, 2)]
    files = {form: tmp_path / "new" / f"table.{form}" for form in ("markdown", "latex", "csv")}
    flags = [word for form, file in files.items() for word in (f"--{form}", str(file))]
    script("table").main([*(str(run.path) for run in runs), *flags])
    printed = capsys.readouterr().out
    assert "| 91.00 ± 1.41 (2 of 3, 1 incomplete) |" in printed and printed == files["markdown"].read_text()
    text = files["latex"].read_text()
    assert r"91.00 $\pm$ 1.41 (2 of 3, 1 incomplete)" in text and f"% incomplete, not counted: {runs[2].path}" in text
    (line,) = csv.DictReader(files["csv"].open(newline=""))
    assert [line[name] for name in ("method", "n", "seeds", "incomplete")] == ["anew", "2", "0 1", "1"]
    assert float(line["accuracy_last_mean"]) == 91 and float(line["accuracy_last_std"]) == pytest.approx(2**0.5)
    assert line["peak_memory_mb_mean"] == "" and line["peak_memory_mb_count"] == "0"
    assert line["score_g1_mean"] == "4.0"  # a method's own


def test_what_is_no_run_among_the_paths_is_passed_over_folders_with_a_note(made, tmp_path):
    read_all = script("table").read_all
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "analysis").mkdir()
    runs, (note,) = read_all([tmp_path / "notes.md", tmp_path / "analysis", made().path])
    assert [run.path for run in runs] == [tmp_path / "run0"] and str(tmp_path / "analysis") in note
    with user_error("no run folder"):
        read_all([tmp_path / "notes.md", tmp_path / "analysis"])


def test_a_damaged_summary_and_a_folder_that_is_no_run_are_named(made, tmp_path):
    path = made().path
    (path / "summary.json").write_text("{")
    with user_error("summary.json", "damaged"):
        read_run(path)
    with user_error(str(tmp_path), "run folder"):
        read_run(tmp_path)
