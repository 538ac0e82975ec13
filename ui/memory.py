"""What the C library does with memory that was given back."""

from __future__ import annotations

import ctypes

_ARENAS = -8
"""What `mallopt` calls the number of heaps."""


def share_freed_memory() -> None:
    """Let all threads take from one heap, for glibc gives many threads many, and states of 8 MB leave holes in each.

    With 64 visitors that come and go the process would hold twice of what it uses. To be called before there are
    threads; elsewhere than on glibc it does nothing.
    """
    try:
        ctypes.CDLL(None).mallopt(_ARENAS, 1)
    except (AttributeError, OSError, TypeError):
        return
