"""Where a student comes from, in words and numbers that hold on any machine: no folder and no user of this one."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import files
from ..configuration import as_text
from ..errors import UserError
from ..models.classifier import Classifier
from ..paths import portable
from ..reporting.results import NOT_SETTINGS
from ..reporting.run_networks import RunNetworks
from ..reporting.run_reader import FinishedRun, read_run
from ..runs.folder import folder_name

BEST, LAST = WEIGHTS = "best", "last"
WEIGHT_FILES = {BEST: "best.pth", LAST: "student_last.pth"}


@dataclass(frozen=True)
class Origin:
    """Facts for config.json and the model card; None where a number was not measured.

    Args:
        name: what the model is called.
        architecture: as ``--student`` named it; empty for a network that has no name.
        dataset: what the teacher was trained for; of a model trained on real images, what it was trained on.
        class_names: in the order of the logits; empty where they are not known.
        num_classes: how many there are.
        teacher, method: of a distilled student.
        accuracy, accuracy_teacher: on the data set's test images, in percent.
        accuracy_last: after the newest epoch, where the weights are those of the best.
        agreement: how often student and teacher name the same class, in percent: of the test images where accuracy is
            known, else of synthetic ones.
        weights: "best" or "last".
        epoch: after which the weights were taken; epochs: planned; complete: whether the run came to its end.
        seconds: the run's so far.
        command: the line that made it.
        environment: versions, commit, device.
    """

    name: str
    architecture: str
    dataset: str
    class_names: tuple[str, ...] = ()
    num_classes: int | None = None
    teacher: str | None = None
    method: str | None = None
    accuracy: float | None = None
    accuracy_last: float | None = None
    accuracy_teacher: float | None = None
    agreement: float | None = None
    weights: str = LAST
    epoch: int | None = None
    epochs: int | None = None
    complete: bool = True
    seed: int | None = None
    seconds: float | None = None
    command: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, without what is not known, and without the class names: they have a place of their own."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in known.items() if name != "class_names"}


def command_of(config: Mapping[str, Any]) -> str | None:
    """The command line behind a config.json: every flag that is not at its default, paths by their last name.

    None where the run was started in another way, or by a version that did not say.
    """
    program, defaults = config.get("program", ""), config.get("defaults")
    if not program.endswith(".py") or defaults is None:
        return None
    flags = []
    for name, default in defaults.items():
        value = config.get(name)
        if value != default and value not in (None, False) and name not in NOT_SETTINGS - {"seed"}:
            flags.append(f"--{name}")
            flags += [] if value is True else [shlex.quote(portable(word)) for word in _words(value)]
    return " ".join(["python", program, *flags])


def _words(value: Any) -> list[str]:
    return as_text(value).split() if isinstance(value, list) else [str(value)]


def student_of(path: Path | str, names: Any, weights: str | None = None) -> tuple[Classifier, Origin]:
    """A run's student on the CPU in fp32, and its origin; of a run of train_scratch.py, the trained model.

    Args:
        path: the run folder, complete or not.
        names: the module ``registry``.
        weights: "best" or "last"; by default the best where the run keeps one.

    Raises:
        UserError: as :func:`origin_of` does, or where the run's networks have no names.
    """
    if not _has_names(read_run(path)):
        by_hand = (
            'datafree.export.exporting.export(found.student, origin_of(found.folder, "last"), ...), see docs/export.md'
        )
        raise UserError(f"{path} is a run from Python, whose networks have no names", by_hand)
    origin = origin_of(path, weights)
    run = RunNetworks(path, names, "cpu", "fp32", origin.num_classes)
    named = origin.class_names or run.spec.class_names  # of a run from before its files said so
    return run.student_in(WEIGHT_FILES[origin.weights]), replace(origin, class_names=named)


def _has_names(run: FinishedRun) -> bool:
    """Whether its networks can be made anew by name: those that Python was given cannot."""
    return run.config.get("program", "main.py").endswith(".py")


def origin_of(path: Path | str, weights: str | None = None) -> Origin:
    """What a run's files say of its student.

    Raises:
        UserError: where it is no run folder, or holds no student yet, or not the one asked for.
    """
    run = read_run(path)
    there = [each for each in WEIGHTS if (run.path / WEIGHT_FILES[each]).exists()]
    if not there:
        raise UserError(f"{run.path} holds no trained student yet", f"go on with --resume {run.path}")
    weights = weights or there[0]
    if weights not in there:
        raise UserError(f"{run.path} has no {WEIGHT_FILES[weights]}", f"export --which {there[0]}")
    said = files.load(run.path / WEIGHT_FILES[weights], "student checkpoint")
    config, summary, named = run.config, run.summary, _has_names(run)
    dataset, teacher, student = map(portable, run.task)
    measured = run.metrics.get("accuracy", run.metrics.epoch * float("nan")).dropna()
    spent = run.metrics.filter(regex="^seconds_").sum().sum()
    return Origin(
        name=folder_name(student, dataset),
        architecture=student if named else "",
        dataset=dataset.removeprefix("imagefolder:"),
        class_names=tuple(said.get("class_names", ())),
        num_classes=said.get("num_classes"),
        teacher=teacher or None,
        method=portable(run.method) if teacher else None,
        accuracy=said.get("accuracy"),
        accuracy_last=float(measured.iloc[-1]) if weights == BEST and len(measured) else None,
        accuracy_teacher=summary.get("accuracy_teacher"),
        agreement=said.get("agreement"),
        weights=weights,
        epoch=said.get("epoch", said.get("epochs")),
        epochs=config.get("epochs"),
        complete=run.complete,
        seed=config.get("seed"),
        seconds=float(summary.get("seconds_total", spent)),
        command=command_of(config),
        environment={key: str(value) for key, value in config.get("environment", {}).items()},
    )
