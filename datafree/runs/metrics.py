"""metrics.csv: a row an epoch, with whatever columns were reported."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import files

COUNTER = "epoch"  # the first column
PLACES = (("loss",), (), ("lr",), ("teacher_passes", "seconds"))  # how the names of columns begin, from left to right


class Metrics:
    """The file and its rows. Nothing is written before :meth:`begin`. All raise OSError where it cannot be.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._columns: list[str] = [COUNTER]
        self._rows: list[Mapping[str, Any]] = []

    def begin(self, epoch: int, resumed: bool) -> bool:
        """Anew or, of a resumed run, after its first ``epoch`` rows; False where some of these are lost."""
        if resumed and self.path.exists():
            with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
                reader = csv.DictReader(file)
                whole = [row for row in reader if None not in row.values() and row.get(COUNTER, "").isdigit()]
                self._rows = [row for row in whole if int(row[COUNTER]) <= epoch]
                self._columns = list(reader.fieldnames or [COUNTER])
        self._write()
        return len(self._rows) >= epoch

    def add(self, row: Mapping[str, Any]) -> None:
        """A row; None leaves a cell empty. A column that was not there before has empty cells above."""
        values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        columns = ordered([*self._columns, *(name for name in row if name not in self._columns)])
        self._rows.append(values)
        if columns != self._columns or not self.path.exists():
            self._columns = columns
            self._write()
        else:
            with open(self.path, "ab", buffering=0) as file:
                files.append(file, _csv_line([values.get(name) for name in columns]))

    def _write(self) -> None:
        lines = [self._columns, *([row.get(name) for name in self._columns] for row in self._rows)]
        files.write_whole(self.path, lambda file: file.write(b"".join(map(_csv_line, lines))))


def ordered(columns: list[str]) -> list[str]:
    """The counter, losses, whatever else, the learning rate, what it cost; each kind in the order that it came."""

    def place(name: str) -> int:
        if name in (COUNTER, "round"):
            return -1
        return next((i for i, starts in enumerate(PLACES) if name.startswith(starts)), 1)

    return sorted(columns, key=place)


def _csv_line(cells: list[Any]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()
