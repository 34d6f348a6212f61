"""How a program leaves: one line and a status for whatever the user, the machine or a signal did."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.runs.stopping import Stopped


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "line"),
    [
        (raising(UserError("a\nis wrong", "mend it")), 2, "error: a is wrong — mend it"),
        (raising(Stopped(15, "stopped after epoch 3")), 143, "stopped after epoch 3"),
        (raising(KeyboardInterrupt()), 130, "interrupted; what was saved is whole"),
        (raising(KeyboardInterrupt(15)), 143, "interrupted; what was saved is whole"),
        (
            raising(PermissionError(13, "Permission denied", "a/b")),
            2,
            "error: cannot use a/b: Permission denied — check",
        ),
        (raising(MemoryError()), 2, "error: out of memory: no more of it — lower the batch sizes"),
        (lambda argv: torch.empty(2**60), 2, "error: out of memory: "),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(main, status, line, capsys):
    with pytest.raises(SystemExit) as left:
        run_program(main)
    stdout, stderr = capsys.readouterr()
    assert left.value.code == status and stdout == "" and stderr.startswith(line) and stderr.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback():
    for error in (RuntimeError("shapes do not match"), ValueError("x")):
        with pytest.raises(type(error)):
            run_program(raising(error))


@pytest.mark.slow
def test_a_reader_that_left_and_a_terminal_that_is_full_or_knows_no_such_letter_are_no_reason_for_a_traceback():
    code = "from datafree.cli.program import run_program; run_program(lambda argv: print('\\udcff'))"
    pipes = {"cwd": ROOT, "env": {"LC_ALL": "C"}, "stderr": subprocess.PIPE}
    with open("/dev/full", "w") as full:
        started = [subprocess.Popen([sys.executable, "-c", code], stdout=to, **pipes) for to in (subprocess.PIPE, full)]
    started[0].stdout.close()
    left, filled = ((process.communicate()[1], process.returncode) for process in started)
    assert left == (b"", 141)
    assert filled[1] == 2 and filled[0].startswith(b"error: ") and filled[0].count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
@pytest.mark.parametrize("asked", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"MALLOC_MMAP_THRESHOLD_": "131072"}])
def test_memory_that_is_freed_stays_with_the_program_unless_the_environment_says_otherwise(asked):
    code = """if True:
    import resource
    from datafree.cli.program import run_program
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    def main(argv):
        before = faults()
        for _ in range(10):
            bytearray(b"x") * (24 << 20)
        print((faults() - before) * resource.getpagesize() >> 20)
    run_program(main)"""
    how = {"env": os.environ | asked, "capture_output": True, "text": True, "check": True}
    taken_anew = int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, **how).stdout)  # MB, of 240
    assert taken_anew >= 240 if asked else taken_anew < 60
