"""Running the programs inside this process as a user runs them, and a disk that can be filled."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import resource
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
from datafree.runs.snapshot import Snapshot

PROGRAMS = {"main.py": main, "train_scratch.py": train_scratch}
NAME = "anew-digits-resnet20-resnet8"
SMALL = "--epochs 3 --warmup 1 --kd_steps 2 --batch_size 8 --synthesis_batch_size 8 --g_steps 2 --nz 16 --ngf 4"
SMALL_SCRATCH = "--model resnet8 --epochs 2 --batch_size 512 --precision fp32"
TINY, TINY_SCRATCH = [*SMALL.split(), "--p_width", "4", "--precision", "fp32"], SMALL_SCRATCH.split()
# --p_width is a flag of the hard loss alone; with few_digits and a smaller teacher a run takes half a second
BEFORE = ROOT / "tests/fixtures/before"
QUICK = [*SMALL.split(), "--precision", "fp32", "--teacher", "resnet8", "--teacher_path", BEFORE / "digits_resnet8.pth"]
FOLDER, SCRATCH_FOLDER = "anew-digits-resnet8-resnet8", "scratch-digits-resnet8"
HARD = ["--hl", "--p_width", "4"]


def few(images, count=64):
    """The first of them."""
    return TensorImages(images.images[:count], images.labels[:count])


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """In a module that imports it, the digits have 64 images a split."""
    digits = registry.DATASETS["digits"]
    with pytest.MonkeyPatch.context() as patch:
        small = dataclasses.replace(digits, load=lambda *how: few(digits.load(*how)))
        patch.setitem(registry.DATASETS._entries, "digits", small)
        yield


@pytest.fixture
def signal_after(monkeypatch):
    """Sends this process a signal once the state of that epoch is saved."""

    def arrange(number, epoch):
        save = Snapshot.save

        def save_and_signal(self):
            save(self)
            if self.parts["progress"].epoch == epoch:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Snapshot, "save", save_and_signal)

    return arrange


@pytest.fixture
def stop_after(monkeypatch):
    """Sends this process SIGTERM within that epoch, so that it stops at its end."""

    def arrange(epoch, number=signal.SIGTERM):
        record = RunFolder.record

        def record_and_signal(self, row, line):
            record(self, row, line)
            if row["epoch"] == epoch:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(RunFolder, "record", record_and_signal)

    return arrange
