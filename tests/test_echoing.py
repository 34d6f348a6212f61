"""Lessons: batches as they come, or each image in several of them with one crop and one answer."""

from dataclasses import dataclass, field
from itertools import chain

import pytest
import torch
from conftest import SIZE, small_context
from programs import OF_LENET, at_epoch, few_digits, finished, json_of, run  # noqa: F401
from test_student import Lesson

from datafree.data.batch import TEACHER_LOGITS, Batch
from datafree.engine import echoing
from datafree.engine.echoing import lessons
from datafree.engine.student import Student
from datafree.targets import Attack, Hard, Soft
from datafree.targets.hard import HARD_LABELS
from scripts.kill_test import differences

B = 6


@dataclass
class Numbered:
    """Batches of images that are numbers 0, 1, 2, ..., and lessons that know how often they were asked for."""

    given: int = 0
    asked: list[int] = field(default_factory=list)

    def drawn(self, count, size):
        for _ in range(count):
            numbers = torch.arange(self.given, self.given + size).float()
            self.given += size
            yield {"images": numbers.view(-1, 1, 1, 1), "number": numbers}

    def made(self, drawn):
        return Batch.of(drawn)

    def lesson(self, batch):
        self.asked.append(len(batch))
        return Batch(batch.images, batch.columns | {"answer": 2 * batch.columns["number"]})


def all_of(*how):
    """The lessons."""
    drawn, make = lessons(*how)
    return [make(rows) for rows in drawn]


def numbers_of(steps, echo, size=B):
    """Of each lesson, and what was asked for."""
    source = Numbered()
    given = all_of(source, source, steps, size, echo, torch.Generator().manual_seed(0))
    for lesson in given:
        assert torch.equal(lesson.images.flatten(), lesson.columns["number"])
        assert torch.equal(lesson.columns["answer"], 2 * lesson.columns["number"])
    return [lesson.columns["number"].int().tolist() for lesson in given], source


def test_without_echo_batches_come_as_they_are_and_nothing_is_drawn_for_their_order():
    source = Numbered()
    assert [x.columns["number"][0] for x in all_of(source, source, 3, B, 1, None)] == [0, B, 2 * B]
    student = Lesson().student
    assert student.config.echo == 1 and "echo" not in student.context.streams.state_dict()


@pytest.mark.parametrize("least", [8, 2], ids=["one window", "several"])
@pytest.mark.parametrize(("steps", "echo"), [(12, 3), (12, 4), (6, 2), (1, 3)])
def test_every_image_is_in_as_many_lessons_as_asked_and_in_none_twice(monkeypatch, steps, echo, least):
    monkeypatch.setattr(echoing, "LEAST_BATCHES", least)
    monkeypatch.setattr(echoing, "WINDOW_BYTES", 0)
    given, source = numbers_of(steps, echo)
    fresh = -(-steps // echo)
    assert len(given) == steps and source.asked == fresh * [B] and source.given == fresh * B
    assert all(len(set(lesson)) == B for lesson in given)
    if fresh * echo == steps:
        counts = torch.tensor(given).flatten().bincount()
        assert counts.tolist() == fresh * B * [echo]
    if fresh > 1:
        assert sorted(given[0]) != list(range(B))  # mixed with others


def test_windows_are_of_one_size_or_nearly(monkeypatch):
    monkeypatch.setattr(echoing, "WINDOW_BYTES", 4 * B * 3)
    monkeypatch.setattr(echoing, "LEAST_BATCHES", 1)
    given, _ = numbers_of(steps=8, echo=2)  # four batches in windows of three at most: two and two
    assert {*chain(*given[:4])} == {*range(2 * B)} and {*chain(*given[4:])} == {*range(2 * B, 4 * B)}


def test_steps_that_are_no_multiple_end_where_they_should():
    given, source = numbers_of(steps=7, echo=3)
    assert len(given) == 7 and source.given == 3 * B


@pytest.mark.parametrize("targets", [Soft, Hard, Attack])
def test_a_lesson_has_the_teachers_answer_on_the_very_crop_and_the_teacher_is_asked_once_an_image(targets):
    context = small_context()
    aims = targets(context, targets.Config(**{"pa": 0.5} if targets is Attack else {}))
    if targets is Attack:
        aims.observed = True
    made = Lesson(context=context)
    context.costs.take()
    given = all_of(made.pool, aims, 8, B, 4, context.streams["echo"])
    twins = 2 if targets is Attack else 1  # are asked about, too
    assert context.costs.take()["teacher_forward"] == twins * 2 * B
    for lesson in given:
        torch.testing.assert_close(lesson.columns[TEACHER_LOGITS], context.teacher(lesson.images))
        assert lesson.columns.keys() == {TEACHER_LOGITS} | ({HARD_LABELS} if targets is not Soft else set())
        assert lesson.images.shape == (B, 3, SIZE, SIZE)


def test_a_student_takes_all_its_steps():
    made = Lesson()
    config = Student.Config(batch_size=B, lr=0.1, echo=3)
    student, before = Student(made.context, config, 7), made.context.student.network.fc.weight.clone()
    made.context.costs.take()
    student.learn(made.pool, made.targets, 7)
    costs = made.context.costs.take()
    assert (costs["teacher_forward"], costs["student_forward"]) == (3 * B, 7 * B)
    assert student.scheduler.last_epoch == 7 and not torch.equal(made.context.student.network.fc.weight, before)
    assert len(made.context.read().series["loss_kd"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--method aeahl_rg --synthesis_batch_size 8", "--method dafl"])
def test_a_run_with_it_that_was_interrupted_ends_bit_identical(more, tmp_path, at_epoch):  # noqa: F811
    flags = [*more.split(), "--echo", "3", "--epochs", "3", "--warmup", "0", "--kd_steps", "4", "--ep_steps", "8"]
    flags += ["--batch_size", "8", "--ngf", "4", "--precision", "fp32", *OF_LENET]
    finished([*flags, "--run_root", tmp_path / "whole"])
    at_epoch(2)
    assert run([*flags, "--run_root", tmp_path / "cut"])[0] == 143
    (whole,), (cut,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    finished(["--resume", cut])
    assert differences(whole, cut) == []
    costs = json_of(whole / "summary.json")["costs"]["distillation"]
    fresh = 3 * 2 * 2 * 8  # epochs, rounds, two batches for four steps, images
    assert costs["student_forward"] == 2 * fresh
    assert costs["teacher_forward"] == fresh
