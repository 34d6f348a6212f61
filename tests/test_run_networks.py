"""What a run left can be opened in one line, and answers as it did when the run ended."""

import pytest
import torch
from conftest import ROOT, user_error
from programs import NAME, SMALL, finished

import registry
from datafree import checkpoint, device
from datafree.reporting.run_networks import RunNetworks

FP32 = device.choose("cpu", "fp32")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    line = [*SMALL.split(), "--precision", "fp32", "--run_root", root]
    finished(line)
    finished([*line, "--hl", "--p_width", "4"])
    return root


def opened(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the teacher's path is relative, as the run was given it
    return RunNetworks(path, registry, FP32)


def test_networks_are_those_of_the_files_frozen_and_in_eval_mode(root, monkeypatch):
    run = opened(root / NAME, monkeypatch)
    saved = checkpoint.load(root / NAME / "student_last.pth")["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in run.student.state_dict().items())
    kept = checkpoint.load(root / NAME / "gan_reuse.pth")["state_dict"]
    assert all(torch.equal(value, kept[name]) for name, value in run.generator.g2.state_dict().items())
    for network in (run.teacher, run.student, run.generator):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert run.generator(torch.randn(2, run.nz)).shape == (2, 3, 32, 32)


def test_the_student_scores_what_the_summary_says(root, monkeypatch):
    run = opened(root / NAME, monkeypatch)
    images = run.real_images()
    x = run.augmentation.normalise(images.images.float() / 255)
    accuracy = 100 * (run.student(x).argmax(1) == images.labels).double().mean().item()
    assert accuracy == pytest.approx(run.run.summary["accuracy_last"])


def test_p_comes_with_its_bound_and_is_missed_where_there_was_no_attack(root, monkeypatch):
    network, bound = opened(root / NAME.replace("anew", "anew-hl"), monkeypatch).perturbation
    assert bound == pytest.approx(25 / 255) and network(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    with user_error("gap.pth"):
        _ = opened(root / NAME, monkeypatch).perturbation
