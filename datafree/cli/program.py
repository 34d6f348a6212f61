"""What both entry points share: how a mistake is reported and how the program leaves."""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import NoReturn

from .. import processes
from ..engine.freed_memory import keep_freed_memory
from ..errors import UserError, is_out_of_memory
from ..runs.stopping import Stopped


def run_program(main: Callable[[list[str]], None]) -> None:
    """Calls ``main`` with the command line and leaves.

    A UserError becomes one line on stderr and exit status 2, and so does what the machine refuses wherever it does:
    memory, or a file. A signal becomes one line and 128 plus its number.
    """
    _keep_what_is_imported()
    keep_freed_memory()
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us, or a program of Windows without a terminal
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (as long as we live)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the terminal cannot show
    try:
        with processes.watched():
            main(sys.argv[1:])
        processes.leave()
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except Stopped as stopped:
        first = processes.first()
        processes.leave()
        if first:
            with suppress(OSError):  # its terminal may be what is gone
                print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt as interrupt:
        if processes.first():
            print("interrupted; what was saved is whole", file=sys.stderr)
        sys.exit(128 + (*interrupt.args, signal.SIGINT)[0])
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        _silence_stdout()
        sys.exit(141)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(
            str(UserError(f"cannot use{where or ' a file'}: {error.strerror or error}", "check the path and the disk"))
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "lower the batch sizes, the widths or --epochs; on a GPU, --step eager takes less; a run that "
        remedy += "had begun goes on with --resume"
        _fail(str(UserError(f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more of it'}", remedy)))


@cache
def _keep_what_is_imported() -> None:
    """The garbage collector passes over it, and over everything as the program ends: memory goes back anyway."""
    gc.freeze()
    atexit.register(gc.freeze)


@cache
def keep_what_is_built() -> None:
    """The same for a run's networks and what came with them. Once: a process of many runs would keep them all."""
    gc.freeze()


def _fail(message: str) -> NoReturn:
    if processes.first_to_fail():
        print(f"error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()
    sys.exit(2)


def _silence_stdout() -> None:
    """What is left of our output goes nowhere, so that the interpreter does not complain about it as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
