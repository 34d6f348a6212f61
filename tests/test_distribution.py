"""A run is one process: started as several, each of them says so and touches nothing."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, user_error
from programs import QUICK, SMALL_SCRATCH, error_of

import train_scratch
from datafree.engine.distribution import check_alone

SEVERAL = {
    "torchrun": "WORLD_SIZE=2 RANK=0 LOCAL_RANK=0",
    "torchrun, second": "WORLD_SIZE=2 RANK=1 LOCAL_RANK=1",
    "srun": "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4 SLURM_PROCID=3",
    "srun, told by its allocation": "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_PROCID=0",
    "by hand": "SLURM_NTASKS=2 SLURM_PROCID=0",
    "Open MPI": "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1",
    "MPICH": "PMI_SIZE=2 PMI_RANK=0",
}
ALONE = {
    "nothing": "",
    "torchrun of one": "WORLD_SIZE=1 RANK=0",
    "a size that somebody left": "WORLD_SIZE=8",
    "no number": "WORLD_SIZE=two RANK=0",
    "salloc": "SLURM_JOB_ID=7 SLURM_NTASKS=4",
    "salloc and its shell": "SLURM_JOB_ID=7 SLURM_STEP_ID=9 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4 SLURM_PROCID=0",
    "a batch script of four tasks": "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_LOCALID=0",
}


def environment(text):
    return dict(word.split("=") for word in text.split())


@pytest.mark.parametrize("how", SEVERAL)
def test_several_processes_are_refused_in_each_with_their_number(how):
    with user_error("one process on one device", "--device", "--tag"):
        check_alone(environment(SEVERAL[how]))


@pytest.mark.parametrize("how", ALONE)
def test_one_process_in_whatever_surroundings_is_not(how):
    check_alone(environment(ALONE[how]))


def test_both_programs_refuse_before_anything_is_written(tmp_path, monkeypatch):
    for name, value in environment(SEVERAL["torchrun"]).items():
        monkeypatch.setenv(name, value)
    root = ["--run_root", tmp_path / "run"]
    assert "started as 2 processes (WORLD_SIZE)" in error_of([*QUICK, *root])
    assert "started as 2 processes" in error_of([*SMALL_SCRATCH.split(), *root], train_scratch)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torchrun_with_two_processes_leaves_each_with_one_line_and_no_folder(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--redirects=3"]
    launcher += [f"--log_dir={tmp_path}/logs", "main.py", *QUICK, "--run_root", f"{tmp_path}/run"]
    done = subprocess.run(launcher, cwd=ROOT, env=os.environ, capture_output=True, check=False, timeout=300)
    said = [path.read_text() for path in (tmp_path / "logs").rglob("stderr.log")]
    said = [text for text in said if text]  # the launcher ends the second one where the first was quicker
    assert done.returncode != 0 and said and not (tmp_path / "run").exists()
    assert all(text.startswith("error: started as 2 processes") and text.count("\n") == 1 for text in said)
