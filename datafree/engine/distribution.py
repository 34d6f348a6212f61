"""How many processes this run is."""

import os
from collections.abc import Mapping

from ..errors import UserError

# Of each launcher: how many processes it has started, and which of them this is. Without the latter a size says
# nothing: WORLD_SIZE is set by hand, SLURM_NTASKS for a whole allocation.
LAUNCHERS = (
    ("WORLD_SIZE", "RANK"),  # torchrun, accelerate, deepspeed
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # srun
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # mpirun of Open MPI
    ("PMI_SIZE", "PMI_RANK"),  # of MPICH and Intel
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),  # of MVAPICH
)
SLURM_ALLOCATION = ("SLURM_NTASKS", "SLURM_PROCID")


def check_alone(environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError in every process of a launcher that started several: a run is one process, on one device.

    A batch script of Slurm has SLURM_NTASKS and SLURM_PROCID, too, and is a single process; it is no step.
    """
    launchers = LAUNCHERS
    batch_script = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    if "SLURM_STEP_NUM_TASKS" not in environment and not batch_script:
        launchers += (SLURM_ALLOCATION,)
    for size, rank in launchers:
        if rank in environment and _count(environment.get(size, "")) > 1:
            raise UserError(
                f"started as {environment[size]} processes ({size}), and a run is one process on one device",
                "start it once; for several runs at a time start each with its own --device and --tag, or see "
                "scripts/ablation.py and its --jobs",
            )


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 1
