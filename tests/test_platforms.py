"""What a system, a file system or a terminal lacks is done without; each is simulated by taking it away."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT, user_error
from programs import FOLDER, QUICK

from datafree import files
from datafree.data.placement import Placement
from datafree.runs.folder import RunFolder
from datafree.runs.stopping import SIGNALS, StopRequests


def failing(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


# Files


@pytest.mark.parametrize(("call", "number"), [("chmod", errno.EPERM), ("fsync", errno.ENOSYS), ("fsync", errno.EINVAL)])
def test_a_file_is_written_on_a_file_system_without_permissions_or_synchronisation(call, number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, call, failing(number))
    files.save({"a": torch.arange(3)}, tmp_path / "a.pth")
    assert torch.equal(files.load(tmp_path / "a.pth")["a"], torch.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_permissions_are_what_the_users_mask_leaves(tmp_path, monkeypatch):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        monkeypatch.setattr(files, "UMASK", mask)
        files.save({"a": 1}, tmp_path / "a.pth")
        assert (tmp_path / "a.pth").stat().st_mode & 0o777 == mode


def test_a_disk_that_turns_out_full_while_waiting_for_it_is_still_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with user_error("cannot write", "No space left"):
        files.save({"a": 1}, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_program_has_open_for_a_moment_is_replaced_on_windows_after_a_pause(tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def refuse(*paths):
        calls.append(paths)
        return failing(errno.EACCES)() if len(calls) < 3 else replace(*paths)

    monkeypatch.setattr(os, "replace", refuse)
    with user_error("cannot write", "Permission denied"):
        files.save({"a": 1}, tmp_path / "a.pth")
    assert len(calls) == 1  # elsewhere it is what it says
    calls.clear()
    monkeypatch.setattr(files, "PAUSES", (0, 0, 0))
    files.save({"a": 2}, tmp_path / "a.pth")
    assert files.load(tmp_path / "a.pth") == {"a": 2} and len(calls) == 3


@pytest.mark.parametrize("lacks", ["the call", "it on this file system"])
def test_room_for_a_pool_is_taken_by_writing_where_it_cannot_be_reserved(lacks, tmp_path, monkeypatch):
    if lacks == "the call":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    room = Placement(torch.device("cpu"), "file", tmp_path).empty((3, 2**20 + 7), torch.uint8)
    room.fill_(7)
    assert room.shape == (3, 2**20 + 7) and (room == 7).all() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["my run é", "日本 100%", 'it\'s "quoted"', "-x", "a\nb"])
def test_a_run_root_may_have_any_name_that_is_text(name, tmp_path):
    with RunFolder(tmp_path / name / "run") as folder:
        folder.start()
        folder.record({"epoch": 1, "loss": 1.0}, "epoch 1")
    assert (tmp_path / name / "run/metrics.csv").read_text().splitlines()[1].startswith("1,")


def test_a_name_that_is_no_text_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff")
    with user_error("bad\udcff/run is not in UTF-8", "LC_ALL=C.UTF-8"):
        RunFolder(path / "run")
    assert not path.exists()


# Terminal


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_was_closed_is_no_reason_to_end_and_the_log_goes_on(tmp_path, monkeypatch):
    with RunFolder(tmp_path / "run") as folder:
        folder.log("before")
        monkeypatch.setattr(sys, "stdout", Gone())
        folder.log("after")
        monkeypatch.undo()
    assert (tmp_path / "run/log.txt").read_text() == "before\nafter\n"


def status_with(closed, *line):
    """Of Python with these streams closed."""
    command = ["bash", "-c", f'exec "$@" {closed}', "-", sys.executable, *map(str, line)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600, check=False).returncode


@pytest.mark.slow
def test_a_program_with_closed_streams_leaves_with_its_status():
    code = "from datafree.cli.program import run_program as r; from datafree.errors import UserError as E\n"
    mistake = code + "def main(argv): raise E('a', 'b')\nr(main)"
    for closed in (">&-", "<&- 2>&-"):
        assert status_with(closed, "-c", code + "r(lambda argv: print(1))") == 0
        assert status_with(closed, "-c", mistake) == 2


@pytest.mark.slow
def test_a_run_with_no_streams_at_all_ends_well_and_prints_into_none_of_its_files(tmp_path):
    assert status_with("<&- >&- 2>&-", "main.py", *QUICK, "--run_root", tmp_path) == 0
    assert (tmp_path / FOLDER / "log.txt").read_text().splitlines()[-1].startswith("finished")
    for file in (tmp_path / FOLDER).glob("*.pth"):
        torch.load(file, weights_only=True)


# Signals


def test_outside_the_main_thread_a_run_goes_without_signals():
    failures = []

    def work():
        try:
            with StopRequests() as stop:
                assert stop.received is None
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_a_closed_terminal_stops_a_run_unless_it_was_started_to_outlive_it():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopRequests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with StopRequests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_listened_before_listens_again_even_where_that_was_no_python(monkeypatch):
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP} == set(SIGNALS)
    before, stop = signal.getsignal(signal.SIGUSR1), StopRequests()
    with stop:
        stop._before[signal.SIGUSR1] = None  # as signal.signal says of a handler in C
    try:
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)
