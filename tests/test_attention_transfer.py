"""--at: where teacher and student look, against the formula written out, and what becomes of the hooks."""

import pickle

import pytest
import torch
from conftest import MEAN, SIZE, STD, loss_on, small_classifier, small_context, state_of, user_error
from programs import OF_LENET, at_epoch, few_digits, finished, rows_of, run  # noqa: F401
from test_aeahl_rg import bn_inputs, context_of
from torch import nn

import registry
from datafree.data.batch import TEACHER_LOGITS, Batch
from datafree.losses.kd import attention_distance
from datafree.models.classifier import Classifier
from datafree.models.stage_maps import StageMaps
from datafree.targets import Hard, Soft
from scripts.kill_test import differences

AT, B = 3.0, 4


def look(x):
    """Q of a map (B, C, H, W), position by position."""
    a = torch.stack([(x[:, :, i, j] ** 2).mean(1) for i in range(x.shape[2]) for j in range(x.shape[3])], dim=1)
    return a / a.square().sum(1, keepdim=True).sqrt()


def convolved(classifier):
    """What the two convolutions of a small network give."""
    return bn_inputs(classifier, images())[:2]


def images():
    return torch.rand(B, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def test_the_distance_is_that_of_levels_that_both_have_and_has_no_gradient_into_the_teachers():
    t, s = {(4, 4): torch.rand(2, 16, requires_grad=True), (2, 2): torch.rand(2, 4)}, {(4, 4): torch.rand(2, 16)}
    s[4, 4].requires_grad_(True)
    found = attention_distance(t, s | {(8, 8): torch.rand(2, 64)})
    found.backward()
    assert found.item() == pytest.approx(float(((t[4, 4] - s[4, 4]).detach() ** 2).sum() / 32), rel=1e-5)
    assert t[4, 4].grad is None and s[4, 4].grad.abs().max() > 0


def test_a_students_loss_is_that_of_the_answers_and_of_the_maps_by_hand():
    for targets in (Soft, Hard):
        context = context_of()
        student, batch = context.student.train(), Batch(images())
        plain = loss_on(targets(context, targets.Config(T=2.0)), batch, student)
        context.read()
        found = loss_on(targets(context, targets.Config(T=2.0, at=AT)), batch, student)
        reported = context.read().means()
        pairs = zip(convolved(context.teacher), convolved(student), strict=True)
        by_hand = sum((look(of_teacher) - look(of_student)).square().mean() for of_teacher, of_student in pairs)
        assert reported["loss_at"] == pytest.approx(by_hand.item(), rel=1e-3)
        assert found.item() == pytest.approx(plain.item() + AT * by_hand.item(), rel=1e-3)
        found.backward()
        assert student.network.conv2.weight.grad.abs().max() > 0


STAGES = {  # parts whose outputs are the stages'
    "wrn16_1": ("block1", "block2", "block3"),
    "resnet8": ("layer1", "layer2", "layer3"),
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
}


@pytest.mark.parametrize("name", STAGES)
def test_maps_are_of_the_outputs_of_a_networks_stages(name):
    classifier, seen = registry.classifier(name, registry.DATASETS["digits"]).eval(), []
    for stage in STAGES[name]:
        classifier.network.get_submodule(stage).register_forward_hook(lambda _, args, output: seen.append(output))
    listener = StageMaps(classifier)
    with torch.no_grad(), listener.listening():
        classifier(torch.rand(2, 3, 32, 32))
    maps = listener.take()
    assert [*maps] == [(32, 32), (16, 16), (8, 8), (4, 4)][: len(seen)] and listener.take() == {}
    for output, q in zip(seen, maps.values(), strict=True):
        torch.testing.assert_close(q, look(output), rtol=1e-4, atol=1e-5)


def test_networks_without_batch_norm_have_maps_too():
    listener = StageMaps(registry.classifier("lenet5", registry.DATASETS["mnist"]))
    with torch.no_grad(), listener.listening():
        listener._classifier(torch.rand(2, 1, 32, 32))
    assert [*listener.take()] == [(28, 28), (10, 10)]


def test_images_that_come_again_are_not_asked_about_again():
    context = context_of()
    aims, batch = Soft(context, Soft.Config(at=AT)), Batch(images(), {TEACHER_LOGITS: torch.zeros(B, 5)})
    context.costs.take()
    for _ in range(3):
        loss_on(aims, batch, context.student)
    assert context.costs.take()["teacher_forward"] == B
    loss_on(aims, Batch(images(), batch.columns), context.student)
    assert context.costs.take()["teacher_forward"] == B
    loss_on(aims, Batch(images()), context.student)  # one pass gives logits and maps
    assert context.costs.take()["teacher_forward"] == B


def test_networks_without_maps_of_one_size_are_refused_in_one_line():
    smaller = small_classifier(2, mean=MEAN, std=STD, size=10)  # 10 and 5 pixels, its teacher's are 8 and 4
    with user_error("--at: teacher and student make no feature maps of one size", "--at 0"):
        Soft(small_context(student=smaller), Soft.Config(at=AT))


def test_a_student_that_is_released_has_no_hooks_and_nothing_was_changed_by_looking():
    context = context_of()
    before = state_of(context.student)
    aims = Soft(context, Soft.Config(at=AT))
    assert all(torch.equal(before[name], value) for name, value in state_of(context.student).items())
    loss_on(aims, Batch(images()), context.student)
    context.student.release()
    assert not any(module._forward_hooks for module in context.student.network.modules())
    whole = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), "x", 5, 2, (0, 0, 0), (1, 1, 1))
    assert small_classifier(1).hooks == [] and pickle.loads(pickle.dumps(whole)).hooks == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zskt", "noise"])
def test_a_run_with_it_that_was_interrupted_ends_bit_identical(method, tmp_path, at_epoch):  # noqa: F811
    flags = ["--method", method, "--at", "50", "--epochs", "3", "--warmup", "0", "--kd_steps", "2", "--ep_steps", "4"]
    flags += ["--batch_size", "8", "--synthesis_batch_size", "8", "--precision", "fp32", *OF_LENET]
    finished([*flags, "--run_root", tmp_path / "whole"])
    at_epoch(2)
    assert run([*flags, "--run_root", tmp_path / "cut"])[0] == 143
    (whole,), (cut,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    finished(["--resume", cut])
    assert differences(whole, cut) == [] and float(rows_of(cut)[-1]["loss_at"]) > 0
