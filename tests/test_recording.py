"""Steps recorded once and replayed are the eager steps: weights, optimiser, reports, costs, random streams."""

import copy
import dataclasses
from argparse import Namespace
from functools import partial
from itertools import product

import pytest
import torch
from conftest import BF16, FP16, FP32, same_state, small_classifier, small_context, small_spec, state_of
from cpu_graph import CpuGraph
from programs import QUICK, few_digits, finished  # noqa: F401
from test_student import LR, SIZE, B, N
from test_sync import a_round, prepared
from torch import nn

from datafree import processes
from datafree.data.batch import Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool, image_column
from datafree.engine import student
from datafree.engine.device import Compute
from datafree.engine.recording import WARM_UP, obstacle_to_recording
from datafree.engine.student import Student
from datafree.job import ways
from datafree.targets import Attack, Hard, Soft

STEPS = (5, 1, 4)  # of rounds; the third is replayed from its first step on
TRIED = 1  # replay that is compared with the step itself, at the step after the recording
FORMS = {
    "soft": (Soft, {}, {}),
    "hard": (Hard, {}, {}),
    "attack": (Attack, {"pa": 0.5, "p_width": 4}, {}),
    "attack at every step": (Attack, {"pa": 0.5, "p_width": 4, "attack_at": "step"}, {}),
    "attention": (Soft, {"at": 2.0}, {}),
    "echo": (Hard, {}, {"echo": 2}),
    "adam, clipped": (Soft, {}, {"optimizer": "adam", "clip_grad": 0.1}),
    "adamw": (Soft, {}, {"optimizer": "adamw"}),
    "nesterov, lr in steps": (Soft, {}, {"nesterov": True, "lr_steps": (0.3, 0.7)}),
    "no momentum": (Soft, {}, {"momentum": 0.0}),
}


class Rounds:
    """A student and what it learns from; its graphs, where its steps are recorded."""

    def __init__(self, form="soft", compute=FP32, recorded=True, student=None):
        kind, aims, knobs = FORMS[form]
        self.context = small_context(student=student or small_classifier(2), compute=compute)
        self.graphs = []
        config = Student.Config(**{"batch_size": B, "lr": LR, "lr_min": 0.01} | knobs)
        self.student = Student(self.context, config, sum(STEPS), self.graph if recorded else None)
        self.said, self.student.say = [], lambda line: self.said.append(line)
        self.targets = kind(self.context, kind.Config(**aims))
        self.targets.observed = True
        columns, rng = {"images": image_column((3, SIZE, SIZE))} | self.targets.columns, self.context.streams
        how = Placement(torch.device("cpu")), self.context.augmentation
        self.pool = ImagePool(3 * N, columns, *how, rng["distillation"], rng["distillation"])
        self.numbers = torch.Generator().manual_seed(1)

    def graph(self):
        self.graphs.append(CpuGraph())
        return self.graphs[-1]

    def learn(self, steps):
        """As a round does, the pool having grown; what was reported."""
        images = torch.rand(N, 3, SIZE, SIZE, generator=self.numbers)
        self.pool.add(self.targets.prepare(Batch(images)))
        self.student.learn(self.pool, self.targets, steps)
        return self.context.read().series


def assert_same(found, expected, tolerance=0.0):
    """Of two rounds: all that the next depends on; tensors to a tolerance."""
    near = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    near(state_of(found.student.classifier), state_of(expected.student.classifier))
    ours, theirs = (each.student.optimizer.state_dict() for each in (found, expected))
    near(ours["state"], theirs["state"])
    assert ours["param_groups"] == theirs["param_groups"]  # the rate a number, as it was
    assert found.student.scheduler.state_dict() == expected.student.scheduler.state_dict()
    assert found.context.costs.take() == expected.context.costs.take()
    assert same_state(*(each.context.streams.state_dict() for each in (found, expected)))


@pytest.mark.parametrize(
    ("form", "compute"),
    [
        *product(FORMS, (FP32,)),
        *(pytest.param(form, BF16, marks=pytest.mark.slow) for form in FORMS),
        *(
            pytest.param(form, FP16, marks=pytest.mark.slow)
            for form in ("soft", "attack at every step", "adam, clipped")
        ),
    ],
    ids=str,
)
def test_replayed_steps_are_the_eager_ones(form, compute):
    """Bit for bit; but for Adam, whose rate is rounded to fp32 in a tensor and is not outside of one."""
    recorded, eager = (Rounds(form, compute, how) for how in (True, False))
    tolerance = 1e-4 if "adam" in form else 0  # of the rate, which is rounded to fp32
    for steps in STEPS:
        found, expected = recorded.learn(steps), eager.learn(steps)
        assert found.keys() == expected.keys() and len(found["loss_kd"]) == steps
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=tolerance, abs=tolerance), name
    assert_same(recorded, eager, tolerance)
    (graph,) = recorded.graphs
    assert (graph.warmed, graph.recordings, graph.replays) == (WARM_UP, 1, TRIED + sum(STEPS) - WARM_UP - 1)
    assert graph.streams == ([recorded.context.streams["attack"]] if "attack" in form else [])
    assert recorded.said == []


def test_a_network_that_draws_from_pytorchs_own_stream_draws_the_same_numbers():
    def dropping():
        classifier = small_classifier(2)
        classifier.network.bn2 = nn.Sequential(classifier.network.bn2, nn.Dropout(0.5))
        return classifier

    states = []
    for how in (True, False):
        rounds = Rounds(recorded=how, student=dropping())
        torch.manual_seed(3)
        for steps in STEPS:
            rounds.learn(steps)
        states.append(state_of(rounds.student.classifier) | {"own": torch.get_rng_state()})
    assert same_state(*states)


class Reads(nn.Module):
    """Asks for a number, as only a network that is not recorded can."""

    def forward(self, x):
        return x if x.mean().item() < 1e9 else 0 * x


def reading():
    classifier = small_classifier(2)
    classifier.network.bn2 = nn.Sequential(classifier.network.bn2, Reads())
    return classifier


def test_a_step_that_reads_a_number_runs_as_it_is_and_one_line_says_so():
    recorded, eager = (Rounds(recorded=how, student=reading()) for how in (True, False))
    for steps in STEPS:
        assert recorded.learn(steps) == eager.learn(steps)
    assert_same(recorded, eager)
    (graph,), (line,) = recorded.graphs, recorded.said
    assert (graph.recordings, graph.replays) == (1, 0)
    assert line.startswith("warning: steps are not recorded") and "\n" not in line and "capturing" in line


@pytest.mark.parametrize("form", ["soft", "adam, clipped"])
def test_a_step_is_the_same_to_the_bit_whether_it_is_made_or_replayed(form):
    """As a run that is stopped and goes on wants it: its first steps are made again."""
    replayed, made = Rounds(form), Rounds(form)
    for steps in STEPS:
        for recording in made.student.recordings:
            recording.warm = 0
        assert replayed.learn(steps) == made.learn(steps)
    assert_same(replayed, made)
    assert [rounds.graphs[0].replays > TRIED for rounds in (replayed, made)] == [True, True]
    assert replayed.graphs[0].replays > made.graphs[0].replays


class Wrong(CpuGraph):
    """Does something else than what it has seen done."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def record(self, act, streams):
        super().record(act, streams)
        self.operations = [new for each in self.operations if (new := self.change(*each)) is not None]


def nothing(*_):
    return None


def gradients_of_nothing(operator, args, kwargs, fresh):
    if "_fused_" in operator.name():
        args = (args[0], [torch.zeros_like(gradient) for gradient in args[1]], *args[2:])
    return operator, args, kwargs, fresh


def rows_of_the_recording(operator, args, kwargs, fresh):
    kept = [each.clone() if isinstance(each, torch.Tensor) and each.dtype == torch.uint8 else each for each in args]
    return operator, kept, kwargs, fresh


@pytest.mark.slow
@pytest.mark.parametrize("change", [nothing, gradients_of_nothing, rows_of_the_recording])
@pytest.mark.parametrize("form", ["soft", "attack at every step", "adam, clipped"])
def test_a_graph_that_does_something_else_is_found_out_and_steps_go_on_as_they_are(form, change):
    """After steps that have left momentum, as a run that goes on has it."""
    recorded, eager = Rounds(form), Rounds(form, recorded=False)
    recorded.student.new_graph = lambda: Wrong(change)
    tolerance = 1e-4 if "adam" in form else 0  # as above
    assert recorded.learn(WARM_UP).keys() == eager.learn(WARM_UP).keys()
    (recording,) = recorded.student.recordings
    graph, recording.warm = recording.graph, 0
    for steps in (9, 4):
        found, expected = recorded.learn(steps), eager.learn(steps)
        assert all(found[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance) for name in expected)
    assert_same(recorded, eager, tolerance)
    (line,) = recorded.said
    assert "steps are not recorded" in line and "a replay changes weights otherwise" in line
    assert (recording.failed, recording.graph, graph.replays) == (True, None, TRIED)


def test_where_the_step_to_compare_with_overflows_the_next_one_is_taken():
    recorded = Rounds(compute=FP16)
    recorded.student.new_graph = lambda: Wrong(nothing)
    recorded.learn(WARM_UP + 1)
    scaler, (recording,) = recorded.context.scaler, recorded.student.recordings
    scaler._scale.fill_(2.0**40)  # any gradient overflows
    recorded.learn(1)
    assert recorded.said == [] and not (recording.checked or recording.failed)
    scaler._scale.fill_(2.0)
    recorded.learn(1)
    assert recording.failed and len(recorded.said) == 1


def test_steps_of_an_optimiser_that_reads_its_rate_are_not_recorded(monkeypatch):
    monkeypatch.setattr(student, "is_shared_out", lambda _: True)  # as complex weights, not for fused kernels
    rounds = Rounds()
    rounds.learn(WARM_UP + 2)
    assert rounds.student.optimizer.defaults["fused"] is False and rounds.student.recordings == []


def test_an_error_in_the_comparison_leaves_what_the_step_finds_as_it_was():
    class Breaks(CpuGraph):
        def replay(self):
            super().replay()
            raise RuntimeError("no more memory\nand a page about it")

    recorded, eager = Rounds(), Rounds(recorded=False)
    recorded.student.new_graph = Breaks
    for steps in STEPS:
        assert recorded.learn(steps) == eager.learn(steps)
    assert_same(recorded, eager)
    assert [line.rpartition(": ")[2] for line in recorded.said] == ["no more memory"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dfad", "zskt", "kd", "noise"])
def test_steps_on_what_a_method_makes_are_recorded_once_a_run(method, tmp_path):
    """Of methods without a pool, too, whose source is another object in each round."""
    job, graphs = prepared({"method": method}, FP32, tmp_path), []

    def graph():
        graphs.append(CpuGraph())
        return graphs[-1]

    job.student.new_graph = graph
    for _ in range(3):
        a_round(job)
    assert [(each.recordings, each.replays) for each in graphs] == [(1, TRIED + 6 - WARM_UP - 1)]


def test_a_batch_of_another_size_runs_as_it_is_and_the_next_is_replayed():
    class Sizes:
        made = staticmethod(Batch.of)

        def drawn(self, count, size):
            numbers = torch.Generator().manual_seed(2)
            for at in range(count):
                yield {"images": torch.rand(size - (at == 5), 3, SIZE, SIZE, generator=numbers)}

    recorded, eager = (Rounds(recorded=how) for how in (True, False))
    for rounds in (recorded, eager):
        rounds.student.learn(Sizes(), rounds.targets, 8)
        rounds.series = rounds.context.read().series
    assert recorded.series == eager.series
    assert_same(recorded, eager)
    assert recorded.graphs[0].replays == TRIED + 8 - WARM_UP - 1 - 1


def test_another_pool_has_a_recording_of_its_own_and_the_first_is_kept():
    rounds = Rounds()
    rounds.learn(WARM_UP + 2)
    own, rounds.pool = rounds.pool, copy.copy(rounds.pool)
    rounds.student.learn(rounds.pool, rounds.targets, WARM_UP + 3)
    rounds.student.learn(own, rounds.targets, 1)
    assert [graph.replays for graph in rounds.graphs] == [TRIED + 2, TRIED + 2]


def test_after_a_state_was_restored_steps_are_recorded_anew_and_go_on_as_eager_ones():
    eager, recorded = Rounds(recorded=False), Rounds()
    eager.learn(5)
    state, streams = copy.deepcopy(eager.student.state_dict()), eager.context.streams.state_dict()
    recorded.learn(4)
    recorded.student.load_state_dict(state)
    recorded.context.streams.load_state_dict(streams)
    for rounds in (eager, recorded):
        rounds.context.costs.take()
    assert recorded.learn(5) == eager.learn(5)
    assert_same(recorded, eager)
    assert [graph.replays for graph in recorded.graphs] == [0, TRIED + 5 - WARM_UP - 1]


def test_what_no_graph_can_hold_is_named_before_the_run(monkeypatch):
    on_gpu = partial(Compute, torch.device("cuda", 0), reason="in tests")
    assert obstacle_to_recording(on_gpu(torch.bfloat16)) == ""
    assert obstacle_to_recording(on_gpu(torch.float16)) == ""
    assert "not for cpu" in obstacle_to_recording(FP16)
    monkeypatch.setattr(processes, "_size", 2)
    assert "several processes" in obstacle_to_recording(on_gpu(torch.bfloat16))


@pytest.mark.parametrize(
    ("step", "size", "recorded"), [("auto", 64, True), ("auto", 65, False), ("graph", 224, True), ("eager", 32, False)]
)
def test_steps_on_a_gpu_are_recorded_unasked_up_to_64_pixels(step, size, recorded):
    on_gpu = Compute(torch.device("cuda", 0), torch.bfloat16, reason="in tests")
    how = ways(Namespace(shard=False, step=step), on_gpu, dataclasses.replace(small_spec(), img_size=(size, 32)))
    assert (how.new_graph is not None) == recorded == bool(how.remarks)
    here = ways(Namespace(shard=False, step="auto"), FP32, small_spec())
    assert here.new_graph is None and not here.remarks


@pytest.mark.slow
def test_a_run_on_the_cpu_that_asks_for_a_graph_says_so_in_a_line_and_is_the_eager_run(tmp_path):
    said = finished([*QUICK, "--step", "graph", "--run_root", tmp_path])
    lines = [line for line in said.splitlines() if "--step graph" in line]
    assert lines == ["warning: --step graph: steps are not recorded: CUDA graphs are not for cpu"]
