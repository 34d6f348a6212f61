"""The formats: how a student is written into a folder, and how what was written answers.

safetensors     weights as the architecture's library keeps them     normalised images -> logits
onnx            model.onnx, a graph for any runtime                  pixels in [0, 1] -> logits
torch_export    model.pt2, a graph for PyTorch                       pixels in [0, 1] -> logits
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files
from ..errors import UserError, first_line
from ..models.answers import logits_of
from ..models.classifier import Classifier
from .libraries import WEIGHTS_FILE, Library

OPSET = 18  # ONNX's, of 2022: the lowest that torch.onnx writes without converting
ONNX_FILE, TORCH_EXPORT_FILE = "model.onnx", "model.pt2"
FREE = ({0: torch.export.Dim.DYNAMIC},)  # of the one input: the number of images
NAMED = ({0: torch.export.Dim("batch")},)
METADATA = {"format": "pt"}  # which transformers asks of safetensors
LARGEST_FILE = 2**31 - 2**20  # bytes of weights that protobuf holds, with room for the graph


class Graph(nn.Module):
    """What the graph formats hold: logits of pixels, or of normalised images where ``inside`` is False."""

    def __init__(self, student: Classifier, inside: bool):
        super().__init__()
        self.network, self.answer = student.network, (student.num_classes, student.name, student.picked)
        self.normalisation = student.normalisation if inside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network(self.normalisation(x)), *self.answer)


@dataclass(frozen=True)
class Subject:
    """What is exported: a student in the form that it was made in, and whether graphs normalise by themselves."""

    student: Classifier
    library: Library
    inside: bool = True

    @property
    def in_two_files(self) -> bool:
        """Whether ONNX keeps the weights beside the graph, being too many for one file."""
        network = self.student.network
        size = sum(each.numel() * each.element_size() for each in (*network.parameters(), *network.buffers()))
        return size > LARGEST_FILE

    @property
    def input_name(self) -> str:
        return "pixels" if self.inside else "input"

    def normalise(self, pixels: Tensor) -> Tensor:
        return self.student.normalisation(pixels)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The traced graph, for any number of images, without the paths of the files that it was traced through."""
        example = torch.rand(2, self.student.channels, *self.student.img_size)
        with _quiet(), _tracing(self.student.name):
            self.student(example)  # which finds where its logits lie
            graph = Graph(self.student, self.inside).eval()
            program = torch.export.export(graph, (example,), dynamic_shapes=FREE, strict=False)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        return program


def write_safetensors(subject: Subject, folder: Path) -> None:
    from safetensors.torch import save

    state, remedy = subject.student.network.state_dict(), "export it as torch_export, or without these"
    beside = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if beside:
        raise UserError(
            f"{subject.student.name} keeps more than tensors, which safetensors cannot: {beside[0]}", remedy
        )
    try:
        content = save({key: value.clone().contiguous() for key, value in state.items()}, metadata=METADATA)
    except KeyError as kind:  # a type that it does not know
        raise UserError(f"{subject.student.name} has weights of {kind}, which safetensors has not", remedy) from None
    files.write_whole(folder / WEIGHTS_FILE, lambda file: file.write(content))


def load_safetensors(subject: Subject, folder: Path) -> Callable[[Tensor], Tensor]:
    network, student = subject.library.load(folder), subject.student
    answer = student.num_classes, student.name, student.picked
    return lambda pixels: logits_of(network(subject.normalise(pixels)), *answer)


def write_onnx(subject: Subject, folder: Path) -> None:
    with _quiet(), _tracing(subject.student.name):
        how = {"input_names": [subject.input_name], "output_names": ["logits"], "dynamic_shapes": NAMED}
        program = torch.onnx.export(subject.program, (), dynamo=True, opset_version=OPSET, verbose=False, **how)
        if subject.in_two_files:
            program.save(folder / ONNX_FILE, external_data=True)
            return
        content = program.model_proto.SerializeToString()
    files.write_whole(folder / ONNX_FILE, lambda file: file.write(content))


def load_onnx(subject: Subject, folder: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def answer(pixels: Tensor) -> Tensor:
        x = pixels if subject.inside else subject.normalise(pixels)
        return torch.from_numpy(session.run(["logits"], {subject.input_name: x.numpy()})[0])

    return answer


def write_torch_export(subject: Subject, folder: Path) -> None:
    written = io.BytesIO()
    with _quiet():
        torch.export.save(subject.program, written)
    files.write_whole(folder / TORCH_EXPORT_FILE, lambda file: file.write(written.getbuffer()))


def load_torch_export(subject: Subject, folder: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(folder / TORCH_EXPORT_FILE).module()
    return lambda pixels: module(pixels if subject.inside else subject.normalise(pixels))


@dataclass(frozen=True)
class Format:
    """``write`` leaves its file in a folder; ``load`` reads it there: pixels (B, C, H, W) -> logits (B, classes)."""

    write: Callable[[Subject, Path], None]
    load: Callable[[Subject, Path], Callable[[Tensor], Tensor]]
    needs: tuple[str, ...] = ()  # modules, beside those of the architecture's library
    torch: tuple[int, int] = (2, 6)


FORMATS = {
    "safetensors": Format(write_safetensors, load_safetensors),
    "onnx": Format(write_onnx, load_onnx, ("onnx", "onnxscript", "onnxruntime"), (2, 7)),
    "torch_export": Format(write_torch_export, load_torch_export),
}


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error


@contextmanager
def _quiet() -> Iterator[None]:
    """What tracing has to say, on whichever way, is for those who work on tracing: whole graphs, where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _tracing(name: str) -> Iterator[None]:
    """Within, whatever PyTorch raises (a dozen types) becomes one line."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = first_line(_root(error))
        remedy = "a graph cannot depend on the values or the number of images; export it as safetensors"
        raise UserError(f"{name} cannot be written as a graph: {reason}", remedy) from None
