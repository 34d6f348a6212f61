"""Compiled networks learn what eager ones learn; a network that cannot be compiled runs as it is."""

import pytest
import torch
from conftest import FP32, small_augmentation, small_classifier, small_generator, small_teacher
from datafree.device import Compute
from datafree.randomness import Streams
from datafree.synthesis.reusable_generator import ReusableGeneratorSynthesis
from datafree.task import compile_networks
from programs import TINY, error_of, finished
from test_synthesis import settings

from datafree.modes import MODES

GPU = Compute(torch.device("cuda"), True, "in tests")


def synthesis(compiled):
    teacher = small_teacher()
    made = ReusableGeneratorSynthesis(
        *(small_generator(), teacher, small_classifier(2), settings(), MODES["anew"].part_rates(1.0)),
        *(small_augmentation(), FP32, Streams(0)),
    )
    if compiled:
        compile_networks([teacher, made.student, made.adapted])
    return made


def test_a_compiled_round_of_synthesis_is_the_eager_one_hooks_included():
    eager, compiled = synthesis(False), synthesis(True)
    for _ in range(2):
        expected, found = eager.synthesize(adversarial=True), compiled.synthesize(adversarial=True)
        assert found.terms == pytest.approx(expected.terms, rel=1e-3, abs=1e-5) and expected.terms["loss_bn"] > 0
        torch.testing.assert_close(found.images, expected.images, rtol=1e-2, atol=1e-2)


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    model = small_classifier(1)
    expected = model(torch.ones(2, 3, 8, 8))
    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", broken)
    compile_networks([model])
    torch.testing.assert_close(model(torch.ones(2, 3, 8, 8)), expected)


def test_networks_are_compiled_where_asked_and_on_a_gpu_unless_refused(monkeypatch):
    monkeypatch.setattr("datafree.device.find_spec", lambda name: name)
    assert [FP32.compiles(*flags) for flags in ((False, False), (True, False))] == [False, True]
    assert [GPU.compiles(*flags) for flags in ((False, False), (True, False), (False, True))] == [True, True, False]
    monkeypatch.setattr("datafree.device.find_spec", lambda name: None)
    assert not GPU.compiles(False, False)


def test_the_log_says_that_networks_are_compiled():
    assert "networks compiled" in finished([*TINY, "--compile", "--dry_run"])
    assert "compiled" not in finished([*TINY, "--dry_run"]).split("pool on")[1]
    assert "--no_compile" in error_of([*TINY, "--compile", "--no_compile", "--dry_run"])
