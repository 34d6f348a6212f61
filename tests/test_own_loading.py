"""What a network's own code knows of its weights: names, ties, layers made late, and what it keeps beside tensors."""

import re

import pytest
import safetensors.torch
import torch
import torchvision
from conftest import CLASSES, MEAN, STD, same_state, small_classifier, state_of, user_error
from test_loading import Thing, source
from torch import nn

from datafree.models.classifier import Classifier
from datafree.models.loading import load_classifier
from datafree.models.names import UNKNOWN, InputFormat


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


class Tied(nn.Module):
    """One layer by two names."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.b, self.z = nn.Linear(5, 5), nn.Linear(5, 4)
        self.n = self.b


@pytest.mark.parametrize("kept", ["b", "n"])
@pytest.mark.parametrize("prefix", ["", "model.", "student.module."])
def test_of_weights_that_are_tied_a_file_may_have_one_name(path, kept, prefix):
    source, network = Tied(1).state_dict(), Tied(2)
    safetensors.torch.save_file({prefix + k: v.clone() for k, v in source.items() if k[0] in (kept, "z")}, path)
    load_classifier(network, path)
    assert same_state(state_of(network), source)
    for lost in ("z.weight", f"{kept}.weight"):
        torch.save({name: value for name, value in source.items() if name[0] in (kept, "z") and name != lost}, path)
        with user_error("another architecture", lost):
            load_classifier(network, path)


class Renamed(nn.Sequential):
    """Knows what its layers were called before, and of which rank their weights were."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def _load_from_state_dict(self, state, prefix, *rest):
        for name in [name for name in state if name.startswith(f"{prefix}layer")]:
            value = state.pop(name)
            state[prefix + name.removeprefix(f"{prefix}layer")] = value[..., None, None] if value.ndim == 2 else value
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize("lead", ["", "model.module.", "state_dict/"])
def test_what_a_networks_own_loading_takes_is_its_own(path, lead):
    source, network = Renamed(1).state_dict(), Renamed(2)
    before = state_of(network)
    old = {f"layer{name}": value[..., 0, 0] if value.ndim == 4 else value for name, value in source.items()}

    def save(state):
        key, _, prefix = lead.rpartition("/")
        state = {prefix + name: value for name, value in state.items()}
        torch.save({key: state} if key else state, path)

    for wrong in ({**old, "more": old["layer0.bias"]}, {n: v.int() for n, v in old.items()}, {**old, "layer0.bias": 1}):
        save(wrong)
        with user_error("another architecture"):
            load_classifier(network, path)
    assert same_state(state_of(network), before)
    save(old)
    assert "the network's own loading" in load_classifier(network, path).remarks[0]
    assert same_state(state_of(network), source)


class Lenient(nn.Linear):
    """Says yes to everything."""

    def load_state_dict(self, state, strict=True, assign=False):
        return super().load_state_dict(state, strict=False)


def test_a_network_that_loads_whatever_it_is_given_is_still_refused_what_it_does_not_take(path):
    torch.save({"other.weight": torch.ones(2, 3), "other.bias": torch.ones(2)}, path)
    with user_error("another architecture"):
        load_classifier(nn.Sequential(Lenient(3, 2)), path)
    with user_error("another architecture"):
        load_classifier(Lenient(3, 2), path)


def test_a_dot_before_a_number_may_be_more_or_less(path):
    network = torchvision.models.DenseNet(4, (1, 1), 4, num_classes=5)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", k): v for k, v in network.state_dict().items()}
    assert old.keys() != network.state_dict().keys()
    torch.save({"state_dict": {f"module.{name}": value for name, value in old.items()}}, path)
    fresh = torchvision.models.DenseNet(4, (1, 1), 4, num_classes=5)
    load_classifier(fresh, path)
    assert same_state(state_of(fresh), network.state_dict())


def lazy(size, layers=()):
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(CLASSES), *layers)
    return Classifier(network, "lazy", CLASSES, size, MEAN, STD)


@pytest.mark.parametrize("told", ["by the data", "by the file", "by a flag"])
def test_lazy_layers_are_made_for_the_images_of_the_network_before_they_are_filled(path, told):
    source = lazy(9)
    source(torch.rand(2, len(MEAN), 9, 9))
    content = {"state_dict": source.state_dict()}
    torch.save(content | ({"input_format": source.input_format} if told == "by the file" else {}), path)
    network, before = lazy(9 if told == "by the data" else 8), torch.get_rng_state()
    load_classifier(network, path, given=InputFormat((9, 9)) if told == "by a flag" else UNKNOWN)
    assert same_state(state_of(network), state_of(source)) and torch.equal(before, torch.get_rng_state())


def test_a_lazy_network_that_takes_no_such_image_says_so(path):
    torch.save(source(), path)
    with user_error("lazy layers", "8x8"):
        load_classifier(lazy(8, [nn.Linear(CLASSES + 1, 2)]), path)
    with user_error("another architecture"):
        load_classifier(lazy(8), path)


def test_a_network_on_the_meta_device_is_filled_where_the_file_has_all_of_it(path):
    with torch.device("meta"):
        network = small_classifier(2)
    torch.save(source(), path)
    load_classifier(network, path)
    assert same_state(state_of(network), source())
    with torch.device("meta"):
        network = small_classifier(2)
        network.network.register_buffer("more", torch.ones(3), persistent=False)
    with user_error("has no values", "meta device"):
        load_classifier(network, path)


class WithExtra(nn.Linear):
    """Keeps more than tensors."""

    sign = 1.0

    def get_extra_state(self):
        return {"sign": self.sign, "seen": [torch.tensor(self.sign)]}

    def set_extra_state(self, state):
        self.sign = state["sign"]


def with_extra(sign):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), WithExtra(4, 5))
    network[1].sign = sign
    return network


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_modules_keep_beside_their_tensors_is_given_to_them(path, prefix, legacy):
    state = {prefix + key: value for key, value in with_extra(-1.0).state_dict().items()}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_classifier(network := with_extra(1.0), path)
    assert network[1].sign == -1.0 and not any("extra" in remark for remark in loaded.remarks)


def test_what_modules_keep_that_is_no_plain_data_or_wanted_by_none_is_named_and_read_past(path):
    network, state = with_extra(1.0), with_extra(-1.0).state_dict()
    for extra in ({"1._extra_state": {"sign": Thing()}}, {"1._extra_state": {Thing: 1}}):
        torch.save(state | extra, path)
        loaded = load_classifier(network, path)
        assert network[1].sign == 1.0 and f"{path}: did not take 1._extra_state: it is no plain" in loaded.remarks[-1]
    torch.save({key: value for key, value in state.items() if "extra" not in key}, path)
    assert "has no 1._extra_state" in load_classifier(network, path).remarks[0]
    torch.save(state, path)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5))
    assert "did not take 1._extra_state: the network has nothing" in load_classifier(plain, path).remarks[0]
    torch.save(state | {"1._extra_state": {"other": 1}}, path)
    with user_error("cannot be loaded", "sign"):
        load_classifier(network, path)
