"""What attackers have, who is judged on what, and that table, CSV and plot say what the rows say."""

import csv
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    CLASSES,
    FP32,
    NGF,
    NZ,
    SIZE,
    same_state,
    small_augmentation,
    small_generator,
    small_spec,
    small_teacher,
    state_of,
    user_error,
)
from datafree.data.datasets import TensorImages
from datafree.reuse import ABANDONED_FILE, GENERATOR_FILE, save_parts

from datafree.analysis.attacker_data import (
    ABANDONED,
    FULL,
    NOISE,
    REAL,
    REUSED,
    SOURCES,
    attacker_images,
    generated,
    split_off,
    with_fresh_g1,
)
from datafree.analysis.bit_flip_experiment import (
    RANDOM,
    Row,
    bit_flip_experiment,
    by_source,
    draw_bit_flips,
    table,
    write_rows,
)
from datafree.analysis.quantisation import QuantisedModel


@pytest.fixture
def run(tmp_path):
    """What is used of a run: small networks in its folder's files, and 30 images."""
    generator = small_generator()
    save_parts(generator, "g1", tmp_path, {})
    images = TensorImages(torch.randint(256, (30, 3, SIZE, SIZE), dtype=torch.uint8), torch.randint(CLASSES, (30,)))
    return SimpleNamespace(
        path=tmp_path,
        nz=NZ,
        config={"ngf": NGF},
        spec=small_spec(),
        compute=FP32,
        augmentation=small_augmentation(),
        teacher=small_teacher(),
        generator=generator.eval().requires_grad_(False),
        real_images=lambda: images,
    )


def test_attacker_and_judge_share_no_image_and_every_image_is_used():
    images = TensorImages(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10))
    mine, others = split_off(images, 4, seed=0)
    assert len(mine) == 4 and sorted([*mine.labels.tolist(), *others.labels.tolist()]) == list(range(10))
    assert mine.labels.tolist() == split_off(images, 4, seed=0)[0].labels.tolist()
    assert mine.labels.tolist() != split_off(images, 4, seed=1)[0].labels.tolist()
    with user_error("10 attacker images"):
        split_off(images, 10, seed=0)


def test_only_real_images_come_with_labels_and_another_seed_is_another_attacker(run):
    real, _ = split_off(run.real_images(), 6, 0)
    first, again, other = (dict(attacker_images(run, 6, seed, real)) for seed in (0, 0, 1))
    assert tuple(first) == SOURCES and [name for name in first if first[name].labels is not None] == [REAL]
    for name, images in first.items():
        assert images.x.shape == (6, 3, SIZE, SIZE) and images.x.min() >= 0 and images.x.max() <= 1
        assert torch.equal(images.x, again[name].x)
        assert name == REAL or not torch.equal(images.x, other[name].x)
    assert len({first[name].x.sum().item() for name in (NOISE, REUSED, ABANDONED, FULL)}) == 4


def test_a_fresh_g1_stands_beside_the_named_network_and_the_decoder_of_the_run(run):
    for file, part in ((GENERATOR_FILE, "g1"), (ABANDONED_FILE, "g2")):
        made = with_fresh_g1(run, file, seed=7)
        assert same_state(state_of(made.g2), state_of(getattr(run.generator, part)))
        assert same_state(state_of(made.d), state_of(run.generator.d))
        for trained in (run.generator.g1, run.generator.g2):
            assert not torch.equal(made.g1.l1[0].weight, trained.l1[0].weight)


def test_generating_leaves_statistics_and_mode_alone(run):
    before = state_of(run.generator)
    generated(run.generator, torch.randn(5, NZ))
    assert same_state(before, state_of(run.generator)) and not run.generator.training


def test_every_source_and_seed_is_attacked_from_the_same_start(run):
    quantised = QuantisedModel(run.teacher)
    before = state_of(quantised.model)
    attacks = list(bit_flip_experiment(run, quantised, seeds=(0, 1), flips=2, attacker_batch=5, k_top=3))
    assert [(rows[0].source, rows[0].seed) for rows in attacks] == [(s, n) for n in (0, 1) for s in (*SOURCES, RANDOM)]
    for seed in (0, 1):
        starts = {rows[0].accuracy for rows in attacks if rows[0].seed == seed}
        assert len(starts) == 1 and attacks[0][0].flips == 0
    assert all([row.flips for row in rows] == [0, 1, 2] for rows in attacks)
    assert same_state(before, state_of(quantised.model))


def rows_of(source, seed, accuracies):
    return [Row(source, seed, flips, accuracy) for flips, accuracy in enumerate(accuracies)]


def test_an_attack_that_ended_early_keeps_its_last_accuracy():
    rows = [*rows_of("a", 0, [90.0, 80.0]), *rows_of("a", 1, [92.0, 60.0, 40.0])]
    assert by_source(rows) == {"a": [[90.0, 92.0], [80.0, 60.0], [80.0, 40.0]]}


def test_the_table_is_mean_and_sample_deviation_with_the_hardest_hit_first():
    rows = [*rows_of("weak", 0, [90, 80, 70]), *rows_of("weak", 1, [90, 82, 74])]
    rows += [*rows_of("hard", 0, [90, 50, 10]), *rows_of("hard", 1, [90, 50, 10])]
    head, _, first, second = table(rows, every=2).splitlines()
    assert head == "| attacker's images | n | 0 flips | 2 flips |"
    assert first == "| hard | 2 | 90.0 ± 0.0 | 10.0 ± 0.0 |" and second == "| weak | 2 | 90.0 ± 0.0 | 72.0 ± 2.8 |"
    assert "| 70.0 |" in table(rows_of("one", 0, [90, 80, 70]))


def test_csv_and_plot_are_written_into_a_folder_that_is_made(tmp_path):
    rows = [Row("a", 0, 0, 90.0, 0.5), Row("a", 0, 1, 50.0, 2.5, "fc", 3, 7)]
    write_rows(rows, tmp_path / "new" / "bfa.csv")
    with open(tmp_path / "new" / "bfa.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["layer"] == "" and float(first["loss"]) == 0.5
    assert (second["flips"], second["layer"], second["index"], second["bit"]) == ("1", "fc", "3", "7")
    draw_bit_flips(rows, 20.0, tmp_path / "other" / "bfa.png")
    assert (tmp_path / "other" / "bfa.png").read_bytes().startswith(b"\x89PNG")
