"""A student leaves the house as a folder that others can use, and answers there as it did here."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import CLASSES, MEAN, ROOT, SIZE, STD, small_classifier, small_network
from PIL import Image
from programs import (  # noqa: F401 (few_digits: a fixture)
    COLOUR,
    COLOUR_FOLDER,
    error_of,
    few_digits,
    finished,
    json_of,
    script,
)

import datafree
import registry
from datafree import files
from datafree.export import formats
from datafree.export.exporting import export
from datafree.export.origin import Origin, command_of, origin_of, student_of
from datafree.models.classifier import Classifier
from datafree.models.names import InputFormat, network_of
from datafree.paths import portable

ALL = ["safetensors", "onnx", "torch_export"]
PROGRAM = script("export")


def need(*modules):
    for module in modules:
        pytest.importorskip(module)


def need_onnx():
    need("onnx", "onnxscript", "onnxruntime")
    if torch.__version__ < formats.FORMATS["onnx"].torch:
        pytest.skip("a PyTorch that writes no ONNX with the onnxscript of today")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished tiny run."""
    root = tmp_path_factory.mktemp("runs")
    finished([*COLOUR, "--run_root", root])
    return root / COLOUR_FOLDER


def blocks(folder):
    """The Python blocks of a model card."""
    return [part.partition("```")[0] for part in (folder / "README.md").read_text().split("```python\n")[1:]]


def answers_of_card(folder, monkeypatch, path=None):
    """The logits that each block of the card gives for an image.png, and the pixels (1, C, H, W) of that image."""
    channels, (height, width) = (
        json_of(folder / "config.json")["input_format"][key] for key in ("channels", "img_size")
    )
    levels = np.random.default_rng(0).integers(256, size=(height, width, channels), dtype=np.uint8)
    Image.fromarray(levels.squeeze()).save(folder / "image.png")
    monkeypatch.chdir(folder)
    for each in path or []:
        monkeypatch.syspath_prepend(each)
    answers = []
    for block in blocks(folder):
        names = {}
        exec(block, names)
        answers.append(torch.as_tensor(names["logits"]))
    (folder / "image.png").unlink()
    return answers, torch.from_numpy(levels).permute(2, 0, 1)[None] / 255


def check_card(folder, student, count, monkeypatch, path=None):
    answers, pixels = answers_of_card(folder, monkeypatch, path)
    assert len(answers) == count
    assert (student(pixels) - student(1 - pixels)).abs().max() > 0.01
    for logits in answers:
        torch.testing.assert_close(logits, student(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_from_python_is_exported_there(tmp_path, monkeypatch):
    images, labels = torch.randint(256, (40, 3, SIZE, SIZE), dtype=torch.uint8), torch.arange(40) % CLASSES
    shape = {"num_classes": CLASSES, "img_size": SIZE, "mean": MEAN, "std": STD, "test": (images, labels)}
    shape["class_names"] = ["ant", "bee", "cat", "dog", "eel"]
    length = {"epochs": 3, "warmup": 1, "kd_steps": 4, "batch_size": 8, "synthesis_batch_size": 8, "g_steps": 1}
    how = {"nz": 4, "ngf": 2, "lr": 0.05, "precision": "fp32", "device": "cpu", "run_root": tmp_path}
    found = datafree.distil(small_network(1), small_network(2), **shape, **length, **how)
    assert 'origin_of(found.folder, "last")' in error_of([found.folder], PROGRAM)
    export(found.student, origin_of(found.folder, "last"), ["safetensors"], tmp_path / "out")
    origin, card = json_of(tmp_path / "out/config.json")["origin"], (tmp_path / "out/README.md").read_text()
    with torch.no_grad():
        right = (found.student(images / 255).argmax(1) == labels).double().mean().item()
    assert origin["accuracy"] == found.results["accuracy_last"] == pytest.approx(100 * right)
    assert json_of(tmp_path / "out/config.json")["class_names"] == shape["class_names"]
    assert origin["teacher"] == "teacher" and "command" not in origin and origin["seed"] == 0
    line = "model = ...  # a SmallClassifier, as it was made for the run"
    assert line in card
    (tmp_path / "out/README.md").write_text(
        card.replace(line, "from conftest import small_network; model = small_network(3)")
    )
    check_card(tmp_path / "out", found.student, 1, monkeypatch)


@pytest.mark.slow
def test_a_run_s_student_leaves_in_all_formats_and_its_card_s_lines_give_its_logits(run, tmp_path, monkeypatch):
    need_onnx()
    out = tmp_path / "resnet8"
    said = finished([run, "--format", *ALL, "--out", out], PROGRAM)
    for name in ALL:
        assert f"{name}: largest difference from the student " in said
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "model.onnx", "model.pt2")
    }
    student, _ = student_of(run, registry)
    check_card(out, student, 3, monkeypatch, [ROOT])


def test_what_is_exported_are_the_best_weights_or_the_last(run, tmp_path):
    from safetensors.torch import load_file

    for which, file in (("best", "best.pth"), ("last", "student_last.pth")):
        finished([run, "--out", tmp_path / which, "--which", which], PROGRAM)
        theirs, ours = load_file(tmp_path / which / "model.safetensors"), files.load(run / file)["state_dict"]
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
        assert json_of(tmp_path / which / "config.json")["origin"]["weights"] == which
    finished([run, "--overwrite", "--out", tmp_path / "last"], PROGRAM)
    assert json_of(tmp_path / "last" / "config.json")["origin"]["weights"] == "best"


def test_config_and_card_say_what_the_run_s_files_say(run, tmp_path):
    finished([run, "--out", tmp_path / "out"], PROGRAM)
    config, card = json_of(tmp_path / "out/config.json"), (tmp_path / "out/README.md").read_text()
    summary, saved = json_of(run / "summary.json"), files.load(run / "best.pth")
    assert config["architecture"] == "resnet8" and config["num_classes"] == 10
    assert config["class_names"] == list("0123456789")
    takes = {"channels": 3, "img_size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    assert takes.items() <= config["input_format"].items()
    told = {"teacher": "resnet8", "method": "anew", "dataset": "digits", "epochs": 3, "seed": 0, "complete": True}
    told |= {"accuracy": saved["accuracy"], "agreement": saved["agreement"], "epoch": saved["epoch"]}
    told |= {"accuracy_teacher": summary["accuracy_teacher"], "accuracy_last": pytest.approx(summary["accuracy_last"])}
    assert told.items() <= config["origin"].items()
    for text in (f"{saved['accuracy']:.2f} %", f"{summary['accuracy_teacher']:.2f} %", f"epoch {saved['epoch']} of 3"):
        assert text in card
    assert "python main.py --teacher resnet8 --teacher_path digits_resnet8.pth" in card


def run_s_student(run, tmp_path):
    return student_of(run, registry)


def student_of_a_folder(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    student, _ = transformers_vit()
    student.network.save_pretrained(tmp_path / "vit")
    kind, config = transformers.AutoModelForImageClassification, transformers.AutoConfig
    return made(kind.from_config(config.from_pretrained(tmp_path / "vit")), portable(f"hf:{tmp_path / 'vit'}"))


@pytest.mark.slow
@pytest.mark.parametrize("make", [run_s_student, student_of_a_folder])
def test_nothing_of_this_machine_s_folders_is_in_an_export(make, run, tmp_path):
    need_onnx()
    out = tmp_path / "out"
    student, origin = make(run, tmp_path)
    export(student, origin, ALL, out)
    with zipfile.ZipFile(out / "model.pt2") as archive:
        inside = [archive.read(name) for name in archive.namelist()]
    content = b"\n".join([*(path.read_bytes() for path in out.iterdir()), *inside])
    for folder in (
        tmp_path,
        run,
        ROOT,
        Path(sys.prefix),
        Path(torch.__file__).parent,
        Path.home() / "x",
        "site-packages",
    ):
        assert str(folder).removesuffix("x").encode() not in content, folder


def test_the_command_has_the_flags_that_are_not_at_their_defaults_and_no_folder():
    defaults = {
        "mode": "anew",
        "hl": False,
        "lr": 0.1,
        "teacher_path": None,
        "run_root": "run",
        "betas": [0.5, 0.9],
        "tag": None,
    }
    config = {"program": "main.py", "mode": "reuse_fix", "hl": True, "lr": 0.1, "teacher_path": "/home/ann/a b.pth"}
    config |= {"run_root": "/scratch/ann", "betas": [0.1, 0.2], "tag": None, "defaults": defaults}
    said = "python main.py --mode reuse_fix --hl --teacher_path 'a b.pth' --betas 0.1 0.2"
    assert command_of(config) == said
    assert command_of(config | {"program": "datafree.distil"}) is None


def made(network, architecture, size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), classes=CLASSES):
    """A student of that name, in training mode and with statistics of its own, and its origin."""
    student = Classifier(network, architecture, classes, size, mean, std)
    for module in network.modules():
        module.momentum = None  # of BatchNorm: the statistics are those of what it has seen
    with torch.no_grad():
        student.train()(torch.rand(16, len(mean), *student.img_size))
        student.head.weight.mul_(50)  # logits that tell images apart
    origin = Origin(
        "student-shapes", architecture, "shapes", tuple(f"class {i}" for i in range(classes)), "vgg11", "anew"
    )
    return student, origin


def torchvision_student():
    return made(torchvision.models.resnet18(num_classes=CLASSES), "torchvision:resnet18", (32, 32))


def registry_s_torchvision_student():
    return made(registry.MODELS["mobilenetv2"](CLASSES), "mobilenetv2", (32, 32))


def timm_convnet():
    timm = pytest.importorskip("timm")
    return made(timm.create_model("test_resnet", num_classes=CLASSES), "timm:test_resnet", (32, 32))


def timm_vit():
    timm = pytest.importorskip("timm")
    how = {"img_size": 16, "patch_size": 4, "depth": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **how)
    return made(network, "timm:vit_tiny_patch16_224,img_size=16,patch_size=4,depth=2")


def transformers_vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=CLASSES, **sizes)
    return made(transformers.AutoModelForImageClassification.from_config(config), "hf:vit")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "inside"),
    [(torchvision_student, True), (timm_convnet, True), (timm_vit, False), (transformers_vit, True)],
)
def test_a_library_s_student_leaves_in_all_formats_and_its_card_s_lines_give_its_logits(
    make, inside, tmp_path, monkeypatch
):
    need_onnx()
    student, origin = make()
    out = tmp_path / "out"
    found = export(student, origin, ALL, out, inside=inside)
    assert list(found) == ALL and all(difference.relative < 1e-4 for difference in found.values())
    check_card(out, student.eval(), 3, monkeypatch)


@pytest.mark.slow
def test_a_network_of_torchvision_under_another_name_is_torchvision_s(tmp_path, monkeypatch):
    student, origin = registry_s_torchvision_student()
    export(student, origin, ["safetensors"], tmp_path / "out")
    assert json_of(tmp_path / "out/config.json")["architecture"] == "mobilenet_v2"
    check_card(tmp_path / "out", student.eval(), 1, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "library"),
    [("torchvision:squeezenet1_1", "torchvision"), ("resnet8", "pytorch"), ("timm:test_resnet", "timm")],
)
def test_a_network_made_for_grey_images_is_made_so_by_the_card_s_lines(name, library, tmp_path, monkeypatch):
    need(library.replace("pytorch", "torch"))
    network, _ = network_of(name, CLASSES, registry.MODELS, InputFormat(channels=1), "none")
    student, origin = made(network, name, (32, 32), (0.4,), (0.2,))
    export(student, origin, ["safetensors"], tmp_path / "out")
    assert f"library_name: {library}" in (tmp_path / "out/README.md").read_text()
    check_card(tmp_path / "out", student.eval(), 1, monkeypatch)


@pytest.mark.slow
def test_a_transformers_network_made_for_grey_images_is_read_by_the_card_s_lines(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=CLASSES, num_channels=1, **sizes)
    network = transformers.AutoModelForImageClassification.from_config(config)
    student, origin = made(network, "hf:vit", mean=(0.4,), std=(0.2,))
    export(student, origin, ["safetensors"], tmp_path / "out")
    check_card(tmp_path / "out", student.eval(), 1, monkeypatch)


def test_timm_s_folder_carries_input_format_and_class_names(tmp_path):
    student, origin = timm_vit()
    export(student, origin, ["safetensors"], tmp_path / "out")
    import timm

    cfg = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).pretrained_cfg
    assert tuple(cfg["input_size"]) == (3, 16, 16) and cfg["interpolation"] == "bilinear"
    assert tuple(cfg["mean"]) == (0.4, 0.5, 0.6) and tuple(cfg["std"]) == (0.2, 0.25, 0.3)
    assert list(cfg["label_names"]) == [f"class {i}" for i in range(CLASSES)]


@pytest.mark.slow
def test_transformers_folder_carries_input_format_and_class_names(tmp_path):
    student, origin = transformers_vit()
    export(student, origin, ["safetensors"], tmp_path / "out")
    from transformers import AutoConfig, AutoImageProcessor

    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == {i: f"class {i}" for i in range(CLASSES)}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    levels = np.random.default_rng(0).integers(256, size=(50, 40, 3), dtype=np.uint8)
    made_of = processor(Image.fromarray(levels), return_tensors="pt")["pixel_values"]
    assert made_of.shape == (1, 3, 16, 16)
    pixels = torch.from_numpy(levels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(made_of, student.normalise(pixels).contiguous(), rtol=0, atol=0.03)  # PIL rounds


@pytest.mark.slow
def test_grey_images_that_are_not_square_go_through_every_format(tmp_path, monkeypatch):
    need_onnx()
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 14, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from net import build

    student, origin = made(build(CLASSES), "net.py:build", (12, 16), (0.3,), (0.2,))
    export(student, origin, ALL, tmp_path / "out")
    check_card(tmp_path / "out", student.eval(), 3, monkeypatch, [tmp_path])


OF_DRESS = """
from torch import nn


class Dressed(nn.Module):
    def __init__(self, classes, dress):
        super().__init__()
        self.body, self.fc, self.dress = nn.Conv2d(3, 4, 3), nn.Conv2d(4, classes, 1), dress

    def forward(self, x):
        features = self.body(x).relu().mean((2, 3), keepdim=True)
        logits = self.fc(features)
        dresses = {"map": logits, "tuple": (logits.tanh(), logits), "dict": {"x": x, "out": {"y": logits[..., 0]}}}
        return dresses[self.dress]


def map(num_classes):
    return Dressed(num_classes, "map")


def tuple_(num_classes):
    return Dressed(num_classes, "tuple")


def dict_(num_classes):
    return Dressed(num_classes, "dict")


def one(num_classes):
    return Dressed(1, "map")
"""


@pytest.mark.parametrize(
    ("function", "classes"), [("map", CLASSES), ("tuple_", CLASSES), ("dict_", CLASSES), ("one", 2)]
)
def test_the_card_s_lines_find_the_logits_in_whatever_the_network_answers(function, classes, tmp_path, monkeypatch):
    (tmp_path / "dressed.py").write_text(OF_DRESS)
    name = f"{tmp_path / 'dressed.py'}:{function}"
    network, _ = network_of(name, classes, registry.MODELS, InputFormat(), "none")
    student, origin = made(network, portable(name), classes=classes)
    export(student, origin, ["safetensors"], tmp_path / "out")
    check_card(tmp_path / "out", student.eval(), 1, monkeypatch, [tmp_path])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:resnet18,num_classes=1", "timm:test_resnet,num_classes=1"])
def test_a_library_s_network_of_one_logit_for_two_classes_leaves_as_that(name, tmp_path, monkeypatch):
    need(name.partition(":")[0])
    network, _ = network_of(name, 2, registry.MODELS, InputFormat(), "none")
    student, origin = made(network, name, (32, 32), classes=2)
    export(student, origin, ["safetensors"], tmp_path / "out")
    check_card(tmp_path / "out", student.eval(), 1, monkeypatch)


def quick(**how):
    student = small_classifier(0, **how)
    return student, Origin("small", "small.py:SmallClassifier", "shapes")
