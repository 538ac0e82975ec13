"""What a model remembers, as types: named tuples of tensors that the caller owns.

Axes, here and in every signature of this package: B streams of a batch, T bytes (or patches) of a call,
L layers, H heads, N neurons of a head, D width, V = 256 byte values, P bytes of a patch, W entries of a
window, K members. Every tensor of a state has B first, so that streams can be selected and joined; positions
are int64, sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from .errors import StateError


class HebbianMemory(NamedTuple):
    """The state of a `flat` or `hebbian` model."""

    position: Tensor
    """(B,) int64: bytes heard."""
    memory: tuple[Tensor, ...]
    """L sums of outer products, each (B, H, N, D) float32."""


class Window(NamedTuple):
    """Keys and values of the last W positions of one attention layer, newest last."""

    keys: Tensor
    """(B, H, W, D / H)."""
    values: Tensor
    """(B, H, W, D / H)."""


class WindowMemory(NamedTuple):
    """The state of a `transformer`."""

    position: Tensor
    """(B,) int64: bytes heard."""
    layers: tuple[Window, ...]
    """One window a layer."""


LayerMemory: TypeAlias = Tensor | Window


class HierarchicalMemory(NamedTuple):
    """The state of a `hierarchical` model, its open patch included."""

    position: Tensor
    """(B,) int64: bytes heard."""
    patch: Tensor
    """(B, P) int64: the bytes of the open patch, zeros behind them."""
    context: Tensor
    """(B, local D) float32: what the global model says to the open patch."""
    global_layers: tuple[LayerMemory, ...]
    """One memory a global layer, over patches."""
    local_layers: tuple[LayerMemory, ...]
    """One memory a local layer, over the bytes of the open patch."""


class MembersMemory(NamedTuple):
    """The state of a composed model with methods `average` and `deep`."""

    members: tuple[Any, ...]
    """One state a member."""

    @property
    def position(self) -> Tensor:
        """(B,) int64: bytes heard."""
        return self.members[0].position


class MixtureMemory(NamedTuple):
    """The state of a composed model with method `mixture`."""

    members: tuple[Any, ...]
    """One state a member."""
    log_weights: Tensor
    """(B, K) float32: log of each member's posterior weight."""
    predictions: Tensor
    """(B, K, V) float32: each member's log probabilities for the byte to come."""

    @property
    def position(self) -> Tensor:
        """(B,) int64: bytes heard."""
        return self.members[0].position


State: TypeAlias = HebbianMemory | WindowMemory | HierarchicalMemory | MembersMemory | MixtureMemory
S = TypeVar("S")


def map_tensors(function: Callable[[Tensor], Tensor], state: S) -> S:
    """The same state with `function` applied to each of its tensors."""
    if isinstance(state, Tensor):
        return function(state)  # type: ignore[return-value]
    mapped = [map_tensors(function, part) for part in state]  # type: ignore[attr-defined]
    return type(state)(*mapped) if hasattr(state, "_fields") else tuple(mapped)  # type: ignore[return-value]


def clone(state: S) -> S:
    """A copy that shares no memory with `state`."""
    return map_tensors(torch.clone, state)


def detach(state: S) -> S:
    """The same values, cut off from the autograd graph (truncated backpropagation through time)."""
    return map_tensors(Tensor.detach, state)


def to_device(state: S, device: torch.device | str) -> S:
    """The state on another device."""
    return map_tensors(lambda tensor: tensor.to(device), state)


def select(state: S, streams: Sequence[int]) -> S:
    """A copy that holds only the given streams of the batch, in the given order."""
    return map_tensors(lambda tensor: tensor[list(streams)], state)


def join(states: Sequence[S]) -> S:
    """One state whose batch holds the streams of all the given ones, in order."""
    if isinstance(states[0], Tensor):
        return torch.cat(list(states))  # type: ignore[arg-type,return-value]
    parts = [join(parts) for parts in zip(*states, strict=True)]
    first = states[0]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)  # type: ignore[return-value]


def apart(state: S, other: object) -> S:
    """The same state with a copy of each tensor that it shares with `other`."""
    if torch.compiler.is_compiling():  # there are no addresses, and what is copied for nothing is merged away
        return clone(state)
    shared = {tensor.untyped_storage().data_ptr() for tensor in named_tensors(other).values()}
    return map_tensors(
        lambda tensor: tensor.clone() if tensor.untyped_storage().data_ptr() in shared else tensor, state
    )


def copy_(target: S, source: S) -> None:
    """Overwrite the values of `target` with those of `source`, in place."""
    for into, value in zip(named_tensors(target).values(), named_tensors(source).values(), strict=True):
        into.copy_(value)


def named_tensors(state: object, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of the state by its dotted name, such as `memory.0`."""
    if isinstance(state, Tensor):
        return {prefix.rstrip("."): state}
    names = getattr(state, "_fields", None) or map(str, range(len(state)))  # type: ignore[arg-type]
    named: dict[str, Tensor] = {}
    for name, part in zip(names, state, strict=True):  # type: ignore[call-overload]
        named |= named_tensors(part, f"{prefix}{name}.")
    return named


def from_named_tensors(template: S, tensors: dict[str, Tensor]) -> S:
    """A state shaped like `template` with the values of `tensors`.

    Raises:
        StateError: a tensor is missing, superfluous, or of another shape or type.
    """
    expected = named_tensors(template)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise StateError(f"the saved memory lacks {missing[0]!r}; it was not saved by a model of this shape")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise StateError(f"the saved memory holds {extra[0]!r:.100}, which this model does not have")
    for name, tensor in expected.items():
        given = tensors[name]
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise StateError(
                f"{name!r} of the saved memory is {tuple(given.shape)} {given.dtype}; "
                f"this model needs {tuple(tensor.shape)} {tensor.dtype}"
            )
    values = iter([tensors[name] for name in expected])
    return map_tensors(lambda tensor: next(values).to(tensor.device), template)


def state_bytes(state: object) -> int:
    """Bytes that the state's tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in named_tensors(state).values())
