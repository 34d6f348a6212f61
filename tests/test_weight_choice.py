"""Of several sets of weights in one file, which one goes in."""

import pytest
import torch
from conftest import same_state, small_classifier, state_of, user_error
from test_loading import filled, source
from torch import nn

from registry import MODELS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


def several(path):
    state, other = source(), state_of(small_classifier(3))
    torch.save({"model_ema": {f"module.{key}": other[key] for key in other}, "copy": state, "model": state}, path)
    return state, other


def test_of_several_that_fit_and_differ_the_first_in_the_order_is_taken_and_the_others_are_named(path):
    state, _ = several(path)
    found, remarks = filled(path)
    assert same_state(found, state)
    assert remarks[0] == "took the weights under model"
    assert remarks[1:] == ["other weights in it fit, too: model_ema (--teacher_weights names those to take)"]


def test_a_key_takes_the_others_and_one_that_is_not_there_lists_them(path):
    _, other = several(path)
    found, remarks = filled(path, key="model_ema")
    assert same_state(found, other) and remarks == ["took the weights under model_ema"]
    with user_error("no weights under 'mod'", "there are: 'model_ema', 'copy', 'model'"):
        filled(path, key="mod")


def test_a_key_may_be_dotted_and_lead_into_the_names(path):
    state, other = source(), state_of(small_classifier(3))
    whole = {f"student.net.{key}": state[key] for key in state} | {f"teacher.net.{key}": other[key] for key in other}
    torch.save({"state_dict": whole, "epoch": 1}, path)
    found, remarks = filled(path)
    assert same_state(found, other) and remarks[0] == "took the weights under state_dict.teacher.net"
    for key in ("student", "state_dict.student", "state_dict.student.net", "student.net"):
        assert same_state(filled(path, key=key)[0], state)


def test_copies_of_which_one_is_wrapped_are_both_found(path):
    state, other = source(), state_of(small_classifier(3))
    torch.save({f"student.{k}": state[k] for k in state} | {f"teacher._orig_mod.{k}": other[k] for k in other}, path)
    assert same_state(filled(path)[0], other) and same_state(filled(path, key="student")[0], state)


def test_what_does_not_fit_does_not_stand_in_the_way_of_what_does(path):
    other = nn.Linear(3, 3).state_dict()
    torch.save({"model": other, "discriminator": MODELS["vgg8"](5).state_dict(), "z": source()}, path)
    assert same_state((found := filled(path))[0], source()) and found[1] == ["took the weights under z"]


def test_a_key_whose_weights_do_not_fit_is_refused_even_where_others_would(path):
    torch.save({"model": source(), "other": MODELS["vgg8"](5).state_dict()}, path)
    with user_error("another architecture", "(under other)"):
        filled(path, key="other")


def test_weights_in_several_dictionaries_are_put_together(path):
    state = source()
    parts = {"fc": {key[3:]: state[key] for key in state if key.startswith("fc.")}}
    parts |= {name: {key[6:]: state[key] for key in state if key.startswith(name)} for name in ("conv1", "conv2")}
    parts |= {name: {key[4:]: state[key] for key in state if key.startswith(name)} for name in ("bn1", "bn2")}
    for beside in ({}, {"epoch": torch.tensor(3)}):
        torch.save({"weights": parts | beside}, path)
        assert same_state(filled(path)[0], state)
