"""Bits and perplexity per byte, and rates with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .hearing import Bits


@dataclass(frozen=True)
class Score:
    """Mean surprise over some bytes."""

    bytes: int
    """Bytes predicted."""
    bits_per_byte: float
    perplexity_per_byte: float
    """2 to the power of the bits, 2^1000 at most: as unsure as between so many equally likely bytes."""
    standard_error: float | None
    """Of the bits per byte, as if bytes were independent of each other; None for a single byte."""


@dataclass(frozen=True)
class ColdAndCarried:
    """The same bytes predicted with a memory that is emptied now and then, and with one that is carried through."""

    window_bytes: int
    """After so many bytes the cold memory is emptied."""
    cold: Score
    carried: Score


def score(bits: Bits) -> Score:
    """The mean of what bytes cost; at least one byte."""
    mean = float(bits.mean())
    error = float(bits.std(ddof=1)) / math.sqrt(len(bits)) if len(bits) > 1 else None
    return Score(len(bits), mean, 2.0 ** min(mean, 1000.0), error)


def cold_and_carried(cold: Bits, carried: Bits, window_bytes: int) -> ColdAndCarried:
    """Both scores of the same bytes, from `cold_bits` and `carried_bits`."""
    return ColdAndCarried(window_bytes, score(cold), score(carried))


def wilson_interval(right: int, trials: int) -> tuple[float, float]:
    """Where the true rate lies with 95 % confidence (E. B. Wilson, 1927)."""
    z = 1.959964
    rate = right / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
