"""Every loss of logits against its equation, written out sample by sample in Python's float64."""

import math

import pytest
import torch

from datafree.losses.kd import (
    adversarial_loss,
    competition_loss,
    distillation_loss,
    hard_loss,
    jensen_shannon,
    kl_divergence,
    one_hot_loss,
)

T = [[2.0, -1.0, 0.5], [0.1, 0.3, -2.0], [-4.0, 1.0, 1.5], [0.0, 3.0, -1.0]]
S = [[1.0, 0.0, -0.5], [1.1, -0.3, 0.7], [0.2, -1.0, 2.5], [0.5, 1.5, 1.4]]  # same class as T in rows 0, 2, 3
Y = [2, 1, 0, 1]


def softmax(row, tau=1.0):
    exponentials = [math.exp(value / tau) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def kl(t, s, tau=1.0):
    return sum(p * math.log(p / q) for p, q in zip(softmax(t, tau), softmax(s, tau), strict=True))


def logits(rows):
    return torch.tensor(rows, requires_grad=True)


def close(value, expected):
    torch.testing.assert_close(value.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_kl_divergence_is_of_each_sample_weighted_by_its_first_argument():
    close(kl_divergence(logits(T), logits(S)), [kl(t, s) for t, s in zip(T, S, strict=True)])
    close(kl_divergence(logits(S), logits(T)), [kl(s, t) for t, s in zip(T, S, strict=True)])
    assert abs(kl(T[0], S[0]) - kl(S[0], T[0])) > 0.01


def test_losses_are_zero_for_equal_logits_and_for_logits_shifted_by_a_constant():
    for s in (logits(T), logits(T) + 7):
        close(kl_divergence(logits(T), s), [0.0] * 4)
        for tau in (1.0, 20.0):
            assert abs(distillation_loss(logits(T), s, tau).item()) < tau**2 * 1e-7  # rounding, times tau squared


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_distillation_loss_is_tau_squared_times_the_mean_kl_with_gradient_tau_times_q_minus_p(tau):
    t, s = logits(T), logits(S)
    loss = distillation_loss(t, s, tau)
    by_hand = tau**2 * sum(kl(*rows, tau) for rows in zip(T, S, strict=True)) / len(T)
    torch.testing.assert_close(loss.item(), by_hand, rtol=2e-5, atol=0)
    loss.backward()
    gradient = [
        [tau * (q - p) / len(T) for p, q in zip(softmax(a, tau), softmax(b, tau), strict=True)]
        for a, b in zip(T, S, strict=True)
    ]
    close(s.grad, gradient)
    assert t.grad is None


@pytest.mark.parametrize("loss", [one_hot_loss, hard_loss])
def test_cross_entropies_are_the_mean_of_minus_log_p_of_the_wanted_class(loss):
    by_hand = -sum(math.log(softmax(t)[wanted]) for t, wanted in zip(T, Y, strict=True)) / len(T)
    close(loss(logits(T), torch.tensor(Y)), by_hand)


def test_adversarial_loss_is_minus_kl_where_the_classes_agree_with_gradients_to_both_and_zero_elsewhere():
    t, s = logits(T), logits(S)
    agree = [a.index(max(a)) == b.index(max(b)) for a, b in zip(T, S, strict=True)]
    assert agree == [True, False, True, True]
    loss = adversarial_loss(t, s)
    close(loss, -sum(kl(a, b) * same for a, b, same in zip(T, S, agree, strict=True)) / len(T))
    loss.backward()
    grad_t, grad_s = [], []
    for a, b, same in zip(T, S, agree, strict=True):
        p, q = softmax(a), softmax(b)
        grad_s.append([-same / len(T) * (qi - pi) for pi, qi in zip(p, q, strict=True)])
        grad_t.append([-same / len(T) * pi * (math.log(pi / qi) - kl(a, b)) for pi, qi in zip(p, q, strict=True)])
    close(t.grad, grad_t)
    close(s.grad, grad_s)
    assert loss < 0 and not t.grad[1].any() and not s.grad[1].any() and t.grad[0].any() and s.grad[0].any()


def clamped_js(t, s, tau):
    p, q = softmax(t, tau), softmax(s, tau)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    p, q, m = ([min(max(x, 0.01), 0.99) for x in each] for each in (p, q, m))
    return sum(c * (math.log(c / a) + math.log(c / b)) / 2 for a, b, c in zip(p, q, m, strict=True))


@pytest.mark.parametrize("tau", [3.0, 0.3])  # 0.3: with probabilities of 0.0000 and 0.9999
def test_jensen_shannon_is_from_the_mean_to_both_answers_each_probability_within_bounds(tau):
    t, s = torch.tensor(T), torch.tensor(S)
    expected = sum(clamped_js(a, b, tau) for a, b in zip(T, S, strict=True)) / len(T)
    close(jensen_shannon(t, s, tau), expected)
    close(jensen_shannon(s, t, tau), expected)
    assert jensen_shannon(t, t, tau).abs() < 1e-6


def test_the_competition_loss_is_one_where_answers_agree_less_where_not_and_pulls_at_both():
    t, s = (torch.tensor(each, requires_grad=True) for each in (T, S))
    loss = competition_loss(t, s)
    close(loss, 1 - sum(clamped_js(a, b, 3.0) for a, b in zip(T, S, strict=True)) / len(T))
    loss.backward()
    assert t.grad.any() and s.grad.any() and loss < 1
    close(competition_loss(t, t), 1.0)
    zero, small = (torch.tensor([[60.0] + 9 * [rest]]) for rest in (0.0, 48.9))  # 0.82 and nine of 0.02 at tau 3
    assert jensen_shannon(zero, small) < 0 and competition_loss(zero, small) == 1  # what the clamps can do
    far = [torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])]
    assert jensen_shannon(*far) > 1 and competition_loss(*far) == 0


def test_losses_of_bf16_logits_are_computed_in_fp32():
    t, s, y = torch.tensor(T).bfloat16(), torch.tensor(S).bfloat16(), torch.tensor(Y)
    for loss, rest in (
        (kl_divergence, (s,)),
        (distillation_loss, (s, 20.0)),
        (adversarial_loss, (s,)),
        (competition_loss, (s,)),
        (one_hot_loss, (y,)),
        (hard_loss, (y,)),
    ):
        half, full = loss(t, *rest), loss(t.float(), *(x.float() if x is s else x for x in rest))
        assert half.dtype == torch.float32 and torch.equal(half, full)


def test_losses_of_huge_logits_are_finite():
    t, s = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[1e4, 0.0, -1e4]])
    values = (
        kl_divergence(t, s),
        distillation_loss(t, -s, 1.0),
        adversarial_loss(t, s),
        competition_loss(t, s),
        one_hot_loss(t, torch.ones(1).long()),
    )
    assert all(value.isfinite().all() for value in values)
