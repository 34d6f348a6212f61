"""The folder of a run: what is in it, how it is written, and what the terminal shows."""

import csv
import errno
import io
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from . import checkpoint
from .device import peak_memory_mb
from .errors import UserError
from .snapshot import POOL_FILE, STATE_FILE

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None

LOCK_FILE = ".lock"
REPORT_FILE = "report.html"  # of scripts/report.py; goes with the run that it is about

GENERATED = (
    *("config.json", "log.txt", "metrics.csv", "summary.json", "generator_loss.npy", "synthetic.png", "synthetic.pth"),
    *("gan_reuse.pth", "decoder.pth", "gan_abandon.pth", "gap.pth", "student_last.pth", "best.pth"),
)
WRITTEN = (*GENERATED, STATE_FILE, POOL_FILE)


class RunFolder:
    """Files, terminal and TensorBoard of one run. One process at a time: a lock that ends with the process.

    Args:
        path: the folder; made where it does not exist.
        columns: header of metrics.csv; the first is the counter.
        overwrite: whether an earlier run's files may be removed. Other files in the folder are left alone.
        resume: whether to go on with the files that are there.

    Raises:
        UserError: if the folder is in use, not empty with neither flag given, or cannot be written.
    """

    def __init__(self, path: Path, columns: list[str], overwrite: bool = False, resume: bool = False):
        self.path, self.columns = Path(path), columns
        self.bar: tqdm | None = None
        self._board = self._lock = self._log = self._metrics = None
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self._resumed, self._excepthook = resume, threading.excepthook
        try:
            self._open(overwrite, resume)
        except OSError as error:
            self.close()
            raise self._cannot_write(error, "choose another folder") from None
        except UserError:
            self.close()
            raise

    def _open(self, overwrite: bool, resume: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        left = [entry for entry in self.path.iterdir() if entry.name != LOCK_FILE]
        refused = bool(left) and not (overwrite or resume)
        if not refused or (self.path / LOCK_FILE).exists():  # a refusal makes no file
            self._lock = _lock(self.path)
        if refused:
            raise UserError(
                f"{self.path} is not empty", "go on with --resume, start anew with --overwrite, or name a --tag"
            )
        for name in WRITTEN:
            if (self.path / name).is_dir():
                raise UserError(f"{self.path / name} is a folder", "a file of the run goes there: move it away")
        checkpoint.remove_unfinished(self.path, WRITTEN)
        if not resume:
            self.clear()
        self._log = open(self.path / "log.txt", "ab", buffering=0)  # noqa: SIM115 (kept open)
        self._metrics = open(self.path / "metrics.csv", "ab", buffering=0)  # noqa: SIM115

    def _cannot_write(self, error: OSError, remedy: str = "free some space, then --resume") -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror or error}", remedy)

    def clear(self) -> None:
        """Removes what a run wrote, and what a report wrote of it; nothing else."""
        for name in (*WRITTEN, REPORT_FILE):
            (self.path / name).unlink(missing_ok=True)
        for events in (self.path / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()

    def complete(self) -> bool:
        """Whether the run in the folder has come to its end; says so."""
        done = (self.path / "summary.json").exists()
        if done:
            self.log(f"{self.path} is complete: nothing to resume")
        return done

    def start(self, metrics_bytes: int = 0, step: int = 0, seconds: float = 0.0) -> None:
        """Begins recording after ``step`` rounds that took ``seconds``.

        Later rows of metrics.csv are dropped, and later ones of TensorBoard's are taken back.
        """
        self._seconds_before = seconds
        try:
            kept = self._rows_kept(metrics_bytes)
            self._metrics.truncate(kept)
            if not kept:
                self._append(self._metrics, _csv_line(self.columns))
            from torch.utils.tensorboard import SummaryWriter  # two seconds to import: not for --help or an error

            threading.excepthook = self._pass_over_board
            self._board = SummaryWriter(self.path / "tensorboard", purge_step=step + 1 if self._resumed else None)
        except OSError as error:
            raise self._cannot_write(error, "choose another folder") from None

    def _rows_kept(self, metrics_bytes: int) -> int:
        """How much of metrics.csv counts: what is asked for or, where somebody took some away, its whole lines."""
        if os.fstat(self._metrics.fileno()).st_size >= metrics_bytes:
            return metrics_bytes
        self.log(f"warning: {self.path / 'metrics.csv'} has lost rows since the run was last here; going on without")
        return (self.path / "metrics.csv").read_bytes().rfind(b"\n") + 1

    def _pass_over_board(self, failure: threading.ExceptHookArgs) -> None:
        """Keeps TensorBoard's thread from printing what ``record`` is about to report."""
        if not issubclass(failure.exc_type, OSError):
            self._excepthook(failure)

    def _append(self, file: IO[bytes], data: bytes) -> None:
        """All of it or nothing, with no buffer that could come out later. Raises OSError."""
        before = os.fstat(file.fileno()).st_size
        written = 0
        try:
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise

    def metrics_bytes(self) -> int:
        """Length of metrics.csv, all of it on the disk."""
        return os.fstat(self._metrics.fileno()).st_size

    def log(self, line: str = "") -> None:
        """One line to the terminal (above the progress bar) and to log.txt."""
        if self.bar is not None and not self.bar.disable:
            self.bar.write(line)
        else:
            print(line, flush=True)
        try:
            self._append(self._log, (line + "\n").encode(errors="backslashreplace"))
        except OSError as error:
            raise self._cannot_write(error) from None

    def rounds(self, total: int, done: int = 0) -> Iterator[int]:
        """done+1..total under the run's one bar (none where the terminal is a file), counted in the first column."""
        shown = {"unit": self.columns[0], "dynamic_ncols": True, "disable": not sys.stderr.isatty()}
        self.bar = tqdm(range(done + 1, total + 1), initial=done, total=total, **shown)
        return iter(self.bar)

    def record(self, row: Mapping[str, Any], line: str) -> None:
        """A round: a row of metrics.csv (None leaves a cell empty), the same scalars in TensorBoard, a log line."""
        step = row[self.columns[0]]
        values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        try:
            self._append(self._metrics, _csv_line([values.get(column) for column in self.columns]))
            os.fsync(self._metrics.fileno())
            for key, value in row.items():
                if value is not None and key != self.columns[0]:
                    self._board.add_scalar(key, value, step)
            self._board.flush()
        except OSError as error:
            raise self._cannot_write(error) from None
        if self.bar is not None:
            shown = {
                key.removeprefix("loss_"): row[key]
                for key in ("loss_generator", "loss_kd", "loss", "accuracy")
                if row.get(key) is not None
            }
            self.bar.set_postfix({key: f"{value:.4g}" for key, value in shown.items()})
        self.log(line)

    def show_images(self, step: int, x: Tensor, most: int = 64) -> None:
        """The newest synthetic batch (B, 3, H, W) in [0, 1]: synthetic.png, synthetic.pth, TensorBoard."""
        x = x.detach().float().cpu()
        grid = make_grid(x[:most], nrow=8, padding=1, pad_value=1.0)
        try:
            self._board.add_image("synthetic", grid, step)
        except OSError as error:
            raise self._cannot_write(error) from None
        self.save("synthetic.pth", x)
        checkpoint.write_whole(self.path / "synthetic.png", lambda file: file.write(_png(grid)))

    def save(self, name: str, content: Any) -> None:
        """A .pth file of tensors and plain values, whole or not at all."""
        checkpoint.write_whole(self.path / name, lambda file: torch.save(content, file))

    def save_array(self, name: str, values: list[float]) -> None:
        """A .npy file of a list of numbers, in float32."""
        import numpy

        checkpoint.write_whole(self.path / name, lambda file: numpy.save(file, numpy.asarray(values, numpy.float32)))

    def save_config(self, config: Mapping[str, Any]) -> None:
        """config.json of the run's first start; a resumption leaves it, and says what differs in the environment."""
        path = self.path / "config.json"
        if not (self._resumed and path.exists()):
            self.save_json("config.json", config)
            return
        before = json.loads(path.read_text(encoding="utf-8")).get("environment", {})
        now = config["environment"]
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            self.log(f"warning: begun in another environment, numbers may differ in rounding: {', '.join(changed)}")

    def save_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file, indented."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        checkpoint.write_whole(self.path / name, lambda file: file.write(text.encode(errors="backslashreplace")))

    def seconds(self) -> float:
        """The run's so far: since this process opened the folder, and those of the processes before."""
        return self._seconds_before + time.perf_counter() - self._started

    def finish(self, summary: Mapping[str, Any], device: torch.device) -> None:
        """Writes summary.json, with time and memory, and says where everything is."""
        seconds = self.seconds()
        content = {**summary, "seconds_total": seconds, "peak_memory_mb": peak_memory_mb(device)}
        self.save_json("summary.json", content)
        accuracy = summary["accuracy_last"]
        result = f"agreement {summary['agreement']:.2f} %" if accuracy is None else f"accuracy {accuracy:.2f} %"
        self.log(f"finished: {result} after {seconds:.0f} s; {self.path}")

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the bar and the open files, and lets go of the lock."""
        for opened in (self.bar, self._board, self._metrics, self._log, self._lock):
            if opened is not None:
                with suppress(OSError):  # a full disk has been reported by now
                    opened.close()
        threading.excepthook = self._excepthook


def _csv_line(cells: list[Any]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()


def _lock(path: Path) -> IO[str]:
    """Takes the folder's lock. Raises UserError where another process has it; a dead process has none.

    On a file system without locks, as some clusters have, there is none to take.
    """
    lock = open(path / LOCK_FILE, "a")  # noqa: SIM115 (open as long as the run)
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return lock
            lock.close()
            raise UserError(f"{path} is in use by another run", "wait for it, or name a --tag") from None
    return lock


def _png(grid: Tensor) -> bytes:
    from torchvision.transforms.functional import to_pil_image

    buffer = io.BytesIO()
    to_pil_image(grid).save(buffer, format="PNG")
    return buffer.getvalue()


def folder_name(*parts: str | None) -> str:
    """The parts that are not None, joined by hyphens; a path among them gives its last name."""
    return "-".join(part.replace("imagefolder:", "").rstrip("/").rsplit("/", 1)[-1] for part in parts if part)


def environment(device: str) -> dict[str, str]:
    """What a number depends on besides the arguments: versions, commit, device."""
    import numpy
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "git_commit": _git_commit(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }


def _git_commit() -> str:
    """The commit that this code is at, with "+" where files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
