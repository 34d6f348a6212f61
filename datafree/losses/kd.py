"""What is asked of logits, as pure functions. Everything is computed in fp32."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) of every sample, in nats: logits (B, C) twice -> (B,)."""
    log_p = F.log_softmax(p_logits.float(), dim=1)
    log_q = F.log_softmax(q_logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, tau: float) -> Tensor:
    """L_kd = tau^2 * mean_B KL(softmax(T/tau) || softmax(S/tau)), in nats: (B, C) twice -> scalar.

    tau^2 keeps the gradient's size when the temperature changes (Hinton, Vinyals and Dean 2015). No gradient flows
    into the teacher's logits.
    """
    target = F.softmax(teacher_logits.detach().float() / tau, dim=1)
    log_q = F.log_softmax(student_logits.float() / tau, dim=1)
    return tau**2 * F.kl_div(log_q, target, reduction="batchmean")


def logit_distance(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Mean of |T - S| over all logits (Fang et al. 2019): (B, C) twice -> scalar. No gradient is stopped."""
    return F.l1_loss(student_logits.float(), teacher_logits.float())


def attention_distance(teacher_maps: Mapping[Any, Tensor], student_maps: Mapping[Any, Tensor]) -> Tensor:
    """L_at = sum of mean (Q_T - Q_S)^2 over levels that both have, Q normalised attention maps (B, positions).

    Attention transfer (Zagoruyko and Komodakis 2017) as ZSKT's code takes it, the mean over batch and positions. No
    gradient flows into the teacher's.
    """
    both = [(q.detach(), student_maps[level]) for level, q in teacher_maps.items() if level in student_maps]
    return sum((F.mse_loss(of_student, of_teacher) for of_teacher, of_student in both), torch.zeros(()))


def hard_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """L_hard = CE(S(x), label), batch mean in nats: (B, C) and (B,) -> scalar."""
    return F.cross_entropy(student_logits.float(), labels)


def one_hot_loss(teacher_logits: Tensor, y: Tensor) -> Tensor:
    """L_oh = CE(T(x), y): the teacher should see the class asked for. (B, C) and (B,) -> scalar, in nats."""
    return F.cross_entropy(teacher_logits.float(), y)


def adversarial_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """L_adv = -mean_B( 1[argmax S = argmax T] * KL(T || S) ): seek images where the student has more to learn.

    Counted only where the two still agree on the class, so that images do not drift to where the teacher errs
    (CMI, Fang et al. 2021). Gradient flows through both. (B, C) twice -> scalar <= 0, in nats.
    """
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return -(agree * kl_divergence(teacher_logits, student_logits)).mean()


def jensen_shannon(p_logits: Tensor, q_logits: Tensor, tau: float = 3.0) -> Tensor:
    """JS of two networks' answers as Adaptive DeepInversion takes it, in nats: logits (B, C) twice -> scalar.

        p = softmax(p_logits / tau), q likewise, m = (p + q) / 2;  each clamped to [0.01, 0.99]
        JS = mean_B( KL(m || p) + KL(m || q) ) / 2

    After the authors' code (Yin et al. 2020): the divergence is from the mean to each answer, the other way round than
    Lin's (1991). The clamps can make it a little negative, and an answer beyond them has no gradient of its own.
    Gradient flows through both.
    """
    p, q = ((logits.float() / tau).softmax(1) for logits in (p_logits, q_logits))
    m = ((p + q) / 2).clamp(0.01, 0.99)
    log_p, log_q = (each.clamp(0.01, 0.99).log() for each in (p, q))
    return (m * (2 * m.log() - log_p - log_q)).sum(1).mean() / 2


def competition_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """L_adi = 1 - JS(T, S), tau 3, JS clamped to [0, 1]: seek images that teacher and student see differently."""
    return 1 - jensen_shannon(teacher_logits, student_logits).clamp(0, 1)


def confidence(logits: Tensor) -> Tensor:
    """c = max_c softmax(logits)_c, in fp32: (B, C) -> (B,)."""
    return logits.float().softmax(1).amax(1)
