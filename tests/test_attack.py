"""The four steps of the attack, each against a version written out sample by sample."""

import copy
import math
from argparse import Namespace
from dataclasses import fields

import pytest
import torch
from datafree.attack import (
    Attack,
    AttackSettings,
    Pair,
    attack_loss,
    choose_attacked,
    confidence,
    least_likely_class,
    mix,
    perturb,
    pixel_limits,
    swap,
)
from datafree.bn_statistics import BNStatistics
from datafree.data.augment import Augmentation
from datafree.data.datasets import DatasetSpec
from datafree.device import Compute
from datafree.randomness import initialising
from torch import nn

from datafree.models.perturbation import PerturbationNetwork

NORMALISATIONS = [
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ((0.1, 0.6, 0.9), (0.05, 0.7, 3.0)),
]
CPU = torch.device("cpu")
FP32, BF16 = Compute(CPU, False, "test"), Compute(CPU, True, "test")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augmentation(mean=NORMALISATIONS[2][0], std=NORMALISATIONS[2][1]) -> Augmentation:
    return Augmentation(DatasetSpec("tiny", 5, 8, mean, std, False, lambda *_: None), CPU)


def pixels(B: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Images in [0, 1], a tenth of the values at either end of the range."""
    return (1.25 * torch.rand(B, 3, size, size, generator=stream(seed)) - 0.125).clamp(0, 1)


def tiny_teacher(num_classes: int = 5) -> nn.Module:
    with initialising(0, "teacher"):
        teacher = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes)),
        )
        teacher[1].running_mean.normal_(0, 0.1)
        teacher[1].running_var.uniform_(0.5, 1.5)
        teacher[5].weight.data *= 10  # sure of its classes
    return teacher.eval().requires_grad_(False)


def make_attack(bound: float = 25 / 255, compute: Compute = FP32, lr_p: float = 2e-4) -> Attack:
    with initialising(0, "P"):
        P = compute.place(PerturbationNetwork(width=4, blocks=1))
    return Attack(P, tiny_teacher(), AttackSettings(bound, 0.001, 4, lr_p, True), augmentation(), compute)


def everything(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def extreme(x: torch.Tensor) -> torch.Tensor:
    """A perturbation at +1 and -1 in turn."""
    return torch.ones_like(x).flatten().mul(1 - 2 * (torch.arange(x.numel()) % 2)).view_as(x)


# 1. Train P


@pytest.mark.parametrize(("mean", "std"), NORMALISATIONS)
def test_perturb_is_the_clamped_sum_in_pixels_of_every_value(mean, std):
    augment, x, bound = augmentation(mean, std), pixels(2), 10 / 255
    wave = torch.sin(torch.arange(x.numel())).view_as(x)
    found = perturb(lambda _: wave, augment.normalise(x), bound, pixel_limits(augment))
    for b in range(2):
        for channel in range(3):
            for i in range(8):
                for j in range(8):
                    pixel = x[b, channel, i, j].item() + bound * wave[b, channel, i, j].item()
                    expected = (min(max(pixel, 0.0), 1.0) - mean[channel]) / std[channel]
                    assert found[b, channel, i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("mean", "std"), NORMALISATIONS)
@pytest.mark.parametrize("bound", [1 / 255, 10 / 255, 0.5])
def test_bound_and_pixel_range_hold_for_every_sample_and_channel(mean, std, bound):
    augment, x = augmentation(mean, std), pixels(3)
    attacked = perturb(extreme, augment.normalise(x), bound, pixel_limits(augment)) * augment.std + augment.mean
    change = (attacked - x).abs().amax((2, 3))  # (B, 3)
    assert (change <= bound + 1e-6).all()
    assert (change >= bound - 1e-6).all(), "somewhere in every channel the whole bound is used"
    assert attacked.min() >= -1e-6
    assert attacked.max() <= 1 + 1e-6


@pytest.mark.parametrize(("mean", "std"), NORMALISATIONS)
def test_no_perturbation_returns_the_normalised_images_so_normalisation_is_applied_once(mean, std):
    augment = augmentation(mean, std)
    x = augment.normalise(pixels(3))
    assert torch.equal(perturb(torch.zeros_like, x, 10 / 255, pixel_limits(augment)), x)


def test_perturbation_network_is_given_the_normalised_images():
    x, seen = augmentation().normalise(pixels(2)), []
    perturb(lambda given: seen.append(given) or torch.zeros_like(given), x, 0.1, pixel_limits(augmentation()))
    assert len(seen) == 1
    assert torch.equal(seen[0], x)


def test_perturb_leaves_its_input_alone_and_shares_no_memory_with_it():
    x = augmentation().normalise(pixels(2))
    before = x.clone()
    perturb(torch.zeros_like, x, 0.1, pixel_limits(augmentation())).fill_(7)
    assert torch.equal(x, before)


def test_least_likely_class_is_the_smallest_logit_of_each_sample():
    logits = torch.randn(7, 5, generator=stream())
    assert least_likely_class(logits).tolist() == [row.index(min(row)) for row in logits.tolist()]


def test_attack_loss_is_the_log_of_the_mean_cross_entropy():
    logits, y = 3 * torch.randn(6, 5, generator=stream()), torch.tensor([0, 4, 2, 2, 1, 3])
    total = 0.0
    for row, wanted in zip(logits.tolist(), y.tolist(), strict=True):
        total += math.log(sum(math.exp(value) for value in row)) - row[wanted]
    assert attack_loss(logits, y).item() == pytest.approx(math.log(total / 6), rel=1e-5)


def test_attack_loss_is_fp32_for_bf16_logits():
    logits, y = torch.randn(6, 5, generator=stream()).bfloat16(), torch.zeros(6, dtype=torch.long)
    assert attack_loss(logits, y).dtype == torch.float32
    assert torch.equal(attack_loss(logits, y), attack_loss(logits.float(), y))


def test_attack_loss_where_the_cross_entropy_is_zero_is_finite_with_gradient_zero():
    logits = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    loss = attack_loss(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(torch.finfo(torch.float32).eps))
    assert torch.equal(logits.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_training_lowers_the_cross_entropy_to_the_least_likely_class(compute):
    attack = make_attack(compute=compute, lr_p=2e-3)
    x = augmentation().normalise(pixels(16))
    logits = attack.teacher(x)
    losses = [attack.train_step(x, logits).item() for _ in range(40)]
    assert losses[-1] < losses[0] - 0.05
    y_minus = least_likely_class(logits)
    with torch.no_grad():
        assert attack_loss(attack.teacher(attack.attack(x)), y_minus) < attack_loss(logits, y_minus) - 0.05


def test_train_step_is_one_adam_step_on_the_loss():
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    logits = attack.teacher(x)
    P = copy.deepcopy(attack.network).train()
    by_hand = torch.optim.Adam(P.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for _ in range(3):
        std = attack.limits[1] - attack.limits[0]
        attacked = (x + 25 / 255 * std * P(x)).minimum(attack.limits[1]).maximum(attack.limits[0])
        loss = nn.functional.cross_entropy(attack.teacher(attacked), logits.argmin(1)).log()
        by_hand.zero_grad()
        loss.backward()
        by_hand.step()
        torch.testing.assert_close(attack.train_step(x, logits), loss.detach())
    for one, other in zip(attack.network.parameters(), P.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_loss_of_a_train_step_is_detached():
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    loss = attack.train_step(x, attack.teacher(x))
    assert loss.shape == ()
    assert not loss.requires_grad


@pytest.mark.parametrize("frozen", [True, False])
def test_teacher_gets_no_gradient_and_keeps_its_state(frozen):
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    attack.teacher.requires_grad_(not frozen)
    before = everything(attack.teacher)
    attack.train_step(x, attack.teacher(x))
    attack.pair(x)
    assert all(parameter.grad is None for parameter in attack.teacher.parameters())
    assert same(everything(attack.teacher), before)
    assert not any(module.training for module in attack.teacher.modules())


def test_images_and_logits_get_no_gradient():
    attack, x = make_attack(), augmentation().normalise(pixels(4)).requires_grad_()
    attack.train_step(x, attack.teacher(x))
    assert x.grad is None


def test_attack_leaves_what_the_bn_statistics_have_heard():
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    statistics = BNStatistics(attack.teacher, momentum=0.0)
    with statistics.listening():
        logits = attack.teacher(x)
    before = statistics.loss()
    attack.train_step(x, logits)
    attack.pair(x)
    assert torch.equal(statistics.loss(), before)


def test_attack_draws_nothing_from_the_global_stream():
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    before = torch.get_rng_state()
    attack.train_step(x, attack.teacher(x))
    swap(attack.pair(x))
    choose_attacked(4, 0.5, stream(), CPU)
    assert torch.equal(torch.get_rng_state(), before)


# 2. Attack


@pytest.mark.parametrize("B", [1, 2, 7])
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_any_batch_size_is_trained_on_and_attacked(B, compute):
    attack, x = make_attack(compute=compute), augmentation().normalise(pixels(B, size=32))
    assert attack.train_step(x, attack.teacher(x)).isfinite()
    pair, swapped = swap(attack.pair(x))
    assert pair.clean_images.shape == pair.attacked_images.shape == (B, 3, 32, 32)
    assert pair.clean_logits.shape == pair.attacked_logits.shape == (B, 5)
    assert swapped.shape == pair.labels.shape == (B,)


def test_each_image_is_attacked_by_itself_whatever_the_rest_of_the_batch():
    attack, x = make_attack(), augmentation().normalise(pixels(5))
    attack.train_step(x, attack.teacher(x))
    together = attack.attack(x)
    alone = torch.cat([attack.attack(image.unsqueeze(0)) for image in x])
    torch.testing.assert_close(together, alone)


def test_attacking_changes_nothing_in_p_and_wants_no_gradient():
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    before = everything(attack.network)
    assert not attack.attack(x).requires_grad
    assert not attack.pair(x).attacked_logits.requires_grad
    assert same(everything(attack.network), before)


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_trained_attack_keeps_the_bound_in_pixels(compute):
    attack, augment, x = make_attack(10 / 255, compute, lr_p=0.01), augmentation(), pixels(6)
    for _ in range(10):
        attack.train_step(augment.normalise(x), attack.teacher(augment.normalise(x)))
    attacked = attack.attack(augment.normalise(x)) * augment.std + augment.mean
    assert (attacked - x).abs().amax() <= 10 / 255 + 1e-6
    assert (attacked - x).abs().amax() > 1 / 255
    assert attacked.min() >= -1e-6
    assert attacked.max() <= 1 + 1e-6


def test_pair_holds_the_teacher_s_logits_on_both_twins():
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    pair = attack.pair(x)
    torch.testing.assert_close(pair.clean_images, x)
    torch.testing.assert_close(pair.attacked_images, attack.attack(x))
    torch.testing.assert_close(pair.clean_logits, attack.teacher(x))
    torch.testing.assert_close(pair.attacked_logits, attack.teacher(attack.attack(x)))


def test_pair_takes_logits_that_are_there_already():
    attack, x = make_attack(), augmentation().normalise(pixels(4))
    given = torch.randn(4, 5, generator=stream()).requires_grad_()
    pair = attack.pair(x, given)
    assert torch.equal(pair.clean_logits, given)
    assert not pair.clean_logits.requires_grad


def test_confidence_is_the_largest_softmax_of_each_sample():
    logits = torch.randn(6, 5, generator=stream())
    for found, row in zip(confidence(logits).tolist(), logits.tolist(), strict=True):
        weights = [math.exp(value) for value in row]
        assert found == pytest.approx(max(weights) / sum(weights), rel=1e-5)


# 3. Swap


def drawn_pair(B: int = 12, seed: int = 0) -> Pair:
    """Half of the samples keep their class; every image value is distinct."""
    rng = stream(seed)
    clean, attacked = torch.randn(B, 5, generator=rng), torch.randn(B, 5, generator=rng)
    labels = clean.argmax(1)
    attacked[::2].scatter_(1, labels[::2, None], 2 + torch.rand(len(labels[::2]), 1, generator=rng))
    images = torch.arange(2 * B * 12.0).view(2, B, 3, 2, 2)
    return Pair(images[0], images[1], clean, attacked)


def test_swap_exchanges_image_logits_and_confidence_of_each_sample_by_hand():
    pair = drawn_pair()
    before = copy.deepcopy(pair)
    after, swapped = swap(pair)
    assert 0 < swapped.sum() < len(swapped)
    for i in range(len(swapped)):
        own, twin = before.clean_logits[i].tolist(), before.attacked_logits[i].tolist()
        c, c_twin = (max(math.exp(v) for v in row) / sum(math.exp(v) for v in row) for row in (own, twin))
        change = own.index(max(own)) == twin.index(max(twin)) and c_twin >= c
        assert swapped[i].item() == change
        for name in ("images", "logits"):
            clean, attacked = getattr(before, f"clean_{name}")[i], getattr(before, f"attacked_{name}")[i]
            if change:
                clean, attacked = attacked, clean
            assert torch.equal(getattr(after, f"clean_{name}")[i], clean)
            assert torch.equal(getattr(after, f"attacked_{name}")[i], attacked)
        assert after.clean_confidence[i].item() == pytest.approx(c_twin if change else c, rel=1e-5)
        assert after.attacked_confidence[i].item() == pytest.approx(c if change else c_twin, rel=1e-5)


def test_swap_leaves_what_it_was_given_and_shares_no_memory_with_it():
    pair = drawn_pair()
    before = copy.deepcopy(pair)
    after, _ = swap(pair)
    kept = copy.deepcopy(after)
    for field in fields(Pair):
        assert torch.equal(getattr(pair, field.name), getattr(before, field.name))
        getattr(pair, field.name).fill_(-1)
    for field in fields(Pair):
        assert torch.equal(getattr(after, field.name), getattr(kept, field.name)), "a change before reached it"
    after.clean_images.fill_(-2)
    after.clean_logits.fill_(-2)
    assert torch.equal(after.attacked_images, kept.attacked_images)
    assert torch.equal(after.attacked_logits, kept.attacked_logits)


def test_swap_changes_no_label():
    pair = drawn_pair()
    assert torch.equal(swap(pair)[0].labels, pair.labels)


def test_after_a_swap_no_twin_of_the_same_class_is_more_confident():
    after, _ = swap(drawn_pair(40))
    assert (after.attacked_confidence <= after.clean_confidence)[~after.succeeded].all()


def test_equal_confidence_swaps_and_another_class_never_does():
    own = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    twin = torch.tensor([[2.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.9, 0.0, 0.0]])
    pair = Pair(torch.zeros(3, 3, 1, 1), torch.ones(3, 3, 1, 1), own, twin)
    assert pair.succeeded.tolist() == [False, True, False]
    assert swap(pair)[1].tolist() == [True, False, False]


# 4. Attack with probability pa


def test_share_of_attacked_samples_is_pa():
    for pa in (0.001, 0.1, 0.5):
        n = 200_000
        share = choose_attacked(n, pa, stream(), CPU).float().mean().item()
        assert abs(share - pa) < 4 * math.sqrt(pa * (1 - pa) / n)


def test_pa_zero_chooses_none_and_one_chooses_all():
    assert not choose_attacked(10_000, 0.0, stream(), CPU).any()
    assert choose_attacked(10_000, 1.0, stream(), CPU).all()


def test_choice_is_the_stream_s_and_repeats_with_it():
    first, again = (choose_attacked(1000, 0.5, stream(3), CPU) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, choose_attacked(1000, 0.5, stream(4), CPU))
    assert first.shape == (1000,)
    assert first.dtype == torch.bool


def test_pa_does_not_change_how_much_is_drawn():
    states = []
    for pa in (0.0, 0.5):
        rng = stream()
        choose_attacked(7, pa, rng, CPU)
        states.append(rng.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("shape", [(3, 2, 2), (5,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_mix_takes_each_sample_from_one_side(shape, dtype):
    count = 4 * math.prod(shape)
    clean = torch.arange(count).view(4, *shape).to(dtype)
    attacked = 100 + clean
    mask = torch.tensor([True, False, False, True])
    mixed = mix(clean, attacked, mask)
    assert mixed.dtype == dtype
    for i in range(4):
        assert torch.equal(mixed[i], attacked[i] if mask[i] else clean[i])


# State and settings


def test_restored_attack_goes_on_as_if_uninterrupted():
    x = augmentation().normalise(pixels(4))
    one = make_attack()
    logits = one.teacher(x)
    one.train_step(x, logits)
    state = copy.deepcopy(one.state_dict())
    uninterrupted = one.train_step(x, logits)
    other = make_attack()
    other.load_state_dict(state)
    assert torch.equal(other.train_step(x, logits), uninterrupted)
    assert torch.equal(other.attack(x), one.attack(x))


def test_settings_turn_levels_into_pixels_and_the_negative_flag_around():
    args = Namespace(attack_bound=10.0, pa=0.001, p_width=64, lr_p=2e-4, no_swap=False)
    args.attack_at, args.adam_betas = "step", (0.5, 0.999)
    assert AttackSettings.of(args) == AttackSettings(10 / 255, 0.001, 64, 2e-4, True, "step", (0.5, 0.999))
    args.no_swap = True
    assert not AttackSettings.of(args).swap
