"""What the formats bear of what students keep: other things than tensors, infinities, complex numbers, many weights."""

import shutil

import pytest
import torch
from conftest import CLASSES, MEAN, SIZE, STD, small_classifier, small_network, user_error
from odd_networks import AlwaysDrops, Body, ExtraState, Fourier, Masked
from test_export import ALL, answers_of_card, need_onnx, quick

from datafree.export import formats
from datafree.export.exporting import export
from datafree.export.origin import Origin
from datafree.models.classifier import Classifier


def exported(network, names, out):
    student = Classifier(network, "own", CLASSES, SIZE, MEAN, STD)
    return export(student, Origin("own", "own.py:Own", "shapes"), names, out)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Masked, Fourier])
def test_masks_of_infinity_and_complex_filters_leave_in_every_format(make, tmp_path):
    need_onnx()
    assert exported(make(), ALL, tmp_path / "out").keys() == set(ALL)


@pytest.mark.slow
def test_what_is_no_tensor_stays_in_graphs_and_is_refused_by_safetensors(tmp_path):
    need_onnx()
    exported(ExtraState(), ["onnx", "torch_export"], tmp_path / "graphs")
    with user_error("keeps more than tensors, which safetensors cannot: _extra_state", "torch_export"):
        exported(ExtraState(), ["safetensors"], tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_type_that_safetensors_has_not_is_one_line(tmp_path):
    network = small_network(1)
    network.register_buffer("kept", torch.zeros(1, dtype=torch.complex128))
    with user_error("own has weights of torch.complex128, which safetensors has not"):
        exported(network, ["safetensors"], tmp_path / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_weight_that_is_worked_out_at_every_pass_leaves_in_every_format(tmp_path):
    need_onnx()
    network = Body()
    torch.nn.utils.weight_norm(network.conv)
    network(torch.rand(2, 3, SIZE, SIZE))
    assert exported(network, ALL, tmp_path / "out").keys() == set(ALL)


def test_a_student_that_answers_otherwise_each_time_is_told_so(tmp_path):
    with user_error("own answers the same images otherwise each time", "dropout"):
        exported(AlwaysDrops(), ["safetensors"], tmp_path / "out")


@pytest.mark.slow
def test_more_weights_than_an_onnx_file_holds_lie_beside_it_and_the_card_says_so(tmp_path, monkeypatch):
    need_onnx()
    monkeypatch.setattr(formats, "LARGEST_FILE", 100)  # bytes, in place of 2 GB
    student, origin = quick()
    export(student, origin, ["onnx"], tmp_path / "out")
    assert {"model.onnx", "model.onnx.data"} <= {each.name for each in (tmp_path / "out").iterdir()}
    shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "out")
    assert "`model.onnx.data`, its weights, beside it" in (tmp_path / "elsewhere/README.md").read_text()
    (logits,), pixels = answers_of_card(tmp_path / "elsewhere", monkeypatch)
    torch.testing.assert_close(logits, student.eval()(pixels), rtol=0, atol=1e-4)
    monkeypatch.undo()
    export(small_classifier(0), origin, ["onnx"], tmp_path / "elsewhere", overwrite=True)
    assert not (tmp_path / "elsewhere/model.onnx.data").exists()
