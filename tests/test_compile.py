"""Compiled networks learn what eager ones learn; a network that cannot be compiled runs as it is."""

from functools import partialmethod

import pytest
import torch
from conftest import FP32, small_classifier
from test_aeahl_rg import context_of
from torch import nn

from datafree.engine.device import Compute, compile_networks
from datafree.methods.aeahl_rg import AeahlRg

GPU = Compute(torch.device("cuda"), True, "in tests")


@pytest.fixture
def traced(monkeypatch):
    """What is compiled is traced, hooks and all, and runs operation by operation: no minutes of compiling."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_round_of_synthesis_is_the_eager_one_hooks_included(traced):
    eager, compiled = (
        AeahlRg(context_of(), AeahlRg.Config(synthesis_batch_size=6, nz=4, ngf=2, g_steps=2)) for _ in range(2)
    )
    compile_networks([compiled.context.teacher, compiled.context.student, *compiled.busy])
    for _ in range(2):
        expected, found = eager.synthesize(warmup=False), compiled.synthesize(warmup=False)
        terms, others = eager.context.read().means(), compiled.context.read().means()
        assert others == pytest.approx(terms, rel=1e-3, abs=1e-5) and terms["loss_bn"] > 0 > terms["loss_adv"]
        torch.testing.assert_close(found.images, expected.images, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    model, x = small_classifier(1), torch.ones(2, 3, 8, 8)
    expected = model(x)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    compile_networks([model])
    torch.testing.assert_close(model(x), expected)


def test_networks_are_compiled_where_asked_and_on_a_gpu_unless_refused(monkeypatch):
    monkeypatch.setattr("datafree.engine.device.find_spec", lambda name: name)
    assert [FP32.compiles(*flags) for flags in ((False, False), (True, False))] == [False, True]
    assert [GPU.compiles(*flags) for flags in ((False, False), (True, False), (False, True))] == [True, True, False]
    monkeypatch.setattr("datafree.engine.device.find_spec", lambda name: None)
    assert not GPU.compiles(False, False)
