"""BDH beside the Transformer baseline: what is exactly zero, how memory grows with length, where attention goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh import probe
from bdh import state as states
from bdh.config import ComposedConfig, Config, HierarchicalConfig, TransformerConfig
from bdh.errors import DataError
from bdh.models import Model, parameter_count, state_bytes
from train.plots import Map, draw_maps

from .memory import listen, places

SMALL = 0.01
"""Of the largest activation of its byte: below it one counts as small."""
_KINDS = {"x_sparse": "x_sparse", "y_sparse": "y_sparse", "gate": "x · y", "mlp": "MLP"}
_PIECE_BYTES = 32_000_000
"""Of activations that are recorded at once."""
_PIECE = 128
_NUMBER_BYTES = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Activity:
    """The activations at one point, over a text."""

    place: str
    kind: str
    """`x_sparse`, `y_sparse`, `x · y`, or `MLP` for what is behind a block's GELU or ReLU."""
    count: int
    """Numbers a byte (or patch)."""
    active: float
    """Part that is not exactly 0."""
    small: float
    """Part that is smaller than `SMALL` of the largest of its byte, zeros included."""


def activity(model: Model[Any], data: bytes, *, progress: Progress | None = None) -> list[Activity]:
    """How many activations are exactly 0, and how many nearly so, layer by layer.

    Args:
        progress: called with bytes heard and bytes in all.

    Raises:
        DataError: no bytes.
    """
    points = [point for point in probe.points(model) if point.kind in _KINDS]
    width = sum(max(1, point.heads) * point.width for point in points)
    # Whole patches, so that a piece ends where a patch does.
    patch = max(point.bytes_per_row for point in points)
    piece = max(1, min(_PIECE, _PIECE_BYTES // (_NUMBER_BYTES * width)) // patch) * patch
    sums: dict[str, list[float]] = {point.name: [0.0, 0.0, 0.0] for point in points}
    state = None
    for start in range(0, len(data), piece):
        found = probe.record(model, data[start : start + piece], [point.name for point in points], state=state)
        state = found.state
        for point in points:
            values = found.values[point.name].movedim(0, 1).flatten(1) if point.heads else found.values[point.name]
            if not len(values):  # a patch that is not completed yet
                continue
            sizes = values.abs()
            limit = SMALL * sizes.amax(1, keepdim=True)
            counted = probe.active(values).sum(), (sizes <= limit).sum()
            for place, part in enumerate((values.numel(), *map(int, counted))):
                sums[point.name][place] += part
        if progress is not None:
            progress(min(start + piece, len(data)), len(data))
    return [
        Activity(
            point.place,
            _KINDS[point.kind],
            max(1, point.heads) * point.width,
            sums[point.name][1] / sums[point.name][0],
            sums[point.name][2] / sums[point.name][0],
        )
        for point in points
        if sums[point.name][0]
    ]


def kept_a_byte(config: Config) -> int:
    """Bytes that keys and values of one more byte take in a Transformer that forgets nothing.

    Raises:
        DataError: the model is no Transformer.
    """
    if not isinstance(config, TransformerConfig):
        raise DataError(f"this is a {config.kind} model; what is kept a byte is asked of a transformer")
    return 2 * config.n_layer * config.n_embd * _NUMBER_BYTES


def even_bytes(config: Config, baseline: TransformerConfig) -> int:
    """The length from which a Transformer that forgets nothing keeps more than a model's constant memory."""
    return -(-state_bytes(config) // kept_a_byte(baseline))


class Held(NamedTuple):
    """The memory of a stream after so many bytes; in bytes."""

    heard_bytes: int
    allocated: int
    """By its tensors."""
    filled: int
    """By numbers in them that are not 0."""


def held(model: Model[Any], data: bytes, lengths: list[int], *, progress: Progress | None = None) -> list[Held]:
    """What a stream's memory takes at some lengths of a text, measured on its tensors.

    Args:
        lengths: ascending, at most that of the text.
    """
    state, found, before = model.empty_state(1), [], 0
    for length in lengths:
        piece = torch.frombuffer(bytearray(data[before:length]), dtype=torch.uint8)[None]
        with torch.no_grad():
            state = model.step_(piece, state).state
        tensors = states.named_tensors(state).values()
        filled = sum(int((one != 0).sum()) * one.element_size() for one in tensors if one.is_floating_point())
        found.append(Held(length, states.state_bytes(state), filled))
        before = length
        if progress is not None:
            progress(length, lengths[-1])
    return found


def equal_transformer(config: Config, *, block_size: int = 256) -> TransformerConfig:
    """A Transformer with about as many parameters: as many layers and heads as a flat model, its width fitted."""
    if isinstance(config, (TransformerConfig, ComposedConfig)):
        raise DataError(f"a {config.kind} model was given; give one of BDH layers to be equalled")
    layers = config.global_n_layer + config.local_n_layer if isinstance(config, HierarchicalConfig) else config.n_layer
    heads = config.global_n_head if isinstance(config, HierarchicalConfig) else config.n_head
    return transformer_of(parameter_count(config), layers, heads, block_size)


def transformer_of(parameters: int, layers: int, heads: int, block_size: int) -> TransformerConfig:
    """A Transformer of about so many parameters, its width fitted."""
    step = 2 * heads
    # It has 12 L D² + (258 + 4 L) D.
    linear = 258 + 4 * layers
    near = int(((linear**2 + 48 * layers * parameters) ** 0.5 - linear) / (24 * layers * step))
    fitted = [
        TransformerConfig(n_layer=layers, n_head=heads, n_embd=step * width, block_size=block_size)
        for width in range(max(1, near - 1), near + 3)
    ]
    return min(fitted, key=lambda one: abs(parameter_count(one) - parameters))


@dataclass(frozen=True)
class Reading:
    """Where one head reads from, over a text: row t is byte (or patch) t, column j what came before."""

    title: str
    shares: NDArray[np.float32]
    """(T, T): of all that is read, the part that comes from j; of BDH signed, the sizes of a row adding up to 1."""
    own: bool
    """A byte sees itself, too."""

    @property
    def reach(self) -> float:
        """How many bytes (or patches) back is read on average, rows that read nothing left out."""
        sizes = np.abs(self.shares)
        steps = np.arange(len(sizes))
        back = (sizes * np.abs(steps[:, None] - steps)).sum(1)
        return float(back[sizes.sum(1) > 0].mean()) if sizes.any() else 0.0

    @property
    def spread(self) -> float:
        """Over how many places a row's reading is spread: e to the entropy of its sizes, mean over rows."""
        sizes = np.abs(self.shares)
        sizes = sizes[sizes.sum(1) > 0]
        logs = np.log(np.where(sizes > 0, sizes, 1))
        return float(np.exp(-(sizes * logs).sum(1)).mean()) if len(sizes) else 0.0


def hebbian_reading(model: Model[Any], data: bytes, layer: str, head: int) -> Reading:
    """The linear attention that a head's Hebbian memory amounts to.

    Raises:
        DataError: there is no such layer or head, or the text is too long or short.
    """
    found = {place.name: place for place in places(model.config)}
    if layer not in found:
        raise DataError(
            f"there is no layer {layer!r:.60} with a Hebbian memory; there are {', '.join(found) or 'none'}"
        )
    weights = listen(model, data, found[layer], head).attention_map()
    sums = weights.abs().sum(1, keepdim=True)
    shares = torch.where(sums > 0, weights / sums, weights)
    return Reading(f"{found[layer].title}, head {head + 1}", shares.numpy(), own=False)


def softmax_reading(model: Model[Any], data: bytes, layer: int, head: int) -> Reading:
    """The softmax attention of a Transformer's head.

    Raises:
        DataError: the model is no Transformer, or there is no such layer or head.
    """
    config = model.config
    if not isinstance(config, TransformerConfig):
        raise DataError(f"this is a {config.kind} model; softmax attention is asked of a transformer")
    if not 0 <= layer < config.n_layer:
        raise DataError(f"the layer is {layer}; this model has layers 0 to {config.n_layer - 1}")
    names = [f"layer.{layer}.query", f"layer.{layer}.key"]
    found = probe.record(model, data, names, heads=head).values
    query, key = (found[name] for name in names)
    steps = torch.arange(len(data))
    age = steps[:, None] - steps
    scores = (query @ key.mT) / query.shape[1] ** 0.5
    shares = scores.masked_fill((age < 0) | (age >= config.block_size), float("-inf")).softmax(1)
    return Reading(f"layer {layer + 1} of {config.n_layer}, head {head + 1}", shares.numpy(), own=True)


@torch.no_grad()
def text_bits(model: Model[Any], data: bytes) -> float:
    """Bits per byte of a text, heard from an empty memory; its first byte, which nothing predicts, left out.

    Raises:
        DataError: fewer than two bytes.
    """
    if len(data) < 2:
        raise DataError(f"the text has {len(data)} bytes; give at least 2")
    ids = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]
    logits: Tensor = model(ids[:, :-1], keep_state=False).logits[0].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:].long().to(logits.device))
    return float(nats) / float(np.log(2))


def draw(path: Path, readings: dict[str, Reading]) -> None:
    """Write maps of attention as a picture, each in its own scale."""
    draw_maps(
        {
            f"{name}: {one.title}": Map(one.shares, "what came before", "byte or patch")
            for name, one in readings.items()
        },
        path,
        label="part of what is read",
        apart=True,
    )
