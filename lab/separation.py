"""Which of many measurements tell two groups apart: ranks, effects, corrections, and what chance alone would find.

Everything is one-sided: a measurement separates if it is larger in the first group.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK = 4_096
"""Measurements that are ranked, or shuffled, at once."""
_EXACT = 2_500
"""Pairs of rows up to which U is held against its own distribution; beyond, the normal one is near enough."""


class Separation(NamedTuple):
    """How well each of F measurements tells the groups apart."""

    u: Floats
    """Pairs of one sentence of each group in which the first group's is larger; ties count half."""
    effect: Floats
    """Rank-biserial correlation, 2 U / (n1 n2) - 1: 1 separates wholly, 0 not at all, -1 the other way round."""
    p: Floats
    """Of that much or more by chance: one-sided Mann-Whitney U. Exact for small groups whose only ties are of the
    lowest value, such as a silent neuron's 0; else normal with ties and continuity corrected, but never under
    `least_p`."""


class Ranked(NamedTuple):
    """Measurements as ranks."""

    ranks: NDArray[np.float32]
    """(S, F): from 1 on down each column; ties share their mean."""
    tied: Floats
    """(F,): the sum of t³ - t over groups of t equal values."""


def ranked(values: NDArray[np.float32]) -> Ranked:
    """The ranks of `values` (S, F) within each column."""
    count, features = values.shape
    ranks, tied = np.empty((count, features), np.float32), np.empty(features)
    places = np.arange(count)
    for start in range(0, features, _BLOCK):
        rows = np.ascontiguousarray(values[:, start : start + _BLOCK].T)
        order = rows.argsort(axis=1)
        ordered = np.take_along_axis(rows, order, axis=1)
        begins = np.ones(rows.shape, bool)
        begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        ends = np.roll(begins, -1, axis=1)  # the last place ends a group because the first begins one
        first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
        last = np.minimum.accumulate(np.where(ends, places, count)[:, ::-1], axis=1)[:, ::-1]
        shared = np.empty(rows.shape, np.float32)
        np.put_along_axis(shared, order, ((first + last) / 2 + 1).astype(np.float32), axis=1)
        ranks[:, start : start + _BLOCK] = shared.T
        # A group of t adds t² - 1 at each of its t places.
        tied[start : start + _BLOCK] = ((last - first + 1.0) ** 2 - 1).sum(axis=1)
    return Ranked(ranks, tied)


def separation(found: Ranked, first: NDArray[np.bool_]) -> Separation:
    """How well each column separates the rows in `first` (S,) from the others.

    A column whose values are all equal has effect 0 and p 1.

    Raises:
        ValueError: a group has no rows.
    """
    n1, n = int(first.sum()), len(first)
    n2 = n - n1
    if not n1 or not n2:
        raise ValueError(f"groups of {n1} and {n2} rows cannot be told apart; each needs at least one")
    u = found.ranks[first].sum(axis=0, dtype=np.float64) - n1 * (n1 + 1) / 2
    variance = n1 * n2 / 12 * ((n + 1) - found.tied / (n * (n - 1)))
    deviation = np.sqrt(np.maximum(variance, 0))
    z = np.divide(u - n1 * n2 / 2 - 0.5, deviation, out=np.full(len(u), -np.inf), where=deviation > 1e-9)
    # Not 1 - Φ(z), nor torch's ndtr, which are 0 from about 1e-16 on.
    p = np.maximum(torch.special.erfc(torch.from_numpy(z / np.sqrt(2))).numpy() / 2, least_p(n1, n2))
    if n1 * n2 <= _EXACT:
        lowest = (2 * found.ranks.min(axis=0) - 1).astype(np.int64)  # how many share the lowest value
        exact = found.tied == lowest**3 - lowest
        for count in np.unique(lowest[exact]).tolist():
            columns = np.flatnonzero(exact & (lowest == count))
            p[columns] = _exact(u[columns], n1, n2, count)
    return Separation(u, 2 * u / (n1 * n2) - 1, p)


def _exact(u: Floats, n1: int, n2: int, lowest: int) -> Floats:
    """The chance of each U or more if `lowest` rows share the lowest value and no others share one.

    By how many of these are of the first group: what is above them are two groups without ties.
    """
    chances, found = _chances(n1, n2), np.zeros(len(u))
    for low in range(max(0, lowest - n2), min(lowest, n1) + 1):
        high, other = n1 - low, lowest - low
        above = chances[high][n2 - other]
        part = math.comb(lowest, low) * math.comb(n1 + n2 - lowest, high) / math.comb(n1 + n2, n1)
        needed = np.ceil(u - high * other - low * other / 2).astype(np.int64)
        inside = needed < len(above)
        found[inside] += part * above[needed[inside].clip(min=0)]
    return np.minimum(found, 1.0)


def least_p(n1: int, n2: int) -> float:
    """The smallest p that groups of these sizes can give: of all orders alike, that in which the first is on top."""
    return 1 / math.comb(n1 + n2, n1)


@lru_cache(maxsize=4)
def _chances(n1: int, n2: int) -> list[list[Floats]]:
    """The chance of a U of at least 0, 1, ... i j if all orders are as likely, without ties, for groups up to these.

    By the sizes i and j of the groups.
    """
    # The last in the order is of the first group in i of i + j cases, and then above all j of the second.
    exactly: list[list[Floats]] = [[np.ones(1) for _ in range(n2 + 1)]]
    for i in range(1, n1 + 1):
        rows = [np.ones(1)]
        for j in range(1, n2 + 1):
            part = np.zeros(i * j + 1)
            part[j:] = i / (i + j) * exactly[i - 1][j]
            part[: i * (j - 1) + 1] += j / (i + j) * rows[j - 1]
            rows.append(part)
        exactly.append(rows)
    return [[part[::-1].cumsum()[::-1] for part in rows] for rows in exactly]


def chance_of(effects: Floats, shuffled: Floats) -> Floats:
    """The p of effects by shuffles: the part of these (ascending), the true groups counted as one, that reach each."""
    return (1 + len(shuffled) - np.searchsorted(shuffled, effects - 1e-9)) / (1 + len(shuffled))


def best_by_chance(found: Ranked, first: NDArray[np.bool_], shuffles: int, seed: int) -> Floats:
    """The largest effect among all columns when the rows' groups are shuffled, (shuffles,) in ascending order."""
    n1, n = int(first.sum()), len(first)
    generator = np.random.default_rng(seed)
    groups = np.zeros((shuffles, n), np.float32)
    for row in groups:
        row[generator.permutation(n)[:n1]] = 1
    # Sums of halves below 2^23 are exact in float32.
    most = np.full(shuffles, -np.inf, np.float32)
    for start in range(0, found.ranks.shape[1], _BLOCK):
        np.maximum(most, (groups @ found.ranks[:, start : start + _BLOCK]).max(axis=1), out=most)
    u = most.astype(np.float64) - n1 * (n1 + 1) / 2
    return np.sort(2 * u / (n1 * (n - n1)) - 1)


def benjamini_hochberg(p: Floats) -> Floats:
    """The false discovery rate at which each would just be found: p corrected by Benjamini and Hochberg."""
    order = p.argsort()
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return corrected


def bonferroni(p: Floats) -> Floats:
    """The chance of even one such find among all that were tried, at most: p times their number."""
    return np.minimum(p * len(p), 1)


def halves(first: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Which rows are searched, the others being held out: half of each group, the larger half if they are odd.

    Of groups of one size the same places are searched, so that where rows are matched, such as two sentences that
    differ in a word, what is held out has no twin among what is searched.
    """
    generator = np.random.default_rng(seed)
    searched = np.zeros(len(first), bool)
    groups = [np.flatnonzero(group) for group in (first, ~first)]
    order = generator.permutation(len(groups[0]))
    for rows in groups:
        if len(rows) != len(order):
            order = generator.permutation(len(rows))
        searched[rows[order[: (len(rows) + 1) // 2]]] = True
    return searched


def smallest_groups(tried: int, sure: float) -> int:
    """How many rows each of two equal groups needs so that one of so many measurements can be sure by Bonferroni."""
    count = 1
    while least_p(count, count) * tried >= sure:
        count += 1
    return count
