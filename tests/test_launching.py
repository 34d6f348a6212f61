"""The queue keeps order, slots and dependencies, and leaves well; a small program stands in for main.py."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from programs import script

from datafree.runs.stopping import Stopped

launching = script("launching")
Job, run_queue = launching.Job, launching.run_queue

PROGRAM = """
import os, pathlib, signal, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))  # --tag and --run_root among them
root = pathlib.Path(words["--run_root"])
log = lambda what: open(root / "log.txt", "a").write(f"{what} {words['--tag']} {os.environ.get('GPU')}\\n")
def leave(number, frame):
    log("saved")
    sys.exit(130)
signal.signal(signal.SIGINT, leave)
log("begun")
time.sleep(float(words.get("--sleep", 0)))
if "--kill" in words:
    os.kill(os.getpid(), signal.SIGKILL)
if "--fail" in words:
    sys.exit("first line\\nerror: " + words["--fail"])
log("ended")
"""


@pytest.fixture
def queue(tmp_path):
    """Runs jobs; returns the failures, the folders in the order of their ends, and the lines of what happened."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def placed(each):
        flags = [*each.flags, "--tag", each.name, "--run_root", str(tmp_path)]
        return Job(each.name, flags, tmp_path / each.name, each.after)

    def run(jobs, slots=({},), **how):
        folders = []
        try:
            failed = run_queue(
                [placed(each) for each in jobs], program, slots, lambda job, folder: folders.append(folder), **how
            )
        except Stopped as stopped:
            failed = stopped
        return failed, folders, (tmp_path / "log.txt").read_text().splitlines()

    return run


def job(name, *flags, after=None):
    return Job(name, flags, Path(name), after)


def test_jobs_run_in_order_one_a_slot(queue, tmp_path):
    failed, folders, lines = queue([job("a"), job("b"), job("c")])
    assert failed == {} and folders == [tmp_path / name for name in "abc"]
    assert [line.split()[:2] for line in lines] == [[what, name] for name in "abc" for what in ("begun", "ended")]


def test_a_job_waits_for_the_one_it_needs_while_others_pass(queue):
    _, folders, _ = queue([job("late", after="first"), job("free"), job("first")])
    assert [folder.name for folder in folders] == ["free", "first", "late"]


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
        for _ in range(600):  # until both run
            if (tmp_path / "log.txt").exists() and (tmp_path / "log.txt").read_text().count("begun") == 2:
                break
            time.sleep(0.05)
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


def test_the_folder_of_a_run_is_worked_out_from_its_flags(tmp_path):
    flags = f"--mode anew --teacher wrn16_1 --hl --tag t --run_root {tmp_path}".split()
    assert launching.folder_of(flags) == tmp_path / "anew-hl-digits-wrn16_1-resnet8-t"
