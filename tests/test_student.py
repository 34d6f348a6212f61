"""Distillation steps against SGD written out, the cosine, and what is left alone."""

import copy
import math

import pytest
import torch
from conftest import CPU, SIZE, loss_on, same_state, state_of, user_error
from test_aeahl_rg import context_of, takes

from datafree.data.batch import TEACHER_LOGITS, Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool, image_column
from datafree.engine.randomness import Streams
from datafree.engine.student import Student
from datafree.targets import Hard, Soft

B, LR, LR_MIN, MOMENTUM, WEIGHT_DECAY, TAU, TOTAL, N = 6, 0.1, 0.01, 0.9, 0.05, 4.0, 10, 20


class Lesson:
    """A student with a pool and targets."""

    def __init__(self, targets=Soft, context=None, total=TOTAL, lr=LR):
        self.context = context or context_of()
        streams = self.context.streams
        self.config = Student.Config(batch_size=B, lr=lr, lr_min=LR_MIN, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.student = Student(self.context, self.config, total)
        self.targets = targets(self.context, targets.Config(T=TAU))
        rng = streams["distillation"]
        self.pool = ImagePool(
            N, {"images": image_column((3, SIZE, SIZE))}, Placement(CPU), self.context.augmentation, rng, rng
        )
        self.pool.add(Batch(torch.rand(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))))

    def learn(self, steps):
        """What was reported."""
        self.student.learn(self.pool, self.targets, steps)
        return self.context.read().series


def cosine(step):
    """Learning rate of step 0, 1, ..., TOTAL."""
    return LR_MIN + (LR - LR_MIN) * (1 + math.cos(math.pi * step / TOTAL)) / 2


def learn_by_hand(lesson, student, rng, count):
    """Trains ``student`` in place; the terms of each step. The next indices are drawn before a batch is cropped."""
    teacher, hard, velocity = lesson.context.teacher, isinstance(lesson.targets, Hard), {}
    read = {"loss_kd": [], "loss_hard": [], "label_disagreement": count * [0.0]}
    student.train()
    upcoming = torch.randint(N, (B,), generator=rng)
    for step in range(count):
        chosen = upcoming
        upcoming = torch.randint(N, (B,), generator=rng) if step < count - 1 else None
        x = lesson.context.augmentation(lesson.pool.rows(0, N)[0][chosen], rng) / 255
        t, s = teacher.network(takes(teacher, x)), student.network(takes(student, x))
        p, log_q = (t / TAU).softmax(1), (s / TAU).log_softmax(1)
        L_kd = TAU**2 * (p * (p.log() - log_q)).sum() / B
        L_hard = -s.log_softmax(1)[range(B), t.argmax(1)].mean()
        loss = 0.9 * L_kd + 0.1 * L_hard if hard else L_kd
        parameters = dict(student.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, w), gradient in zip(parameters.items(), gradients, strict=True):
                gradient = gradient + WEIGHT_DECAY * w
                velocity[name] = MOMENTUM * velocity.get(name, torch.zeros_like(w)) + gradient
                w -= cosine(step) * velocity[name]
        read["loss_kd"].append(L_kd.item())
        read["loss_hard"].append(L_hard.item())
    return read if hard else {"loss_kd": read["loss_kd"]}


@pytest.mark.parametrize(
    ("targets", "formats"), [(Soft, "one format"), (Hard, "one format"), (Soft, "two formats"), (Hard, "two formats")]
)
def test_steps_are_sgd_with_momentum_and_weight_decay_on_the_targets_loss(targets, formats):
    lesson = Lesson(targets, context_of(formats))
    by_hand = copy.deepcopy(lesson.context.student)
    expected = learn_by_hand(lesson, by_hand, Streams(0)["distillation"], 4)
    read = lesson.learn(4)
    assert read.keys() == expected.keys() and len(set(expected["loss_kd"])) == 4
    for name, values in expected.items():
        assert read[name] == pytest.approx(values, rel=2e-3), name
    for (name, value), other in zip(
        lesson.context.student.state_dict().items(), state_of(by_hand).values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_rate_falls_along_one_cosine_over_all_rounds_and_a_cosine_that_rises_is_refused():
    lesson, rates = Lesson(), []
    for steps in (1, 4, 5):
        rates.append(lesson.student.lr)
        lesson.learn(steps)
    assert rates == pytest.approx([cosine(0), cosine(1), cosine(5)]) and lesson.student.lr == pytest.approx(LR_MIN)
    with user_error("--lr_min 0.2 is above --lr 0.1"):
        Student.Config(lr=0.1, lr_min=0.2)


def test_the_rate_falls_tenfold_at_shares_of_the_run_where_these_are_given():
    lesson = Lesson()
    student = Student(lesson.context, Student.Config(lr=0.5, lr_steps=(0.2, 0.6)), 10)  # its lr_min is not asked
    rates = []
    for _ in range(10):
        rates.append(student.lr)
        student.learn(lesson.pool, lesson.targets, 1)
    assert rates == pytest.approx(2 * [0.5] + 4 * [0.05] + 4 * [0.005])
    assert Student.Config(lr=1e-4, lr_steps=(0.5,)).lr_steps == (0.5,)


def test_the_teacher_is_left_as_it_came_and_the_student_trains_in_train_mode_whatever_mode_it_came_in():
    lesson, other = Lesson(), Lesson()
    other.context.student.eval()
    teacher = lesson.context.teacher
    before = state_of(teacher)
    for each in (lesson, other):
        each.learn(2)
    assert same_state(state_of(lesson.context.student), state_of(other.context.student))
    assert other.context.student.network.bn1.num_batches_tracked == 2
    assert same_state(state_of(teacher), before) and not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_only_the_stream_distillation_is_drawn_from_and_decides_everything():
    lessons = [Lesson(context=context_of(seed=seed)) for seed in (0, 0, 1)]
    for noise, lesson in enumerate(lessons):
        torch.manual_seed(noise)
        lesson.learn(2)
    first, same, other = (state_of(lesson.context.student) for lesson in lessons)
    assert list(lessons[0].context.streams.state_dict()) == ["distillation"]
    assert same_state(first, same) and not same_state(first, other)


STEPS = {  # the change of w after a first step with gradient g, written out; g already carries the weight decay
    "sgd": lambda w, g, raw: -LR * g,
    "nesterov": lambda w, g, raw: -LR * (g + MOMENTUM * g),
    "adam": lambda w, g, raw: -LR * g / (g.abs() + 1e-8),  # first step: m/(1-b1) = g, v/(1-b2) = g^2
    "adamw": lambda w, g, raw: -LR * WEIGHT_DECAY * w - LR * raw / (raw.abs() + 1e-8),
}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_first_step_of_each_optimiser_with_and_without_a_limit_to_the_gradient(kind, clip):
    how = {"optimizer": "sgd" if kind == "nesterov" else kind, "nesterov": kind == "nesterov"}
    config = Student.Config(lr=LR, lr_min=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, clip_grad=clip, **how)
    context, x = context_of(), torch.rand(B, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    before = copy.deepcopy(context.student).train()

    class Once:
        made = staticmethod(Batch.of)

        def drawn(self, count, size):
            yield {"images": x}

    targets = Soft(context, Soft.Config(T=TAU))
    weights = list(before.parameters())
    gradients = torch.autograd.grad(loss_on(targets, Batch(x), before), weights)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0.01
    scale = clip / (norm + 1e-6) if clip else 1.0
    Student(context, config, 5).learn(Once(), targets, 1)
    for w, g, after in zip(weights, gradients, context.student.parameters(), strict=True):
        sure = g.abs() > 1e-5  # where Adam's sign is not rounding
        change = STEPS[kind](w, g * scale + WEIGHT_DECAY * w, g * scale)
        torch.testing.assert_close((after - w)[sure], change[sure], rtol=1e-3, atol=1e-5)


def test_l1_is_the_mean_distance_of_the_logits_and_logits_that_come_with_a_batch_are_not_asked_for_again():
    context, x = context_of(), torch.rand(B, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    t = context.answers(x)
    s = context.ask(context.student, x)
    loss = loss_on(Soft(context, Soft.Config(kd_loss="l1")), Batch(x), context.student)
    torch.testing.assert_close(loss, (t - s).abs().mean(), rtol=1e-3, atol=1e-5)
    batch = Batch(x, {TEACHER_LOGITS: t + 3 * torch.eye(len(t), t.shape[1])})
    for targets in (Soft, Hard):
        config = targets.Config(T=TAU)
        known, asked = loss_on(targets(context, config), batch, context.student), targets(context, config)
        asked.context.answers = lambda x: batch.columns[TEACHER_LOGITS]
        torch.testing.assert_close(loss_on(asked, Batch(x), context.student), known)
        del context.answers
        assert loss_on(targets(context, config), Batch(x), context.student) != known


def test_a_state_dict_and_the_streams_continue_exactly(tmp_path):
    lesson, other = Lesson(), Lesson(context=context_of(seed=9))
    lesson.learn(3)
    other.learn(1)
    torch.save([lesson.student.state_dict(), lesson.context.streams.state_dict()], tmp_path / "state.pth")
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    other.student.load_state_dict(state)
    other.context.streams.load_state_dict(streams)
    assert other.learn(3) == lesson.learn(3)
    assert same_state(state_of(other.context.student), state_of(lesson.context.student))
