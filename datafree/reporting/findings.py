"""What there is to say of a run, complete or not: its numbers, its networks tested, its samples, all of it drawn."""

from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from .. import device
from ..analysis.confusion import accuracy, confusion_matrix
from ..analysis.samples import SOURCES, Samples
from ..data.class_names import NAMES
from ..data.datasets import test_images
from ..errors import UserError
from ..evaluation import predict
from .figures import DISTILLATION_CURVES, TRAINING_CURVES, draw_class_accuracy, draw_confusion, draw_curve, draw_samples
from .run_networks import Names, RunNetworks
from .run_reader import FinishedRun, read_run

BOARD_SUFFIX = ".report"  # of the file of TensorBoard events that a report adds


@dataclass
class Findings:
    """What there is to say of a run.

    Attributes:
        run: its numbers.
        names: of the classes.
        matrices: confusion matrices (C, C) on the test set: of "student" and "teacher", or of "model".
        samples: images over rounds.
        missing: by section, why something is not there.
        figures: by TensorBoard tag.
    """

    run: FinishedRun
    names: list[str] = field(default_factory=list)
    matrices: dict[str, Tensor] = field(default_factory=dict)
    samples: Samples | None = None
    missing: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def distilled(self) -> bool:
        """Whether this is a run of main.py, not of train_scratch.py."""
        return "mode" in self.run.config

    @property
    def student(self) -> str:
        """What the trained network is called."""
        return "student" if self.distilled else "model"

    @property
    def teacher_accuracy(self) -> float | None:
        """In percent: of its confusion matrix or, without one, what the run noted at its end."""
        if "teacher" in self.matrices:
            return accuracy(self.matrices["teacher"])
        return self.run.summary.get("accuracy_teacher")

    @property
    def rounds_done(self) -> int:
        """Rows of its metrics."""
        return max(map(len, self.run.metrics.values()), default=0)

    def lacks(self, where: str, error: UserError) -> None:
        """Keeps the reason for the section to give."""
        self.missing.setdefault(where, []).append(str(error))


def examine(path: Path | str, names: Names) -> Findings:
    """Reads a run, tests its networks on real images where these are there, and draws its figures.

    Args:
        path: the run folder; the run may be incomplete.
        names: the module ``registry``.

    Raises:
        UserError: where the folder is no run's.
    """
    found = Findings(read_run(path))
    config = found.run.config
    try:
        networks = RunNetworks(path, names, device.choose("auto", config.get("precision", "auto")))
    except UserError as error:
        found.lacks("classes", error)
        found.lacks("samples", error)
    else:
        spec = networks.spec
        found.names = list(spec.class_names or NAMES.get(spec.name) or map(str, range(spec.num_classes)))
        _test(found, networks)
        if found.distilled:
            _collect_samples(found, spec.img_size)
    _draw(found)
    return found


def _test(found: Findings, networks: RunNetworks) -> None:
    """The confusion matrices of what can be loaded."""
    try:
        images, remark = test_images(networks.spec, Path(networks.config["data_root"]), download=False)
    except UserError as error:
        found.lacks("classes", error)
        return
    if images is None:
        found.missing["classes"] = remark
        return
    for label in ["student", "teacher"] if found.distilled else ["model"]:
        try:
            network = networks.teacher if label == "teacher" else networks.student
        except UserError as error:
            found.lacks("classes", error)
            continue
        predicted, true = predict(network, images, networks.augmentation, networks.compute)
        found.matrices[label] = confusion_matrix(predicted, true, networks.spec.num_classes)


def _collect_samples(found: Findings, img_size: int) -> None:
    """From the first source that has any; what is wrong with one before it is kept for the page."""
    for source in SOURCES:
        try:
            found.samples = source(found.run.path, found.run.config, img_size)
        except UserError as error:
            found.lacks("samples", error)
        if found.samples:
            return


def _draw(found: Findings) -> None:
    level = found.teacher_accuracy
    for tag, curve in (DISTILLATION_CURVES if found.distilled else TRAINING_CURVES).items():
        figure = draw_curve(found.run.metrics, curve, level if tag == "accuracy" else None)
        if figure:
            found.figures[f"curves/{tag}"] = figure
    if found.samples:
        found.figures["samples_over_rounds"] = draw_samples(found.samples)
    for label, matrix in found.matrices.items():
        found.figures[f"confusion/{label}"] = draw_confusion(matrix, found.names, label)
    if found.matrices:
        found.figures["class_accuracy"] = draw_class_accuracy(found.matrices, found.names)


def write_board(found: Findings) -> int:
    """Puts the figures into the run's TensorBoard, in a file of their own in place of an earlier report's.

    Only for a complete run: TensorBoard reads the newest file alone, and a run that goes on writes to an older one.

    Returns:
        How many figures it holds; 0 for an incomplete run.
    """
    figures = {tag: figure for tag, figure in found.figures.items() if not tag.startswith("curves/")}  # scalars there
    if not found.run.complete or not figures:
        return 0
    folder = found.run.path / "tensorboard"
    from torch.utils.tensorboard import SummaryWriter  # two seconds to import

    for earlier in folder.glob(f"events.out.tfevents.*{BOARD_SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(folder, filename_suffix=BOARD_SUFFIX) as board:
        for tag, figure in figures.items():
            board.add_figure(f"report/{tag}", figure, found.rounds_done, close=False)
    return len(figures)
