"""A run's page says what its files say, asks the network for nothing, and leaves the run as it was."""

import dataclasses
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image
from programs import QUICK, SMALL_SCRATCH, finished, script, tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import registry
import train_scratch
from datafree.reporting import figures
from datafree.reporting.report import Report, draw, examine, page, write_board
from datafree.reporting.run_networks import RunNetworks
from datafree.runs.folder import RunFolder

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HL = "anew-hl-digits-lenet5_bn-lenet5"
SECTIONS = ["Curves", "Synthetic images", "Classes", "Reuse", "What it cost", "Also reported", "Configuration"]
VOID = {"meta", "img", "br", "link"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run with the attack, and one of train_scratch.py."""
    root = tmp_path_factory.mktemp("runs")
    finished([*QUICK, "--student", "lenet5", "--hl", "--p_width", "4", "--run_root", root])
    output = ("--output", root / "teacher.pth")
    finished([*SMALL_SCRATCH.split(), "--run_root", root, *output], train_scratch)
    return root


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the teacher's path is relative, as the run was given it


@pytest.fixture(scope="module")
def found(runs):
    """What there is to say of the finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return examine(runs / HL, registry)


@pytest.fixture(scope="module")
def text(found):
    """Its page."""
    return page([found])


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the finished run, to change."""
    return shutil.copytree(runs / HL, tmp_path / HL)


def incomplete(run, rows):
    """As a run is after so many epochs, before its end."""
    for name in ("summary.json", "gan_reuse.pth", "gan_abandon.pth", "decoder.pth", "gap.pth", "generator_loss.npy"):
        (run / name).unlink()
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[: rows + 1]))
    return run


def reconfigured(run, **config):
    """The run with other entries in config.json."""
    before = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(before | config))
    return run


def page_of(path):
    return page([examine(path, registry)])


class Elements(HTMLParser):
    """Every element, with its attributes; fails where one is closed that is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def headings(text, level=2):
    return [unescape(found) for found in re.findall(rf"<h{level}>(.*?)</h{level}>", text)]


def test_the_page_has_every_part_and_the_numbers_of_the_files(runs, text):
    run = runs / HL
    summary = json.loads((run / "summary.json").read_text())
    assert headings(text) == SECTIONS
    for key in ("accuracy_last", "accuracy_best", "accuracy_teacher", "agreement"):
        assert f"<b>{summary[key]:.2f} %</b>" in text
    assert f"<tr><td>score_g1</td><td>{summary['score_g1']:.6g}</td></tr>" in text  # the method's own
    assert "<td>gan_reuse.pth</td><td>g" in text and ">incomplete<" not in text
    for name, value in json.loads((run / "config.json").read_text()).items():
        assert isinstance(value, dict) or f"<td>{name}</td>" in text
    for word in ("epoch 3", "digits_lenet5_bn.pth", "git_commit", "attacked rate"):
        assert word in text
    Elements(text)


def test_confusion_matrices_are_of_the_test_set_and_agree_with_the_summary(found):
    labels = registry.DATASETS["digits"].load(None, False, False).labels
    for label, key in (("student", "accuracy_last"), ("teacher", "accuracy_teacher")):
        matrix = found.matrices[label]
        assert matrix.shape == (10, 10) and matrix.sum(axis=1).tolist() == labels.bincount().tolist()  # rows: the truth
        assert 100 * matrix.trace() / 360 == pytest.approx(found.run.summary[key])


def test_mistakes_and_class_accuracy_are_those_counted_by_hand(found):
    matrix = np.array([[8, 2, 0, 0], [3, 4, 3, 0], [0, 0, 5, 0], [0, 0, 0, 0]])  # nothing of class d
    report = Report(found.run, list("abcd"), {"student": matrix})
    assert report.mistakes == [("b", "a", 3, "30.00 %"), ("b", "c", 3, "30.00 %"), ("a", "b", 2, "20.00 %")]
    assert report.classes.to_numpy().tolist() == [
        *(["a", 10, "80.00 %"], ["b", 10, "40.00 %"], ["c", 5, "100.00 %"], ["d", 0, "–"])
    ]


def test_every_column_that_a_method_reported_is_in_a_curve(run):
    lines = (run / "metrics.csv").read_text().splitlines()
    added = ["loss_foo,rate_bar,norm_baz,word", "2000,0.25,7,x", "200,0.5,8,y", "2,1,9,z"]
    (run / "metrics.csv").write_text("\n".join(map(",".join, zip(lines, added, strict=True))))
    report = examine(run, registry)
    titles = headings(page([report]), 3)
    assert {"Loss foo", "Norm baz", "Shares", "Accuracy and agreement", "Learning rate", "Time"} <= set(titles)
    (axes,) = report.figures["curves/Loss foo"].axes
    assert axes.get_lines()[0].get_ydata().tolist() == [2000, 200, 2] and axes.get_yscale() == "log"
    shares = [line.get_label() for line in report.figures["curves/Shares"].axes[0].get_lines()]
    assert {"rate bar", "swap rate"} <= set(shares) and "norm baz" not in shares
    drawn = [name for _, columns in figures.curves_of(report.run.metrics).values() for name in columns]
    assert sorted([*drawn, "epoch", "round", "teacher_passes"]) == sorted(report.run.metrics) and "word" not in drawn


def test_the_page_fetches_nothing(text):
    assert "http://" not in text and "https://" not in text and "@import" not in text
    elements = Elements(text)
    assert not {"script", "link", "iframe", "img"} & set(elements.tags) and "svg" in elements.tags
    fetched = [value for name, value in elements.attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
    assert fetched and all(value.startswith(("data:image/png;base64,", "#")) for value in fetched)
    assert all(found == "#" for found in re.findall(r"url\((.)", text)) and "default-src 'none'" in text


def test_the_script_writes_the_page_and_leaves_the_run_as_it_was(run, capsys):
    before = tree(run)
    script("report").main([str(run)])
    after = tree(run)
    new = set(after) - set(before)
    assert {name for name in new if not name.endswith(".report")} == {"report.html"} and len(new) == 2
    assert all(after[name] == before[name] for name in before) and str(run / "report.html") in capsys.readouterr().out


def test_figures_are_in_tensorboard_once_however_many_reports_were_made(run, found):
    of_copy = replace(found, run=replace(found.run, path=run))
    assert [write_board(of_copy) for _ in range(2)] == [4, 4]
    assert len(list((run / "tensorboard").glob("*.report"))) == 1
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    figures = {"samples_over_epochs", "confusion/student", "confusion/teacher", "class_accuracy"}
    assert set(events.Tags()["images"]) == {"synthetic", *(f"report/{name}" for name in figures)}
    assert "loss_bn" in events.Tags()["scalars"]


def test_an_incomplete_run_is_said_to_be_so_with_what_there_is(run):
    script("report").main([str(incomplete(run, 2))])
    text = (run / "report.html").read_text()
    assert "Incomplete: 2 of 3 epochs" in text and f"main.py --resume {run}" in text and ">incomplete<" in text
    assert headings(text) == ["Curves", "Synthetic images", "Classes", "Configuration"]  # it has left nothing to reuse
    assert "Confusion matrix of the student" in text and not list((run / "tensorboard").glob("*.report"))


def test_a_run_of_no_epoch_yet_has_a_page(run):
    incomplete(run, 0)
    for name in ("student_last.pth", "last.pth", "pool.bin", "synthetic.png"):
        (run / name).unlink()
    shutil.rmtree(run / "tensorboard")
    text = page_of(run)
    assert "Incomplete: 0 of 3 epochs" in text and "No epoch has been recorded" in text and "none to show" in text
    assert escape(str(run / "student_last.pth")) in text  # what is missing is named


def test_a_run_of_train_scratch_has_the_same_page_without_the_generator_s_parts(runs):
    found = examine(runs / "scratch-digits-resnet8", registry)
    text, last = page([found]), found.run.summary["accuracy_last"]
    assert 100 * found.matrices["model"].trace() / 360 == pytest.approx(last) and f"<b>{last:.2f} %</b>" in text
    assert headings(text) == ["Curves", "Classes", "Configuration"]
    assert "Confusion matrix of the model" in text and "accuracy train" in text and "eacher</span>" not in text


def test_without_a_test_set_the_page_says_so_and_gives_agreement(run, monkeypatch):
    monkeypatch.setattr(RunNetworks, "test_images", lambda _: (None, ["no accuracy: no images in data/x"]))
    text, agreement = page_of(run), json.loads((run / "summary.json").read_text())["agreement"]
    assert "no accuracy: no images in data/x" in text and "Without real test images" in text
    assert f"the teacher's answer to {agreement:.2f} %" in unescape(text) and "Confusion matrix" not in text


def test_a_run_on_a_folder_that_is_gone_keeps_its_numbers_and_says_what_is_missing(run):
    text = page_of(reconfigured(run, dataset=f"imagefolder:{run / 'gone'}"))
    assert f"<b>{json.loads((run / 'summary.json').read_text())['accuracy_last']:.2f} %</b>" in text
    assert "there is no folder" in text[text.index("<h2>Classes</h2>") :].split("</section>")[0]


def test_what_was_reused_is_named_with_its_origin_or_as_gone(run, runs):
    kept, gone = str(runs / HL / "gan_reuse.pth"), str(run / "gone.pth")
    text = page_of(reconfigured(run, mode="reuse_common", reuse_generator_path=kept, reuse_decoder_path=gone))
    rows = {path: re.search(rf"<tr><td>{re.escape(path)}</td>(.*?)</tr>", text).group(1) for path in (kept, gone)}
    part = json.loads((runs / HL / "summary.json").read_text())["reused_network"]
    assert re.findall("<td>(.*?)</td>", rows[kept])[:4] == [part, "anew", "digits", "lenet5_bn → lenet5"]
    assert "does not exist" in rows[gone] and "digits</td>" not in rows[gone]


def test_flags_stand_in_the_groups_that_the_run_recorded_and_in_bold_where_not_their_default(run):
    groups, defaults = {"training": ["lr", "epochs", "unknown"], "empty": []}, {"lr": 0.2, "epochs": 200}
    text = page_of(reconfigured(run, groups=groups, defaults=defaults, method="aeahl_rg", format=2))
    titles = headings(text, 3)
    assert titles[-3:] == ["training", "other", "environment"]
    assert "<td>lr</td><td>0.2</td>" in text and "<td>epochs</td><td><b>3</b></td>" in text


HOSTILE = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;"


def test_what_comes_from_files_is_shown_as_text_and_never_as_markup(run, monkeypatch):
    reconfigured(run, tag=HOSTILE, mode=f"anew{HOSTILE}", **{HOSTILE: HOSTILE}, environment={HOSTILE: HOSTILE})
    (run / "log.txt").write_text(f"warning: {HOSTILE}\n")
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    name = HOSTILE.replace('"', '""')
    lines = [f'{header},"loss_{name}",$x^2$', *(f"{row},1,2" for row in rows)]
    (run / "metrics.csv").write_text("\n".join(lines))
    hostile = run.rename(run.with_name(f"{HOSTILE.replace('/', '')}'"))
    names = (HOSTILE, "$x^2$", "$\\bad{$", *"3456789")
    digits = dataclasses.replace(registry.DATASETS["digits"], class_names=names)
    monkeypatch.setitem(registry.DATASETS, "digits", digits)
    text = page([report := examine(hostile, registry), report])
    elements = Elements(text)
    assert not {"script", "img"} & set(elements.tags)
    assert not any(name.startswith("on") for name, _ in elements.attributes)
    assert text.count(str(escape(HOSTILE)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")) >= 7
    assert "$\\bad{$" in text


def test_a_page_of_several_runs_begins_with_a_table_of_them(found):
    few = Report(replace(found.run, metrics=found.run.metrics.iloc[:0]))
    both = page([few, replace(few, run=replace(few.run, path=few.run.path.with_name("other")))])
    first = both[: both.index("<article>")]
    assert f"<td>{HL}</td>" in first and "<td>other</td>" in first and both.count("<article>") == 2


def test_many_classes_get_a_list_of_the_worst_ten(found):
    matrix = np.eye(100, dtype=int) * 20
    matrix[42, 42], matrix[42, 24] = 5, 15
    many = Report(replace(found.run, metrics=pd.DataFrame()), [f"class {i}" for i in range(100)], {"student": matrix})
    draw(many)
    text = page([many, many])
    worst = text[text.index("10 classes of the student") :]
    cells = '<td>class 42</td><td class="number">20</td><td class="number">25.00 %</td>'
    assert re.search(rf"<tbody>\s*<tr>{cells}", worst) and "<td>class 42</td><td>class 24</td>" in text
    names = re.findall(r' id="(.*?)"', text)
    assert len(names) == len(set(names)) > 4  # of clip paths and markers, in one page


def test_samples_are_of_evenly_spaced_epochs_and_the_newest_where_tensorboard_is_gone(run, monkeypatch):
    rows, _ = figures.read_samples(run, (32, 32))
    newest = (torch.load(run / "synthetic.pth", weights_only=True)[:8] * 255).permute(0, 2, 3, 1)
    assert list(rows) == ["epoch 1", "epoch 2", "epoch 3"]
    for i, image in enumerate(newest):
        shown = rows["epoch 3"][1:, 1 + 33 * i : 33 + 33 * i, :3]
        assert np.abs(shown - image.numpy()).max() <= 1  # TensorBoard cuts
    monkeypatch.setattr(figures, "EPOCHS", 2)
    assert list(figures.read_samples(run, (32, 32))[0]) == ["epoch 1", "epoch 3"]
    shutil.rmtree(run / "tensorboard")
    (only,), source = figures.read_samples(run, (32, 32))
    assert only == "newest" and "synthetic.png" in source


def test_overwriting_a_run_removes_the_report_of_it(run):
    (run / "report.html").write_text("of the earlier run")
    RunFolder(run, overwrite=True).close()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (59.4, "59.4 s"), (843.2, "14 min 3 s"), (18125, "5 h 2 min")]
)
def test_durations_are_read_without_counting(found, seconds, shown):
    run = replace(found.run, metrics=pd.DataFrame(), summary=found.run.summary | {"seconds_total": seconds})
    assert f"<span>Time</span><b>{shown}</b>" in page([Report(run)])


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_shows_the_page_without_complaint(runs, text, tmp_path):
    (tmp_path / "report.html").write_text(text)
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    line = [BROWSER, *quiet.split(), "--disable-component-update", "--disable-sync", "--enable-logging=stderr"]
    line += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,1400",
        f"--screenshot={tmp_path / 'shot.png'}",
    ]
    line += ["--dump-dom", (tmp_path / "report.html").as_uri()]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    summary = json.loads((runs / HL / "summary.json").read_text())
    assert headings(shown.stdout) == SECTIONS
    assert f"{summary['accuracy_last']:.2f} %</b>" in shown.stdout and "<td>kd_steps</td>" in shown.stdout
    assert shown.stdout.count("<svg") == text.count("<svg") > 8 and "CONSOLE" not in shown.stderr
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    coloured = (np.ptp(pixels, axis=2) > 60).sum()  # curves: neither paper nor ink
    assert pixels.shape == (1400, 1000, 3) and pixels.std() > 10 and coloured > 500
