"""A user's own method, from a file outside the repository: all that the committed one has, and clear mistakes."""

import shutil

import pytest
import torch
from conftest import ROOT, user_error
from programs import OF_LENET, at_epoch, error_of, few_digits, finished, json_of, rows_of, run  # noqa: F401
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
import registry
from datafree.cli.flags import distillation_configs
from datafree.methods.base import Leaving
from datafree.methods.loading import method_class
from datafree.reporting.report import examine, page
from scripts.kill_test import differences

LINE = ["--epochs", "3", "--warmup", "1", "--kd_steps", "2", "--batch_size", "8", "--precision", "fp32", *OF_LENET]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return shutil.copy(ROOT / "tests/fixtures/noise.py", tmp_path_factory.mktemp("elsewhere") / "mine.py")


@pytest.fixture(scope="module")
def own(file):
    return [*LINE, "--method", f"{file}:Noise"]


@pytest.fixture(scope="module")
def alone(own, tmp_path_factory):
    """The folder of a run left alone."""
    root = tmp_path_factory.mktemp("alone")
    finished([*own, "--foo", "2", "--run_root", root])
    return root / "Noise-digits-lenet5_bn-lenet5_bn"


def test_its_flag_is_in_help_and_config_json_with_its_group_and_default(own, alone):
    status, text, _ = run([*own, "--help"])
    assert status == 0 and "--foo PIXELS" in text and "step length; higher is bolder (default: 0.5)" in text
    assert "--g_steps" not in text and "--mode" not in text and "--T T" in text
    config = json_of(alone / "config.json")
    (group,) = (names for title, names in config["groups"].items() if title.startswith("method"))
    assert group == ["synthesis_batch_size", "foo"] and config["method"].endswith("mine.py:Noise")
    assert (config["foo"], config["defaults"]["foo"]) == (2.0, 0.5)


def test_its_terms_reach_metrics_and_tensorboard_and_its_summary_and_file_are_left(alone):
    rows = rows_of(alone)
    assert all(float(row["loss_foo"]) > 0 and 0 < float(row["brightness"]) < 1 for row in rows)
    assert float(rows[-1]["loss_kd"]) > 0 and rows[0]["loss_kd"] == ""
    events = EventAccumulator(str(alone / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss_foo")] == [1, 2, 3]
    start = torch.load(alone / "start.pth", weights_only=True)["start"]
    assert json_of(alone / "summary.json")["brightest"] == start.max().item()
    assert json_of(alone / "summary.json")["images"] == 24 and "noise: done" in (alone / "log.txt").read_text()
    assert json_of(alone / "status.json")["files"] == ["start.pth"]


def test_its_file_is_removed_by_overwrite_and_no_other(own, alone, tmp_path):
    shutil.copytree(alone, tmp_path / alone.name)
    (tmp_path / alone.name / "mine.pth").write_text("mine")
    assert "--pa" in error_of([*own, "--run_root", tmp_path, "--overwrite", "--pa", "1"])
    assert (tmp_path / alone.name / "start.pth").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datafree.loop.loop", lambda *_: None)
        run([*own, "--run_root", tmp_path, "--overwrite"])
    assert not (tmp_path / alone.name / "start.pth").exists() and (tmp_path / alone.name / "mine.pth").exists()


@pytest.mark.slow
def test_its_terms_are_in_the_reports_curves_and_its_flags_in_bold(alone):
    report = examine(alone, registry)
    text = page([report])
    assert not report.missing and "curves/Loss foo" in report.figures and len(report.matrices) == 2
    shares = [line.get_label() for line in report.figures["curves/Shares"].axes[0].get_lines()]
    assert "brightness" in shares and "<td>foo</td><td><b>2</b>" in text


def test_a_flag_of_another_method_is_refused_with_whose_it_is(own):
    message = error_of([*own, "--g_steps", "3"])
    assert "--g_steps belongs to methods aeahl_rg, " in message and "choose such a --method" in message
    assert "unknown flag --foo" in error_of([*LINE, "--foo", "3"])


@pytest.mark.parametrize("targets", [[], ["--hl"], ["--hl", "--no_aea"]], ids=["soft", "attack", "hard"])
@pytest.mark.slow
def test_without_a_pool_the_student_learns_from_samples_whatever_its_targets(file, targets, tmp_path):
    finished([*LINE, "--method", f"{file}:Fresh", *targets, "--run_root", tmp_path])
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("Fresh-hl" if targets else "Fresh-digits") and not (folder / "pool.bin").exists()
    assert json_of(folder / "summary.json")["images"] == 0 and float(rows_of(folder)[-1]["loss_kd"]) > 0
    assert ("attacked_rate" in rows_of(folder)[-1]) == (targets == ["--hl"])


@pytest.mark.parametrize("name", ["Noise", "Fresh"])
@pytest.mark.slow
def test_resumed_after_a_stop_it_ends_as_the_one_left_alone(file, name, tmp_path, at_epoch):  # noqa: F811
    line = [*LINE, "--method", f"{file}:{name}", "--foo", "2"]
    finished([*line, "--run_root", tmp_path / "alone"])
    at_epoch(2)
    assert run([*line, "--run_root", tmp_path])[0] == 143
    (alone,) = (tmp_path / "alone").iterdir()
    finished(["--resume", tmp_path / alone.name])
    assert differences(alone, tmp_path / alone.name) == []


def test_the_example_of_the_documentation_runs(tmp_path):
    line = [*LINE, "--method", "docs/pixels.py:Pixels", "--steps", "2", "--synthesis_batch_size", "8"]
    finished([*line, "--run_root", tmp_path])
    assert float(rows_of(tmp_path / "Pixels-digits-lenet5_bn-lenet5_bn")[-1]["loss_tv"]) > 0


# Mistakes

METHOD = (
    "from dataclasses import dataclass\nfrom datafree.methods.base import *\nfrom datafree.configuration import *\n"
)
WHOLE = METHOD + "class A(Method):\n def synthesize(self, warmup): ...\n def sample(self, count, stream=''): ...\n"
CONFIG = " @dataclass(frozen=True)\n class Config(Method.Config):\n  %s: float = knob(1.0, 'of mine')\n"
FILES = {
    "missing file": (None, "A", "a.py does not exist"),
    "no class named": (WHOLE, "", "a.py:CLASS"),
    "missing class": (WHOLE, "B", "has nothing called 'B'"),
    "no Method": (METHOD + "class A: ...", "A", "is no class on datafree.methods.base.Method"),
    "abstract": (METHOD + "class A(Method):\n def sample(self, count): ...", "A", "lacks synthesize"),
    "raises": ("x = 1\n1 / 0", "A", "cannot be run: ZeroDivisionError: division by zero"),
    "no Python": ("class A(:", "A", "cannot be run: SyntaxError"),
    "leaves": ("raise SystemExit(0)", "A", "cannot be run: SystemExit"),
    "clash with the student": (WHOLE + CONFIG % "lr", "A", "has a flag --lr of its own"),
    "clash with the task": (WHOLE + CONFIG % "teacher", "A", "has a flag --teacher of its own"),
    "clash with a second name": (WHOLE + CONFIG % "epoch", "A", "has a flag --epoch of its own"),
    "clash with config.json": (WHOLE + CONFIG % "groups", "A", "has a flag --groups of its own"),
    "no dataclass": (WHOLE + CONFIG.replace("@dataclass(frozen=True)", "") % "foo", "A", "@dataclass(frozen=True)"),
    "no batch size": (WHOLE, "A", "images_a_round"),
    "a flag that is on": (WHOLE + CONFIG.replace("float", "bool").replace("1.0", "True") % "foo", "A", "no_flip"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_holds_no_method_is_refused_in_one_line(what, tmp_path):
    text, name, words = FILES[what]
    if text is not None:
        (tmp_path / "a.py").write_text(text)
    method = f"{tmp_path}/a.py:{name}" if name else f"{tmp_path}/a.py"
    message = error_of([*LINE, "--method", method, "--run_root", tmp_path / "run"])
    assert words in message and ("clash" not in what or f"method {method}" in message)
    assert not (tmp_path / "run").exists()


def test_a_file_of_the_runs_own_name_is_not_left(file, tmp_path, monkeypatch):
    method = method_class(f"{file}:Noise", registry.METHODS)
    monkeypatch.setattr(method, "finish", lambda self: Leaving(files={"last.pth": {}}))
    monkeypatch.setattr("main.method_class", lambda *_: method)
    message = error_of([*LINE, "--method", f"{file}:Noise", "--run_root", tmp_path])
    assert "leaves a file last.pth, as the run itself does" in message
    (folder,) = tmp_path.iterdir()
    assert torch.load(folder / "last.pth", weights_only=True)  # the state, as it was


def test_an_unknown_name_names_the_known_ones_and_says_how_to_give_a_file():
    message = error_of([*LINE, "--method", "aeahl"])
    assert "aeahl_rg" in message and "FILE.py:CLASS" in message


def test_defaults_of_its_own_go_before_a_data_sets_preset_and_what_is_given_before_them(tmp_path):
    (tmp_path / "a.py").write_text(WHOLE + ' defaults = {"kd_steps": 7, "lr": 0.03}\n')
    (tmp_path / "b.py").write_text(WHOLE + ' defaults = {"kd_stepz": 7}\n')
    _, values, _ = main.command_line(["--method", f"{tmp_path}/a.py:A", "--lr", "0.05"])
    assert (values.kd_steps, values.lr, values.batch_size) == (7, 0.05, 64)  # of the digits: 60, 0.1, 64
    with user_error("has a default for --kd_stepz"):
        main.command_line(["--method", f"{tmp_path}/b.py:A"])


def test_a_clash_of_flags_is_refused_from_python_too(tmp_path):
    (tmp_path / "a.py").write_text(WHOLE + CONFIG % "lr")
    method = method_class(f"{tmp_path}/a.py:A", registry.METHODS)
    with user_error("has a flag --lr of its own"):
        distillation_configs(method, "A", "soft")
