"""The command line: spelling, help, and every mistake in one line."""

from dataclasses import fields
from pathlib import Path

import pytest
from conftest import user_error

import registry
import train_scratch
from datafree.cli.flags import distillation_configs, flags_of_others
from datafree.cli.parser import Parser
from datafree.configuration import kind_of
from datafree.methods.aeahl_rg import AeahlRg


def parser_of(program="main.py", targets="soft"):
    if program != "main.py":
        return Parser(program, "", train_scratch.CONFIGS)
    configs = distillation_configs(AeahlRg, "aeahl_rg", targets)
    return Parser(program, "", configs, flags_of_others(dict(registry.METHODS.items()), configs))


def resolve(line, **which):
    return parser_of(**which).resolve(line.split())


def example_of(each, config):
    """Words that may follow a flag, other than its default."""
    kind, items = kind_of(each, config)
    if kind is bool or each.metadata["optional_value"]:
        return []
    words = "1" if each.name.endswith("channels") else {int: "2", float: "0.25", str: "30s", Path: "a"}[kind]
    return [each.metadata["choices"][-1] if each.metadata["choices"] else words] * (
        1 if items is None else items or (each.metadata["counts"] or (2,))[-1]
    )


PARSERS = [("main.py", "soft"), ("main.py", "attack"), ("train_scratch.py", "soft")]


@pytest.mark.parametrize(("program", "targets"), PARSERS)
def test_every_flag_is_accepted_with_hyphens_and_with_underscores_and_is_in_help_with_its_default(program, targets):
    parser = parser_of(program, targets)
    text = " ".join(parser.format_help().split())
    assert "(default: 0.9)" in text and "(default: None)" not in text and "(default: False)" not in text
    for config in parser.configs.values():
        for each in fields(config):
            flag, words = f"--{each.name}", example_of(each, config)
            assert f" {flag}" in text and each.metadata["help"], flag
            found = [getattr(parser.resolve([f, *words]), each.name) for f in (flag, "--" + flag[2:].replace("_", "-"))]
            assert found[0] == found[1] != each.default, flag


def test_mixed_spellings_and_an_equals_sign_work_and_values_keep_their_hyphens():
    values = resolve("--synthesis-batch_size=8 --kd-steps 3 --tag a-b_c --teacher-path=x-y/z_w.pth")
    assert (values.synthesis_batch_size, values.kd_steps, values.tag) == (8, 3, "a-b_c")
    assert values.teacher_path == Path("x-y/z_w.pth")


def test_a_value_may_be_flags_of_another_program():
    parser = Parser("x.py", "")
    parser.add_argument("--more_flags")
    for line in (["--more-flags", "--img-size 3 --no-flip -x"], ["--more_flags=--img-size 3 --no-flip -x"]):
        assert parser.parse_args(line).more_flags == "--img-size 3 --no-flip -x"


def test_flags_with_two_names_have_one_value():
    assert resolve("--epoch 7").epochs == resolve("--epochs 7").epochs == 7 and resolve("--hard-loss").hl
    assert resolve("--model resnet34 --batch-size 256 --epoch 200", program="train_scratch.py").epochs == 200


MISTAKES = [
    ("--synthesis_batchsize 1", "unknown flag --synthesis_batchsize", "did you mean --synthesis_batch_size"),
    ("--teachr resnet20", "unknown flag --teachr", "--teacher"),
    ("--kdsteps=3", "unknown flag --kdsteps", "--kd_steps"),
    ("--kd_step 3", "unknown flag --kd_step ", "did you mean --kd_steps"),  # no abbreviations
    ("---lr 1", "unknown flag", ""),
    ("digits", "'digits'", "every value follows a flag"),
    ("-- --lr 1", "unknown flag", ""),
    ("--bn", "--bn: expected one", "main.py --help"),
    ("--adam_betas 0.5", "2 arguments", ""),
    ("--lr fast", "--lr", "'fast' is not a number"),
    ("--lr nan", "--lr", "out of range"),
    ("--bn -0.1", "--bn", "at least 0"),
    ("--epochs 1.5", "--epochs", "not a whole number"),
    ("--epochs " + "9" * 5000, "--epochs", ""),
    ("--adam_betas 0.5 1.5", "--adam_betas", "1.5 is out of range"),
    ("--mode anwe", "--mode", "choose from anew, reuse_common"),
    ("--tag a/b", "--tag", "no label"),
    ("--tag=", "--tag", ""),
    ("--dataset=", "--dataset", ""),
    ("--dataset imagefolder:", "imagefolder:PATH", ""),
    ("--save_every 3m", "--save_every", "as 30s"),
    ("--pa 0.1", "--pa belongs to the hard loss", "add --hl (without --no_aea)"),
    ("--lr-p=1", "--lr_p belongs to the hard loss", "add --hl"),
    ("--beta 0.2", "--beta belongs to the hard loss", "add --hl"),
]


@pytest.mark.parametrize(("line", "what", "remedy"), MISTAKES, ids=[row[0][:40] for row in MISTAKES])
def test_a_mistake_is_said_in_one_line(line, what, remedy):
    with user_error(what, remedy):
        resolve(line)


def test_a_flag_of_the_attack_is_refused_for_hard_labels_without_it():
    assert resolve("--beta 0.2 --hl --no_aea", targets="hard").beta == 0.2
    with user_error("--pa belongs to the hard loss", "without --no_aea"):
        resolve("--pa 0.1 --hl --no_aea", targets="hard")


def test_help_shows_the_groups_of_the_chosen_targets_only():
    soft, attack = (parser_of(targets=targets).format_help() for targets in ("soft", "attack"))
    for text, there in ((soft, False), (attack, True)):
        assert (
            ("--pa " in text) is there and ("targets attack:" in text) is there and ("targets soft:" in text) != there
        )
        assert "method aeahl_rg:" in text and "--adv ADV" in text


@pytest.mark.parametrize(("program", "targets"), PARSERS)
def test_the_printed_groups_have_every_value_once_and_config_json_has_all_with_groups_and_defaults(program, targets):
    parser = parser_of(program, targets)
    values = parser.resolve(["--lr", "0.3"])
    words, config = " ".join(parser.grouped(values)).split(), parser.config(values)
    for name in vars(values):
        assert sum(word.startswith(f"{name}=") for word in words) == 1 and name in config, name
    assert config["program"] == program and config["lr"] == 0.3
    assert sorted(name for names in config["groups"].values() for name in names) == sorted(vars(values))
    assert config["defaults"]["batch_size"] == 256 and config["defaults"].keys() == vars(values).keys()
