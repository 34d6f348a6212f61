"""A student that processes share out learns what a whole one does, and its files are those of a whole one."""

import sys
from argparse import Namespace

import pytest
import sharded
import torch
from conftest import BF16, FP16, SINCE_2_7, small_spec, user_error
from programs import COLOUR, COLOUR_FOLDER, at_epoch, epochs_of, few_digits, json_of  # noqa: F401
from sharded import KNOBS, METHODS_THAT_ASK
from test_processes import found_by_two

from datafree import processes
from datafree.engine import sharding
from datafree.job import ways
from registry import MODELS
from scripts.kill_test import differences, start, wait

ROUNDING, BY_ADAM = 1e-5, 5e-3  # which makes steps of full size of gradients that are rounding
SHARDED = [*COLOUR, "--shard", "--batch_size", "12", "--synthesis_batch_size", "12"]


@pytest.fixture(scope="module")
def on_cpus():
    if not SINCE_2_7:
        pytest.skip("FSDP2 of this PyTorch is for GPUs alone")


@pytest.fixture(scope="module")
def found(on_cpus, tmp_path_factory):
    return found_by_two(sharded, tmp_path_factory.mktemp("sharded"))


@pytest.mark.slow
@pytest.mark.parametrize("knobs", KNOBS)
def test_gradients_and_steps_are_those_of_one_process_and_of_a_whole_student_in_two(knobs, found):
    tolerance = BY_ADAM if knobs == "adamw" else ROUNDING
    for each in (each["steps"][knobs] for each in found):
        assert each["gradients"] < ROUNDING and each["one process"] < tolerance and each["DDP"] < tolerance
        assert each["apart"] == 0 and each["whole"]


@pytest.mark.slow
def test_a_process_has_a_part_of_the_weights_and_a_state_is_the_whole_students(found):
    shares = [each["shares"]["share"] for each in found]
    assert sum(shares) == pytest.approx(1) and max(shares) < 0.6
    assert all(each["shares"]["same"] for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("knobs", KNOBS)
def test_a_student_restored_from_a_file_goes_on_bit_for_bit(knobs, found):
    assert [each["restored"][knobs] for each in found] == [0, 0]


@pytest.mark.slow
def test_it_judges_images_is_evaluated_and_refuses_what_cannot_be_shared_out(found):
    for each in found:
        assert each["judge"]["gradient"] < ROUNDING and not each["judge"]["trained"]
        assert each["evaluation"] is True and each["blocks"] == ["Block", "Block"]
        assert each["methods"] == dict.fromkeys(METHODS_THAT_ASK, 0)
        assert each["refused"].startswith("the student cannot be shared out") and "\n" not in each["refused"]


@pytest.mark.parametrize(
    ("name", "kinds"), [("resnet18", 8 * ["BasicBlock"]), ("wrn16_1", 6 * ["_Block"]), ("vgg8", [])]
)
def test_of_known_networks_blocks_are_what_their_stages_are_made_of(name, kinds):
    assert [type(block).__name__ for block in sharding.blocks(MODELS[name](10))] == kinds


def ends(line, said, count):
    """How as many processes end, PyTorch's own stream as in new ones."""
    torch.manual_seed(0)
    return wait(start("main.py", line, said, count))


@pytest.fixture(scope="module")
def alone(on_cpus, tmp_path_factory):
    """Runs of two processes left alone: the student shared out, and whole in both."""
    folders = []
    for line in (SHARDED, [word for word in SHARDED if word != "--shard"]):
        root = tmp_path_factory.mktemp("alone")
        said = root / "terminal.txt"
        assert ends([*line, "--run_root", f"{root}/run"], said, 2) == [0, 0], said.read_text()
        folders.append(root / "run" / COLOUR_FOLDER)
    return folders


def student_of(folder):
    return torch.load(folder / "student_last.pth", weights_only=True)


@pytest.mark.slow
def test_a_runs_student_is_the_one_that_two_whole_ones_become_in_a_plain_file(alone):
    told = ["student: shared out over 2 processes" in (folder / "log.txt").read_text() for folder in alone]
    assert told == [True, False]
    found, expected = map(student_of, alone)
    assert found.keys() == expected.keys() and found["state_dict"].keys() == expected["state_dict"].keys()
    assert {type(value) for value in found["state_dict"].values()} == {torch.Tensor}
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=1e-4, atol=1e-5)
    assert json_of(alone[0] / "summary.json")["costs"] == json_of(alone[1] / "summary.json")["costs"]


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 1])
def test_a_stopped_run_goes_on_bit_for_bit_with_as_many_processes_and_with_others(after, alone, tmp_path, at_epoch):  # noqa: F811
    line, said = [*SHARDED, "--run_root", f"{tmp_path}/run"], tmp_path / "terminal.txt"
    folder = tmp_path / "run" / COLOUR_FOLDER
    at_epoch(2)
    assert ends(line, said, 2) == [143, 143], said.read_text()
    at_epoch(0)
    assert ends([*line, "--resume"], said, after) == [0] * after, said.read_text()
    assert epochs_of(folder) == ["1", "2", "3"] and json_of(folder / "status.json")["state"] == "finished"
    if after == 2:
        assert differences(alone[0], folder) == []
    else:
        assert "there is one process, which has the whole student" in (folder / "log.txt").read_text()


def test_what_makes_no_sense_is_said_in_a_line_and_fp16_is_refused(monkeypatch):
    asked, compiled = Namespace(shard=True, step="auto"), Namespace(shard=False, step="compiled")
    (line,) = ways(asked, BF16, small_spec()).remarks
    assert "there is one process" in line and not ways(asked, BF16, small_spec()).shard
    monkeypatch.setattr(processes, "_size", 2)
    two = ways(asked, BF16, small_spec())
    assert two.shard and "shared out over 2 processes" in two.remarks[0]
    (line,) = ways(compiled, BF16, small_spec()).remarks
    assert "not compiled as one" in line and not ways(compiled, BF16, small_spec()).compiled
    with user_error("--shard is not for --precision fp16"):
        ways(asked, FP16, small_spec())


def test_a_pytorch_without_it_is_refused_in_one_line(monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(torch.cpu, "Stream", object)
        with user_error("FSDP2 of this PyTorch is for GPUs alone", "2.7"):
            sharding.share_out(torch.nn.Linear(2, 2), torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", None)
    with user_error("--shard takes FSDP2"):
        sharding.share_out(torch.nn.Linear(2, 2), torch.device("cpu"))
