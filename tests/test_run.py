"""The bookkeeping of a loop: when it saves, what a stop leaves, and that a number gone bad ends it in time."""

import os
import signal

import pytest
import torch
from conftest import FP32, user_error
from programs import epochs_of, json_of
from torch import nn

from datafree.engine.evaluation import Score
from datafree.engine.readings import Readings
from datafree.errors import NotFiniteError, not_finite_in
from datafree.runs import run as runs
from datafree.runs import stopping
from datafree.runs.folder import RunFolder, read_status
from datafree.runs.run import Run
from datafree.runs.snapshot import Snapshot
from datafree.runs.stopping import Stopped, StopRequests


class Loop:
    """Adds 1 to a weight an epoch, and notes when its state was saved."""

    def __init__(self, path, act=lambda epoch, run: None):
        self.path, self.act, self.saved, self.net = path, act, [], nn.Linear(1, 1)

    def state_dict(self):
        self.saved.append(self.run.progress.epoch)
        return self.net.state_dict()

    def load_state_dict(self, state):
        self.net.load_state_dict(state)

    def __call__(self, save_every="1", epochs=8, resume=False):
        nn.init.zeros_(self.net.weight)
        with RunFolder(self.path, resume=resume) as folder, StopRequests() as stop:
            snapshot = Snapshot(self.path, {"loop": self})
            self.run = run = Run(folder, snapshot, epochs, FP32, save_every, stop, "do this")
            for epoch in run.epochs():
                with torch.no_grad():
                    self.net.weight += 1
                run.lap("work")
                score = Score(accuracy=float(10 - abs(epoch - 4)))
                run.scored(score, {"epoch": epoch, "state_dict": {"w": self.net.weight}})
                self.act(epoch, run)
                run.record(epoch, {"accuracy": score.accuracy})
                run.save()
            run.finish({"agreement": 50.0})
        return self


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def weight_in(path):
    return torch.load(path / "last.pth", weights_only=True)["loop"]["weight"].item()


@pytest.mark.parametrize(
    ("save_every", "seconds_an_epoch", "saved"),
    [("1", 0, [*range(1, 9)]), ("3", 0, [3, 6, 8]), ("9", 0, [8]), ("10s", 4, [3, 6, 8]), ("1s", 4, [*range(1, 9)])],
)
def test_the_state_is_saved_as_often_as_asked_and_at_the_end(path, monkeypatch, save_every, seconds_an_epoch, saved):
    now = [0.0]
    monkeypatch.setattr(RunFolder, "seconds", lambda folder: now[0])

    def pass_time(epoch, run):
        now[0] += seconds_an_epoch

    assert Loop(path, pass_time)(save_every).saved == saved
    assert epochs_of(path) == [str(epoch) for epoch in range(1, 9)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_between_two_saves_saves_and_says_how_to_go_on(path, number):
    def stop(epoch, run):
        if epoch == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="stopped after epoch 4; go on: do this") as stopped:
        Loop(path, stop)("3")
    status = read_status(path)
    assert stopped.value.signal_number == number
    assert (status["state"], status["epoch"], status["epochs"]) == ("stopped", 4, 8) and weight_in(path) == 4
    before, resumed = torch.load(path / "last.pth", weights_only=True)["progress"], Loop(path)("3", resume=True)
    assert resumed.saved == [7, 8] and weight_in(path) == 8 and epochs_of(path)[3:5] == ["4", "5"]
    assert resumed.run.progress.best == Score(10.0)  # of epoch 4
    assert resumed.run.progress.seconds["seconds_work"] > before["seconds"]["seconds_work"]
    assert json_of(path / "summary.json")["seconds_total"] > before["seconds_total"]


@pytest.mark.parametrize(("same", "error", "saved"), [(-1, KeyboardInterrupt, 1), (60, Stopped, 2)])
def test_a_second_signal_interrupts_at_once_unless_it_comes_with_the_first(path, monkeypatch, same, error, saved):
    def stop(epoch, run):
        if epoch == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stopping, "SAME", same)
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a script
    with pytest.raises(error):
        Loop(path, stop)()
    assert weight_in(path) == saved and signal.getsignal(signal.SIGINT) is before


def test_the_status_through_the_life_of_a_run(path):
    seen = []

    def look(epoch, run):
        seen.append((read_status(path)["state"], read_status(path)["epoch"]))

    Loop(path, look)("2", epochs=4)
    assert seen == [("running", 0), ("running", 0), ("running", 2), ("running", 2)]
    status = read_status(path)
    assert (status["state"], status["epoch"], status["process"]) == ("finished", 4, os.getpid())


def test_best_is_the_first_of_the_highest_score_and_last_the_last_and_both_are_written_with_the_state(path):
    there = []

    def look(epoch, run):
        there.append((path / "best.pth").exists())

    Loop(path, look)("3")
    assert there == [False] * 3 + [True] * 5
    last, best = (torch.load(path / name, weights_only=True) for name in ("student_last.pth", "best.pth"))
    assert (last["epoch"], last["accuracy"], best["epoch"], best["accuracy"]) == (8, 6.0, 4, 10.0)
    assert (last["state_dict"]["w"].item(), best["state_dict"]["w"].item()) == (8.0, 4.0)
    summary = json_of(path / "summary.json")
    assert (summary["accuracy_last"], summary["accuracy_best"], summary["epochs"]) == (6.0, 10.0, 8)
    assert summary["seconds_total"] >= summary["seconds_work"] > 0


def test_an_epoch_that_was_not_recorded_is_the_loops_mistake(path):
    with RunFolder(path) as folder, pytest.raises(RuntimeError, match="epoch 1 was not recorded"):
        list(Run(folder, Snapshot(path, {}), 2, FP32).epochs())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_or_a_weight_that_is_not_finite_ends_the_run_by_its_name_and_keeps_the_state_before(path, value):
    for bad, words in (
        ("term", f"loss_a became {value} in epoch 2, step 3"),
        ("weight", f"net's weight became {value}"),
    ):

        def spoil(epoch, run, bad=bad):
            readings, net = Readings(), nn.Linear(1, 1)
            for step in range(4):
                spoilt = bad == "term" and (epoch, step) == (2, 2)
                readings.add({"loss_a": torch.tensor(value if spoilt else 1.0)})
            if bad == "weight" and epoch == 2:
                nn.init.constant_(net.weight, value)
            assert run.terms(epoch, readings, {"net": net}, 4) == {"loss_a": 1.0}

        with user_error(words, "lower --lr"):
            Loop(path / bad, spoil)()
        status = read_status(path / bad)
        assert status["state"] == "failed" and words in status["message"] and weight_in(path / bad) == 1


@pytest.mark.parametrize(
    ("term", "flag"),
    [
        *(("loss_kd", "--lr,"), ("student's conv1.weight", "--lr,"), ("model's fc.bias", "--lr,"), ("loss", "--lr,")),
        *(("loss_bn", "--lr_g,"), ("g1's l1.0.weight", "--lr_g,"), ("d's layers", "--lr_g,"), ("loss_gap", "--lr_p,")),
        *(("P's head", "--lr_p,"), ("loss_adv", "--lr or --lr_g,"), ("loss_generator", "--lr or --lr_g,")),
        ("loss_of_my_method", "--lr or --lr_g,"),
    ],
)
def test_what_became_nan_names_the_rate_to_lower(term, flag):
    with user_error(f"lower {flag}"), not_finite_in("epoch 1"):
        raise NotFiniteError(term, float("nan"), 2)


def test_what_is_nan_before_anything_is_trained_is_the_teachers():
    with user_error("loss_oh became nan in epoch 1, step 1", "teacher"), not_finite_in("epoch 1"):
        raise NotFiniteError("loss_oh", float("nan"), 1)


def test_the_line_of_an_epoch_has_losses_scores_and_all_seconds():
    row = {"epoch": 7, "loss_bn": 0.5, "accuracy": 12.345, "agreement": None, "seconds_a": 1.0, "seconds_b": 0.55}
    assert runs.epoch_line(row, 120) == "epoch   7/120  bn 0.500  accuracy 12.35 %  1.6 s"
