"""Noise as images: uniform, from the streams alone, and nobody is asked about it unless somebody learns from it."""

import pytest
import torch
from conftest import SIZE, small_context, small_teacher

from datafree.engine.randomness import Streams
from datafree.methods.noise import Noise


def method(context=None, count=6):
    return Noise(context or small_context(), Noise.Config(synthesis_batch_size=count))


def test_images_are_uniform_noise_of_the_stream_and_the_teacher_is_not_asked():
    teacher = small_teacher()
    teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher was asked"))
    subject, rng = method(small_context(teacher)), Streams(0)["synthesis"]
    for warmup in (True, False):
        images = subject.synthesize(warmup).images
        assert torch.equal(images, torch.rand(6, 3, SIZE, SIZE, generator=rng))
    assert torch.equal(subject.sample(9), torch.rand(9, 3, SIZE, SIZE, generator=Streams(0)["sample"]))
    assert subject.images_a_round == 6 and subject.state_dict() == {} and subject.context.read().series == {}


def test_normal_noise_has_the_datas_mean_and_deviation_and_is_made_anew_for_each_batch_of_the_student():
    context = small_context()
    subject, rng = Noise(context, Noise.Config(noise="normal")), Streams(0)["sample"]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (context.spec.mean, context.spec.std))
    assert not subject.pooled and subject.synthesize(False) is None
    for batch in subject.batches(2, 5):
        assert torch.equal(batch.images, mean + std * torch.randn(5, 3, SIZE, SIZE, generator=rng))
    x = subject.sample(2000)
    torch.testing.assert_close(x.mean((0, 2, 3)), mean.flatten(), atol=0.01, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), std.flatten(), atol=0.01, rtol=0)


def test_every_level_of_a_pixel_is_as_frequent():
    counts = torch.histc(method(count=2000).synthesize(False).images, bins=10, min=0, max=1)
    assert (counts / counts.sum() - 0.1).abs().max() < 2e-3


def test_an_attack_that_learns_from_every_batch_gets_the_teachers_answers_on_it():
    context, seen = small_context(), []
    context.observers.append(lambda *shown: seen.append(shown))
    images = method(context).synthesize(False).images
    ((x, logits),) = seen
    assert torch.equal(x, images) and torch.equal(logits, context.teacher(images))
