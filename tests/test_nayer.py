"""NAYER's loops against the algorithm in plain autograd and plain Adam; labels, noisy layers, a run's state."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import CLASSES, FP32, NGF, SIZE, same_state, small_teacher, state_of, user_error
from test_aeahl_rg import assert_close_by_name, context_of, parameters_of
from test_fast import loss_by_hand
from test_sync import prepared

from datafree.engine.randomness import Streams
from datafree.methods.nayer import Nayer
from datafree.models.generator import draw_anew

B, K, LR_G, WIDTH = 13, 3, 1e-2, 7  # two whole blocks of the five classes and three samples


def method(context=None, **changes):
    values = {"synthesis_batch_size": B, "g_steps": K, "lr_g": LR_G, "noise_width": WIDTH, "ngf": NGF, "adv": 1.3}
    values |= {"loops": 2, "warmup_loops": 3}
    return Nayer(context or context_of(), Nayer.Config(**values | changes))


def images_by_hand(generator, y):
    """G(y), sample by sample; g itself is asked."""
    e = generator.embeddings[y]
    e = (e - e.mean(0)) / (e.var(0, unbiased=False) + 1e-5).sqrt() * generator.norm.weight + generator.norm.bias
    block = [i // CLASSES for i in range(len(y))]
    noise = [e[i] @ generator.noisy_weight[b] + generator.noisy_bias[b, 0] for i, b in enumerate(block)]
    return generator.images(torch.stack(noise))


def loop_by_hand(context, generator, rng, adversarial, average):
    """One loop, which trains the generator; the x of the lowest L, the statistics."""
    with torch.no_grad():
        generator.noisy_weight.copy_(torch.randn(generator.noisy_weight.shape, generator=rng))
        generator.noisy_bias.zero_()
    rest = torch.randperm(CLASSES, generator=rng)[:3]
    y = torch.cat([torch.arange(CLASSES), torch.arange(CLASSES), rest])
    adam = torch.optim.Adam(generator.parameters(), lr=LR_G, betas=(0.5, 0.999), foreach=False)
    images, losses = [], []
    for _ in range(K):
        x = images_by_hand(generator, y)
        loss, _, blend = loss_by_hand(context, x, y, rng, adversarial, average)
        adam.zero_grad()
        loss.backward()
        adam.step()
        images.append(x.detach())
        losses.append(loss.item())
    return images[losses.index(min(losses))], blend


@pytest.mark.parametrize("embedding", ["onehot", "random"])
def test_rounds_are_those_by_hand_loop_by_loop(embedding):
    subject = method(embedding=embedding, embedding_size=4)
    generator, rng, average = copy.deepcopy(subject.generator), Streams(0)["synthesis"], None
    start = parameters_of(generator)
    for warmup, loops in ((True, 3), (False, 2)):
        images = subject.synthesize(warmup).images
        assert images.shape == (loops * B, 3, SIZE, SIZE) and not images.requires_grad
        for made in images.split(B):
            x, average = loop_by_hand(subject.context, generator, rng, not warmup, average)
            torch.testing.assert_close(made, x, rtol=1e-3, atol=2e-3)
        assert (min(subject.context.read().series["loss_adv"]) < 0) == (not warmup)
    torch.testing.assert_close(subject.priors.statistics.average, average, rtol=2e-3, atol=1e-4)
    found, wanted = (
        {n: p - start[n] for n, p in parameters_of(each).items()} for each in (subject.generator, generator)
    )
    assert_close_by_name(found, wanted, 5e-2)


def test_the_best_images_of_a_loop_not_the_last_are_given():
    subject, seen, levels = method(loops=1), [], iter([3.0, 1.0, 2.0])

    def objective(x, y, adversarial):
        seen.append(x.detach().clone())
        return x.mean() - x.mean().detach() + next(levels)

    subject.objective = objective
    images = subject.synthesize(warmup=False).images
    assert torch.equal(images, seen[1]) and not torch.equal(images, seen[2])


# Labels and noisy layers


@pytest.mark.parametrize("batch", [2, CLASSES, B, 4 * CLASSES])
def test_labels_are_balanced_block_by_block(batch):
    subject, rng = method(synthesis_batch_size=batch), Streams(3)["labels"]
    for _ in range(3):
        y = subject.labels(rng)
        counts = torch.bincount(y, minlength=CLASSES)
        assert len(y) == batch and counts.max() - counts.min() <= 1
        assert all(len(block.unique()) == len(block) for block in y.split(CLASSES))
        assert torch.equal(y[: batch - batch % CLASSES], torch.arange(CLASSES).repeat(batch // CLASSES))


def test_every_block_has_a_noisy_layer_of_its_own_and_every_loop_draws_them_anew():
    subject, drawn = method(), []
    draw = subject.generator.draw_noise

    def watched(rng):
        draw(rng)
        drawn.append(subject.generator.noisy_weight.detach().clone())
        assert (subject.generator.noisy_bias == 0).all()

    subject.generator.draw_noise = watched
    subject.synthesize(warmup=False)
    subject.synthesize(warmup=True)
    layers = torch.cat(drawn)  # (5 loops * 3 blocks, d, width)
    assert layers.shape == (5 * 3, CLASSES, WIDTH)
    assert len({tuple(layer.flatten().tolist()) for layer in layers}) == 15
    assert abs(layers.mean()) < 0.2 and layers.std() == pytest.approx(1, abs=0.2)


@torch.no_grad()
def test_samples_of_a_class_differ_by_their_layers_alone():
    generator = method(synthesis_batch_size=2 * CLASSES).generator.eval()
    generator.draw_noise(Streams(0)["noise"])
    y = torch.arange(CLASSES).repeat(2)
    first, second = generator(y).split(CLASSES)
    assert (first - second).abs().flatten(1).amax(1).min() > 0.01
    generator.noisy_weight[1] = generator.noisy_weight[0]
    first, second = generator(y).split(CLASSES)
    torch.testing.assert_close(first, second)


def test_the_generator_is_drawn_anew_every_g_life_rounds_and_not_where_that_is_zero():
    subject, forever = method(g_life=2, lr_g=1e-12), method(g_life=0, lr_g=1e-12)
    lasting = [{n: p for n, p in parameters_of(subject.generator).items() if "noisy" not in n}]
    for _ in range(5):
        subject.synthesize(warmup=False)
        forever.synthesize(warmup=False)
        lasting.append({n: p for n, p in parameters_of(subject.generator).items() if "noisy" not in n})
    changed = [any((b[n] - a[n]).abs().max() > 1e-6 for n in a) for a, b in pairwise(lasting)]
    assert changed == [False, False, True, False, True]
    kept = parameters_of(forever.generator)
    assert all((kept[n] - p).abs().max() < 1e-6 for n, p in lasting[0].items())
    expected, rng = copy.deepcopy(subject.generator), Streams(0)["reset"]
    for _ in range(2):
        draw_anew(expected, rng)
    assert all((p - lasting[-1][n]).abs().max() < 1e-6 for n, p in expected.named_parameters() if "noisy" not in n)


def test_the_pool_is_made_for_what_the_loops_give(tmp_path):
    subject = method()
    assert subject.images_a_round == 3 * B and subject.images_in(rounds=10, warmup=4) == (4 * 3 + 6 * 2) * B
    length = {"epochs": 4, "warmup": 1, "ep_steps": 4}  # of two rounds each
    job = prepared({"method": "nayer", "loops": 2, "warmup_loops": 3, **length}, FP32, tmp_path)
    assert job.pool.capacity == 8 * (2 * 3 + 6 * 2) and job.context.rounds == 8


# What stands for a class


def test_embeddings_are_one_hot_or_random_of_the_seed_or_a_files(tmp_path):
    table = torch.randn(CLASSES, 4)
    np.save(tmp_path / "a.npy", table.double().numpy())
    torch.save(table.half(), tmp_path / "a.pth")
    torch.save({"text": table}, tmp_path / "b.pth")
    (tmp_path / "c.pickle").write_bytes(pickle.dumps(table))
    assert torch.equal(method().generator.embeddings, torch.eye(CLASSES))
    random = method(embedding="random", embedding_size=4).generator.embeddings
    assert torch.equal(random, torch.randn(CLASSES, 4, generator=Streams(0)["embedding"]))
    assert not torch.equal(
        random, method(context_of(seed=1), embedding="random", embedding_size=4).generator.embeddings
    )
    for name in ("a.npy", "a.pth", "b.pth", "c.pickle"):
        found = method(embedding=str(tmp_path / name)).generator.embeddings
        torch.testing.assert_close(found, table, atol=1e-3, rtol=1e-3)
        assert found.dtype == torch.float32


class Evil:
    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)


FILES = {
    "rows": (lambda path: np.save(path, np.zeros((CLASSES + 1, 4))), f"has {CLASSES + 1} rows for {CLASSES} classes"),
    "one dimension": (
        lambda path: np.save(path, np.zeros(CLASSES)),
        f"is no table of numbers but of shape ({CLASSES},)",
    ),
    "several tensors": (lambda path: torch.save({"a": torch.eye(5), "b": torch.eye(5)}, path), "is no table"),
    "NaN": (lambda path: np.save(path, np.full((CLASSES, 4), np.nan)), "holds no numbers, or NaN"),
    "no columns": (lambda path: torch.save(torch.zeros(CLASSES, 0), path), "holds no numbers, or NaN"),
    "words": (lambda path: np.save(path, np.array([["a"]] * CLASSES)), "not of numbers alone"),
    "objects": (lambda path: np.save(path, np.array([Evil()]), allow_pickle=True), "not of numbers alone"),
    "cut short": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v"), "cannot be read"),
    "no such format": (lambda path: path.write_text("a table"), "is damaged, or not a checkpoint"),
    "missing": (lambda path: None, "does not exist"),
    "a folder": (lambda path: path.mkdir(), "is not a file"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_holds_no_row_a_class_is_refused_in_one_line(what, tmp_path):
    write, words = FILES[what]
    path = tmp_path / "e.npy"  # numpy.save adds it to any other name
    write(path)
    with user_error("label embeddings", "e.npy", words):
        method(embedding=str(path))


# Around it


def test_every_iteration_is_shown_to_observers_and_the_student_plays_no_part_in_warm_up():
    context, seen = context_of(), []
    context.observers.append(lambda x, logits: seen.append((len(x), logits.shape)))
    before = state_of(context.student)
    method(context).synthesize(warmup=False)
    assert seen == 2 * K * [(B, (B, CLASSES))] and same_state(state_of(context.student), before)
    context.student.register_forward_pre_hook(lambda *_: pytest.fail("the student was called"))
    method(context).synthesize(warmup=True)


def test_a_teacher_without_batch_norm_is_inverted_with_other_priors():
    subject = method(context_of(teacher=small_teacher(batch_norm=False)))
    subject.synthesize(warmup=False)
    means = subject.context.read().means()
    assert "loss_bn" not in means and min(means["loss_tv"], means["loss_l2"]) > 0
    assert "tv 1, l2 0.1" in subject.remarks[0]


def test_a_sample_is_of_new_noisy_layers_and_changes_nothing():
    subject = method()
    subject.synthesize(warmup=True)
    before = state_of(subject.generator)
    x = subject.sample(2 * B + 1, "evaluation")
    generator, rng = copy.deepcopy(subject.generator), Streams(0)["evaluation"]
    generator.draw_noise(rng)
    torch.testing.assert_close(x[:B], generator(subject.labels(rng)))
    assert len(x) == 2 * B + 1 and not torch.equal(x[:B], x[B : 2 * B])
    assert same_state(state_of(subject.generator), before) and subject.generator.training


def test_a_state_dict_without_noisy_layers_and_the_streams_continue_exactly_without_the_embeddings_file(tmp_path):
    path = tmp_path / "e.npy"
    np.save(path, np.random.default_rng(0).normal(size=(CLASSES, 4)))
    subject = method(embedding=str(path), g_life=3)
    for _ in range(2):
        subject.synthesize(warmup=False)
    state = copy.deepcopy(subject.state_dict())
    assert not any("noisy" in name for name in state["generator"])
    torch.save([state, subject.context.streams.state_dict()], tmp_path / "state.pth")
    expected = [subject.synthesize(warmup=False).images for _ in range(2)]  # the second of a new generator
    path.unlink()
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    context = context_of()
    context.saved = lambda: state
    other = method(context, embedding=str(path), g_life=3)
    other.load_state_dict(state)
    context.streams.load_state_dict(streams)
    found = [other.synthesize(warmup=False).images for _ in range(2)]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert same_state(state_of(other.generator), state_of(subject.generator))
