"""What both entry points share: how a mistake is reported and how the program leaves."""

import os
import sys
from collections.abc import Callable

from .errors import UserError


def run_program(main: Callable[[list[str]], None]) -> None:
    """Calls ``main`` with the command line. A UserError becomes one line on stderr and exit status 2; Ctrl-C becomes
    one line and status 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
