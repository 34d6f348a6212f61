"""The terms of generators against their equations, written out sample by sample in Python's float64."""

import math

import pytest
import torch
from conftest import SIZE, same_state, small_teacher, state_of
from test_aeahl_rg import bn_inputs
from test_batchnorm import moments_by_hand
from test_kd import S, T, close, kl, logits, softmax

from datafree.losses.adversarial import (
    activation_loss,
    balance_loss,
    kl_disagreement,
    l1_disagreement,
    sample_entropy,
)
from datafree.losses.batchnorm import EPSILON, gaussian_bn_loss
from datafree.models.classifier import Classifier
from datafree.models.head_input import HeadInput
from datafree.models.norm_statistics import NormStatistics


def test_kl_disagreement_is_minus_the_mean_kl_of_all_samples_with_gradients_to_both():
    t, s = logits(T), logits(S)
    loss = kl_disagreement(t, s)
    close(loss, -sum(kl(a, b) for a, b in zip(T, S, strict=True)) / len(T))
    loss.backward()
    grad_t, grad_s = [], []
    for a, b in zip(T, S, strict=True):
        p, q = softmax(a), softmax(b)
        grad_s.append([-(qi - pi) / len(T) for pi, qi in zip(p, q, strict=True)])
        grad_t.append([-pi * (math.log(pi / qi) - kl(a, b)) / len(T) for pi, qi in zip(p, q, strict=True)])
    close(t.grad, grad_t)
    close(s.grad, grad_s)


def test_l1_disagreement_is_minus_the_mean_distance_and_its_gradient_takes_the_logits_apart():
    t, s = logits(T), logits(S)
    loss = l1_disagreement(t, s)
    pairs = [(a, b) for rows in zip(T, S, strict=True) for a, b in zip(*rows, strict=True)]
    close(loss, -sum(abs(a - b) for a, b in pairs) / len(pairs))
    loss.backward()
    close(t.grad.flatten(), [-math.copysign(1, a - b) / len(pairs) for a, b in pairs])
    close(s.grad, (-t.grad).tolist())


@pytest.mark.parametrize("loss", [kl_disagreement, l1_disagreement])
def test_disagreement_and_its_gradients_are_zero_where_the_student_says_what_the_teacher_says(loss):
    t, s = logits(T), logits(T)
    value = loss(t, s)
    value.backward()
    assert abs(value.item()) < 1e-7 and t.grad.abs().max() < 1e-7 and s.grad.abs().max() < 1e-7


def test_activation_loss_is_minus_the_mean_of_the_absolute_values():
    f = logits([[1.0, -2.0], [0.5, 4.0]])
    loss = activation_loss(f)
    close(loss, -(1 + 2 + 0.5 + 4) / 4)
    loss.backward()
    close(f.grad, [[-0.25, 0.25], [-0.25, -0.25]])


def test_balance_loss_is_minus_the_entropy_of_the_mean_answer_and_lowest_where_classes_are_even():
    mean = [sum(softmax(row)[c] for row in T) / len(T) for c in range(3)]
    close(balance_loss(logits(T)), sum(p * math.log(p) for p in mean))
    sure = 1e4 * torch.eye(3)
    close(balance_loss(sure), -math.log(3))
    collapsed = sure[:1].expand(5, 3).clone().requires_grad_()
    balance_loss(collapsed).backward()
    assert balance_loss(collapsed) == 0 and collapsed.grad.isfinite().all()


def test_sample_entropy_is_the_mean_of_each_ones_own():
    by_hand = [-sum(p * math.log(p) for p in softmax(row)) for row in T]
    close(sample_entropy(logits(T)), sum(by_hand) / len(T))
    close(sample_entropy(torch.zeros(2, 3)), math.log(3))
    assert sample_entropy(1e4 * torch.eye(3)) == 0


def test_losses_of_bf16_logits_are_computed_in_fp32():
    t, s = torch.tensor(T).bfloat16(), torch.tensor(S).bfloat16()
    for loss in (kl_disagreement, l1_disagreement):
        assert torch.equal(loss(t, s), loss(t.float(), s.float()))
    for loss in (activation_loss, balance_loss, sample_entropy):
        assert torch.equal(loss(t), loss(t.float()))


def gaussian_kl(mean, variance, other_mean, other_variance):
    """KL(N || N other) by integration over a fine grid."""
    sigma, step = math.sqrt(variance), 1e-3
    points = [mean + sigma * step * i for i in range(-10000, 10001)]

    def log_density(x, m, v):
        return -0.5 * ((x - m) ** 2 / v + math.log(2 * math.pi * v))

    return sum(
        math.exp(log_density(x, mean, variance))
        * (log_density(x, mean, variance) - log_density(x, other_mean, other_variance))
        for x in points
    ) * (sigma * step)


def test_gaussian_bn_loss_is_the_sum_over_channels_of_the_kl_of_two_normal_distributions():
    statistics = torch.tensor([0.5, -1.0, 2.0, 0.25, 4.0, 1.0], requires_grad=True)  # three means, three variances
    running, lengths = torch.tensor([0.0, -1.0, 1.0, 1.0, 0.5, 3.0]), torch.tensor([2, 1, 2, 1])
    loss = gaussian_bn_loss(statistics, running, lengths)
    by_hand = [(0.5, 0.25, 0.0, 1.0), (-1.0, 4.0, -1.0, 0.5), (2.0, 1.0, 1.0, 3.0)]
    assert loss.item() == pytest.approx(sum(gaussian_kl(*each) for each in by_hand), rel=1e-3)
    loss.backward()
    means = [(m - n) / w for m, _, n, w in by_hand]
    variances = [0.5 * (1 / w - 1 / v) for _, v, _, w in by_hand]
    torch.testing.assert_close(statistics.grad, torch.tensor(means + variances), rtol=1e-3, atol=1e-5)
    assert abs(gaussian_bn_loss(running, running, lengths).item()) < 1e-6
    dead = torch.zeros(2, requires_grad=True)
    gaussian_bn_loss(dead, torch.tensor([0.0, EPSILON]), lengths).backward()
    assert dead.grad.isfinite().all()


def test_a_teachers_layers_are_heard_by_whatever_distance_is_asked_for():
    teacher, x = small_teacher(), torch.rand(4, 3, SIZE, SIZE)
    statistics = NormStatistics(teacher, 0.0, gaussian_bn_loss)
    with statistics.listening():
        teacher(x)
    first, second, _ = bn_inputs(teacher, x)
    norms, expected = (teacher.network.bn1, teacher.network.bn2), 0.0
    for inputs, norm in zip((first, second), norms, strict=True):
        mean, variance = moments_by_hand(inputs)
        m, v = norm.running_mean.double(), norm.running_var.double()
        expected += (0.5 * (v / variance).log() + (variance + (mean - m) ** 2) / (2 * v) - 0.5).sum().item()
    assert statistics.loss().item() == pytest.approx(expected, rel=1e-3)


def test_what_the_head_reads_is_heard_with_its_gradient_only_when_asked_and_changes_nothing():
    teacher, x = small_teacher(), torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    before, plain = state_of(teacher), teacher(x)
    listener = HeadInput(teacher)
    with listener.listening():
        assert torch.equal(teacher(x), plain)
    heard = listener.features
    network = teacher.network
    by_hand = network.bn1(network.conv1(teacher.normalise(x))).relu()
    torch.testing.assert_close(heard, network.bn2(network.conv2(by_hand)).relu().mean((2, 3)))
    heard.sum().backward()
    assert x.grad.abs().sum() > 0 and same_state(state_of(teacher), before)
    teacher(torch.rand(2, 3, SIZE, SIZE))
    assert listener.features is heard
    listener.remove()
    with listener.listening():
        teacher(x)
    assert listener.features is None


def test_a_network_without_a_linear_layer_lets_nothing_be_heard():
    convolutions = torch.nn.Sequential(torch.nn.Conv2d(3, 5, SIZE), torch.nn.Flatten())
    teacher = Classifier(convolutions, "own", 5, SIZE, (0.5,) * 3, (0.5,) * 3).eval()
    listener = HeadInput(teacher)
    with listener.listening():
        teacher(torch.rand(2, 3, SIZE, SIZE))
    assert listener.features is None
