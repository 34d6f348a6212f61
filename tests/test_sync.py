"""A round never waits for the device before its end: nothing is read from it, so that a GPU's queue stays full."""

import pytest
import torch
from conftest import FP32, ROOT
from datafree.device import choose
from datafree.flags import distillation_parser
from programs import SMALL
from torch.utils._python_dispatch import TorchDispatchMode

import main
import registry
from datafree import rounds, task

READING_METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__contains__")
READING_OPERATORS = {  # their result's value or shape must be known to the processor
    *("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::repeat_interleave.Tensor", "aten::allclose"),
}


def built(flags, monkeypatch, compute=FP32):
    monkeypatch.chdir(ROOT)
    args = distillation_parser().resolve([*SMALL.split(), "--p_width", "4", *flags], registry.distillation_preset)
    main.complete(args)
    return task.build(args, registry.dataset_spec(args), compute, registry.MODELS)


def a_round(made):
    """What one_round does up to where it reads."""
    images = made.synthesis.synthesize(adversarial=True)
    return images.readings, rounds.fill_pool(made, images.images), made.distillation.run(made.pool, 2)


class ReadingError(AssertionError):
    pass


class NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.name() in READING_OPERATORS:
            raise ReadingError(operator.name())
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def no_reading(monkeypatch):
    """A context in which reading a tensor's value raises, whatever device it is on."""

    def refuse(name):
        def method(self, *_, **__):
            raise ReadingError(name)

        return method

    for name in READING_METHODS:
        monkeypatch.setattr(torch.Tensor, name, refuse(name))
    return NoReading()


@pytest.mark.parametrize("flags", [[], ["--hl"], ["--hl", "--attack_at", "step"], ["--meta", "reptile"]])
def test_a_round_reads_nothing_before_its_end(flags, monkeypatch, request):
    made = built(flags, monkeypatch)
    with request.getfixturevalue("no_reading"):
        readings = a_round(made)
    monkeypatch.undo()
    assert all(value == value for each in readings for value in each.means().values())


@pytest.mark.parametrize("read", [lambda x: x.item(), lambda x: bool(x), lambda x: x.cpu(), lambda x: x[x > 0]])
def test_the_guard_notices_a_reading(read, no_reading):
    with no_reading, pytest.raises(ReadingError):
        read(torch.ones(()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("flags", [[], ["--hl"]])
def test_a_round_on_a_gpu_does_not_synchronise(flags, monkeypatch):
    made = built(flags, monkeypatch, choose("cuda"))
    a_round(made)  # memory is set aside, kernels are chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        readings = a_round(made)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value == value for each in readings for value in each.means().values())
