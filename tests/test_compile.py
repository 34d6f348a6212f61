"""Compiled networks learn what eager ones learn; what cannot be compiled runs as it is, and one line says so."""

import os
import stat
import subprocess
import sys
from functools import partialmethod
from unittest.mock import patch

import pytest
import torch
from conftest import CPU, FP32, ROOT, SINCE_2_7, small_classifier, state_of
from programs import QUICK, few_digits, finished  # noqa: F401
from test_aeahl_rg import context_of
from test_recording import STEPS, Rounds
from torch import nn

from datafree import processes
from datafree.engine import compiling
from datafree.engine.compiling import LONG, Compiling, obstacle_on
from datafree.engine.device import Compute
from datafree.methods.aeahl_rg import AeahlRg

CUDA, XPU, MPS = (torch.device(kind) for kind in ("cuda", "xpu", "mps"))
GPU = Compute(CUDA, torch.bfloat16, "in tests")


@pytest.fixture
def traced(monkeypatch):
    """What is compiled is traced, hooks and all, and runs operation by operation: no minutes of compiling."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """A machine with a GPU, Triton, compilers and headers, of which a test takes one away: a folder of programs."""
    for name in ("gcc", "g++", "clang++", "cl"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Quadro P400")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    return tmp_path


@pytest.mark.slow
def test_a_compiled_round_of_synthesis_is_the_eager_one_hooks_included(traced):
    eager, compiled = (
        AeahlRg(context_of(), AeahlRg.Config(synthesis_batch_size=6, nz=4, ngf=2, g_steps=2)) for _ in range(2)
    )
    networks = {"teacher": compiled.context.teacher, "student": compiled.context.student, "busy": compiled.busy[0]}
    Compiling(True).compile(networks)
    for _ in range(2):
        expected, found = eager.synthesize(warmup=False), compiled.synthesize(warmup=False)
        terms, others = eager.context.read().means(), compiled.context.read().means()
        assert others == pytest.approx(terms, rel=1e-3, abs=1e-5) and terms["loss_bn"] > 0 > terms["loss_adv"]
        torch.testing.assert_close(found.images, expected.images, rtol=1e-2, atol=1e-2)


def learnt(form, compiled, networks=False):
    """What ten steps of a student reported, its weights, what they cost, and in how many pieces they were compiled."""
    rounds = Rounds(form, recorded=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if compiled:
        compiling = Compiling(networks, step=True)
        compiling.compile({"student": rounds.context.student}, rounds.student.objective)
    said = [rounds.learn(steps) for steps in STEPS]
    pieces = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return said, state_of(rounds.student.classifier), rounds.context.costs.take(), pieces


def assert_learns_the_same(form, **how):
    found, weights, costs, pieces = learnt(form, True, **how)
    expected, eager, eager_costs, _ = learnt(form, False, **how)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == {name: pytest.approx(values, rel=1e-3, abs=1e-5) for name, values in theirs.items()}
    torch.testing.assert_close(weights, eager, rtol=1e-3, atol=1e-5)
    assert costs == eager_costs
    return pieces


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "networks", "pieces"),
    [
        ("soft", False, 1),
        ("hard", True, 1),
        ("echo", False, 1),
        ("adam, clipped", False, 1),
        ("attention", True, 2),  # nothing had been looked at before the first step
        ("attack", False, 6),  # around the choice of who is attacked
    ],
)
def test_a_step_compiled_as_one_learns_what_eager_ones_do_networks_compiled_beside_it_or_not(
    form, networks, pieces, traced
):
    assert assert_learns_the_same(form, networks=networks) <= (pieces if SINCE_2_7 else 3 * pieces)


@pytest.mark.slow
@pytest.mark.skipif(bool(obstacle_on(CPU)), reason=f"nothing compiles here: {obstacle_on(CPU)}")
def test_a_step_of_compiled_code_learns_what_eager_ones_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert assert_learns_the_same("hard") == (1 if SINCE_2_7 else 3)


@pytest.mark.slow
def test_a_step_that_cannot_be_compiled_runs_as_it_is_and_one_line_says_so(monkeypatch):
    said, rounds, eager = [], Rounds(recorded=False), Rounds(recorded=False)
    breaking(monkeypatch, 0)
    compiling = Compiling(False, step=True)
    compiling.say = said.append
    compiling.compile({"student": rounds.context.student}, rounds.student.objective)
    for steps in (2, 1):
        assert rounds.learn(steps) == eager.learn(steps)
    torch._dynamo.reset()
    (line,) = said
    assert line.startswith("warning: networks not compiled") and line.endswith(": ld: cannot find -lgomp")


def test_a_step_is_compiled_only_where_asked(tools):
    asked = [Compiling.chosen(on, False, True, LONG, step) for on in (FP32, GPU) for step in (False, True)]
    assert [each.step for each in asked] == [False, True, False, True] and not any(each.on for each in asked)
    assert str(asked[1]) == "; distillation steps compiled"
    assert str(Compiling.chosen(GPU, False, False, LONG, True)) == "; networks compiled; distillation steps compiled"
    (tools / "g++").unlink()
    assert str(Compiling.chosen(FP32, False, False, LONG, True)).startswith("; networks not compiled: no C++ compiler")


def test_networks_are_compiled_where_asked_and_in_a_long_run_of_one_process_on_a_gpu_unless_refused(tools):
    asked = {
        name: (*flags, LONG)
        for name, flags in {"nothing": (False, False), "compile": (True, False), "no_compile": (False, True)}.items()
    }
    on_cpu, on_gpu = ({name: Compiling.chosen(on, *flags).on for name, flags in asked.items()} for on in (FP32, GPU))
    assert on_cpu == {"nothing": False, "compile": True, "no_compile": False}
    assert on_gpu == {"nothing": True, "compile": True, "no_compile": False}
    assert [Compiling.chosen(GPU, on, False, LONG - 1).on for on in (False, True)] == [False, True]  # digits, say
    with patch.object(processes, "_size", 2):
        assert [Compiling.chosen(GPU, on, False, LONG).on for on in (False, True)] == [False, True]
    assert not Compiling.chosen(Compute(XPU, torch.bfloat16, ""), *asked["nothing"]).on
    assert [str(Compiling.chosen(FP32, *asked[name])) for name in ("nothing", "compile")] == ["", "; networks compiled"]


def without_triton(monkeypatch, tools):
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)


def on_an_old_gpu(monkeypatch, tools):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))


def without_a_c_compiler(monkeypatch, tools):
    (tools / "gcc").unlink()


def without_a_cpp_compiler(monkeypatch, tools):
    for name in ("g++", "clang++", "cl"):
        (tools / name).unlink()


def with_a_compiler_named_that_is_not_there(monkeypatch, tools):
    monkeypatch.setenv("CC", "/none/gcc")
    monkeypatch.setenv("CXX", "/none/g++")


def without_headers(monkeypatch, tools):
    (tools / "Python.h").unlink()


@pytest.mark.parametrize(
    ("missing", "device", "said"),
    [
        (without_triton, CUDA, "Triton is not installed"),
        (without_triton, CPU, ""),
        (without_triton, XPU, "Triton is not installed"),
        (on_an_old_gpu, XPU, ""),
        (without_headers, MPS, "torch.compile for mps is a prototype"),
        (on_an_old_gpu, CUDA, "Quadro P400 is too old for Triton"),
        (without_a_c_compiler, CUDA, "no C compiler (gcc or clang)"),
        (without_a_c_compiler, CPU, ""),
        (without_a_cpp_compiler, CUDA, ""),
        (without_a_cpp_compiler, CPU, "no C++ compiler"),
        (with_a_compiler_named_that_is_not_there, CUDA, "no C compiler at CC=/none/gcc"),
        (with_a_compiler_named_that_is_not_there, CPU, "no C++ compiler at CXX=/none/g++"),
        (without_headers, CUDA, "Python's header files are not installed"),
        (without_headers, CPU, "Python's header files are not installed"),
    ],
)
def test_what_compiling_takes_and_is_not_there_is_named_for_the_device_that_takes_it(
    missing, device, said, tools, monkeypatch
):
    missing(monkeypatch, tools)
    assert obstacle_on(device).startswith(said) and bool(obstacle_on(device)) == bool(said)
    chosen = Compiling.chosen(Compute(device, torch.float32, ""), True, False, 1)
    assert chosen.on != bool(said) and (f"not compiled: {said}" in str(chosen) or not said)


def test_a_compiler_may_be_named_with_a_wrapper_and_flags_and_lie_in_a_folder_with_a_space(tools, monkeypatch):
    (tools / "my gcc").mkdir()
    for name in ("ccache", "my gcc/cc"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    for named in ("ccache gcc -m64", str(tools / "my gcc/cc")):
        monkeypatch.setenv("CC", named)
        assert obstacle_on(CUDA) == ""


def breaking(monkeypatch, *calls):
    """PyTorch's compiler fails at these calls, counted from 0, and gives back what it was given at the others."""
    count = iter(range(99))

    def compile_fx(graph, inputs, **_):
        if next(count) in calls:
            raise RuntimeError("C++ compile error\n\nCommand:\ng++ -c\n\nOutput:\nld: cannot find -lgomp\n\n")
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)


@pytest.mark.slow
def test_a_failure_at_the_first_network_is_one_line_and_all_run_as_they_are(monkeypatch, capfd):
    networks, x = {name: small_classifier(i) for i, name in enumerate("abc")}, torch.ones(2, 3, 8, 8)
    expected, said = [network(x) for network in networks.values()], []
    breaking(monkeypatch, 0)
    compiled = Compiling(True)
    compiled.say = said.append
    compiled.compile(networks)
    for _ in range(2):
        torch.testing.assert_close([network(x) for network in networks.values()], expected)
    torch._dynamo.reset()
    (line,) = said
    assert line.startswith("warning: networks not compiled") and line.endswith(": ld: cannot find -lgomp")
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_network_that_alone_cannot_be_compiled_runs_alone_as_it_is(monkeypatch):
    networks, x, said = {"good": small_classifier(1), "bad": small_classifier(2, width=6)}, torch.ones(2, 3, 8, 8), []
    expected = [network(x) for network in networks.values()]
    breaking(monkeypatch, 1)
    compiled = Compiling(True)
    compiled.say = said.append
    compiled.compile(networks)
    for _ in range(2):
        torch.testing.assert_close([network(x) for network in networks.values()], expected)
    torch._dynamo.reset()
    assert [line.split(",")[0] for line in said] == ["warning: bad not compiled"]
    assert [network._compiled_call_impl is None for network in networks.values()] == [False, True]


def test_without_a_compiler_a_run_told_to_compile_ends_well_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    said = finished([*QUICK, "--compile", "--run_root", tmp_path])
    assert said.count("not compiled") == 1 and f"no C++ compiler at CXX={tmp_path / 'g++'}" in said


@pytest.mark.slow
def test_with_a_useless_compiler_a_run_told_to_compile_ends_well_and_says_one_line(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *--version*) echo 13.0;; *) echo "no such header" >&2; exit 1;; esac')
    compiler.chmod(stat.S_IRWXU)
    tools = {"CC": str(compiler), "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    line = [sys.executable, "main.py", *QUICK, "--compile", "--run_root", str(tmp_path / "run")]
    run = subprocess.run(line, cwd=ROOT, env=os.environ | tools, capture_output=True, text=True, timeout=300)
    (said,) = (line for line in run.stdout.splitlines() if "not compiled" in line)
    complaints = [  # but for one of torch 2.6
        line for line in run.stderr.splitlines() if not line.startswith("No CUDA runtime is found")
    ]
    assert (run.returncode, complaints) == (0, []) and said.startswith("warning: "), run.stderr
