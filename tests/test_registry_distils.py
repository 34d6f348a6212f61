"""Every model of the registry as a student and as a teacher."""

import pytest
import torch
from conftest import FP32, MEAN, STD, logits_and_features, small_context
from torch import nn

from datafree.engine.frozen import frozen
from datafree.losses.kd import distillation_loss
from datafree.methods.aeahl_rg import AeahlRg
from datafree.models.classifier import Classifier
from registry import MODELS, READS

NUM_CLASSES = 7  # of no data set, so that a fixed number of classes shows
CONFIG = AeahlRg.Config(synthesis_batch_size=3, nz=8, ngf=2, g_steps=1)
WITH_BATCH_NORM = [name for name in MODELS if name not in ("lenet5", "lenet5_half")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_every_model_learns_as_a_student_and_inverts_as_a_teacher(name):
    channels = READS[name].channels if name in READS else 3
    model = Classifier(MODELS[name](NUM_CLASSES), name, NUM_CLASSES, 32, MEAN[:channels], STD[:channels])
    model = FP32.place(model).train()
    distillation_loss(torch.randn(3, NUM_CLASSES), model(torch.rand(3, 3, 32, 32)), 20.0).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    model.zero_grad()

    teacher, seen = frozen(model, FP32), []
    logits, features = logits_and_features(teacher, torch.rand(1, 3, 64, 64))
    assert torch.equal(teacher.head(features), logits) and logits.shape == (1, NUM_CLASSES)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[0]._version)))
    context = small_context(teacher, Classifier(MODELS["resnet8"](NUM_CLASSES), "resnet8", NUM_CLASSES, 32, MEAN, STD))
    method = AeahlRg(context, CONFIG)
    before = {key: p.detach().clone() for key, p in method.generator.named_parameters()}
    images, terms = method.synthesize(warmup=False).images, context.read().means()
    assert images.isfinite().all() and terms["loss_bn"] > 0 and terms["loss_oh"] > 0 >= terms["loss_adv"]
    assert seen and all(tensor._version == version for tensor, version in seen)  # nothing in place on what hooks keep
    for key, parameter in method.generator.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[key]), key
    assert all(parameter.grad is None for parameter in teacher.parameters())
