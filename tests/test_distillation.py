"""Distillation steps against SGD written out, the cosine, and what is left alone."""

import copy
import math

import pytest
import torch
from conftest import FP32, SIZE, same_state, small_augmentation, small_classifier, small_teacher, state_of
from datafree.distillation import Distillation, DistillationSettings
from datafree.flags import distillation_parser
from datafree.randomness import Streams

from datafree.data.pool import ImagePool

B, LR, LR_MIN, MOMENTUM, WEIGHT_DECAY, TAU, TOTAL = 6, 0.1, 0.01, 0.9, 0.05, 4.0, 10


def distillation(seed=0, **changes):
    values = {"batch_size": B, "lr": LR, "lr_min": LR_MIN, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "T": TAU}
    total_steps = changes.pop("total_steps", TOTAL)
    line = " ".join(f"--{name} {value}" for name, value in (values | changes).items())
    args = distillation_parser().resolve(line.split(), lambda args: {})
    knobs = DistillationSettings.of(args, total_steps)
    student = small_classifier(2)
    return Distillation(small_teacher(), student, knobs, small_augmentation(), FP32, Streams(seed))


def pool(count=20):
    filled = ImagePool(30, SIZE)
    filled.add(torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    return filled


def cosine(step):
    """Learning rate of step 0, 1, ..., TOTAL."""
    return LR_MIN + (LR - LR_MIN) * (1 + math.cos(math.pi * step / TOTAL)) / 2


def steps_by_hand(teacher, student, filled, streams, count):
    """Trains ``student`` in place; the loss of each step."""
    rng, velocity, losses = streams["distillation"], {}, []
    student.train()
    for step in range(count):
        chosen = torch.randint(len(filled), (B,), generator=rng)
        x = small_augmentation()(filled.rows(0, len(filled))[0][chosen].float() / 255, rng)
        p, log_q = (teacher(x) / TAU).softmax(1), (student(x) / TAU).log_softmax(1)
        loss = TAU**2 * (p * (p.log() - log_q)).sum() / B
        parameters = dict(student.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, w), gradient in zip(parameters.items(), gradients, strict=True):
                gradient = gradient + WEIGHT_DECAY * w
                velocity[name] = MOMENTUM * velocity.get(name, torch.zeros_like(w)) + gradient
                w -= cosine(step) * velocity[name]
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("count", [1, 4])
def test_steps_are_sgd_with_momentum_and_weight_decay_on_the_distillation_loss(count):
    subject, filled = distillation(), pool()
    by_hand = copy.deepcopy(subject.student)
    losses = steps_by_hand(subject.teacher, by_hand, filled, Streams(0), count)
    reported = subject.run(filled, count)
    for (name, value), expected in zip(
        subject.student.state_dict().items(), by_hand.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert reported["loss_kd"] == pytest.approx(sum(losses) / count, rel=1e-3)


def test_the_learning_rate_falls_along_a_cosine_from_lr_to_lr_min_over_all_steps():
    subject, filled = distillation(), pool()
    rates = [subject.lr]
    for _ in range(TOTAL):
        rates.append(subject.run(filled, 1)["lr"])
    assert rates[1:] == pytest.approx([cosine(step) for step in range(TOTAL)])
    assert rates[0] == rates[1] == LR and subject.lr == pytest.approx(LR_MIN)


def test_the_cosine_does_not_start_again_with_the_next_round():
    subject, filled = distillation(), pool()
    rates = [subject.run(filled, 4)["lr"] for _ in range(2)]
    assert rates == pytest.approx([cosine(3), cosine(7)])  # that of each round's last step


def test_the_reported_loss_is_the_mean_over_the_steps_of_one_round():
    filled, singles = pool(), distillation()
    losses = [singles.run(filled, 1)["loss_kd"] for _ in range(5)]
    assert distillation().run(filled, 5)["loss_kd"] == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert max(losses) - min(losses) > 1e-3


def test_the_teacher_is_left_as_it_came():
    subject = distillation()
    before = state_of(subject.teacher)
    subject.run(pool(), 3)
    assert same_state(state_of(subject.teacher), before)
    assert not any(p.requires_grad or p.grad is not None for p in subject.teacher.parameters())
    assert not any(module.training for module in subject.teacher.modules())


def test_the_student_trains_in_train_mode_whatever_mode_it_came_in():
    subject, other = distillation(), distillation()
    other.student.eval()
    for each in (subject, other):
        each.run(pool(), 2)
    assert same_state(state_of(subject.student), state_of(other.student))
    assert subject.student.bn1.num_batches_tracked == 2


def test_only_the_stream_distillation_is_drawn_from_and_decides_everything():
    subject, other, third = distillation(), distillation(), distillation(seed=1)
    for noise, each in enumerate((subject, other, third)):
        torch.manual_seed(noise)
        each.run(pool(), 2)
    assert list(subject.streams.state_dict()) == ["distillation"]
    assert same_state(state_of(subject.student), state_of(other.student))
    assert not same_state(state_of(subject.student), state_of(third.student))


def test_training_brings_the_student_closer_to_the_teacher():
    subject, filled = distillation(lr=0.05, total_steps=60), pool()
    first = subject.run(filled, 5)["loss_kd"]
    subject.run(filled, 50)
    assert subject.run(filled, 5)["loss_kd"] < 0.5 * first


def test_a_state_dict_and_the_streams_continue_exactly(tmp_path):
    subject, filled = distillation(), pool()
    subject.run(filled, 3)
    torch.save([subject.state_dict(), subject.streams.state_dict()], tmp_path / "state.pth")
    expected = subject.run(filled, 3)
    other = distillation(seed=9)
    other.run(filled, 1)
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    other.load_state_dict(state)
    other.streams.load_state_dict(streams)
    assert other.run(filled, 3) == expected
    assert same_state(state_of(other.student), state_of(subject.student))
