"""The one exception that a user is meant to see.

Raised wherever the cause lies in what the program was given (an argument, a file, a folder, a full disk).
The entry points print it as a single line, ``error: <what> — <what to do>``, and leave with status 2.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right.

    Args:
        what: what is wrong, in one line, naming the offending value.
        remedy: what to do about it, in one line.
    """

    def __init__(self, what: str, remedy: str):
        self.what = " ".join(str(what).split())
        self.remedy = " ".join(str(remedy).split())
        super().__init__(f"{self.what} — {self.remedy}")


def nearest_names(name: str, known: Iterable[str], most: int = 4) -> str:
    """A phrase that names what the user may have meant: the nearest known names, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
