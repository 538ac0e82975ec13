"""What fires while a model reads: neurons over bytes, the part that is active a layer, and what a neuron fires for."""

from __future__ import annotations

import csv
import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bdh import probe
from bdh.errors import DataError
from bdh.models import Model
from bdh.probe import Point
from bdh.sampling import surprise_bits
from train.plots import draw_raster
from train.shipped import CORPORA, held_out_start

Floats: TypeAlias = NDArray[np.float32]
Whole: TypeAlias = NDArray[np.int64]

ROWS = 256
"""Neurons that a raster shows."""
_PIECE_BYTES, PIECE_MEMORY = 256, 32 << 20
"""Bytes heard at once, and what their recording may take."""
MOST_VALUES = 1 << 24
"""Neurons times bytes of a reading."""
_ROWS_AT_ONCE = 64
"""Bytes whose neurons are sorted at once."""


class Active(NamedTuple):
    """How much of a layer fires."""

    place: str
    kind: str
    part: float
    """Values above 0, over all heads, neurons and bytes (or patches)."""


@dataclass(frozen=True)
class Reading:
    """What a model did at each byte of a text."""

    point: Point
    head: int | None
    """None where the point has no heads."""
    data: bytes
    values: Floats
    """(T, N): activations of the point and head at each byte; a patch's at each of its bytes."""
    costs: NDArray[np.float64]
    """(T,): bits that each byte cost; the first one, which nothing predicts, 8."""
    likeliest: Whole
    """(T, 5): the bytes most expected after each, the likeliest first."""
    chances: Floats
    """(T, 5): their probabilities."""
    active: tuple[Active, ...]

    @property
    def bits_per_byte(self) -> float:
        """What a byte cost on average, the first one left out if there are others."""
        return float(self.costs[1:].mean() if len(self.costs) > 1 else self.costs.mean())


class Raster(NamedTuple):
    """Neurons over bytes, as a picture shows them."""

    neurons: Whole
    """Those shown, from top to bottom, so that neurons that fire together stand together."""
    values: Floats
    """(neurons, T)."""
    fired: int
    """Neurons that fired at any byte, those not shown included."""


class Firing(NamedTuple):
    """A byte at which a neuron fired, or a patch."""

    first: int
    """Of its bytes in the text."""
    last: int
    value: float


def neuron_points(model: Model[Any]) -> tuple[Point, ...]:
    """The points whose numbers are neurons'."""
    return tuple(point for point in probe.points(model) if point.is_neurons)


def neuron_point(model: Model[Any], name: str, head: int) -> Point:
    """A point whose numbers are neurons', and which has the head, if it has any.

    Raises:
        DataError: it is not there.
    """
    known = {point.name: point for point in neuron_points(model)}
    if name not in known:
        raise DataError(
            f"{name!r:.100} is no place of neurons in this {model.config.kind} model; there are {', '.join(known)}"[
                :500
            ]
        )
    if known[name].heads and (isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < known[name].heads):
        raise DataError(f"{name} has no head {head!r:.40}; its heads are 0 to {known[name].heads - 1}")
    return known[name]


def read(model: Model[Any], data: bytes, name: str, head: int = 0) -> Iterator[int | Reading]:
    """Hear a text from an empty memory; how many bytes were heard so far, and at the end the reading.

    Args:
        name: of a point whose numbers are neurons'.

    Raises:
        DataError: no bytes, no such point or head, or more neurons times bytes than a reading holds.
    """
    point = neuron_point(model, name, head)
    if len(data) * point.width > MOST_VALUES:
        raise DataError(
            f"{len(data):,} bytes times {point.width:,} neurons are too many to be shown; read at most "
            f"{MOST_VALUES // point.width:,} bytes with this model"
        )
    counted = [one for one in neuron_points(model) if one.kind != "gate"]
    above: dict[str, list[float]] = {one.name: [0.0, 0.0] for one in counted}
    rows, costs, likeliest, chances = [], [], [], []
    before = np.zeros((1, 256))
    for start, heard in _pieces(model, data, [point.name, *above], None):
        for one in counted:
            values = heard.values[one.name]
            above[one.name][0] += float(probe.active(values).sum())
            above[one.name][1] += values.numel()
        mine = heard.values[point.name]
        rows.append((mine[head] if point.heads else mine).numpy().copy())
        logits = heard.logits.double().numpy()
        _check(logits)
        piece = np.frombuffer(data, np.uint8)[start : start + len(logits)]
        costs.append(surprise_bits(np.concatenate((before, logits[:-1])))[np.arange(len(piece)), piece])
        before = logits[-1:]
        best = np.argsort(-logits, axis=1)[:, :5]
        likeliest.append(best)
        chances.append(np.exp2(-np.take_along_axis(surprise_bits(logits), best, 1)))
        yield start + len(logits)
    active = tuple(
        Active(one.place, one.kind, above[one.name][0] / above[one.name][1] if above[one.name][1] else 0.0)
        for one in counted
    )
    yield Reading(
        point,
        head if point.heads else None,
        data,
        _at_bytes(np.concatenate(rows), point.bytes_per_row, len(data)),
        np.concatenate(costs),
        np.concatenate(likeliest),
        np.concatenate(chances).astype(np.float32),
        active,
    )


def fire(model: Model[Any], data: bytes, name: str, head: int, neuron: int) -> Iterator[int | Floats]:
    """Hear a text from an empty memory; how many bytes were heard so far, and at the end what one neuron did.

    The last is (rows,): a value for each byte, or for each patch at a point that hears patches.

    Raises:
        DataError: no such point, head or neuron.
    """
    point = neuron_point(model, name, head)
    if isinstance(neuron, bool) or not isinstance(neuron, int) or not 0 <= neuron < point.width:
        raise DataError(f"there is no neuron {neuron!r:.40} at {name}; they are 0 to {point.width - 1}")
    rows = []
    for start, heard in _pieces(model, data, [name], head if point.heads else None):
        rows.append(heard.values[name][:, neuron].numpy().copy())
        yield start + len(heard.logits)
    yield np.concatenate(rows)


def raster(reading: Reading, most: int = ROWS) -> Raster:
    """The neurons that fire most, those side by side that fire at the same bytes."""
    values = reading.values.clip(min=0)
    total = values.sum(0)
    fired = int((total > 0).sum())
    loudest = np.sort(np.argsort(-total, kind="stable")[: min(most, fired)])
    shown = loudest[together(values[:, loudest].T)]
    return Raster(shown, values[:, shown].T, fired)


def together(values: Floats) -> Whole:
    """An order of rows in which similar ones are neighbours: that of the slowest way in which they differ.

    It is the second eigenvector of the normalised Laplacian of the rows' cosine similarities.

    Args:
        values: (rows, columns), none below 0 and no row without a value above it.
    """
    if len(values) < 3:
        return np.arange(len(values))
    unit = values.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    alike = unit @ unit.T + 1e-6  # so that groups which share nothing are joined
    scale = 1 / np.sqrt(alike.sum(1))
    _, vectors = np.linalg.eigh(scale[:, None] * alike * scale)
    slowest = vectors[:, -2] * scale
    if slowest[np.argmax(np.abs(slowest))] < 0:  # of the two directions always the same one
        slowest = -slowest
    return np.argsort(slowest, kind="stable")


def loudest(reading: Reading, count: int) -> list[list[tuple[int, float]]]:
    """At each byte the neurons that fire most, with what they say; fewer where fewer fire."""
    return _most(reading.values, reading.values, count)


def standing_out(reading: Reading, count: int) -> list[list[tuple[int, float]]]:
    """At each byte the neurons that fire most above their own mean over the text, with what they say."""
    above = np.where(reading.values > 0, reading.values - reading.values.mean(0), 0)
    return _most(above, reading.values, count)


def strongest_firings(values: Floats, bytes_per_row: int = 1, *, count: int = 12, apart: int = 16) -> list[Firing]:
    """Where a neuron fired most, strongest first; of firings less than `apart` bytes from each other the strongest."""
    found: list[Firing] = []
    for row in np.argsort(-values, kind="stable"):
        if values[row] <= 0 or len(found) == count:
            break
        first = int(row) * bytes_per_row
        if all(abs(first - other.first) >= max(apart, bytes_per_row) for other in found):
            found.append(Firing(first, first + bytes_per_row - 1, float(values[row])))
    return found


def corpus_names() -> list[str]:
    """The shipped corpora."""
    return sorted(path.name.removesuffix(".txt.xz") for path in CORPORA.glob("*.txt.xz"))


@lru_cache(maxsize=16)
def excerpt(name: str, most_bytes: int) -> bytes:
    """The beginning of what recipes keep of a shipped corpus from training.

    Raises:
        DataError: there is no such corpus.
    """
    if name not in corpus_names():
        raise DataError(f"there is no shipped corpus {name!r:.40}; there are {', '.join(corpus_names())}")
    data = lzma.decompress((CORPORA / f"{name}.txt.xz").read_bytes())
    start = held_out_start(len(data))
    return data[start : start + most_bytes]


def save(reading: Reading, folder: Path, *, heading: str = "", notes: Mapping[str, str] | None = None) -> list[Path]:
    """Write the whole reading as NPZ, what happened at each byte as CSV, and the raster as PNG.

    Args:
        heading: of the drawing; empty is the reading's title.
        notes: kept in the NPZ as texts under their names.
    """
    npz, table, png = (folder / f"reading.{suffix}" for suffix in ("npz", "csv", "png"))
    np.savez_compressed(
        npz,
        bytes=np.frombuffer(reading.data, np.uint8),
        activations=reading.values,
        bits=reading.costs,
        likeliest=reading.likeliest.astype(np.uint8),
        chances=reading.chances,
        point=np.array(reading.point.name),
        head=np.array(-1 if reading.head is None else reading.head),
        active=np.array([one.part for one in reading.active]),
        active_points=np.array([f"{one.place}.{one.kind}" for one in reading.active]),
        **{name: np.array(note) for name, note in (notes or {}).items()},  # type: ignore[arg-type]
    )
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "byte", "bits", "neurons_firing", "strongest_neurons", "likeliest_next"])
        for index, (byte, found) in enumerate(zip(reading.data, loudest(reading, 5), strict=True)):
            loud = " ".join(f"{neuron}:{value:.4g}" for neuron, value in found)
            coming = " ".join(
                f"{next_byte}:{chance:.3f}"
                for next_byte, chance in zip(
                    reading.likeliest[index].tolist(), reading.chances[index].tolist(), strict=True
                )
            )
            firing = int((reading.values[index] > 0).sum())
            writer.writerow([index, byte, f"{reading.costs[index]:.4f}", firing, loud, coming])
    shown = raster(reading)
    draw_raster(shown.values, reading.costs, heading or title(reading), png)
    return [npz, table, png]


def title(reading: Reading) -> str:
    """What is shown, such as `layer.0.x_sparse, head 2`."""
    return reading.point.name + ("" if reading.head is None else f", head {reading.head}")


def _most(order: Floats, values: Floats, count: int) -> list[list[tuple[int, float]]]:
    """Of each row the places where `order` is largest and above 0, with the values there."""
    count, found = min(count, order.shape[1]), []
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        best = np.argpartition(-rows, count - 1, axis=1)[:, :count]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(rows, best, 1), axis=1, kind="stable"), 1)
        found += [
            [(place, float(values[row, place])) for place in places if order[row, place] > 0]
            for row, places in enumerate(best.tolist(), start)
        ]
    return found


def _pieces(
    model: Model[Any], data: bytes, names: Sequence[str], head: int | None
) -> Iterator[tuple[int, probe.Recorded]]:
    """Recordings of a text, piece by piece, with the place where each begins."""
    if not data:
        raise DataError("there is no text to read; write some, or choose an example")
    points = probe.selected(model, names)
    numbers = sum(point.width * (max(1, point.heads) if head is None else 1) for point in points)
    size = max(1, min(_PIECE_BYTES, PIECE_MEMORY // (4 * numbers)))
    state = None
    for start in range(0, len(data), size):
        heard = probe.record(model, data[start : start + size], names, heads=head, state=state)
        state = heard.state
        yield start, heard


def _at_bytes(rows: Floats, bytes_per_row: int, length: int) -> Floats:
    """A row for each byte: a patch's at each of its bytes, zeros for one that was not completed."""
    if bytes_per_row == 1:
        return rows
    spread = np.repeat(rows, bytes_per_row, axis=0)
    return np.concatenate((spread, np.zeros((length - len(spread), rows.shape[1]), np.float32)))


def _check(logits: NDArray[np.float64]) -> None:
    if not np.isfinite(logits).all():
        raise DataError("the model's prediction is not finite, so there is nothing to see; check the checkpoint")
