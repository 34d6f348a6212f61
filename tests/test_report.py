"""A run's page says what its files say, asks the network for nothing, and leaves the run as it was."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import ROOT, user_error
from datafree.data.augment import to_levels
from datafree.run_folder import RunFolder
from datafree.snapshot import SavedPool
from PIL import Image
from programs import NAME, SMALL, SMALL_SCRATCH, finished, tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_scripts import script

import registry
import train_scratch
from datafree.analysis import samples
from datafree.reporting import findings
from datafree.reporting.findings import Findings, examine, write_board
from datafree.reporting.report import duration, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HL = NAME.replace("anew", "anew-hl")
VOID = {"meta", "img", "br", "link"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run with the attack, and one of train_scratch.py."""
    root = tmp_path_factory.mktemp("runs")
    finished([*SMALL.split(), "--hl", "--p_width", "4", "--precision", "fp32", "--run_root", root])
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


def incomplete(run):
    """As a run is before its end."""
    for name in ("summary.json", "gan_reuse.pth", "gan_abandon.pth", "decoder.pth", "gap.pth", "generator_loss.npy"):
        (run / name).unlink()
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:-1]))
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
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def headings(text):
    return [unescape(found) for found in re.findall(r"<h2>(.*?)</h2>", text)]


def test_the_page_has_every_part_and_the_numbers_of_the_files(runs, text):
    run = runs / HL
    summary = json.loads((run / "summary.json").read_text())
    assert headings(text) == ["Curves", "Synthetic images", "Classes", "Reuse", "Configuration"]
    for key in ("accuracy_last", "accuracy_best", "accuracy_teacher", "agreement"):
        assert f"<b>{summary[key]:.2f} %</b>" in text
    assert f"g1 {summary['score_g1']:.4g}, g2 {summary['score_g2']:.4g}" in text
    assert f"The next task gets {summary['reused_network']}" in text and ">incomplete<" not in text
    for name, value in json.loads((run / "config.json").read_text()).items():
        assert isinstance(value, dict | list) or f"<td>{name}</td>" in text
    for word in ("Attack", "swapped", "round 3", "digits_resnet20.pth", "git_commit"):
        assert word in text
    Elements(text)


def test_confusion_matrices_are_of_the_test_set_and_agree_with_the_summary(runs, found):
    summary = json.loads((runs / HL / "summary.json").read_text())
    for label, key in (("student", "accuracy_last"), ("teacher", "accuracy_teacher")):
        matrix = found.matrices[label]
        assert matrix.shape == (10, 10) and matrix.sum() == 360
        assert 100 * matrix.trace().item() / 360 == pytest.approx(summary[key])


def test_the_page_fetches_nothing(text):
    assert "http://" not in text and "https://" not in text and "@import" not in text
    elements = Elements(text)
    assert not {"script", "link", "iframe", "img"} & set(elements.tags) and "svg" in elements.tags
    fetched = [value for name, value in elements.attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
    assert fetched and all(value.startswith(("data:image/png;base64,", "#")) for value in fetched)
    assert all(found == "#" for found in re.findall(r"url\((.)", text))


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
    figures = {"samples_over_rounds", "confusion/student", "confusion/teacher", "class_accuracy"}
    assert set(events.Tags()["images"]) == {"synthetic", *(f"report/{name}" for name in figures)}
    assert [event.step for event in events.Images("report/class_accuracy")] == [3]
    assert "loss_bn" in events.Tags()["scalars"]


def test_an_incomplete_run_is_said_to_be_so_with_what_there_is(run):
    script("report").main([str(incomplete(run))])
    text = (run / "report.html").read_text()
    assert "Incomplete: 2 of 3 rounds" in text and f"main.py --resume {run}" in text and ">incomplete<" in text
    assert {"Curves", "Synthetic images", "Classes", "Reuse"} <= set(headings(text)) and "left nothing yet" in text
    assert "Confusion matrix of the student" in text and not list((run / "tensorboard").glob("*.report"))


def test_a_run_of_no_round_yet_has_a_page(run):
    incomplete(run)
    header = (run / "metrics.csv").read_text().splitlines(keepends=True)[0]
    (run / "metrics.csv").write_text(header)
    for name in ("student_last.pth", "last.pth", "pool.bin", "synthetic.pth"):
        (run / name).unlink()
    shutil.rmtree(run / "tensorboard")
    text = page_of(run)
    assert "Incomplete: 0 of 3 rounds" in text and "No round has been recorded" in text and "none to show" in text
    assert escape(str(run / "student_last.pth")) in text  # what is missing is named


def test_a_run_of_train_scratch_has_the_same_page_without_the_generator_s_parts(runs):
    found = examine(runs / "scratch-digits-resnet8", registry)
    text, summary = page([found]), json.loads((found.run.path / "summary.json").read_text())
    assert 100 * found.matrices["model"].trace().item() / 360 == pytest.approx(summary["accuracy_last"])
    assert (
        headings(text) == ["Curves", "Classes", "Configuration"] and f"<b>{summary['accuracy_last']:.2f} %</b>" in text
    )
    assert "Confusion matrix of the model" in text and "Training loss" in text and "eacher</span>" not in text


def test_without_a_test_set_the_page_says_so_and_gives_agreement(run, monkeypatch):
    monkeypatch.setattr(findings, "test_images", lambda *_, **__: (None, ["no accuracy: no images in data/x"]))
    text, agreement = page_of(run), json.loads((run / "summary.json").read_text())["agreement"]
    assert "no accuracy: no images in data/x" in text and "Without real test images" in text
    assert f"the teacher's answer to {agreement:.2f} %" in unescape(text) and "Confusion matrix" not in text


def test_a_run_on_a_folder_that_is_gone_keeps_its_numbers_and_says_what_is_missing(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dataset": f"imagefolder:{run / 'gone'}"}))
    text, summary = page_of(run), json.loads((run / "summary.json").read_text())
    assert f"<b>{summary['accuracy_last']:.2f} %</b>" in text
    for heading in ("<h2>Synthetic images</h2>", "<h2>Classes</h2>"):
        assert "gone holds neither" in text[text.index(heading) :].split("</section>")[0]


def test_what_was_reused_is_named_with_its_origin_or_as_gone(run, runs):
    config = json.loads((run / "config.json").read_text())
    config |= {"mode": "reuse_common", "reuse_generator_path": str(runs / HL / "gan_reuse.pth")}
    config |= {"reuse_decoder_path": str(run / "gone.pth")}
    (run / "config.json").write_text(json.dumps(config))
    text = page_of(run)
    row = re.search(rf"<tr><td>{re.escape(str(runs / HL / 'gan_reuse.pth'))}</td>(.*?)</tr>", text).group(1)
    kept = json.loads((runs / HL / "summary.json").read_text())["reused_network"]
    assert re.findall("<td>(.*?)</td>", row)[:4] == [kept, "anew", "digits", "resnet20 → resnet8"]
    gone = re.search(rf"<tr><td>{re.escape(str(run / 'gone.pth'))}</td>(.*?)</tr>", text).group(1)
    assert "does not exist" in gone and "digits</td>" not in gone


HOSTILE = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;"


def test_what_comes_from_files_is_shown_as_text_and_never_as_markup(run, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    config |= {"tag": HOSTILE, "mode": f"anew{HOSTILE}", HOSTILE: HOSTILE, "environment": {HOSTILE: HOSTILE}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "log.txt").write_text(f"warning: {HOSTILE}\n")
    hostile = run.rename(run.with_name(f"{HOSTILE.replace('/', '')}'"))
    monkeypatch.setitem(findings.NAMES, "digits", (HOSTILE, *["$x^2$", "$\\bad{$", "3", "4", "5", "6", "7", "8", "9"]))
    text = page_of(hostile)
    elements = Elements(text)
    assert not {"script", "img"} & set(elements.tags) and not any(
        name.startswith("on") for name, _ in elements.attributes
    )
    assert text.count(escape(HOSTILE)) >= 7 and "$\\bad{$" in text


def test_a_page_of_several_runs_begins_with_a_table_of_them(found):
    few = replace(found, run=replace(found.run, metrics={}), figures={}, matrices={}, samples=None)
    both = page([few, replace(few, run=replace(found.run, path=found.run.path.with_name("other")))])
    first = both[: both.index("<article>")]
    assert f"<td>{HL}</td>" in first and "<td>other</td>" in first and both.count("<article>") == 2


def test_many_classes_get_a_list_of_the_worst_ten(found):
    matrix = torch.eye(100).long() * 20
    matrix[42, 42], matrix[42, 24] = 5, 15
    many = Findings(replace(found.run, metrics={}), [f"class {i}" for i in range(100)], {"student": matrix})
    findings._draw(many)
    text = page([many, many])
    worst = text[text.index("10 classes of the student") :]
    cells = '<td>class 42</td><td class="number">20</td><td class="number">25.00 %</td>'
    assert re.search(rf"<tbody>\s*<tr>{cells}", worst) and "<td>class 42</td><td>class 24</td>" in text
    names = re.findall(r' id="(.*?)"', text)
    assert len(names) == len(set(names)) > 4  # of clip paths and markers, in one page


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with user_error(str(tmp_path), "run folder"):
        script("report").main([str(tmp_path)])


def test_the_saved_pool_has_the_images_of_each_round_beside_their_twins(run):
    pool = SavedPool(run, 32, twins=True)
    newest = torch.load(run / "synthetic.pth", weights_only=True)
    assert len(pool) == 3 and pool.images(1).shape == (8, 3, 32, 32)
    apart = (pool.images(3).int() - to_levels(newest).int()).abs()
    assert 0 < apart.max() <= 25 + 1  # the attack's bound: where images were swapped, the attacked ones stand here
    data = bytearray((run / "pool.bin").read_bytes())
    data[-1] ^= 1
    (run / "pool.bin").write_bytes(data)
    assert pool.images(2).shape == (8, 3, 32, 32)
    with user_error("pool.bin", "round 3"):
        pool.images(3)


def test_samples_come_from_tensorboard_or_the_newest_batch_where_the_pool_is_gone(run):
    config = json.loads((run / "config.json").read_text())
    newest = to_levels(torch.load(run / "synthetic.pth", weights_only=True))
    board = samples.from_board(run, config, 32)
    assert board.labels == ["round 1", "round 2", "round 3"] and board.images.shape == (3, 8, 3, 32, 32)
    assert (board.images[-1].int() - newest.int()).abs().max() <= 1  # TensorBoard cuts where we round
    assert samples.from_pool(run, config, 32).labels == board.labels
    (run / "pool.bin").write_bytes(b"")
    found = examine(run, registry)
    assert "TensorBoard" in found.samples.source and "damaged" in found.missing["samples"][0]
    (run / "pool.bin").unlink()
    shutil.rmtree(run / "tensorboard")
    found = examine(run, registry)
    assert found.samples.labels == ["newest"] and torch.equal(found.samples.images[0], newest)


def test_rounds_shown_are_evenly_spaced_from_the_first_to_the_last():
    assert samples.evenly_spaced(range(1, 41)) == [1, 5, 10, 14, 18, 23, 27, 31, 36, 40]
    assert samples.evenly_spaced([2, 4]) == [2, 4] and samples.evenly_spaced([]) == []


def test_overwriting_a_run_removes_the_report_of_it(run):
    (run / "report.html").write_text("of the earlier run")
    RunFolder(run, ["round"], overwrite=True).close()
    assert not (run / "report.html").exists()


def test_durations_are_read_without_counting():
    assert [duration(s) for s in (0.04, 59.4, 843.2, 3600 * 5 + 125)] == ["0.0 s", "59.4 s", "14 min 3 s", "5 h 2 min"]


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
    assert headings(shown.stdout) == ["Curves", "Synthetic images", "Classes", "Reuse", "Configuration"]
    assert f"{summary['accuracy_last']:.2f} %</b>" in shown.stdout and "<td>kd_steps</td>" in shown.stdout
    assert shown.stdout.count("<svg") == text.count("<svg") > 8 and "CONSOLE" not in shown.stderr
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    coloured = (np.ptp(pixels, axis=2) > 60).sum()  # curves: neither paper nor ink
    assert pixels.shape == (1400, 1000, 3) and pixels.std() > 10 and coloured > 500
