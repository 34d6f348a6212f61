"""The best of K, meta gradients and recalibrated statistics, each by hand."""

import pytest
import torch
from conftest import NZ, small_generator, state_of
from torch import nn

from datafree.methods.inversion import Best, meta_step, recalibrate


def test_the_images_of_the_lowest_loss_are_kept_the_first_of_equals_without_gradient():
    for losses in ([3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 1.0, 1.0], [5.0]):
        best, seen = Best(), []
        for loss in losses:
            seen.append(torch.rand(2, 3, 4, 4, requires_grad=True))
            best.keep(seen[-1], torch.tensor(loss, requires_grad=True))
        assert torch.equal(best.images, seen[losses.index(min(losses))]) and best.loss.item() == min(losses)
        assert not best.images.requires_grad and not best.loss.requires_grad


def test_what_goes_with_the_best_images_is_kept_with_them():
    best, seen = Best(), []
    for loss in (2.0, 1.0, 3.0):
        seen.append((torch.rand(2, 3, 4, 4), torch.rand(2, 5, requires_grad=True), torch.rand(2)))
        best.keep(seen[-1][0], torch.tensor(loss), *seen[-1][1:])
    assert torch.equal(best.images, seen[1][0]) and not any(each.requires_grad for each in best.beside)
    assert len(best.beside) == 2 and all(torch.equal(*pair) for pair in zip(best.beside, seen[1][1:], strict=True))


@pytest.mark.parametrize(
    ("kind", "expected"), [("fomaml", 5.0 - 0.1 * 8), ("reptile", 5.0 - 0.1 * (5 - 2)), ("none", 2.0)]
)
def test_a_meta_step_is_the_optimisers_on_the_sum_or_on_the_way_back_or_none_at_all(kind, expected):
    theta, adapted = nn.Parameter(torch.tensor([5.0])), nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([theta], lr=0.1)
    meta_step(kind, optimizer, [theta], [adapted], [torch.tensor([8.0])])
    assert theta.item() == pytest.approx(expected) and adapted.item() == 2 and theta.grad is None


def test_recalibration_sets_every_norm_to_the_mean_over_the_batches_of_what_it_is_given_and_nothing_else():
    generator = small_generator().eval()
    norms = {name: module for name, module in generator.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.running_mean.fill_(7)
        norm.running_var.fill_(9)
    before, batches, seen = state_of(generator), torch.randn(5, 8, NZ), {name: [] for name in norms}
    hooks = [m.register_forward_pre_hook(lambda _, args, n=n: seen[n].append(args[0])) for n, m in norms.items()]
    recalibrate(generator, iter(batches))
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        means = torch.stack([x.mean((0, 2, 3)) for x in seen[name]])
        variances = torch.stack([x.var((0, 2, 3)) for x in seen[name]])  # unbiased, as PyTorch remembers them
        torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variances.mean(0), rtol=1e-4, atol=1e-6)
        assert norm.num_batches_tracked == 5 and norm.momentum == 0.1
    after = state_of(generator)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    kept = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{name}.{what}" for name in norms for what in kept} and not generator.training
