"""Every loss against its equation, written out sample by sample in Python's float64."""

import math

import pytest
import torch

from datafree.losses import adversarial_loss, bn_loss, distillation_loss, kl_divergence, one_hot_loss

T = [[2.0, -1.0, 0.5], [0.1, 0.3, -2.0], [-4.0, 1.0, 1.5], [0.0, 3.0, -1.0]]
S = [[1.0, 0.0, -0.5], [1.1, -0.3, 0.7], [0.2, -1.0, 2.5], [0.5, 1.5, 1.4]]  # same class as T in rows 0, 2, 3


def softmax(row, tau=1.0):
    exponentials = [math.exp(value / tau) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def kl(t, s, tau=1.0):
    return sum(p * math.log(p / q) for p, q in zip(softmax(t, tau), softmax(s, tau), strict=True))


def logits(rows):
    return torch.tensor(rows, requires_grad=True)


def close(value, expected):
    torch.testing.assert_close(value.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_kl_divergence_is_of_each_sample_by_hand():
    close(kl_divergence(logits(T), logits(S)), [kl(t, s) for t, s in zip(T, S, strict=True)])


def test_kl_divergence_is_zero_for_equal_logits_and_for_logits_shifted_by_a_constant():
    close(kl_divergence(logits(T), logits(T)), [0.0] * 4)
    close(kl_divergence(logits(T), logits(T) + 7), [0.0] * 4)


def test_kl_divergence_weights_by_its_first_argument():
    assert abs(kl(T[0], S[0]) - kl(S[0], T[0])) > 0.01
    close(kl_divergence(logits(S), logits(T)), [kl(s, t) for t, s in zip(T, S, strict=True)])


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_distillation_loss_is_tau_squared_times_the_mean_kl_of_the_batch(tau):
    by_hand = tau**2 * sum(kl(t, s, tau) for t, s in zip(T, S, strict=True)) / len(T)
    torch.testing.assert_close(distillation_loss(logits(T), logits(S), tau).item(), by_hand, rtol=2e-5, atol=0)


def test_distillation_loss_is_zero_for_equal_logits():
    for tau in (1.0, 20.0):
        assert abs(distillation_loss(logits(T), logits(T), tau).item()) < tau**2 * 1e-7  # rounding, times tau squared


@pytest.mark.parametrize("tau", [1.0, 20.0])
def test_distillation_gradient_is_tau_times_q_minus_p_over_the_batch(tau):
    t, s = logits(T), logits(S)
    distillation_loss(t, s, tau).backward()
    by_hand = [
        [tau * (q - p) / len(T) for p, q in zip(softmax(a, tau), softmax(b, tau), strict=True)]
        for a, b in zip(T, S, strict=True)
    ]
    close(s.grad, by_hand)
    assert t.grad is None


def test_one_hot_loss_is_the_mean_of_minus_log_p_of_the_wanted_class():
    y = [2, 1, 0, 1]
    by_hand = -sum(math.log(softmax(t)[wanted]) for t, wanted in zip(T, y, strict=True)) / len(T)
    close(one_hot_loss(logits(T), torch.tensor(y)), by_hand)


def test_adversarial_loss_is_minus_kl_where_the_classes_agree_over_the_whole_batch():
    agree = [t.index(max(t)) == s.index(max(s)) for t, s in zip(T, S, strict=True)]
    assert agree == [True, False, True, True]
    by_hand = -sum(kl(t, s) * a for t, s, a in zip(T, S, agree, strict=True)) / len(T)
    assert by_hand < 0
    close(adversarial_loss(logits(T), logits(S)), by_hand)


def test_adversarial_gradient_reaches_teacher_and_student_where_they_agree_and_is_zero_elsewhere():
    t, s = logits(T), logits(S)
    adversarial_loss(t, s).backward()
    grad_t, grad_s = [], []
    for a, b in zip(T, S, strict=True):
        p, q = softmax(a), softmax(b)
        share = (a.index(max(a)) == b.index(max(b))) / len(T)
        grad_s.append([-share * (qi - pi) for pi, qi in zip(p, q, strict=True)])
        grad_t.append([-share * pi * (math.log(pi / qi) - kl(a, b)) for pi, qi in zip(p, q, strict=True)])
    close(t.grad, grad_t)
    close(s.grad, grad_s)
    assert not t.grad[1].any() and not s.grad[1].any() and t.grad[0].any() and s.grad[0].any()


def test_adversarial_loss_is_zero_where_no_sample_agrees():
    assert adversarial_loss(logits(T[1:2]), logits(S[1:2])).item() == 0


def test_bn_loss_sums_plain_norms_a_layer():
    means, variances = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])], [torch.tensor([2.0, 2.0]), torch.tensor([9.0])]
    kept_means, kept_variances = [torch.zeros(2), torch.tensor([3.0])], [torch.tensor([2.0, 14.0]), torch.tensor([4.0])]
    # ||(3, 4)|| + ||-2|| + ||(0, -12)|| + ||5||: not squared, and not one norm over all layers
    assert bn_loss(means, variances, kept_means, kept_variances).item() == 5 + 2 + 12 + 5


def test_bn_loss_gradient_is_the_unit_vector_of_each_layer_and_zero_at_equality():
    mean, variance = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([1.0, 2.0], requires_grad=True)
    bn_loss([mean], [variance], [torch.zeros(2)], [torch.tensor([1.0, 2.0])]).backward()
    close(mean.grad, [0.6, 0.8])
    close(variance.grad, [0.0, 0.0])


def test_bn_loss_refuses_unequal_numbers_of_layers():
    with pytest.raises(ValueError):
        bn_loss([torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2)] * 2, [torch.zeros(2)])


def test_losses_of_bf16_logits_are_computed_in_fp32():
    t, s = torch.tensor(T).bfloat16(), torch.tensor(S).bfloat16()
    y = torch.tensor([2, 1, 0, 1])
    for half, full in (
        (kl_divergence(t, s), kl_divergence(t.float(), s.float())),
        (distillation_loss(t, s, 20.0), distillation_loss(t.float(), s.float(), 20.0)),
        (one_hot_loss(t, y), one_hot_loss(t.float(), y)),
        (adversarial_loss(t, s), adversarial_loss(t.float(), s.float())),
        (bn_loss([t[0]], [s[0]], [t[1]], [s[1]]), bn_loss(*([v.float()] for v in (t[0], s[0], t[1], s[1])))),
    ):
        assert half.dtype == torch.float32 and torch.equal(half, full)


def test_losses_of_huge_logits_are_finite():
    t, s = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[1e4, 0.0, -1e4]])
    values = (
        kl_divergence(t, s),
        distillation_loss(t, -s, 1.0),
        adversarial_loss(t, s),
        one_hot_loss(t, torch.ones(1).long()),
    )
    assert all(value.isfinite().all() for value in values)
