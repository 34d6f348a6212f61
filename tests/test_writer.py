"""Saving behind the run: what is written is of the moment of saving, in order; failures are told, nothing is lost."""

import threading

import pytest
import torch
from conftest import user_error
from programs import FOLDER, QUICK, Crash, at_epoch, error_of, few_digits, finished, json_of, run  # noqa: F401
from test_resume import POINTS, crash_at
from test_snapshot import add, new_pool, parts

from datafree.errors import UserError
from datafree.runs.folder import RunFolder
from datafree.runs.snapshot import Snapshot
from datafree.runs.writer import Writer
from scripts.kill_test import differences, start, wait

BEHIND = [*QUICK, "--save_async"]
PATIENCE = 60  # seconds


def test_things_are_done_one_after_the_other_while_whoever_gave_them_goes_on():
    done, go = [], threading.Event()

    def first():
        assert go.wait(PATIENCE)
        done.append(threading.current_thread().name)

    with Writer(behind=True) as writer:
        writer.do(first)
        assert done == []
        go.set()
        writer.do(lambda: done.append(len(done)))
        writer.wait()
        assert done[0].startswith("writer") and done[1:] == [1]
        writer.do(lambda: done.append("at the end"))
    assert done[-1] == "at the end"


def test_not_behind_it_is_done_at_once_and_by_no_other_thread():
    threads = []
    with Writer(behind=False) as writer:
        writer.do(lambda: threads.append(threading.current_thread()))
        assert threads == [threading.current_thread()]


def failing(error):
    def fail():
        raise error

    return fail


def test_a_failure_is_raised_once_at_whatever_is_asked_next():
    full = UserError("cannot write x", "free some space")
    with user_error("cannot write x"), Writer(behind=True) as writer:
        writer.do(failing(full))
    with Writer(behind=True) as writer:
        for ask in (writer.wait, lambda: writer.do(list)):
            writer.do(failing(Crash()))
            with pytest.raises(Crash):
                ask()
        writer.do(list)


def test_of_two_failures_the_runs_own_is_told_and_what_was_under_way_is_finished():
    go, done = threading.Event(), []
    with pytest.raises(KeyError), Writer(behind=True) as writer:
        writer.do(lambda: (go.wait(PATIENCE), done.append(1), failing(OSError())()))
        go.set()
        raise KeyError
    assert done == [1]


def test_what_was_taken_is_the_state_of_then_whatever_became_of_it(tmp_path):
    own, pool = parts(1), new_pool()
    snapshot = Snapshot(tmp_path, own, pool)
    add(pool, 4)
    images, weight = pool.rows(0, 4)[0].clone(), own["net"].weight.detach().clone()
    torch.rand(2, generator=own["streams"]["a"])
    write = snapshot.taken()
    drawn = torch.rand(2), torch.rand(2, generator=own["streams"]["a"])
    own["net"].weight.data.zero_()
    own["progress"].generator_loss.append(1.0)
    add(pool, 5)
    write()
    others, restored = parts(2), new_pool()
    Snapshot(tmp_path, others, restored).load()
    assert torch.equal(others["net"].weight, weight) and others["progress"].generator_loss == []
    assert restored.chunks == [4] and torch.equal(restored.rows(0, 4)[0], images)
    assert torch.equal(torch.rand(2), drawn[0])
    assert torch.equal(torch.rand(2, generator=others["streams"]["a"]), drawn[1])
    snapshot.taken()()
    Snapshot(tmp_path, others, restored).load()
    assert restored.chunks == [4, 5] and not others["net"].weight.any()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run that waited for its files."""
    root = tmp_path_factory.mktemp("alone")
    finished([*QUICK, "--run_root", root])
    return root / FOLDER


@pytest.mark.slow
def test_a_run_goes_on_while_its_state_is_written_and_leaves_the_same_files(alone, tmp_path, monkeypatch):
    recorded, states, write, record = [threading.Event() for _ in range(4)], [], Snapshot._write, RunFolder.record

    def write_late(self, own, images):
        epoch = own["progress"]["epoch"]
        assert epoch == 3 or recorded[epoch + 1].wait(PATIENCE)  # of the next epoch, which would wait for this
        states.append((epoch, threading.current_thread() is threading.main_thread()))
        write(self, own, images)

    def note(self, row, line):
        record(self, row, line)
        recorded[row["epoch"]].set()

    monkeypatch.setattr(Snapshot, "_write", write_late)
    monkeypatch.setattr(RunFolder, "record", note)
    finished([*BEHIND, "--run_root", tmp_path])
    assert states == [(1, False), (2, False), (3, False)]
    assert differences(alone, tmp_path / FOLDER) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_while_something_is_written_leaves_a_run_that_goes_on_bit_for_bit(point, alone, tmp_path):
    line, folder = [*BEHIND, "--run_root", tmp_path], tmp_path / FOLDER
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, *POINTS[point])
        run(line)
    assert list(folder.glob(".*.0abc_xyz"))
    finished([*line, "--resume"])
    assert differences(alone, folder) == []


@pytest.mark.slow
def test_a_signal_waits_for_the_state_and_the_run_goes_on_either_way(alone, tmp_path, at_epoch):  # noqa: F811
    at_epoch(2)
    line = [*BEHIND, "--run_root", tmp_path]
    assert run(line)[0] == 143
    status = json_of(tmp_path / FOLDER / "status.json")
    assert (status["state"], status["epoch"]) == ("stopped", 2)
    assert torch.load(tmp_path / FOLDER / "last.pth", weights_only=True)["progress"]["epoch"] == 2
    at_epoch(0)
    finished([*QUICK, "--run_root", tmp_path, "--resume"])
    assert differences(alone, tmp_path / FOLDER) == []


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_state_before_it_is_whole(alone, tmp_path, monkeypatch):
    write = Snapshot._write

    def full(self, own, images):
        if own["progress"]["epoch"] == 2:
            raise UserError(f"cannot write {self.folder / 'last.pth'}: No space left on device", "free some space")
        write(self, own, images)

    line = [*BEHIND, "--run_root", tmp_path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "_write", full)
        assert "No space left on device" in error_of(line)
    folder = tmp_path / FOLDER
    status = json_of(folder / "status.json")
    assert status["state"] == "failed" and "No space left" in status["message"] and status["epoch"] == 1
    finished([*line, "--resume"])
    assert differences(alone, folder) == []


@pytest.mark.slow
def test_several_processes_save_as_ever_and_say_so_once(tmp_path):
    said = tmp_path / "terminal.txt"
    assert wait(start("main.py", [*BEHIND, "--run_root", f"{tmp_path}/run"], said, 2)) == [0, 0], said.read_text()
    assert said.read_text().count("--save_async is for one process") == 1
