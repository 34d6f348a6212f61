"""Priors by hand, and which of them a teacher gets."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    same_state,
    small_classifier,
    small_context,
    small_teacher,
    state_of,
    user_error,
)
from torch import nn

from datafree.losses.priors import (
    BINS,
    NARROWEST,
    image_norm,
    patch_diversity_loss,
    patch_similarity,
    similarity_entropy,
    total_variation,
)
from datafree.methods.priors import WITHOUT_STATISTICS, Priors
from datafree.models.attention import PatchDiversity, attention_layers, patches
from datafree.models.classifier import Classifier


def test_total_variation_is_the_mean_difference_of_neighbours_down_and_right():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    down = [
        abs(x[b, c, i + 1, j] - x[b, c, i, j]) for b in range(2) for c in range(3) for i in range(3) for j in range(5)
    ]
    right = [
        abs(x[b, c, i, j + 1] - x[b, c, i, j]) for b in range(2) for c in range(3) for i in range(4) for j in range(4)
    ]
    assert total_variation(x).item() == pytest.approx(sum(down).item() / len(down) + sum(right).item() / len(right))
    assert total_variation(torch.full((1, 3, 4, 4), 0.3)) == 0 and total_variation(torch.rand(1, 3, 1, 1)) == 0


def test_image_norm_is_the_mean_square():
    x = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]])
    assert image_norm(x).item() == pytest.approx((1 + 4 + 0 + 9) / 4)


def test_patch_similarity_is_the_cosine_of_every_two_tokens():
    tokens = torch.randn(2, 3, 7, dtype=torch.float64)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                a, c = tokens[b, i].tolist(), tokens[b, j].tolist()
                by_hand = sum(p * q for p, q in zip(a, c, strict=True)) / math.hypot(*a) / math.hypot(*c)
                assert patch_similarity(tokens)[b, i, j].item() == pytest.approx(by_hand, abs=1e-6)


def entropy_by_hand(values):
    """Of the Gaussian kernel density over a fine grid of [-1, 1], in nats."""
    mean = sum(values) / len(values)
    sigma = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    h = max(sigma * len(values) ** -0.2, NARROWEST)
    step = 2 / (BINS - 1)
    grid = [-1 + i * step for i in range(BINS)]
    density = [sum(math.exp(-0.5 * ((g - v) / h) ** 2) for v in values) for g in grid]
    total = sum(density) * step
    return -sum(d / total * math.log(max(d / total, 1e-12)) for d in density) * step


@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_similarity_entropy_is_that_of_the_kernel_density_up_to_its_bins(spread):
    values = (spread * torch.randn(3, 8, 8)).clamp(-1, 1)
    found = similarity_entropy(values)
    for each, image in zip(found.tolist(), values, strict=True):
        assert each == pytest.approx(entropy_by_hand(image.flatten().tolist()), abs=0.02)


def test_entropy_grows_as_similarities_spread_and_its_gradient_spreads_them():
    narrow, wide = (similarity_entropy(s * torch.randn(1, 10, 10)).item() for s in (0.05, 0.4))
    assert narrow < wide
    values = (0.2 * torch.randn(1, 10, 10)).requires_grad_()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(similarity_entropy(values).sum(), values)
        assert gradient.isfinite().all()
        values = (values + 0.5 * gradient).detach().requires_grad_()
    assert values.std() > 0.25
    assert similarity_entropy(torch.ones(1, 4, 4, requires_grad=True)).isfinite().all()  # all alike


def test_patch_diversity_is_minus_the_mean_over_layers_and_images():
    layers = [0.3 * torch.randn(2, 4, 4), 0.1 * torch.randn(2, 9, 9)]
    by_hand = -sum(similarity_entropy(layer).mean().item() for layer in layers) / 2
    assert patch_diversity_loss(layers).item() == pytest.approx(by_hand)


def test_a_class_token_is_left_out_maps_are_lists_of_tokens_and_long_lists_are_thinned():
    tokens = torch.randn(2, 17, 3)
    assert torch.equal(patches(tokens), tokens[:, 1:]) and torch.equal(patches(tokens[:, 1:]), tokens[:, 1:])
    assert torch.equal(patches(tokens[:, 1:].view(2, 4, 4, 3)), tokens[:, 1:])
    assert patches(torch.randn(1, 1024, 3)).shape[1] == 256


@pytest.mark.parametrize(("extra", "maps"), [(5, {16, 4}), (2, {16}), (1, {16}), (1, ()), (0, {16}), (0, ())])
def test_class_distillation_and_register_tokens_are_left_out_by_the_map_that_the_patches_are_of(extra, maps):
    tokens = torch.randn(2, extra + 16, 3)
    assert torch.equal(patches(tokens, maps), tokens[:, extra:])


def test_patches_of_a_map_that_is_not_square_and_of_windows_are_kept_whole():
    tokens = torch.randn(2, 17, 3)
    assert torch.equal(patches(tokens, {17}), tokens)  # 1 x 17
    assert torch.equal(patches(tokens[:, 1:], {196}), tokens[:, 1:])  # windows of 4 x 4 out of 14 x 14


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 6)

    def forward(self, x):
        return self.qkv(x), None


class Transformer(nn.Module):
    """Patches of 4x4 pixels, two layers of something called attention."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, CLASSES)
        self.layers = nn.ModuleList(nn.Sequential(SelfAttention()) for _ in range(2))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = x + layer(x)[0]
        return self.fc(x.mean(1))


def transformer():
    return Classifier(Transformer(), "vit", CLASSES, SIZE, MEAN, STD).eval().requires_grad_(False)


def weights(bn=10.0, tv=None, l2=None, patch=None):
    return SimpleNamespace(bn=bn, tv=tv, l2=l2, patch=patch)


class NormedHead(Transformer):
    """One BatchNorm, over a feature vector an image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, CLASSES))


class NormedStem(Transformer):
    """One BatchNorm, over the map of patches."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6))
        self.layers = nn.ModuleList(nn.Sequential(SelfAttention()) for _ in range(4))


class NormedTokens(Transformer):
    """As LeViT has them: one after each linear layer, over all tokens of all images at once."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in self.layers)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + norm(layer(x)[0].flatten(0, 1)).view_as(x)
        return self.fc(x.mean(1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES))


def teacher_of(make):
    return lambda: Classifier(make(), "own", CLASSES, SIZE, MEAN, STD).eval().requires_grad_(False)


FEW = "BatchNorm statistics in few of its layers"
TEACHERS = {"batch norm": small_teacher, "none": lambda: small_teacher(batch_norm=False), "attention": transformer}
TEACHERS |= {kind.__name__: teacher_of(kind) for kind in (NormedHead, NormedStem, NormedTokens, mlp)}
CHOSEN = [
    ("batch norm", weights(), {"bn": 10.0}, "priors: bn 10"),
    ("batch norm", weights(tv=0.5), {"bn": 10.0, "tv": 0.5}, "priors: bn 10, tv 0.5"),
    ("batch norm", weights(bn=0.0), {}, "priors: none"),
    ("none", weights(), {"tv": 1.0, "l2": 0.1}, "no BatchNorm statistics and no attention layers"),
    ("none", weights(tv=0.0, l2=0.2), {"l2": 0.2}, "priors: l2 0.2"),
    (
        "attention",
        weights(),
        WITHOUT_STATISTICS,
        "priors: tv 1, l2 0.1, patch 1 (the teacher has no BatchNorm statistics)",
    ),
    ("NormedHead", weights(), {"bn": 10.0} | WITHOUT_STATISTICS, f"patch 1 (the teacher has {FEW})"),
    ("NormedStem", weights(), {"bn": 10.0} | WITHOUT_STATISTICS, f"patch 1 (the teacher has {FEW})"),
    ("NormedTokens", weights(), {"bn": 10.0}, "priors: bn 10"),
    ("NormedTokens", weights(patch=2.0), {"bn": 10.0, "patch": 2.0}, "priors: bn 10, patch 2"),
    ("mlp", weights(), {"bn": 10.0, "tv": 1.0, "l2": 0.1}, f"(the teacher has {FEW} and no attention layers)"),
    ("attention", weights(patch=0.0), {"tv": 1.0, "l2": 0.1}, "priors: tv 1, l2 0.1"),
]


@pytest.mark.parametrize(("kind", "wanted", "used", "words"), CHOSEN)
def test_a_teacher_gets_the_priors_that_fit_what_it_has_and_the_log_names_them(kind, wanted, used, words):
    teacher = TEACHERS[kind]()
    priors = Priors(small_context(teacher), wanted, bn_mmt=0.0)
    assert priors.weights == used and words in str(priors)
    x = torch.rand(4, 3, SIZE, SIZE)
    with priors.listening():
        teacher(x)
    terms = priors.terms(x)
    assert set(terms) == {f"loss_{name}" for name in used}
    assert float(priors.weighted(terms)) == pytest.approx(sum(used[n] * terms[f"loss_{n}"].item() for n in used))
    if "l2" in used:
        by_hand = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)]).square().mean()
        assert terms["loss_l2"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    priors.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


@pytest.mark.parametrize(
    ("kind", "flag", "words"),
    [
        ("none", "bn", "no BatchNorm statistics"),
        ("none", "patch", "no attention"),
        ("batch norm", "patch", "attention"),
    ],
)
def test_a_prior_that_was_asked_for_and_the_teacher_cannot_give_is_refused(kind, flag, words):
    context = small_context(TEACHERS[kind]())
    wanted = weights(**{flag: 3.0})
    assert flag not in Priors(context, wanted, bn_mmt=0.0).weights  # of a preset, or the default
    context.asked = frozenset({flag})
    with user_error(f"--{flag} 3: the teacher has ", words):
        Priors(context, wanted, bn_mmt=0.0)
    Priors(context, weights(**{flag: 0.0}), bn_mmt=0.0)


def test_patch_diversity_hears_every_attention_layer_and_changes_nothing():
    teacher, x = transformer(), torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    before, plain = state_of(teacher), teacher(x)
    assert attention_layers(teacher.network) == [layer[0] for layer in teacher.network.layers]
    listener, heard = PatchDiversity(teacher), []
    tokens = teacher.network.embed(teacher.normalise(x)).flatten(2).transpose(1, 2)
    for layer in teacher.network.layers:
        heard.append(patch_similarity(layer(tokens)[0]))
        tokens = tokens + layer(tokens)[0]
    with listener.listening():
        assert torch.equal(teacher(x), plain)
    teacher(torch.rand(2, 3, SIZE, SIZE))  # not heard
    torch.testing.assert_close(listener.loss(), patch_diversity_loss(heard))
    listener.loss().backward()
    assert x.grad.abs().sum() > 0 and same_state(state_of(teacher), before)


class WithRegisters(Transformer):
    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = x + layer(x)[0]
        return self.fc(x[:, 0])


def test_register_tokens_of_a_network_are_not_compared():
    teacher = teacher_of(WithRegisters)()
    network, listener, x = teacher.network, PatchDiversity(teacher), torch.rand(2, 3, SIZE, SIZE)
    heard = []
    for layer in network.layers:
        layer.register_forward_hook(lambda layer, args, answer: heard.append(patch_similarity(answer[0][:, 5:])))
    with listener.listening():
        teacher(x)
    torch.testing.assert_close(listener.loss(), patch_diversity_loss(heard))
    listener.remove()
    assert not any(m._forward_hooks for m in network.modules() if m not in set(network.layers))


def test_convolutional_attention_is_none_of_ours():
    assert attention_layers(small_classifier(1).network) == []
