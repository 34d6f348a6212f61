"""What only a GPU can show: the CPU's numbers where they are exact, near ones where they are not, and no leak."""

import gc
from contextlib import contextmanager

import pytest
import test_every_method
import torch
from conftest import CPU
from programs import COLOUR, COLOUR_FOLDER, at_epoch, epochs_of, few_digits, finished, json_of, run  # noqa: F401
from test_pool import COLUMNS, PLAIN, stream, whole_batch
from test_sync import FLAGS, a_round, prepared

from datafree.data import placement
from datafree.data.augmentation import random_crop_flip, roll_flip
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool
from datafree.engine import device
from datafree.engine.device import choose
from datafree.losses.batchnorm import channel_moments
from datafree.runs.folder import RunFolder
from registry import METHODS
from scripts.kill_test import differences

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

GPU = torch.device("cuda", 0)
ON_GPU = ("--device", "cuda", "--no_compile")
MEMORIES = {  # bytes that the GPU and the host are said to have
    "on cuda:0": (2**40, 2**40),
    "in host memory": (1, 2**40),
    "in a mapped file": (1, 1),
}


@pytest.fixture(autouse=True)
def settings():
    """Those of the device that a run chooses are put back."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    yield
    torch.set_float32_matmul_precision(matmul)
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
    torch.cuda.set_device(GPU)


# Exact things


@contextmanager
def drawn_on_the_gpu():
    """Within, random numbers for CPU tensors are what a stream of the GPU draws."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("randint", "rand"):
            draw = getattr(torch, name)
            patch.setattr(
                torch,
                name,
                lambda *a, draw=draw, generator, device: draw(*a, generator=generator, device=GPU).to(device),
            )
        yield


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "cut", [lambda x, rng: random_crop_flip(x, rng, 4, True), lambda x, rng: roll_flip(x, rng, (2, 1), True)]
)
def test_crops_on_the_gpu_are_the_cpus_bit_for_bit_in_value_and_gradient(cut, dtype):
    x = (256 * torch.rand(64, 3, 32, 32)).to(dtype)
    streams = [torch.Generator(GPU).manual_seed(3) for _ in range(2)]
    there, here = x.to(GPU), x.clone()
    if dtype.is_floating_point:
        there, here = there.requires_grad_(), here.requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        out = cut(there, streams[0])
    with drawn_on_the_gpu():
        expected = cut(here, streams[1])
    assert out.device.type == "cuda" and torch.equal(out.cpu(), expected)
    if dtype.is_floating_point:
        towards = torch.randn(x.shape).to(dtype)
        out.backward(towards.to(GPU))
        expected.backward(towards)
        assert torch.equal(there.grad.cpu(), here.grad)


@pytest.mark.parametrize("kind", ["device", "host", "file"])
def test_a_pool_draws_what_it_holds_wherever_it_lies(kind, tmp_path):
    place, whole = Placement(GPU, kind, tmp_path), whole_batch(40)
    draws = torch.Generator(GPU if kind == "device" else CPU)
    pool = ImagePool(40, COLUMNS, place, PLAIN, torch.Generator(GPU), draws.manual_seed(0))
    near = ImagePool(40, COLUMNS, Placement(CPU), PLAIN, stream(), stream())
    for each in (pool, near):
        each.add(whole)
    rows, twin = list(pool.batches(4, 9)), torch.Generator(draws.device).manual_seed(0)
    for found in rows:
        index = torch.randint(40, (9,), generator=twin, device=draws.device).cpu()
        kept = dict(zip(COLUMNS, (column[index] for column in near.rows(0, 40)), strict=True))
        assert found.images.device.type == "cuda" and torch.equal(
            (found.images.cpu() * 255).round(), kept["images"].float()
        )
        assert all(torch.equal(found.columns[name].cpu(), kept[name]) for name in ("labels", "features"))


# Near things


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_moments_are_those_of_fp64_but_for_rounding_in_fp32_with_a_gradient_of_the_inputs_precision(dtype, layout):
    x = (3 * torch.randn(256, 64, 32, 32, device=GPU) + 4).to(dtype).contiguous(memory_format=layout).requires_grad_()
    y, towards = x.detach().double().requires_grad_(), torch.randn(2, 64, device=GPU)
    found, expected = channel_moments(x), (y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False))
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(), exact, rtol=3e-4, atol=0
        )  # rounded to bf16 they would be off by 2e-3
    (torch.stack(found) * towards).sum().backward()
    (torch.stack(expected) * towards).sum().backward()
    assert x.grad.dtype == dtype
    error = (x.grad.double() - y.grad).abs().max() / y.grad.abs().max()
    assert error < (1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("shape", [(6, 3, 9), (8, 3), (1, 3, 2, 2)])
def test_moments_of_other_shapes_are_the_cpus(shape):
    x = 3 * torch.randn(shape) + 1
    for found, expected in zip(channel_moments(x.to(GPU)), channel_moments(x), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


# Runs


@pytest.fixture
def steady(monkeypatch):
    """Runs take the same kernels every time, and none that adds up in an order of its own."""

    def steadily(*how):
        compute = choose(*how)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        return compute

    monkeypatch.setattr(device, "choose", steadily)


@pytest.fixture
def pool_in(monkeypatch):
    """Has pools of runs lie somewhere else."""

    def arrange(kind):
        gpu, host = MEMORIES[kind]
        monkeypatch.setattr(placement, "device_memory", lambda device: gpu if device.type == "cuda" else host)
        monkeypatch.setattr(placement, "host_memory", lambda: host)

    return arrange


def state_of(folder):
    return torch.load(folder / "last.pth", map_location="cpu", weights_only=True)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("kind", "precision"), [("on cuda:0", "fp32"), *((kind, "bf16") for kind in MEMORIES)], ids=lambda value: value
)
def test_a_stopped_run_goes_on_and_ends_bit_for_bit_where_runs_left_alone_do(
    kind,
    precision,
    tmp_path,
    pool_in,
    at_epoch,  # noqa: F811
):
    """Always: all epochs, the same random numbers, the images made before the stop as they were. Bit for bit only where
    two runs left alone are: what a kernel adds up in no fixed order is no fault of resuming."""
    pool_in(kind)
    line = [*COLOUR, *ON_GPU, "--precision", precision, "--run_root"]
    whole, again, cut = (tmp_path / name / COLOUR_FOLDER for name in "abc")
    assert f"pool {kind}" in finished([*line, whole.parent])
    finished([*line, again.parent])
    at_epoch(2)
    assert run([*line, cut.parent])[0] == 143
    made = (cut / "pool.bin").read_bytes()
    finished(["--resume", cut])
    assert epochs_of(cut) == ["1", "2", "3"] and json_of(cut / "status.json")["state"] == "finished"
    assert (cut / "pool.bin").read_bytes().startswith(made) and len(made) > 0
    streams = [state_of(folder)["streams"] for folder in (whole, cut)]
    assert streams[0].keys() == streams[1].keys()
    assert all(torch.equal(streams[0][name], streams[1][name]) for name in streams[0])
    if differences(whole, again):
        pytest.skip("goes on; two runs left alone differ, so that no more can be asked")
    assert differences(whole, cut) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_stops_and_goes_on(name, tmp_path, at_epoch):  # noqa: F811
    at_epoch(2)
    assert run([*test_every_method.line(name, *ON_GPU), "--run_root", tmp_path])[0] == 143
    (folder,) = tmp_path.iterdir()
    finished(["--resume", folder])
    assert epochs_of(folder) == ["1", "2", "3"] and json_of(folder / "status.json")["state"] == "finished"


def batch_bytes(size):
    """Of 8 images of that size: what a leak would be made of."""
    return 8 * 3 * size * size * 4


@pytest.mark.slow
def test_memory_does_not_grow_from_epoch_to_epoch(tmp_path, monkeypatch):
    taken, record = [], RunFolder.record

    def watch(self, row, line):
        record(self, row, line)
        gc.collect()
        taken.append((torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()))
        torch.cuda.reset_peak_memory_stats()

    monkeypatch.setattr(RunFolder, "record", watch)
    finished([*COLOUR, *ON_GPU, "--epochs", "8", "--hl", "--p_width", "4", "--run_root", tmp_path])
    kept, most = zip(*taken[3:], strict=True)  # by then, all optimisers have their state
    assert len(taken) == 8 and max(kept) < kept[0] + batch_bytes(32) and max(most) < 1.05 * most[0], taken


@pytest.mark.parametrize("what", FLAGS)
def test_a_round_leaves_no_more_memory_taken_than_the_one_before(what, tmp_path):
    job, taken = prepared({"no_compile": True} | FLAGS[what], choose("cuda", "fp32"), tmp_path), []
    for _ in range(6):
        if job.pool is not None:
            job.pool.clear()
        a_round(job)
        job.context.read().means()
        gc.collect()
        taken.append(torch.cuda.memory_allocated())
    assert max(taken[3:]) < taken[2] + batch_bytes(8), taken


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
def test_a_run_on_the_second_gpu_takes_nothing_of_the_first(tmp_path):
    before = torch.cuda.memory_allocated(0)
    torch.cuda.reset_peak_memory_stats(0)
    said = finished([*COLOUR, "--device", "cuda:1", "--no_compile", "--run_root", tmp_path])
    assert "runs on: cuda:1" in said and torch.cuda.max_memory_allocated(0) == before
    assert torch.cuda.max_memory_allocated(1) > 0


# Recorded steps


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("what", ["soft", "attack", "attack at every step"])
def test_steps_recorded_as_a_graph_learn_what_eager_ones_do_and_do_not_synchronise(
    what, precision, tolerance, compiled, tmp_path
):
    """Tolerances are relative to the largest value; chosen by us."""
    how = {"compile": compiled, "no_compile": not compiled, "epochs": 4} | FLAGS[what]
    jobs = [prepared(how | {"step": step}, choose("cuda", precision), tmp_path) for step in ("eager", "graph")]
    said, (eager, recorded) = [], jobs
    recorded.student.say = said.append
    for number in range(4):
        a_round(eager)
        torch.cuda.set_sync_debug_mode("error" if number == 3 else "default")  # all is recorded by then
        try:
            a_round(recorded)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    (recording,) = recorded.student.recordings
    assert said == [] and recording.recorded and recording.checked
    assert recorded.context.costs.take() == eager.context.costs.take()
    found, expected = (job.context.read().series for job in (recorded, eager))
    assert found.keys() == expected.keys() and len(found["loss_kd"]) == len(expected["loss_kd"]) == 8
    streams = [job.context.streams.state_dict() for job in (recorded, eager)]
    assert all(torch.equal(streams[0][name], streams[1][name]) for name in streams[1])
    states = [job.student.classifier.state_dict() for job in (recorded, eager)]
    for name, value in states[1].items():
        error = (states[0][name] - value).abs().max() / value.abs().max()
        assert error < tolerance, (name, error.item())
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_step_that_reads_a_number_goes_on_as_it_is_and_draws_what_an_eager_one_draws(tmp_path, monkeypatch):
    how = {"no_compile": True} | FLAGS["attack"]
    jobs = [prepared(how | {"step": step}, choose("cuda", "fp32"), tmp_path) for step in ("eager", "graph")]
    said = []
    jobs[1].student.say = said.append
    for job in jobs:
        loss = job.targets.loss
        job.targets.loss = lambda *given, loss=loss: loss(*given) * (1.0 if loss(*given).item() < 1e9 else 0.0)
        for _ in range(3):
            a_round(job)
    assert len(said) == 1 and "steps are not recorded" in said[0]
    streams = [job.context.streams.state_dict() for job in jobs]
    assert all(torch.equal(streams[0][name], streams[1][name]) for name in streams[0])


# Compiled networks


def asked(job):
    """Each network that is compiled in a round, and what it is asked, with a gradient where a round wants one."""
    context, x = job.context, torch.rand(8, *job.context.spec.shape, device=GPU)
    z = torch.randn(8, job.method.config.nz, device=GPU)
    return {
        "teacher": (context.teacher, x.clone().requires_grad_()),
        "teacher's copy": (context.answering, x),
        "student as it learns": (context.student.train(), x),
        "generator": (job.method.adapted, z.requires_grad_()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 5e-2)])
def test_compiled_networks_answer_as_eager_ones_and_a_compiled_round_ends_well(precision, tolerance, tmp_path):
    """Tolerances are relative to the largest answer, fourfold for gradients; chosen by us: fused sums round elsewhere,
    and bf16 has 8 bits."""
    job, said = prepared({"compile": True, "step": "eager"}, choose("cuda", precision), tmp_path), []
    if not job.compiling.on:
        pytest.skip(f"networks cannot be compiled here: {job.compiling.obstacle}")
    job.compiling.say = said.append
    for name, (network, x) in asked(job).items():
        results = {}
        for stance in ("force_eager", "default"):
            with torch.compiler.set_stance(stance):
                out = job.context.ask(network, x)
            gradient = torch.autograd.grad(out.float().square().sum(), x)[0] if x.requires_grad else out
            results[stance] = out.detach().float(), gradient.detach().float()
        for what, (expected, found) in enumerate(zip(*results.values(), strict=True)):
            error = (found - expected).abs().max() / expected.abs().max()
            assert error < (1, 4)[what] * tolerance, (name, what, error.item())
    for _ in range(2):
        a_round(job)
    assert said == [] and all(value == value for value in job.context.read().means().values())
    torch._dynamo.reset()
