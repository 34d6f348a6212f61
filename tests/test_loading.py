"""Weights from files into networks: names and shapes match, or the first difference is said in one line."""

import pytest
import torch
from conftest import same_state, small_classifier, state_of, user_error
from torch import nn

from datafree.models.loading import load_classifier, load_into
from registry import MODELS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


@pytest.mark.parametrize(
    "wrap",
    [dict, lambda state: {"state_dict": state, "epoch": 3, "arch": "small", "more": None}],
    ids=["bare", "wrapped"],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_and_wrapped_state_dicts_with_and_without_module_prefix_load(path, wrap, prefix):
    source, model = small_classifier(1), small_classifier(2)
    content = wrap({prefix + key: value for key, value in source.state_dict().items()})
    torch.save(content, path)
    told = load_classifier(model, path)
    assert same_state(state_of(model), state_of(source))
    assert told == ({"epoch": 3, "arch": "small"} if "epoch" in content else {})


COMPLEX = torch.zeros(5, dtype=torch.complex64)
NOT_STATES = [[1, 2], {}, {"state_dict": {}}, {"state_dict": {"a": 1.0}}, {"state_dict": None}, torch.zeros(3), "text"]
CHANGES = {
    "a matrix with NaN": ({"conv2.weight": torch.full((8, 4, 3, 3), float("nan"))}, "NaN or infinite values in conv2"),
    "an infinite statistic": (
        {"bn1.running_var": torch.full((4,), float("inf"))},
        "infinite values in bn1.running_var",
    ),
    "a complex bias": ({"fc.bias": COMPLEX}, "no state_dict"),
    "a sparse matrix": ({"fc.weight": torch.ones(5, 8).to_sparse()}, "no state_dict"),
    "one tensor less": ({"fc.bias": None}, "another architecture: it lacks fc.bias"),
    "one tensor more": ({"more": torch.zeros(1)}, "another architecture: it has more"),
    "another shape": ({"conv1.weight": torch.zeros(4, 3, 5, 5)}, "another architecture: conv1.weight is (4, 3, 5, 5)"),
    "a bias alone of another height": ({"fc.bias": torch.zeros(9)}, "another architecture: fc.bias"),
    "nine classes": ({"fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)}, "9 classes, 5 are wanted"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_does_not_fit_is_refused_by_what_is_wrong_and_leaves_the_network_as_it_was(path, what):
    change, words = CHANGES[what]
    model, state = small_classifier(2), state_of(small_classifier(1)) | change
    before = state_of(model)
    torch.save({"state_dict": {key: value for key, value in state.items() if value is not None}}, path)
    with user_error("teacher checkpoint", str(path), words):
        load_classifier(model, path)
    assert same_state(state_of(model), before)


def test_a_file_without_a_state_dict_says_so(path):
    for content in (*NOT_STATES, {"epoch": 3}, {"state_dict": nn.Identity().state_dict()}):
        torch.save(content, path)
        with user_error(str(path), "no state_dict"):
            load_classifier(small_classifier(1), path)


@pytest.mark.parametrize("name", ["resnet8", "wrn16_1", "vgg8", "mobilenetv2"])
def test_another_number_of_classes_and_another_architecture_are_named_as_such(path, name):
    for state, words in ((MODELS[name](100), "100 classes, 10 are wanted"), (MODELS["resnet20"](10), "another archit")):
        with user_error(words):
            load_into(MODELS[name](10), state.state_dict(), path, "checkpoint")


def test_a_network_without_matrices_is_of_another_architecture_not_of_other_classes(path):
    with user_error("another architecture"):
        load_into(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3).state_dict(), path, "checkpoint")
