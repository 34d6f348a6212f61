"""Running the programs inside this process as a user runs them, and a disk that can be filled."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import main
import registry
import train_scratch
from datafree.cli.program import run_program
from datafree.data.specs import TensorImages
from datafree.runs.folder import RunFolder

PROGRAMS = {"main.py": main, "train_scratch.py": train_scratch}
NAME = "anew-digits-resnet20-resnet8"
SMALL = (
    "--epochs 3 --warmup 1 --kd_steps 2 --batch_size 8 --synthesis_batch_size 8 --g_steps 2 --nz 16 --ngf 4 --echo 1"
)
SMALL_SCRATCH = "--model resnet8 --epochs 2 --batch_size 512 --precision fp32"
TINY, TINY_SCRATCH = [*SMALL.split(), "--precision", "fp32"], SMALL_SCRATCH.split()
BEFORE = ROOT / "tests/fixtures/before"  # what the version before wrote
OF_RESNET8 = ["--teacher", "resnet8", "--teacher_path", str(BEFORE / "digits_resnet8.pth")]
# 99.17 %: train_scratch.py --dataset digits --model lenet5_bn --epochs 12 --batch_size 64 --optimizer adam --lr 2e-3
# --weight_decay 0 --precision fp32
LENET = str(ROOT / "tests/fixtures/digits_lenet5_bn.pth")
OF_LENET = ["--teacher", "lenet5_bn", "--teacher_path", LENET, "--student", "lenet5_bn"]
QUICK, FOLDER = [*TINY, *OF_LENET], "anew-digits-lenet5_bn-lenet5_bn"  # half a second with few_digits
COLOUR, COLOUR_FOLDER = [*TINY, *OF_RESNET8], "anew-digits-resnet8-resnet8"  # with blocks and stages, in a second
SCRATCH_FOLDER = "scratch-digits-resnet8"


def script(name):
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(line, program=main, where=ROOT):
    """Exit status, stdout, stderr; started from that folder."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    torch.manual_seed(0)  # as in a new process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, line)])
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        patch.chdir(where)
        try:
            run_program(program.main)
        except SystemExit as left:
            status = left.code or 0
    return status, stdout.getvalue(), stderr.getvalue()


def finished(line, program=main, where=ROOT):
    """What it printed, of a run that must come to its end."""
    status, stdout, stderr = run(line, program, where)
    assert (status, stderr) == (0, ""), stderr
    return stdout


def error_of(line, program=main, where=ROOT):
    """The one line of a run that must fail the way a user sees it."""
    status, _, stderr = run(line, program, where)
    assert status == 2, (status, stderr)
    assert stderr.startswith("error: ") and stderr.endswith("\n") and " — " in stderr, stderr
    assert stderr.count("\n") == 1 and stderr.count("error:") == 1 and "Traceback" not in stderr, stderr
    return stderr


def tree(folder):
    """Everything below: name, and content where it is a file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in Path(folder).rglob("*")
    }


def rows_of(folder):
    """Of metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def json_of(path):
    return json.loads(path.read_text())


def epochs_of(folder):
    return [row["epoch"] for row in rows_of(folder)]


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """In a module that imports this, the digits have 64 images a split."""
    digits = registry.DATASETS["digits"]

    def load(*how):
        images = digits.load(*how)
        return TensorImages(images.images[:64], images.labels[:64])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.DATASETS, "digits", dataclasses.replace(digits, load=load))
        yield


@pytest.fixture
def at_epoch(monkeypatch):
    """Does something at the end of an epoch, before its state is saved: a signal, unless told otherwise."""

    def arrange(epoch, act=lambda folder: os.kill(os.getpid(), signal.SIGTERM)):
        record = RunFolder.record

        def record_and_act(self, row, line):
            record(self, row, line)
            if row["epoch"] == epoch:
                act(self)

        monkeypatch.setattr(RunFolder, "record", record_and_act)

    return arrange


class Crash(BaseException):
    """Ends a run as nothing in it expects."""


class SmallDisk:
    """A tmpfs of a few MB: a real file system that is really full."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        if not self.mount("-t", "tmpfs", "-o", "size=64m", "tmpfs"):
            pytest.skip("this machine lets nobody mount a tmpfs")

    def mount(self, *options):
        return subprocess.run(["mount", *options, self.path], capture_output=True, check=False).returncode == 0

    def leave(self, free):
        """Fills it up to so many bytes."""
        with contextlib.suppress(OSError), open(self.path / "ballast", "wb", buffering=0) as ballast:
            while ballast.write(bytes(4096)):
                pass
        os.truncate(self.path / "ballast", max(0, (self.path / "ballast").stat().st_size - free) // 4096 * 4096)

    def free(self):
        (self.path / "ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def without_privileges(folder):
    """Within, permissions count for root as well; pytest's folders above that one are open to all."""
    above = [folder, *(parent for parent in folder.parents if str(parent).startswith("/tmp/"))]
    kept, root = {each: each.stat().st_mode for each in above}, os.geteuid() == 0
    for each in above:
        each.chmod(0o755)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for each, mode in kept.items():
            each.chmod(mode)
