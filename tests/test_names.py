"""Names of networks, and the input formats that come with them."""

import dataclasses
import json
import shutil

import pytest
import torch
import torchvision
from conftest import user_error
from torch import nn

import registry
from datafree.models.names import InputFormat, with_arguments, with_channels

DIGITS = registry.DATASETS["digits"]
HALF = (0.5, 0.5, 0.5)


def takes(classifier):
    return classifier.img_size, tuple(classifier.input_format["mean"]), tuple(classifier.input_format["std"])


def test_arguments_are_python_values_or_text_and_brackets_hold_together():
    assert with_arguments("resnet18") == ("resnet18", {})
    found = with_arguments("net,a=1,b=(1, 2,[3]),c=x.y,d=True,e=None,f=.5")
    assert found == ("net", {"a": 1, "b": (1, 2, [3]), "c": "x.y", "d": True, "e": None, "f": 0.5})
    for bad in ("net,a", "net,=1", "net,a-b=1"):
        with user_error("is no argument"):
            with_arguments(bad)


def test_what_is_given_goes_before_what_the_library_says_before_what_the_data_set_says():
    given, own = InputFormat(img_size=(8, 9)), InputFormat((224, 224), None, (0.1,), (0.2,))
    assert given.over(own) == InputFormat((8, 9), None, (0.1,), (0.2,))
    assert InputFormat(mean=(0.1, 0.2, 0.6), std=(0.3,)).for_channels(1).mean == pytest.approx((0.3,))
    assert InputFormat(mean=(0.1,), std=(0.3,)).for_channels(3) == InputFormat(None, 3, (0.1,) * 3, (0.3,) * 3)


def test_an_unknown_name_is_answered_with_the_nearest_and_with_the_other_kinds():
    with user_error("unknown model 'resnet21'", "resnet20", "timm:NAME", "FILE.py:FUNCTION"):
        registry.classifier("resnet21", DIGITS)
    for name in ("t.pth", "model.safetensors", ".."):
        with user_error(f"{name} is a file or folder, not a network's name", "--teacher_path"):
            registry.classifier(name, DIGITS)
    with user_error("unknown library 'keras'", "torchvision, timm, hf"):
        registry.classifier("keras:resnet", DIGITS)
    with user_error("torchvision has no classifier 'resnet_18'", "resnet18"):
        registry.classifier("torchvision:resnet_18", DIGITS)


def test_an_untrained_network_takes_what_the_data_set_has_unless_its_architecture_is_bound_to_a_size():
    assert takes(registry.classifier("torchvision:squeezenet1_1", DIGITS)) == ((32, 32), HALF, HALF)
    with torch.device("meta"):  # of its many weights none is made
        assert registry.classifier("torchvision:vit_b_32", DIGITS).img_size == (224, 224)


def test_weights_of_torchvision_come_with_the_size_mean_and_std_that_they_were_trained_on(monkeypatch):
    trained = torchvision.models.squeezenet1_1().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: trained)
    spec = dataclasses.replace(DIGITS, num_classes=1000)
    for weights in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        own = registry.classifier(f"torchvision:squeezenet1_1,weights={weights}", spec, weights="own")
        assert takes(own) == ((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert all(torch.equal(value, trained[key]) for key, value in own.network.state_dict().items())


def test_the_first_convolution_is_made_for_the_channels_that_are_wanted():
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False)), nn.Conv2d(4, 5, 1))
    grey = with_channels(network, 1)[0][0]
    assert (grey.weight.shape, grey.stride, grey.padding, grey.bias) == ((4, 1, 3, 3), (2, 2), (1, 1), None)
    model = registry.classifier("resnet8", DIGITS, InputFormat(channels=1))
    assert model.channels == 1 and model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert model.network.conv1.weight.shape == (16, 1, 3, 3)


def test_a_missing_library_is_asked_for_by_name(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("timm", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name, library in (("timm:resnet18", "timm"), ("hf:a/b", "transformers")):
        with user_error(f"{name} needs {library}", "pip install -r requirements-models.txt"):
            registry.classifier(name, DIGITS)


VIT = "timm:vit_tiny_patch16_224,img_size=32,patch_size=8,embed_dim=16,depth=1,num_heads=2"


@pytest.mark.slow
def test_timm_gives_its_format_to_trained_networks_and_to_those_bound_to_a_size():
    pytest.importorskip("timm")
    trained = registry.classifier("timm:test_resnet", DIGITS, weights="file")
    assert takes(trained) == ((160, 160), HALF, HALF)
    assert takes(registry.classifier("timm:test_resnet", DIGITS)) == ((32, 32), HALF, HALF)
    given = registry.classifier("timm:test_resnet", DIGITS, InputFormat((48, 48), None, (0.1,), (0.2,)), "file")
    assert takes(given) == ((48, 48), (0.1,) * 3, (0.2,) * 3)
    vit = registry.classifier(VIT, DIGITS)
    assert vit.img_size == (32, 32) and vit(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    grey = registry.classifier(VIT, DIGITS, InputFormat(channels=1))
    assert grey.channels == 1 and grey(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    with user_error("timm has no model 'resnet_18'"):
        registry.classifier("timm:resnet_18", DIGITS)
    with user_error("cannot be made", "no_such_argument"):
        registry.classifier("timm:test_resnet,no_such_argument=1", DIGITS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A transformers folder, from a configuration."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf")
    size = {"image_size": 24, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**size, intermediate_size=8, num_labels=10)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    about = {"size": {"height": 24, "width": 24}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.slow
def test_a_transformers_folder_brings_weights_size_mean_and_std(saved):
    name = f"hf:{saved}"
    own = registry.classifier(name, DIGITS, weights="own")
    assert takes(own) == ((24, 24), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    again, fresh = registry.classifier(name, DIGITS, weights="own"), registry.classifier(name, DIGITS)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(own.eval()(x), again.eval()(x)) and not torch.equal(own(x), fresh.eval()(x))
    assert takes(fresh) == ((24, 24), HALF, HALF)  # untrained: what it is bound to, and the data set's
    assert registry.teacher_file("digits", name) is None


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    """A folder that holds a configuration alone, whose size, 224, is a default."""
    transformers = pytest.importorskip("transformers")
    folder, how = tmp_path_factory.mktemp("convnext"), {"hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1]}
    transformers.ConvNextConfig(**how, architectures=["ConvNextForImageClassification"]).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_size_in_a_configuration_binds_an_untrained_network_only_where_it_takes_no_other(saved, convnext):
    student = registry.classifier(f"hf:{convnext}", DIGITS)
    assert student.img_size == (32, 32) and student.training and student.network.training
    assert student(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert registry.classifier(f"hf:{saved}", DIGITS).img_size == (24, 24)
    assert registry.classifier(f"hf:{saved},image_size=32", DIGITS).img_size == (32, 32)
    of_two = dataclasses.replace(DIGITS, num_classes=2)  # of which one logit tells
    assert registry.classifier(f"hf:{saved},num_labels=1", of_two)(torch.rand(3, 3, 24, 24)).shape == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saved", "convnext"])
def test_a_transformers_network_is_made_for_the_channels_that_are_wanted(kind, request):
    name = f"hf:{request.getfixturevalue(kind)}"
    grey = registry.classifier(name, DIGITS, InputFormat(channels=1))
    assert grey.channels == 1 and grey.network.config.num_channels == 1
    assert grey(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert registry.classifier(f"{name},num_channels=1", DIGITS).channels == 1


@pytest.mark.slow
def test_a_transformers_name_that_is_not_there_says_how_to_get_it(saved, tmp_path):
    with user_error("neither a folder nor ORG/NAME"):
        registry.classifier(f"hf:{tmp_path / 'absent'}", DIGITS, weights="own")
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with user_error("cannot be read", "check the name"):
        registry.classifier(f"hf:{tmp_path}", DIGITS, weights="own")  # no weights in it


PREPROCESSING = {  # preprocessor_config.json: mean and std of pixels in [0, 1]
    "levels are not rescaled": ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3}, 0.5, 0.2),
    "to [-1, 1] by the factor": ({"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, 0.5, 0.5),
    "not normalised": ({"do_normalize": False, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}, 0.0, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("about", "mean", "std"), PREPROCESSING.values(), ids=PREPROCESSING)
def test_rescaling_is_part_of_what_a_transformers_network_reads(saved, tmp_path, about, mean, std):
    shutil.copytree(saved, tmp_path / "net")
    (tmp_path / "net/preprocessor_config.json").write_text(json.dumps({"size": {"height": 24, "width": 24}} | about))
    own = registry.classifier(f"hf:{tmp_path / 'net'}", DIGITS, weights="own")
    assert own.input_format["mean"] == pytest.approx([mean] * 3) and own.input_format["std"] == pytest.approx([std] * 3)


@pytest.mark.slow
def test_a_transformers_folder_in_half_precision_is_read_and_one_without_a_head_or_of_another_colour_order_refused(
    saved, tmp_path
):
    transformers = pytest.importorskip("transformers")
    network = transformers.AutoModelForImageClassification.from_pretrained(saved)
    network.half().save_pretrained(tmp_path / "half")
    own = registry.classifier(f"hf:{tmp_path / 'half'}", DIGITS, weights="own").eval()
    assert own(torch.rand(2, 3, 24, 24)).shape == (2, 10)
    network.float().vit.save_pretrained(tmp_path / "body")
    with user_error("has no weights for classifier.bias, classifier.weight", "trained classifier"):
        registry.classifier(f"hf:{tmp_path / 'body'}", DIGITS, weights="own")
    shutil.copytree(saved, tmp_path / "bgr")
    (tmp_path / "bgr/preprocessor_config.json").write_text('{"do_flip_channel_order": true}')
    with user_error("reads blue before red"):
        registry.classifier(f"hf:{tmp_path / 'bgr'}", DIGITS, weights="own")


def test_what_makes_a_network_may_stand_in_a_class_and_one_that_leaves_is_told(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    @classmethod\n    def small(cls, num_classes):\n"
        "        return cls(3, num_classes)\ndef leave(num_classes):\n    raise SystemExit(3)\n"
    )
    assert registry.classifier(f"{tmp_path}/net.py:Net.small", DIGITS).network.out_features == 10
    with user_error("net.py:leave cannot be called: SystemExit: 3"):
        registry.classifier(f"{tmp_path}/net.py:leave", DIGITS)
    with user_error("has nothing called 'Net.large'"):
        registry.classifier(f"{tmp_path}/net.py:Net.large", DIGITS)


def test_torchvisions_older_argument_is_answered_with_the_newer():
    with user_error("takes weights=..., not pretrained", "weights=DEFAULT"):
        registry.classifier("torchvision:resnet18,pretrained=True", DIGITS, weights="own")


def test_a_network_of_the_users_own_whose_layers_are_lazy_is_no_trained_teacher(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))\ndef make():\n    return net"
    )
    for made in ("net", "make"):
        with user_error("gives random weights", "--teacher_path"):
            registry.classifier(f"{tmp_path}/net.py:{made}", DIGITS, weights="own")


@pytest.mark.parametrize("weights", ["V9", "True", "1", "ResNet34_Weights.DEFAULT", "ResNet18_Weights.V9"])
def test_weights_that_torchvision_does_not_have_are_answered_with_those_it_has(weights):
    with user_error(f"torchvision:resnet18 has no weights '{weights}'", "there are: IMAGENET1K_V1, DEFAULT"):
        registry.classifier(f"torchvision:resnet18,weights={weights}", DIGITS, weights="own")
