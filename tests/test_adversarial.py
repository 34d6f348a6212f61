"""Rounds of the five methods against the algorithm in plain autograd and plain Adam; what they leave alone."""

import copy
import math

import pytest
import torch
from conftest import (
    CLASSES,
    FP32,
    NGF,
    NZ,
    SIZE,
    same_state,
    small_classifier,
    small_context,
    small_spec,
    small_teacher,
    state_of,
)
from test_aeahl_rg import bn_inputs, bn_norms, context_of, moments, takes
from test_compile import traced  # noqa: F401
from test_sync import no_reading  # noqa: F401
from torch import nn

from datafree.cli.flags import distillation_configs
from datafree.configuration import resolve
from datafree.data.batch import TEACHER_LOGITS
from datafree.engine.compiling import Compiling
from datafree.engine.randomness import Streams
from datafree.job import prepare
from datafree.methods.adversarial import Dafl, Dfad, Dfq, Mad, Zskt
from datafree.models.classifier import Classifier

METHODS = {"dafl": Dafl, "zskt": Zskt, "dfad": Dfad, "dfq": Dfq, "mad": Mad}
WITH_STUDENT = ("zskt", "dfad", "dfq", "mad")
B, LR_G = 6, 1e-2
OWN = {
    "dafl": {"oh": 0.7, "act": 0.3, "balance": 2.0},
    "dfq": {"adv": 1.3, "oh": 0.2, "balance": 0.5, "ent": 0.4, "bn": 0.01, "bn_form": "l2"},
}
# The true gradient of biases in front of a BN is zero; what is left is rounding, whose sign Adam would act on.
MUTE = ("l1.0.bias", "conv_blocks.9.bias")


def method(name, context=None, **changes):
    values = {"synthesis_batch_size": B, "nz": NZ, "ngf": NGF, "lr_g": LR_G} | OWN.get(name, {}) | changes
    return METHODS[name](context or context_of(), METHODS[name].Config(**values))


def log_softmax(rows):
    return rows - rows.exp().sum(1, keepdim=True).log()


def kl(t, s):
    return (log_softmax(t).exp() * (log_softmax(t) - log_softmax(s))).sum(1).mean()


def terms_by_hand(name, context, x, warmup, judge_trains):
    """The loss and its terms, unweighted, from the equations."""
    first, second, t = bn_inputs(context.teacher, x)
    features = context.teacher.network.bn2(second).relu().mean((2, 3))
    judge = copy.deepcopy(context.student).train(judge_trains)
    s = judge.network(takes(judge, x))
    mean = log_softmax(t).exp().mean(0)
    known = {
        "loss_oh": -log_softmax(t).amax(1).mean(),
        "loss_act": -features.abs().mean(),
        "loss_balance": (mean * mean.log()).sum(),
        "loss_ent": -(log_softmax(t).exp() * log_softmax(t)).sum(1).mean(),
        "loss_bn": bn_norms(context.teacher, moments(first, second)),
        "loss_adv": -(t - s).abs().mean() if name == "dfad" else -kl(t, s),
    }
    weights = {f"loss_{term}": weight for term, weight in OWN.get(name, {"adv": 1.0}).items() if term != "bn_form"}
    if warmup:
        weights.pop("loss_adv", None)
    return sum(weight * known[term] for term, weight in weights.items()), {term: known[term] for term in weights}


def trained(network):
    """Names and parameters; what stands in for the data's mean and standard deviation is none."""
    return [(name, p) for name, p in network.named_parameters() if p.requires_grad]


class ByHand:
    """A generator of its own, stepped by Adam in a few lines."""

    def __init__(self, subject, betas=(0.9, 0.999)):
        self.generator, self.betas, self.steps = copy.deepcopy(subject.generator), betas, 0
        self.judge_trains = getattr(subject.config, "judge", "eval") == "train"
        self.m = {name: torch.zeros_like(p) for name, p in trained(self.generator)}
        self.v = copy.deepcopy(self.m)

    def step(self, name, context, z, warmup=False, lr=LR_G, clip=None):
        """Images, terms, gradients before a limit to them."""
        x = self.generator(z)
        loss, terms = terms_by_hand(name, context, x, warmup, self.judge_trains)
        parameters = dict(trained(self.generator))
        gradients = dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        self.steps += 1
        with torch.no_grad():
            for key, parameter in parameters.items():
                g = gradients[key] * (clip / (norm + 1e-6) if clip and clip < norm else 1.0)
                b1, b2 = self.betas
                self.m[key] = b1 * self.m[key] + (1 - b1) * g
                self.v[key] = b2 * self.v[key] + (1 - b2) * g**2
                corrected = self.m[key] / (1 - b1**self.steps), self.v[key] / (1 - b2**self.steps)
                parameter -= lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
        return x.detach(), terms | {"loss_generator": loss}, norm


def noise(streams, name="synthesis", count=B):
    return torch.randn(count, NZ, generator=streams[name])


def assert_same_weights(found, expected, before):
    """Up to rounding of what the steps have changed."""
    old = dict(before.named_parameters())
    other = dict(expected.named_parameters())
    for name, parameter in trained(found):
        if name not in MUTE:
            moved, wanted = parameter - old[name], other[name] - old[name]
            assert (moved - wanted).norm() < 2e-2 * wanted.norm(), name


@pytest.mark.parametrize(
    ("name", "judge"), [("dafl", None), *((name, mode) for name in WITH_STUDENT for mode in ("eval", "train"))]
)
def test_rounds_are_those_by_hand_with_adam_on_the_methods_own_terms(name, judge):
    mode = {} if judge is None else {"judge": judge}
    subject, streams = method(name, g_steps=2, adam_betas=(0.5, 0.999), **mode), Streams(0)
    student = state_of(subject.context.student)
    by_hand, start = ByHand(subject, (0.5, 0.999)), copy.deepcopy(subject.generator)
    z = None
    for number in range(2):
        warmup = name in ("dafl", "dfq") and number == 0
        expected = {}
        for step in range(2):
            z = z if name == "zskt" and step else noise(streams)
            _, terms, _ = by_hand.step(name, subject.context, z, warmup)
            for term, value in terms.items():
                expected.setdefault(term, []).append(value.item())
        assert subject.synthesize(warmup) is None
        read = subject.context.read().series
        assert read.keys() == expected.keys()
        for term, values in expected.items():
            assert read[term] == pytest.approx(values, rel=5e-3), term
        assert_same_weights(subject.generator, by_hand.generator, start)
        assert same_state(state_of(subject.context.student), student)


@pytest.mark.parametrize("name", WITH_STUDENT)
def test_a_generator_seeks_disagreement_and_has_no_reason_to_move_where_the_student_is_the_teacher(name):
    teacher = small_teacher()
    twin = Classifier(copy.deepcopy(teacher.network).train().requires_grad_(), "twin", CLASSES, SIZE, *formats(teacher))
    alone = {"oh": 0.0, "balance": 0.0, "ent": 0.0, "bn": 0.0} if name == "dfq" else {}
    seen = {}
    for who, student in (("twin", twin), ("other", small_classifier(2))):
        subject = method(name, small_context(teacher, student), **alone)
        subject.synthesize(warmup=False)
        gradient = torch.cat([p.grad.flatten() for _, p in trained(subject.generator)])
        seen[who] = gradient.norm().item(), subject.context.read().means()["loss_adv"]
    (none, zero), (some, below) = seen["twin"], seen["other"]
    assert some > 1e-3 and none < 1e-5 * some and below < -0.1 and abs(zero) < 1e-6


def formats(classifier):
    return [each.flatten().tolist() for each in (classifier.mean, classifier.std)]


@pytest.mark.parametrize("name", WITH_STUDENT)
def test_steps_on_the_same_noise_drive_the_student_further_from_the_teacher(name):
    subject = method(name, **({"oh": 0.0, "balance": 0.0, "ent": 0.0, "bn": 0.0} if name == "dfq" else {}))
    z = noise(Streams(3))
    for _ in range(8):
        subject.generator_step(z, warmup=False)
    series = subject.context.read().series["loss_adv"]
    assert series[-1] < 1.2 * series[0] < 0


def taught(subject, count=3, size=B):
    return list(subject.batches(count, size))


@pytest.mark.parametrize("name", ["dafl", "dfad", "dfq"])
def test_the_student_gets_new_images_of_the_generator_at_every_step_without_gradient(name):
    subject = method(name)
    subject.synthesize(warmup=False)
    expected, streams = copy.deepcopy(subject.generator), Streams(0)
    for batch in taught(subject, size=5):
        torch.testing.assert_close(batch.images, expected(noise(streams, "distillation", 5)))
        assert batch.images.shape == (5, 3, SIZE, SIZE) and not batch.images.requires_grad and not batch.columns
        assert batch.images.isfinite().all()
    assert len(taught(subject, 4)) == 4


def test_dafl_teaches_the_very_batch_of_the_generators_step_where_one_step_follows():
    subject = method("dafl")
    before, z = copy.deepcopy(subject.generator), noise(Streams(0))
    subject.synthesize(warmup=False)
    (batch,) = taught(subject, 1)
    torch.testing.assert_close(batch.images, before(z))
    torch.testing.assert_close(batch.columns[TEACHER_LOGITS], subject.context.answers(batch.images))
    assert not batch.images.requires_grad and not batch.columns[TEACHER_LOGITS].requires_grad
    for count, size in ((2, B), (1, B + 1)):
        assert all(not batch.columns and len(batch) == size for batch in taught(subject, count, size))


def test_zskt_has_one_z_a_round_for_the_generator_before_and_the_student_after_its_steps():
    subject, streams, asked = method("zskt", g_steps=2), Streams(0), []
    subject.generator.register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    rounds = []
    for _ in range(2):
        subject.synthesize(warmup=False)
        rounds.append(taught(subject, 4))
    first, second = noise(streams), noise(streams)
    assert [torch.equal(z, first) for z in asked] == 3 * [True] + 3 * [False]  # two steps, one batch for four lessons
    assert all(torch.equal(z, second) for z in asked[3:])
    for batches in rounds:
        assert len(batches) == 4 and all(batch is batches[0] for batch in batches)
        torch.testing.assert_close(batches[0].columns[TEACHER_LOGITS], subject.context.answers(batches[0].images))
    torch.testing.assert_close(rounds[1][0].images, copy.deepcopy(subject.generator)(second))
    assert not rounds[1][0].images.requires_grad and "distillation" not in subject.context.streams.state_dict()


def test_mads_slow_generator_is_the_average_by_hand_and_makes_half_of_each_batch():
    subject = method("mad", ema=0.8, g_steps=2)
    slow = {name: p.detach().clone() for name, p in subject.generator.named_parameters()}
    for z in (noise(Streams(0)), noise(Streams(1)), noise(Streams(2))):
        subject.generator_step(z, warmup=False)
        for name, p in subject.generator.named_parameters():
            slow[name] = 0.8 * slow[name] + 0.2 * p.detach()
    for name, p in subject.slow.named_parameters():
        torch.testing.assert_close(p, slow[name], rtol=1e-4, atol=1e-6)
        assert not p.requires_grad
    weight = "conv_blocks.2.weight"
    assert not torch.equal(subject.slow.get_parameter(weight), subject.generator.get_parameter(weight))
    streams, G, other = Streams(0), copy.deepcopy(subject.generator), copy.deepcopy(subject.slow)
    for batch in taught(subject, 2, 7):
        fresh = G(noise(streams, "distillation", 4)), other(noise(streams, "distillation", 3))
        torch.testing.assert_close(batch.images, torch.cat(fresh))
        assert not batch.images.requires_grad
    assert len(next(subject.batches(1, 1))) == 1


def test_ema_zero_is_no_slower():
    subject = method("mad", ema=0.0)
    subject.synthesize(warmup=False)
    for p, q in zip(subject.slow.parameters(), subject.generator.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", METHODS)
def test_samples_are_of_the_generator_in_eval_mode_which_they_leave_as_it_is(name):
    subject = method(name)
    for _ in range(3):
        subject.synthesize(warmup=False)
    before, state = copy.deepcopy(subject.generator).eval(), state_of(subject.generator)
    x = subject.sample(2 * B + 1, "evaluation")
    torch.testing.assert_close(x, before(noise(Streams(0), "evaluation", 2 * B + 1)).clamp(0, 1))
    assert not x.requires_grad and subject.generator.training and same_state(state, state_of(subject.generator))


def test_the_gradient_is_limited_to_a_norm():
    subject, streams = method("dfad", clip_g=1e-3), Streams(0)
    by_hand = ByHand(subject)
    _, _, norm = by_hand.step("dfad", subject.context, noise(streams), clip=1e-3)
    subject.synthesize(warmup=False)
    found = math.sqrt(sum(float(p.grad.square().sum()) for _, p in trained(subject.generator)))
    assert norm > 2e-3 and found == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_without_batch_norm_will_do(name):
    subject = method(name, small_context(small_teacher(batch_norm=False)), **({"bn": 0.0} if name == "dfq" else {}))
    before = state_of(subject.generator)
    subject.synthesize(warmup=False)
    terms = subject.context.read().means()
    assert math.isfinite(terms["loss_generator"]) and not same_state(before, state_of(subject.generator))
    assert not subject.remarks


def test_dafl_without_a_last_linear_layer_says_that_a_term_is_missing():
    body = nn.Sequential(nn.Conv2d(3, CLASSES, SIZE), nn.Flatten())
    teacher = Classifier(body, "own", CLASSES, SIZE, (0.5,) * 3, (0.5,) * 3).eval().requires_grad_(False)
    subject = method("dafl", small_context(teacher))
    assert "no L_act" in subject.remarks[0]
    subject.synthesize(warmup=False)
    terms = subject.context.read().means()
    assert terms["loss_act"] == 0 and terms["loss_generator"] == pytest.approx(
        0.7 * terms["loss_oh"] + 2.0 * terms["loss_balance"], rel=1e-4
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_state_and_the_streams_go_on_exactly(name, tmp_path):
    how = {"g_steps": 2, "anneal_g": 20}
    subject, other = method(name, **how), method(name, context_of(seed=9), **how)
    for _ in range(3):
        subject.synthesize(warmup=False)
    taught(subject)
    torch.save([subject.state_dict(), subject.context.streams.state_dict()], tmp_path / "state.pth")
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    other.load_state_dict(state)
    other.context.streams.load_state_dict(streams)
    for each in (subject, other):
        each.synthesize(warmup=False)
    for batch, same in zip(taught(subject), taught(other), strict=True):
        assert torch.equal(batch.images, same.images)
    for key, network in subject.networks.items():
        assert same_state(state_of(network), state_of(other.networks[key]))
    assert subject.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"] < LR_G


@pytest.mark.parametrize("name", METHODS)
def test_every_step_shows_its_images_to_whoever_observes(name):
    subject, seen = method(name, g_steps=3), []
    subject.context.observers.append(lambda x, logits: seen.append((x, logits)))
    subject.synthesize(warmup=False)
    assert len(seen) == 3
    for x, logits in seen:
        assert not x.requires_grad and not logits.requires_grad
        torch.testing.assert_close(logits, subject.context.answers(x))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("targets", ["soft", "attack"])
def test_a_round_reads_nothing_before_its_end(name, targets, tmp_path, monkeypatch, request):
    given = {"epochs": 2, "kd_steps": 2, "batch_size": 8, "ngf": 4, "clip_g": 1.0, "run_root": tmp_path, "warmup": 0}
    given |= {"hl": True, "p_width": 4} if targets == "attack" else {}
    values = resolve(distillation_configs(METHODS[name], name, targets), {"method": name} | given, lambda known: {})
    METHODS[name].complete(values)
    job = prepare(values, small_spec(), small_classifier(1), small_classifier(2), METHODS[name], FP32)
    assert job.pool is None
    with request.getfixturevalue("no_reading"):
        for _ in range(2):
            assert job.method.synthesize(warmup=False) is None
            job.student.learn(job.source, job.targets, 2)
    monkeypatch.undo()
    assert all(map(math.isfinite, job.context.read().means().values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dafl", "dfq"])
def test_compiled_networks_let_the_same_be_heard(name, traced):  # noqa: F811
    eager, compiled = method(name), method(name)
    context = compiled.context
    Compiling(True).compile({"teacher": context.teacher, "student": context.student, "busy": compiled.busy[0]})
    for _ in range(2):
        terms = []
        for subject in (eager, compiled):
            subject.synthesize(warmup=False)
            terms.append(subject.context.read().means())
        assert terms[0] == pytest.approx(terms[1], rel=1e-3)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
