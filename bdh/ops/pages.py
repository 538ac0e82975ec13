"""Large arrays on a CPU in large pages, where the system has them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_LINE = 16
"""Numbers of a cache line, which rows shall not lie across."""


def zeros(*shape: int, device: torch.device | None = None) -> Tensor:
    """Float32 zeros. On a CPU numpy asks for them, which tells Linux that large arrays want large pages.

    A memory is read a row here and a row there, and for pages of 4 KB each of them takes a walk through the page table.
    """
    if device is not None and device.type != "cpu":
        return torch.zeros(shape, device=device)
    size = math.prod(shape)
    whole = np.zeros(size + _LINE, np.float32)
    first = -whole.ctypes.data // whole.itemsize % _LINE
    return torch.from_numpy(whole[first : first + size].reshape(shape))
