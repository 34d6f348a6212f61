"""What a run left can be opened in one line, and answers as it did when the run ended."""

import argparse

import pytest
import torch
from conftest import ROOT, user_error
from programs import FOLDER, LENET, NAME, QUICK, SMALL, few_digits, finished  # noqa: F401
from small_run import SmallRun

import registry
from datafree import files
from datafree.reporting.run_networks import RunNetworks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the attack."""
    root = tmp_path_factory.mktemp("runs")
    finished([*SMALL.split(), "--precision", "fp32", "--run_root", root, "--hl", "--p_width", "4"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the teacher's path is relative, as the run was given it
        yield RunNetworks(root / NAME.replace("anew", "anew-hl"), registry, "cpu", "fp32")


def test_networks_are_those_of_the_files_frozen_and_in_eval_mode(run):
    named = ("student_last.pth", run.student.network), ("gan_reuse.pth", run.generator.g2)
    for file, network in (*named, ("gan_abandon.pth", run.generator.g1), ("decoder.pth", run.generator.d)):
        saved = files.load(run.path / file)["state_dict"]
        assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    for network in (run.teacher, run.student, run.generator):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert run.generator(torch.randn(2, run.nz)).shape == (2, 3, 32, 32)


def test_student_and_teacher_score_on_pixels_what_the_summary_says(run):
    for network, key in ((run.student, "accuracy_last"), (run.teacher, "accuracy_teacher")):
        predicted, true = run.predict(network, run.real_images())
        assert 100 * (predicted == true).double().mean().item() == pytest.approx(run.run.summary[key])


@pytest.mark.slow
def test_a_teacher_of_several_sets_of_weights_is_the_one_that_the_run_had(tmp_path):
    state = torch.load(LENET, weights_only=True)["state_dict"]
    other = state | {"fc2.bias": state["fc2.bias"] + 1}
    torch.save({"model": state, "model_ema": other, "args": argparse.Namespace(lr=0.1)}, tmp_path / "t.pth")
    line = [*QUICK, "--run_root", tmp_path, "--teacher_path", tmp_path / "t.pth"]
    for tag, more, taken, bias in (
        ("a", [], "model", state),
        ("b", ["--teacher_weights", "model_ema"], "model_ema", other),
    ):
        finished([*line, "--tag", tag, *more])
        folder = tmp_path / f"{FOLDER}-{tag}"
        log = (folder / "log.txt").read_text().splitlines()
        remarks = [text.partition(": ")[2] for text in log if text.startswith(f"teacher checkpoint {tmp_path}/t.pth: ")]
        assert remarks[0] == f"took the weights under {taken}"
        assert remarks[-1] == "holds other objects, which were not made: argparse.Namespace"
        assert any("model_ema (--teacher_weights" in remark for remark in remarks) == (tag == "a")
        teacher = RunNetworks(folder, registry, "cpu", "fp32").teacher
        assert torch.equal(teacher.state_dict()["fc2.bias"], bias["fc2.bias"])


def test_perturbed_pixels_are_those_that_p_asks_for_within_its_bound(run):
    x, (P, bound) = torch.rand(5, 3, 32, 32), run._attack
    normalised = (x - run.teacher.mean) / run.teacher.std
    torch.testing.assert_close(run.perturb(x), (x + bound * P(normalised)).clamp(0, 1))
    assert (run.perturb(x) - x).abs().max() <= 25 / 255 + 1e-6


def test_the_next_task_s_generator_has_a_fresh_g1_beside_the_named_network_and_the_decoder(tmp_path):
    run, z = SmallRun(tmp_path), torch.randn(3, 6)
    kept, other = run.generator_of_next_task(7), run.generator_of_next_task(7, abandoned=True)
    assert torch.equal(kept.g2(z), run.generator.g2(z)) and torch.equal(other.g2(z), run.generator.g1(z))
    assert torch.equal(kept.g1(z), other.g1(z)) and not torch.equal(kept.g1(z), run.generator.g1(z))
    assert torch.equal(kept.d(kept.g1(z)), run.generator.d(kept.g1(z)))


def test_a_run_without_attack_has_no_p(tmp_path):
    run = SmallRun(tmp_path)
    del run._attack
    with user_error("gap.pth"):
        run.perturb(torch.rand(1, 3, 8, 8))
