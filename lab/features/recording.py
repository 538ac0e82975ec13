"""What a model's neurons and residual do on a text, kept within bounds; and bits per byte with something put back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdh import probe
from bdh.errors import ConfigError, DataError
from bdh.models import Model
from train.data import Bytes
from train.evaluate import streams_bits

from .autoencoders import Coder
from .measures import ACTIVE, STRONGEST

MOST_SAMPLES_BYTES = 1 << 30
"""Of activations on disk."""
STREAMS = 8
"""In which a text is heard with something put back."""
_PIECE_BYTES = 64 << 20
_LONGEST_PIECE = 1024
_FIRING = ("x_sparse", "y_sparse", "gate")

Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes heard since the last call, and bytes in all."""


@dataclass(frozen=True)
class Place:
    """Where activations are taken from."""

    point: probe.Point
    head: int | None
    """Of a point with heads, the one that is taken."""

    @property
    def name(self) -> str:
        """As a person reads it."""
        return self.point.name if self.head is None else f"{self.point.name}, head {self.head}"

    @property
    def width(self) -> int:
        """Numbers in a sample."""
        return self.point.width


def find_place(model: Model[Any], name: str, head: int | None) -> Place:
    """The point of that name; an empty name is the residual of the middle layer that hears bytes.

    Raises:
        ConfigError, DataError: there is no such point, or a head is missing or too much.
    """
    known = probe.points(model)
    if not name:
        residuals = [one for one in known if one.kind == "residual" and one.bytes_per_row == 1] or known[-1:]
        name = residuals[(len(residuals) - 1) // 2].name
    found = probe.selected(model, name)
    if len(found) != 1:
        raise ConfigError(
            f"{name!r:.80} stands for {len(found)} points; name one of {', '.join(p.name for p in found)}"
        )
    point = found[0]
    if point.heads and (head is None or not 0 <= head < point.heads):
        raise ConfigError(f"{point.name} has {point.heads} heads; choose one with --head, from 0 to {point.heads - 1}")
    if not point.heads and head is not None:
        raise ConfigError(f"{point.name} has no heads; leave --head out")
    return Place(point, head)


def own_neurons(model: Model[Any], place: Place) -> tuple[probe.Point, ...]:
    """The model's own neurons to hold against features found at a place: first those of the fairest comparison.

    At a point of neurons these themselves. At a residual first the neurons that read this very vector, x_sparse of the
    layer after it, then those that wrote to it; after the last layer there are only these.
    """
    known = probe.points(model)
    if place.point.is_neurons:
        return (place.point,)
    layers = list(dict.fromkeys(point.place for point in known))
    scale = place.point.place.rpartition(".")[0]
    here = layers.index(place.point.place)
    after = [layer for layer in layers[here + 1 :] if layer.rpartition(".")[0] == scale][:1]
    wishes = (*(f"{layer}.x_sparse" for layer in after), f"{place.point.place}.gate", f"{place.point.place}.mlp")
    return tuple(point for wish in wishes for point in known if point.name == wish)


@dataclass
class Strongest:
    """Of each feature the places where it is strongest, found while a text goes by."""

    values: Tensor
    """(F, places), strongest first."""
    places: Tensor
    """(F, places): bytes of the text; -1 where there are fewer."""
    total: Tensor
    """(F,): sum of the strengths."""
    fired: Tensor
    """(F,): places above 0."""
    rows: int = 0
    """Places heard."""

    @classmethod
    def of(cls, features: int, places: int = STRONGEST) -> Strongest:
        """Nothing heard yet."""
        return cls(
            torch.full((features, places), -torch.inf),
            torch.full((features, places), -1),
            torch.zeros(features),
            torch.zeros(features),
        )

    def take(self, values: Tensor, at: Tensor) -> None:
        """Strengths (T, F) at bytes (T,)."""
        self.total += values.sum(0)
        self.fired += (values > 0).sum(0)
        self.rows += len(values)
        # Features first: along rows that lie together the largest are found many times sooner.
        both = torch.cat((self.values, values.T), dim=1)
        where = torch.cat((self.places, at.expand(len(self.places), -1)), dim=1)
        self.values, which = both.topk(self.values.shape[1], dim=1)
        self.places = where.gather(1, which)

    @classmethod
    def of_code(cls, code: Tensor, at: Tensor) -> Strongest:
        """Of a whole code (T, F) at once; what is hardly active does not count as active."""
        found = cls.of(code.shape[1], min(STRONGEST, len(code)))
        found.take(code, at)
        found.fired = (code > (ACTIVE * code.amax(0)).clamp_min(1e-9)).sum(0).float()
        return found

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What `read` takes, under this name."""
        parts = {"values": self.values, "places": self.places, "total": self.total, "fired": self.fired}
        return {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], name: str) -> Strongest:
        """What was kept under a name, beside the bytes `at` that were heard."""
        values, places, total, fired = (tensors[f"{name}.{part}"] for part in ("values", "places", "total", "fired"))
        return cls(values, places, total, fired, len(tensors["at"]))

    def most_active(self, count: int) -> NDArray[np.int64]:
        """Numbers of the features of most strength in all, of those active in as many places as they are judged by."""
        live = self.live()
        order = self.total[live].argsort(descending=True, stable=True)[:count]
        return live[order.numpy()]

    def live(self) -> NDArray[np.int64]:
        """Numbers of the features that are active in as many places as they are judged by."""
        return (self.fired >= self.values.shape[1]).nonzero().flatten().numpy()

    @property
    def active_each(self) -> float:
        """Features active in a place, mean."""
        return float(self.fired.sum()) / max(1, self.rows)


@dataclass(frozen=True)
class Scale:
    """How activations become samples: centred, and with a mean square of 1."""

    mean: Tensor
    scale: float

    def samples(self, values: Tensor) -> Tensor:
        """Activations as samples."""
        return (values - self.mean) / self.scale

    def values(self, samples: Tensor) -> Tensor:
        """Samples as activations."""
        return samples * self.scale + self.mean


@dataclass(frozen=True)
class Heard:
    """A text as a place saw it."""

    samples: NDArray[np.float32]
    """(n, width)."""
    at: Tensor
    """(n,): the byte of each sample."""


def check_size(place: Place, count_bytes: int) -> None:
    """Refuse what would take too much on disk.

    Raises:
        ConfigError: says what to change.
    """
    needed = 4 * count_bytes // place.point.bytes_per_row * place.width
    if needed > MOST_SAMPLES_BYTES:
        raise ConfigError(
            f"{count_bytes:,} bytes at {place.name} are {needed:,} bytes of activations; at most "
            f"{MOST_SAMPLES_BYTES:,} are kept. Hear less, with --bytes, or choose a narrower point"
        )


def hear_samples(
    model: Model[Any], text: Bytes, place: Place, folder: Path, progress: Progress | None = None
) -> tuple[NDArray[np.float32], Scale]:
    """Samples to learn from, on disk and mapped from there; what is there is not heard again."""
    kept, told = folder / "samples.npy", folder / "scale.safetensors"
    if not (kept.is_file() and told.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        check_size(place, len(text))
        rows = np.concatenate([values.numpy() for values, _, _ in _pieces(model, text, place, (), progress)])
        mean = rows.mean(0)
        rows -= mean
        scale = float(np.sqrt(np.square(rows, dtype=np.float64).mean()))
        if not scale > 0:
            raise DataError(f"{place.name} is the same at every byte of the text: there is nothing to learn")
        rows /= scale
        written = folder / "samples.part.npy"
        np.save(written, rows)
        save_file({"mean": torch.from_numpy(mean), "scale": torch.tensor(scale, dtype=torch.float64)}, told)
        os.replace(written, kept)
    tensors = load_file(told)
    return np.load(kept, mmap_mode="r", allow_pickle=False), Scale(tensors["mean"], float(tensors["scale"]))


def hear_with_neurons(
    model: Model[Any],
    text: Bytes,
    place: Place,
    scale: Scale,
    neurons: Sequence[probe.Point],
    folder: Path,
    progress: Progress | None = None,
) -> tuple[Heard, dict[str, Strongest]]:
    """Samples to measure on, and the model's own neurons on the same bytes; what is on disk is not heard again."""
    kept = folder / "measured.safetensors"
    if not kept.is_file():
        _hear_with_neurons(model, text, place, scale, neurons, kept, progress)
    # Read back in any case: how sums come out depends on where in memory their terms lie.
    tensors = load_file(kept)
    own = {point.name: Strongest.read(tensors, point.name) for point in neurons}
    return Heard(tensors["samples"].numpy(), tensors["at"]), own


def _hear_with_neurons(
    model: Model[Any],
    text: Bytes,
    place: Place,
    scale: Scale,
    neurons: Sequence[probe.Point],
    kept: Path,
    progress: Progress | None,
) -> None:
    found = {point.name: Strongest.of(_count(point, place)) for point in neurons}
    samples, where = [], []
    for values, at, own in _pieces(model, text, place, neurons, progress):
        samples.append(scale.samples(values))
        where.append(at)
        for name, strengths in own.items():
            found[name].take(strengths, at)
    tensors = {"samples": torch.cat(samples), "at": torch.cat(where)}
    for name, one in found.items():
        tensors |= one.tensors(name)
    written = kept.with_suffix(".part")
    save_file(tensors, written)
    os.replace(written, kept)


def put_back(place: Place, scale: Scale, coder: Coder | None) -> probe.Replace:
    """The edit that lets a model go on with what a coder makes of a place; None is the mean, nothing else."""
    firing = place.point.kind in _FIRING

    def rebuilt(values: Tensor) -> Tensor:
        flat = values.flatten(0, -2).float()
        samples = torch.zeros_like(flat) if coder is None else coder.decode(coder.encode(scale.samples(flat)))
        made = scale.values(samples)
        return (made.relu() if firing else made).view_as(values)

    def replaced(activation: Tensor) -> Tensor:
        if place.head is None:
            return rebuilt(activation)
        made = activation.clone()
        made[place.head] = rebuilt(activation[place.head])
        return made

    return probe.Replace(place.point.name, replaced)


def bits_with(model: Model[Any], text: Bytes, edits: Sequence[probe.Edit], progress: Progress | None = None) -> float:
    """Bits per byte of a text heard as some streams, while edits are made."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if progress is not None:
            progress(done - told, total)
        told = done

    with torch.no_grad(), probe.edited(edits, model):
        return float(streams_bits(model, text, STREAMS, progress=tell).mean())


def _pieces(
    model: Model[Any], text: Bytes, place: Place, neurons: Sequence[probe.Point], progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Piece after piece, heard as one stream: activations (T, width), their bytes (T,), and own neurons (T, F)."""
    names = list(dict.fromkeys((place.point.name, *(point.name for point in neurons))))
    each = 4 * sum(max(1, one.heads) * one.width for one in (place.point, *neurons)) + 4 * 256
    # Whole patches, so that each piece has rows.
    patch = place.point.bytes_per_row
    length = max(patch, min(_LONGEST_PIECE, _PIECE_BYTES // each) // patch * patch)
    data, state = text.tobytes(), None
    for start in range(0, len(data) // patch * patch, length):
        piece = data[start : start + length]
        heard = probe.record(model, piece, names, state=state)
        state = heard.state
        values = heard.values[place.point.name]
        own = {point.name: _flat(heard.values[point.name], point, place) for point in neurons}
        yield values if place.head is None else values[place.head], heard.at[place.point.name] + start, own
        if progress is not None:
            progress(len(piece), len(data))


def _flat(values: Tensor, point: probe.Point, place: Place) -> Tensor:
    """Own neurons as (T, F), head by head; of the place itself only its head."""
    if not point.heads:
        return values
    if point == place.point and place.head is not None:
        return values[place.head]
    return values.transpose(0, 1).flatten(1)


def _count(point: probe.Point, place: Place) -> int:
    return point.width if point == place.point else max(1, point.heads) * point.width
