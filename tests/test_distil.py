"""Whatever networks distil is given: it works and leaves them as they came, or one line says why not."""

import contextlib

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIZE, small_network, user_error
from odd_networks import Body, Checkpointed
from test_fitting import OF_TASK, SHAPE, SHORT
from torch import nn

import datafree
from datafree.user_code import default_device


class Uncopied(Body):
    def __deepcopy__(self, memo):
        raise RuntimeError("not me")


def test_a_student_can_be_saved_whole_and_a_teacher_that_cannot_be_copied_keeps_its_weights(tmp_path):
    teacher, student = Uncopied(), small_network(2)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    with user_error("planned on copies of the networks, and teacher cannot be copied", "give --epochs"):
        datafree.distil(teacher, student, **OF_TASK, **SHORT, run_root=tmp_path, budget_teacher_passes=1000)
    assert type(student.fc) is nn.Linear and type(teacher.fc) is nn.Linear  # as they came, after a refusal, too
    datafree.distil(teacher, student, **OF_TASK, **SHORT, run_root=tmp_path)
    assert type(student.fc) is nn.Linear and type(teacher.fc) is nn.Linear
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.slow
def test_a_network_that_recomputes_its_layers_on_the_way_back_gives_the_run_of_one_that_does_not(tmp_path):
    found = []
    for kind in (Body, Checkpointed):
        teacher, student = kind(), kind()
        for network, seed in ((teacher, 1), (student, 2)):
            torch.manual_seed(seed)
            for weight in network.parameters():
                nn.init.normal_(weight)
        task = OF_TASK | {"precision": "fp32"}
        datafree.distil(teacher, student, **task, **SHORT | {"warmup": 0}, run_root=tmp_path / kind.__name__)
        found.append(student.state_dict())
    assert found[0].pop("norm.num_batches_tracked") < found[1].pop("norm.num_batches_tracked")
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items() if "running" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["dtype", "device", "context"])
def test_defaults_of_the_callers_do_not_matter_and_stay(setting, tmp_path):
    teacher, student = small_network(1), small_network(2)
    kept = torch.get_default_dtype(), default_device()
    try:
        if setting == "dtype":
            torch.set_default_dtype(torch.float64)
        if setting == "device":
            torch.set_default_device("meta")
        with torch.device("meta") if setting == "context" else contextlib.nullcontext():
            datafree.distil(teacher, student, **OF_TASK, **SHORT, run_root=tmp_path)
            made = torch.zeros(1)
        assert made.dtype == torch.float64 if setting == "dtype" else made.is_meta
    finally:
        torch.set_default_dtype(kept[0])
        torch.set_default_device(None)
    assert default_device() == kept[1]


@pytest.mark.slow
def test_a_network_of_torch_export_is_a_teacher_and_no_student(tmp_path):
    images, any_number = torch.rand(2, *SHAPE), {"x": {0: torch.export.Dim("images")}}
    kept = torch.export.export(small_network(1).eval(), (images,), dynamic_shapes=any_number).module()
    datafree.distil(kept, small_network(2), **OF_TASK, **SHORT, run_root=tmp_path / "teacher")
    with user_error("student cannot be trained: Calling train() is not supported"):
        datafree.distil(small_network(1), kept, **OF_TASK, **SHORT, run_root=tmp_path / "student")
    assert not (tmp_path / "student").exists()


class Spectral(Body):
    """A filter of complex weights."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, SIZE, SIZE // 2 + 1, dtype=torch.cfloat))

    def forward(self, x):
        return super().forward(torch.fft.irfft2(torch.fft.rfft2(x.float()) * self.w, s=x.shape[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_complex_weights_are_learnt_too(optimizer, tmp_path):
    teacher, student = Spectral(), Spectral()
    before = student.w.detach().clone()
    datafree.distil(teacher, student, **OF_TASK, **SHORT, optimizer=optimizer, run_root=tmp_path)
    assert not torch.equal(student.w, before)


COMPILED = {"script": torch.jit.script, "trace": lambda network: torch.jit.trace(network, torch.zeros(2, *SHAPE))}


@pytest.mark.slow
@pytest.mark.parametrize("how", COMPILED)
def test_a_torchscript_teacher_works_without_its_layers_and_a_torchscript_student_is_budgeted(how, tmp_path, capsys):
    teacher, student = (COMPILED[how](small_network(seed)) for seed in (1, 2))
    before = [weight.clone() for weight in teacher.parameters()]
    flags = SHORT | ({"bn": 0.0, "budget_teacher_passes": 100} if how == "trace" else {})
    found = datafree.distil(teacher, student, **OF_TASK, **flags, run_root=tmp_path)
    told = capsys.readouterr().out
    assert "teacher teacher is TorchScript, which shows no layers" in told and "the teacher has no BatchNorm" in told
    assert found.student.network is student and all(map(torch.equal, before, teacher.parameters()))


@pytest.mark.slow
def test_a_teacher_may_get_its_weights_from_a_file_and_is_not_changed(tmp_path):
    right, other = small_network(1), small_network(5)
    torch.save({"model": small_network(3).state_dict(), "ema": right.state_dict()}, tmp_path / "t.pth")
    before = [weight.clone() for weight in other.parameters()]
    how = {**OF_TASK, **SHORT, "precision": "fp32"}
    found = datafree.distil(right, small_network(2), **how, run_root=tmp_path / "1").student
    file = {"teacher_path": str(tmp_path / "t.pth"), "teacher_weights": "ema"}
    same = datafree.distil(other, small_network(2), **how, **file, run_root=tmp_path / "2").student
    assert all(map(torch.equal, found.parameters(), same.parameters()))
    assert all(map(torch.equal, before, other.parameters()))
    student = small_network(2)
    with user_error("does not exist"):
        datafree.distil(other, student, **how, teacher_path="absent.pth", run_root=tmp_path / "3")
    assert type(student.fc) is nn.Linear and not (tmp_path / "3").exists()


IMAGES, LABELS = torch.zeros(4, *SHAPE, dtype=torch.uint8), torch.arange(4, dtype=torch.int32)
BAD = {
    "dry_run": ({"dry_run": True}, "dry_run is for main.py"),
    "no such file": ({"teacher_path": "absent.pth"}, "teacher checkpoint absent.pth does not exist"),
    "no file": ({"teacher_weights": "ema"}, "teacher_weights names weights in a file"),
    "weights of a file in what is lent": (
        {"teacher": Uncopied(), "teacher_path": "t.pth"},
        "the teacher cannot be copied",
    ),
    "no images": ({"test": (IMAGES[:0], LABELS[:0])}, "test holds no images"),
    "labels": ({"test": (IMAGES, LABELS + 3)}, f"labels beyond 0..{CLASSES - 1}"),
    "no tensors": ({"test": [IMAGES.float(), LABELS]}, "test is no set of images"),
    "classes in words": ({"num_classes": str(CLASSES)}, f"num_classes is '{CLASSES}'"),
    "classes as a fraction": ({"num_classes": float(CLASSES)}, f"num_classes is {CLASSES}.0"),
    "no classes": ({"num_classes": 0}, "num_classes is 0"),
    "a list": ({"lr": [0.1]}, "--lr: [0.1] is not a number"),
    "one that cannot be copied": (dict.fromkeys(("teacher", "student"), Uncopied()), "share weights, and cannot be"),
    "no values": ({"student": Body().to("meta")}, "the student has no values"),
    "a name": ({"teacher": "resnet20"}, "the teacher is a str"),
    "no weights yet": (
        {"teacher": nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))},
        "lazy layers, without weights",
    ),
}


@pytest.mark.parametrize(("given", "words"), BAD.values(), ids=BAD)
def test_what_distil_cannot_use_is_refused_in_one_line(tmp_path, given, words):
    networks = {"teacher": small_network(1), "student": small_network(2)} | given
    with user_error(words):
        datafree.distil(**OF_TASK | SHORT | networks, run_root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_single_numbers_other_integers_and_lists_are_taken(tmp_path):
    how = OF_TASK | {"test": [IMAGES, LABELS], "teacher_mean": 0.5, "student_img_size": np.int64(9)}
    found = datafree.distil(small_network(1), small_network(2), **how, **SHORT, run_root=tmp_path)
    assert 0 <= found.results["accuracy_last"] <= 100
