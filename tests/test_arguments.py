"""The command line: spelling, where a value comes from, and every mistake in one line."""

import argparse
import json
from pathlib import Path

import pytest
from conftest import user_error
from datafree.arguments import Parser, number, plain_values
from datafree.flags import distillation_parser, training_parser

import registry

PARSERS = {"main.py": distillation_parser, "train_scratch.py": training_parser}


def resolve(line, preset=lambda args: {}):
    return distillation_parser().resolve(line.split(), preset)


def main_values(line):
    return distillation_parser().resolve(line.split(), registry.distillation_preset)


def actions_of(parser):
    return [action for action in parser._actions if action.dest != "help"]


def example_of(action):
    """Words that may follow a flag."""
    if action.nargs in (0, "?"):
        return []
    if action.choices:
        return [action.choices[-1]]
    try:
        action.type("0.25")
        example = "0.25"
    except argparse.ArgumentTypeError:
        example = "2"
    return [example] * (action.nargs if isinstance(action.nargs, int) else 1)


@pytest.mark.parametrize("name", PARSERS)
def test_every_flag_is_accepted_with_hyphens_and_with_underscores(name):
    flags = [(action, flag) for action in actions_of(PARSERS[name]()) for flag in action.option_strings if "_" in flag]
    assert len(flags) >= 8
    for action, flag in flags:
        values = [
            getattr(PARSERS[name]().resolve([spelt, *example_of(action)], lambda _: {}), action.dest)
            for spelt in (flag, "--" + flag[2:].replace("_", "-"))
        ]
        assert values[0] == values[1] and values[0] != action.default, flag


def test_mixed_spellings_and_an_equals_sign_work_and_values_keep_their_hyphens():
    args = resolve("--synthesis-batch_size=8 --kd-steps 3 --tag a-b_c --teacher-path=x-y/z_w.pth")
    assert (args.synthesis_batch_size, args.kd_steps, args.tag) == (8, 3, "a-b_c")
    assert args.teacher_path == Path("x-y/z_w.pth")


@pytest.mark.parametrize("name", PARSERS)
def test_epoch_is_another_name_of_epochs(name):
    for spelt in ("--epoch", "--epochs"):
        assert PARSERS[name]().resolve([spelt, "7"], lambda _: {}).epochs == 7


def test_the_commands_of_the_request_resolve():
    args = main_values("--mode anew --dataset cifar10 --teacher resnet34 --student resnet18")
    assert (args.mode, args.dataset, args.teacher, args.student) == ("anew", "cifar10", "resnet34", "resnet18")
    line = "--model resnet34 --dataset cifar10 --batch-size 256 --lr 0.1 --epoch 200"
    args = training_parser().resolve(line.split(), registry.training_preset)
    assert (args.model, args.batch_size, args.lr, args.epochs) == ("resnet34", 256, 0.1, 200)


def test_the_command_line_goes_before_the_preset_and_the_preset_before_the_default():
    preset = lambda args: {"bn": 3.0, "oh": 4.0}  # noqa: E731
    args = resolve("--bn 7", preset)
    assert (args.bn, args.oh, args.adv) == (7.0, 4.0, 1.33)


def test_a_value_equal_to_the_default_still_goes_before_the_preset():
    default = resolve("").bn
    assert resolve(f"--bn {default}", lambda args: {"bn": 3.0}).bn == default


def test_the_preset_sees_the_command_line_and_the_defaults():
    seen = []
    resolve("--teacher vgg11", lambda args: seen.append((args.teacher, args.dataset)) or {})
    assert seen == [("vgg11", "digits")]


def test_a_preset_with_an_unknown_key_fails():
    with pytest.raises(ValueError, match="'bnn'"):
        resolve("", lambda args: {"bnn": 1.0})


def test_every_row_of_the_presets_names_known_things_and_values_in_range():
    parser = distillation_parser()
    checks = {action.dest: action.type for action in actions_of(parser)}
    for dataset, teacher, values in registry.PRESETS:
        assert dataset is None or dataset in registry.DATASETS
        assert teacher is None or teacher in registry.MODELS
        for name, value in values.items():
            assert checks[name](str(value)) == value, name
    for dataset, values in registry.TRAINING_PRESETS.items():
        assert dataset in registry.DATASETS
        args = training_parser().resolve(["--dataset", dataset], registry.training_preset)
        assert {name: getattr(args, name) for name in values} == values


def test_the_defaults_are_the_papers_for_cifar():
    args = main_values("--dataset cifar10 --teacher resnet34 --student resnet18")
    paper = {
        "bn": 10, "oh": 0.5, "adv": 1.33, "lr_g": 2e-3, "lr_z": 0.01, "bn_mmt": 0.9, "g_steps": 10, "nz": 256,
        "ngf": 64, "T": 20, "lr": 0.2, "lr_min": 2e-4, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 256,
        "kd_steps": 400,
        "epochs": 420, "warmup": 20, "crop_padding": 4, "finetune_factor": 0.1, "meta": "fomaml", "mode": "anew",
    }  # fmt: skip
    assert {name: getattr(args, name) for name in paper} == paper
    assert tuple(args.adam_betas) == (0.5, 0.999)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("teacher", "adv", "oh"), [("resnet34", 1.33, 0.5), ("vgg11", 1.0, 0.5), ("wrn40_2", 1.1, 0.4)]
)
def test_the_weights_for_each_teacher_are_the_published_ones(dataset, teacher, adv, oh):
    args = main_values(f"--dataset {dataset} --teacher {teacher}")
    assert (args.adv, args.oh) == (adv, oh)


def test_large_data_sets_take_50_generator_steps_and_imagenet_batches_of_64():
    tiny, imagenet = (main_values(f"--dataset {name}") for name in ("tiny_imagenet", "imagenet"))
    assert tiny.g_steps == imagenet.g_steps == 50
    assert tiny.batch_size == 256 and imagenet.batch_size == 64


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--synthesis_batchsize", "--synthesis_batch_size"),
        ("--teachr", "--teacher"),
        ("--kdsteps=3", "--kd_steps"),
        ("--seeds", "--seed"),
    ],
)
def test_an_unknown_flag_names_the_nearest_one(flag, meant):
    with user_error(f"unknown flag {flag.split('=')[0]}", meant):
        resolve(f"{flag} 1" if "=" not in flag else flag)


def test_an_abbreviated_flag_is_unknown():
    with user_error("unknown flag --kd "):
        resolve("--kd 3")


def test_a_value_without_a_flag_is_refused():
    with user_error("'digits'"):
        resolve("digits")


RANGES = (
    """
bn -0.1|bn nan|bn inf|bn -inf|bn much|oh -1|adv -1|lr_g 0|lr_g -1|lr_z 0|lr 0|lr nan|lr_min -1|weight_decay -1
momentum 1|momentum -0.1|bn_mmt 1|bn_mmt -0.1|finetune_factor 1.1|finetune_factor -0.1|T 0|T -1|adam_betas 0.5 1
g_steps 0|g_steps 1.5|g_steps -1|nz 0|ngf 0|kd_steps 0|ep_steps 0|epochs 0|epochs -3|batch_size 0|warmup -1
synthesis_batch_size 0|eval_every 0|crop_padding -1|seed -1|seed 9223372036854775808|mean 0.5 0.5 1.5|std 0.2 0 0.2
mode anwe|meta maml|precision fp16|reuse_pick g3|tag a/b|tag ..|img_size 0|num_classes 0
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@pytest.mark.parametrize("line", RANGES)
def test_a_value_out_of_range_is_refused_by_name(line):
    with user_error(f"argument --{line.split()[0]}"):
        resolve("--" + line)


@pytest.mark.parametrize(
    "line",
    [
        "warmup 0",
        "bn 0",
        "oh 0",
        "adv 0",
        "bn_mmt 0",
        "momentum 0",
        "crop_padding 0",
        "seed 0",
        "lr_min 0",
        "finetune_factor 0",
        "finetune_factor 1",
        "weight_decay 0",
    ],
)
def test_the_ends_of_a_range_are_in_it_where_they_mean_something(line):
    name, value = line.split()
    assert getattr(resolve("--" + line), name) == float(value)


@pytest.mark.parametrize("line", ["--bn", "--adam_betas 0.5", "--mean 0.5 0.5", "--download yes"])
def test_a_missing_or_superfluous_value_is_refused(line):
    with user_error(line.split()[-1] if line.endswith("yes") else line.split()[0]):
        resolve(line)


def test_number_includes_or_excludes_its_lower_end_as_told():
    assert number(float, 0)("0") == 0 and number(int, 1, 3)("3") == 3
    for check, text in (
        (number(float, 0, above=True), "0"),
        (number(int, 1, 3), "4"),
        (number(int, 1), "2.0"),
        (number(float, 0), "nan"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            check(text)


@pytest.mark.parametrize("name", PARSERS)
def test_help_has_every_flag_with_its_default(name):
    text = PARSERS[name]().format_help()
    for action in actions_of(PARSERS[name]()):
        assert action.option_strings[0] in text and action.help, action.dest
    assert "(default: 0.9)" in text and "(default: None)" not in text and "(default: False)" not in text


@pytest.mark.parametrize("name", PARSERS)
def test_the_printed_groups_have_every_value_once(name):
    parser = PARSERS[name]()
    args = parser.resolve([], lambda _: {})
    words = " ".join(parser.grouped(args)).split()
    for key in vars(args):
        assert sum(word.startswith(f"{key}=") for word in words) == 1, key


def test_resolved_values_are_plain_enough_for_json():
    args = resolve("--teacher_path a/b.pth --adam_betas 0.4 0.9")
    held = json.loads(json.dumps(plain_values(args)))
    assert held["teacher_path"] == "a/b.pth" and held["adam_betas"] == [0.4, 0.9] and held.keys() == vars(args).keys()


def test_a_parser_reports_through_user_errors_only():
    parser = Parser(prog="x.py")
    parser.add_argument("--count", type=int)
    with user_error("--count", "x.py --help"):
        parser.resolve(["--count", "many"], lambda _: {})
