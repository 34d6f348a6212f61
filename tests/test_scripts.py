"""The scripts that read runs, on tiny ones: tables say what the folders say, and finished work is not done again."""

import json
import shutil
import signal
from argparse import Namespace
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
from conftest import ROOT, user_error
from programs import OF_RESNET8, json_of, script
from test_reproduce import ran  # noqa: F401 (a fixture: runs in this process)

import main
from datafree.reporting import plots
from datafree.reporting.run_reader import read_run
from datafree.runs.stopping import Stopped

TINY = [
    *("--epochs", "3", "--warmup", "1", "--kd_steps", "1", "--batch_size", "4", "--synthesis_batch_size", "4"),
    *("--g_steps", "1", "--ngf", "8"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        main.main([*TINY, "--run_root", str(root)])
    return root / "anew-digits-resnet20-resnet8"


def test_a_run_without_summary_is_marked_and_not_counted(tmp_path, run):
    begun = shutil.copytree(run, tmp_path / "begun")
    (begun / "summary.json").unlink()
    table = script("compare").table([read_run(run), read_run(begun)])
    whole, half = table.splitlines()[2:]
    summary = json.loads((run / "summary.json").read_text())
    assert f"| {summary['accuracy_last']:.2f} |" in whole and "incomplete" not in whole
    assert half == f"| resnet20 -> resnet8 | anew | incomplete: {begun} | | | | |"


def test_compare_prints_a_table_and_draws_a_picture(tmp_path, run, capsys):
    script("compare").main([str(run), "--picture", str(tmp_path / "new" / "picture.png")])
    assert "| resnet20 -> resnet8 | anew |" in capsys.readouterr().out
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_runs_on_several_data_sets_are_told_apart_by_them(run, monkeypatch):
    digits = read_run(run)
    folder = replace(digits, config=digits.config | {"dataset": "imagefolder:/some where/cifar10_jpeg"})
    table = script("compare").table([digits, folder])
    assert [row.split(" | ")[0] for row in table.splitlines()[::2]] == ["| data set", "| digits"]
    assert table.splitlines()[-1].startswith("| cifar10_jpeg | resnet20 -> resnet8 |")
    seen = {}
    monkeypatch.setattr(plots, "draw_accuracy_and_loss", lambda groups, *_: seen.update(groups))
    monkeypatch.setattr(plots, "save", lambda *_: None)
    plots.draw_comparison([digits, folder], None)
    assert list(seen) == [f"{name}, resnet20 > resnet8, anew" for name in ("digits", "cifar10_jpeg")]


def test_titles_of_long_names_do_not_run_into_each_other(run, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, _: drawn.append(figure))
    drawn, whole = [], read_run(run)
    sets = [f"imagefolder:/data/{'of_somebody_' * 3}{number}" for number in range(4)]
    plots.draw_comparison([replace(whole, config=whole.config | {"dataset": each}) for each in sets], None)
    drawn[0].canvas.draw()
    ends = [axes.title.get_window_extent().intervalx for axes in drawn[0].axes[2:]]
    plots.plt.close(drawn[0])
    assert len(ends) == 4 and all(before[1] < after[0] for before, after in pairwise(ends))


@pytest.mark.usefixtures("ran")
@pytest.mark.slow
def test_ablation_runs_each_setting_and_seed_once_and_says_where_each_number_is_from(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    ablation = script("ablation")
    setting = f"low rate: --lr 0.0{{seed}} {' '.join(TINY)}"
    line = ["--name", "tiny", "--run_root", str(tmp_path), "--seeds", "3"]
    ablation.main([setting, *line, "4"])
    text = (tmp_path / "tiny.md").read_text()
    folders = [tmp_path / f"anew-digits-resnet20-resnet8-tiny-low_rate-s{seed}" for seed in (3, 4)]
    assert "| low rate | 2 |" in text and all(str(folder) in text for folder in folders)
    assert [json.loads((folder / "config.json").read_text())["lr"] for folder in folders] == [0.03, 0.04]
    assert (tmp_path / "tiny.png").exists()
    before = (folders[0] / "last.pth").stat().st_mtime_ns
    ablation.main([setting, *line])
    assert (folders[0] / "last.pth").stat().st_mtime_ns == before
    with user_error("--lr"):
        ablation.main([setting.replace("0.0{seed}", "0.1"), *line])


def test_settings_are_compared_with_the_first_seed_by_seed(run):
    ablation, finished = script("ablation"), read_run(run)

    def runs(**last):
        each = {int(seed[1:]): value for seed, value in last.items()}
        return [
            replace(finished, config=finished.config | {"seed": seed}, summary={"accuracy_last": value})
            for seed, value in each.items()
        ]

    groups = {"none": runs(s0=90.0, s1=80.0, s2=85.0), "hl": runs(s2=86.0, s0=93.0, s1=82.0, s7=1.0), "one": runs(s0=1)}
    # differences 3, 2, 1: mean 2, standard error 1/sqrt(3), and t(0.975, 2 degrees) = 4.3027
    low, high = 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5
    told = {"n": 3, "difference": "+2.00", "95 % interval": f"{low:+.2f} to {high:+.2f}", "above": "3 of 3"}
    assert ablation.paired(groups).to_dict("records") == [{"setting": "hl"} | told]
    assert ablation.paired({"none": groups["none"]}).empty


def test_a_setting_waits_for_the_run_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    ablation = script("ablation")
    args = Namespace(name="n", run_root=tmp_path)
    files = "--reuse_generator_path {first task}/gan_reuse.pth --reuse_decoder_path {first task}/decoder.pth"
    planned = {("reuse", 4): f"--mode reuse_fix {files}", ("first task", 3): "", ("first task", 4): "--mode anew"}
    first, *_ = jobs = ablation.plan(planned, args)
    by_cell = {cell: job for job, cell in jobs.items()}
    source = by_cell["first task", 4]
    assert first.after == source.name and source.after is by_cell["first task", 3].after is None
    assert first.flags[first.flags.index("--reuse_decoder_path") + 1] == str(source.folder / "decoder.pth")
    with user_error("waits for itself"):
        ablation.plan({("a", 0): "--data_root {b}", ("b", 0): "--data_root {a}"}, args)


def test_interrupted_ablation_prints_what_has_finished(tmp_path, run, monkeypatch, capsys):
    ablation = script("ablation")

    def one_then_a_signal(jobs, args, finished, keep_going):
        finished(jobs[0])
        raise Stopped(signal.SIGINT, "stopped")

    monkeypatch.setattr(ablation, "run_jobs", one_then_a_signal)
    monkeypatch.setattr(ablation, "read_run", lambda _: read_run(run))
    with pytest.raises(Stopped):
        ablation.main(["--name", "n", "--seeds", "0", "1", "--run_root", str(tmp_path), "a: --mode anew"])
    printed = capsys.readouterr().out
    assert "finished so far" in printed and "| a | 1 |" in printed and str(run) in printed


@pytest.mark.parametrize(
    "line",
    [
        ["ablation", "kd: --method kd", "--name", "n"],
        ["compare_methods", "--methods", "kd"],
        ["compare_methods", "--methods", "docs/pixels.py:Pixels"],
    ],
)
def test_a_dry_run_prints_the_plan_and_makes_nothing(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plan = [*line[1:], "--seeds", "4", "5", "--run_root", str(tmp_path), "--dry_run"]
    script(line[0]).main(plan)
    here = capsys.readouterr().out.splitlines()
    assert len(here) == 4 and here[-1] == "2 runs, 0 of them complete; at a time: 1"
    assert all(
        text.startswith("python main.py") and f"--seed {seed}" in text
        for seed, text in zip("45", here[:2], strict=True)
    )
    script(line[0]).main([*plan, "--executor", "slurm"])
    array, *tasks = capsys.readouterr().out.splitlines()
    assert array.startswith("array 1, 2 tasks: sbatch --array=0-1 ") and tasks[:2] == [
        f"  {n}: {here[n]}" for n in (0, 1)
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ran")
@pytest.mark.slow
def test_methods_are_compared_at_one_budget_with_a_table_a_file_of_numbers_and_a_plot(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    small = "--kd_steps 2 --batch_size 8 --precision fp32 --lr 0.3"
    task = ["--teacher", "resnet8", "--teacher_path", OF_RESNET8[3], "--run_root", str(tmp_path), "--seeds", "0", "1"]
    own = "anew: --synthesis_batch_size 8 --g_steps 2 --nz 16 --ngf 4 --lr 0.2"
    line = ["--methods", own, "scratch", "bad: --method kd --warmup 3", *task, f"--flags={small}"]
    compare = script("compare_methods")
    compare.main([*line, "--budget_teacher_passes", "500", "--name", "tiny"])
    text, numbers = (tmp_path / "tiny.md").read_text(), pd.read_csv(tmp_path / "tiny.csv")
    assert "resnet8 > resnet8 on digits, 500 teacher passes a run" in text
    assert (
        "an epoch takes no teacher passes" in text
        and "- bad, seed 1: failed:" in text
        and "--warmup 3: kd synthesises nothing" in text
    )
    folders = list(tmp_path.glob("anew-*"))  # a row's own flags win
    assert len(folders) == 2 and all(json_of(folder / "config.json")["lr"] == 0.2 for folder in folders)
    assert [*numbers.method] == ["anew", "anew"] and [*numbers.seed] == [0, 1] and all(numbers.teacher_passes <= 500)
    assert all(numbers.teacher_passes > 400) and all(numbers.images_made > 0)
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert "| anew | 2 |" in text and "| bad | 0 |" in text


def test_accuracy_is_drawn_over_what_was_spent_by_then(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, _: drawn.append(figure))
    plots.draw_costs({"a": [read_run(run)]}, None)
    metrics, (seconds, passes) = read_run(run).metrics, drawn[0].axes
    x, y = passes.get_lines()[0].get_data()
    known = metrics.dropna(subset="accuracy")
    assert x[-1] == metrics.teacher_passes.sum() and x[0] == metrics.teacher_passes[: known.index[0] + 1].sum()
    assert (y[0], y[-1]) == (known.accuracy.iloc[0], known.accuracy.iloc[-1])
    assert passes.xaxis.get_major_formatter()(500_000) == "500k"
    assert seconds.get_lines()[0].get_xdata()[-1] == pytest.approx(metrics.filter(regex="^seconds_").sum().sum())


def test_settings_need_a_colon_and_labels_of_their_own():
    with user_error("label"):
        script("ablation").split(["no colon"])
    with user_error("label"):
        script("ablation").split(["a: --lr 1", "a: --lr 2"])


def test_few_groups_are_drawn_as_curves_and_many_as_points(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, _: drawn.append(figure))
    for count in (len(plots.STYLES), len(plots.STYLES) + 1):
        plots.draw_groups({str(n): [read_run(run)] for n in range(count)}, None)
    (accuracy, loss), (points,) = (figure.axes for figure in drawn)
    assert len(loss.get_lines()) == len(accuracy.get_lines()) == len(plots.STYLES)
    assert [label.get_text() for label in points.get_yticklabels()] == [str(n) for n in range(len(plots.STYLES) + 1)]
