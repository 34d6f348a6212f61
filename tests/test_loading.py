"""From a file on a disk to a network: whatever dress the weights wear, they go in, or one line says why not."""

import argparse
import collections
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from conftest import same_state, small_classifier, state_of, user_error
from torch import nn
from torch.nn.utils import parametrizations, prune

from datafree.models.loading import load_classifier, load_into, state_dict_of
from registry import MODELS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


def source():
    return state_of(small_classifier(1))


def filled(path, **how):
    """A network of another seed, filled from the file; and what was remarked, without the file's name."""
    model = small_classifier(2)
    loaded = load_classifier(model, path, **how)
    before = f"teacher checkpoint {path}: "
    assert all(remark.startswith(before) for remark in loaded.remarks)
    return state_of(model), [remark.removeprefix(before) for remark in loaded.remarks]


@pytest.mark.parametrize(
    "wrap",
    [dict, lambda state: {"state_dict": state, "epoch": 3, "arch": "small", "more": None}],
    ids=["bare", "wrapped"],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_plain_and_wrapped_state_dicts_load_without_a_remark(path, wrap, prefix):
    network, model = small_classifier(1), small_classifier(2)
    content = wrap({prefix + key: value for key, value in network.state_dict().items()})
    torch.save(content, path)
    loaded = load_classifier(model, path)
    assert same_state(state_of(model), state_of(network)) and loaded.remarks == []
    assert loaded.about == ({"epoch": 3, "arch": "small"} if "epoch" in content else {})


@pytest.mark.parametrize("key", ["model", "net", "model_state_dict", "weights", "params", "module", "ema", "my_own"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_weights_are_found_under_any_key_and_the_log_says_which(path, key, legacy):
    torch.save({"epoch": 3, key: source(), "acc": 95.1}, path, _use_new_zipfile_serialization=not legacy)
    assert same_state((found := filled(path))[0], source()) and found[1] == [f"took the weights under {key}"]


def test_a_list_of_names_and_tensors_is_weights_too(path):
    torch.save({"model": list(source().items())}, path)
    assert same_state(filled(path)[0], source())


def test_weights_are_found_at_any_depth_and_beside_other_things(path):
    torch.save({"a": [{"b": ({"c": source() | {"epoch": 3, "name": "x"}},)}], "history": [[1.0, 2.0]] * 5}, path)
    state, remarks = filled(path)
    assert same_state(state, source()) and remarks == ["took the weights under a.0.b.0.c"]


class Thing:
    """Of a class that the file refers to."""

    def __init__(self):
        self.function, self.path = Thing, pathlib.Path("a")


OTHERS = {
    "a numpy number": np.float64(3),
    "a numpy array of words": np.array(["a", "b"]),
    "a namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("a")),
    "a default dictionary": collections.defaultdict(list, a=[1]),
    "an object": Thing(),
    "a function": small_classifier,
    "a set": {1, 2},
    "a device and a layout": [torch.device("cuda:0"), torch.strided],
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_what_else_lies_in_the_file_is_read_past(path, what, legacy, protocol):
    content = {"what": OTHERS[what], "state_dict": source()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    state, remarks = filled(path)
    assert same_state(state, source())
    assert all(remark.startswith("holds other objects, which were not made: ") for remark in remarks)
    assert bool(remarks) == (what in ("a namespace", "a default dictionary", "an object", "a function"))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: {"model": m, "epoch": 2}], ids="mpd")
def test_a_network_saved_whole_gives_its_weights(path, legacy, wrap):
    network = small_classifier(1).network
    network.register_buffer("kept_out", torch.ones(3), persistent=False)
    torch.save(wrap(network), path, _use_new_zipfile_serialization=not legacy)
    state, remarks = filled(path)
    assert same_state(state, source())
    assert "holds a network saved whole (" in remarks[-1] and "nothing of its code was run" in remarks[-1]


def test_optimisers_are_never_taken_for_weights(path):
    state = source()
    optimiser = torch.optim.SGD([nn.Parameter(torch.ones(2))])
    for other in (
        {"model_optimizer": state},
        {"exp_avg": state},
        {"optimG": state},
        {"lr_scheduler": state},
        {"a": {"state": state, "param_groups": []}},
    ):
        torch.save({**other, "what": optimiser}, path)
        with user_error("no state_dict"):
            load_classifier(small_classifier(2), path)
    doubled = {key: 2 * value for key, value in state.items()}
    torch.save({"optimizer": {"state": doubled, "param_groups": []}, "grad": doubled, "z": state}, path)
    assert same_state(filled(path)[0], state)


@pytest.mark.parametrize("key", ["optimal", "optimized_model", "momentum_encoder", "gradual", "string", "best_model"])
def test_a_key_that_only_sounds_like_training_holds_weights(path, key):
    torch.save({key: source()}, path)
    assert filled(path)[1] == [f"took the weights under {key}"]


def test_names_that_a_terminal_would_obey_are_shown_harmless(path):
    torch.save({"a\x1b[2Jb\nc": source(), "args": argparse.Namespace()}, path)
    assert filled(path)[1][0] == "took the weights under a?[2Jb?c"


# Names


@pytest.mark.parametrize("wrap", [dict, lambda all: {"state_dict": all}], ids="bw")
def test_single_numbers_of_a_training_beside_the_weights_are_passed_over_and_said_and_others_are_not(path, wrap):
    more = {"epoch": torch.tensor(3), "best_acc1": torch.tensor([91.0]), "n": torch.tensor(5)}
    torch.save(wrap(source() | more), path)
    assert same_state(filled(path)[0], source())
    assert filled(path)[1][-1] == "passed over beside the network's names: epoch, best_acc1, n"
    for other in ({"logit_scale": torch.tensor(1.0)}, {"epoch": torch.ones(2)}, {"conv1.step": torch.tensor(1)}):
        torch.save(wrap(source() | other), path)
        with user_error("it has 1 names more than the network"):
            filled(path)


def test_what_lies_beside_the_networks_prefix_is_passed_over_and_said(path):
    state = {f"model.{key}": value for key, value in source().items()} | {"criterion.weight": torch.ones(5)}
    torch.save({"state_dict": state}, path)
    assert filled(path)[1] == [
        "took the weights under state_dict.model",
        "passed over beside the network's names: criterion.weight",
    ]


@pytest.mark.parametrize("left_over", [False, True])
def test_counters_may_be_missing_and_are_0_then_or_be_left_over(path, left_over):
    state = {key: value for key, value in source().items() if "num_batches" not in key}
    more = {"bn1.total_ops": torch.ones(1), "total_params": torch.ones(1), "fc.num_batches_tracked": torch.tensor(3)}
    torch.save(state | (more if left_over else {}), path)
    model = small_classifier(2)
    model.network.bn1.num_batches_tracked.fill_(7)
    load_classifier(model, path)
    found = state_of(model)
    assert found["bn1.num_batches_tracked"] == 0 and same_state({key: found[key] for key in state}, state)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("new", [True, False], ids=["new in the network", "old in the network"])
def test_both_names_of_weight_normalisation_mean_the_same(path, new):
    def network(seed, is_new):
        torch.manual_seed(seed)
        how = nn.utils.parametrizations.weight_norm if is_new else nn.utils.weight_norm
        return nn.Sequential(how(nn.Linear(3, 4)), how(nn.Linear(4, 2)))

    theirs, ours, x = network(1, not new), network(2, new), torch.randn(5, 3)
    torch.save(theirs.state_dict(), path)
    load_classifier(ours, path)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    "change", [prune.l1_unstructured, parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_weights_that_are_pruned_or_normalised_are_called_that(path, change):
    theirs = small_classifier(1).network
    change(theirs.conv1, "weight", *([0.5] if change is prune.l1_unstructured else []))
    torch.save(theirs.state_dict(), path)
    with user_error("lacks 1 of 14 names (conv1.weight", "its weights are pruned or normalised: do the same"):
        load_classifier(small_classifier(1), path)


# Types


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_it_is_said(path, kind):
    torch.save({key: value.to(kind) if value.is_floating_point() else value for key, value in source().items()}, path)
    state, remarks = filled(path)
    assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())
    torch.testing.assert_close(state["fc.weight"], source()["fc.weight"].to(kind).float(), rtol=0, atol=0)
    assert remarks == [f"weights cast from {str(kind).removeprefix('torch.')}"]


def test_parameters_and_numpy_arrays_are_weights_as_tensors_are(path):
    network = small_classifier(1)
    torch.save({"weights": dict(network.network.named_parameters()) | dict(network.network.named_buffers())}, path)
    assert same_state(filled(path)[0], source())
    torch.save({"weights": {key: value.numpy() for key, value in source().items()}}, path)
    assert same_state(filled(path)[0], source())


def quantised(x):
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


ODD = {
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
    "quantised": quantised,
    "on the meta device": lambda x: x.to("meta"),
    "of whole numbers (int8)": lambda x: x.to(torch.int8),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("beside", [1, argparse.Namespace()], ids=["data", "object"])
@pytest.mark.filterwarnings("ignore")  # PyTorch's on quantisation
def test_tensors_that_no_network_here_takes_are_called_what_they_are(path, what, beside):
    state = source()
    torch.save({"state_dict": state | {"fc.weight": ODD[what](state["fc.weight"])}, "beside": beside}, path)
    with user_error("teacher checkpoint", str(path), f"fc.weight is {what}"):
        filled(path)


# What does not fit

NOT_STATES = [[1, 2], {}, {"state_dict": {}}, {"state_dict": {"a": 1.0}}, {"state_dict": None}, torch.zeros(3), "text"]
CHANGES = {
    "a matrix with NaN": ({"conv2.weight": torch.full((8, 4, 3, 3), float("nan"))}, "NaN or infinite values in conv2"),
    "an infinite statistic": (
        {"bn1.running_var": torch.full((4,), float("inf"))},
        "infinite values in bn1.running_var",
    ),
    "one tensor less": ({"fc.bias": None}, "another architecture: it lacks 1 of 14 names (fc.bias;"),
    "one tensor more": ({"more": torch.zeros(1)}, "another architecture: it has 1 names more than the network (more;"),
    "another shape": ({"conv1.weight": torch.zeros(4, 3, 5, 5)}, "another architecture: conv1.weight is (4, 3, 5, 5)"),
    "a bias alone of another height": ({"fc.bias": torch.zeros(9)}, "another architecture: fc.bias"),
    "nine classes": ({"fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)}, "9 classes, 5 are wanted"),
    "one channel": ({"conv1.weight": torch.zeros(4, 1, 3, 3)}, "takes 1 channel in the file, 3 here (conv1.weight"),
    "both": (
        {"conv1.weight": torch.zeros(4, 1, 3, 3), "fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)},
        "takes 1 channel in the file, 3 here (conv1.weight, its first convolution) and has 9 classes, 5 are wanted",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_does_not_fit_is_refused_by_what_is_wrong_and_leaves_the_network_as_it_was(path, what):
    change, words = CHANGES[what]
    model, state = small_classifier(2), source() | change
    before = state_of(model)
    torch.save({"state_dict": {key: value for key, value in state.items() if value is not None}}, path)
    with user_error("teacher checkpoint", str(path), words):
        load_classifier(model, path)
    assert same_state(state_of(model), before)


def test_a_first_convolution_of_other_channels_names_the_flag(path):
    torch.save(source() | {"conv1.weight": torch.zeros(4, 1, 3, 3)}, path)
    with user_error("--teacher_channels 1"):
        filled(path)


def test_a_file_without_a_state_dict_says_so(path):
    for content in (*NOT_STATES, {"epoch": 3}, {"state_dict": nn.Identity().state_dict()}, argparse.Namespace(a=1)):
        torch.save(content, path)
        with user_error(str(path), "no state_dict"):
            load_classifier(small_classifier(1), path)


@pytest.mark.parametrize("name", ["resnet8", "wrn16_1", "vgg8", "mobilenetv2"])
def test_another_number_of_classes_and_another_architecture_are_named_as_such(path, name):
    for state, words in ((MODELS[name](100), "100 classes, 10 are wanted"), (MODELS["resnet20"](10), "another archit")):
        with user_error(words):
            load_into(MODELS[name](10), state.state_dict(), path, "checkpoint")


def test_a_head_that_is_a_1x1_convolution_has_classes_too(path):
    def network(classes):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1), nn.AdaptiveAvgPool2d(1))

    with user_error("7 classes, 5 are wanted"):
        load_into(network(5), network(7).state_dict(), path, "checkpoint")


def test_a_network_without_matrices_is_of_another_architecture_not_of_other_classes(path):
    with user_error("another architecture"):
        load_into(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3).state_dict(), path, "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet8 resnet20 resnet32", "wrn16_1 wrn40_1", "vgg8 vgg11 vgg13"])
def test_another_depth_of_a_family_never_loads(path, family):
    for saved in family.split():
        torch.save({"model": {f"module.{k}": v for k, v in MODELS[saved](10).state_dict().items()}}, path)
        for wanted in family.split():
            if wanted == saved:
                load_classifier(MODELS[wanted](10), path)
            else:
                with user_error("another architecture"):
                    load_classifier(MODELS[wanted](10), path)


def test_infinity_that_the_network_itself_has_in_that_place_is_none_of_the_files(path):
    def masked(side):
        network = small_classifier(1)
        network.network.register_buffer("mask", torch.triu(torch.full((3, 3), -torch.inf), side))
        return network

    torch.save(masked(1).state_dict(), path)
    load_classifier(masked(1), path)
    with user_error("NaN or infinite values in mask"):
        load_classifier(masked(2), path)


def test_complex_weights_go_into_a_network_that_has_such_and_must_be_finite(path):
    def fourier(value):
        network = small_classifier(1)
        network.network.filter = nn.Parameter(torch.full((2, 3), value, dtype=torch.complex64))
        return network

    ours = fourier(0)
    torch.save(fourier(1 + 2j).state_dict(), path)
    load_classifier(ours, path)
    assert ours.network.filter.tolist() == [[1 + 2j] * 3] * 2
    torch.save(fourier(complex(0, torch.nan)).state_dict(), path)
    with user_error("NaN or infinite values in filter"):
        load_classifier(ours, path)


GOOD = {"img_size": 9, "mean": [0.5], "std": [2.0]}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"mean": each} for each in (0.5, None, "abc", ["a"], [0.5, 0.5], [123.0], [-1.0], [torch.nan], [True], [])),
        *({"std": each} for each in ([0.0], [torch.inf], [1.0] * 3, torch.ones(1))),
        *({"img_size": each} for each in ("32", None, [3, 32, 32], [0, 9], 9.5, True, torch.ones(2))),
        None,
    ],
    ids=str,
)
def test_an_input_format_that_this_program_did_not_write_is_read_past_and_named(path, wrong):
    network = small_classifier(2)
    before = network.input_format
    torch.save({"state_dict": source(), "input_format": [1.0] if wrong is None else GOOD | wrong}, path)
    assert "input_format is none of this program's" in load_classifier(network, path).remarks[-1]
    assert network.input_format == before
    torch.save({"state_dict": source(), "input_format": GOOD}, path)
    assert load_classifier(network, path).remarks == [] and network.input_format["img_size"] == [9, 9]


@pytest.mark.parametrize("content", [{}, {"what": Thing()}], ids=["plain", "with an object"])
@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_file_that_was_packed_anew_is_read(path, content, how):
    torch.save(content | {"state_dict": source()}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    assert same_state(filled(path)[0], source())
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + bytes(50) + whole[650:])
    with user_error("is damaged"):
        filled(path)


# Files of ours


def test_our_own_files_are_taken_by_their_exact_names_alone(path):
    state = source()
    assert same_state(state_dict_of({"state_dict": state}, path, "part"), state)
    for content in ({"model": state}, state):
        with user_error("part", str(path), "no state_dict"):
            state_dict_of(content, path, "part")
    with user_error("another architecture"):
        load_into(small_classifier(2), {f"module.{key}": value for key, value in state.items()}, path, "part")
