"""Large arrays on a CPU in large pages, where the system has them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def zeros(*shape: int, device: torch.device | None = None) -> Tensor:
    """Float32 zeros. On a CPU numpy asks for them, who tells Linux that large arrays want large pages.

    A memory is read a row here and a row there, and for pages of 4 KB each of them takes a walk through the page table.
    """
    if device is None or device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, np.float32))
    return torch.zeros(shape, device=device)
