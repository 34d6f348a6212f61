"""Devices: what there is, what is out of reach and why, and a statistic that not every system has."""

import subprocess
import sys

import pytest
import torch
from conftest import CPU, user_error
from programs import FOLDER, QUICK, few_digits, finished, json_of  # noqa: F401

from datafree.engine import device
from datafree.engine.readings import Stopwatch

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
        ({"visible": "7"}, "No CUDA GPUs are available (CUDA_VISIBLE_DEVICES is 7)"),
        ({"says": TOO_OLD, "visible": "0"}, "too old (found version 11040) (CUDA_VISIBLE_DEVICES is 0); a driver"),
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


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("bf16", True)])
def test_fp32_on_a_gpu_is_fp32_and_the_gpu_that_was_named_becomes_the_current_one(precision, tf32, monkeypatch):
    current, products = [], []
    found = torch.device("cuda", 1)
    monkeypatch.setattr(device, "_device", lambda name: found)
    monkeypatch.setattr(device, "_check_works", lambda found: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", products.append)
    for name in ("allow_tf32", "benchmark"):  # set again when the test ends
        monkeypatch.setattr(torch.backends.cudnn, name, not tf32)
    device.choose("cuda:1", precision)
    assert current == [found] and products == ["high" if tf32 else "highest"]
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_a_gpu_that_can_do_nothing_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda found: "GeForce 710")
    lines = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be\n"

    def ones(*_, **__):
        raise RuntimeError(lines)

    monkeypatch.setattr(torch, "ones", ones)
    with user_error("cuda:0 (GeForce 710) cannot be used: CUDA error: no kernel image", "--device"):
        device._check_works(torch.device("cuda", 0))


@pytest.fixture
def gpus(machine, monkeypatch):
    """Sets what PyTorch says of Intel's and Apple's GPUs; those that are there work. NVIDIA has none here."""
    machine(None)

    def have(xpu=0, mps=False):
        monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu > 0)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: xpu)
        monkeypatch.setattr(torch.xpu, "set_device", lambda found: None)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(device, "_check_works", lambda found: None)

    return have


def test_a_gpu_of_intel_or_apple_is_taken_where_it_is_named_and_called_untested(gpus):
    gpus(xpu=2, mps=True)
    for name, found, what in (
        ("xpu", "xpu:0", "xpu:0, bf16 autocast, channels_last"),
        ("xpu:1", "xpu:1", "xpu:1, bf16 autocast, channels_last"),
        ("mps", "mps:0", "mps:0, fp32, default memory order"),
    ):
        compute = device.choose(name)
        ran, warned = compute.about()
        assert str(compute.device) == found and ran.startswith(f"runs on: {what} (")
        assert warned == f"warning: --device {found.split(':')[0]} is untested"
        assert compute.fused == (found != "mps:0")
    assert [device.choose("xpu", name).precision for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    with user_error("--precision fp16 is not for mps", "fp32 or bf16"):
        device.choose("mps", "fp16")


@pytest.mark.parametrize(
    ("there", "name", "words"),
    [
        ({}, "xpu", "device 'xpu' is not there — 0 xpu devices found; try --device auto"),
        ({"xpu": 2}, "xpu:2", "device 'xpu:2' is not there — 2 xpu devices found"),
        ({}, "mps", "device 'mps' is not there — 0 mps devices found"),
        ({"mps": True}, "mps:1", "device 'mps:1' is not there — 1 mps devices found"),
        ({"xpu": 1}, "meta", "device 'meta' is not supported — choose auto, cpu, cuda"),
        ({"xpu": 1}, "gpu", "unknown device 'gpu' — choose auto, cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there_or_that_nobody_knows_is_refused_in_one_line(there, name, words, gpus):
    gpus(**there)
    with user_error(words):
        device.choose(name)


@pytest.mark.parametrize(("there", "flag"), [({"xpu": 1}, "--device xpu"), ({"mps": True}, "--device mps")])
def test_auto_leaves_a_gpu_of_intel_or_apple_alone_and_says_so(there, flag, gpus):
    gpus(**there)
    (ran, told) = device.choose().about()
    assert ran.startswith("runs on: cpu") and flag in told and "untested" in told and "\n" not in told
    assert device.choose("cpu").about()[1:] == []


def test_several_processes_do_not_share_untested_gpus(gpus, monkeypatch):
    gpus(xpu=2)
    monkeypatch.setattr(device.processes, "_size", 2)
    with user_error("--device xpu is for one process", "--device cpu"):
        device.choose("xpu")
    assert device.choose().device.type == "cpu"


def test_an_untested_gpu_that_can_do_nothing_is_refused_with_its_name(monkeypatch):
    def ones(*_, **__):
        raise RuntimeError("no kernels\nand more")

    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda found: "Arc A770")
    for found, named in (("xpu:1", "xpu:1 (Arc A770)"), ("mps", "mps (Apple's)")):
        with user_error(f"{named} cannot be used: no kernels", "choose another --device"):
            device._check_works(torch.device(found))


def test_time_and_memory_of_untested_gpus_are_asked_for_where_pytorch_tells(monkeypatch):
    xpu, mps, calls = torch.device("xpu", 1), torch.device("mps", 0), []
    monkeypatch.setattr(torch.accelerator, "synchronize", calls.append)
    monkeypatch.setattr(torch.xpu, "max_memory_allocated", lambda found: 3 * 2**20)
    monkeypatch.setattr(torch.xpu, "reset_peak_memory_stats", calls.append)
    assert (device.peak_memory_mb(xpu), device.peak_memory_mb(mps)) == (3, None)
    device.reset_peak_memory(xpu)
    clock = Stopwatch(mps)
    clock.lap("a")
    assert calls == [xpu, mps, mps] and clock.seconds()["a"] >= 0
    device.synchronise(CPU)
    assert len(calls) == 3


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
