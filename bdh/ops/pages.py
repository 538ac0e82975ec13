"""Large arrays on a CPU in memory of their own, of large pages where the system has them."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

_LINE = 16
"""Numbers of a cache line, which rows shall not lie across."""
_LARGE = 1 << 18
"""Numbers from which on an array has memory of its own."""


def zeros(*shape: int, device: torch.device | None = None) -> Tensor:
    """Float32 zeros. On a CPU large ones are asked for from the system, in large pages, and go back to it.

    A memory is read a row here and a row there, and for pages of 4 KB each of them takes a walk through the page table.
    And memories come and go with their listeners: in the heap that all share they would leave holes between what stays.
    """
    if device is not None and device.type != "cpu":
        return torch.zeros(shape, device=device)
    size = math.prod(shape)
    if size >= _LARGE:
        return torch.from_numpy(np.frombuffer(_own(size * 4), np.float32).reshape(shape))
    whole = np.zeros(size + _LINE, np.float32)
    first = -whole.ctypes.data // whole.itemsize % _LINE
    return torch.from_numpy(whole[first : first + size].reshape(shape))


def _own(size_bytes: int) -> mmap.mmap:
    """Zeros that belong to nothing else, given back when nothing refers to them any more.

    Raises:
        MemoryError: the system has not so much.
    """
    kind = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        memory = mmap.mmap(-1, size_bytes, **kind)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"there is no memory for {size_bytes:,} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
