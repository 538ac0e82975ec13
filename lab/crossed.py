"""Every model on every text: bits per byte from the same blocks of the same bytes, and how far from the specialists.

Intervals are of 95 %: mean ± t · standard error over blocks of about 512 bytes, as if blocks were independent of each
other. A ratio's is from paired blocks, so that how hard a block is falls out of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bdh.errors import ConfigError, DataError
from bdh.models import Model
from train.data import Bytes
from train.evaluate import hearing, streams_bits

BLOCK_BYTES = 512

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with bytes heard by all models so far, bytes in all, and the name of the model that is hearing."""
_Variance: TypeAlias = tuple[float, int]
"""Of a mean, with its degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A mean and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Costs:
    """What the blocks of a text cost a model."""

    bits: NDArray[np.float64]
    """(blocks,): sums."""
    bytes: NDArray[np.int64]
    """(blocks,): predicted in each; the same for every model."""


@dataclass(frozen=True)
class Hearing:
    """What a model made of the texts."""

    costs: dict[str, Costs]
    parameters: int
    bytes_per_s: float
    """Of all streams together, heard side by side."""


@dataclass(frozen=True)
class Row:
    """A model on all texts."""

    name: str
    texts: dict[str, Estimate]
    """Bits per byte."""
    average: Estimate
    """Mean over the texts, each weighing the same."""
    ratio: Estimate
    """Mean over the texts of the bits over those of the text's specialist."""
    parameters: int
    bytes_per_s: float
    """Heard, of all streams together."""


@dataclass(frozen=True)
class Crossed:
    """All models on all texts."""

    rows: tuple[Row, ...]
    """In the order in which the models were given."""
    specialists: dict[str, str]
    """By text, the name of the model that the others are held against."""
    predicted_bytes: dict[str, int]
    """By text."""

    def row(self, name: str) -> Row:
        """The row of a model."""
        return next(row for row in self.rows if row.name == name)

    def best(self) -> dict[str, Estimate]:
        """Bits per byte of each text's specialist."""
        return {text: self.row(name).texts[text] for text, name in self.specialists.items()}


def crossed(
    models: Mapping[str, Model[Any]],
    texts: Mapping[str, Bytes],
    *,
    parents: Sequence[str] = (),
    specialists: Mapping[str, str] | None = None,
    streams: int = 8,
    progress: Progress | None = None,
) -> Crossed:
    """Measure every model on every text.

    Args:
        models: may load each as it is asked for: one after another is looked at.
        parents: of the models, those that may be a text's specialist; none given are all.
        specialists: by text; None takes the best of the parents for each.
        streams: contiguous pieces of each text, heard side by side with their state carried.

    Raises:
        ConfigError: there is no model or no text, or a specialist is none of the models.
        DataError: a text is too short.
    """
    found = {}
    total = len(models) * sum(map(len, texts.values()))
    for index, (name, model) in enumerate(models.items()):
        before = index * total // len(models)
        found[name] = listen(model, texts, streams=streams, progress=_within(progress, before, total, name))
    return compare(found, parents=parents, specialists=specialists)


def listen(
    model: Model[Any],
    texts: Mapping[str, Bytes],
    *,
    streams: int = 8,
    progress: hearing.Progress | None = None,
) -> Hearing:
    """What every block of every text costs a model.

    Args:
        progress: called with bytes heard and bytes in all.

    Raises:
        DataError: a text has less than 3 bytes a stream.
    """
    total, done, predicted = sum(map(len, texts.values())), 0, 0
    costs: dict[str, Costs] = {}
    begun = time.perf_counter()
    for name, text in texts.items():
        if len(text) < 3 * streams:
            raise DataError(
                f"{name} has {len(text)} bytes to measure on; {streams} streams need at least {3 * streams}"
            )
        bits = streams_bits(model, text, streams, progress=_after(progress, done, total))
        costs[name] = block_costs(bits)
        done, predicted = done + len(text), predicted + bits.size
    return Hearing(costs, model.parameter_count(), predicted / (time.perf_counter() - begun))


def mean_hearing(hearings: Sequence[Hearing]) -> Hearing:
    """What models of one size made of the same texts on average: of seeds of one experiment."""
    first = hearings[0]
    costs = {
        text: Costs(np.mean([one.costs[text].bits for one in hearings], axis=0), of_first.bytes)
        for text, of_first in first.costs.items()
    }
    return Hearing(costs, first.parameters, float(np.mean([one.bytes_per_s for one in hearings])))


def compare(
    hearings: Mapping[str, Hearing], *, parents: Sequence[str] = (), specialists: Mapping[str, str] | None = None
) -> Crossed:
    """Hold what models made of the same texts against each other; see `crossed`.

    Raises:
        ConfigError: as `crossed`.
    """
    if not hearings or not next(iter(hearings.values())).costs:
        raise ConfigError("there is nothing to compare: give at least one model and one text")
    texts = list(next(iter(hearings.values())).costs)
    candidates = list(parents) or list(hearings)
    if specialists is None:
        # By bits alone: all heard the same bytes.
        specialists = {
            text: min(candidates, key=lambda name, text=text: hearings[name].costs[text].bits.sum())  # type: ignore[misc]
            for text in texts
        }
    for text in texts:
        if specialists.get(text) not in hearings:
            raise ConfigError(
                f"the specialist of {text} is {specialists.get(text)!r:.100}; it must be one of {', '.join(hearings)}"
            )
    rows = []
    for name, heard in hearings.items():
        bits, ratios = {}, {}
        for text, costs in heard.costs.items():
            bits[text] = _quotient(costs.bits, costs.bytes)
            ratios[text] = _quotient(costs.bits, hearings[specialists[text]].costs[text].bits)
        rows.append(
            Row(
                name,
                {text: _estimate(mean, [variance]) for text, (mean, variance) in bits.items()},
                _mean(list(bits.values())),
                _mean(list(ratios.values())),
                heard.parameters,
                heard.bytes_per_s,
            )
        )
    predicted = {text: int(costs.bytes.sum()) for text, costs in next(iter(hearings.values())).costs.items()}
    return Crossed(tuple(rows), {text: specialists[text] for text in texts}, predicted)


def _within(progress: Progress | None, before: int, total: int, name: str) -> hearing.Progress | None:
    return (lambda done, _: progress(before + done, total, name)) if progress else None


def _after(progress: hearing.Progress | None, before: int, total: int) -> hearing.Progress | None:
    return (lambda done, _: progress(before + done, total)) if progress else None


def block_costs(bits: NDArray[np.float64]) -> Costs:
    """Costs (streams, n) as sums over blocks of about 512 bytes: at least two of each stream, all nearly equal."""
    predicted = bits.shape[1]
    edges = np.linspace(0, predicted, max(2, round(predicted / BLOCK_BYTES)) + 1).astype(np.int64)
    sums = np.add.reduceat(bits, edges[:-1], axis=1)
    return Costs(sums.ravel(), np.tile(np.diff(edges), len(bits)))


def _quotient(above: NDArray[Any], below: NDArray[Any]) -> tuple[float, _Variance]:
    """Σ above / Σ below and its variance, from how blocks differ from that quotient (to first order)."""
    total, count = float(below.sum()), len(above)
    mean = float(above.sum()) / total
    residual = above - mean * below
    return mean, (count / (count - 1) * float(residual @ residual) / total**2, count - 1)


def _mean(quotients: Sequence[tuple[float, _Variance]]) -> Estimate:
    """The mean over texts, which are independent of each other."""
    count = len(quotients)
    variances = [(variance / count**2, freedom) for _, (variance, freedom) in quotients]
    return _estimate(sum(mean for mean, _ in quotients) / count, variances)


def _estimate(mean: float, variances: Sequence[_Variance]) -> Estimate:
    """A sum of independent parts, with degrees of freedom by Welch and Satterthwaite."""
    from scipy.special import stdtrit  # noqa: PLC0415 - half a second that only a table needs

    variance = sum(one for one, _ in variances)
    if not variance:
        return Estimate(mean, mean, mean)
    freedom = variance**2 / sum(one**2 / degrees for one, degrees in variances)
    reach = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return Estimate(mean, mean - reach, mean + reach)
