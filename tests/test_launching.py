"""Runs on this machine keep order, slots and dependencies, and leave well; a small program stands in for main.py."""

import os
import signal
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import launching
import pytest
import task
from conftest import user_error
from task import Job, Process

from datafree.data.folder_images import usable_processors
from datafree.runs.stopping import Stopped

PROGRAM = """
import os, pathlib, signal, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))  # --tag and --run_root among them
root = pathlib.Path(words["--run_root"])
log = lambda what: open(root / "log.txt", "a").write(
    f"{what} {words['--tag']} {os.environ.get('GPU')} {os.getppid()}\\n"
)
def leave(number, frame):
    while "--leave_after" in words and not os.path.exists(words["--leave_after"]):
        time.sleep(0.02)
    log("saved")
    sys.exit(130)
before = (root / "log.txt").read_text() if (root / "log.txt").exists() else ""
signal.signal(signal.SIGINT, leave)
log("begun")
if f"saved {words['--tag']} " not in before:
    time.sleep(float(words.get("--sleep", 0)))
if "--kill" in words:
    os.kill(os.getpid(), signal.SIGKILL)
if "--fail" in words:
    sys.exit("first line\\nerror: " + words["--fail"])
log("ended")
(root / words["--tag"]).mkdir()
(root / words["--tag"] / "summary.json").write_text("{}")
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Runs jobs; returns the failures, the folders in the order of their ends, and the lines of what happened."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(task, "PROGRAM", tmp_path / "program.py")

    def placed(each):
        flags = [*each.flags, "--tag", each.name, "--run_root", str(tmp_path)]
        return Job(each.name, flags, tmp_path / each.name, each.after)

    def run(plan, slots=({},), executor="local", keep_going=False, at_once=None, options=None):
        monkeypatch.setattr(launching, "slots", lambda *_: slots)
        args = Namespace(executor=executor, name="test", run_root=tmp_path, jobs=at_once, slurm=options)
        folders, jobs = [], [placed(each) for each in plan]
        try:
            failed = launching.run_jobs(jobs, args, lambda job: folders.append(job.folder), keep_going)
        except Stopped as stopped:
            failed = stopped
        return failed, folders, (tmp_path / "log.txt").read_text().splitlines()

    return run


def lines_of(tmp_path, what, count):
    """Of the log, as soon as so many of them begin with that word."""
    for _ in range(1200):
        lines = (tmp_path / "log.txt").read_text().splitlines() if (tmp_path / "log.txt").exists() else []
        if sum(line.startswith(what) for line in lines) >= count:
            return lines
        time.sleep(0.05)
    raise TimeoutError(what)


def job(name, *flags, after=None):
    return Job(name, flags, Path(name), after)


def test_jobs_run_in_order_one_a_slot(queue, tmp_path):
    failed, folders, lines = queue([job("a"), job("b"), job("c")])
    assert failed == {} and folders == [tmp_path / name for name in "abc"]
    assert [line.split()[:2] for line in lines] == [[what, name] for name in "abc" for what in ("begun", "ended")]


def test_a_job_waits_for_the_one_it_needs_while_others_pass(queue):
    _, folders, _ = queue([job("late", after="first"), job("free"), job("first")])
    assert [folder.name for folder in folders] == ["free", "first", "late"]


@pytest.mark.slow
def test_slots_work_at_once_each_with_its_variables(queue):
    jobs = [job(name, "--sleep", "0.3") for name in "abcd"]
    _, folders, lines = queue(jobs, [{"GPU": "5"}, {"GPU": "7"}])
    assert len(folders) == 4 and {line.split()[0] for line in lines[:2]} == {"begun"}
    assert [line.split()[2] for line in lines if line.startswith("begun")].count("5") == 2
    assert {line.split()[2] for line in lines} == {"5", "7"}


def test_a_failure_ends_what_waits_for_it_and_nothing_else(queue):
    jobs = [job("a", "--fail", "no teacher"), job("b", after="a"), job("c", after="b"), job("d")]
    failed, folders, lines = queue(jobs, keep_going=True)
    assert [folder.name for folder in folders] == ["d"]
    assert failed["a"].endswith("error: no teacher") and "--tag a" in failed["a"] and "\n" not in failed["a"]
    assert "waits for a" in failed["b"] and "waits for b" in failed["c"] and not any(" b " in line for line in lines)


def test_without_keep_going_nothing_is_begun_after_a_failure(queue):
    failed, folders, _ = queue([job("a", "--fail", "x"), job("b")])
    assert list(failed) == ["a"] and folders == []


def test_a_signal_is_passed_on_once_and_the_queue_leaves_when_the_runs_have(queue, tmp_path):
    def interrupt():
        lines_of(tmp_path, "begun", 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    stopped, folders, lines = queue([job(name, "--sleep", "60") for name in "abc"], [{}, {}])
    thread.join()
    assert isinstance(stopped, Stopped) and stopped.signal_number == signal.SIGTERM and folders == []
    assert sorted(line.split()[1] for line in lines if line.startswith("saved")) == ["a", "b"]
    assert len(lines) == 4


def test_waiting_for_a_job_that_is_not_there_is_an_error_and_not_for_ever(queue):
    with pytest.raises(ValueError, match="nobody"):
        queue([job("a", after="nobody")])


def test_a_failure_without_a_word_is_told_by_the_status_of_its_run(queue, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text('{"state": "running", "epoch": 7}')
    failed, _, _ = queue([job("a", "--kill", "itself")])
    assert failed["a"].endswith("ended in epoch 7, running")


def test_a_run_that_is_asked_to_stop_before_it_has_begun_is_told_once_it_has(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
    process = Process([sys.executable, "-c", "import time; time.sleep(60)"])
    process.stop()
    assert process().status


def test_runs_that_share_the_processors_share_their_threads_unless_the_user_has_said_how_many(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = [Job("a", ["--device", "cpu"], Path("a"))]

    def threads(**more):
        return [slot.get("OMP_NUM_THREADS") for slot in launching.slots(jobs, Namespace(slurm=None, **more))]

    assert threads(jobs=None, at_once=1) == [None] and threads(jobs=None, at_once=None) == [None]
    assert threads(jobs=2, at_once=1) == [str(max(1, usable_processors() // 2))] * 2
    assert threads(jobs=10**4, at_once=1)[0] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(jobs=2, at_once=1) == [None, None]


def test_options_of_slurm_without_slurm_are_a_mistake():
    with user_error("--executor slurm"):
        launching.slots([], Namespace(slurm={"partition": "gpu"}))


def test_the_folder_of_a_run_is_worked_out_from_its_flags(tmp_path):
    flags = f"--mode anew --teacher wrn16_1 --hl --tag t --run_root {tmp_path}".split()
    assert launching.folder_of(flags) == tmp_path / "anew-hl-digits-wrn16_1-resnet8-t"


def test_a_run_that_a_script_starts_under_torchrun_is_a_run_of_its_own(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert "TORCHELASTIC_RUN_ID" not in task.Process(["python"], {"A": "1"}).environment
    assert task.Process(["python"], {"A": "1"}).environment["A"] == "1"
