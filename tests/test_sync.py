"""A round never waits for the device before its end: nothing is read from it, so that a GPU's queue stays full."""

import pytest
import torch
from conftest import CLASSES, FP16, FP32, SIZE, small_classifier, small_spec
from torch.utils._python_dispatch import TorchDispatchMode

from datafree.cli.flags import distillation_configs
from datafree.configuration import resolve
from datafree.data.specs import TensorImages
from datafree.engine.device import choose
from datafree.job import prepare
from datafree.targets import chosen
from registry import METHODS

READING_METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__contains__")
READING_OPERATORS = {  # their result's value or shape must be known to the processor
    *("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::repeat_interleave.Tensor", "aten::allclose"),  # the second unless it is told the length
}
INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}  # by a mask
SMALL = {"epochs": 3, "warmup": 0, "kd_steps": 2, "batch_size": 8, "synthesis_batch_size": 8, "g_steps": 2, "ngf": 4}
ATTACK = {"hl": True, "p_width": 4}
FLAGS = {"soft": {}, "attack": ATTACK, "attack at every step": ATTACK | {"attack_at": "step"}}
FLAGS["reptile"] = {"meta": "reptile"}
FLAGS["fast, its first layers anew"] = {"method": "fast_meta", "reset_l0": 0.3}
FLAGS["nayer, its generator anew"] = {"method": "nayer", "g_life": 1, "loops": 2, "noise_width": 16}
FLAGS["attention"] = {"method": "zskt", "at": 2.0}
FLAGS["competition"] = {"method": "deepinversion", "adi": 1.0}
FLAGS |= {name: {"method": name} for name in METHODS if name != "aeahl_rg"}
QUICK = ("soft", "attack", "dfad")
SLOW = (*((what, FP32) for what in FLAGS if what not in QUICK), ("attack", FP16))


def prepared(flags, compute, run_root):
    """A small run of a method, by name."""
    method = METHODS[flags.get("method", "aeahl_rg")]
    configs = distillation_configs(method, "its", chosen(flags.get("hl", False), False, method.targets))
    known = {field for config in configs.values() for field in config.__dataclass_fields__}
    small = {name: value for name, value in SMALL.items() if name in known}
    values = resolve(configs, small | flags | {"run_root": run_root, "method": "its"}, lambda known: method.defaults)
    method.complete(values)
    images = TensorImages(torch.arange(16 * 3 * SIZE**2).view(16, 3, SIZE, SIZE).byte(), torch.arange(16) % CLASSES)
    networks = small_classifier(1), small_classifier(2)
    return prepare(values, small_spec(), *networks, method, compute, training_images=lambda: images)


def a_round(job):
    """What the loop does up to where it reads."""
    batch = job.method.synthesize(warmup=False)
    if batch is not None and job.pool is not None:
        job.pool.add(job.targets.prepare(batch))
    job.student.learn(job.source, job.targets, 2)


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


@pytest.mark.parametrize(
    ("what", "compute"),
    [*((what, FP32) for what in QUICK), *(pytest.param(*how, marks=pytest.mark.slow) for how in SLOW)],
)
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
    job = prepared(FLAGS[what] | {"epochs": 4}, choose("cuda", precision), tmp_path)
    if job.pool is not None:
        assert job.pool.draws.device.type == job.pool.storage["images"].device.type == "cuda"
    for _ in range(3):  # memory is set aside, kernels are chosen, steps recorded
        a_round(job)
    torch.cuda.set_sync_debug_mode("error")
    try:
        a_round(job)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value == value for value in job.context.read().means().values())
