"""AEAHL-RG's rounds against the algorithm in plain autograd and plain Adam; what they leave alone, and behind."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    BF16,
    CLASSES,
    MEAN,
    NGF,
    NZ,
    SIZE,
    STD,
    same_state,
    small_context,
    small_generator,
    small_teacher,
    state_of,
)

from datafree.engine.randomness import Streams
from datafree.methods import inversion
from datafree.methods.aeahl_rg import MODES, AeahlRg
from datafree.methods.priors import WITHOUT_STATISTICS
from datafree.models.classifier import Classifier

B, K, LR_G, LR_Z, FACTOR = 6, 3, 1e-2, 5e-2, 0.1
RATES = {  # of g1, g2, d
    "anew": {"g1": 1.0, "g2": 1.0, "d": 1.0},
    "reuse_common": {"g1": 1.0, "g2": 1.0, "d": 1.0},
    "reuse_finetune": {"g1": 1.0, "g2": FACTOR, "d": FACTOR},
    "reuse_fix": {"g1": 1.0},
}
# d's biases in front of a BN: their true gradient is zero, what is left is rounding, whose sign Adam would act on.
MUTE = ("d.layers.Conv2.conv.bias", "d.layers.Conv3.conv.bias", "d.layers.Conv4.conv.bias")
FORMATS = {  # mean, standard deviation and size of teacher and student
    "one format": ((MEAN, STD, SIZE), (MEAN, STD, SIZE)),
    "two formats": (((0.3, 0.4, 0.5), (0.25, 0.2, 0.3), 12), ((0.5, 0.5, 0.45), (0.3, 0.35, 0.25), 6)),
}


def context_of(formats="one format", **how):
    """With a student of the teacher's making, which agrees with it often, so that L_adv is not zero."""
    (mean, std, size), theirs = FORMATS[formats]
    teacher = small_teacher(mean=mean, std=std, size=size)
    network = copy.deepcopy(teacher.network).train().requires_grad_(True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    student = Classifier(network, "student", CLASSES, theirs[2], *theirs[:2]).train()
    return small_context(**{"teacher": teacher, "student": student} | how)


def method(context=None, **changes):
    values = {"synthesis_batch_size": B, "nz": NZ, "ngf": NGF, "g_steps": K, "lr_g": LR_G, "lr_z": LR_Z, "adv": 1.3}
    return AeahlRg(context or context_of(), AeahlRg.Config(**values | {"finetune_factor": FACTOR} | changes))


def takes(classifier, x):
    """What a classifier's network is given of pixels."""
    if x.shape[-2:] != classifier.img_size:
        x = F.interpolate(x, classifier.img_size, mode="bilinear", antialias=True)
    return (x - classifier.mean) / classifier.std


def bn_inputs(teacher, x):
    """What the teacher's two norms are given, and its logits."""
    network = teacher.network
    first = network.conv1(takes(teacher, x))
    second = network.conv2(network.bn1(first).relu())
    return first, second, network.fc(network.bn2(second).relu().mean((2, 3)))


def moments(*inputs):
    """Means, then variances."""
    return torch.cat([x.mean((0, 2, 3)) for x in inputs] + [x.var((0, 2, 3), unbiased=False) for x in inputs])


def bn_norms(teacher, blend):
    """L_bn of means, then variances."""
    norms = teacher.network.bn1, teacher.network.bn2
    kept = torch.cat([norm.running_mean for norm in norms] + [norm.running_var for norm in norms])
    return sum(part.square().sum().sqrt() for part in (blend - kept).split((4, 8, 4, 8)))


def round_by_hand(subject, streams, adversarial, average=None, mode="anew"):
    """Inner loop from theta: (x of each iteration, terms by name, losses, summed gradients, theta', average)."""
    context, rng, rates = subject.context, streams["synthesis"], RATES[mode]
    adapted, student = copy.deepcopy(subject.generator), copy.deepcopy(context.student).eval()
    z = torch.randn(B, NZ, generator=rng).requires_grad_()
    y = torch.randint(CLASSES, (B,), generator=rng)
    trained = {name: p for name, p in adapted.named_parameters() if name.split(".")[0] in rates}
    groups = [{"params": [p], "lr": LR_G * rates[name.split(".")[0]]} for name, p in trained.items()]
    adam = torch.optim.Adam([*groups, {"params": [z], "lr": LR_Z}], betas=(0.5, 0.999), foreach=False, fused=False)
    summed = {name: torch.zeros_like(p) for name, p in trained.items()}
    images, terms, losses = [], {"loss_bn": [], "loss_oh": [], "loss_adv": []}, []
    for _ in range(K):
        x = adapted.d((adapted.g1(z) + adapted.g2(z)) / 2)
        augmented = context.augmentation(x, rng)
        first, second, logits = bn_inputs(context.teacher, augmented)
        now = moments(first, second)
        blend = now if average is None else 0.1 * now + 0.9 * average
        L_bn = bn_norms(context.teacher, blend)
        L_oh = -logits.log_softmax(1)[torch.arange(B), y].mean()
        answers = student.network(takes(student, augmented))
        agree = logits.argmax(1) == answers.argmax(1)
        kl = (logits.softmax(1) * (logits.log_softmax(1) - answers.log_softmax(1))).sum(1)
        L_adv = -(agree * kl).mean() if adversarial else torch.zeros(())
        loss = 10.0 * L_bn + 0.5 * L_oh + 1.3 * L_adv
        gradients = torch.autograd.grad(loss, [*trained.values(), z])
        for (name, parameter), gradient in zip(trained.items(), gradients, strict=False):
            summed[name] += gradient
            parameter.grad = gradient
        z.grad = gradients[-1]
        adam.step()
        images.append(x.detach())
        losses.append(loss.item())
        for name, value in zip(terms, (L_bn, L_oh, L_adv), strict=True):
            terms[name].append(value.item())
    return images, terms, losses, summed, adapted, blend.detach()


def watch_meta_gradients(subject):
    """A list that each meta step adds its gradients to, by parameter name."""
    seen, names = [], {parameter: name for name, parameter in subject.generator.named_parameters()}

    def note(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append({names[p]: p.grad.clone() for p in parameters})

    subject.meta_optimizer.register_step_pre_hook(note)
    return seen


def assert_close_by_name(values, expected, relative=2e-2):
    assert values.keys() == expected.keys()
    for name in values.keys() - set(MUTE):
        error = (values[name] - expected[name]).norm() / expected[name].norm()
        assert error < relative, (name, error.item())


def parameters_of(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    ("mode", "formats"),
    [("anew", "one format"), ("reuse_finetune", "one format"), ("reuse_fix", "one format"), ("anew", "two formats")],
)
def test_rounds_are_those_by_hand_and_fomaml_steps_adam_on_the_sum_of_the_gradients_of_the_inner_loop(mode, formats):
    subject = method(context_of(formats), mode=mode)
    meta_gradients, streams, average = watch_meta_gradients(subject), Streams(0), None
    m = {name: torch.zeros_like(p) for name, p in parameters_of(subject.generator).items()}
    v = copy.deepcopy(m)
    for number in (1, 2, 3):
        before = parameters_of(subject.generator)
        images, terms, losses, summed, _, average = round_by_hand(subject, streams, number > 1, average, mode)
        batch, read = subject.synthesize(warmup=number == 1), subject.context.read().series
        torch.testing.assert_close(batch.images, images[losses.index(min(losses))], rtol=1e-3, atol=1e-4)
        assert batch.images.shape == (B, 3, SIZE, SIZE) and not batch.images.requires_grad
        for name, values in (terms | {"loss_generator": losses}).items():
            assert read.pop(name) == pytest.approx(values, rel=1e-3), name
        assert not read and (min(terms["loss_adv"]) < 0) == (number > 1)
        torch.testing.assert_close(subject.priors.statistics.average, average, rtol=2e-3, atol=1e-4)
        assert_close_by_name(meta_gradients[-1], summed)
        after = parameters_of(subject.generator)
        for name, gradient in meta_gradients[-1].items():
            m[name] = 0.5 * m[name] + 0.5 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient**2
            corrected = m[name] / (1 - 0.5**number), v[name] / (1 - 0.999**number)
            step = LR_G * K * RATES[mode][name.split(".")[0]] * corrected[0] / (corrected[1].sqrt() + 1e-8)
            torch.testing.assert_close(after[name], before[name] - step, rtol=1e-4, atol=1e-6)
    assert len(meta_gradients) == 3


def test_the_images_of_the_lowest_loss_reach_the_pool_and_not_the_last(monkeypatch):
    subject, made, losses = method(), [], iter([3.0, 1.0, 2.0])

    def objective(x, y, adversarial):
        made.append(x.detach().clone())
        return x.mean() + 10 * next(losses)

    monkeypatch.setattr(subject, "objective", objective)
    assert K == 3 and torch.equal(subject.synthesize(warmup=False).images, made[1])
    assert not torch.equal(made[1], made[2])


@pytest.mark.parametrize("meta", ["reptile", "none"])
def test_reptile_steps_from_where_the_inner_loop_ended_to_where_it_began_and_plain_updating_stays_there(meta):
    subject = method(meta=meta)
    meta_gradients, before = watch_meta_gradients(subject), parameters_of(subject.generator)
    *_, adapted, _ = round_by_hand(subject, Streams(0), True)
    subject.synthesize(warmup=False)
    back = {name: before[name] - p for name, p in parameters_of(adapted).items()}
    moved = {name: before[name] - after for name, after in parameters_of(subject.generator).items()}
    assert len(meta_gradients) == (meta == "reptile")
    assert_close_by_name(meta_gradients[0] if meta_gradients else moved, back)


# Modes


def test_the_modes_load_and_train_the_parts_as_specified():
    assert {name: mode.reuse for name, mode in MODES.items()} == {name: name != "anew" for name in RATES}
    assert {name: method(mode=name).rates for name in MODES} == RATES


@pytest.mark.parametrize("meta", ["fomaml", "reptile", "none"])
def test_reuse_fix_trains_g1_alone_and_leaves_the_weights_of_g2_and_d(meta):
    subject = method(mode="reuse_fix", meta=meta)
    before = {part: state_of(getattr(subject.generator, part)) for part in ("g1", "g2", "d")}
    for _ in range(2):
        subject.synthesize(warmup=False)
        subject.sample(3)
        subject.finish()
        for part in ("g2", "d"):
            network = getattr(subject.generator, part)
            assert all(torch.equal(value, before[part][name]) for name, value in network.named_parameters())
            assert not any(parameter.requires_grad for parameter in network.parameters())
    after = dict(subject.generator.g1.named_parameters())
    assert not any(torch.equal(value, before["g1"][name]) for name, value in after.items())
    assert subject.generator.training  # on the statistics of its batch, as published


# What it leaves alone


@pytest.mark.parametrize(("warmup", "adv"), [(True, 1.3), (False, 0.0)])
def test_in_warm_up_and_with_weight_zero_the_student_plays_no_part(warmup, adv):
    context = context_of()
    context.student.register_forward_pre_hook(lambda *_: pytest.fail("the student was called"))
    images = method(context, adv=adv).synthesize(warmup).images
    assert context.read().means()["loss_adv"] == 0
    assert torch.equal(images, method().synthesize(warmup=True).images)


def test_a_teacher_without_batch_norm_is_inverted_with_other_priors_which_the_log_names():
    subject = method(context_of(teacher=small_teacher(batch_norm=False)), tv=0.7)
    before = parameters_of(subject.generator)
    for _ in range(2):
        subject.synthesize(warmup=False)
        means = subject.context.read().means()
        assert "loss_bn" not in means and min(means[f"loss_{name}"] for name in ("tv", "l2", "oh")) > 0
        by_hand = 0.7 * means["loss_tv"] + WITHOUT_STATISTICS["l2"] * means["loss_l2"]
        assert means["loss_generator"] == pytest.approx(by_hand + 0.5 * means["loss_oh"] + 1.3 * means["loss_adv"])
    assert not same_state(parameters_of(subject.generator), before)
    assert subject.remarks == [
        "priors: tv 0.7, l2 0.1 (the teacher has no BatchNorm statistics and no attention layers)"
    ]
    assert method(context_of()).remarks == ["priors: bn 10"]


def test_the_stream_synthesis_alone_decides_a_round():
    def rounds(seed, noise):
        torch.manual_seed(noise)
        subject = method(context_of(seed=seed))
        subject.generator.load_state_dict(small_generator().state_dict())
        images = [subject.synthesize(warmup=False).images for _ in range(2)]
        assert list(subject.context.streams.state_dict()) == ["synthesis"]
        return torch.stack(images)

    first = rounds(0, noise=1)
    assert torch.equal(rounds(0, noise=2), first) and not torch.equal(rounds(1, noise=1), first)
    assert not torch.equal(*first)


def test_a_state_dict_and_the_streams_continue_exactly(tmp_path):
    subject, other = method(), method(context_of(seed=7))
    for made in (subject, subject, other):  # the other's state is one that loading must replace
        made.synthesize(warmup=False)
    torch.save([subject.state_dict(), subject.context.streams.state_dict()], tmp_path / "state.pth")
    expected = subject.synthesize(warmup=False)
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    other.load_state_dict(state)
    other.context.streams.load_state_dict(streams)
    assert torch.equal(other.synthesize(warmup=False).images, expected.images)
    assert same_state(state_of(other.generator), state_of(subject.generator))


def test_bf16_rounds_give_fp32_images_and_losses_near_those_of_fp32():
    full, half = method(), method(context_of(compute=BF16))
    assert [each.synthesize(warmup=True).images.dtype for each in (full, half)] == 2 * [torch.float32]
    losses = [each.context.read().series["loss_generator"][0] for each in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


# What it leaves behind


def test_a_sample_is_of_the_generator_in_eval_mode_with_statistics_of_its_own_weights():
    subject = method(synthesis_batch_size=16, ngf=8, adv=0.0)
    for _ in range(4):
        subject.synthesize(warmup=True)
    handed_over, weights = copy.deepcopy(subject.generator), parameters_of(subject.generator)
    for kept, seen in zip(handed_over.buffers(), subject.adapted.buffers(), strict=True):
        kept.copy_(seen)
    x = subject.sample(33, "evaluation")
    rng, expected = Streams(0)["recalibration"], copy.deepcopy(subject.generator)
    inversion.recalibrate(expected, [torch.randn(16, NZ, generator=rng) for _ in range(20)])
    assert same_state(state_of(subject.generator), state_of(expected))
    assert same_state(parameters_of(subject.generator), weights) and subject.generator.d.training
    z = torch.randn(33, NZ, generator=Streams(0)["evaluation"])
    torch.testing.assert_close(x, expected.eval()(z))
    assert not torch.equal(subject.sample(33, "evaluation"), x)
    assert same_state(state_of(subject.generator), state_of(expected))  # always from the same noise

    teacher, z = subject.context.teacher, torch.randn(256, NZ)
    losses = [
        bn_norms(teacher, moments(*bn_inputs(teacher, generator(z))[:2])).item()
        for generator in (copy.deepcopy(expected).train(), expected.eval(), handed_over.eval())
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[2] > 1.03 * losses[0]  # those of theta' are of other weights


@pytest.mark.parametrize("weights", [{"bn": 10.0, "oh": 0.5}, {"bn": 0.0, "oh": 2.0}])
@torch.no_grad()
def test_a_score_is_the_inversion_loss_of_one_network_in_train_mode_beside_uniform_noise(weights):
    subject = method(**weights)
    generator, teacher, rng = copy.deepcopy(subject.generator), subject.context.teacher, Streams(0)["selection"]
    before, totals = state_of(subject.generator), {"g1": 0.0, "g2": 0.0}
    for _ in range(4):
        z = torch.randn(B, NZ, generator=rng)
        u = torch.rand(B, 3, SIZE, SIZE, generator=rng)
        for part in totals:
            x = generator.d((getattr(generator, part)(z) + u) / 2)  # neither cropped nor mirrored
            *inputs, logits = bn_inputs(teacher, x)
            L_oh = -logits.log_softmax(1).max(1).values.mean()  # the class that the teacher sees
            totals[part] += (weights["bn"] * bn_norms(teacher, moments(*inputs)) + weights["oh"] * L_oh).item() / 4
    found = subject.score()
    assert found == pytest.approx(totals, rel=1e-4) and found["g1"] != found["g2"]
    assert same_state(state_of(subject.generator), before)
    subject.generator.g2 = small_generator(seed=77).g2
    again = subject.score()
    assert again["g1"] == found["g1"] and again["g2"] != found["g2"]
    assert sum(len(module._forward_pre_hooks) for module in teacher.modules()) == (
        2 if weights["bn"] else 0
    )  # those of the rounds


@pytest.mark.parametrize("pick", ["score", "g1", "g2"])
def test_the_network_of_the_lower_score_is_left_unless_one_is_named_with_recalibrated_statistics(pick):
    subject = method(reuse_pick=pick)
    subject.context.origin = {"mode": "anew"}
    subject.synthesize(warmup=True)
    if subject.score()["g1"] < subject.score()["g2"]:  # a score does not depend on the partner
        subject.generator.g1, subject.generator.g2 = subject.generator.g2, subject.generator.g1
    left = subject.finish()
    kept, other = ("g1", "g2") if pick == "g1" else ("g2", "g1")
    assert left.summary == {f"score_{part}": score for part, score in subject.score().items()} | {
        "reused_network": kept
    }
    assert all(f"{part} {score:.4g}" in left.remark for part, score in subject.score().items())
    expected, rng = copy.deepcopy(subject.generator), Streams(0)["recalibration"]
    inversion.recalibrate(expected, [torch.randn(B, NZ, generator=rng) for _ in range(20)])
    for file, part in (("gan_reuse.pth", kept), ("gan_abandon.pth", other), ("decoder.pth", "d")):
        content, network = left.files[file], getattr(expected, part)
        assert same_state(content["state_dict"], state_of(network))
        assert content["kind"] == ("decoder" if part == "d" else "generative_network")
        assert content["config"] == ({"img_size": (SIZE, SIZE), "channels": 3} if part == "d" else network.config)
        assert content["origin"] == {"mode": "anew"} | ({} if part == "d" else {"part": part})
