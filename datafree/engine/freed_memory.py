"""What becomes of a CPU's memory when a tensor is freed."""

import ctypes
import os
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
ASKED = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}  # whoever sets one of these decides
LARGEST, LARGEST_BEFORE_2_35 = 1 << 30, 1 << 25  # bytes; glibc of before 2.35 takes no more


def keep_freed_memory() -> None:
    """From now on it stays with this process, for the next tensors.

    Left to itself, glibc gives large blocks back to the system and takes them anew, page by page, at every step of
    training: a tenth of its time. Without effect where the libc has no mallopt(3), or is told otherwise by the
    environment.
    """
    if ASKED & os.environ.keys():
        return
    with suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, LARGEST_BEFORE_2_35)
