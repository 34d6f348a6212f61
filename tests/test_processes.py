"""Several processes are one run: they find what one finds on the same batch, whatever happens to one of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
import together
import torch
from conftest import FP32, ROOT, user_error
from PIL import Image
from programs import FOLDER, QUICK, SMALL_SCRATCH, at_epoch, epochs_of, error_of, few_digits, finished, json_of  # noqa: F401 (fixtures)

import train_scratch
from datafree import processes
from datafree.configuration import Config, knob
from datafree.data.augmentation import Augmentation
from datafree.data.batch import Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool, image_column
from datafree.engine import device
from datafree.engine.randomness import Streams
from datafree.runs.snapshot import Snapshot
from registry import METHODS
from scripts.kill_test import PROGRAMS, start, wait

SEVERAL = {
    "no place to meet": "WORLD_SIZE=2 RANK=0 LOCAL_RANK=0",
    "srun": "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4 SLURM_PROCID=3",
    "srun, told by its allocation": "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_PROCID=0",
    "by hand": "SLURM_NTASKS=2 SLURM_PROCID=0",
    "Open MPI": "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1",
    "MPICH": "PMI_SIZE=2 PMI_RANK=0",
}
ALONE = {
    "nothing": "",
    "torchrun of one": "WORLD_SIZE=1 RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=1",
    "a size that somebody left": "WORLD_SIZE=8",
    "no number": "WORLD_SIZE=two RANK=0",
    "salloc": "SLURM_JOB_ID=7 SLURM_NTASKS=4",
    "salloc and its shell": "SLURM_JOB_ID=7 SLURM_STEP_ID=9 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4 SLURM_PROCID=0",
    "a batch script of four tasks": "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_LOCALID=0",
}
ROUNDING, BF16_ROUNDING, FP16_ROUNDING = 1e-5, 0.05, 0.01
EQUAL = {  # check of together.py: how far the two may be from one
    **{
        f"norm {kind}": {"out": r, "gradient": r, "weights": 1e-5, "mean": 1e-6, "variance": 1e-6}
        for kind, r in (("fp32", ROUNDING), ("bf16", BF16_ROUNDING), ("fp16", FP16_ROUNDING))
    },
    "norm, cumulative": {"out": ROUNDING, "gradient": ROUNDING, "mean": 1e-6, "variance": 1e-6},
    "moments": {"value": ROUNDING, "gradient": ROUNDING},
    "class balance": ROUNDING,
    "synthesis fp32": {"loss": ROUNDING, "theta": ROUNDING, "z": 1e-4, "images": ROUNDING, "after": ROUNDING},
    "synthesis bf16": {"loss": BF16_ROUNDING, "theta": BF16_ROUNDING, "z": BF16_ROUNDING},
    "synthesis fp16": {"loss": FP16_ROUNDING, "theta": FP16_ROUNDING, "z": FP16_ROUNDING},
    "distillation": {"student": ROUNDING, "gradient": ROUNDING, "apart": 0},
    "training": ROUNDING,
    "evaluation": 0,
}
DIES_ONCE = """
import os, signal
from datafree.methods.noise import Noise

LAST = str(int(os.environ["WORLD_SIZE"]) - 1)

class Dies(Noise):
    rounds = 0

    def synthesize(self, warmup):
        self.rounds += 1
        if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], self.rounds) == (LAST, "0", 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().synthesize(warmup)
"""


def environment(text):
    return dict(word.split("=") for word in text.split())


SMALL_RUN = "--warmup 1 --kd_steps 1 --synthesis_batch_size 4 --g_steps 1 --nz 8 --ngf 4"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def as_started_by_hand():
    return {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, "text": True}


def torchrun(*line, count):
    """So many processes that are started as a user starts them; gives status and what they said."""
    command = [*TORCHRUN, "--standalone", f"--nproc_per_node={count}", *map(str, line)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=300, **as_started_by_hand())
    return done.returncode, done.stderr


def found_by_two(program, folder):
    """What each of two processes of a program of the tests, a module, found, which leaves that in a folder."""
    if torch.cuda.is_available():
        pytest.skip("autograd lets no process with a GPU fork")
    said = folder / "terminal.txt"
    with patch.dict(PROGRAMS, {program.__name__: program}):
        assert wait(start(program.__name__, [str(folder)], said, 2)) == [0, 0], said.read_text()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_by_two(together, tmp_path_factory.mktemp("together"))


@pytest.mark.slow
@pytest.mark.parametrize("check", EQUAL)
def test_two_processes_find_what_one_finds_on_the_whole_batch(check, found):
    most = EQUAL[check] if isinstance(EQUAL[check], dict) else {"": EQUAL[check]}
    for each in found:
        apart = each[check] if isinstance(each[check], dict) else {"": each[check]}
        assert {name: apart[name] <= limit for name, limit in most.items()} == dict.fromkeys(most, True), apart


@pytest.mark.slow
def test_an_overflow_in_the_noise_of_one_process_is_one_in_both(found):
    after = {"scale, bad": 2**15, "gradient, bad": 0, "scale, good": 2**15, "gradient, good": 1}
    assert [each["overflow"] for each in found] == [after, after]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_student_and_networks_of_every_method_are_the_same_in_both_processes(name, found):
    for each in found:
        assert each["methods"][name] == 0 and each["hard"].get(name, 0) == 0


@pytest.mark.slow
def test_a_weight_that_no_answer_depends_on_stops_no_student(found):
    assert [each["unused"] for each in found] == [1, 1]


@pytest.mark.slow
def test_processes_agree_count_for_all_and_draw_each_its_own(found):
    first, second = (each["plain"] for each in found)
    assert first["agreed"] == second["agreed"] == first["largest"] == second["largest"] == 1
    assert first["costs"] == second["costs"] == 6 and first["loss"] == second["loss"] == 0.5
    assert second["own"] > 0 and second["common"] == 0


def line_that_dies_once(folder):
    """Of a method whose last process kills itself in its second round, the first time."""
    (folder / "own.py").write_text(DIES_ONCE)
    line = [*QUICK, "--epochs", "4", "--method", f"{folder}/own.py:Dies", "--run_root", folder / "run"]
    drop = {"--g_steps", "--nz", "--ngf"}
    return [str(word) for i, word in enumerate(line) if word not in drop and line[i - 1] not in drop]


def assert_went_on(folder, processes):
    assert epochs_of(folder) == ["1", "2", "3", "4"] and json_of(folder / "status.json")["state"] == "finished"
    assert json_of(folder / "summary.json")["images"] == 4 * 8
    log = (folder / "log.txt").read_text()
    assert log.count(f"runs on: {processes}cpu") == 2 and log.count("finished: ") == 1


@pytest.mark.slow
def test_torchrun_starts_one_process_again_where_it_was_killed_and_the_run_goes_on(tmp_path):
    status, said = torchrun("--max_restarts=1", "main.py", *line_that_dies_once(tmp_path), count=1)
    (folder,) = (tmp_path / "run").iterdir()
    assert status == 0, said
    assert_went_on(folder, "")


@pytest.mark.slow
def test_two_machines_are_one_run_and_both_start_again_where_one_was_killed(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"--rdzv_endpoint=127.0.0.1:{free.getsockname()[1]}"
    command = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", "--max_restarts=1", "--rdzv_backend=c10d", "--rdzv_id=1"]
    command += [meeting, "main.py", *line_that_dies_once(tmp_path)]
    agents = [subprocess.Popen(command, stderr=subprocess.PIPE, **as_started_by_hand()) for _ in range(2)]
    said = [agent.communicate(timeout=300)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    (folder,) = (tmp_path / "run").iterdir()
    assert_went_on(folder, "2 processes, the first on ")


def test_a_mistake_is_one_line_of_one_process(tmp_path):
    said = tmp_path / "terminal.txt"
    assert wait(start("main.py", [*QUICK, "--batch_size", "7", "--run_root", f"{tmp_path}/run"], said, 2)) == [2, 2]
    assert said.read_text().count("\n") == 1 and "--batch_size 7 is of all 2 processes" in said.read_text()


@pytest.mark.slow
def test_a_process_that_does_not_answer_ends_the_run_after_the_time_out(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TIMEOUT", 3)  # seconds, in place of ten minutes
    said = tmp_path / "terminal.txt"
    pids = start("main.py", [*QUICK, "--epochs", "5000", "--run_root", f"{tmp_path}/run"], said, 2)
    while not list(tmp_path.glob("run/*/last.pth")):
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGSTOP)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 2
    finally:
        os.kill(pids[1], signal.SIGKILL)
        os.waitpid(pids[1], 0)
    errors = [line for line in said.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "did not answer for 3 s" in errors[0] and "--resume" in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_goes_on_with_another_number_of_processes_and_says_so(after, tmp_path, at_epoch):  # noqa: F811
    sizes = ["--batch_size", "12", "--synthesis_batch_size", "12", "--run_root", str(tmp_path / "run")]
    line, said = [*QUICK, *sizes], tmp_path / "terminal.txt"
    at_epoch(2)
    assert wait(start("main.py", line, said, 2)) == [143, 143]
    assert "go on: torchrun --nproc_per_node=2 main.py --resume" in said.read_text()
    at_epoch(0)
    assert wait(start("main.py", [*line, "--resume"], said, after)) == [0] * after
    folder = tmp_path / "run" / FOLDER
    assert f"saved by 2 processes, goes on with {after}" in (folder / "log.txt").read_text()
    assert epochs_of(folder) == ["1", "2", "3"] and json_of(folder / "summary.json")["images"] == 3 * 12


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_images_are_dealt_out_anew_and_none_is_lost(after, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "wait_for_all", lambda: None)
    columns, rng = {"images": image_column((3, 2, 2)), "labels": ((), torch.int64)}, torch.Generator()

    def snapshot(rank, size):
        pool = ImagePool(24 // size, columns, Placement(torch.device("cpu")), Augmentation(0), rng, rng)
        return Snapshot(tmp_path, {"streams": Streams(0)}, pool)

    for rank in (1, 0):
        with patch.multiple(processes, _rank=rank, _size=2):
            saved = snapshot(rank, 2)
            for first in (0, 6):
                numbers = 100 * rank + first + torch.arange(6)
                images = (numbers / 255).view(6, 1, 1, 1).expand(-1, 3, 2, 2)
                saved.pool.add(Batch(images, {"labels": numbers}))
            saved.save()
    found = []
    for rank in range(after):
        with patch.multiple(processes, _rank=rank, _size=after):
            restored = snapshot(rank, after)
            restored.load()
            images, labels = restored.pool.rows(0, len(restored.pool))
            assert (images == labels.view(-1, 1, 1, 1)).all() and len(labels) == 24 // after
            found += labels.tolist()
    assert sorted(found) == [*range(12), *range(100, 112)]


def test_a_batch_that_cannot_be_shared_out_is_refused():
    @dataclass(frozen=True)
    class Knobs(Config):
        batch_size: int = knob(12, "images", low=1, unit="IMAGES")
        steps: int = knob(7, "others", low=1)

    knobs = Knobs()
    assert knobs.share() == knobs
    with patch.object(processes, "_size", 4):
        assert (knobs.share().batch_size, knobs.share().steps) == (3, 7)
    with patch.object(processes, "_size", 5), user_error("--batch_size 12", "5 processes"):
        knobs.share()


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with patch.multiple(processes, _rank=3, _size=4), patch.object(device, "_gpus", lambda: 2):
        assert device._device("auto") == device._device("cuda") == torch.device("cuda:1")
        assert device._device("cpu") == torch.device("cpu")
        with user_error("--device cuda:0", "each takes a GPU"):
            device._device("cuda:0")
    with (
        patch.multiple(processes, _rank=3, _size=4),
        patch.object(device, "_gpus", lambda: 1),
        user_error("2 processes on a machine with 1 GPUs"),
    ):
        device._device("auto")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (2, "torchrun --nproc_per_node=2"),
        (8, "torchrun --nnodes=4 --rdzv_backend=c10d --rdzv_endpoint=node7 --nproc_per_node=2"),
    ],
)
def test_what_starts_a_run_of_several_again_names_all_machines(size, words, monkeypatch):
    assert processes.starter({}) == ["python"]
    monkeypatch.setattr(processes, "_size", size)
    assert " ".join(processes.starter({"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node7"})) == words


ALONE_AND_WATCHED = """
import gc, sys
import torch, torchvision, torch.utils.tensorboard, torch._dynamo
from torch import distributed

before = {*sys.modules}
for name in dir(distributed):
    value = getattr(distributed, name)
    if callable(value) and not isinstance(value, type) and name not in ("is_available", "is_initialized"):
        def asked(*_, name=name, **__):
            raise AssertionError(f"asked for torch.distributed.{name}")
        setattr(distributed, name, asked)
import main
from datafree.cli.program import run_program

frozen, freeze = [], gc.freeze
gc.freeze = lambda: (freeze(), frozen.append(gc.get_freeze_count()))
run_program(main.main)
new = {name for name in sys.modules if name.startswith(("torch.distributed", "submitit"))} - before
assert not new and not distributed.is_initialized(), new
idle = {"sklearn", "scipy", "pandas", "matplotlib", "timm", "transformers", "onnx"} & (sys.modules.keys() - before)
assert not idle, idle
assert len(before) < frozen[0] < frozen[1], frozen  # what is imported, then what is built
print("watched")
"""


@pytest.mark.slow
def test_a_run_of_one_process_loads_no_library_in_vain_and_asks_nothing_of_torch_distributed(tmp_path):
    command = [sys.executable, "-c", ALONE_AND_WATCHED, *QUICK, "--hl", "--p_width", "4", "--run_root", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=300, **as_started_by_hand())
    assert done.returncode == 0 and done.stdout.endswith("watched\n"), done.stderr


def test_who_has_left_the_others_was_not_started_anew(monkeypatch):
    monkeypatch.setattr(processes, "_anew", True)
    processes.leave()
    assert not processes.started_anew()


def test_alone_layers_are_pytorchs_own():
    assert FP32.place(torch.nn.BatchNorm2d(3)).__class__ is torch.nn.BatchNorm2d


@pytest.mark.parametrize("how", SEVERAL)
def test_processes_of_other_launchers_are_refused_in_each_with_their_number(how):
    with user_error("processes", "torchrun"):
        processes.join(environment(SEVERAL[how]))


@pytest.mark.parametrize("how", ALONE)
def test_one_process_in_whatever_surroundings_is_not(how):
    processes.join(environment(ALONE[how]))
    assert processes.size() == 1


def test_both_programs_refuse_before_anything_is_written(tmp_path, monkeypatch):
    for name, value in environment(SEVERAL["no place to meet"]).items():
        monkeypatch.setenv(name, value)
    root = ["--run_root", tmp_path / "run"]
    assert "started as 2 processes (WORLD_SIZE)" in error_of([*QUICK, *root])
    assert "started as 2 processes" in error_of([*SMALL_SCRATCH.split(), *root], train_scratch)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size", "model"), [(1, 64, "wrn16_1"), (2, 224, "mobilenetv2_imagenet")])
def test_both_programs_work_alone_at_the_size_of_tiny_imagenet_and_by_two_at_that_of_imagenet(
    count, size, model, tmp_path
):
    for split in ("train", "val"):
        for label in range(2):
            (tmp_path / "data" / split / str(label)).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 128, (size + 8 * i, size, 3)) + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"data/{split}/{label}/{i}.jpg")
    said, roots = tmp_path / "terminal.txt", ["--run_root", f"{tmp_path}/run", "--epochs", "2", "--batch_size", "4"]
    data = ["--dataset", f"imagefolder:{tmp_path}/data", "--img_size", str(size), "--lr", "0.01"]
    networks = ["--teacher", model, "--student", model, "--teacher_path", f"{tmp_path}/t.pth"]
    lines = {
        "train_scratch.py": [*data, *roots, "--model", model, "--output", f"{tmp_path}/t.pth"],
        "main.py": [*data, *roots, *SMALL_RUN.split(), *networks],
    }
    for program, line in lines.items():
        if count == 2 and program == "main.py":
            assert torchrun(program, *line, count=2)[0] == 0
        else:
            assert wait(start(program, line, said, count)) == [0] * count, said.read_text()
    for folder in (tmp_path / "run").iterdir():
        assert epochs_of(folder) == ["1", "2"] and json_of(folder / "summary.json")["accuracy_last"] is not None
