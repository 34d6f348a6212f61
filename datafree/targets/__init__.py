"""What the student is taught: the teacher's softened answer, hard labels too, both under attack; or true classes."""

from ..errors import UserError
from .attack import Attack
from .base import Targets
from .hard import Hard
from .labels import Labels
from .soft import Soft

TARGETS: dict[str, type[Targets]] = {"soft": Soft, "hard": Hard, "attack": Attack, "labels": Labels}


def chosen(hl: bool, no_aea: bool, fixed: str = "") -> str:
    """The name of the targets that ``--hl`` and ``--no_aea`` ask for; ``fixed`` are a method's own.

    Raises:
        UserError: both.
    """
    if fixed:
        if hl:
            raise UserError(f"--hl has no use here: the method's targets are {fixed}", "leave it out")
        return fixed
    return ("hard" if no_aea else "attack") if hl else "soft"
