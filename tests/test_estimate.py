"""The estimate of runs on GPUs: counts of few images say what many do, and sums are those written out by hand."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from benchmark import filled_pool
from conftest import ROOT, user_error
from counting import Counts, Line, counted
from floors import flops
from programs import error_of, script
from torch import nn

program = script("estimate")
FLAGS = (
    *("--dataset", "digits", "--teacher", "resnet20", "--student", "resnet8", "--nz", "16", "--ngf", "4"),
    *("--batch_size", "8", "--synthesis_batch_size", "8", "--g_steps", "3", "--gpus", "1", "2"),
    *("--echo", "1", "--meta", "fomaml"),
)


def made(*more):
    """An estimate, its options, and the passes through each network."""
    options, values = program.parsed([*FLAGS, *more])
    job = program.job_of(values)
    counts, directions = program.counted_pieces(job)
    length = program.LengthConfig.of(values)
    return program.Estimate(job, values, length, counts, options.test_images), options, directions


@pytest.fixture(scope="module")
def soft():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return made()


@pytest.mark.slow
@pytest.mark.parametrize("images", [5, 8])
def test_few_images_tell_what_is_counted_in_an_iteration_and_a_step_on_more(soft, images):
    estimate, job = soft[0], soft[0].job
    pieces = program.pieces(job, images)
    for name in ("warmup", "iteration", "step", "teacher asked"):
        assert estimate.counts[name].at(images).flops == flops(pieces[name]), name
        found = program.counted_all({name: pieces[name]}, job)[name]
        assert estimate.counts[name].at(images).saved == pytest.approx(found.saved, rel=1e-3), name
        assert estimate.counts[name].at(images).moved == pytest.approx(found.moved, rel=1e-3), name
        assert estimate.counts[name].at(images).started == found.started, name


def test_a_step_is_that_of_main_py(soft):
    estimate, job = soft[0], soft[0].job
    job.student.config = program.replace(job.student.config, batch_size=8)
    pool = filled_pool(job, 8)
    assert estimate.counts["step"].at(8).flops == flops(lambda: job.student.learn(pool, job.targets, 1))


def test_passes_by_network_and_direction_add_up_to_an_iteration_and_a_step(soft):
    counts, both = soft[0].counts, {name: each.flops for name, each in soft[2].items()}
    inverted = both["generator to weights"] + both["teacher to images"]
    assert counts["warmup"].few.flops == inverted
    assert counts["iteration"].few.flops == inverted + both["student to images"]
    assert counts["step"].few.flops == counts["teacher asked"].few.flops + both["student to weights"]
    assert both["student to images"] == 2 * counts["student asked"].few.flops  # both ways through every layer
    assert counts["entry"].few == Counts(0, 0, 0, 0)


@pytest.mark.slow
def test_a_step_has_its_share_of_a_lesson_that_serves_several(soft, monkeypatch):
    monkeypatch.chdir(ROOT)
    estimate, _, both = made("--echo", "4")
    asked, step = estimate.counts["teacher asked"].few.flops, estimate.counts["step"].few
    assert step.flops == asked / 4 + both["student to weights"].flops
    assert step.saved == pytest.approx(soft[0].counts["step"].few.saved, rel=0.05)


def test_each_memory_kept_for_the_way_back_counts_once_and_weights_not_at_all():
    network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    found = counted(lambda: network(x).sum().backward(), [network])
    assert found.saved == 4 * (3 * 4 + 3 * 8)  # x, and the hidden layer, which ReLU and the second layer both keep
    assert counted(lambda: network(x), [network]).flops == 2 * 3 * (4 * 8 + 8 * 2)


def test_an_operation_moves_what_it_reads_and_writes_and_a_view_nothing():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert counted(lambda: a @ b).moved == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    view = counted(lambda: a.view(5, 3)[:2].t())
    assert (view.moved, view.started, counted(lambda: (a @ b).exp()).started) == (0, 0, 2)
    assert counted(lambda: a.exp_()).moved == 4 * (3 * 5 + 3 * 5)
    assert counted(lambda: a[:, :1].expand(3, 100).exp()).moved == 4 * (3 * 5 + 3 * 100)  # read from 15 numbers


def test_a_run_is_what_the_loop_makes_of_its_pieces():
    each = {"warmup": 2.0, "iteration": 3.0, "entry": 5.0, "step": 7.0, "student asked": 11.0, "teacher asked": 13.0}
    counts = {name: Counts(2 * x, 20 * x, 5 * x, 0.0) for name, x in each.items()}
    more = {name: Counts(3 * x, 30 * x, 5 * x, 0.0) for name, x in each.items()}  # x an image
    lines = {name: Line(few, more[name]) for name, few in counts.items()}
    length = program.LengthConfig(epochs=5, warmup=2, kd_steps=4, ep_steps=6, eval_every=2)  # rounds of 4 and 2 steps
    values = Namespace(batch_size=8, synthesis_batch_size=4, g_steps=10)
    found = program.Estimate(None, values, length, lines, test_images=100).of_run()
    rounds = 2 * (2 * (10 * 2 + 5)) + 3 * (2 * (10 * 3 + 5))
    assert found["synthesis"].flops == 4 * rounds
    assert found["distillation"].flops == 8 * 3 * 6 * 7
    assert found["evaluation"].flops == pytest.approx(100 * (13 + 2 * 11))  # after epochs 4 and 5
    assert [part.moved for part in found.values()] == pytest.approx([10 * part.flops for part in found.values()])
    assert found["distillation"].started == 5 * 3 * 6 * 7  # whatever the batch
    of_two = program.Estimate(None, values, length, lines, test_images=100).of_run(gpus=2)
    assert [2 * part.flops for part in of_two.values()] == pytest.approx([part.flops for part in found.values()])


def test_memory_and_what_is_sent_are_those_of_the_networks(soft):
    estimate, job = soft[0], soft[0].job
    weights = sum(p.numel() for p in job.context.student.parameters())
    statistics = sum(b.nbytes for b in job.context.student.buffers())
    name = "student, its gradients and optimiser"
    assert estimate.memory(1)[name] == 4 * 3 * weights + statistics  # weights, gradients, momentum
    assert estimate.memory(2)[name] == 4 * 4 * weights + statistics
    learnt = sum(p.numel() for p in job.method.generator.parameters())
    in_generators = sum(b.nbytes for b in job.method.generator.buffers())
    steps = 4 * len(list(job.method.generator.parameters()))  # of Adam, a number each
    assert estimate.memory(1)["generator, twice, likewise"] == 4 * 8 * learnt + 2 * in_generators + steps
    epochs, values = estimate.length.epochs, estimate.values
    whole = 4 * (epochs * 3 * learnt + estimate.length.steps * weights)
    assert estimate.sent(1) == 0 and estimate.sent(2) == pytest.approx(whole)
    assert estimate.pool == epochs * values.synthesis_batch_size * 3 * 32 * 32


@pytest.mark.slow
def test_the_hard_loss_adds_p_and_the_twins(soft, monkeypatch):
    monkeypatch.chdir(ROOT)
    hard, soft = made("--hl", "--p_width", "4")[0], soft[0]
    assert hard.counts["iteration"].few.flops > soft.counts["iteration"].few.flops
    assert hard.counts["entry"].few.flops > 2 * soft.counts["teacher asked"].few.flops
    assert "P, likewise" in hard.memory() and hard.pool == soft.pool * (2 * 3072 + 8) / 3072


def test_it_prints_tables_with_a_column_for_each_number_of_gpus(soft, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    estimate, _, directions = soft
    monkeypatch.setattr(program, "job_of", lambda values: estimate.job)
    monkeypatch.setattr(program, "counted_pieces", lambda job: (estimate.counts, directions))
    program.main([*FLAGS, "--tflops", "0.001", "--share", "0.5", "--gpu_memory", "0.001"])
    said = capsys.readouterr().out
    assert "resnet20 > resnet8, digits at 32x32 pixels" in said and "assumed of a GPU: 0.001 TFLOP/s" in said
    assert "| generator, back to weights |" in said and "|  | 1 GPU | 2 GPUs |" in said
    operations = sum(part.flops for part in estimate.of_run().values())
    assert f"| hours, 0.5 of the rate | {operations / 1e9 / 0.5 / 3600:.2f} |" in said
    assert said.count("too much") == 2 and "pool when full, in host memory" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--dataset", "imagnet"], "imagenet"),
        (["--student", "resnet50_imagnet"], "resnet50_imagenet"),
        (["--tflop", "3"], "unknown flag --tflop"),
        (["--share", "0"], "--share"),
        (["--method", "cmi"], "--method"),
        (["--budget_seconds", "5"], "--epochs"),
        (["--gpus", "3"], "multiple"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_one_line(line, words):
    assert words in error_of(line, SimpleNamespace(main=program.main))


def test_rate_and_shares_are_those_that_were_measured_where_a_file_says_so(tmp_path):
    file = tmp_path / "gpu_check.json"
    told = {"wrn": (600.0, 0.1), "resnet": (800.0, 0.4), "machine": None}
    parts = {
        name: {
            "found": {"seconds": {}, "matmul_tflops": each[0], "share_of_matmul_rate": {"kd": each[1]}} if each else {}
        }
        for name, each in told.items()
    }
    file.write_text(json.dumps({"parts": parts}))
    options, _ = program.parsed([*FLAGS, "--measured", str(file)])
    assert options.tflops == 800 and options.share == pytest.approx([0.1 * 600 / 800, 0.4])
    with user_error("--measured gives the rate", "--tflops"):
        program.parsed([*FLAGS, "--measured", str(file), "--tflops", "5"])
    file.write_text(json.dumps({"parts": parts, "small": True}))
    with user_error("is of a CPU"):
        program.parsed([*FLAGS, "--measured", str(file)])
    for content in ('{"parts": {}}', "[1]", "no JSON"):
        file.write_text(content)
        with user_error("tells no rate", "gpu_check.json"):
            program.parsed([*FLAGS, "--measured", str(file)])


def test_without_a_data_set_it_is_the_papers_imagenet(monkeypatch):
    monkeypatch.chdir(ROOT)
    values = program.parsed(["--batch_size", "128"])[1]
    assert (values.dataset, values.teacher, values.student) == ("imagenet", "resnet50_imagenet", "resnet50_imagenet")
    assert (values.batch_size, values.synthesis_batch_size, values.g_steps, values.epochs) == (128, 64, 50, 420)
    with user_error("--img_size"):
        program.job_of(program.parsed(["--img_size", "32"])[1])
