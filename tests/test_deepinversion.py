"""DeepInversion's rounds against the algorithm in plain autograd and plain Adam; what they leave alone."""

import math

import pytest
import torch
from conftest import CLASSES, SIZE, small_classifier, small_context, small_teacher
from test_aeahl_rg import bn_inputs, bn_norms, context_of, moments, takes
from test_sync import no_reading  # noqa: F401

from datafree.engine.randomness import Streams
from datafree.methods.deepinversion import DeepInversion
from datafree.methods.priors import WITHOUT_STATISTICS

B, K, LR = 6, 4, 0.3


def method(context=None, **changes):
    values = {"synthesis_batch_size": B, "g_steps": K, "lr_x": LR, "adi": 2.0}
    return DeepInversion(context or context_of(), DeepInversion.Config(**values | changes))


def js_by_hand(p_logits, q_logits):
    """One image at a time, tau 3, each probability within [0.01, 0.99]."""
    total = 0.0
    for p, q in zip((p_logits / 3).softmax(1), (q_logits / 3).softmax(1), strict=True):
        p, q, m = (each.clamp(0.01, 0.99) for each in (p, q, (p + q) / 2))
        total += (m * (m / p).log()).sum() / 2 + (m * (m / q).log()).sum() / 2
    return (total / len(p_logits)).clamp(0, 1)


def round_by_hand(context, rng, adversarial, lr):
    """(Images of each iteration, terms by name, losses, whether any was mirrored)."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (context.spec.mean, context.spec.std))
    lowest, highest = (0 - mean) / std, (1 - mean) / std
    x = torch.randn(B, 3, SIZE, SIZE, generator=rng).minimum(highest).maximum(lowest).requires_grad_()
    y = torch.randint(CLASSES, (B,), generator=rng)
    adam = torch.optim.Adam([x], lr=lr, betas=(0.5, 0.99), foreach=False, fused=False)
    images, terms, losses, turned = [], {"loss_bn": [], "loss_oh": [], "loss_adi": []}, [], []
    for _ in range(K):
        pixels = x * std + mean
        down, right = (torch.randint(-1, 2, (1, 1), generator=rng).item() for _ in range(2))  # an eighth of 8 pixels
        turned.append(torch.rand(1, 1, generator=rng).item() < 0.5)
        seen = pixels.roll((down, right), (2, 3))
        seen = seen.flip(3) if turned[-1] and context.spec.flip else seen
        *inputs, logits = bn_inputs(context.teacher, seen)
        L_bn = bn_norms(context.teacher, moments(*inputs))
        L_oh = -logits.log_softmax(1)[torch.arange(B), y].mean()
        L_adi = 1 - js_by_hand(logits, context.student.network(takes(context.student, seen)))
        L_adi = L_adi if adversarial else torch.zeros(())
        loss = 1.0 * L_oh + 10.0 * L_bn + 2.0 * L_adi
        images.append(pixels.detach())
        losses.append(loss.item())
        for name, value in zip(terms, (L_bn, L_oh, L_adi), strict=True):
            terms[name].append(value.item())
        (x.grad,) = torch.autograd.grad(loss, [x])
        adam.step()
        x.data = x.data.minimum(highest).maximum(lowest)
    return images, terms, losses, any(turned)


@pytest.mark.parametrize(("formats", "lr"), [("one format", LR), ("two formats", LR), ("one format", 5.0)])
def test_rounds_are_those_by_hand_and_give_the_best_images_not_the_last(formats, lr):
    context = context_of(formats)
    context.student.eval()
    subject, rng, places, mirrored = method(context, lr_x=lr), Streams(0)["synthesis"], [], []
    for number in range(4):
        images, terms, losses, turned = round_by_hand(context, rng, number > 0, lr)
        batch, read = subject.synthesize(warmup=number == 0), context.read().series
        places.append(losses.index(min(losses)))
        mirrored.append(turned)
        torch.testing.assert_close(batch.images, images[places[-1]], rtol=1e-3, atol=1e-4)
        assert batch.images.min() >= 0 and batch.images.max() <= 1 and not batch.images.requires_grad
        for name, values in (terms | {"loss_generator": losses}).items():
            assert read.pop(name) == pytest.approx(values, rel=1e-3), name
        assert not read and (max(terms["loss_adi"]) > 0) == (number > 0)
    assert (min(places) < K - 1 or lr == LR) and any(mirrored)
    assert set(context.streams.state_dict()) == {"synthesis"}


def test_it_begins_in_the_datas_own_scale_within_what_pixels_can_be():
    images = method(g_steps=1, synthesis_batch_size=500).synthesize(True).images
    mean, std = torch.tensor((0.4, 0.5, 0.6)), torch.tensor((0.2, 0.25, 0.3))
    for c in range(3):  # N(mean, std), what lies beyond 0 or 1 moved there
        below, above = (0.5 * math.erfc(d / std[c] / 2**0.5) for d in (mean[c], 1 - mean[c]))
        assert (images[:, c] == 0).float().mean().item() == pytest.approx(below, abs=0.01)
        assert (images[:, c] == 1).float().mean().item() == pytest.approx(above, abs=0.01)
        assert images[:, c].median().item() == pytest.approx(mean[c].item(), abs=0.01)


def test_where_mirrored_images_have_another_class_none_is_mirrored():
    context = small_context(flip=False)
    seen = []
    context.observers.append(lambda x, logits: seen.append(x))
    method(context, jitter=0.0, lr_x=1e-9, g_steps=12).synthesize(True)
    assert len(seen) == 12
    for x in seen:
        torch.testing.assert_close(x, seen[0], rtol=0, atol=1e-6)


def test_every_iteration_is_shown_to_whoever_learns_from_it_and_a_samples_are_not():
    context, seen = context_of(), []
    context.observers.append(lambda *shown: seen.append(shown))
    subject = method(context)
    subject.synthesize(warmup=False)
    assert len(seen) == K and not any(each.requires_grad for shown in seen for each in shown)
    for x, logits in seen:
        torch.testing.assert_close(logits, context.teacher(x), rtol=1e-4, atol=1e-4)
    context.read()
    with torch.no_grad():
        sample = subject.sample(B + 1)
    assert len(seen) == K and context.read().series == {} and sample.shape == (B + 1, 3, SIZE, SIZE)
    twin = method(context_of())
    expected = [twin.inverted("sample", adversarial=False) for _ in range(2)]  # statistics of whole batches
    assert torch.equal(sample, torch.cat(expected)[: B + 1])


@pytest.mark.parametrize(("warmup", "adi"), [(True, 2.0), (False, 0.0)])
def test_in_warm_up_and_with_weight_zero_the_student_plays_no_part(warmup, adi):
    context = context_of()
    context.student.register_forward_pre_hook(lambda *_: pytest.fail("the student was called"))
    images = method(context, adi=adi).synthesize(warmup).images
    assert context.read().means()["loss_adi"] == 0
    assert torch.equal(images, method().synthesize(warmup=True).images)


def test_a_teacher_without_batch_norm_is_inverted_with_other_priors_which_the_log_names():
    subject = method(small_context(small_teacher(batch_norm=False), small_classifier(2)), tv=0.7)
    subject.synthesize(warmup=False)
    means = subject.context.read().means()
    assert "loss_bn" not in means and min(means[f"loss_{name}"] for name in ("tv", "l2", "oh", "adi")) > 0
    by_hand = 0.7 * means["loss_tv"] + WITHOUT_STATISTICS["l2"] * means["loss_l2"]
    assert means["loss_generator"] == pytest.approx(by_hand + means["loss_oh"] + 2 * means["loss_adi"])
    assert "tv 0.7, l2 0.1" in subject.remarks[0] and method().remarks == ["priors: bn 10"]


def test_a_round_reads_nothing_from_the_device(no_reading):  # noqa: F811
    subject = method()
    with no_reading:
        for _ in range(2):
            subject.synthesize(warmup=False)
