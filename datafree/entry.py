"""What both entry points share: how a mistake is reported and how the program leaves."""

import os
import sys
from collections.abc import Callable

from .errors import UserError
from .stopping import Stopped


def run_program(main: Callable[[list[str]], None]) -> None:
    """Calls ``main`` with the command line and leaves.

    A UserError becomes one line on stderr and exit status 2; a signal one line and 128 plus its number.
    """
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt:
        print("interrupted; what was saved is whole", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
