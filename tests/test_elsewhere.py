"""Runs begun in one folder and gone on with in another, after their files have moved or are gone."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from programs import (  # noqa: F401
    FOLDER,
    LENET,
    OF_LENET,
    QUICK,
    SMALL_SCRATCH,
    at_epoch,
    error_of,
    few_digits,
    finished,
    json_of,
    run,
    tree,
)

import registry
import train_scratch
from datafree.models.checksum import checksum
from datafree.reporting.run_networks import RunNetworks
from scripts.kill_test import differences

HERE = ["--teacher_path", "t.pth"]  # in the folder that a run starts from
OWN = "--method own.py:Pixels --synthesis_batch_size 8 --steps 2 --epochs 3 --warmup 1 --kd_steps 2 --precision fp32"
METHOD = (ROOT / "docs/pixels.py").read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A tiny run left alone, and one that reuses what it left with a g2 of another width."""
    root = tmp_path_factory.mktemp("alone")
    finished([*QUICK, "--run_root", root])
    finished([*QUICK, "--ngf", "6", "--mode", "reuse_fix", "--run_root", root])
    return root


def stopped(line, where, at_epoch):  # noqa: F811
    """A run from that folder, which a signal ends in its second epoch."""
    at_epoch(2)
    status, _, stderr = run(line, where=where)
    assert status == 143, stderr


@pytest.fixture
def begun(tmp_path, at_epoch):  # noqa: F811
    """A run that was begun in a folder of its own, by relative paths, and stopped after two of three epochs."""
    home = tmp_path / "home é"
    home.mkdir()
    shutil.copy(LENET, home / "t.pth")
    line = [*QUICK, *HERE]
    stopped(line, home, at_epoch)
    return home, home / "run" / FOLDER


def test_every_path_in_config_json_is_from_the_root(begun):
    home, folder = begun
    config = json_of(folder / "config.json")
    assert (config["teacher_path"], config["run_root"], config["data_root"]) == tuple(
        f"{home}/{name}" for name in ("t.pth", "run", "data")
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["from the root folder", "by a relative path from above", "with the same flags again"])
def test_a_run_goes_on_from_any_folder_and_ends_as_if_left_alone(how, begun, alone):
    home, folder = begun
    line, where = {
        "from the root folder": (["--resume", folder], "/"),
        "by a relative path from above": (["--resume", f"{home.name}/run/{FOLDER}"], home.parent),
        "with the same flags again": ([*QUICK, *HERE, "--resume"], home),
    }[how]
    finished(line, where=where)
    assert differences(alone / FOLDER, folder) == []


@pytest.mark.slow
def test_a_project_that_moved_as_a_whole_goes_on_by_folder_and_by_flags(begun, alone):
    home, _ = begun
    moved = home.rename(home.parent / "moved")
    shutil.copytree(moved, moved.parent / "again")
    for at, line in (
        (moved, ["--resume", f"run/{FOLDER}"]),
        (moved.parent / "again", [*QUICK, *HERE, "--resume"]),
    ):
        finished(line, where=at)
        assert differences(alone / FOLDER, at / "run" / FOLDER) == []
    assert not home.exists()


@pytest.mark.slow
def test_a_teacher_that_has_moved_is_named_anew_and_the_run_ends_as_if_left_alone(begun, alone, tmp_path):
    home, folder = begun
    (home / "t.pth").rename(tmp_path / "b.pth")
    before = tree(home)
    message = error_of(["--resume", folder], where=tmp_path)
    assert f"{home}/t.pth does not exist" in message and "--teacher_path FILE" in message and tree(home) == before
    finished(["--resume", folder, "--teacher_path", "b.pth"], where=tmp_path)
    assert differences(alone / FOLDER, folder) == []


def test_another_teacher_is_refused_wherever_it_lies(begun, tmp_path):
    home, folder = begun
    content = torch.load(LENET, weights_only=True)
    content["state_dict"]["fc2.bias"][0] += 1e-6
    torch.save(content, tmp_path / "other.pth")
    before = tree(home)
    words = f"other.pth is another teacher, by its weights or its input format, than {folder} began with"
    assert words in error_of(["--resume", folder, "--teacher_path", tmp_path / "other.pth"])
    assert tree(home) == before
    shutil.copy(tmp_path / "other.pth", home / "t.pth")  # in the very place
    assert "t.pth is another teacher" in error_of(["--resume", folder])
    assert "--dataset: there is no" in error_of(["--resume", folder, "--dataset", "imagefolder:gone"])


@pytest.mark.slow
def test_a_run_begun_before_checksums_and_paths_from_the_root_goes_on_by_its_path_alone(begun, alone, tmp_path):
    home, folder = begun
    config = json_of(folder / "config.json")
    del config["teacher_checksum"]
    config |= {"teacher_path": "t.pth", "run_root": "run", "data_root": "data"}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(home / "t.pth", home / "b.pth")
    refused = error_of(["--resume", folder, "--teacher_path", "b.pth"], where=home)
    assert "b.pth is another teacher" in refused and "then at t.pth" in refused
    finished(["--resume", f"run/{FOLDER}"], where=home)
    assert differences(alone / FOLDER, folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["the folder", "the same flags", "the same flags, paths left out"])
def test_reused_files_are_not_needed_once_a_state_is_saved(how, alone, tmp_path, at_epoch):  # noqa: F811
    shutil.copytree(alone / FOLDER, tmp_path / FOLDER)
    name = FOLDER.replace("anew", "reuse_fix")
    flags = [*QUICK, "--ngf", "6", "--mode", "reuse_fix", "--run_root", tmp_path]
    paths = ["--reuse_generator_path", tmp_path / FOLDER / "gan_reuse.pth"]
    paths += ["--reuse_decoder_path", tmp_path / FOLDER / "decoder.pth"]
    stopped(flags, ROOT, at_epoch)
    shutil.rmtree(tmp_path / FOLDER)
    again = {"the folder": ["--resume", tmp_path / name], "the same flags": [*flags, *paths, "--resume"]}
    finished(again.get(how, [*flags, "--resume"]))
    assert differences(alone / name, tmp_path / name) == []


def test_reused_files_that_are_gone_before_anything_was_saved_are_missed_by_name(alone, tmp_path):
    flags = [*QUICK, "--mode", "reuse_fix", "--run_root", tmp_path, "--resume"]
    assert "gan_reuse.pth does not exist" in error_of(flags) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_method_out_of_a_file_goes_on_from_elsewhere_and_may_be_named_anew_where_it_has_moved(tmp_path, at_epoch):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    (home / "own.py").write_text(METHOD)
    line = [*OWN.split(), *OF_LENET]
    stopped(line, home, at_epoch)
    (folder,) = (home / "run").iterdir()
    assert json_of(folder / "config.json")["method"] == f"{home}/own.py:Pixels"
    copies = [shutil.copytree(home, tmp_path / f"copy{i}") / "run" / folder.name for i in range(2)]
    finished(["--resume", folder], where="/")
    shutil.move(home / "own.py", tmp_path / "elsewhere.py")
    words = "own.py does not exist"
    assert words in error_of(["--resume", copies[0].rename(tmp_path / "alone")])
    finished(["--resume", tmp_path / "alone", "--method", "elsewhere.py:Pixels"], where=tmp_path)
    finished(["--resume", copies[1], "--method", "own.py:Pixels"], where=copies[1].parents[1])
    assert differences(folder, tmp_path / "alone") == differences(folder, copies[1]) == []


def test_a_dry_run_from_another_folder_finds_the_teacher_beside_the_program_and_prefers_one_in_that_folder(tmp_path):
    beside = ROOT / "checkpoints/pretrained/digits_resnet20.pth"
    assert f"teacher_path={beside}  " in finished(["--dry_run"], where=tmp_path)
    mine = tmp_path / "checkpoints/pretrained/digits_resnet20.pth"
    mine.parent.mkdir(parents=True)
    shutil.copy(beside, mine)
    shown = finished(["--dry_run"], where=tmp_path)
    assert "teacher_path=checkpoints/pretrained/digits_resnet20.pth  " in shown
    assert "writes to: run/anew-digits-" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}


@pytest.mark.slow
def test_the_program_called_by_its_path_stops_with_a_command_that_goes_on_from_there(tmp_path):
    line = [sys.executable, ROOT / "main.py", *QUICK, "--epochs", "300"]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for said in process.stdout:
        if said.startswith("epoch "):
            process.terminate()
            break
    stderr = process.communicate()[1]
    assert process.returncode == 143
    assert stderr.rstrip().endswith(f"go on: python {ROOT}/main.py --resume run/{FOLDER}")


@pytest.mark.slow
def test_train_scratch_goes_on_from_elsewhere_and_leaves_its_checkpoint_where_it_was_to_go(tmp_path, at_epoch):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    at_epoch(1)
    line = [*SMALL_SCRATCH.split(), "--output", "t.pth"]
    assert run(line, train_scratch, home)[0] == 143
    finished(["--resume", home / "run/scratch-digits-resnet8"], train_scratch, "/")
    assert (home / "t.pth").exists() and not os.path.exists("/t.pth")
    again = ["--resume", home / "run/scratch-digits-resnet8", "--output", tmp_path / "new.pth"]
    assert f"--output was {home}/t.pth" in error_of(again, train_scratch)


def test_a_report_finds_the_networks_of_a_run_from_another_folder_and_after_the_project_moved(
    alone, tmp_path, monkeypatch
):
    monkeypatch.chdir("/")
    shutil.copytree(alone, tmp_path / "run")
    config = json_of(tmp_path / "run" / FOLDER / "config.json")
    was = "/gone/project"
    config |= {"run_root": f"{was}/run", "teacher_path": f"{was}/t.pth", "data_root": f"{was}/data"}
    (tmp_path / "run" / FOLDER / "config.json").write_text(json.dumps(config))
    shutil.copy(LENET, tmp_path / "t.pth")
    networks = RunNetworks(tmp_path / "run" / FOLDER, registry, "cpu", "fp32")
    assert checksum(networks.teacher) == config["teacher_checksum"]
    assert networks.config["data_root"] == f"{tmp_path}/data"


def test_the_checksum_tells_weights_names_types_and_shapes_apart_and_nothing_else():
    def of(change=lambda module: None):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.BatchNorm2d(2))
        with torch.no_grad():
            change(module)
        return checksum(module)

    assert of() == of(lambda m: m[1].num_batches_tracked.add_(5)) == of(lambda m: m.eval())
    assert of() == of(lambda m: m.to(memory_format=torch.channels_last))
    changes = {
        "a weight": lambda m: m[0].weight[0, 0, 0, 0].add_(1e-6),
        "a statistic": lambda m: m[1].running_mean.add_(1),
        "a type": lambda m: m.half(),
        "a shape": lambda m: setattr(m[0], "weight", torch.nn.Parameter(m[0].weight.view(2, 2, 2, 1))),
        "a name": lambda m: m.add_module("2", m._modules.pop("1")),
    }
    assert len({of(), *(of(change) for change in changes.values())}) == 1 + len(changes)
