"""Looking at activations, and changing them, while a model hears: for as long as a block lasts, in one thread.

An observer looks at activations by the names that all layers share, such as `x_sparse`. A probe knows the places apart,
such as `layer.0.x_sparse`, and may hand back another activation than it was shown; `bdh.probe` has those that are
wanted. Nothing is left behind, and where nobody looks nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Observer: TypeAlias = Callable[[str, Tensor], None]
"""Called with the name of an activation, such as `x_sparse`, and the activation itself, layer after layer."""


class Scaling(NamedTuple):
    """Synapses of one layer and what their strength is multiplied by."""

    sending: Tensor
    """(H, N) bool: the x neurons that they come from."""
    receiving: Tensor
    """(H, N) bool: the y neurons that they lead to."""
    factor: float


class Probe(Protocol):
    """Looks at activations by their places."""

    edits: bool
    """Whether it may change what it is shown, so that what fused kernels skip must be computed."""

    def wants(self, point: str) -> bool:
        """Whether it is to be shown the activation at a place, such as `layer.0.x_sparse`."""
        ...

    def see(self, point: str, activation: Tensor) -> Tensor | None:
        """Look; returns what goes on in the activation's stead, of its shape, or None for the activation itself."""
        ...

    def scalings(self, place: str, encoder_v: Tensor) -> Sequence[Scaling]:
        """The synapses that it changes in the layer at a place, such as `layer.0.`."""
        ...


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
_probes: ContextVar[tuple[Probe, ...]] = ContextVar("probes", default=())
_within: ContextVar[str] = ContextVar("within", default="")


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Let `observer` see the activations of whatever model this thread runs inside the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def probing(probe: Probe) -> Iterator[None]:
    """Show `probe` what whatever model this thread runs inside the block does, after those of blocks around it."""
    token = _probes.set((*_probes.get(), probe))
    try:
        yield
    finally:
        _probes.reset(token)


def within(place: str) -> AbstractContextManager[None]:
    """Names of places begin with `place` inside the block, such as `member.0.`; free where no probe looks."""
    return nullcontext() if torch.compiler.is_compiling() or not _probes.get() else _placed(place)


@contextmanager
def _placed(place: str) -> Iterator[None]:
    token = _within.set(_within.get() + place)
    try:
        yield
    finally:
        _within.reset(token)


def observe(name: str, activation: Tensor, place: str = "") -> Tensor:
    """Show an activation to whoever is looking; a compiled model shows none.

    Args:
        place: where it is, such as `layer.0.`; empty for what has no place and is for observers alone.

    Returns:
        The activation, or what a probe put in its stead.
    """
    if torch.compiler.is_compiling():
        return activation
    if place:
        activation = show(name, activation, place)
    if (observer := _observer.get()) is not None:
        observer(name, activation)
    return activation


def show(name: str, activation: Tensor, place: str) -> Tensor:
    """As `observe`, but to probes alone."""
    if torch.compiler.is_compiling() or not (probes := _probes.get()):
        return activation
    point = f"{_within.get()}{place}{name}"
    for probe in probes:
        if probe.wants(point):
            edited = probe.see(point, activation)
            activation = activation if edited is None else edited
    return activation


def scalings(place: str, encoder_v: Tensor) -> Sequence[Scaling]:
    """The synapses of the layer at a place that probes change."""
    if torch.compiler.is_compiling() or not (probes := _probes.get()):
        return ()
    return [one for probe in probes if probe.edits for one in probe.scalings(_within.get() + place, encoder_v)]


def observed() -> bool:
    """Whether anybody is looking."""
    return not torch.compiler.is_compiling() and (_observer.get() is not None or bool(_probes.get()))


def edited() -> bool:
    """Whether anybody may change what a model does."""
    return not torch.compiler.is_compiling() and any(probe.edits for probe in _probes.get())


def wanted(name: str, place: str = "", *, unasked: bool = True) -> bool:
    """Whether somebody looks at this activation: an observer may say in `names` which ones it looks at.

    Args:
        place: as in `observe`.
        unasked: whether an observer that does not say so is shown it.
    """
    if torch.compiler.is_compiling():
        return False
    if place and any(probe.wants(f"{_within.get()}{place}{name}") for probe in _probes.get()):
        return True
    observer = _observer.get()
    return observer is not None and name in getattr(observer, "names", (name,) if unasked else ())


def looking_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For a checkpoint: nothing on the way there, and on the way back somebody who looks as this thread's observer.

    What an observer computes belongs to the gradient, so it is computed again; an observer that does gives its twin,
    which keeps nothing of this one, by `again()`. What probes edit on the way there they edit on the way back.
    """
    again: Callable[[], Observer] | None = getattr(_observer.get(), "again", None)
    twin: Observer = again() if again is not None else lambda name, activation: None
    return nullcontext(), _again(twin, tuple(probe for probe in _probes.get() if probe.edits), _within.get())


@contextmanager
def _again(observer: Observer, probes: tuple[Probe, ...], place: str) -> Iterator[None]:
    before = _probes.set(probes), _within.set(place)
    try:
        with observing(observer):
            yield
    finally:
        _probes.reset(before[0])
        _within.reset(before[1])
