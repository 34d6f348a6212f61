"""Augmentation of whole batches against one image at a time, cut out of a padded copy."""

import pytest
import torch
import torch.nn.functional as F

from datafree.data.augmentation import (
    Augmentation,
    random_crop_flip,
    random_resized_crop_flip,
    roll_flip,
    to_levels,
    to_pixels,
)


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


def many_values(shape, dtype):
    """In fp32 with all 24 bits in use, which a product in TF32 (11 bits) or bf16 (8) would round."""
    if dtype == torch.uint8:
        return torch.randint(256, shape, dtype=dtype)
    x = torch.rand(shape, dtype=torch.float64).to(dtype)
    assert dtype == torch.bfloat16 or not torch.equal(x, x.bfloat16().to(dtype))
    return x


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("padding", "flip", "shape"),
    [(4, True, (32, 3, 8, 8)), (2, False, (32, 3, 5, 9)), (0, True, (32, 1, 8, 8)), (9, True, (32, 6, 8, 8))],
)
def test_crop_and_flip_copy_exactly_what_padding_cropping_and_mirroring_one_image_at_a_time_give(
    padding, flip, shape, dtype
):
    x, generator = many_values(shape, dtype), torch.Generator().manual_seed(3)
    draws = draws_of(generator, len(x), padding)
    assert any(draws[2]) and not all(draws[2])
    with torch.autocast("cpu", torch.bfloat16):
        out = Augmentation(padding, flip)(x.contiguous(memory_format=torch.channels_last), generator)
    assert out.dtype == dtype and torch.equal(out, crop_flip_by_hand(x, draws, padding, flip))


@pytest.mark.parametrize("flip", [True, False])
def test_the_gradient_is_autograds_through_indexing_and_the_gather_of_the_opposite_crop(flip):
    x = torch.rand(16, 3, 6, 6, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    generator, towards = torch.Generator().manual_seed(1), torch.randn(16, 3, 6, 6)
    down, right, mirrored = draws = draws_of(generator, 16, 3)
    random_crop_flip(x, generator, 3, flip).backward(towards)
    crop_flip_by_hand(y, draws, 3, flip).backward(towards)
    assert torch.equal(x.grad, y.grad) and (x.grad == 0).any()
    # a mirrored row is its own opposite: output j reads column right + 5 - j
    back = [r if flip and turned else -r for r, turned in zip(right, mirrored, strict=True)]
    assert torch.equal(x.grad, crop_flip_by_hand(towards, ([-d for d in down], back, mirrored), 3, flip))


def test_the_same_amount_is_drawn_whatever_the_settings():
    states, x = [], torch.rand(4, 3, 6, 6)
    for padding, flip in ((0, False), (0, True), (4, False), (4, True)):
        generator = torch.Generator().manual_seed(0)
        out = random_crop_flip(x, generator, padding, flip)
        assert torch.equal(out, x) == (not padding and not flip)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    assert not torch.equal(states[0], torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize("flip", [True, False])
def test_a_roll_moves_and_mirrors_the_whole_batch_as_torch_does_its_gradient_the_opposite_way(flip):
    generator, twin = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    seen = set()
    for _ in range(20):
        down, right = (torch.randint(-most, most + 1, (1, 1), generator=twin).item() for most in (2, 1))
        mirrored = torch.rand(1, 1, generator=twin).item() < 0.5
        x, towards = torch.rand(3, 2, 5, 7, requires_grad=True), torch.randn(3, 2, 5, 7)
        y = x.detach().clone().requires_grad_()
        by_hand = y.roll((down, right), (2, 3))
        by_hand = by_hand.flip(3) if flip and mirrored else by_hand
        out = roll_flip(x, generator, (2, 1), flip)
        out.backward(towards)
        by_hand.backward(towards)
        assert torch.equal(out, by_hand) and torch.equal(x.grad, y.grad)
        seen.add((down, right, mirrored))
    assert len(seen) > 12 and {down for down, *_ in seen} == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shape", [(40, 3, 8, 8), (40, 1, 5, 9)])
def test_a_resized_crop_is_what_grid_sample_reads_of_that_rectangle_in_value_and_gradient(shape, flip):
    x, towards = torch.rand(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    y, (B, _, H, W) = x.detach().clone().requires_grad_(), shape
    share, ratio, down, right, side = torch.rand(5, B, generator=torch.Generator().manual_seed(4)).double()
    share, ratio = 0.25 + 0.75 * share, (4 / 3) ** (2 * ratio - 1)
    height, width = H * (share / ratio).sqrt().clamp(max=1), W * (share * ratio).sqrt().clamp(max=1)
    assert (height < H).any() and (height == H).any() and (width == W).any()
    grids = []
    for b in range(B):
        rows = down[b] * (H - height[b]) + (torch.arange(H) + 0.5) * height[b] / H  # 0 is the image's edge
        columns = right[b] * (W - width[b]) + (torch.arange(W) + 0.5) * width[b] / W
        columns = columns.flip(0) if flip and side[b] < 0.5 else columns
        grids.append(torch.stack(torch.meshgrid(2 * columns / W - 1, 2 * rows / H - 1, indexing="xy"), dim=2))
    by_hand = F.grid_sample(y, torch.stack(grids).double(), "bilinear", "border", align_corners=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = random_resized_crop_flip(x, torch.Generator().manual_seed(4), (0.25, 1.0), flip)
    torch.testing.assert_close(out, by_hand, rtol=0, atol=1e-5)  # places are worked out in fp32
    out.backward(towards)
    by_hand.backward(towards)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-4)


def test_a_resized_crop_stays_between_the_pixels_it_is_made_of_and_draws_as_much_with_any_settings():
    x, states = torch.rand(64, 3, 8, 8), []
    for area, flip in (((0.25, 1.0), True), ((0.25, 1.0), False), ((1.0, 1.0), False)):
        generator = torch.Generator().manual_seed(0)
        out = random_resized_crop_flip(x, generator, area, flip)
        assert out.min() >= 0 and out.max() <= 1 + 1e-6
        states.append(generator.get_state())
        torch.testing.assert_close(
            random_resized_crop_flip(torch.full_like(x, 0.3), generator, area, flip).mean(), torch.tensor(0.3)
        )
    assert all(torch.equal(state, states[0]) for state in states)


def test_all_256_levels_survive_the_way_to_pixels_and_back():
    levels = torch.arange(256).to(torch.uint8)
    pixels = to_pixels(levels)
    assert pixels.dtype == torch.float32 and pixels[0] == 0 and pixels[255] == 1
    assert torch.equal(to_levels(pixels), levels)


def test_to_levels_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-0.3, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 254.6 / 255, 1.2], requires_grad=True)
    levels = to_levels(x)
    assert levels.dtype == torch.uint8 and levels.tolist() == [0, 0, 1, 100, 101, 255, 255]
