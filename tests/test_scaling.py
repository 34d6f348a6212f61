"""fp16: gradients are those of fp32 to rounding, an overflow harms nothing, and the scale goes on where it was."""

import math

import pytest
import torch
from conftest import BF16, CLASSES, FP16, FP32, SIZE, same_state, small_classifier, small_context, state_of
from programs import FOLDER, QUICK, at_epoch, few_digits, finished, json_of, rows_of, run  # noqa: F401
from test_student import Lesson
from torch import nn

from datafree.data.augmentation import Augmentation
from datafree.data.batch import Batch
from datafree.data.specs import TensorImages
from datafree.engine.randomness import Streams
from datafree.engine.scaling import Scaler
from datafree.engine.student import Student
from datafree.engine.training import Training
from scripts.kill_test import differences

FIRST, INFINITE = 2.0**16, float("inf")


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def gradients(compute, size, unscaled=False):
    """Of a loss of about that size, to the images and to a weight that lies far from it; and the loss."""
    context = small_context(compute=compute)
    x = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = context.student.network.conv1.weight
    loss = size * context.ask(context.student, x).square().mean()
    if unscaled:
        loss.backward(inputs=[x, weight])
    else:
        loss = context.backward(loss, [x, weight])
    return x.grad, weight.grad, loss.detach()


def test_gradients_and_loss_of_fp16_are_those_of_fp32_where_unscaled_they_would_be_zero():
    expected, found, without = gradients(FP32, 1e-6), gradients(FP16, 1e-6), gradients(FP16, 1e-6, unscaled=True)
    assert [relative(*pair) < 2e-2 for pair in zip(found, expected, strict=True)] == 3 * [True]
    assert relative(without[0], expected[0]) > 0.2
    assert found[0].dtype == found[1].dtype == torch.float32


@pytest.mark.parametrize("bad", [INFINITE, float("nan")])
def test_an_overflow_leaves_gradients_of_zero_and_half_the_scale(bad):
    context, (a, b) = small_context(compute=FP16), (nn.Parameter(torch.ones(3)) for _ in range(2))
    context.backward(b.sum() + (a * torch.tensor([1.0, bad, 1.0])).sum(), [a, b])
    assert not a.grad.any() and not b.grad.any() and context.scaler.get_scale() == FIRST / 2
    assert context.backward((2 * a).sum(), [a, b]) == 6
    assert a.grad.tolist() == 3 * [2] and b.grad is None and context.scaler.get_scale() == FIRST / 2


def test_the_scale_doubles_after_so_many_good_steps_in_a_row():
    context, a = small_context(compute=FP16), nn.Parameter(torch.ones(1))
    assert context.scaler.get_growth_interval() == 2000
    context.scaler.set_growth_interval(3)
    scales = []
    for factor in (1, 1, INFINITE, 1, 1, 1, 1):
        context.backward((factor * a).sum(), [a])
        scales.append(context.scaler.get_scale() / FIRST)
    assert scales == [1, 1, 0.5, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize("compute", [FP32, BF16])
def test_in_other_precisions_nothing_is_scaled_or_kept(compute):
    scaler, loss = Scaler(compute), torch.ones(1)
    assert scaler.scale(loss) is loss and scaler.state_dict() == {} and not scaler.is_enabled()


class Spoilt:
    """Targets whose losses are those of others times a factor a step."""

    def __init__(self, targets, *factors):
        self.targets, self.factors = targets, list(factors)

    def lesson(self, batch):
        return self.targets.lesson(batch)

    def loss(self, lesson, student):
        return self.targets.loss(lesson, student) * self.factors.pop(0)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_of_the_student_that_overflows_is_not_made_whether_it_is_the_first_or_a_later_one(kind, clip):
    config = Student.Config(batch_size=6, lr=0.01, lr_min=0.01, optimizer=kind, clip_grad=clip)

    class Same:
        """One batch, again and again."""

        def drawn(self, count, size):
            return [{"images": torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))}] * count

        def made(self, drawn):
            return Batch.of(drawn)

    def learnt(*factors):
        """The student before, its weights after, and itself."""
        lesson = Lesson(context=small_context(compute=FP16))
        student, before = Student(lesson.context, config, 100), state_of(lesson.context.student)
        student.learn(Same(), Spoilt(lesson.targets, *factors), len(factors))
        weights = lesson.context.student.network.named_parameters()
        return before, {name: value.detach() for name, value in weights}, student

    before, unchanged, student = learnt(INFINITE)
    assert all(torch.equal(value, before[name]) for name, value in unchanged.items())
    assert student.scaler.get_scale() == FIRST / 2
    state = [value for kept in student.optimizer.state.values() for value in kept.values()]
    assert state and not any(value.any() for value in state)
    (_, plain, twice), (_, late, among_others) = learnt(1, 1), learnt(INFINITE, 1, INFINITE, 1)
    assert among_others.scaler.get_scale() == twice.scaler.get_scale() / 4
    for name, value in plain.items():
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(late[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


def bright_or_dark(count):
    """Images of CLASSES brightnesses, and which."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 30, (count, 3, SIZE, SIZE), generator=rng)
    return TensorImages((noise + 50 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


def training():
    streams = Streams(0)
    config = Training.Config(batch_size=25, lr=0.05, epochs=8)
    return Training(small_classifier(4), bright_or_dark(250), config, Augmentation(0, False), FP16, streams), streams


def test_training_in_fp16_learns_and_goes_on_bit_for_bit_where_it_was_saved(tmp_path):
    (whole, streams), (rest, others) = training(), training()
    for _ in range(4):
        whole.epoch()
    torch.save([whole.state_dict(), streams.state_dict()], tmp_path / "state.pth")
    state, of_streams = torch.load(tmp_path / "state.pth", weights_only=True)
    rest.load_state_dict(state)
    others.load_state_dict(of_streams)
    rows = [(whole.epoch(), rest.epoch()) for _ in range(4)]
    assert all(a == b for a, b in rows) and rows[-1][0]["accuracy_train"] > 60  # chance is 20
    assert same_state(state_of(whole.classifier), state_of(rest.classifier))
    assert whole.scaler.state_dict() == rest.scaler.state_dict() and state["scaler"]["_growth_tracker"] > 0


def test_a_state_of_training_from_before_there_was_a_scale_loads():
    (subject, _), state = training(), training()[0].state_dict()
    subject.scaler = Scaler(FP32)  # as such a run has it
    subject.load_state_dict({name: value for name, value in state.items() if name != "scaler"})


@pytest.mark.slow
def test_a_run_in_fp16_ends_well_and_bit_identical_where_it_was_interrupted(tmp_path, at_epoch):  # noqa: F811
    line = [*QUICK, "--precision", "fp16", "--device", "cpu", "--run_root"]
    log = finished([*line, tmp_path / "whole"])
    assert "runs on: cpu, fp16 autocast, channels_last (as asked)" in log
    whole, cut = (tmp_path / name / FOLDER for name in ("whole", "cut"))
    assert all(math.isfinite(float(row["loss_kd"])) for row in rows_of(whole)[1:])
    state = torch.load(whole / "last.pth", weights_only=True)["scaler"]
    steps = 3 * 2 + 2 * 2  # of the generator, of the student
    assert state["scale"] < FIRST or state["_growth_tracker"] == steps
    at_epoch(2)
    assert run([*line, tmp_path / "cut"])[0] == 143
    finished(["--resume", cut])
    assert differences(whole, cut) == [] and json_of(cut / "config.json")["precision"] == "fp16"
