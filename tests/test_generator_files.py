"""What a task leaves for the next one, as files: what comes back, and what is refused in one line."""

import pytest
import torch
from conftest import NGF, NZ, SIZE, same_state, small_generator, state_of, user_error

from datafree.methods.aeahl_rg import build_generator
from datafree.models.generator_files import files_in, part

SHAPE = (3, SIZE, SIZE)
ORIGIN = {"mode": "anew", "dataset": "small", "teacher": "t", "student": "s", "tag": None, "seed": 3}


@pytest.fixture
def left(tmp_path):
    """A generator away from its first values; its g1 and d lie in the folder."""
    generator = small_generator(seed=5).train()
    for _ in range(3):
        generator(torch.randn(8, NZ))
    content = part(generator.g1, "generative_network", generator.g1.config, ORIGIN)
    torch.save(content, tmp_path / "gan_reuse.pth")
    torch.save(part(generator.d, "decoder", {"img_size": SIZE}, ORIGIN), tmp_path / "decoder.pth")
    return generator


def build(folder, nz=NZ, ngf=NGF, img_size=SIZE):
    return build_generator(9, nz, ngf, (3, img_size, img_size), *files_in(folder))


def test_the_next_task_gets_the_kept_network_as_g2_in_its_own_width_with_d_and_a_new_g1(left, tmp_path):
    found = build(tmp_path, ngf=NGF + 3)
    assert same_state(state_of(found.g2), state_of(left.g1)) and same_state(state_of(found.d), state_of(left.d))
    assert same_state(state_of(found.g1), state_of(build_generator(9, NZ, NGF + 3, SHAPE).g1))
    assert (found.g1.config["ngf"], found.g2.config["ngf"]) == (NGF + 3, NGF)
    assert found(torch.randn(2, NZ)).shape == (2, 3, SIZE, SIZE)


def test_another_length_of_the_noise_or_size_of_the_images_is_named(left, tmp_path):
    with user_error("gan_reuse.pth", f"nz {NZ}", f"not {NZ + 1}"):
        build(tmp_path, nz=NZ + 1)
    with user_error("gan_reuse.pth", f"img_size {SIZE}x{SIZE}", f"not {2 * SIZE}x{2 * SIZE}"):
        build(tmp_path, img_size=2 * SIZE)
    with user_error("decoder.pth", f"img_size {SIZE}x{SIZE}", f"not {2 * SIZE}x{2 * SIZE}"):
        build_generator(0, NZ, NGF, (3, 2 * SIZE, 2 * SIZE), None, tmp_path / "decoder.pth")


def test_swapped_files_are_told_apart(left, tmp_path):
    with user_error("decoder.pth", "holds a decoder"):
        build_generator(0, NZ, NGF, SHAPE, tmp_path / "decoder.pth", tmp_path / "gan_reuse.pth")
    with user_error("gan_reuse.pth", "holds a generative_network"):
        build_generator(0, NZ, NGF, SHAPE, None, tmp_path / "gan_reuse.pth")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c.pop("config"), "configuration"),
        (lambda c: c.pop("state_dict"), "configuration"),
        (lambda c: c.pop("kind"), "None"),
        (lambda c: c["config"].pop("nz"), "nz"),
        (lambda c: c["config"].update(ngf=-1), "width"),
        (lambda c: c["config"].update(ngf="64"), "width"),
        (lambda c: c["config"].update(ngf=10**9), "width"),
        (lambda c: c["config"].update(ngf=NGF + 1), "architecture"),
        (lambda c: c["state_dict"].popitem(), "architecture"),
        (lambda c: c["state_dict"]["l1.0.bias"].fill_(float("nan")), "NaN"),
    ],
)
def test_a_file_that_was_tampered_with_is_the_users_to_mend(left, tmp_path, change, word):
    content = torch.load(tmp_path / "gan_reuse.pth", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "gan_reuse.pth")
    with user_error("gan_reuse.pth", word):
        build(tmp_path)


@pytest.mark.parametrize("missing", ["gan_reuse.pth", "decoder.pth"])
def test_a_folder_that_lacks_a_file_has_nothing_to_reuse(left, tmp_path, missing):
    (tmp_path / missing).unlink()
    with user_error(str(tmp_path), "--mode anew", "--reuse_generator_path"):
        files_in(tmp_path)
