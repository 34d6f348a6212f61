"""The four steps of the attack, each against a version written out sample by sample."""

import copy
import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from conftest import BF16, FP16, FP32, SIZE, same_state, small_context, small_teacher, state_of, user_error

from datafree.data.augmentation import Augmentation
from datafree.data.batch import TEACHER_LOGITS, Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool, image_column
from datafree.models.classifier import Normalise
from datafree.targets.attack import Attack, Pair, attack_loss, perturb, swap
from datafree.targets.hard import HARD_LABELS

NORMALISATIONS = [((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), ((0.1, 0.6, 0.9), (0.05, 0.7, 3.0))]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(B, size=SIZE, seed=0):
    """Images in [0, 1], a tenth of the values at either end of the range."""
    return (1.25 * torch.rand(B, 3, size, size, generator=stream(seed)) - 0.125).clamp(0, 1)


def attack(compute=FP32, strength=1.0, teacher=None, **changes):
    """Its teacher gives noise images different classes; its P changes pixels as much as asked."""
    teacher = teacher or small_teacher()
    with torch.no_grad():
        teacher.network.fc.bias -= teacher(torch.rand(200, 3, SIZE, SIZE, generator=stream())).mean(0)
    made = Attack(small_context(teacher, compute=compute), Attack.Config(**{"p_width": 4} | changes))
    made.P.layers[-1].weight.data *= strength
    made.observed = True
    return made


# 1. Train P


@pytest.mark.parametrize(("mean", "std"), NORMALISATIONS)
def test_perturb_is_the_clamped_sum_of_pixels_and_what_p_makes_of_normalised_ones(mean, std):
    normalise, x, bound, seen = Normalise(mean, std), pixels(2), 10 / 255, []
    before, wave = x.clone(), torch.sin(torch.arange(x.numel())).view_as(x)
    found = perturb(lambda given: seen.append(given) or wave, x, bound, normalise)
    by_hand = [
        min(max(a + bound * b, 0.0), 1.0) for a, b in zip(x.flatten().tolist(), wave.flatten().tolist(), strict=True)
    ]
    assert found.flatten().tolist() == pytest.approx(by_hand, abs=1e-6)
    torch.testing.assert_close(seen[0], (x - normalise.mean) / normalise.std)
    unchanged = perturb(torch.zeros_like, x, bound, normalise)
    assert torch.equal(unchanged, x) and torch.equal(unchanged.fill_(7) * 0 + x, before)


def test_attack_loss_is_the_log_of_the_mean_cross_entropy_in_fp32():
    logits, y = 3 * torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    total = 0.0
    for row, wanted in zip(logits.tolist(), y.tolist(), strict=True):
        total += math.log(sum(math.exp(value) for value in row)) - row[wanted]
    assert attack_loss(logits, y).item() == pytest.approx(math.log(total / 6), rel=1e-5)
    half = logits.bfloat16()
    assert torch.equal(attack_loss(half, y), attack_loss(half.float(), y))


def test_attack_loss_where_the_cross_entropy_is_zero_is_finite_with_gradient_zero():
    logits = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    loss = attack_loss(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(torch.finfo(torch.float32).eps))
    assert torch.equal(logits.grad, torch.zeros(1, 3))


def test_train_step_is_one_adam_step_on_the_loss_towards_the_least_likely_class():
    made, x = attack(lr_p=2e-3, attack_bound=25.0), pixels(4)
    teacher, network = made.context.teacher, copy.deepcopy(made.P).train()
    logits = teacher(x)
    y_minus = torch.tensor([row.index(min(row)) for row in logits.tolist()])
    adam = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(3):
        attacked = (x + 25 / 255 * network((x - teacher.mean) / teacher.std)).clamp(0, 1)
        loss = F.cross_entropy(teacher(attacked), y_minus).log()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        made.context.observe(x, logits)  # as a method does at every iteration
    assert made.context.read().series == {"loss_gap": pytest.approx(losses, rel=1e-3)}
    for one, other in zip(made.P.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("frozen", [True, False])
def test_teacher_and_images_get_no_gradient_and_nothing_is_drawn_from_the_global_stream(frozen):
    made, x = attack(), pixels(4).requires_grad_()
    teacher = made.context.teacher.requires_grad_(not frozen)
    before, drawn = state_of(teacher), torch.get_rng_state()
    made.train_step(x, teacher(x))
    made.swapped_pair(x)
    assert x.grad is None and all(parameter.grad is None for parameter in teacher.parameters())
    assert same_state(state_of(teacher), before) and not any(module.training for module in teacher.modules())
    assert torch.equal(torch.get_rng_state(), drawn)


# 2. Attack


@pytest.mark.parametrize("compute", [FP32, BF16, FP16], ids=["fp32", "bf16", "fp16"])
def test_a_pair_holds_each_image_attacked_by_itself_with_the_teachers_logits_on_both(compute):
    made, x = attack(compute, strength=1e4), pixels(5)
    made.train_step(x, made.context.answers(x))
    before, pair = state_of(made.P), made.pair(x)
    alone = torch.cat([made.pair(image[None]).twins for image in x])
    torch.testing.assert_close(pair.twins, alone, rtol=0, atol=1e-5 if compute is FP32 else 1e-2)
    assert torch.equal(pair.images, x) and (pair.twins - x).abs().amax() > 0.01
    assert torch.equal(pair.logits, made.context.answers(x))
    assert torch.equal(pair.twin_logits, made.context.answers(pair.twins))
    assert same_state(state_of(made.P), before) and not pair.twins.requires_grad


# 3. Swap


def drawn_pair(B=24):
    """Half of the samples keep their class; every image value is distinct."""
    clean, attacked = torch.randn(2, B, 5)
    labels = clean.argmax(1)
    attacked[::2].scatter_(1, labels[::2, None], 2 + torch.rand(len(labels[::2]), 1))
    images = torch.arange(2 * B * 12.0).view(2, B, 3, 2, 2)
    return Pair(images[0], images[1], clean, attacked)


def test_swap_exchanges_twins_of_one_class_where_the_attacked_one_is_no_less_confident_by_hand():
    pair = drawn_pair()
    before = copy.deepcopy(pair)
    after, swapped = swap(pair)
    assert 0 < swapped.sum() < len(swapped)
    for i in range(len(swapped)):
        own, twin = before.logits[i].tolist(), before.twin_logits[i].tolist()
        c, c_twin = (max(math.exp(v) for v in row) / sum(math.exp(v) for v in row) for row in (own, twin))
        change = own.index(max(own)) == twin.index(max(twin)) and c_twin >= c
        assert swapped[i].item() == change
        for clean, attacked in (("images", "twins"), ("logits", "twin_logits")):
            sides = getattr(before, clean)[i], getattr(before, attacked)[i]
            first, second = sides[::-1] if change else sides
            assert torch.equal(getattr(after, clean)[i], first) and torch.equal(getattr(after, attacked)[i], second)
    assert torch.equal(after.labels, before.labels) and torch.equal(after.succeeded, before.succeeded)
    kept = copy.deepcopy(after)
    for field in fields(Pair):
        assert torch.equal(getattr(pair, field.name), getattr(before, field.name))
        getattr(pair, field.name).fill_(-1)  # the result shares no memory with it
        assert torch.equal(getattr(after, field.name), getattr(kept, field.name))


def test_equal_confidence_swaps_and_another_class_never_does():
    own = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    twin = torch.tensor([[2.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.9, 0.0, 0.0]])
    pair = Pair(torch.zeros(3, 3, 1, 1), torch.ones(3, 3, 1, 1), own, twin)
    assert pair.succeeded.tolist() == [False, True, False]
    assert swap(pair)[1].tolist() == [True, False, False]


def test_what_enters_the_pool_is_the_swapped_pair_with_the_labels_of_both_twins():
    made, x = attack(strength=1e4, attack_bound=40.0), torch.rand(40, 3, SIZE, SIZE)
    pair = made.pair(x)
    expected, swapped = swap(pair)
    batch, read = made.prepare(Batch(x, {"other": torch.arange(40)})), made.context.read().means()
    assert torch.equal(batch.images, expected.images) and torch.equal(batch.columns["twins"], expected.twins)
    assert torch.equal(batch.columns["labels"], pair.labels) and batch.columns["other"].tolist() == list(range(40))
    assert batch.columns.keys() == {"other", *made.columns}
    rates = swapped.float().mean().item(), pair.succeeded.float().mean().item()
    assert 0 < rates[0] < 1 and (read["swap_rate"], read["attack_success"]) == pytest.approx(rates)

    unswapped = attack(strength=1e4, no_swap=True)
    assert torch.equal(unswapped.prepare(Batch(x)).images, x) and unswapped.context.read().means()["swap_rate"] == 0


def test_the_pool_gives_back_the_images_and_twins_that_were_made():
    made, x = attack(strength=1e4, attack_bound=40.0), torch.rand(20, 3, SIZE, SIZE)
    batch = made.prepare(Batch(x))
    columns = {"images": image_column((3, SIZE, SIZE))} | made.columns
    crops, draws = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    pool = ImagePool(20, columns, Placement(torch.device("cpu")), Augmentation(0, flip=False), crops, draws)
    pool.add(batch)
    index = torch.randint(20, (50,), generator=torch.Generator().manual_seed(2))
    (drawn,) = pool.batches(1, 50)
    levels = {"rtol": 0, "atol": 0.501 / 255}
    torch.testing.assert_close(drawn.images, batch.images[index], **levels)
    torch.testing.assert_close(drawn.columns["twins"], batch.columns["twins"][index], **levels)
    assert (drawn.columns["twins"] - drawn.images).abs().max() <= 41 / 255


# 4. Attack with probability pa


@pytest.mark.parametrize(("at", "pooled"), [("pool", True), ("step", True), ("pool", False)])
@pytest.mark.parametrize("pa", [0.5, 1.0])
def test_attacked_samples_keep_the_clean_label_and_get_the_teachers_logits_on_what_the_student_sees(at, pooled, pa):
    made, x = attack(strength=1e4, attack_at=at, pa=pa, attack_bound=255.0, no_swap=True), torch.rand(50, 3, SIZE, SIZE)
    teacher, batch = made.context.teacher, made.prepare(Batch(x)) if pooled else Batch(x)
    twins = batch.columns["twins"] if batch.columns else made.pair(x).twins
    lesson = made.lesson(batch)
    teacher_logits, labels = lesson.columns[TEACHER_LOGITS], lesson.columns[HARD_LABELS]
    attacked = torch.rand(50, generator=made.context.streams.again("attack")) < pa
    assert torch.equal(lesson.images, torch.stack([twins[i] if attacked[i] else x[i] for i in range(50)]))
    assert torch.equal(labels, teacher(x).argmax(1))
    torch.testing.assert_close(teacher_logits, teacher(lesson.images))
    assert pa < 1 or (labels != teacher_logits.argmax(1)).any()
    assert made.context.read().means()["attacked_rate"] == pytest.approx(attacked.float().mean().item())


def test_a_method_that_shows_the_attack_nothing_is_told_so():
    made = attack()
    made.observed = False
    with user_error("no images to learn from", "context.observe"):
        made.lesson(Batch(pixels(2)))
    made.train_step(pixels(4), made.context.answers(pixels(4)))
    restored = attack()
    restored.observed = False
    restored.load_state_dict(made.state_dict())
    assert made.observed and restored.observed


def test_restored_attack_goes_on_as_if_uninterrupted():
    x, (one, other) = pixels(4), (attack() for _ in range(2))
    logits = one.context.answers(x)
    one.train_step(x, logits)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for made in (one, other):
        made.context.read()
        made.train_step(x, logits)
    assert one.context.read().series == other.context.read().series
    assert same_state(state_of(one.P), state_of(other.P))
