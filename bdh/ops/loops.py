"""Calls of compiled loops: numba is imported with the first, and a cache that it cannot use is done without."""

from __future__ import annotations

import importlib
import logging
import os
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch

_logger = logging.getLogger(__name__)
_lock = Lock()


def allowed() -> bool:
    """Whether anything may be compiled; BDH_COMPILED=off says that it shall not."""
    return os.environ.get("BDH_COMPILED", "").strip().lower() not in ("off", "0", "false", "no")


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether loops can be compiled here."""
    if not allowed():
        return False
    try:
        _modules()["tried"](np.zeros(1, np.int64), np.zeros(1, np.float32))
    except Exception as error:  # whatever ails numba here, the plain operations do
        _logger.warning("without compiled loops, bytes are heard several times slower on a CPU: %s", str(error)[:300])
        return False
    return True


def usable(device: torch.device) -> bool:
    """Whether loops can take the place of plain operations on a device, now."""
    return device.type == "cpu" and not torch.compiler.is_compiling() and available()


def call(name: str, *arguments: Any) -> Any:
    """Run a loop of `kernels` or `step_kernels`, compiled for the types of these arguments.

    What was compiled is kept in files; where they are damaged or cannot be written, it is compiled for this process.
    """
    try:
        return _modules()[name](*arguments)
    except MemoryError:
        raise
    except Exception as error:  # loops raise nothing else themselves: it failed before anything was written
        compiling: Any = importlib.import_module(".compiling", __package__)
        with _lock:
            if compiling.keeps:
                _logger.warning("compiled loops are not kept: %s", repr(error)[:300])
                compiling.keeps = False
                for module in _NAMES:
                    importlib.reload(importlib.import_module(module, __package__))
                _modules.cache_clear()
        return _modules()[name](*arguments)


_NAMES = (".kernels", ".step_kernels")


@lru_cache(maxsize=1)
def _modules() -> dict[str, Any]:
    """Loops by name."""
    return {
        name: loop
        for module in _NAMES
        for name, loop in vars(importlib.import_module(module, __package__)).items()
        if not name.startswith("_")
    }
