"""What the flags of the five methods without a pool mean: rates, presets, outputs, a generator of an earlier run."""

import dataclasses
import math

import pytest
import torch
from conftest import NGF, same_state, small_context, small_teacher, state_of, user_error
from test_adversarial import LR_G, METHODS, method
from test_aeahl_rg import context_of
from test_configuration import preset_of

import registry
from datafree import files
from datafree.cli.flags import distillation_configs
from datafree.configuration import resolve
from datafree.models.generator import ImageGenerator, NormalisedNetwork, StandardisedNetwork
from datafree.runs.length import LengthConfig

STEPS = {  # of generator and student in a whole run, as the reference codes count them
    ("dafl", "mnist"): (200 * 120, 200 * 120),
    ("dfad", "mnist"): (40 * 50, 40 * 50 * 5),
    ("dafl", "cifar100"): (2000 * 120, 2000 * 120),
    ("zskt", "cifar10"): (80_000, 800_000),
    ("dfad", "cifar10"): (500 * 50, 500 * 50 * 5),
    ("dfq", "cifar10"): (250 * 400, 200 * 400 * 10),
}


def test_the_rate_falls_along_a_cosine_to_zero_from_the_end_of_the_warmup():
    subject = method("dfq", anneal_g=4)
    rates = []
    for number in range(8):
        subject.synthesize(warmup=number < 2)
        rates.append(subject.optimizer.param_groups[0]["lr"])
    cosine = [LR_G * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
    assert rates == pytest.approx([LR_G, LR_G, *cosine, 0, 0], abs=1e-12)


def test_the_rate_falls_tenfold_at_shares_of_the_steps_after_the_warmup():
    context, rates = context_of(), []
    context.rounds, context.warmup_rounds = 6, 1
    subject = method("dfq", context, g_steps=2, lr_g_steps=(0.2, 0.4))  # of 10 steps
    for number in range(6):
        subject.synthesize(warmup=number < 1)
        rates.append(subject.optimizer.param_groups[0]["lr"])  # of the round's second step
    assert rates == pytest.approx([LR_G, LR_G, LR_G / 10, *3 * [LR_G / 100]])


def values_of(name, **given):
    configs = distillation_configs(METHODS[name], name, "soft")
    values = resolve(configs, {"method": name, "warmup": 0} | given, lambda known: {})
    METHODS[name].complete(values)
    return values


def test_a_generators_batch_is_the_students_and_its_cosine_as_long_as_the_run_unless_told():
    for name in METHODS:
        assert values_of(name, batch_size=17).synthesis_batch_size == 17
        context = context_of()
        context.rounds, context.warmup_rounds = 15, 6
        whole = method(name, context, g_steps=2).steps_to_anneal
        assert whole == ((15 - 6) * 2 if name in ("zskt", "dfq", "mad") else 0)
        assert method(name, context, anneal_g=9).steps_to_anneal == 9
    assert values_of("dafl", synthesis_batch_size=4).synthesis_batch_size == 4


def test_what_contradicts_itself_is_one_line_with_the_remedy():
    for name in ("zskt", "dfad", "mad"):
        with user_error(f"method {name} learns from the student", "--warmup 0"):
            values_of(name, warmup=3)
    assert values_of("dafl", warmup=3) and values_of("dfq", warmup=3)
    with user_error("--synthesis_batch_size 4 is not --batch_size 8", "leave the former out"):
        values_of("zskt", synthesis_batch_size=4, batch_size=8)
    with user_error("--anneal_g and --lr_g_steps", "give one of them"):
        values_of("dafl", anneal_g=4, lr_g_steps=(0.5,))
    with user_error("has no BatchNorm", "--bn 0"):
        method("dfq", small_context(small_teacher(batch_norm=False)))


def test_the_generators_images_are_normalised_unless_told_otherwise_and_depends_on_the_seed_alone():
    first, same, other = method("dfad"), method("zskt"), method("dfad", context_of(seed=1))
    kinds = {"normalised": NormalisedNetwork, "standardised": StandardisedNetwork, "free": ImageGenerator}
    for output, kind in kinds.items():
        told = method("dfad", g_output=output).generator
        assert type(told) is kind and (output == "normalised") == same_state(state_of(told), state_of(first.generator))
        trained = [(name, p) for name, p in told.named_parameters() if p.requires_grad]
        assert all(torch.equal(p, first.generator.get_parameter(name)) for name, p in trained)
    assert same_state(state_of(first.generator), state_of(same.generator))
    assert not same_state(state_of(first.generator), state_of(other.generator))


def preset(name, dataset):
    given = {"method": name, "dataset": dataset, "teacher": "any"}
    values = resolve(distillation_configs(METHODS[name], name, "soft"), given, preset_of(name))
    METHODS[name].complete(values)
    return values


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dataset", registry.DATASETS)
def test_presets_fit_together_for_every_data_set(name, dataset):
    values = preset(name, dataset)
    for config in distillation_configs(METHODS[name], name, "soft").values():
        config.of(values)
    assert values.kd_steps <= 10 < values.ep_steps and values.synthesis_batch_size == values.batch_size
    assert values.T == 1 and values.kd_loss == ("l1" if name == "dfad" else "kl")
    assert values.warmup == 0 or name == "dfq"


@pytest.mark.parametrize(("name", "dataset"), STEPS)
def test_presets_of_published_runs_are_as_long_as_those(name, dataset):
    values = preset(name, dataset)
    length = LengthConfig.of(values)
    assert (values.epochs * len(length.rounds) * values.g_steps, length.steps) == STEPS[name, dataset]


@pytest.mark.parametrize("output", ["normalised", "standardised", "free"])
def test_a_generator_that_is_left_begins_another_run_on_other_data_which_resumes_without_its_file(output, tmp_path):
    subject, path = method("dafl", g_output=output), tmp_path / "generator.pth"
    subject.synthesize(warmup=False)
    files.save(subject.finish().files["generator.pth"], path)
    other = context_of(seed=3)
    other.spec = dataclasses.replace(other.spec, mean=(0.3, 0.6, 0.7), std=(0.15, 0.25, 0.35))
    following = method("mad", other, ngf=NGF + 1, reuse_path=path, g_output=output)
    ours, theirs = (state_of(each.generator) for each in (following, subject))
    own = {f"conv_blocks.standardised.{name}" for name in ("weight", "bias")} if output != "free" else set()
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == own
    assert same_state(state_of(following.slow), ours)
    path.unlink()
    with user_error("generator.pth does not exist"):
        method("dafl", reuse_path=path, g_output=output)
    other.saved = following.state_dict
    resumed = method("mad", other, ngf=NGF + 1, reuse_path=path, g_output=output)
    resumed.load_state_dict(following.state_dict())
    assert same_state(state_of(resumed.generator), ours)


def test_a_generator_of_another_kind_is_refused_in_one_line(tmp_path):
    path = tmp_path / "g.pth"
    files.save(method("dafl", g_output="free").finish().files["generator.pth"], path)
    with user_error(str(path), "holds a generator"):
        method("dafl", reuse_path=path)
