"""Fast's rounds against the algorithm in plain autograd and plain Adam; its first layers, its file, its state."""

import copy

import pytest
import torch
from conftest import BF16, CLASSES, NGF, NZ, SIZE, same_state, small_teacher, state_of, user_error
from test_aeahl_rg import assert_close_by_name, bn_inputs, bn_norms, context_of, moments, parameters_of, takes
from test_aeahl_rg import watch_meta_gradients as watched

from datafree import files
from datafree.engine.randomness import Streams
from datafree.methods.aeahl_rg import AeahlRg
from datafree.methods.fast import Fast, FastMeta
from datafree.models.generator import GenerativeNetwork, ImageGenerator
from datafree.models.generator_files import part

B, K, LR_G, LR_Z = 6, 3, 1e-2, 5e-2
FIRST = ("l1.0.weight", "l1.0.bias", "conv_blocks.0.weight", "conv_blocks.0.bias")


def method(context=None, kind=FastMeta, **changes):
    values = {"synthesis_batch_size": B, "nz": NZ, "ngf": NGF, "g_steps": K, "lr_g": LR_G, "lr_z": LR_Z, "adv": 1.3}
    return kind(context or context_of(), kind.Config(**values | changes))


def loss_by_hand(context, x, y, rng, adversarial, average=None):
    """L with weights 10, 0.5 and 1.3, L_adv by itself, and the statistics that L_bn is of."""
    student, x = copy.deepcopy(context.student).eval(), context.augmentation(x, rng)
    first, second, logits = bn_inputs(context.teacher, x)
    now = moments(first, second)
    blend = now if average is None else 0.1 * now + 0.9 * average
    L_oh = -logits.log_softmax(1)[torch.arange(len(y)), y].mean()
    answers = student.network(takes(student, x))
    kl = (logits.softmax(1) * (logits.log_softmax(1) - answers.log_softmax(1))).sum(1)
    L_adv = -((logits.argmax(1) == answers.argmax(1)) * kl).mean() * adversarial
    return 10.0 * bn_norms(context.teacher, blend) + 0.5 * L_oh + 1.3 * L_adv, L_adv, blend.detach()


def inner_loop_by_hand(context, generator, rng, adversarial, average):
    """theta', the x of the lowest L, the sum of gradients by name, L_adv of each iteration, the statistics."""
    generator, images, losses, advs = copy.deepcopy(generator), [], [], []
    z = torch.randn(B, NZ, generator=rng).requires_grad_()
    y = torch.randint(CLASSES, (B,), generator=rng)
    named = dict(generator.named_parameters())
    groups = [{"params": list(named.values())}, {"params": [z], "lr": LR_Z}]
    adam, summed = torch.optim.Adam(groups, lr=LR_G, betas=(0.5, 0.999), foreach=False), dict.fromkeys(named, 0)
    for _ in range(K):
        x = generator(z)
        loss, L_adv, blend = loss_by_hand(context, x, y, rng, adversarial, average)
        adam.zero_grad()
        loss.backward()
        summed = {name: summed[name] + p.grad for name, p in named.items()}
        adam.step()
        images.append(x.detach())
        losses.append(loss.item())
        advs.append(L_adv.item())
    return generator, images[losses.index(min(losses))], summed, advs, blend


@pytest.mark.parametrize("meta", ["fomaml", "reptile", "none"])
def test_rounds_are_those_by_hand_with_each_meta_step_and_without(meta):
    kind = Fast if meta == "none" else FastMeta
    subject = method(kind=kind, meta=meta)
    theta, streams, average = copy.deepcopy(subject.generator), Streams(0), None
    start, meta_gradients = parameters_of(theta), watched(subject)
    adam = torch.optim.Adam(theta.parameters(), lr=LR_G * K, betas=(0.5, 0.999), foreach=False)
    for number in (1, 2, 3):
        rng = streams["synthesis"]
        adapted, x, summed, advs, average = inner_loop_by_hand(subject.context, theta, rng, number > 1, average)
        batch = subject.synthesize(warmup=number == 1)
        torch.testing.assert_close(batch.images, x, rtol=1e-3, atol=2e-3)
        assert batch.images.shape == (B, 3, SIZE, SIZE) and not batch.images.requires_grad
        assert (min(advs) < 0) == (number > 1)
        assert subject.context.read().series["loss_adv"] == pytest.approx(advs, rel=2e-2, abs=1e-5)
        inner = dict(adapted.named_parameters())
        if meta == "none":
            theta.load_state_dict(adapted.state_dict())  # theta is what was trained, by a new Adam
            continue
        for name, p in theta.named_parameters():
            p.grad = summed[name] if meta == "fomaml" else (p - inner[name]).detach()
        assert_close_by_name(meta_gradients[-1], {name: p.grad for name, p in theta.named_parameters()}, 5e-2)
        adam.step()
    assert len(meta_gradients) == (0 if meta == "none" else 3)
    found, wanted = parameters_of(subject.generator), parameters_of(theta)
    assert_close_by_name(
        {name: found[name] - start[name] for name in start}, {name: wanted[name] - start[name] for name in start}, 5e-2
    )


def test_the_best_images_of_a_round_not_the_last_are_given():
    subject, seen, levels = method(), [], iter([3.0, 1.0, 2.0])

    def objective(x, y, adversarial):
        seen.append(x.detach().clone())
        return x.mean() - x.mean().detach() + next(levels)

    subject.objective = objective
    images = subject.synthesize(warmup=False).images
    assert torch.equal(images, seen[1]) and not torch.equal(images, seen[2])


def test_every_iteration_is_shown_to_observers_and_the_student_plays_no_part_in_warm_up():
    context, seen = context_of(), []
    context.observers.append(lambda x, logits: seen.append((x.shape, logits.shape)))
    before = state_of(context.student)
    subject = method(context)
    subject.synthesize(warmup=False)
    assert seen == K * [((B, 3, SIZE, SIZE), (B, CLASSES))] and same_state(state_of(context.student), before)
    context.student.register_forward_pre_hook(lambda *_: pytest.fail("the student was called"))
    subject.synthesize(warmup=True)


def test_a_teacher_without_batch_norm_is_inverted_with_other_priors():
    subject = method(context_of(teacher=small_teacher(batch_norm=False)))
    before = parameters_of(subject.generator)
    subject.synthesize(warmup=False)
    means = subject.context.read().means()
    assert "loss_bn" not in means and min(means["loss_tv"], means["loss_l2"]) > 0
    assert not same_state(parameters_of(subject.generator), before) and "tv 1, l2 0.1" in subject.remarks[0]


def test_bf16_rounds_give_fp32_images_near_those_of_fp32():
    full, half = (
        method(context).synthesize(warmup=True).images for context in (context_of(), context_of(compute=BF16))
    )
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert (half - full).abs().mean() < 0.02
    assert len(half.unique()) > len(half.bfloat16().unique())  # the sigmoid is in fp32


# First layers drawn anew


def test_the_first_linear_and_the_first_batch_norm_alone_are_drawn_anew_at_their_round():
    context = context_of()
    context.rounds = 10
    subject = method(context, reset_l0=0.3, lr_g=1e-14, g_steps=1)  # so small that nothing else moves
    subject.generator.conv_blocks[0].bias.data.fill_(1)
    rng = Streams(0)["reset"]
    drawn = [torch.randn(subject.generator.state_dict()[name].shape, generator=rng) * 0.02 for name in FIRST[::2]]
    for number in range(1, 6):
        before = parameters_of(subject.generator)
        subject.synthesize(warmup=True)
        after = parameters_of(subject.generator)
        moved = {name for name in before if (after[name] - before[name]).abs().max() > 1e-9}
        assert moved == (set(FIRST) if number == 3 else set()), number
        if number == 3:
            for name, values in zip(FIRST[::2], drawn, strict=True):
                torch.testing.assert_close(after[name], values)
            assert all((after[name].abs() < 1e-9).all() for name in FIRST[1::2])


@pytest.mark.parametrize(("share", "rounds", "at"), [(0.636, 220, 140), (0.5, 40, 20), (0.0, 220, 0), (1.0, 3, 3)])
def test_the_round_of_the_reset_is_a_share_of_the_run(share, rounds, at):
    context = context_of()
    context.rounds = rounds
    assert method(context, reset_l0=share).reset_round == at


# Its state and its file


def test_a_state_dict_and_the_streams_continue_exactly_past_the_reset(tmp_path):
    contexts = [context_of(), context_of()]
    for context in contexts:
        context.rounds = 4
    subject, other = (method(context, reset_l0=0.75) for context in contexts)
    for made in (subject, subject, other):
        made.synthesize(warmup=made is other)
    torch.save([subject.state_dict(), subject.context.streams.state_dict()], tmp_path / "state.pth")
    expected = [subject.synthesize(warmup=False).images for _ in range(2)]
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    other.load_state_dict(state)
    other.context.streams.load_state_dict(streams)
    found = [other.synthesize(warmup=False).images for _ in range(2)]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert same_state(state_of(other.generator), state_of(subject.generator))


def test_the_generator_that_is_left_begins_the_next_run_in_its_own_width_and_resumes_without_its_file(tmp_path):
    subject, path = method(), tmp_path / "generator.pth"
    subject.synthesize(warmup=True)
    left = subject.finish().files["generator.pth"]
    assert left["state_dict"]["conv_blocks.0.num_batches_tracked"] == 20  # statistics of its own weights
    files.save(left, path)
    following = method(context_of(seed=3), ngf=NGF + 1, reuse_path=path)
    assert same_state(state_of(following.generator), state_of(subject.generator))
    assert not same_state(parameters_of(method().generator), parameters_of(subject.generator))
    path.unlink()
    with user_error("generator.pth does not exist"):
        method(reuse_path=path)
    context = context_of()
    context.saved = following.state_dict
    resumed = method(context, ngf=NGF + 1, reuse_path=path)
    resumed.load_state_dict(following.state_dict())
    assert same_state(state_of(resumed.generator), state_of(following.generator))


def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path):
    path = tmp_path / "g.pth"
    for made, words in (
        (ImageGenerator(NZ + 1, NGF, SIZE), f"nz {NZ + 1}, not {NZ}"),
        (ImageGenerator(NZ, NGF, 2 * SIZE), f"img_size {2 * SIZE}"),
        (GenerativeNetwork(NZ, NGF, SIZE), "holds a generative_network"),
    ):
        files.save(part(made, made.kind, made.config, {}), path)
        with user_error(str(path), words):
            method(reuse_path=path)


def test_a_sample_is_of_the_generator_in_eval_mode_with_statistics_of_its_own_weights():
    subject = method()
    subject.synthesize(warmup=True)
    weights = parameters_of(subject.generator)
    x = subject.sample(B + 3, "evaluation")
    assert same_state(parameters_of(subject.generator), weights) and subject.generator.training
    z = torch.randn(B + 3, NZ, generator=Streams(0)["evaluation"])
    torch.testing.assert_close(x, copy.deepcopy(subject.generator).eval()(z))
    assert subject.generator.conv_blocks[0].num_batches_tracked == 20


def test_aeahl_rg_and_fast_share_their_flags_but_those_of_reuse():
    theirs, ours = (set(kind.Config.__dataclass_fields__) for kind in (AeahlRg, FastMeta))
    reuse = {"mode", "reuse_generator_path", "reuse_decoder_path", "reuse_pick", "finetune_factor"}
    assert theirs - ours == reuse and ours - theirs == {"reset_l0", "reuse_path"}
    with user_error("--meta"):
        Fast.Config(meta="fomaml")
