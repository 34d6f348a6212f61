"""The contrastive terms, image by image."""

import math

import pytest
import torch
import torch.nn.functional as F

from datafree.losses.contrastive import contrastive_loss, info_nce

N, WIDTH, TAU = 7, 4, 0.3


def vectors():
    return [F.normalize(torch.randn(N, WIDTH), dim=1).requires_grad_() for _ in range(2)]


def by_hand(anchors, others):
    """l_i, in plain Python."""
    a, o = anchors.tolist(), others.tolist()
    similar = [[sum(x * y for x, y in zip(p, q, strict=True)) / TAU for q in o] for p in a]
    return [math.log(sum(math.exp(s) for s in row)) - row[i] for i, row in enumerate(similar)]


def test_info_nce_is_cross_entropy_with_an_images_other_view_as_its_class():
    anchors, others = vectors()
    assert info_nce(anchors, others, TAU).tolist() == pytest.approx(by_hand(anchors, others), rel=1e-5)


@pytest.mark.parametrize("batch", [3, N])
def test_the_loss_is_the_mean_over_the_batch_and_that_over_the_memory_where_there_is_one(batch):
    anchors, others = vectors()
    losses = by_hand(anchors, others)
    expected = sum(losses[:batch]) / batch + (sum(losses[batch:]) / (N - batch) if batch < N else 0)
    loss = contrastive_loss(anchors, others, TAU, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert others.grad is None and (anchors.grad.norm(dim=1) > 0).all()


def test_equal_views_that_are_told_apart_by_others_alone_cost_the_log_of_their_number():
    same = torch.ones(N, 1)
    assert info_nce(same, same, 0.1).tolist() == pytest.approx([math.log(N)] * N)
