"""Changing what a model does at some points while it hears, to see what follows from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import DataError
from ..models import Model
from ..models.observe import Scaling, probing
from .points import KINDS, is_index, selected

Neurons: TypeAlias = Tensor | Sequence[tuple[int, int]] | Sequence[int] | None
"""Which numbers of a point: a mask of its shape; (head, index) pairs; indices where it has no heads; None is all."""


@dataclass(frozen=True, eq=False)
class _PointEdit(ABC):
    point: str
    """Name of a point."""

    @abstractmethod
    def apply(self, activation: Tensor) -> Tensor:
        """What goes on in the activation's stead."""

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse what a point of this shape does not have."""


@dataclass(frozen=True, eq=False)
class _NeuronsEdit(_PointEdit):
    neurons: Neurons = None

    def check(self, shape: tuple[int, ...]) -> None:
        _mask(self.neurons, shape, self.point)

    def _chosen(self, activation: Tensor) -> Tensor:
        """Mask that goes with an activation (H, B, T, N) or (B, T, D)."""
        shape = (activation.shape[0], activation.shape[-1]) if activation.dim() == 4 else (activation.shape[-1],)
        mask = _mask(self.neurons, shape, self.point).to(activation.device)
        return mask[:, None, None] if len(shape) == 2 else mask


@dataclass(frozen=True, eq=False)
class Silence(_NeuronsEdit):
    """Let neurons say nothing."""

    def apply(self, activation: Tensor) -> Tensor:
        """0 in their stead."""
        return activation.masked_fill(self._chosen(activation), 0.0)


@dataclass(frozen=True, eq=False)
class Drive(_NeuronsEdit):
    """Let neurons say one value at every byte."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _finite("value", self.value)

    def apply(self, activation: Tensor) -> Tensor:
        """The value in their stead."""
        return activation.masked_fill(self._chosen(activation), self.value)


@dataclass(frozen=True, eq=False)
class ScaleNeurons(_NeuronsEdit):
    """Let neurons say more or less of what they say."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        _finite("factor", self.factor)

    def apply(self, activation: Tensor) -> Tensor:
        """Their activations times the factor."""
        return torch.where(self._chosen(activation), activation * self.factor, activation)


@dataclass(frozen=True, eq=False)
class Replace(_PointEdit):
    """Let something else go on, such as a reconstruction of what was there."""

    function: Callable[[Tensor], Tensor]
    """Takes the activation, (H, B, T, N) or without heads (B, T, D), and gives one of the same shape."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Nothing to refuse before it is called."""

    def apply(self, activation: Tensor) -> Tensor:
        """What the function makes of it, in its type."""
        made = self.function(activation)
        if made.shape != activation.shape:
            raise DataError(
                f"what is put in the stead of {self.point} is {tuple(made.shape)}; it must be "
                f"{tuple(activation.shape)}, as what it replaces"
            )
        return made.to(activation)


@dataclass(frozen=True, eq=False)
class ScaleSynapses:
    """Let synapses of a layer's memory, from x neurons to y neurons, be stronger or weaker.

    What the chosen x neurons read excites the chosen y neurons `factor` times as much; everything else stays, the
    norm of the read included, and what is written does too.
    """

    layer: str | int
    """The layer of BDH, such as `global.1`; a number is that layer of a flat model."""
    x_neurons: Neurons = None
    y_neurons: Neurons = None
    factor: float = 0.0

    def __post_init__(self) -> None:
        _finite("factor", self.factor)

    @property
    def place(self) -> str:
        """The layer by its name."""
        return f"layer.{self.layer}" if isinstance(self.layer, int) else self.layer

    @property
    def point(self) -> str:
        """The point whose neurons send."""
        return f"{self.place}.x_sparse"

    def check(self, shape: tuple[int, ...]) -> None:
        """See `_PointEdit.check`."""
        for neurons in (self.x_neurons, self.y_neurons):
            _mask(neurons, shape, self.place)


Edit: TypeAlias = Silence | Drive | ScaleNeurons | Replace | ScaleSynapses


@contextmanager
def edited(edits: Sequence[Edit], model: Model[Any] | None = None) -> Iterator[None]:
    """Change whatever model this thread runs inside the block, byte by byte or in one pass, streams included.

    Edits of one point are applied in their order. A model that was compiled whole (torch.compile) is not changed. A
    generator that yields inside the block leaves its caller inside it too, so what is yielded is better made whole.

    Args:
        model: the one that will hear, so that a point or a neuron that it has not got is refused at once; without it a
            neuron is refused when a model hears, and a point that is nowhere changes nothing.

    Raises:
        DataError: an edit that is none, or a point or a neuron that is not there.
    """
    for edit in edits:
        if not isinstance(edit, (_PointEdit, ScaleSynapses)):
            raise DataError(f"{edit!r:.100} is no edit; edits are Silence, Drive, ScaleNeurons, Replace, ScaleSynapses")
        if not isinstance(edit.point, str) or edit.point.rpartition(".")[2] not in KINDS:
            raise DataError(f"{edit.point!r:.100} is no point; names end in one of {', '.join(KINDS)}")
        if any(letter in edit.point for letter in "*?["):
            raise DataError(f"{edit.point!r:.100} is a pattern; an edit is of one point, so give one for each")
        if model is not None:
            for point in selected(model, edit.point):
                edit.check(point.shape)
    with probing(_Editor(edits)):
        yield


class _Editor:
    """A probe that changes what it is shown."""

    edits = True

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._at: dict[str, list[_PointEdit]] = {}
        self._scaled: dict[str, list[ScaleSynapses]] = {}
        for edit in edits:
            if isinstance(edit, ScaleSynapses):
                self._scaled.setdefault(f"{edit.place}.", []).append(edit)
            else:
                self._at.setdefault(edit.point, []).append(edit)

    def wants(self, point: str) -> bool:
        return point in self._at

    def see(self, point: str, activation: Tensor) -> Tensor:
        for edit in self._at[point]:
            activation = edit.apply(activation)
        return activation

    def scalings(self, place: str, encoder_v: Tensor) -> Sequence[Scaling]:
        shape = (encoder_v.shape[0], encoder_v.shape[-1])
        return [
            Scaling(
                _mask(edit.x_neurons, shape, place).to(encoder_v.device),
                _mask(edit.y_neurons, shape, place).to(encoder_v.device),
                edit.factor,
            )
            for edit in self._scaled.get(place, ())
        ]


def _mask(neurons: Neurons, shape: tuple[int, ...], where: str) -> Tensor:
    """The chosen neurons as a mask of the shape of a row.

    Raises:
        DataError: neurons that are not there.
    """
    if neurons is None:
        return torch.ones(shape, dtype=torch.bool)
    if isinstance(neurons, Tensor) and neurons.dtype == torch.bool:
        if neurons.shape != shape:
            raise DataError(f"the mask for {where} is {tuple(neurons.shape)}; it must be {shape}")
        return neurons
    mask = torch.zeros(shape, dtype=torch.bool)
    if isinstance(neurons, Tensor):
        neurons = neurons.tolist()
    if isinstance(neurons, str) or not isinstance(neurons, Iterable):
        raise DataError(f"the neurons of {where} are {neurons!r:.60}; give a mask or a list")
    for neuron in neurons:
        index = tuple(neuron) if isinstance(neuron, Iterable) else (neuron,)
        if len(index) != len(shape) or not all(is_index(i, size) for i, size in zip(index, shape, strict=True)):
            form = "(head, index) pairs" if len(shape) == 2 else "indices"
            raise DataError(f"{where} has no neuron {neuron!r:.60}; give {form} below {shape}, or a mask")
        mask[index] = True
    return mask


def _finite(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"the {name} is {value!r:.40}; it must be a finite number")
