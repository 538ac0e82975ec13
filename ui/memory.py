"""What the C library does with memory that was given back."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_ARENAS = -8
"""What `mallopt` calls the number of heaps."""
_LOOK_S = 15.0
_GROWN_BYTES = 100_000_000
_RESIDENT = Path("/proc/self/statm")


def share_freed_memory() -> None:
    """Let all threads take from one heap, for glibc gives many threads many, and states of 8 MB leave holes in each.

    With 64 visitors that come and go the process would hold twice of what it uses. To be called before there are
    threads; elsewhere than on glibc it does nothing.
    """
    try:
        ctypes.CDLL(None).mallopt(_ARENAS, 1)
    except (AttributeError, OSError, TypeError):
        return


def return_freed_memory() -> None:
    """From now on, when the process has grown, give the system back what glibc keeps of it though it was freed.

    What is kept lies between blocks that are used, and grows with the visitors that come and go. Elsewhere than with
    glibc on Linux nothing is done.
    """
    look = trimming()
    if look is None:
        return

    def look_after() -> None:
        while True:
            time.sleep(_LOOK_S)
            with suppress(OSError):  # such as no file descriptor left just now
                look()

    threading.Thread(target=look_after, daemon=True, name="trimming").start()


def trimming(grown_bytes: int = _GROWN_BYTES) -> Callable[[], bool] | None:
    """What gives back what was freed, if the process is so much larger than after the last time; says whether it did.

    It takes 50 to 90 ms where a gigabyte was freed. None where there is no such thing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
        trim(0)
        small = resident_bytes()
    except (AttributeError, OSError, TypeError):
        return None

    def look() -> bool:
        nonlocal small
        now = resident_bytes()
        small = min(small, now)
        if now < small + grown_bytes:
            return False
        trim(0)
        small = resident_bytes()
        return True

    return look


def resident_bytes() -> int:
    """What of the process is in memory.

    Raises:
        OSError: not on this system.
    """
    return int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
