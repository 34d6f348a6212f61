"""Every model of the registry as a student and as a teacher, at 32x32."""

import pytest
import torch
from conftest import CPU, FP32
from datafree.data.augment import Augmentation
from datafree.randomness import Streams
from datafree.reuse import build_generator
from datafree.synthesis.reusable_generator import ReusableGeneratorSynthesis, SynthesisSettings

from datafree.losses import distillation_loss
from registry import DATASETS, MODELS

SETTINGS = SynthesisSettings(
    num_classes=10, synthesis_batch_size=4, nz=16, g_steps=1, lr_g=2e-3, lr_z=0.01, adam_betas=(0.5, 0.999), bn=10.0,
    oh=0.5, adv=1.33, bn_mmt=0.9, meta="fomaml",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_as_a_student_and_inverts_as_a_teacher(name):
    model, spec = FP32.place(MODELS[name](10)), DATASETS["cifar10"]

    model.train()
    augmentation, streams = Augmentation(spec, CPU), Streams(0)
    x = augmentation(torch.rand(4, 3, 32, 32), streams["student"])
    logits = model(x)
    assert logits.shape == (4, 10)
    distillation_loss(torch.randn(4, 10), logits, 20.0).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    model.zero_grad()

    model.eval().requires_grad_(False)
    student = MODELS["resnet8"](10)
    generator = build_generator(0, 16, 8, 32)
    before = {key: p.detach().clone() for key, p in generator.named_parameters()}
    rates = {"g1": 1.0, "g2": 1.0, "d": 1.0}
    synthesis = ReusableGeneratorSynthesis(generator, model, student, SETTINGS, rates, augmentation, FP32, streams)
    made = synthesis.synthesize(adversarial=True)
    assert made.images.shape == (4, 3, 32, 32) and made.images.isfinite().all()
    assert made.terms["loss_bn"] > 0 and made.terms["loss_oh"] > 0 and made.terms["loss_adv"] <= 0
    for key, parameter in generator.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())
