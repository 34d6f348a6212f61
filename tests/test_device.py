"""Devices: what there is, what is out of reach and why, and a statistic that not every system has."""

import subprocess
import sys

import pytest
import torch
from conftest import CPU, user_error
from programs import FOLDER, QUICK, few_digits, finished, json_of  # noqa: F401

from datafree.engine import device

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading\n"
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


@pytest.fixture
def machine(monkeypatch):
    """One whose nvidia-smi leaves with that status (None: there is none) and whose PyTorch sees no GPU."""

    def make(status, cuda="12.4", visible=None, says="No CUDA GPUs are available"):
        def run(line, **_):
            if status is None:
                raise FileNotFoundError(line[0])
            return subprocess.CompletedProcess(line, status)

        def init():
            raise RuntimeError(says)

        monkeypatch.setattr(device.subprocess, "run", run)
        monkeypatch.setattr(device, "DEVICE_FILE", device.Path("/none/nvidia0"))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_auto_is_bf16_where_a_gpu_has_it_else_fp16_from_volta_on_else_fp32(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found: capability)
    dtype, reason = device._fastest(torch.device("cuda", 0))
    assert dtype == device.PRECISIONS[precision] and (precision in reason or precision == "fp32")


def test_a_precision_that_was_asked_for_is_taken_and_named():
    for name, dtype in device.PRECISIONS.items():
        compute = device.choose("cpu", name)
        assert (compute.dtype, compute.precision) == (dtype, name)
        with compute.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"cuda": None}, "build of PyTorch without CUDA"),
        ({"cuda": None, "visible": ""}, "build of PyTorch without CUDA"),
        ({"visible": ""}, "CUDA_VISIBLE_DEVICES is empty"),
        ({"visible": "-1"}, "CUDA_VISIBLE_DEVICES is -1"),
        ({"says": TOO_OLD}, "The NVIDIA driver on your system is too old (found version 11040); a driver"),
    ],
)
def test_a_gpu_that_pytorch_does_not_see_is_warned_about_with_the_reason(how, words, machine):
    machine(0, **how)
    (ran, warned) = device.choose().about()
    assert ran.startswith("runs on: cpu") and warned.startswith("warning: ") and words in warned and "\n" not in warned
    assert device.choose("cpu").about()[1:] == []  # asked for
    with user_error("device 'cuda' is not there", words):
        device.choose("cuda")


def test_a_broken_driver_is_warned_about_and_a_machine_without_a_gpu_is_not(machine, tmp_path, monkeypatch):
    machine(9)  # cannot communicate with the driver
    assert len(device.choose().about()) == 2
    for status in (None, 6):  # no such program; no devices were found
        machine(status)
        assert device.choose().about()[1:] == []
        with user_error("'cuda' is not there", "0 GPUs found"):
            device.choose("cuda")
    (tmp_path / "nvidia0").touch()  # in a container without the driver's programs
    monkeypatch.setattr(device, "DEVICE_FILE", tmp_path / "nvidia0")
    assert len(device.choose().about()) == 2


def test_a_gpu_that_can_do_nothing_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda found: "GeForce 710")
    lines = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be\n"

    def ones(*_, **__):
        raise RuntimeError(lines)

    monkeypatch.setattr(torch, "ones", ones)
    with user_error("cuda:0 (GeForce 710) cannot be used: CUDA error: no kernel image", "--device"):
        device._check_works(torch.device("cuda", 0))


def test_peak_memory_is_at_least_what_was_allocated_and_unknown_where_the_system_does_not_tell(monkeypatch):
    x = torch.ones(2**23)  # 32 MiB, touched
    assert device.peak_memory_mb(CPU) > 32 and x.sum() == 2**23
    monkeypatch.setitem(sys.modules, "resource", None)
    assert device.peak_memory_mb(CPU) is None


@pytest.mark.slow
def test_a_run_on_a_system_without_module_resource_ends_well_and_reports_no_memory(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    finished([*QUICK, "--run_root", tmp_path])
    summary = json_of(tmp_path / FOLDER / "summary.json")
    assert summary["peak_memory_mb"] is None and summary["accuracy_last"] is not None
