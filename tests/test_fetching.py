"""Nothing is fetched without leave; what a cache holds is used; where there is no network, one line says so soon."""

import dataclasses
import socket
import ssl
import sys
import urllib.error
import urllib.request

import pytest
import torch
import torchvision
from conftest import user_error

import registry
from datafree.models import fetching
from datafree.models.names import brings_weights

DIGITS = registry.DATASETS["digits"]
NAMES = ["torchvision:squeezenet1_1,weights=DEFAULT", "timm:test_resnet,pretrained=True", "hf:org/never-fetched"]
NAMES += ["timm:hf-hub:org/never-fetched"]
slow_but_torchvisions = [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]


def needs(name):
    """Skips where its library is not installed."""
    pytest.importorskip({"hf": "transformers"}.get(name.partition(":")[0], name.partition(":")[0]))


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    """Of torch.hub and huggingface_hub."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    constants = fetching.constants_of_hub()
    hub = sys.modules.get("transformers.utils.hub")
    if hasattr(hub, "TRANSFORMERS_CACHE"):  # of version 4, which reads the constants once
        monkeypatch.setattr(hub, "TRANSFORMERS_CACHE", str(tmp_path / "hub"))
    if constants:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.mark.parametrize("name", slow_but_torchvisions)
def test_a_name_that_was_never_fetched_asks_for_leave_and_tries_no_address(no_network, name):
    needs(name)
    with user_error(f"{name} was never fetched", "give --download"):
        registry.classifier(name, DIGITS, weights="own")
    assert not no_network


@pytest.mark.parametrize("name", slow_but_torchvisions)
def test_with_leave_and_without_a_network_one_question_is_asked_and_one_line_said(no_network, name):
    needs(name)
    with user_error(f"lacks {name}", "cannot be reached (no network in tests)", "--teacher_path"):
        registry.classifier(name, DIGITS, weights="own", download=True)
    assert len(no_network) == 1
    assert socket.getaddrinfo.__name__ == "refuse" and "fetching" not in socket.getaddrinfo.__module__  # as before


@pytest.mark.parametrize("download", [False, True])
def test_what_lies_in_the_cache_of_torch_hub_is_used(no_network, empty_caches, download):
    trained = torchvision.models.squeezenet1_1().state_dict()
    kept = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    (empty_caches / "torch/checkpoints").mkdir(parents=True)
    torch.save(trained, empty_caches / "torch/checkpoints" / kept)
    own = registry.classifier(NAMES[0], dataclasses.replace(DIGITS, num_classes=1000), weights="own", download=download)
    assert all(torch.equal(value, trained[key]) for key, value in own.network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("download", [False, True])
def test_what_lies_in_the_cache_of_huggingface_hub_is_used(no_network, empty_caches, download):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**size, image_size=16, patch_size=8, num_labels=10)
    snapshot = empty_caches / "hub/models--org--net/snapshots" / ("0" * 40)
    network = transformers.ViTForImageClassification(config)
    network.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    own = registry.classifier("hf:org/net", DIGITS, weights="own", download=download)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in own.network.state_dict().items())
    (snapshot / "model.safetensors").unlink()
    registry.classifier("hf:org/net", DIGITS, download=download)  # a student wants the configuration alone
    with user_error("hf:org/net", "--download" if not download else "check the"):
        registry.classifier("hf:org/net", DIGITS, weights="own", download=download)


@pytest.mark.slow
def test_timm_is_handed_names_of_the_hub_and_folders_which_teach_with_their_weights(
    no_network, empty_caches, monkeypatch
):
    hub = pytest.importorskip("timm.models")
    network = hub.create_model("test_resnet", num_classes=10)
    hub.save_for_hf(network, empty_caches / "net", safe_serialization=True)
    asked = []

    def fetched(repo_id, filename, **how):
        asked.append((repo_id, filename))
        return str(empty_caches / "net" / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetched)
    monkeypatch.setattr(fetching, "unreachable", lambda place: "")
    for name in ("timm:hf-hub:org/net", f"timm:local-dir:{empty_caches / 'net'}"):
        own = registry.classifier(name, DIGITS, weights="own", download=True)
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in own.network.state_dict().items())
        assert own.img_size == (160, 160)
        student = registry.classifier(name, DIGITS, download=True).network.state_dict()
        assert not torch.equal(student["fc.weight"], network.fc.weight)
    assert {repo for repo, _ in asked} == {"org/net"} and not no_network
    with user_error("no config.json in it", "check the path"):
        registry.classifier(f"timm:local-dir:{empty_caches}", DIGITS)


def test_an_answer_of_any_kind_or_an_odd_certificate_is_a_network(monkeypatch):
    said = {
        "": [urllib.error.HTTPError("x", 403, "Forbidden", {}, None), urllib.error.URLError(ssl.SSLError("odd"))],
        "timed out": [TimeoutError("timed out"), urllib.error.URLError(TimeoutError("timed out"))],
    }
    for expected, errors in said.items():
        for error in errors:
            monkeypatch.setattr(urllib.request, "urlopen", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            assert fetching.unreachable("https://example.org") == expected


def test_a_name_brings_weights_where_its_arguments_say_so():
    brings = [
        "timm:x,pretrained=True",
        "timm:x,a=(1,2),pretrained=1",
        "torchvision:x,weights=DEFAULT",
        "hf:a/b",
        "timm:hf-hub:a/b",
        "n.py:f",
    ]
    assert all(map(brings_weights, brings))
    assert not any(map(brings_weights, ["resnet8", "timm:x", "timm:x,pretrained=False", "torchvision:x,weights=None"]))
