"""What a context does for a method: backward passes, answers, the student lent out, terms by name."""

import pytest
import torch
from conftest import (
    BF16,
    CLASSES,
    FP16,
    FP32,
    SIZE,
    same_state,
    small_classifier,
    small_context,
    small_teacher,
    state_of,
)
from torch import nn

from datafree.engine.context import Context
from datafree.engine.readings import Readings
from datafree.errors import NotFiniteError


def test_backward_gives_gradients_to_the_named_parameters_alone_and_anew():
    a, b = (nn.Parameter(torch.tensor([2.0, 3.0])) for _ in range(2))
    a.grad, b.grad = torch.full((2,), 7.0), torch.full((2,), 9.0)
    for _ in range(2):
        small_context().backward((a * b).sum(), [a])
        assert a.grad.tolist() == [2, 3] and b.grad.tolist() == [9, 9]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_student_is_lent_in_eval_mode_without_gradients_and_comes_back_as_it_was(training, fails):
    student = small_classifier(2).train(training)
    student.network.fc.bias.requires_grad_(False)
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    context, x = small_context(student=student), torch.rand(4, 3, SIZE, SIZE, requires_grad=True)
    before, expected = state_of(student), small_classifier(2).eval()(x)
    with pytest.raises(KeyError) if fails else torch.enable_grad(), context.student_as_judge() as judge:
        logits = judge(x)
        logits.sum().backward()
        if fails:
            raise KeyError
    assert torch.equal(logits, expected) and x.grad.any() and same_state(state_of(student), before)
    assert all(module.training == training for module in student.modules())
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == ["network.fc.bias"]
    assert all((parameter.grad == 3).all() for parameter in student.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_student_that_judges_in_train_mode_goes_by_the_batch_and_does_not_remember_it(training):
    student = small_classifier(2).train(training)
    student.network.bn1.track_running_stats = False
    context, x = small_context(student=student), torch.rand(4, 3, SIZE, SIZE, requires_grad=True)
    before, expected = state_of(student), small_classifier(2).train()(x)
    context.judge_trains = True
    with context.student_as_judge() as judge:
        logits = judge(x)
    logits.sum().backward()
    torch.testing.assert_close(logits, expected)
    assert x.grad.any() and same_state(state_of(student), before)
    assert all(module.training == training for module in student.modules())
    kept = [m.track_running_stats for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert kept == [False, *[True] * (len(kept) - 1)] and len(kept) > 1
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("compute", [FP32, BF16, FP16])
def test_logits_are_fp32_in_any_precision_and_answers_are_the_folded_teachers_and_want_no_gradient(compute):
    context, x, seen = small_context(compute=compute), torch.rand(4, 3, SIZE, SIZE, requires_grad=True), []
    context.teacher.network.conv1.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    context.answering = small_teacher(9)
    logits, answers = context.ask(context.teacher, x), context.answers(x)
    assert seen == [compute.dtype]
    assert logits.dtype == answers.dtype == torch.float32 and logits.shape == (4, CLASSES)
    assert logits.requires_grad and not answers.requires_grad
    torch.testing.assert_close(
        answers, small_teacher(9)(x).detach(), rtol=0.05, atol=0.2 if compute.autocasts else 1e-5
    )


def test_every_observer_is_shown_images_and_logits_without_their_gradients():
    seen, context, x = [], small_context(), torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    context.observers += [lambda *shown: seen.append(shown)] * 2
    context.observe(x, context.teacher(x))
    assert len(seen) == 2 and all(torch.equal(images, x) for images, _ in seen)
    assert not any(value.requires_grad for shown in seen for value in shown)


def test_terms_of_any_name_are_read_as_means_over_the_steps_that_reported_them_and_then_forgotten():
    context: Context = small_context()
    for step in range(3):
        context.report({"loss_new": torch.tensor(float(step), requires_grad=True), "rate": torch.tensor(step == 2)})
        context.report({"loss_kd": torch.tensor(step + 0.5).bfloat16()})
    context.report({"loss_kd": torch.tensor(7.5)})
    context.report({})
    read = context.read()
    assert read.means() == {"loss_new": 1.0, "rate": pytest.approx(1 / 3), "loss_kd": 3.0}
    assert read.series["loss_kd"] == [0.5, 1.5, 2.5, 7.5] and context.read().means() == {}


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_term_that_is_no_number_is_named_with_its_step(value):
    readings = Readings()
    for loss in (1.0, 2.0, value):
        readings.add({"loss_a": torch.ones(()), "loss_b": torch.tensor(loss)})
    with pytest.raises(NotFiniteError, match=f"loss_b became {value} in step 3"):
        readings.means()
