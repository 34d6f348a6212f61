"""A run's folder: one process at a time, nothing of anybody else's removed, and numbers that go bad stop it in time."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from datafree.attack import Attack
from datafree.bn_statistics import BNStatistics
from datafree.distillation import Distillation
from datafree.run_folder import RunFolder
from datafree.snapshot import Snapshot
from datafree.synthesis import reusable_generator
from datafree.training import Training
from programs import NAME, TINY, TINY_SCRATCH, error_of, finished, run, tree

import main
import train_scratch
from datafree import distillation, run_folder
from datafree.errors import UserError
from scripts.kill_test import differences

COLUMNS = ["round", "loss", "accuracy"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    finished([*TINY, "--hl", "--run_root", root])
    return root / NAME.replace("anew", "anew-hl")


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of a folder."""
    started = []
    hold = (
        "import fcntl, sys, time; lock = open(sys.argv[1] + '/.lock', 'a'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(600)"
    )

    def start(folder):
        folder.mkdir(parents=True, exist_ok=True)
        started.append(subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


# One process


@pytest.mark.parametrize("how", [[], ["--resume"], ["--overwrite"]])
@pytest.mark.parametrize("program", [main, train_scratch])
def test_a_folder_in_use_is_refused_at_once_and_untouched(program, how, holder, tmp_path):
    name, flags = (NAME, TINY) if program is main else ("scratch-digits-resnet8", [*TINY_SCRATCH, "--output", "t.pth"])
    holder(tmp_path / name)
    (tmp_path / name / "best.pth").write_bytes(b"of the other run")
    before = tree(tmp_path)
    assert "in use by another run" in error_of([*flags, "--run_root", tmp_path, *how], program)
    assert tree(tmp_path) == before


def test_a_killed_process_holds_no_lock(holder, tmp_path):
    process = holder(tmp_path / NAME)
    process.kill()
    process.wait()
    RunFolder(tmp_path / NAME, COLUMNS).close()


def test_a_folder_is_free_again_after_a_refusal_and_after_the_run(tmp_path):
    RunFolder(tmp_path / "run", COLUMNS).close()
    for _ in range(2):
        with pytest.raises(UserError, match="not empty"):
            RunFolder(tmp_path / "run", COLUMNS)
    with RunFolder(tmp_path / "run", COLUMNS, resume=True), pytest.raises(UserError, match="in use"):
        RunFolder(tmp_path / "run", COLUMNS, resume=True)
    RunFolder(tmp_path / "run", COLUMNS, overwrite=True).close()


def test_a_file_system_without_locks_is_no_reason_not_to_run(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    RunFolder(tmp_path / "run", COLUMNS).close()


# What is removed


def test_overwrite_removes_all_that_a_run_wrote_and_nothing_else(alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    (folder / ".best.pth.0abc_xyz").write_bytes(b"half")
    mine = [".best.pth.swp", "best.pth.bak", "last.pth~", "notes.txt", "tensorboard/notes", "plots/metrics.csv"]
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    RunFolder(folder, COLUMNS, overwrite=True).close()
    left = {name for name, content in tree(folder).items() if content is not None}
    assert left == {*mine, ".lock", "log.txt", "metrics.csv"}  # the last two opened anew
    assert all((folder / name).read_text() == "mine" for name in mine)
    assert (folder / "metrics.csv").read_bytes() == (folder / "log.txt").read_bytes() == b""


@pytest.mark.parametrize("name", ["last.pth", "summary.json", "pool.bin", "metrics.csv"])
@pytest.mark.parametrize("how", ["overwrite", "resume"])
def test_a_folder_where_a_file_goes_stops_it_before_anything_is_removed(name, how, alone, tmp_path):
    shutil.copytree(alone, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    before = tree(tmp_path)
    with pytest.raises(UserError, match=f"{name} is a folder"):
        RunFolder(tmp_path / "run", COLUMNS, **{how: True})
    assert tree(tmp_path) == before


def test_a_row_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    with RunFolder(tmp_path / "run", COLUMNS) as folder:
        folder.start()
        folder.record({"round": 1, "loss": 0.5, "accuracy": None}, "one")
        whole = (tmp_path / "run/metrics.csv").read_bytes()
        assert whole == b"round,loss,accuracy\r\n1,0.5,\r\n" and folder.metrics_bytes() == len(whole)

        class Full:
            def write(self, data):
                file.write(data[:2])
                raise OSError(28, "No space left on device")

            def __getattr__(self, name):
                return getattr(file, name)

        file = folder._metrics
        monkeypatch.setattr(folder, "_metrics", Full())
        with pytest.raises(UserError, match="No space left"):
            folder.record({"round": 2, "loss": 0.5, "accuracy": 3.0}, "two")
        assert (tmp_path / "run/metrics.csv").read_bytes() == whole


def test_saving_a_state_costs_what_is_new_and_not_what_is_there(tmp_path):
    from datafree.data.pool import ImagePool

    pool = ImagePool(4000, 32)
    snapshot = Snapshot(tmp_path, {}, pool)
    seconds, written = [], []
    for number in range(40):
        pool.add(torch.rand(100, 3, 32, 32))
        before = time.perf_counter()
        snapshot.save({"round": number})
        seconds.append(time.perf_counter() - before)
        written.append((tmp_path / "last.pth").stat().st_size)
    assert (tmp_path / "pool.bin").stat().st_size == 4000 * 3072
    assert written[-1] - written[0] < 2000  # the state grows by two numbers a round
    assert sorted(seconds[20:])[10] < 3 * sorted(seconds[:20])[10] + 0.01
    again = ImagePool(4000, 32)
    assert Snapshot(tmp_path, {}, again).load() == {"round": 39}
    assert torch.equal(again.columns[0], pool.columns[0])


# Numbers that go bad


def spoil(monkeypatch, owner, name, call, value):
    """That function or method returns a value that is not finite, from that call on."""
    original, calls = getattr(owner, name), []

    def spoilt(*args, **keywords):
        calls.append(1)
        result = original(*args, **keywords)
        return result + value if len(calls) >= call else result

    monkeypatch.setattr(owner, name, spoilt)


# owner and name of what makes the term; the call that is the 2nd step of the 2nd round (of 2 steps; the first warms up)
TERMS = {
    "loss_bn": (BNStatistics, "loss", 4),
    "loss_oh": (reusable_generator, "one_hot_loss", 4),
    "loss_adv": (reusable_generator, "adversarial_loss", 2),
    "loss_gap": (Attack, "train_step", 4),
    "loss_kd": (distillation, "distillation_loss", 2),
    "loss_hard": (distillation, "hard_loss", 2),
}


@pytest.mark.parametrize(("term", "value"), [*((term, "nan") for term in TERMS), ("loss_oh", "inf")])
def test_a_term_that_is_not_finite_stops_the_run_by_its_name_and_keeps_the_last_good_state(
    term, value, alone, tmp_path
):
    line = [*TINY, "--hl", "--run_root", tmp_path]
    with pytest.MonkeyPatch.context() as patch:
        owner, name, call = TERMS[term]
        spoil(patch, owner, name, call, float(value))
        message = error_of(line)
    assert f"{term} became {value}" in message and "in round 2, step 2" in message
    folder = tmp_path / alone.name
    assert torch.load(folder / "last.pth", weights_only=True)["progress"]["round"] == 1
    if term in ("loss_gap", "loss_kd"):  # of either half of a round
        finished([*line, "--resume"])
        assert differences(alone, folder) == []


def spoil_weights(monkeypatch, owner, method, network):
    """After that method, a network has a NaN that no loss has met."""
    original = getattr(owner, method)

    def spoilt(self, *args, **keywords):
        result = original(self, *args, **keywords)
        next(network(self).parameters()).data.view(-1)[-1:] = float("nan")
        return result

    monkeypatch.setattr(owner, method, spoilt)


def test_weights_that_the_last_step_of_a_round_spoilt_are_not_saved(tmp_path, monkeypatch):
    spoil_weights(monkeypatch, Distillation, "run", lambda half: half.student.fc)
    assert "student's fc.weight became nan in round 2" in error_of([*TINY, "--run_root", tmp_path])
    assert torch.load(tmp_path / NAME / "last.pth", weights_only=True)["progress"]["round"] == 1
    assert not (tmp_path / NAME / "student_last.pth").exists()


def test_nor_are_those_of_training_on_real_data(tmp_path, monkeypatch):
    spoil_weights(monkeypatch, Training, "epoch", lambda training: training.model.fc)
    line = [*TINY_SCRATCH, "--run_root", tmp_path, "--output", tmp_path / "t.pth"]
    assert "model's fc.weight became nan in epoch 1" in error_of(line, train_scratch)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_loss_of_training_that_is_not_finite_is_named(tmp_path):
    line = [*TINY_SCRATCH, "--lr", "1e30", "--run_root", tmp_path, "--output", tmp_path / "t.pth"]
    message = error_of(line, train_scratch)
    assert "loss became" in message and "in epoch 1, step" in message and not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("eval_every", ["1", "4"])
def test_a_student_at_chance_after_a_third_of_the_rounds_gives_one_warning_that_names_knobs(eval_every, tmp_path):
    shown = finished(
        [*TINY, "--epochs", "6", "--lr", "1e-9", "--lr_min", "0", "--eval_every", eval_every, "--run_root", tmp_path]
    )
    lines = [line for line in shown.splitlines() if line.startswith("warning")]
    assert len(lines) == 1 and "chance" in lines[0] and "--lr" in lines[0] and "--kd_steps" in lines[0]
    after = shown[: shown.index("warning")].splitlines()[-1].split()[1]
    assert after == {"1": "2/6", "4": "4/6"}[eval_every]


def test_resuming_does_not_warn_again(tmp_path):
    line = [*TINY, "--epochs", "6", "--lr", "1e-9", "--lr_min", "0", "--run_root", tmp_path]
    with pytest.MonkeyPatch.context() as patch:
        save = Snapshot.save

        def save_and_stop(self, progress):
            save(self, progress)
            if progress["round"] == 4:
                os.kill(os.getpid(), 15)

        patch.setattr(Snapshot, "save", save_and_stop)
        assert run(line)[0] == 143
    finished([*line, "--resume"])
    assert (tmp_path / NAME / "log.txt").read_text().count("warning:") == 1


def test_memory_that_is_not_there_in_mid_run_is_one_line_and_the_state_stays(tmp_path, monkeypatch):
    original = Distillation.run

    def run_out(self, pool, steps):
        if len(pool) > 16:
            torch.empty(2**60)
        return original(self, pool, steps)

    monkeypatch.setattr(Distillation, "run", run_out)
    assert "memory" in error_of([*TINY, "--run_root", tmp_path])
    assert torch.load(tmp_path / NAME / "last.pth", weights_only=True)["progress"]["round"] == 2
    assert [row["round"] for row in csv.DictReader((tmp_path / NAME / "metrics.csv").open())] == ["1", "2"]


def test_the_reader_of_the_output_may_leave(tmp_path):
    line = [sys.executable, "main.py", "--dry_run", "--run_root", str(tmp_path)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_resumption_keeps_the_first_config_and_says_what_differs_in_the_environment(tmp_path, capsys):
    first = {"lr": 0.1, "environment": {"torch": "2.6", "threads": "2"}}
    with RunFolder(tmp_path, ["round"]) as folder:
        folder.save_config(first)
    with RunFolder(tmp_path, ["round"], resume=True) as folder:
        folder.save_config(first)
        assert "warning" not in capsys.readouterr().out
        folder.save_config({"lr": 0.1, "environment": {"torch": "2.7", "threads": "2"}})
    assert "torch 2.6 -> 2.7" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text()) == first
    with RunFolder(tmp_path, ["round"], overwrite=True) as folder:
        folder.save_config({"lr": 0.2, "environment": {}})
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.2
