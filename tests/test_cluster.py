"""Arrays, signals and what comes back: with submitit's stand-ins for Slurm, with small ones of its programs, and with
Slurm where there is one; a small program stands in for main.py.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading

import cluster
import pytest
from conftest import user_error
from test_launching import job, lines_of, queue  # noqa: F401 (the last: a fixture)

from datafree.runs.stopping import Stopped

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Slurm is for Linux")
SLURM = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0
PLAN = [job("b", after="a"), job("a"), job("bad", "--fail", "no teacher"), job("c", after="bad"), job("d", after="c")]


@pytest.fixture
def stand_in(monkeypatch):
    """Takes the place of Slurm: submitit's executor of that name."""

    def choose(name):
        monkeypatch.setattr(cluster, "CLUSTER", name)
        monkeypatch.setattr(cluster, "POLL_SECONDS", 0.05)

    return choose


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Slurm's programs: sbatch numbers the jobs from 12 and keeps what it is given, squeue says what it is told to."""

    def write(name, text):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    (tmp_path / "bin").mkdir()
    for name, text in {"srun": "", "squeue": "", "sacct": "", "scontrol": ""}.items():
        write(name, text)
    submit = 'n=$((12 + $(ls {0}/*.sbatch 2>/dev/null | wc -l))); cp "$1" {0}/$n.sbatch; echo Submitted batch job $n'
    write("sbatch", submit.format(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return write


def told(lines):
    return [line.split()[:2] for line in lines]


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "debug"])
def test_a_level_runs_after_the_one_before_and_without_what_failed(name, queue, stand_in, tmp_path):
    stand_in(name)
    failed, folders, lines = queue(PLAN, executor="slurm")
    assert folders == [tmp_path / "a", tmp_path / "b"] and list(failed) == ["bad", "c", "d"]
    assert failed["bad"].endswith("error: no teacher") and "--tag bad" in failed["bad"]
    assert failed["c"].endswith("waits for bad, which failed") and failed["d"].endswith("waits for c, which failed")
    assert told(lines)[-2:] == [["begun", "b"], ["ended", "b"]] and len(lines) == 5


@LINUX
@pytest.mark.slow
def test_before_its_time_is_over_a_run_saves_once_and_is_begun_again(queue, stand_in, tmp_path):
    stand_in("local")

    def end_of_time():
        wrapper = int(lines_of(tmp_path, "begun", 1)[0].split()[3])
        os.kill(wrapper, signal.SIGTERM)  # what preemption sends first
        os.kill(wrapper, signal.SIGUSR2)
        (tmp_path / "both").touch()

    thread = threading.Thread(target=end_of_time)
    thread.start()
    plan = [job("a", "--sleep", "60", "--leave_after", str(tmp_path / "both"))]
    failed, folders, lines = queue(plan, executor="slurm")
    thread.join()
    assert failed == {} and folders == [tmp_path / "a"]
    assert told(lines) == [[what, "a"] for what in ("begun", "saved", "begun", "ended")]


@LINUX
@pytest.mark.slow
def test_a_run_that_slurm_ends_saves_and_is_reported_with_its_log(queue, stand_in, tmp_path):
    stand_in("local")
    end = lambda: os.kill(int(lines_of(tmp_path, "begun", 1)[0].split()[3]), signal.SIGTERM)  # noqa: E731
    thread = threading.Thread(target=end)
    thread.start()
    failed, folders, lines = queue([job("a", "--sleep", "60")], executor="slurm")
    thread.join()
    assert folders == [] and told(lines) == [["begun", "a"], ["saved", "a"]]
    assert "ended from outside; see " in failed["a"] and failed["a"].endswith("_log.err")


def test_a_task_has_left_the_queue_when_two_looks_in_a_row_do_not_find_it(monkeypatch):
    looks = iter([{"12_0"}, {"12_1"}, None, {"12_1"}, set()])
    monkeypatch.setattr(cluster, "in_queue", lambda _: next(looks))
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0)
    departed = cluster.Departed("test")
    assert [departed({"12_0", "12_1"}) for _ in range(5)] == [set(), set(), set(), set(), {"12_0"}]


@LINUX
def test_slurms_signals_do_not_reach_a_run_that_hears_of_them_from_its_task(tmp_path):
    text = "import os, signal; [os.kill(os.getpid(), n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]"
    assert cluster.Task([sys.executable, "-c", text])() == (0, "")


@LINUX
def test_each_level_is_one_array_that_waits_for_the_one_before_and_stays_after_a_signal(
    queue, commands, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cluster.Departed, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or set())
    (tmp_path / "log.txt").touch()
    options = cluster.options("partition=gpu --gpus-per-node=1 exclusive time=2:00:00")
    stopped, folders, lines = queue(PLAN, executor="slurm", at_once=8, options=options)
    assert isinstance(stopped, Stopped) and "scancel 12 13 14" in str(stopped) and folders == lines == []
    first, second, third = ((tmp_path / f"{n}.sbatch").read_text() for n in (12, 13, 14))
    given = ["partition=gpu", "gpus-per-node=1", "time=120", "signal=USR2@300", "job-name=test", "array=0-1%2"]
    for script in (first, second):
        assert all(f"#SBATCH --{option}\n" in script for option in given)
        assert "#SBATCH --exclusive\n" in script and "#SBATCH --requeue\n" in script
    assert "--array" not in third and "--dependency" not in first
    assert "--dependency=afterany:12\n" in second and "--dependency=afterany:13\n" in third
    assert "2 runs as job 12" in capsys.readouterr().out


@LINUX
def test_a_second_call_while_the_first_is_in_the_queue_is_refused_and_so_is_what_slurm_refuses(queue, commands):
    commands("squeue", "echo 7_0; echo 7_1; echo 8")
    with user_error("jobs called test", "scancel 7 8"):
        queue(PLAN, executor="slurm")
    commands("squeue", "")
    commands("sbatch", "echo sbatch: error: invalid partition specified: gqu >&2; exit 1")
    with user_error("invalid partition specified: gqu", "--slurm"):
        queue(PLAN, executor="slurm")


def test_without_submitit_or_slurm_one_line_says_what_is_missing(queue, monkeypatch):
    with user_error("no Slurm here"), monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda _: None)
        queue(PLAN, executor="slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with user_error("needs submitit", "requirements-cluster.txt"):
        queue(PLAN, executor="slurm")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("90", 90), ("90:01", 91), ("24:00:00", 1440), ("2-12", 3600), ("1-02:30", 1590), ("0:00:01", 1), ("0", 1)],
)
def test_a_time_means_what_it_means_to_sbatch(text, wanted):
    assert cluster.minutes(text) == wanted


@pytest.mark.parametrize("text", ["time=soon", "time=1:2:3:4", "time=-1", "time", "array=0-3", "dependency=singleton"])
def test_options_that_the_plan_sets_or_nobody_understands_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cluster.options(text)


@pytest.mark.slow
@pytest.mark.skipif(not SLURM, reason="no Slurm answers here")
def test_slurm_itself_runs_the_levels_and_what_it_queues_again_goes_on(queue, tmp_path):
    def put_back():
        lines_of(tmp_path, "begun s", 1)
        found = subprocess.run(["squeue", "-h", "-n", "test", "-t", "R", "-o", "%A"], capture_output=True, text=True)
        for number in found.stdout.split():
            subprocess.run(["scontrol", "requeue", number], check=True)

    thread = threading.Thread(target=put_back)
    thread.start()
    failed, folders, lines = queue([job("s", "--sleep", "600"), job("t", after="s")], executor="slurm")
    thread.join()
    assert failed == {} and [folder.name for folder in folders] == ["s", "t"]
    assert told(lines[:4]) == [[what, "s"] for what in ("begun", "saved", "begun", "ended")]
    assert told(lines[4:]) == [["begun", "t"], ["ended", "t"]]
