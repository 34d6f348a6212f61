"""What a task leaves for the next one: files, their checks, and the choice between g1 and g2."""

import argparse
import types

import pytest
import torch
from conftest import (
    CPU,
    FP32,
    NGF,
    NZ,
    SIZE,
    same_state,
    small_augmentation,
    small_generator,
    small_teacher,
    state_of,
    user_error,
)
from datafree.randomness import Streams

import main
from datafree import checkpoint, reuse
from datafree.modes import MODES

ORIGIN = {"mode": "anew", "dataset": "small", "teacher": "t", "student": "s", "tag": None, "seed": 3}


def left_in(folder, kept="g1"):
    """A generator away from its first values, and its three files."""
    generator = small_generator(seed=5).train()
    for _ in range(3):
        generator(torch.randn(8, NZ))
    reuse.save_parts(generator, kept, folder, ORIGIN)
    return generator


def build(folder, nz=NZ, ngf=NGF, img_size=SIZE, seed=9):
    return reuse.build_generator(seed, nz, ngf, img_size, *reuse.files_in(folder))


@pytest.mark.parametrize(("kept", "abandoned"), [("g1", "g2"), ("g2", "g1")])
def test_the_next_task_gets_the_kept_network_as_g2_with_d_and_a_new_g1(tmp_path, kept, abandoned):
    left = left_in(tmp_path, kept)
    found = build(tmp_path)
    assert same_state(state_of(found.g2), state_of(getattr(left, kept)))
    assert same_state(state_of(found.d), state_of(left.d))
    fresh = reuse.build_generator(9, NZ, NGF, SIZE).g1
    assert same_state(state_of(found.g1), state_of(fresh))
    thrown = reuse.load_generative_network(tmp_path / "gan_abandon.pth", NZ, SIZE)
    assert same_state(state_of(thrown), state_of(getattr(left, abandoned)))


def test_loaded_networks_give_the_same_images(tmp_path):
    left, z = left_in(tmp_path).eval(), torch.randn(4, NZ)
    found = build(tmp_path).eval()
    assert torch.equal(found.g2(z), left.g1(z)) and torch.equal(found.d(left.g1(z)), left.d(left.g1(z)))


def test_the_files_hold_configuration_and_origin_as_plain_values(tmp_path):
    left_in(tmp_path, "g2")
    content = {
        name: torch.load(tmp_path / name, weights_only=True)
        for name in ("gan_reuse.pth", "gan_abandon.pth", "decoder.pth")
    }
    config = {"nz": NZ, "ngf": NGF, "img_size": SIZE}
    assert content["gan_reuse.pth"]["config"] == content["gan_abandon.pth"]["config"] == config
    assert content["gan_reuse.pth"]["origin"] == {**ORIGIN, "part": "g2"}
    assert content["gan_abandon.pth"]["origin"] == {**ORIGIN, "part": "g1"}
    assert content["decoder.pth"]["origin"] == ORIGIN and content["decoder.pth"]["config"]["img_size"] == SIZE


def test_a_reused_network_keeps_its_own_width(tmp_path):
    left_in(tmp_path)
    found = build(tmp_path, ngf=NGF + 3)
    assert (found.g1.config["ngf"], found.g2.config["ngf"]) == (NGF + 3, NGF)
    assert found(torch.randn(2, NZ)).shape == (2, 3, SIZE, SIZE)


def test_another_length_of_the_noise_or_size_of_the_images_is_named(tmp_path):
    left_in(tmp_path)
    with user_error("gan_reuse.pth", f"nz {NZ}", f"not {NZ + 1}"):
        build(tmp_path, nz=NZ + 1)
    with user_error("gan_reuse.pth", f"img_size {SIZE}", f"not {2 * SIZE}"):
        build(tmp_path, img_size=2 * SIZE)
    with user_error("decoder.pth", f"img_size {SIZE}", f"not {2 * SIZE}"):
        reuse.build_generator(0, NZ, NGF, 2 * SIZE, None, tmp_path / "decoder.pth")


def test_swapped_files_are_told_apart(tmp_path):
    left_in(tmp_path)
    with user_error("decoder.pth", "generative_network"):
        reuse.build_generator(0, NZ, NGF, SIZE, tmp_path / "decoder.pth", tmp_path / "gan_reuse.pth")
    with user_error("gan_reuse.pth", "holds a generative_network"):
        reuse.build_generator(0, NZ, NGF, SIZE, None, tmp_path / "gan_reuse.pth")


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
def test_a_file_that_was_tampered_with_is_the_users_to_mend(tmp_path, change, word):
    left_in(tmp_path)
    content = torch.load(tmp_path / "gan_reuse.pth", weights_only=True)
    change(content)
    checkpoint.save(content, tmp_path / "gan_reuse.pth")
    with user_error("gan_reuse.pth", word):
        build(tmp_path)


def test_a_student_or_a_bare_state_dict_is_no_reusable_network(tmp_path):
    left_in(tmp_path)
    for content in ({"state_dict": small_teacher().state_dict(), "arch": "x"}, small_generator().g1.state_dict()):
        checkpoint.save(content, tmp_path / "gan_reuse.pth")
        with user_error("gan_reuse.pth", "configuration"):
            build(tmp_path)


@pytest.mark.parametrize("missing", ["gan_reuse.pth", "decoder.pth"])
def test_a_folder_that_lacks_a_file_has_nothing_to_reuse(tmp_path, missing):
    left_in(tmp_path)
    (tmp_path / missing).unlink()
    with user_error(str(tmp_path), "--mode anew", "--reuse_generator_path"):
        reuse.files_in(tmp_path)


def test_the_modes_load_and_train_the_parts_as_specified():
    table = {
        "anew": (False, 1.0, 1.0, 1.0),
        "reuse_common": (True, 1.0, 1.0, 1.0),
        "reuse_finetune": (True, 1.0, 0.2, 0.2),
        "reuse_fix": (True, 1.0, 0.0, 0.0),
    }
    rates = {name: mode.part_rates(finetune_factor=0.2) for name, mode in MODES.items()}
    assert {name: (MODES[name].reuse, rate["g1"], rate["g2"], rate["d"]) for name, rate in rates.items()} == table


def score(generator, teacher, seed=0, **changes):
    values = {"bn": 10.0, "oh": 0.5, "batch_size": 7} | changes
    return reuse.score_networks(generator, teacher, small_augmentation(), FP32, Streams(seed), **values)


@pytest.mark.parametrize("weights", [{"bn": 10.0, "oh": 0.5}, {"bn": 0.0, "oh": 2.0}, {"bn": 1.0, "oh": 0.0}])
@torch.no_grad()
def test_a_score_is_the_inversion_loss_of_one_network_in_train_mode_beside_uniform_noise(tmp_path, weights):
    generator, teacher = left_in(tmp_path), small_teacher()
    found = score(generator, teacher, **weights)
    rng = Streams(0)["selection"]
    networks = {part: getattr(generator, part).train() for part in ("g1", "g2")}
    d, layers = generator.d.train(), (teacher.bn1, teacher.bn2)
    totals = {"g1": 0.0, "g2": 0.0}
    for _ in range(4):
        z = torch.randn(7, NZ, generator=rng)
        u = torch.rand(7, 3, SIZE, SIZE, generator=rng)
        for part, g in networks.items():
            x = small_augmentation().normalise(d((g(z) + u) / 2))  # neither cropped nor mirrored
            first = teacher.conv1(x)
            second = teacher.conv2(teacher.bn1(first).relu())
            L_bn = 0.0
            for layer, h in zip(layers, (first, second), strict=True):
                L_bn += (layer.running_mean - h.mean((0, 2, 3))).square().sum().sqrt().item()
                L_bn += (layer.running_var - h.var((0, 2, 3), unbiased=False)).square().sum().sqrt().item()
            L_oh = -teacher(x).log_softmax(1).max(1).values.mean().item()  # the class that the teacher sees
            totals[part] += weights["bn"] * L_bn + weights["oh"] * L_oh
    assert found == pytest.approx({part: total / 4 for part, total in totals.items()}, rel=1e-4)
    assert found["g1"] != found["g2"]


def test_the_partner_plays_no_part_in_a_score(tmp_path):
    generator, teacher = left_in(tmp_path), small_teacher()
    before = score(generator, teacher)
    generator.g2 = small_generator(seed=77).g2
    after = score(generator, teacher)
    assert after["g1"] == before["g1"] and after["g2"] != before["g2"]


def test_scoring_changes_no_network_and_leaves_no_hook(tmp_path):
    generator, teacher = left_in(tmp_path), small_teacher()
    generator.g2.eval()
    states, modes = state_of(generator), [module.training for module in generator.modules()]
    score(generator, teacher)
    assert same_state(state_of(generator), states)
    assert [module.training for module in generator.modules()] == modes
    assert not any(module._forward_pre_hooks for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_scores_are_reproducible_and_work_without_batch_norm(tmp_path):
    generator = left_in(tmp_path)
    assert score(generator, small_teacher()) == score(generator, small_teacher())
    assert score(generator, small_teacher()) != score(generator, small_teacher(), seed=1)
    assert all(value > 0 for value in score(generator, small_teacher(batch_norm=False), bn=0.0).values())


@pytest.mark.parametrize("pick", ["score", "g1", "g2"])
def test_the_network_of_the_lower_score_is_kept_unless_one_is_named(tmp_path, pick):
    best = []
    for exchanged in (False, True):
        generator = small_generator()
        if exchanged:  # a score does not depend on the partner, so the better one is now the other
            generator.g1, generator.g2 = generator.g2, generator.g1
        synthesis = types.SimpleNamespace(generator=generator, augmentation=small_augmentation())
        rest = {"teacher": small_teacher(), "compute": FP32, "streams": Streams(0, CPU), "attack": None}
        task = types.SimpleNamespace(synthesis=synthesis, **rest)
        args = argparse.Namespace(**ORIGIN, bn=10.0, oh=1.0, synthesis_batch_size=8, reuse_pick=pick)
        lines = []
        told = main.leave_for_the_next_task(args, task, types.SimpleNamespace(path=tmp_path, log=lines.append))
        best.append(min(("g1", "g2"), key=lambda part, told=told: told[f"score_{part}"]))
        wanted = best[-1] if pick == "score" else pick
        assert told["reused_network"] == wanted
        kept = torch.load(tmp_path / "gan_reuse.pth", weights_only=True)
        assert kept["origin"]["part"] == wanted
        assert same_state(kept["state_dict"], state_of(getattr(generator, wanted)))
        assert len(lines) == 1 and all(f"{part} {told[f'score_{part}']:.4g}" in lines[0] for part in ("g1", "g2"))
    assert best[0] != best[1]
