"""What the version before wrote: its networks load and answer as they did, its runs are refused by --resume.

tests/fixtures/before/ holds a teacher of four epochs, the reusable parts of a tiny run (ngf 4, nz 16) and its config.
"""

import shutil

import pytest
import torch
from conftest import FP32
from programs import BEFORE, COLOUR, COLOUR_FOLDER, error_of, finished, json_of

import registry
from datafree.engine.evaluation import percentage_equal, predict
from datafree.models.loading import load_classifier

PATHS = ["--reuse_generator_path", BEFORE / "gan_reuse.pth", "--reuse_decoder_path", BEFORE / "decoder.pth"]


def test_its_teacher_is_as_accurate_as_it_was():
    spec = registry.DATASETS["digits"]
    teacher = registry.classifier("resnet8", spec)
    told = load_classifier(teacher, BEFORE / "digits_resnet8.pth").about
    accuracy = percentage_equal(*predict(FP32.place(teacher), spec.load("data", False, False), FP32))
    assert accuracy == pytest.approx(told["accuracy"]) and accuracy > 90


@pytest.mark.slow
def test_its_parts_are_reused(tmp_path):
    finished([*COLOUR, "--mode", "reuse_fix", *PATHS, "--reuse_pick", "g2", "--run_root", tmp_path])
    folder = tmp_path / COLOUR_FOLDER.replace("anew", "reuse_fix")
    assert json_of(folder / "config.json")["ngf"] == 4 and json_of(folder / "summary.json")["reused_network"] == "g2"
    for name in ("gan_reuse.pth", "decoder.pth"):
        before, after = (torch.load(at / name, weights_only=True)["state_dict"] for at in (BEFORE, folder))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before if "running" not in key and "num" not in key)


@pytest.mark.parametrize("form", ["the folder", "the same flags"])
def test_its_runs_are_not_resumed_and_left_as_they_are(form, tmp_path):
    folder = tmp_path / COLOUR_FOLDER
    folder.mkdir()
    shutil.copy(BEFORE / "config.json", folder)
    line = ["--resume", folder] if form == "the folder" else [*COLOUR, "--run_root", tmp_path, "--resume"]
    message = error_of(line)
    assert str(folder) in message and "another version" in message and "--overwrite" in message
    assert [file.name for file in folder.iterdir()] == ["config.json"]
