"""A synthesis round against the algorithm written out with plain autograd and plain Adam, and what it leaves alone."""

import copy

import pytest
import torch
from conftest import (
    CLASSES,
    CPU,
    FP32,
    NZ,
    ROOT,
    SIZE,
    same_state,
    small_augmentation,
    small_classifier,
    small_generator,
    small_teacher,
    state_of,
    user_error,
)
from datafree.data.augment import Augmentation
from datafree.device import Compute
from datafree.randomness import Streams
from datafree.reuse import build_generator
from datafree.synthesis.reusable_generator import ReusableGeneratorSynthesis, SynthesisSettings

from datafree import checkpoint
from registry import DATASETS, MODELS

B, K, LR_G, LR_Z, BETAS = 6, 3, 1e-2, 5e-2, (0.5, 0.999)
ANEW = {"g1": 1.0, "g2": 1.0, "d": 1.0}
FINETUNE = {"g1": 1.0, "g2": 0.1, "d": 0.1}
FIX = {"g1": 1.0, "g2": 0.0, "d": 0.0}
# d's biases in front of a BN: their true gradient is zero, what is left is rounding, whose sign Adam would act on.
MUTE = ("d.layers.Conv2.conv.bias", "d.layers.Conv3.conv.bias", "d.layers.Conv4.conv.bias")


def settings(**changes):
    values = {
        "num_classes": CLASSES, "synthesis_batch_size": B, "nz": NZ, "g_steps": K, "lr_g": LR_G, "lr_z": LR_Z,
        "adam_betas": BETAS, "bn": 10.0, "oh": 0.5, "adv": 1.3, "bn_mmt": 0.9, "meta": "fomaml",
    }  # fmt: skip
    return SynthesisSettings(**(values | changes))


def synthesis(rates=ANEW, teacher=None, student=None, seed=0, compute=FP32, **changes):
    teacher = teacher or small_teacher()
    # A student of the teacher's making agrees with it often, so that L_adv is not zero.
    student = student or agreeing_student(teacher)
    parts = small_generator(), teacher, student, settings(**changes), rates
    return ReusableGeneratorSynthesis(*parts, small_augmentation(), compute, Streams(seed))


def agreeing_student(teacher):
    student = copy.deepcopy(teacher).train().requires_grad_(True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return student


def kl(t, s):
    return (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)


def round_by_hand(start, teacher, student, streams, adversarial, average=None, rates=ANEW):
    """Inner loop from the generator ``start``: (x of each iteration, terms, losses, summed gradients, theta', average).

    Gradients and theta' by parameter name; average is that of BN statistics, means then variances a layer.
    """
    rng = streams["synthesis"]
    theta = copy.deepcopy(start)
    student = copy.deepcopy(student).eval()
    z = torch.randn(B, NZ, generator=rng).requires_grad_()
    y = torch.randint(CLASSES, (B,), generator=rng)
    trained = {name: p for name, p in theta.named_parameters() if rates[name.split(".")[0]] > 0}
    groups = [{"params": [p], "lr": LR_G * rates[name.split(".")[0]]} for name, p in trained.items()]
    adam = torch.optim.Adam([*groups, {"params": [z], "lr": LR_Z}], betas=BETAS, foreach=False, fused=False)
    summed = {name: torch.zeros_like(p) for name, p in trained.items()}
    images, terms, losses = [], [], []
    for _ in range(K):
        x = theta.d((theta.g1(z) + theta.g2(z)) / 2)
        augmented = small_augmentation()(x, rng)
        first = teacher.conv1(augmented)
        second = teacher.conv2(teacher.bn1(first).relu())
        logits = teacher.fc(teacher.bn2(second).relu().mean((2, 3)))
        now = [v for h in (first, second) for v in (h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=False))]
        blend = now if average is None else [0.1 * a + 0.9 * b for a, b in zip(now, average, strict=True)]
        kept = [v for bn in (teacher.bn1, teacher.bn2) for v in (bn.running_mean, bn.running_var)]
        L_bn = sum(((a - b) ** 2).sum().sqrt() for a, b in zip(kept, blend, strict=True))
        L_oh = -logits.log_softmax(1)[torch.arange(B), y].mean()
        answers = student(augmented)
        agree = logits.argmax(1) == answers.argmax(1)
        L_adv = -(agree * kl(logits, answers)).mean() if adversarial else torch.zeros(())
        loss = 10.0 * L_bn + 0.5 * L_oh + 1.3 * L_adv
        gradients = torch.autograd.grad(loss, [*trained.values(), z])
        for (name, parameter), gradient in zip(trained.items(), gradients, strict=False):
            summed[name] += gradient
            parameter.grad = gradient
        z.grad = gradients[-1]
        adam.step()
        images.append(x.detach())
        terms.append([L_bn.item(), L_oh.item(), L_adv.item()])
        losses.append(loss.item())
    return images, terms, losses, summed, theta, [value.detach() for value in blend]


def watch_meta_gradients(subject):
    """A list that each meta step adds its gradients to, by parameter name."""
    seen = []
    names = {parameter: name for name, parameter in subject.generator.named_parameters()}

    def note(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append({names[p]: p.grad.clone() for p in parameters})

    subject.meta_optimizer.register_step_pre_hook(note)
    return seen


def assert_close_by_name(values, expected, relative):
    assert values.keys() == expected.keys()
    for name in values:
        if name not in MUTE:
            error = (values[name] - expected[name]).norm() / expected[name].norm()
            assert error < relative, (name, error.item())


def parameters_of(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("rates", [ANEW, FINETUNE], ids=["anew", "finetune"])
def test_fomaml_steps_adam_on_the_sum_of_the_gradients_met_along_the_inner_loop(rates):
    subject = synthesis(rates)
    teacher, student = subject.teacher, subject.student
    meta_gradients = watch_meta_gradients(subject)
    streams, average = Streams(0), None
    m = {name: torch.zeros_like(p) for name, p in parameters_of(subject.generator).items()}
    v = copy.deepcopy(m)
    for number in (1, 2, 3):
        before = parameters_of(subject.generator)
        *_, losses, summed, _, average = round_by_hand(
            subject.generator, teacher, student, streams, number > 1, average, rates
        )
        made = subject.synthesize(adversarial=number > 1)
        assert made.generator_loss == pytest.approx(losses, rel=1e-3)
        assert_close_by_name(meta_gradients[-1], summed, 2e-2)
        after = parameters_of(subject.generator)
        for name, gradient in meta_gradients[-1].items():
            m[name] = 0.5 * m[name] + 0.5 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient**2
            corrected = m[name] / (1 - 0.5**number), v[name] / (1 - 0.999**number)
            lr = LR_G * K * rates[name.split(".")[0]]
            by_hand = before[name] - lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
            torch.testing.assert_close(after[name], by_hand, rtol=1e-4, atol=1e-6)
    assert len(meta_gradients) == 3


def test_reptile_steps_from_where_the_inner_loop_ended_to_where_it_began():
    subject = synthesis(meta="reptile")
    meta_gradients = watch_meta_gradients(subject)
    before = parameters_of(subject.generator)
    *_, adapted, _ = round_by_hand(subject.generator, subject.teacher, subject.student, Streams(0), True)
    subject.synthesize(adversarial=True)
    by_hand = {name: before[name] - p for name, p in parameters_of(adapted).items()}
    assert_close_by_name(meta_gradients[0], by_hand, 2e-2)
    for name, after in parameters_of(subject.generator).items():  # Adam's first step is the rate times the sign
        sure = (meta_gradients[0][name].abs() > 1e-5) & (name not in MUTE)
        step = LR_G * K * by_hand[name].sign()
        torch.testing.assert_close((before[name] - after)[sure], step[sure], rtol=1e-2, atol=0)


def test_plain_updating_keeps_where_the_inner_loop_ended():
    subject = synthesis(meta="none")
    meta_gradients = watch_meta_gradients(subject)
    before = parameters_of(subject.generator)
    *_, adapted, _ = round_by_hand(subject.generator, subject.teacher, subject.student, Streams(0), True)
    subject.synthesize(adversarial=True)
    moved = {name: after - before[name] for name, after in parameters_of(subject.generator).items()}
    assert_close_by_name(moved, {name: p - before[name] for name, p in parameters_of(adapted).items()}, 2e-2)
    assert meta_gradients == []


def test_the_images_of_the_lowest_loss_are_returned():
    middle = 0
    for seed in range(6):
        subject = synthesis(seed=seed, g_steps=5, lr_g=0.3)  # large steps: the loss goes up and down
        seen = []
        hook = subject.adapted.register_forward_hook(lambda _, __, x, seen=seen: seen.append(x.detach().clone()))
        made = subject.synthesize(adversarial=True)
        hook.remove()
        best = made.generator_loss.index(min(made.generator_loss))
        middle += 0 < best < 4
        assert len(seen) == 5 and torch.equal(made.images, seen[best])
        assert made.images.shape == (B, 3, SIZE, SIZE) and not made.images.requires_grad
    assert middle > 0  # neither "the first" nor "the last" would do


def test_images_terms_and_losses_are_those_of_the_round_by_hand():
    subject = synthesis()
    images, terms, losses, *_ = round_by_hand(subject.generator, subject.teacher, subject.student, Streams(0), True)
    made = subject.synthesize(adversarial=True)
    torch.testing.assert_close(made.images, images[losses.index(min(losses))], rtol=1e-3, atol=1e-4)
    means = [sum(column) / K for column in zip(*terms, strict=True)]
    assert means[2] < 0
    assert [made.terms[f"loss_{name}"] for name in ("bn", "oh", "adv")] == pytest.approx(means, rel=1e-3)
    assert made.terms["loss_generator"] == pytest.approx(sum(losses) / K, rel=1e-3)
    assert len(made.generator_loss) == K and made.generator_loss == pytest.approx(losses, rel=1e-3)


def test_the_average_of_bn_statistics_takes_in_the_last_iterate_of_each_round():
    subject = synthesis()
    streams, average = Streams(0), None
    for _ in range(2):
        *_, average = round_by_hand(subject.generator, subject.teacher, subject.student, streams, True, average)
        subject.synthesize(adversarial=True)
    order = (average[0], average[2], average[1], average[3])  # by hand layer by layer, there means first
    for kept, by_hand in zip(subject.bn_statistics.average, order, strict=True):
        torch.testing.assert_close(kept, by_hand, rtol=2e-3, atol=1e-4)


def test_the_generator_keeps_the_bn_statistics_that_its_trained_copy_saw():
    subject = synthesis()
    first = state_of(subject.generator)
    *_, adapted, _ = round_by_hand(subject.generator, subject.teacher, subject.student, Streams(0), True)
    subject.synthesize(adversarial=True)
    kept = dict(subject.generator.named_buffers())
    for name, seen in adapted.named_buffers():
        follows_a_mute_bias = name.startswith("d.") and name.endswith("running_mean")
        torch.testing.assert_close(kept[name], seen, rtol=1e-3, atol=K * LR_G if follows_a_mute_bias else 1e-4)
        assert torch.equal(kept[name], subject.adapted.get_buffer(name))
        if name.endswith("num_batches_tracked"):
            assert kept[name] == K
        elif not name.endswith("fold"):
            assert not torch.equal(kept[name], first[name])


def test_every_round_starts_from_theta_and_not_from_where_the_last_inner_loop_ended():
    subject = synthesis()
    subject.synthesize(adversarial=True)
    outputs = []
    hook = subject.adapted.register_forward_hook(lambda module, _, __: outputs.append(parameters_of(module)))
    theta = parameters_of(subject.generator)
    subject.synthesize(adversarial=True)
    hook.remove()
    assert same_state(outputs[0], theta) and not same_state(outputs[1], theta)


@pytest.mark.parametrize("meta", ["fomaml", "reptile", "none"])
def test_reuse_fix_leaves_g2_and_d_bit_identical_with_their_bn_statistics(meta):
    subject = synthesis(FIX, meta=meta)
    before = {part: state_of(getattr(subject.generator, part)) for part in ANEW}
    for _ in range(2):
        subject.synthesize(adversarial=True)
    for part in ("g2", "d"):
        assert same_state(state_of(getattr(subject.generator, part)), before[part])
        assert not getattr(subject.generator, part).training
        assert not any(p.requires_grad for p in getattr(subject.generator, part).parameters())
    after = state_of(subject.generator.g1)
    assert not any(torch.equal(after[name], value) for name, value in before["g1"].items())


def test_reuse_fix_meta_gradient_of_g1_is_the_sum_by_hand_with_d_and_g2_in_eval_mode():
    subject = synthesis(FIX)
    meta_gradients = watch_meta_gradients(subject)
    *_, summed, _, _ = round_by_hand(subject.generator, subject.teacher, subject.student, Streams(0), True, rates=FIX)
    subject.synthesize(adversarial=True)
    assert {name.split(".")[0] for name in summed} == {"g1"}
    assert_close_by_name(meta_gradients[0], summed, 2e-2)


def test_reuse_finetune_moves_g2_and_d_a_tenth_as_far_as_reuse_common():
    moved = {}
    for name, rates in (("common", ANEW), ("finetune", FINETUNE)):
        subject = synthesis(rates)
        before = parameters_of(subject.generator)
        subject.synthesize(adversarial=True)
        steps = {key: (p - before[key]).abs().flatten() for key, p in parameters_of(subject.generator).items()}
        for part in ANEW:
            of_part = torch.cat([step for key, step in steps.items() if key.startswith(part) and key not in MUTE])
            moved[name, part] = of_part.median().item()
    # Adam's first step is the learning rate itself, lr_g * K.
    assert moved["common", "g1"] == pytest.approx(LR_G * K, rel=0.02)
    assert moved["finetune", "g1"] == pytest.approx(LR_G * K, rel=0.02)
    for part in ("g2", "d"):
        assert moved["common", part] == pytest.approx(LR_G * K, rel=0.02)
        assert moved["finetune", part] == pytest.approx(0.1 * LR_G * K, rel=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_student_and_teacher_are_left_as_they_came(training):
    student = agreeing_student(small_teacher()).train(training)
    student.fc.bias.requires_grad_(False)
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    subject = synthesis(student=student)
    before = state_of(student), state_of(subject.teacher)
    subject.synthesize(adversarial=True)
    assert same_state(state_of(student), before[0]) and same_state(state_of(subject.teacher), before[1])
    assert all(module.training == training for module in student.modules())
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == ["fc.bias"]
    assert all((p.grad == 3).all() for p in student.parameters())
    assert not any(module.training for module in subject.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in subject.teacher.parameters())


def test_without_the_adversarial_term_it_is_zero_and_the_student_plays_no_part():
    made = []
    for seed in (3, 4):
        student = small_classifier(seed)
        student.register_forward_pre_hook(lambda *_: pytest.fail("the student was called"))
        made.append(synthesis(student=student).synthesize(adversarial=False))
    assert made[0].terms["loss_adv"] == 0 and torch.equal(made[0].images, made[1].images)


def test_weight_zero_of_the_adversarial_term_means_no_adversarial_term():
    student = small_classifier(3)
    student.register_forward_pre_hook(lambda *_: pytest.fail("the student was called"))
    made = synthesis(student=student, adv=0.0).synthesize(adversarial=True)
    assert made.terms["loss_adv"] == 0 and torch.equal(made.images, synthesis().synthesize(adversarial=False).images)


def test_a_teacher_without_batch_norm_and_a_bn_weight_is_the_users_mistake():
    with user_error("BatchNorm", "--bn 0"):
        synthesis(teacher=small_teacher(batch_norm=False))


def test_a_teacher_without_batch_norm_works_with_bn_weight_zero():
    teacher = small_teacher(batch_norm=False)
    subject = synthesis(teacher=teacher, bn=0.0)
    before = parameters_of(subject.generator)
    made = subject.synthesize(adversarial=True)
    assert made.terms["loss_bn"] == 0 and made.terms["loss_oh"] > 0
    assert made.terms["loss_generator"] == pytest.approx(0.5 * made.terms["loss_oh"] + 1.3 * made.terms["loss_adv"])
    assert not same_state(parameters_of(subject.generator), before)
    subject.synthesize(adversarial=True)


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    rounds = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)  # the global generator plays no part
        subject = synthesis(seed=seed)
        rounds.append([subject.synthesize(adversarial=True).images for _ in range(2)])
    assert all(torch.equal(a, b) for a, b in zip(rounds[0], rounds[1], strict=True))
    assert not torch.equal(rounds[0][0], rounds[2][0]) and not torch.equal(rounds[0][0], rounds[0][1])


def test_only_the_stream_synthesis_is_drawn_from():
    subject = synthesis()
    subject.synthesize(adversarial=True)
    assert list(subject.streams.state_dict()) == ["synthesis"]


def test_a_state_dict_and_the_streams_continue_exactly(tmp_path):
    subject = synthesis()
    for _ in range(2):
        subject.synthesize(adversarial=True)
    torch.save([subject.state_dict(), subject.streams.state_dict()], tmp_path / "state.pth")
    expected = subject.synthesize(adversarial=True)
    other = synthesis(seed=7)
    other.synthesize(adversarial=True)  # a state that loading must replace
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    other.load_state_dict(state)
    other.streams.load_state_dict(streams)
    made = other.synthesize(adversarial=True)
    assert torch.equal(made.images, expected.images) and made.generator_loss == expected.generator_loss
    assert same_state(state_of(other.generator), state_of(subject.generator))


def test_bf16_rounds_give_fp32_images_and_losses_near_those_of_fp32():
    full = synthesis().synthesize(adversarial=False)
    half = synthesis(compute=Compute(CPU, bf16=True, reason="in tests")).synthesize(adversarial=False)
    assert half.images.dtype == torch.float32
    assert half.generator_loss[0] == pytest.approx(full.generator_loss[0], rel=0.02)


def test_sample_gives_images_of_the_generator_in_eval_mode_and_changes_nothing():
    subject = synthesis(FIX)
    subject.synthesize(adversarial=False)
    before = state_of(subject.generator)
    modes = [module.training for module in subject.generator.modules()]
    x = subject.sample(2 * B + 1, "evaluation")
    z = torch.randn(2 * B + 1, NZ, generator=Streams(0)["evaluation"])
    assert same_state(state_of(subject.generator), before)
    assert [module.training for module in subject.generator.modules()] == modes
    torch.testing.assert_close(x, copy.deepcopy(subject.generator).eval()(z))
    assert not torch.equal(subject.sample(2 * B + 1, "evaluation"), x)


@pytest.fixture(scope="module")
def trained_on_digits():
    """A generator after a few rounds on the committed teacher, in train mode, and what shows the teacher its images."""
    torch.manual_seed(0)
    spec, augmentation = DATASETS["digits"], Augmentation(DATASETS["digits"], CPU)
    teacher = MODELS["resnet20"](spec.num_classes)
    checkpoint.load_classifier(teacher, ROOT / "checkpoints/pretrained/digits_resnet20.pth")
    teacher = FP32.place(teacher).eval().requires_grad_(False)
    student = FP32.place(MODELS["resnet8"](spec.num_classes))
    generator = FP32.place(build_generator(0, nz=32, ngf=8, img_size=32))
    knobs = settings(num_classes=10, synthesis_batch_size=16, nz=32, g_steps=5, lr_g=2e-3, lr_z=0.01)
    subject = ReusableGeneratorSynthesis(generator, teacher, student, knobs, ANEW, augmentation, FP32, Streams(0))
    for _ in range(8):
        subject.synthesize(adversarial=False)
    return generator.train(), lambda x: teacher(augmentation.normalise(x))


def forget(network):
    """Mean 0 and variance 1: what a network remembers that never ran forward."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    return network


@pytest.mark.parametrize("part", ["g1", "g2", "d"])
@torch.no_grad()
def test_each_trained_network_gives_alone_in_eval_mode_nearly_the_images_of_train_mode(trained_on_digits, part):
    generator = copy.deepcopy(trained_on_digits[0])
    z = torch.randn(128, 32)
    taken = (generator.g1(z) + generator.g2(z)) / 2 if part == "d" else z
    network = getattr(generator, part)
    in_eval_mode, forgetful = copy.deepcopy(network).eval()(taken), forget(copy.deepcopy(network)).eval()(taken)
    in_train_mode = network(taken)
    difference = (in_eval_mode - in_train_mode).abs().mean()
    assert difference < 0.08
    assert difference < 0.5 * (forgetful - in_train_mode).abs().mean()


@torch.no_grad()
def test_the_trained_generator_in_eval_mode_keeps_batch_statistics_and_the_teachers_confidence(trained_on_digits):
    generator, teacher = trained_on_digits
    z = torch.randn(128, 32)
    described = []
    for network in (copy.deepcopy(generator).eval(), copy.deepcopy(generator)):
        x = network(z)
        confidence = teacher(x).softmax(1).max(1).values.mean()
        described.append(torch.stack([*x.mean((0, 2, 3)), *x.std((0, 2, 3)), confidence]))
    torch.testing.assert_close(*described, rtol=0, atol=0.08)
    assert described[0][3:6].min() > 0.1  # images that have some contrast
