"""Looking at activations while a model hears: for as long as a block lasts, in one thread, with nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias

import torch
from torch import Tensor

Observer: TypeAlias = Callable[[str, Tensor], None]
"""Called with the name of an activation, such as `x_sparse`, and the activation itself, layer after layer."""

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Let `observer` see the activations of whatever model this thread runs inside the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def observe(name: str, activation: Tensor) -> None:
    """Show an activation to whoever is looking; a compiled model shows none."""
    if not torch.compiler.is_compiling() and (observer := _observer.get()) is not None:
        observer(name, activation)


def observed() -> bool:
    """Whether anybody is looking."""
    return not torch.compiler.is_compiling() and _observer.get() is not None


def wanted(name: str, *, unasked: bool = True) -> bool:
    """Whether somebody looks at this activation: an observer may say in `names` which ones it looks at.

    Args:
        unasked: whether one that does not say so is shown it.
    """
    observer = None if torch.compiler.is_compiling() else _observer.get()
    return observer is not None and name in getattr(observer, "names", (name,) if unasked else ())


def looking_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For a checkpoint: nothing on the way there, and on the way back somebody who looks as this thread's observer.

    What an observer computes belongs to the gradient, so it is computed again; an observer that does gives its twin,
    which keeps nothing of this one, by `again()`.
    """
    again: Callable[[], Observer] | None = getattr(_observer.get(), "again", None)
    twin: Observer = again() if again is not None else lambda name, activation: None
    return nullcontext(), observing(twin)
