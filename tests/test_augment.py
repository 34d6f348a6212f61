"""Augmentation of whole batches against one image at a time, cut out of a padded copy."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, small_spec
from datafree.data.augment import Augmentation, random_crop_flip, to_levels, to_pixels


def draws_of(generator, batch, padding):
    """What random_crop_flip will draw from a generator in this state: shifts down and right, and mirrored or not."""
    twin = torch.Generator()
    twin.set_state(generator.get_state())
    down, right = torch.randint(-padding, padding + 1, (2, batch, 1), generator=twin).squeeze(2).tolist()
    return down, right, (torch.rand(batch, 1, generator=twin) < 0.5).flatten().tolist()


def crop_flip_by_hand(x, draws, padding, flip):
    H, W = x.shape[2:]
    out = []
    for image, down, right, mirrored in zip(x, *draws, strict=True):
        padded = F.pad(image, (padding,) * 4)
        crop = padded[:, padding + down : padding + down + H, padding + right : padding + right + W]
        out.append(crop.flip(2) if flip and mirrored else crop)
    return torch.stack(out)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    ("padding", "shape"), [(4, (32, 3, 8, 8)), (2, (32, 3, 5, 9)), (0, (32, 3, 8, 8)), (9, (32, 3, 8, 8))]
)
def test_crop_and_flip_equal_padding_cropping_and_mirroring_one_image_at_a_time(padding, shape, flip):
    x = torch.rand(shape)
    generator = torch.Generator().manual_seed(3)
    draws = draws_of(generator, len(x), padding)
    assert any(draws[2]) and not all(draws[2])
    assert torch.equal(random_crop_flip(x, generator, padding, flip), crop_flip_by_hand(x, draws, padding, flip))


def test_shifts_cover_the_whole_range_in_both_directions_and_half_are_mirrored():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(4000, 3, 9, 9)
    x[:, :, 4, 4] = 1.0  # a dot in the middle
    x[:, :, 4, 5] = 0.5  # and a fainter one to its right
    moved = random_crop_flip(x, generator, padding=3, flip=True)[:, 0]
    place = moved.flatten(1).argmax(1)
    rows, columns = place // 9, place % 9
    for where in (rows, columns):
        counts = torch.bincount(where, minlength=9)
        assert counts[:1].sum() == counts[8:].sum() == 0
        assert ((counts[1:8] - 4000 / 7).abs() < 120).all()  # five standard deviations are 111
    mirrored = moved[torch.arange(4000), rows, columns - 1] == 0.5
    assert abs(mirrored.float().mean() - 0.5) < 0.04
    assert abs(torch.corrcoef(torch.stack([rows, columns]).double())[0, 1]) < 0.08


def test_padding_zero_without_flip_is_the_identity():
    x = torch.rand(4, 3, 6, 6)
    assert torch.equal(random_crop_flip(x, torch.Generator().manual_seed(0), padding=0, flip=False), x)


def test_the_same_amount_is_drawn_whatever_the_settings():
    states = []
    for padding, flip in ((0, False), (0, True), (4, False), (4, True)):
        generator = torch.Generator().manual_seed(0)
        random_crop_flip(torch.rand(4, 3, 6, 6), generator, padding, flip)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    assert not torch.equal(states[0], torch.Generator().manual_seed(0).get_state())


def test_gradient_flows_back_to_the_pixels_that_were_read_and_to_no_other():
    x = torch.rand(8, 3, 6, 6, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    draws = draws_of(generator, 8, 3)
    towards = torch.randn(8, 3, 6, 6)
    random_crop_flip(x, generator, 3, True).backward(towards)
    crop_flip_by_hand(y, draws, 3, True).backward(towards)
    assert torch.equal(x.grad, y.grad) and (x.grad == 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pixels_are_copied_exactly_in_every_precision(dtype):
    x = torch.rand(16, 3, 8, 8).to(dtype)
    generator = torch.Generator().manual_seed(2)
    draws = draws_of(generator, 16, 4)
    out = random_crop_flip(x, generator, 4, True)
    assert out.dtype == dtype and torch.equal(out, crop_flip_by_hand(x, draws, 4, True))


def test_autocast_does_not_round_the_pixels():
    x = torch.rand(16, 3, 8, 8)
    generator = torch.Generator().manual_seed(2)
    draws = draws_of(generator, 16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = random_crop_flip(x, generator, 4, True)
    assert torch.equal(out, crop_flip_by_hand(x, draws, 4, True))


def test_levels_survive_crop_and_flip_exactly():
    levels = torch.arange(3 * 16 * 16).remainder(256).to(torch.uint8).view(1, 3, 16, 16).repeat(8, 1, 1, 1)
    generator = torch.Generator().manual_seed(2)
    draws = draws_of(generator, 8, 4)
    out = to_levels(random_crop_flip(to_pixels(levels), generator, 4, True))
    assert torch.equal(out, crop_flip_by_hand(levels, draws, 4, True))


def test_channels_last_images_give_the_same_crops():
    x = torch.rand(8, 3, 8, 8)
    outs = [
        random_crop_flip(x.contiguous(memory_format=order), torch.Generator().manual_seed(0), 4, True)
        for order in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*outs)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    spec = small_spec()
    x = torch.rand(2, 3, 4, 4)
    out = Augmentation(spec, CPU).normalise(x)
    for channel in range(3):
        by_hand = (x[:, channel].double() - spec.mean[channel]) / spec.std[channel]
        torch.testing.assert_close(out[:, channel].double(), by_hand, rtol=1e-6, atol=1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_crops_then_normalises_and_mirrors_only_where_the_data_set_allows(flip):
    augmentation = Augmentation(small_spec(flip), CPU, padding=2)
    x = torch.rand(16, 3, 8, 8)
    generator = torch.Generator().manual_seed(5)
    draws = draws_of(generator, 16, 2)
    by_hand = augmentation.normalise(crop_flip_by_hand(x, draws, 2, flip))  # the border is black, not grey
    assert torch.equal(augmentation(x, generator), by_hand)


def test_all_256_levels_survive_the_way_to_pixels_and_back():
    levels = torch.arange(256).to(torch.uint8)
    pixels = to_pixels(levels)
    assert pixels.dtype == torch.float32 and pixels[0] == 0 and pixels[255] == 1
    assert torch.equal(to_levels(pixels), levels)


def test_to_levels_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-0.3, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 254.6 / 255, 1.2], requires_grad=True)
    levels = to_levels(x)
    assert levels.dtype == torch.uint8 and levels.tolist() == [0, 0, 1, 100, 101, 255, 255]
