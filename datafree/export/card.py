"""The model card: README.md in the form of the Hugging Face hub, written from the run's own numbers.

Its Python lines are complete: each block reads ``image.png`` and gives the student's logits, and a test runs them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..models.answers import expression
from .formats import Subject
from .origin import Origin

CARD_FILE = "README.md"
TEMPLATE = "card.md.j2"


def card(
    subject: Subject, origin: Origin, differences: Mapping[str, Any], tolerance: float, batches: Sequence[int]
) -> str:
    """The text of README.md.

    Args:
        subject, origin: what was exported, and where it comes from.
        differences: what was found when each format was read back, by format.
        tolerance, batches: how they were compared.
    """
    how = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **how)
    environment.filters |= {"percent": lambda value: f"{value:.2f} %", "call": _call, "duration": duration}
    student = subject.student
    takes, (height, width) = student.input_format, student.img_size
    about = {"channels": student.channels, "height": height, "width": width, "mean": takes["mean"], "std": takes["std"]}
    about["num_classes"] = student.num_classes
    about["made_of"] = {"num_classes": student.num_classes} | subject.library.arguments
    about["parameters"] = sum(parameter.numel() for parameter in student.network.parameters())
    with torch.no_grad():
        answer = student.network(student.normalise(torch.zeros(2, student.channels, height, width)))
    about["logits"] = expression(answer, student.num_classes, student.picked)
    checks = {"formats": differences, "tolerance": tolerance, "batches": batches}
    known = {"origin": origin, "library": subject.library, "inside": subject.inside, "input_name": subject.input_name}
    known["in_two_files"] = subject.in_two_files
    return environment.get_template(TEMPLATE).render(**about, **checks, **known)


def _call(arguments: Mapping[str, Any]) -> str:
    """Keyword arguments as Python writes them, each after a comma."""
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def duration(seconds: float) -> str:
    """As ``95 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
