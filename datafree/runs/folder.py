"""The folder of a run: what is in it, how it is written, and what the terminal shows."""

import errno
import io
import json
import os
import re
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from .. import files
from ..errors import UserError, first_line
from .metrics import COUNTER, Metrics
from .snapshot import POOL_FILE, STATE_FILE, of_processes

FORMAT = 2  # of config.json and last.pth; another's runs are read, but not resumed
LOCK_FILE, STATUS_FILE, METRICS_FILE = ".lock", "status.json", "metrics.csv"
LONGEST = 60  # letters of a name in a folder's name, which file systems limit to 255; chosen by us
OWN_FILES = (
    *("config.json", "log.txt", METRICS_FILE, "summary.json", STATUS_FILE, "generator_loss.npy", "synthetic.png"),
    *("synthetic.pth", "student_last.pth", "best.pth", "report.html", STATE_FILE, POOL_FILE, LOCK_FILE),
)
WRITTEN = (  # beside what a method leaves, which status.json lists
    *OWN_FILES[:-1],
    *("gan_reuse.pth", "decoder.pth", "gan_abandon.pth", "gap.pth"),  # of runs that had no status.json
)


class RunFolder:
    """Files, terminal and TensorBoard of one run. One process at a time: a lock that ends with the process.

    Args:
        path: the folder; made where it does not exist.
        overwrite: whether an earlier run's files may be removed. Other files in the folder are left alone.
        resume: whether to go on with the files that are there.

    Raises:
        UserError: if the folder is in use, not empty with neither flag given, or cannot be written.
    """

    def __init__(self, path: Path, overwrite: bool = False, resume: bool = False):
        self.path, self.left = Path(path), _plain_names(read_status(path).get("files"))
        self.bar: tqdm | None = None
        self._notebook = _in_notebook()
        self._board = self._lock = self._log = None
        self._metrics = Metrics(self.path / METRICS_FILE)
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self._status: dict[str, Any] = {}
        self.resumed, self._excepthook = resume, threading.excepthook
        try:
            self._open(overwrite, resume)
        except OSError as error:
            self.close()
            raise self._cannot_write(error, "choose another with --run_root") from None
        except UserError:
            self.close()
            raise

    def _open(self, overwrite: bool, resume: bool) -> None:
        try:
            str(self.path).encode()
        except UnicodeEncodeError:  # TensorBoard knows no other names
            what = f"the name {self.path} is not in UTF-8, or the terminal says that it is not"
            raise UserError(what, "choose another, or set LC_ALL=C.UTF-8") from None
        self.path.mkdir(parents=True, exist_ok=True)
        there = [entry for entry in self.path.iterdir() if entry.name != LOCK_FILE]
        refused = bool(there) and not (overwrite or resume)
        if not refused or (self.path / LOCK_FILE).exists():  # a refusal makes no file
            self._take_lock()
        if refused:
            raise UserError(
                f"{self.path} is not empty", "go on with --resume, start anew with --overwrite, or name a --tag"
            )
        names = (*WRITTEN, *self.left)
        for name in names:
            if (self.path / name).is_dir():
                raise UserError(f"{self.path / name} is a folder", "a file of the run goes there: move it away")
        files.remove_unfinished(self.path, (*names, *of_processes(self.path)))
        if not resume:
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            for name in of_processes(self.path):
                (self.path / name).unlink()
            for events in (self.path / "tensorboard").glob("events.out.tfevents.*"):
                events.unlink()
            self.left = []
        self._log = open(self.path / "log.txt", "ab", buffering=0)  # noqa: SIM115 (kept open)

    def _take_lock(self) -> None:
        """Raises UserError where another process has it; a dead process has none, and some file systems know none."""
        lock = FileLock(self.path / LOCK_FILE, blocking=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a file system without flock
                lock.acquire()
            self._lock = lock
        except Timeout:
            raise UserError(f"{self.path} is in use by another run", "wait for it, or name a --tag") from None
        except (OSError, NotImplementedError) as error:  # the latter where there is no flock at all
            if getattr(error, "errno", errno.ENOSYS) not in files.LACKING:
                raise

    def _cannot_write(self, error: OSError, remedy: str = "free some space, then --resume") -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror or error}", remedy)

    def complete(self) -> bool:
        """Whether the run in the folder has come to its end; says so."""
        done = (self.path / "summary.json").exists()
        if done:
            self.log(f"{self.path} is complete: nothing to resume")
        return done

    def start(self, epoch: int = 0, seconds: float = 0.0) -> None:
        """Begins recording after ``epoch`` epochs that took ``seconds``.

        Later rows of metrics.csv are dropped, and later ones of TensorBoard's are taken back.
        """
        self._seconds_before = seconds
        try:
            if not self._metrics.begin(epoch, self.resumed):
                self.log(f"warning: {self._metrics.path} has lost rows since the run was last here; going on without")
            from torch.utils.tensorboard import SummaryWriter  # two seconds to import: not for --help or an error

            threading.excepthook = self._pass_over_board
            self._board = SummaryWriter(self.path / "tensorboard", purge_step=epoch + 1 if self.resumed else None)
        except OSError as error:
            raise self._cannot_write(error, "choose another with --run_root") from None

    def _pass_over_board(self, failure: threading.ExceptHookArgs) -> None:
        """Keeps TensorBoard's thread from printing what ``record`` is about to report."""
        if not issubclass(failure.exc_type, OSError):
            self._excepthook(failure)

    def log(self, line: str = "", shown: bool = True) -> None:
        """One line to log.txt and, where ``shown``, to the terminal (above the bar), as long as there is one."""
        try:
            if shown and self.bar is not None and not self.bar.disable:
                self.bar.write(line)
            elif shown:
                print(line, flush=True)
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed: the run goes on
                raise
        try:
            files.append(self._log, (line + "\n").encode(errors="backslashreplace"))
        except OSError as error:
            raise self._cannot_write(error) from None

    def epochs(self, total: int, done: int = 0) -> Iterator[int]:
        """done+1..total under the run's one bar (none where the terminal is a file and this is no notebook)."""
        shown = {"unit": COUNTER, "dynamic_ncols": True, "disable": not (self._notebook or sys.stderr.isatty())}
        self.bar = _bar(self._notebook)(range(done + 1, total + 1), initial=done, total=total, **shown)
        return iter(self.bar)

    def record(self, row: Mapping[str, Any], line: str) -> None:
        """An epoch: a row of metrics.csv (None leaves a cell empty), the same scalars in TensorBoard, a log line.

        A column that was not there before gets its place in the header, and empty cells above.
        """
        try:
            self._metrics.add(row)
            for key, value in row.items():
                if value is not None and key != COUNTER:
                    self._board.add_scalar(key, value, row[COUNTER])
            self._board.flush()
        except OSError as error:
            raise self._cannot_write(error) from None
        if self.bar is not None:
            shown = [key for key in ("loss_generator", "loss_kd", "loss", "accuracy") if row.get(key) is not None]
            self.bar.set_postfix({key.removeprefix("loss_"): f"{row[key]:.4g}" for key in shown})
        self.log(line, shown=not self._notebook)  # there the bar says it

    def show_images(self, step: int, x: Tensor, most: int = 64) -> None:
        """The newest synthetic batch (B, C, H, W) in [0, 1]: synthetic.png, synthetic.pth, TensorBoard."""
        from torchvision.utils import make_grid

        x = x.detach().float().cpu()
        grid = make_grid(x[:most], nrow=8, padding=1, pad_value=1.0)
        try:
            self._board.add_image("synthetic", grid, step)
        except OSError as error:
            raise self._cannot_write(error) from None
        self.save("synthetic.pth", x)
        files.write_whole(self.path / "synthetic.png", lambda file: file.write(_png(grid)))

    def save(self, name: str, content: Any) -> None:
        """A .pth file of tensors and plain values, whole or not at all. Raises ValueError for a name that is a path."""
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no plain file name")
        if name not in WRITTEN and name not in self.left:
            self.left = [*self.left, name]
            self.status("running")  # lists it before it is there
        files.write_whole(self.path / name, lambda file: torch.save(content, file))

    def save_array(self, name: str, values: list[float]) -> None:
        """A .npy file of a list of numbers, in float32."""
        import numpy

        files.write_whole(self.path / name, lambda file: numpy.save(file, numpy.asarray(values, numpy.float32)))

    def save_config(self, config: Mapping[str, Any]) -> None:
        """config.json of the run's first start; a resumption leaves it, and says what differs in the environment."""
        path = self.path / "config.json"
        if not (self.resumed and path.exists()):
            self.save_json("config.json", {"format": FORMAT} | dict(config))
            return
        before = json.loads(path.read_text(encoding="utf-8")).get("environment", {})
        now = config["environment"]
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            self.log(f"warning: begun in another environment, numbers may differ in rounding: {', '.join(changed)}")

    def save_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file, indented."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        files.write_whole(self.path / name, lambda file: file.write(text.encode(errors="backslashreplace")))

    def status(self, state: str, **more: Any) -> None:
        """status.json, for whatever waits for the run: running, stopped, failed or finished, and who writes it."""
        self._status |= more
        self.save_json(STATUS_FILE, {"state": state, "process": os.getpid(), "files": self.left, **self._status})

    def seconds(self) -> float:
        """The run's so far: since this process opened the folder, and those of the processes before."""
        return self._seconds_before + time.perf_counter() - self._started

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, with the time, and says where everything is."""
        self.save_json("summary.json", {**summary, "seconds_total": self.seconds()})
        measured = {"accuracy": summary["accuracy_last"], "agreement": summary.get("agreement")}
        said = [f"{name} {value:.2f} %" for name, value in measured.items() if value is not None]
        result = said[0] if said else "no accuracy, for want of test images,"
        self.status("finished", epoch=summary["epochs"])
        self.log(f"finished: {result} after {self.seconds():.0f} s; {self.path}")

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and read_status(self.path).get("state") == "running":
            with suppress(UserError):  # the disk may be what failed
                self.status("failed", message=first_line(error))
        self.close()

    def close(self) -> None:
        """Closes the bar and the open files, and lets go of the lock."""
        for opened in (self.bar, self._board, self._log):
            if opened is not None:
                with suppress(OSError):  # a full disk has been reported by now
                    opened.close()
        if self._lock is not None:
            self._lock.release()
        threading.excepthook = self._excepthook


def _in_notebook() -> bool:
    """Whether this code runs in a cell of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)  # Colab's is a subclass


def _bar(notebook: bool) -> type[tqdm]:
    """A notebook's widget where it can show one, else a line of text."""
    if notebook and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget

        return widget
    return tqdm


def read_status(folder: Path | str) -> dict[str, Any]:
    """What status.json of a run folder says; empty where there is none that can be read."""
    try:
        status = json.loads((Path(folder) / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _plain_names(names: Any) -> list[str]:
    """Those that name a file in the folder itself: whatever status.json says, nothing else is ever removed."""
    kept = names if isinstance(names, list) else []
    return [name for name in kept if isinstance(name, str) and name not in ("", "..") and Path(name).name == name]


def _png(grid: Tensor) -> bytes:
    from torchvision.transforms.functional import to_pil_image

    buffer = io.BytesIO()
    to_pil_image(grid).save(buffer, format="PNG")
    return buffer.getvalue()


def folder_name(*parts: str | None) -> str:
    """The parts that are not None, joined by hyphens, each as :func:`slug` makes it."""
    return "-".join(slug(part) for part in parts if part)


def slug(name: str) -> str:
    """A data set or model in a file's name: ``timm:a,b=1`` -> ``timm-a-b=1``, ``x/own.py:f`` -> ``own-f``."""
    kind, colon, rest = name.partition(":")
    if kind.endswith(".py"):
        kind, rest = kind.removesuffix(".py").rsplit("/", 1)[-1], rest.replace("/", "-")
    last = rest.rstrip("/").rsplit("/", 1)[-1] if colon else kind.rstrip("/").rsplit("/", 1)[-1]
    plain = last if not colon or kind == "imagefolder" else f"{kind}-{last}"
    plain = re.sub(r"[^\w.+=-]+", "-", plain).lstrip(".")
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}-{zlib.crc32(plain.encode()):08x}"
