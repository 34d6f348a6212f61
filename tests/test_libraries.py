"""Networks of torchvision, timm and transformers, from training to the exported student, through the programs."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from programs import SMALL, few_digits, finished, script  # noqa: F401

import train_scratch
from datafree import user_code
from datafree.export import formats

pytestmark = pytest.mark.slow
VIT = "timm:vit_tiny_patch16_224,img_size=32,patch_size=8,embed_dim=16,depth=1,num_heads=2"
TRAIN = ["--dataset", "digits", "--epochs", "1", "--batch_size", "32", "--precision", "fp32"]
# ONNX wants a newer PyTorch than the rest.
FORMATS = [name for name, each in formats.FORMATS.items() if torch.__version__ >= each.torch]


def distilled(tmp_path, teacher, student, *more):
    """The log and the folder of a short run."""
    networks = ["--teacher", teacher, "--student", student]
    log = finished([*SMALL.split(), "--precision", "fp32", "--run_root", tmp_path, *networks, *more])
    return log, next(folder for folder in tmp_path.iterdir() if folder.name.startswith("anew-"))


def exported(folder, student):
    """Into all formats; each says how far it is from the student."""
    pytest.importorskip("onnxruntime")
    said = finished([folder, "--format", *FORMATS, "--out", folder / "out"], script("export"))
    assert all(f"{name}:" in said for name in FORMATS)
    card = (folder / "out" / "README.md").read_text()
    named = Path(student.partition(",")[0].partition(":")[2]).name
    assert "pipeline_tag: image-classification" in card and named in card
    return folder / "out"


TRAINED = {  # teacher, student, what the log says of the teacher
    "torchvision": ("torchvision:squeezenet1_1", "torchvision:squeezenet1_0", "priors: tv 1, l2 0.1"),
    "timm": (VIT, "timm:test_resnet", "priors: tv 1, l2 0.1, patch 1 (the teacher has no BatchNorm statistics)"),
}


@pytest.mark.parametrize(("teacher", "student", "words"), TRAINED.values(), ids=TRAINED)
def test_a_teacher_trained_here_is_found_distilled_and_its_student_exported(tmp_path, teacher, student, words):
    pytest.importorskip("timm")
    checkpoint = tmp_path / "teacher.pth"
    finished([*TRAIN, "--model", teacher, "--output", checkpoint, "--run_root", tmp_path], train_scratch)
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["arch"] == teacher and kept["input_format"]["img_size"] == [32, 32]
    log, folder = distilled(tmp_path, teacher, student, "--teacher_path", checkpoint)
    assert words in log and "takes colour images of 32x32 pixels, mean 0.5 0.5 0.5" in log
    exported(folder, student)


def test_a_transformers_model_saved_from_a_configuration_teaches_one_and_the_student_loads_there_again(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    about = {"size": {"height": 24, "width": 24}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}
    (tmp_path / "resnet/preprocessor_config.json").write_text(json.dumps(about))
    name = f"hf:{tmp_path / 'resnet'}"
    log, folder = distilled(tmp_path, name, name)
    assert folder.name == "anew-digits-hf-resnet-hf-resnet" and "priors: bn 10" in log
    assert "takes colour images of 24x24 pixels, mean 0.4 0.5 0.6, std 0.2 0.2 0.3" in log
    out = exported(folder, name)
    again = transformers.AutoModelForImageClassification.from_pretrained(out)
    best = torch.load(folder / "best.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[key]) for key, value in again.state_dict().items())


def test_a_teacher_of_years_ago_fits_an_architecture_in_the_users_file(tmp_path):
    file = ROOT / "docs/old_resnet.py"
    state = user_code.load(f"{file}:resnet20", "model")(10).state_dict()
    old = {f"module.{key}": value for key, value in state.items() if "num_batches_tracked" not in key}
    torch.save({"state_dict": old, "best_prec1": 91.7}, tmp_path / "old.th")
    log, folder = distilled(tmp_path, f"{file}:resnet20", "resnet8", "--teacher_path", tmp_path / "old.th")
    assert "teacher: " in log and " of 64 test images, mean confidence " in log
    assert folder.name == "anew-digits-old_resnet-resnet20-resnet8"
