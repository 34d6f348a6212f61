"""A network that never learns again, as a teacher: what each of its forward passes would repeat is done once."""

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.classifier import Classifier
from .device import Compute
from .probe import refusal

TOLERANCE = 1e-3  # of logits in fp32, relative to the largest; folding rounds in another order, no more


def frozen(classifier: Classifier, compute: Compute) -> Classifier:
    """In eval mode and without gradients to its weights, where ``probe.fitted`` has placed it.

    Where networks are autocast, the weights of convolutions and linear layers are rounded here, once, instead of in
    every pass: the answers stay the same. BatchNorm and the last linear layer stay fp32, and so does all of a network
    that would answer otherwise, having another use for its weights.
    """
    classifier.eval().requires_grad_(False)
    if compute.autocasts and classifier.autocast and not classifier.borrowed:
        noise = _noise(classifier).to(classifier.mean.device)
        with torch.no_grad(), compute.autocast():
            expected = classifier(noise)
        layers = [m for m in classifier.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m is not classifier.head]
        full = [(weight, weight.data) for layer in layers for weight in layer.parameters(recurse=False)]
        for weight, values in full:
            weight.data = values.to(compute.dtype)
        if refusal(classifier, noise, compute, False, expected, TOLERANCE):
            for weight, values in full:
                weight.data = values
    return classifier


def _noise(classifier: Classifier) -> Tensor:
    """Two images as it takes them."""
    return torch.rand(2, classifier.channels, *classifier.img_size, generator=torch.Generator().manual_seed(0))


def folded(classifier: Classifier) -> Classifier:
    """A copy in eval mode with each BatchNorm behind a convolution folded into it: fewer passes over the activations.

    Which layers follow each other is seen in a forward pass on noise. Afterwards the answers must be the same up to
    rounding, else the copy is as it was; one that cannot be copied, or is compiled code, is given back itself.

    Args:
        classifier: fp32, on the CPU, without hooks: they would be copied too.
    """
    if classifier.scripted:
        return classifier
    try:
        plain = copy.deepcopy(classifier).eval().requires_grad_()
    except Exception:  # whatever its parts raise: not every network can be copied, and it answers well as it is
        return classifier
    try:
        return _fused(plain)
    except Exception:  # it cannot take such images, or its parts be exchanged: whoever looks ahead says the former
        return plain


def _fused(plain: Classifier) -> Classifier:
    noise = _noise(plain)
    pairs, expected = _pairs(plain, noise)
    with torch.no_grad():
        fused = copy.deepcopy(plain)
        for conv, norm in pairs:
            fused.set_submodule(conv, fuse_conv_bn_eval(fused.get_submodule(conv), fused.get_submodule(norm)))
            fused.set_submodule(norm, nn.Identity())
        same = torch.allclose(fused(noise), expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())
    return fused if same else plain


def _pairs(network: nn.Module, x: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of convolutions and of the BatchNorms that alone read their output, called once each; the answer to x."""
    names = {module: name for name, module in network.named_modules()}
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by identity; holds the tensor, so that it stays the only one
    found: list[tuple[nn.Module, nn.Module, Node]] = []

    def hear(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        calls[module] += 1
        inputs = (*args, *kwargs.values())
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output
        elif id(inputs[0]) in made and module.running_mean is not None:
            conv, read = made[id(inputs[0])]
            found.append((conv, module, read.grad_fn))

    kinds = nn.Conv2d | nn.BatchNorm2d
    hooks = [module.register_forward_hook(hear, with_kwargs=True) for module in names if isinstance(module, kinds)]
    try:
        answer = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    readers = _readers(answer)
    alone = [(conv, norm) for conv, norm, node in found if calls[conv] == calls[norm] == 1 and readers[node] == 1]
    return [(names[conv], names[norm]) for conv, norm in alone], answer.detach()


def _readers(answer: Tensor) -> Counter:
    """How many operations read what each operation behind the answer made, by its node in autograd's graph."""
    count, seen, waiting = Counter(), {answer.grad_fn}, [answer.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                count[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    return count
