"""What the student is taught about a batch: the teacher's softened answer, hard labels too, or both under attack."""

from .attack import Attack
from .base import Targets
from .hard import Hard
from .soft import Soft

TARGETS: dict[str, type[Targets]] = {"soft": Soft, "hard": Hard, "attack": Attack}


def chosen(hl: bool, no_aea: bool) -> str:
    """The name of the targets that ``--hl`` and ``--no_aea`` ask for."""
    return ("hard" if no_aea else "attack") if hl else "soft"
