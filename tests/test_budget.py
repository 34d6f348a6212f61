"""Plans by a budget: against counting by hand, without a trace in the run, kept by a resumption."""

import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from conftest import FP32, user_error
from programs import FOLDER, OF_LENET, QUICK, at_epoch, error_of, few_digits, finished, json_of, rows_of, run  # noqa: F401
from test_every_method import NO_TEACHER, folder_in, line

from datafree.engine.costs import Costs
from datafree.errors import UserError
from datafree.runs import budget
from datafree.runs.budget import Prices, Trial, planned
from datafree.runs.snapshot import Snapshot
from registry import METHODS
from scripts.kill_test import differences

PRICES = Prices(warmup=2, synthesis=3, step=0.5, evaluation=7, once=11, saving=0.25)
LENGTH = SimpleNamespace(epochs=40, warmup=4, eval_every=3, rounds=[4, 4, 2])  # a tenth is warm-up
A_ROUND = 4 * 8 + 2 * 8  # teacher passes of QUICK: two iterations, both ways, and two steps
WARMUP, FINISH = 4 * 8, 2 * 4 * 8 + 2


def by_hand(epochs, warmup):
    total = 11
    for epoch in range(1, epochs + 1):
        total += 0.25 + (3 * 2 if epoch <= warmup else 3 * 3 + 10 * 0.5)
        total += 7 if epoch > warmup and (epoch % 3 == 0 or epoch == epochs) else 0
    return total


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (2, 1), (20, 2), (21, 2), (6, 5)])
def test_a_run_costs_the_sum_of_its_parts(epochs, warmup):
    assert PRICES.of(LENGTH, epochs, warmup) == by_hand(epochs, warmup)


@pytest.mark.parametrize(
    ("epoch", "copy", "file", "epochs"), [(14, 0, 1, 3), (14, 0, 21, 3), (14, 2, 21, 3), (14, 7, 21, 3), (1, 1, 2, 100)]
)
def test_a_file_that_is_written_behind_the_run_is_waited_for_by_the_next_one_and_at_the_end(epoch, copy, file, epochs):
    now = written = 0
    for _ in range(epochs):
        now = max(now + epoch, written) + copy
        written = now + file
    prices = Prices(warmup=0, synthesis=0, step=epoch / 10, once=file, saving=copy, writing=file)
    assert prices.of(LENGTH, epochs, 0) == pytest.approx(written)


@pytest.mark.parametrize("amount", [33, 34, 100, 1000, 12345.6])
def test_the_plan_is_the_longest_run_within_the_budget(amount):
    epochs, warmup = planned(amount, "s", PRICES, LENGTH)
    assert warmup == min(round(epochs / 10), epochs - 1)
    assert by_hand(epochs, warmup) <= amount < by_hand(epochs + 1, round((epochs + 1) / 10))


def test_a_budget_of_less_than_an_epoch_is_refused():
    with user_error("the budget of 32 s is less than one epoch takes, 32.2"):
        planned(32, "s", PRICES, LENGTH)


def test_a_budget_that_is_over_before_the_run_begins_is_refused(monkeypatch):
    monkeypatch.setattr(budget, "prices", lambda *_: [(0, 0)] * 7)
    with user_error("the budget of 5 s is less than the ", "s that went before the run begins"):
        budget.plan_within((5, "s"), LENGTH, lambda: None, lambda: None, time.perf_counter() - 7)


def test_a_budget_of_what_a_run_does_not_need_is_refused():
    with user_error("an epoch takes no teacher passes"):
        planned(31, "teacher passes", Prices(0, 0, 0, 0, 5), LENGTH)


def test_a_part_is_tried_until_it_says_something_and_not_in_its_first_call(monkeypatch):
    now, costs, calls = [0.0], Costs(), []
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])

    def work():
        calls.append(1)
        now[0] += 0.9 if len(calls) == 1 else 0.3
        costs.open["teacher_forward"] += 5

    assert Trial(costs, FP32, 1.0)(work) == pytest.approx((0.3, 5)) and len(calls) == 5
    calls.clear()
    assert Trial(costs, FP32, 0.5)(work) == pytest.approx((0.9, 5)) and len(calls) == 1
    assert Trial(costs, FP32, 0.0)(work, 0) == pytest.approx((0.3, 5)) and len(calls) == 2


def test_a_part_that_takes_no_time_is_not_tried_for_ever(monkeypatch):
    now, costs, calls = [0.0], Costs(), []
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(costs, "take", lambda: now.__setitem__(0, now[0] + 0.2) or {})
    assert Trial(costs, FP32, 1.0)(lambda: calls.append(1), 0) == (0, 0) and len(calls) < 6


SHORT = ["--kd_steps", "2", "--batch_size", "8", "--precision", "fp32", *OF_LENET]
PLANS = {  # flags, epochs and warm-up before; epochs and warm-up planned, passes until then, passes of an epoch more
    "aeahl_rg": (QUICK[4:], 3, 1, 6, 2, 2 * WARMUP + 4 * A_ROUND + FINISH, A_ROUND),
    "kd": ([*SHORT, "--method", "kd"], 3, 0, 6, 0, 6 * 16, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", PLANS)
def test_a_plan_by_teacher_passes_is_kept_to_the_pass_and_leaves_no_trace_in_the_run(method, tmp_path):
    flags, *before, epochs, warmup, spent, more = PLANS[method]
    amount, paths = spent + more - 1, []
    for name, (count, first), planning in (
        ("planned", before, ["--budget_teacher_passes", amount]),
        ("told", (epochs, warmup), []),
    ):
        said = finished([*flags, "--epochs", count, "--warmup", first, *planning, "--run_root", tmp_path / name])
        paths += (tmp_path / name).iterdir()
        assert (f"budget {amount} teacher passes: {epochs} epochs, {warmup} of" in said) is bool(planning)
        assert (f"spent {spent}," in said) is bool(planning)
    summary = json_of(paths[0] / "summary.json")
    assert (summary["epochs"], summary["budget"], summary["budget_spent"]) == (epochs, amount, spent)
    assert all("budget" in line or "planning" in line for line in differences(*paths))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in NO_TEACHER])
def test_a_budget_of_passes_is_used_up_by_every_method_but_for_less_than_an_epoch(name, tmp_path, few_digits):  # noqa: F811
    amount = 200
    finished([*line(name), "--budget_teacher_passes", amount, "--run_root", tmp_path])
    summary, rows = (folder_in(tmp_path) / each for each in ("summary.json", "metrics.csv"))
    passes = [float(row["teacher_passes"] or 0) for row in rows_of(rows.parent)]
    spent = json_of(summary)["budget_spent"]
    most = max(after - before for before, after in pairwise([0, *passes]))
    assert spent <= amount < spent + most + 1, (passes, spent)


@pytest.mark.slow
def test_a_plan_by_seconds_says_how_near_it_came_and_a_resumption_keeps_it(tmp_path, at_epoch):  # noqa: F811
    flags = [*QUICK, "--budget_seconds", "8", "--run_root", tmp_path]
    at_epoch(2)
    assert run(flags)[0] == 143
    before = json_of(tmp_path / FOLDER / "config.json")
    assert before["epochs"] > 3 and before["warmup"] == round(before["epochs"] / 3)
    finished([*flags, "--resume"])
    summary = json_of(tmp_path / FOLDER / "summary.json")
    assert summary["epochs"] == before["epochs"] and summary["budget"] == 8
    assert 0 < summary["seconds_planning"] < 8
    spent = summary["seconds_total"] + summary["seconds_planning"]
    assert summary["budget_spent"] == pytest.approx(spent, abs=0.5)
    assert f"spent {summary['budget_spent']:,.0f}," in (tmp_path / FOLDER / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("every", "most"), [("2", 32)])
def test_saving_is_in_the_plan(every, most, tmp_path, monkeypatch, few_digits):  # noqa: F811
    saved = Snapshot.save

    def slow(snapshot):
        time.sleep(0.5)
        saved(snapshot)

    monkeypatch.setattr(Snapshot, "save", slow)
    finished([*QUICK, "--budget_seconds", "8", "--eval_every", "1000", "--save_every", every, "--run_root", tmp_path])
    summary = json_of(tmp_path / FOLDER / "summary.json")
    assert 2 <= summary["epochs"] <= most  # half a second a save
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "behind"), [([], False), (["--save_async"], True)])
def test_a_state_that_is_written_behind_the_run_costs_it_the_copy(flags, behind, tmp_path, monkeypatch, few_digits):  # noqa: F811
    tried, saved = [], Snapshot.save

    def slow(snapshot):
        time.sleep(0.5)
        saved(snapshot)

    def enough(amount, unit, prices, length):
        tried.append(prices)
        raise UserError("enough", "stop here")

    monkeypatch.setattr(Snapshot, "save", slow)
    monkeypatch.setattr(budget, "planned", enough)
    error_of([*QUICK, "--budget_seconds", "20", "--run_root", tmp_path, *flags])
    (found,) = tried
    assert 0 < found.saving < 0.5 < found.writing if behind else found.saving > 0.5 and found.writing == 0


def test_contradicting_and_hopeless_budgets_are_refused():
    both = [*QUICK, "--budget_seconds", "5", "--budget_teacher_passes", "5"]
    assert "exclude each other" in error_of(both)
    assert "is less than one epoch takes" in error_of([*QUICK, "--budget_teacher_passes", "5"])
