"""What there is to know of a GPU, in nine minutes at most and without a network: tests, speed, a short run.

    python scripts/gpu_check.py                                              the run is on the digits
    python scripts/gpu_check.py --data FOLDER --teacher_path FILE            CIFAR-10 as class folders, train/ and val/

for part in PARTS                           machine, tests, benchmarks, run
    a process of its own, ended where it takes too long; what it had found by then counts
    gpu_check.json and gpu_check.md are written anew

Without a GPU, or with --small, everything is small and on the CPU: it shows that the parts work, not how fast.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from gpu_page import conclusions, page

from datafree.cli.parser import Parser, number
from datafree.cli.program import run_program
from datafree.errors import UserError

MARK = 70.0  # %, of the run
TAIL, TRACE = 15, 40  # lines that are kept of what a failed part said, of a failed test
CIFAR = (  # of a folder; adv and oh are the preset's of wrn40_2 on CIFAR, the lengths chosen by us for a minute a run
    *("--img_size", "32", "--mean", ".4914", ".4822", ".4465", "--std", ".2023", ".1994", ".2010"),
    *("--teacher", "wrn40_2", "--student", "wrn16_1", "--adv", "1.1", "--oh", ".4"),
    *("--epochs", "40", "--warmup", "2", "--kd_steps", "150"),
)
SMALL_RUN = (
    *("--epochs", "2", "--warmup", "1", "--kd_steps", "2", "--batch_size", "8", "--synthesis_batch_size", "8"),
    *("--g_steps", "1", "--ngf", "4"),
)
BENCHMARK = ("--dataset", "cifar10", "--batch_size", "256", "--g_steps", "10", "--kd_steps", "40", "--repeats", "5")
SMALL_BENCHMARK = ("--batch_size", "4", "--g_steps", "1", "--kd_steps", "1", "--repeats", "1", "--ngf", "4")
WHOLE_BATCHES = 1024  # images to evaluate on: nothing is compiled for the rest of a division by 256


@dataclass
class Task:
    """What a part works with.

    Attributes:
        options: the command line.
        small: whether this is the form for a CPU.
        file: where it leaves what it has found.
    """

    options: Namespace
    small: bool
    file: Path
    found: dict[str, Any] = field(default_factory=dict)

    def keep(self, **found: Any) -> None:
        """At once, so that it is not lost with the process."""
        self.found |= found
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps(self.found, default=str))
        beside.replace(self.file)


def machine(task: Task) -> None:
    """The card, and versions."""
    from datafree.engine import device
    from datafree.runs.environment import environment

    compute = device.choose("cpu" if task.small else "cuda")
    task.keep(**environment(str(compute)), platform=platform.platform(), processors=os.cpu_count())
    if not task.small:
        card = torch.cuda.get_device_properties(compute.device)
        task.keep(
            card=card.name, gibibytes=round(card.total_memory / 2**30, 1), capability=f"{card.major}.{card.minor}"
        )
        task.keep(cards=torch.cuda.device_count())
        task.keep(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), driver=driver())


def driver() -> str:
    """Its version, as nvidia-smi says it."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return said.strip().splitlines()[0] if said.strip() else "unknown"


class Reports:
    """A plugin of pytest: keeps which tests there are, and the outcome of each as it comes."""

    def __init__(self, task: Task):
        self.task, self.tests = task, []

    def pytest_collection_finish(self, session: Any) -> None:
        self.task.keep(collected=[item.nodeid for item in session.items])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self._add(report, "failed in its set-up or end" if report.failed and report.when != "call" else "")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._add(report, "not collected")

    def _add(self, report: Any, where: str) -> None:
        skipped = isinstance(report.longrepr, tuple)
        trace = [] if skipped else str(report.longrepr or "").splitlines()
        errors = [line.removeprefix("E ").strip() for line in trace if line.startswith("E ")] or trace[-1:]
        said = " ".join([where, *errors[:2]]).strip() if not skipped else report.longrepr[2].removeprefix("Skipped: ")
        entry = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(getattr(report, "duration", 0.0), 2),
        }
        self.tests.append(entry | {"said": said, "trace": trace[-TRACE:]})
        self.task.keep(tests=self.tests)


def tests(task: Task, marked: str) -> None:
    """Those of that mark, in this process, without plugins that other tests may want."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    import pytest

    os.chdir(ROOT)
    files = [str(file) for file in sorted(Path("tests").glob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    files.sort(key=lambda file: "test_sync" not in file)  # what a target asks for comes first
    task.keep(tests=[], collected=[], status=None)
    line = ["-q", "-p", "no:cacheprovider", "-m", marked, "--continue-on-collection-errors", *files]
    task.keep(status=int(pytest.main(line, plugins=[Reports(task)])))


def benchmark(task: Task, teacher: str, student: str, compiled: bool, step: str = "eager") -> None:
    """A pair of networks by benchmark.py; eager ones also against a floor without TF32, where there is a GPU."""
    import benchmark as program

    import registry
    from datafree.data.specs import size_text
    from datafree.engine import device

    line = [*(SMALL_BENCHMARK if task.small else BENCHMARK), "--teacher", teacher, "--student", student]
    line += ["--device", "cpu" if task.small else "cuda", "--compile" if compiled else "--no_compile", "--step", step]
    program.TEST_IMAGES = 16 if task.small else WHOLE_BATCHES
    options = program.parsed(line)
    values = program.flags_of_main(options, options.batch_size)
    spec, compute = registry.dataset_spec(values), device.choose(values.device, values.precision)
    task.keep(pair=f"{teacher} > {student}", images=size_text(spec.img_size), compute=str(compute))
    with tempfile.TemporaryDirectory() as folder:
        found = program.measured(values, spec, compute, options.repeats, Path(folder) / "1", task.small)
    task.keep(**found, g_steps=values.g_steps)
    if not (task.small or compiled or step != "eager"):
        fp32 = device.choose(values.device, "fp32")
        networks = (program.random_classifier(name, spec).network for name in (teacher, student))
        floor = program.floors(*networks, values, spec.shape, fp32.device)["floor_kd"]
        steps = program.STEPS_ON_GPU
        times = program.timed({"kd": program.repeated(floor, steps)}, options.repeats, fp32.device)
        task.keep(floor_kd_without_tf32=times["kd"].each(steps).median)


def run(task: Task) -> None:
    """AEAHL-RG anew, then reuse_common with what that has left."""
    from speedrun import folder_of, timed

    with tempfile.TemporaryDirectory() as root:
        line = [*run_flags(task.options, task.small), "--run_root", root]
        task.keep(mark=MARK, flags=" ".join(line[:-2]), runs={})
        for mode in ("anew", "reuse_common"):
            flags = [*line, "--mode", mode]
            times = timed(flags, MARK, whole=True)
            summary = json.loads((folder_of(flags) / "summary.json").read_text(encoding="utf-8"))
            names = ("accuracy_teacher", "accuracy_last", "accuracy_best", "seconds_total", "peak_memory_mb", "epochs")
            task.keep(runs=task.found["runs"] | {mode: times | {name: summary.get(name) for name in names}})


def run_flags(options: Namespace, small: bool) -> list[str]:
    """Of main.py. Networks eager: a short run is over before compiling has paid."""
    where = ["--device", "cpu"] if small else ["--device", "cuda", "--no_compile"]
    if options.data is None:
        return [*where, *(SMALL_RUN if small else ())]
    data = ["--dataset", f"imagefolder:{options.data.resolve()}", "--teacher_path", str(options.teacher_path.resolve())]
    return [*data, *CIFAR, *where, *(SMALL_RUN if small else ())]


@dataclass(frozen=True)
class Part:
    """One thing to be done in a process of its own.

    Attributes:
        name: for --parts and the page.
        act: does it.
        least, most: seconds: not begun with fewer, ended after more.
    """

    name: str
    act: Callable[[Task], None]
    least: int
    most: int


WRN, RESNET = ("wrn40_2", "wrn16_1"), ("resnet34", "resnet18")
PARTS = [  # what says most comes first
    Part("machine", machine, 5, 60),
    Part("tests", partial(tests, marked="gpu and not slow"), 15, 150),
    Part("wrn", partial(benchmark, teacher=WRN[0], student=WRN[1], compiled=False), 20, 75),
    Part("wrn_graph", partial(benchmark, teacher=WRN[0], student=WRN[1], compiled=False, step="graph"), 20, 75),
    Part("resnet", partial(benchmark, teacher=RESNET[0], student=RESNET[1], compiled=False), 20, 75),
    Part("run", run, 40, 150),
    Part("wrn_compiled", partial(benchmark, teacher=WRN[0], student=WRN[1], compiled=True), 40, 150),
    Part("resnet_compiled", partial(benchmark, teacher=RESNET[0], student=RESNET[1], compiled=True), 40, 150),
    Part("tests_slow", partial(tests, marked="gpu and slow"), 15, 600),  # of whatever time is left
]
SMALL_PARTS = [
    Part("machine", machine, 5, 60),
    Part("tests", partial(tests, marked="gpu"), 5, 120),
    Part("small", partial(benchmark, teacher="resnet20", student="resnet8", compiled=False), 5, 120),
    Part("run", run, 5, 120),
]


def main(argv: list[str]) -> None:
    options = parsed(argv)
    small = options.small or not torch.cuda.is_available()
    parts = [part for part in (SMALL_PARTS if small else PARTS) if not options.parts or part.name in options.parts]
    if options.found:
        parts[0].act(Task(options, small, options.found))
        return
    if not parts:
        names = ", ".join(part.name for part in (SMALL_PARTS if small else PARTS))
        raise UserError(f"there is no such part here: {', '.join(options.parts)}", f"name some of {names}")
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the part under way is ended, too
    found = check(parts, argv, small, options)
    print(f"{options.out / 'gpu_check.md'} after {found['seconds']:.0f} s")


def parsed(argv: list[str]) -> Namespace:
    """The command line. Raises UserError where it does not fit together."""
    parser = Parser("gpu_check.py", "Tests, speed and a short run on a GPU, as JSON and as a page.")
    parser.add_argument("--out", type=Path, default=Path("run/gpu_check"), metavar="DIR", help="where both are written")
    parser.add_argument("--minutes", type=number(float, 0), default=9.0, metavar="N", help="for everything")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CIFAR-10 as class folders, train/ and val/")
    parser.add_argument("--teacher_path", type=Path, metavar="FILE", help="a wrn40_2 for it")
    parser.add_argument("--small", action="store_true", help="the small form, on the CPU, where there is a GPU, too")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="these alone, as the page names them")
    parser.add_argument("--found", type=Path, help=SUPPRESS)  # the process of a part: where it leaves what it finds
    options = parser.parse_args(argv)
    if (options.data is None) != (options.teacher_path is None):
        raise UserError("--data and --teacher_path belong together", "give both or neither")
    for path in (options.data, options.teacher_path):
        if path is not None and not path.exists():
            raise UserError(f"there is no {path}", "name one that there is")
    return options


def check(parts: Sequence[Part], argv: Sequence[str], small: bool, options: Namespace) -> dict[str, Any]:
    """All parts in turn; what is known is written after each."""
    began, found = time.monotonic(), {"began": datetime.now().astimezone().isoformat(timespec="seconds")}
    found |= {"small": small, "minutes": options.minutes, "seconds": 0.0, "parts": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            left = 60 * options.minutes - (time.monotonic() - began)
            if left < part.least:
                why = f"{max(0, left):.0f} s were left, and it is not begun with fewer than {part.least}"
                outcome = {"state": "skipped", "seconds": 0.0, "error": why, "found": {}}
            else:
                outcome = outcome_of(part, argv, small, Path(scratch), min(part.most, left))
            found["parts"][part.name] = outcome
            found["seconds"] = round(time.monotonic() - began, 1)
            print(
                f"{part.name}: {outcome['state']}, {outcome['seconds']:.0f} s {outcome['error']}".rstrip(), flush=True
            )
            found |= conclusions(found)
            write(found, options.out)
    return found


def outcome_of(part: Part, argv: Sequence[str], small: bool, scratch: Path, seconds: float) -> dict[str, Any]:
    """A part's process, its temporary files and caches of compilers in ``scratch``: how it ended and what it found."""
    file, log = scratch / f"{part.name}.json", scratch / f"{part.name}.txt"
    command = [sys.executable, str(Path(__file__).resolve()), *argv, "--parts", part.name, "--found", str(file)]
    environment = os.environ | {"TMPDIR": str(scratch)} | ({"CUDA_VISIBLE_DEVICES": ""} if small else {})
    began, state = time.monotonic(), "done"
    with open(log, "wb") as output:
        how = {"stdout": output, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "env": environment}
        process = subprocess.Popen(command, start_new_session=True, **how)
        try:
            if process.wait(timeout=seconds):
                state = "failed"
        except subprocess.TimeoutExpired:
            state = "late"
        finally:
            end(process)
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    failed = f"status {process.returncode}: {said[-1] if said else 'not a word'}"
    error = {"done": "", "late": f"ended after {seconds:.0f} s", "failed": failed}[state]
    found = json.loads(file.read_text()) if file.exists() else {}
    took, tail = round(time.monotonic() - began, 1), [] if state == "done" else said[-TAIL:]
    return {"state": state, "seconds": took, "error": error, "said": tail, "found": found}


def end(process: subprocess.Popen) -> None:
    """Of the process and of what it has started: a run, compilers."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all have left
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def write(found: dict[str, Any], folder: Path) -> None:
    """Both files; a page that cannot be made of what there is loses neither the numbers nor the parts to come."""
    try:
        found |= conclusions(found)
        text = page(found)
    except Exception:
        text = f"# GPU check\n\nNo page; the numbers are in gpu_check.json.\n\n```\n{traceback.format_exc()}```\n"
    (folder / "gpu_check.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / "gpu_check.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
