"""The plan of the paper's figure, and the same plan run to its end on digits."""

import os
import re

import launching
import pytest
import torch
from conftest import ROOT, user_error
from programs import SMALL, few_digits, json_of, run, script  # noqa: F401
from task import Ended

import main

PAIRS = ["--source", "resnet20>resnet8", "--pairs", "resnet20>resnet8", "wrn16_1:resnet8"]
TINY = f"--flags={SMALL.replace('--epochs 3', '--epochs 2')} --precision fp32"


@pytest.fixture
def reproduce(tmp_path, monkeypatch, few_digits):  # noqa: F811
    """The script on digits, each of its runs in this process."""
    monkeypatch.chdir(ROOT)
    module = script("reproduce")

    def call(*flags):
        module.main(["--datasets", "digits", *PAIRS, "--seeds", "0", "--run_root", str(tmp_path), TINY, *flags])

    return call


@pytest.fixture
def ran(monkeypatch):
    """The command lines of the runs, in order, each run in this process; one may be told to fail, by name."""
    lines, fails = [], set()

    class Here:
        def __init__(self, command, variables):
            self.flags = command[2:]

        def __call__(self):
            lines.append(" ".join(self.flags))
            fails_here = launching.folder_of(self.flags).name in fails
            status, _, said = run([*self.flags, *["--lr", "nonsense"] * fails_here], main)
            return Ended(status, said.strip())

        def stop(self, again=False):
            pass

    monkeypatch.setattr(launching, "Process", Here)
    return lines, fails


@pytest.mark.slow
def test_the_whole_plan_is_120_runs_with_every_reuse_behind_its_source(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    script("reproduce").main(["--dry_run", "--run_root", str(tmp_path)])
    printed = capsys.readouterr().out
    commands = [line for line in printed.splitlines() if line.startswith("python main.py")]
    assert len(commands) == len(set(commands)) == 5 * 2 * 2 * 2 * 3 and "120 runs, 0 of them complete" in printed
    reusing = [line for line in commands if "--mode reuse_common" in line]
    assert len(reusing) == 60 and sum("--hl" in line for line in commands) == 60
    for line in commands:
        dataset, seed = (re.search(rf"--{name} (\S+)", line)[1] for name in ("dataset", "seed"))
        source = f"anew-{dataset}-resnet34-resnet18-reproduce-s{seed}"
        assert (f"# after {source}" in line) == (f"{source}/gan_reuse.pth" in line) == (line in reusing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_dry_run_names_missing_teachers_with_the_command_for_each_and_a_run_refuses(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    script("reproduce").main(["--dry_run", "--datasets", "cifar10"])
    printed = capsys.readouterr().out
    assert "missing teachers: 3" in printed
    for teacher in ("resnet34", "vgg11", "wrn40_2"):
        command = f"python train_scratch.py --model {teacher} --dataset cifar10"
        assert f"checkpoints/pretrained/cifar10_{teacher}.pth: {command}" in printed
    with user_error("3 teachers", "train_scratch.py --model vgg11"):
        script("reproduce").main(["--datasets", "cifar10"])


@pytest.mark.slow
def test_the_plan_runs_on_digits_in_order_and_once_and_ends_in_the_table(reproduce, ran, capsys, tmp_path):
    lines, _ = ran
    reproduce()
    first = "anew-digits-resnet20-resnet8-reproduce-s0"
    assert len(lines) == 8 and "--mode anew" in lines[0] and "--teacher resnet20" in lines[0] and "--hl" not in lines[0]
    assert sum(f"{first}/decoder.pth" in line for line in lines) == 4
    printed = capsys.readouterr().out
    header, _, *rows = printed.split("\n\n**")[0].split("seeds (n)**\n\n")[1].splitlines()
    columns = ["data set", "pair", "teacher", "anew", "anew-hl", "reuse_common", "reuse_common-hl"]
    shown = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    assert shown[0][:7] == columns and [row[1] for row in shown[1:]] == ["resnet20 > resnet8", "wrn16_1 > resnet8"]
    assert all(re.fullmatch(r"\d+\.\d\d \(1\)", cell) for row in shown[1:] for cell in row[3:7])
    assert all("published" in name for name in shown[0][7:]) and {*shown[1][7:], *shown[2][7:]} == {"-"}
    assert (tmp_path / "reproduce.md").read_text() in printed and (tmp_path / "reproduce.tex").exists()
    written = [file for file in tmp_path.glob("*-s0/*") if file.name not in ("log.txt", ".lock")]
    before = [file.stat().st_mtime_ns for file in written]
    reproduce()
    assert len(written) > 8 * 10 and before == [file.stat().st_mtime_ns for file in written]
    reproduce("--dry_run")
    assert "8 runs, 8 of them complete" in capsys.readouterr().out


@pytest.mark.slow
def test_the_local_executor_starts_programs_two_at_a_time(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    line = ["--datasets", "digits", *PAIRS[:4], "--seeds", "0", "--run_root", str(tmp_path), TINY, "--jobs", "2"]
    script("reproduce").main(line)
    status = {folder.name: json_of(folder / "status.json") for folder in tmp_path.glob("*-s0")}
    assert len(status) == 4 and {each["state"] for each in status.values()} == {"finished"}
    assert len({os.getpid(), *(each["process"] for each in status.values())}) == 5
    assert "| digits | resnet20 > resnet8 |" in capsys.readouterr().out
    script("reproduce").main([*line, "--dry_run"])
    assert "4 runs, 4 of them complete" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_source_is_reported_with_what_waited_for_it_and_the_rest_is_run(reproduce, ran, capsys):
    lines, fails = ran
    fails.add("anew-digits-resnet20-resnet8-reproduce-s0")
    with user_error("5 of 8 runs failed"):
        reproduce()
    printed = capsys.readouterr().out
    assert len(lines) == 4 and printed.count("waits for anew-digits-resnet20-resnet8-reproduce-s0") == 4
    assert "nonsense" in printed and "| digits | wrn16_1 > resnet8 |" in printed


@pytest.mark.slow
def test_the_plan_as_arrays_of_slurm_needs_no_slurm_and_has_what_reuses_in_the_second(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    options = ["--slurm", "partition=gpu time=1-0 gpus_per_node=1", "--jobs", "8", "--run_root", str(tmp_path)]
    script("reproduce").main(["--dry_run", "--executor", "slurm", *options])
    first, second = capsys.readouterr().out.split("array 2, ")
    common = "--job-name=reproduce --time=1440 --signal=USR2@300 --requeue --partition=gpu --gpus-per-node=1"
    assert first.startswith(f"array 1, 60 tasks: sbatch --array=0-59%8 {common}\n  0: python main.py --mode anew")
    assert second.startswith(f"60 tasks: sbatch --array=0-59%8 {common} --dependency=afterany:<array 1>\n")
    assert first.count("--mode anew") == second.count("--mode reuse_common") == second.count("# after anew-") == 60
    assert "  59: python" in second and "120 runs, 0 of them complete; at a time: 8" in second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_gpus_are_dealt_out_one_a_run(monkeypatch):
    module = script("reproduce")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def seen(*flags):
        args = module.arguments(["--datasets", "digits", *PAIRS, "--seeds", "0", *flags])
        return [slot.get("CUDA_VISIBLE_DEVICES") for slot in launching.slots(module.plan(args), args)]

    assert seen() == ["0", "1"] and seen("--jobs", "3") == ["0", "1", "0"] and seen("--jobs", "1") == ["0"]
    assert seen("--device", "cpu", "--jobs", "2") == [None, None] and seen("--device", "cuda:1") == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert seen() == ["4", "6"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert seen() == [None] and seen("--jobs", "3") == [None] * 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pairs", "vgg11"], ["vgg11", "TEACHER>STUDENT"]),
        (["--pairs", "vgg11>resnet9"], ["resnet9"]),
        (["--datasets", "cifar"], ["cifar10"]),
        (["--flags=--seed 1"], ["seed"]),
        (["--flags=--nonsense 1"], ["--nonsense"]),
    ],
)
def test_a_mistake_is_found_before_anything_is_run(flags, words):
    with user_error(*words):
        script("reproduce").main([*flags, "--dry_run"])
