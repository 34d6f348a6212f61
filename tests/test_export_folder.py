"""An export and the folder that it goes into: refused whole, replaced whole, of any run."""

import dataclasses
import json
import os
import resource
import shutil
import sys

import pytest
import torch
from conftest import CLASSES, small_classifier, user_error
from programs import (  # noqa: F401 (few_digits: a fixture)
    SCRATCH_FOLDER,
    TINY_SCRATCH,
    error_of,
    few_digits,
    finished,
    json_of,
    tree,
)
from test_export import PROGRAM, need_onnx, quick, run, timm_vit  # noqa: F401 (run: a fixture)
from torch import nn

import train_scratch
from datafree import files
from datafree.export import exporting, formats
from datafree.export.exporting import export
from datafree.models.classifier import Classifier


def test_the_student_is_left_as_it_was(tmp_path):
    student, origin = quick()
    student.train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    kind = type(student.network.fc)
    export(student, origin, ["safetensors"], tmp_path / "out")
    assert student.training and type(student.network.fc) is kind
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_a_student_that_cannot_be_copied_is_refused_in_one_line(tmp_path):
    student, origin = quick()
    student.network.kept = (each for each in ())  # a generator, which nobody copies
    with user_error("small cannot be copied"):
        export(student, origin, ["safetensors"], tmp_path / "out")


def test_timm_loads_from_a_place_whose_name_would_mean_something_in_an_address(tmp_path):
    student, origin = timm_vit()
    export(student, origin, ["safetensors"], tmp_path / "a b#c?d/out")
    assert (tmp_path / "a b#c?d/out/model.safetensors").exists()


def test_a_card_of_a_student_without_test_images_says_what_agreement_is_of(tmp_path):
    student, origin = quick()
    told = dataclasses.replace(origin, teacher="vgg11", method="anew", agreement=88.5)
    export(student, told, ["safetensors"], tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "for 88.50 % of synthetic images" in card and "accuracy on real images was not measured" in card
    assert "model-index" not in card


def test_an_export_that_answers_otherwise_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    def spoilt(subject, folder):
        with torch.no_grad():
            other = small_classifier(1)
            formats.write_safetensors(dataclasses.replace(subject, student=other), folder)

    safetensors = formats.FORMATS["safetensors"]
    monkeypatch.setitem(formats.FORMATS, "safetensors", dataclasses.replace(safetensors, write=spoilt))
    student, origin = quick()
    with user_error("safetensors export of small answers otherwise", "largest difference", "0.0001"):
        export(student, origin, ["safetensors"], tmp_path / "out")
    assert tree(tmp_path) == {}
    export(student, origin, ["safetensors"], tmp_path / "out", tolerance=1e9)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    student, origin = quick()
    student.network.fc.bias.data[0] = float("nan")
    with user_error("answers otherwise", "nan"):
        export(student, origin, ["safetensors"], tmp_path / "out")
    assert tree(tmp_path) == {}


class Branching(nn.Module):
    """Its way depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(x if x.sum() > 0 else -x)


class OfTwo(nn.Module):
    """Takes two images at a time, no more and no fewer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.fc(x.mean((2, 3)).view(2, 3))


@pytest.mark.parametrize("network", [Branching, OfTwo])
@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_network_that_is_no_graph_is_refused_in_one_line_and_leaves_nothing(network, name, tmp_path, capfd):
    if name == "onnx":
        need_onnx()
    student, origin = Classifier(network(), "odd", CLASSES, 8, (0.5,) * 3, (0.5,) * 3), quick()[1]
    with user_error("odd cannot be written as a graph", "safetensors"):
        export(student, origin, [name], tmp_path / "out")
    assert tree(tmp_path) == {} and capfd.readouterr() == ("", "")


def test_a_missing_library_is_asked_for_by_name_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    student, origin = quick()
    with user_error("exporting to onnx needs", "onnxscript", "pip install -r requirements-models.txt"):
        export(student, origin, ["safetensors", "onnx"], tmp_path / "out")
    assert tree(tmp_path) == {}


def test_a_pytorch_that_is_too_old_for_a_format_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.6.0+cpu"))
    student, origin = quick()
    with user_error("exporting to onnx needs PyTorch 2.7", "2.6.0"):
        export(student, origin, ["onnx"], tmp_path / "out")
    assert tree(tmp_path) == {}


def test_a_folder_with_something_in_it_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    before = tree(tmp_path)
    assert "out is not empty" in error_of([run, "--out", tmp_path / "out"], PROGRAM)
    assert "holds no export" in error_of([run, "--out", tmp_path / "out", "--overwrite"], PROGRAM)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in error_of([run, "--out", tmp_path / "file"], PROGRAM)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert "link to nothing" in error_of([run, "--out", tmp_path / "link"], PROGRAM)
    (tmp_path / "link").unlink()
    assert f"name the run folder, {run}" in error_of([run / "best.pth"], PROGRAM)
    assert "is a file" in error_of([run, "--out", tmp_path / "file", "--overwrite"], PROGRAM)
    (tmp_path / "file").unlink()
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_overwrite_replaces_an_export_whole_and_leaves_other_files_alone(tmp_path):
    student, origin = quick()
    out = tmp_path / "out"
    export(student, origin, ["safetensors", "torch_export"], out)
    (out / "notes.txt").write_text("mine")
    before = tree(out)
    with user_error("is not empty", "--overwrite"):
        export(student, origin, ["torch_export"], out)
    assert tree(out) == before
    export(student, origin, ["torch_export"], out, overwrite=True)
    assert tree(out).keys() == {"README.md", "config.json", "model.pt2", "notes.txt"}
    assert (out / "notes.txt").read_text() == "mine"


def test_a_clone_that_is_still_empty_can_be_filled(tmp_path):
    (tmp_path / "out/.git").mkdir(parents=True)
    student, origin = quick()
    export(student, origin, ["safetensors"], tmp_path / "out")
    assert tree(tmp_path / "out").keys() == {".git", "README.md", "config.json", "model.safetensors"}


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path):
    student, origin = quick()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with user_error("cannot write", "model.safetensors"):
            export(student, origin, ["safetensors"], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tree(tmp_path) == {}


def test_a_run_that_was_stopped_can_be_exported_and_the_card_says_so(run, tmp_path):
    begun = shutil.copytree(run, tmp_path / "begun")
    (begun / "summary.json").unlink()
    finished([begun], PROGRAM)
    config, card = json_of(begun / "export/config.json"), (begun / "export/README.md").read_text()
    assert config["origin"]["complete"] is False and "had not come to its end" in card
    assert "accuracy_teacher" not in config["origin"]
    finished([run, "--out", tmp_path / "whole"], PROGRAM)
    assert "had not come to its end" not in (tmp_path / "whole/README.md").read_text()


def test_a_run_whose_image_folder_is_gone_can_be_exported(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    config = json_of(moved / "config.json") | {"dataset": "imagefolder:/home/ann/birds", "img_size": 32}
    (moved / "config.json").write_text(json.dumps(config))
    finished([moved], PROGRAM)
    written = json_of(moved / "export/config.json")
    assert written["num_classes"] == 10 and written["origin"]["dataset"] == "birds"
    assert written["class_names"] == list("0123456789")  # as its files say


def test_a_run_without_a_student_yet_and_what_is_no_run_are_refused(run, tmp_path):
    begun = shutil.copytree(run, tmp_path / "begun", ignore=lambda *_: ["best.pth", "student_last.pth", "export"])
    assert "holds no trained student yet" in error_of([begun], PROGRAM)
    assert "is not a run folder" in error_of([tmp_path], PROGRAM)
    assert "is not a run folder" in error_of([tmp_path / "none"], PROGRAM)


def test_the_model_of_train_scratch_leaves_as_what_it_is(tmp_path):
    folder = tmp_path / SCRATCH_FOLDER
    finished([*TINY_SCRATCH, "--run_root", tmp_path, "--output", tmp_path / "t.pth"], train_scratch)
    finished([folder, "--out", tmp_path / "out"], PROGRAM)
    origin, card = json_of(tmp_path / "out/config.json")["origin"], (tmp_path / "out/README.md").read_text()
    assert "teacher" not in origin and "data-free" not in card and "trained on the images of digits" in card
    assert origin["accuracy"] == files.load(folder / "student_last.pth")["accuracy"]
    assert "has no best.pth" in error_of([folder, "--which", "best", "--out", tmp_path / "b"], PROGRAM)


def test_the_card_s_header_is_what_the_hub_reads(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    student, origin = quick()
    odd = dataclasses.replace(
        origin, name='a: "b"', dataset="it's: odd", teacher="vgg11", method="anew", accuracy=97.25
    )
    export(student, odd, ["safetensors", "torch_export"], tmp_path / "out")
    data = hub.ModelCard.load(tmp_path / "out/README.md").data
    assert data.pipeline_tag == "image-classification" and data.license is None
    assert {"data-free-knowledge-distillation", "safetensors", "torch_export"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("it's: odd", "accuracy", 0.9725)


def test_class_names_that_are_not_known_are_not_made_up(tmp_path):
    student, origin = quick()
    export(student, origin, ["safetensors"], tmp_path / "out")
    assert "class_names" not in json.loads((tmp_path / "out/config.json").read_text())
    assert "class_names" not in (tmp_path / "out/README.md").read_text()


def test_weights_of_another_memory_order_and_device_type_are_written_plain(tmp_path):
    from safetensors.torch import load_file

    student, origin = quick()
    student.to(memory_format=torch.channels_last).bfloat16()
    export(student, origin, ["safetensors"], tmp_path / "out")
    state = load_file(tmp_path / "out/model.safetensors")
    assert {value.dtype for value in state.values()} <= {torch.float32, torch.int64}
    assert torch.equal(state["conv1.weight"], student.network.conv1.weight.float())


def test_files_may_be_read_by_others(tmp_path):
    student, origin = quick()
    export(student, origin, ["safetensors"], tmp_path / "out")
    assert all(os.stat(path).st_mode & 0o444 == 0o444 for path in [tmp_path / "out", *(tmp_path / "out").iterdir()])
    assert exporting.is_export(tmp_path / "out")
