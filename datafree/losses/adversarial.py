"""What generators trained against a student, or for a teacher alone, are asked for; pure functions, in fp32.

All are to be minimised, logarithms are natural.
"""

from torch import Tensor

from .. import processes
from .kd import kl_divergence, logit_distance


def kl_disagreement(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """L_adv = -mean_B KL(T || S), in nats: (B, C) twice -> scalar <= 0 (Micaelli and Storkey 2019, Choi et al. 2020).

    Counted everywhere, unlike ``kd.adversarial_loss``. Gradient flows through both.
    """
    return -kl_divergence(teacher_logits, student_logits).mean()


def l1_disagreement(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """L_adv = -mean |T - S| over all logits: (B, C) twice -> scalar <= 0 (Fang et al. 2019). Gradient through both."""
    return -logit_distance(teacher_logits, student_logits)


def activation_loss(features: Tensor) -> Tensor:
    """L_act = -mean |f|: what the teacher knows excites its last features. Any shape -> scalar (Chen et al. 2019)."""
    return -features.float().abs().mean()


def balance_loss(logits: Tensor) -> Tensor:
    """L_ie = sum_c p_c log p_c, p the batch mean of softmax(logits): (B, C) -> scalar in [-log C, 0], in nats.

    The batch is that of all processes. Lowest where all classes come equally often (Chen et al. 2019, whose code has
    log10: a weight w there is w / ln 10 here).
    """
    p = processes.mean(logits.float().softmax(1).mean(0))
    return (p * p.clamp_min(1e-30).log()).sum()


def sample_entropy(logits: Tensor) -> Tensor:
    """L_ent = mean_B H(softmax(logits)): (B, C) -> scalar in [0, log C], in nats; low where each is sure."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()
