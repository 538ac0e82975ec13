"""Where a model runs."""

from __future__ import annotations

import torch

from .errors import DataError


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; `auto` or None takes CUDA, else MPS, else the CPU.

    Raises:
        DataError: no such device here.
    """
    present = [kind for kind, here in (("cuda", torch.cuda.is_available()), ("mps", _mps())) if here] + ["cpu"]
    if name is None or name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        device = None
    if device is None or device.type not in present:
        raise DataError(f"device is {str(name)!r:.60}; this machine has {', '.join(present)}, and auto picks the first")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DataError(f"device is {device}; there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    return device


def _mps() -> bool:
    return torch.backends.mps.is_available()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine does not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
