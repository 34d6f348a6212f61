"""A round never waits for the device before its end: nothing is read from it, so that a GPU's queue stays full."""

import pytest
import torch
from conftest import FP16, FP32, small_classifier, small_spec
from torch.utils._python_dispatch import TorchDispatchMode

from datafree.cli.flags import distillation_configs
from datafree.configuration import resolve
from datafree.engine.device import choose
from datafree.job import prepare
from datafree.methods.aeahl_rg import AeahlRg
from datafree.methods.fast import FastMeta
from datafree.methods.nayer import Nayer
from datafree.targets import chosen

READING_METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__contains__")
READING_OPERATORS = {  # their result's value or shape must be known to the processor
    *("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::repeat_interleave.Tensor", "aten::allclose"),  # the second unless it is told the length
}
INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}  # by a mask
SMALL = {"epochs": 3, "warmup": 0, "kd_steps": 2, "batch_size": 8, "synthesis_batch_size": 8, "g_steps": 2, "ngf": 4}
FLAGS = {"soft": {}, "attack": {"hl": True, "p_width": 4}, "reptile": {"meta": "reptile"}}
FLAGS["fast, its first layers anew"] = {"method": FastMeta, "reset_l0": 0.3}
FLAGS["nayer, its generator anew"] = {"method": Nayer, "g_life": 1, "loops": 2, "noise_width": 16}
FLAGS["attack at every step"] = FLAGS["attack"] | {"attack_at": "step"}


def prepared(flags, compute, run_root):
    targets, method = chosen(flags.get("hl", False), False), flags.get("method", AeahlRg)
    given = SMALL | flags | {"run_root": run_root, "method": "its"}
    values = resolve(distillation_configs(method, "its", targets), given, lambda known: {})
    return prepare(values, small_spec(), small_classifier(1), small_classifier(2), method, compute)


def a_round(job):
    """What the loop does up to where it reads."""
    job.pool.add(job.targets.prepare(job.method.synthesize(warmup=False)))
    job.student.learn(job.pool, job.targets, 2)


class ReadingError(AssertionError):
    pass


class NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name, kwargs = operator.name(), kwargs or {}
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in INDEXING else []
        if masks or (name in READING_OPERATORS and kwargs.get("output_size") is None):
            raise ReadingError(name)
        return operator(*args, **kwargs)


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


@pytest.mark.parametrize(("what", "compute"), [*((what, FP32) for what in FLAGS), ("attack", FP16)])
def test_a_round_reads_nothing_before_its_end(what, compute, tmp_path, monkeypatch, request):
    job = prepared(FLAGS[what], compute, tmp_path)
    with request.getfixturevalue("no_reading"):
        for _ in range(2):
            a_round(job)
    monkeypatch.undo()
    assert all(value == value for value in job.context.read().means().values())


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0]),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.repeat_interleave(x),
    ],
)
def test_the_guard_notices_a_reading(read, no_reading):
    with no_reading, pytest.raises(ReadingError):
        read(torch.ones(2, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("what", "precision"), [*((what, "auto") for what in FLAGS), ("attack", "fp16")])
def test_a_round_on_a_gpu_does_not_synchronise(what, precision, tmp_path):
    job = prepared(FLAGS[what], choose("cuda", precision), tmp_path)
    assert job.pool.draws.device.type == job.pool.storage["images"].device.type == "cuda"
    a_round(job)  # memory is set aside, kernels are chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        a_round(job)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value == value for value in job.context.read().means().values())
