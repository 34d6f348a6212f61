"""Seconds to a mark: when it counts as reached, and that a run is watched and stopped."""

import shlex
import subprocess
import sys

import pandas as pd
import pytest
from programs import ROOT, TINY, json_of

from scripts import speedrun


def test_a_mark_is_reached_where_the_next_evaluation_keeps_it():
    reached = speedrun.reached
    assert reached(["", "96", "94", "", "95", "", "97", "90"], 95, ended=False) == 4
    assert reached(["96", "94", "95"], 95, ended=False) is None and reached(["96", "94", "95"], 95, ended=True) == 2
    assert reached(["96", "94"], 95, ended=True) is None and reached([], 95, ended=True) is None


def test_a_row_that_is_being_written_is_not_read(tmp_path):
    file = tmp_path / "metrics.csv"
    assert speedrun.rows_of(file) == []
    file.write_text("epoch,accuracy\r\n1,50.5\r\n2,6")
    assert speedrun.rows_of(file) == [{"epoch": "1", "accuracy": "50.5"}]


@pytest.mark.slow
def test_runs_are_timed_and_stopped_at_the_mark(tmp_path, capsys):
    flags = "--method kd --epochs 30 --kd_steps 4 --batch_size 16 --precision fp32"
    half_of_chance = "5"
    speedrun.main([half_of_chance, "--flags", flags, "--seeds", "0", "1", "--run_root", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "speedrun.csv")
    assert rows.seed.tolist() == [0, 1] and (rows.seconds >= rows.start).all() and (rows.start > 0.5).all()
    assert (rows.epoch < 20).all() and "±" in capsys.readouterr().out
    (folder,) = tmp_path.glob("*-s1")
    assert json_of(folder / "status.json")["state"] == "stopped"


@pytest.mark.slow
def test_a_run_that_is_wanted_whole_goes_on_after_the_mark(tmp_path):
    """Its first epoch is of warm-up: there is no accuracy in metrics.csv yet."""
    found = speedrun.timed([*TINY, "--run_root", str(tmp_path)], 0, whole=True)
    (folder,) = tmp_path.iterdir()
    assert found["epoch"] == 2 and json_of(folder / "status.json")["state"] == "finished"


@pytest.mark.slow
def test_a_run_that_fails_is_said_in_one_line(tmp_path):
    flags = f"--teacher resnet56 --run_root {shlex.quote(str(tmp_path))}"
    line = [sys.executable, ROOT / "scripts/speedrun.py", "50", "--flags", flags, "--run_root", tmp_path]
    said = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert said.returncode == 2 and said.stderr.startswith("error: ") and "--teacher_path" in said.stderr
    assert said.stderr.count("\n") == 1
