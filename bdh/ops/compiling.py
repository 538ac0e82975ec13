"""How kernels are compiled; imported only with them, because numba takes a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

keeps = True
"""Whether what is compiled is kept in files."""
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile when first called, and keep what was compiled beside the file or in the user's cache.

    The interpreter's lock is not held. Sums may be taken in any order; nothing else is loosened, so NaN stays NaN.
    """
    try:
        return njit(function, cache=keeps, **_OPTIONS)
    except RuntimeError:  # no folder to keep it in
        return njit(function, **_OPTIONS)
