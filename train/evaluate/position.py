"""Bits per byte against position: whether a stream far longer than what was trained on stays as good."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bdh.errors import DataError
from bdh.models import Model

from ..data import Bytes
from .hearing import Bits, Progress, Tally, hear, judge, streams_side_by_side
from .score import score

HOLDS_RATIO = 1.01
"""A stream holds if its late bytes cost at most so many times what they cost behind a short past."""

_WINDOWS, _WINDOW_BYTES = 8, 1024


@dataclass(frozen=True)
class Position:
    """Mean surprise over the bytes of one stretch of a stream."""

    start_bytes: int
    """Bytes heard before its first byte."""
    end_bytes: int
    """Bytes heard after its last byte."""
    bytes: int
    bits_per_byte: float
    standard_error: float | None
    """As if bytes were independent of each other; None for a single byte."""


@dataclass(frozen=True)
class LongRange:
    """The same bytes, heard far into one stream and heard again by streams that began shortly before them."""

    far_bytes: int
    """Bytes that the long stream had heard at the end of them."""
    near_bytes: int
    """Bytes that the short streams had heard before them."""
    bytes: int
    far_bits_per_byte: float
    near_bits_per_byte: float
    ratio: float
    """Far over near: above 1, the long past does harm."""
    standard_error: float
    """Of the ratio, from the windows that the bytes lie in."""
    holds: bool
    """Whether the ratio is at most 1.01."""


def against_position(carried: Bits) -> list[Position]:
    """Means of what `carried_bits` gives, in stretches that end at 2, 5, 10, 20, 50, … bytes.

    A last stretch shorter than a quarter of the one before it belongs to that one.
    """
    edges = [1]
    for edge in _edges():
        if edge > len(carried):
            break
        edges.append(edge)
    if len(edges) > 1 and len(carried) + 1 - edges[-1] < (edges[-1] - edges[-2]) / 4:
        edges.pop()
    edges.append(len(carried) + 1)
    positions = []
    for start, end in itertools.pairwise(edges):
        mean = score(carried[start - 1 : end - 1])
        positions.append(Position(start, end, mean.bytes, mean.bits_per_byte, mean.standard_error))
    return positions


def long_range(
    model: Model[Any], text: Bytes, carried: Bits, *, near_bytes: int = 2000, progress: Progress | None = None
) -> LongRange | None:
    """Compare the last 8 KiB of a stream with the same bytes heard from `near_bytes` before.

    Because the bytes are the same, how hard they are to predict falls out of the ratio.

    Args:
        carried: what `carried_bits` gives for `text`.

    Returns:
        None if the text is too short for the two to differ.
    """
    if near_bytes < 1:
        raise DataError(f"near_bytes is {near_bytes}; it must be at least 1")
    if len(text) < _WINDOWS * _WINDOW_BYTES + 2 * near_bytes:
        return None
    starts = [len(text) - _WINDOW_BYTES * count for count in range(_WINDOWS, 0, -1)]
    tally = Tally(progress, _WINDOWS * (near_bytes + _WINDOW_BYTES))
    near = []
    side_by_side = streams_side_by_side(model)
    for first in range(0, _WINDOWS, side_by_side):
        batch = starts[first : first + side_by_side]
        heard = hear(model, [text[start - near_bytes : start].tobytes() for start in batch], tally)
        endings = [text[start : start + _WINDOW_BYTES].tobytes() for start in batch]
        near += [judged.bits.mean() for judged in judge(model, heard, endings)]
        tally.add(len(batch) * _WINDOW_BYTES)
    far = np.array([carried[start - 1 : start - 1 + _WINDOW_BYTES].mean() for start in starts])
    near_mean = max(float(np.mean(near)), 1e-9)
    ratio = float(far.mean()) / near_mean
    residual = far - ratio * np.array(near)
    error = float(residual.std(ddof=1)) / math.sqrt(_WINDOWS) / near_mean
    return LongRange(
        far_bytes=len(text),
        near_bytes=near_bytes,
        bytes=_WINDOWS * _WINDOW_BYTES,
        far_bits_per_byte=float(far.mean()),
        near_bits_per_byte=near_mean,
        ratio=ratio,
        standard_error=error,
        holds=ratio <= HOLDS_RATIO,
    )


def _edges() -> Iterator[int]:
    """Endless: 2, 5, 10, 20, 50, 100 and so on."""
    decade = 1
    while True:
        yield from (2 * decade, 5 * decade, 10 * decade)
        decade *= 10
