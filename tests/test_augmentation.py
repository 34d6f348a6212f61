"""Augmentation of whole batches against one image at a time, cut out of a padded copy."""

import pytest
import torch
import torch.nn.functional as F

from datafree.data.augmentation import Augmentation, random_crop_flip, to_levels, to_pixels


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


def test_all_256_levels_survive_the_way_to_pixels_and_back():
    levels = torch.arange(256).to(torch.uint8)
    pixels = to_pixels(levels)
    assert pixels.dtype == torch.float32 and pixels[0] == 0 and pixels[255] == 1
    assert torch.equal(to_levels(pixels), levels)


def test_to_levels_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-0.3, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 254.6 / 255, 1.2], requires_grad=True)
    levels = to_levels(x)
    assert levels.dtype == torch.uint8 and levels.tolist() == [0, 0, 1, 100, 101, 255, 255]
