"""What codes are worth: what they keep, what each feature is about, which known features they recover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .autoencoders import Coder
from .training import Samples

ACTIVE = 0.01
"""A feature is active where it is above this part of its largest strength: NMF's are never quite 0."""
STRONGEST = 20
"""Places by which a feature is judged: those where it is strongest."""
_ROWS = 2048
_RESAMPLES = 2000
_THRESHOLDS = 20


@dataclass(frozen=True)
class Interval:
    """A mean, and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float


@torch.no_grad()
def codes_of(coder: Coder, samples: Samples) -> tuple[Tensor, Tensor]:
    """Codes (n, F) and parts (n, P) of all samples, piece by piece; parts are the code where there are none."""
    pieces = [torch.from_numpy(samples[start : start + _ROWS]) for start in range(0, len(samples), _ROWS)]
    code = torch.cat([coder.encode(piece) for piece in pieces])
    if type(coder).parts is Coder.parts:
        return code, code
    return code, torch.cat([coder.parts(piece) for piece in pieces])


@torch.no_grad()
def explained_variance(coder: Coder, samples: Samples, code: Tensor) -> float:
    """1 - sum of |x - x'|^2 / sum of |x - mean of x|^2."""
    lost = sum(
        float((coder.decode(piece) - torch.from_numpy(samples[start : start + _ROWS])).double().square().sum())
        for start, piece in zip(range(0, len(samples), _ROWS), code.split(_ROWS), strict=True)
    )
    return 1 - lost / float(((samples - samples.mean(0)).astype(np.float64) ** 2).sum())


def active(code: Tensor) -> Tensor:
    """Where features are active, as a mask."""
    return code > (ACTIVE * code.amax(0)).clamp_min(1e-9)


def purity(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each feature the part of its strongest places that bears the commonest label of these places.

    Args:
        labels: (features, places).
    """
    return np.array([np.unique(row, return_counts=True)[1].max() / len(row) for row in labels])


def reuse(code: Tensor, parts: Tensor) -> NDArray[np.int64]:
    """By how many features of the code each part is used, (P,); -1 of a part that is never active.

    A part is used by a feature if it is active in at least half of the places where the feature is strongest, and at
    least twice as often as everywhere. Where the parts are the code itself, a feature does not count as its own part.
    """
    own = parts is code
    fires = active(parts).float()
    rate = fires.mean(0)
    judged = (active(code).sum(0) >= STRONGEST).nonzero().flatten()
    places = code.topk(min(STRONGEST, len(code)), dim=0).indices.T[judged]
    used = torch.stack([fires[row].mean(0) for row in places]) if len(places) else torch.zeros(0, parts.shape[1])
    uses = (used >= 0.5) & (used >= 2 * rate)
    if own:
        uses[torch.arange(len(judged)), judged] = False
    return torch.where(rate > 0, uses.sum(0), -1).numpy()


def interval(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Interval:
    """The mean with its percentile bootstrap over the values."""
    array = np.asarray(values, np.float64)
    low, high = np.quantile(_means(array, seed), (0.025, 0.975))
    return Interval(float(array.mean()), float(low), float(high))


def difference(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> Interval:
    """How much the mean of the first is above that of the second, each resampled apart."""
    low, high = np.quantile(_means(first, seed) - _means(second, seed + 1), (0.025, 0.975))
    return Interval(float(first.mean() - second.mean()), float(low), float(high))


@dataclass(frozen=True)
class Recovery:
    """How well the features of a code are the known ones, each known one matched with one of its own."""

    correlation: float
    """Mean correlation of the matched, simple and combined."""
    f1: float
    """Mean F1 of "the matched feature is above its threshold" as a detector of the known one."""
    simple_f1: float
    combined_f1: float
    by_count: dict[str, float]
    """Mean F1 by the number of parts that known features combine; 1 are the parts themselves."""
    each: dict[str, float]
    """F1 by the name of the known feature."""


def recovery(
    code: Tensor, known: NDArray[np.bool_], held_code: Tensor, held_known: NDArray[np.bool_], names: Sequence[str],
    counts: Sequence[int],
) -> Recovery:  # fmt: skip
    """Match and choose thresholds on some samples, and measure on others.

    Args:
        counts: of each known feature, how many parts it combines; 1 of a part.
    """
    # The page reads reports without it.
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    correlation = _correlation(known, code.numpy())
    rows, columns = linear_sum_assignment(-correlation)
    matched = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    held = _correlation(held_known, held_code.numpy())
    scores, correlations = [], []
    for row in range(len(names)):
        if row not in matched:  # a code of fewer features than are known
            scores.append(0.0)
            correlations.append(0.0)
            continue
        strength, truth = code[:, matched[row]].numpy(), known[:, row]
        positive = strength[strength > 0]
        thresholds = (
            np.append(0.0, np.quantile(positive, np.arange(_THRESHOLDS) / _THRESHOLDS)) if len(positive) else [0.0]
        )
        best = max(thresholds, key=lambda value: _f1(strength > value, truth))
        scores.append(_f1(held_code[:, matched[row]].numpy() > best, held_known[:, row]))
        correlations.append(float(held[row, matched[row]]))
    return Recovery(float(np.mean(correlations)), **_by_count(scores, names, counts))


def parts_alone(
    known: NDArray[np.bool_], held_known: NDArray[np.bool_], names: Sequence[str], counts: Sequence[int]
) -> Recovery:
    """What a code that has all parts and nothing else would recover: each combined feature by its best part."""
    parts = [row for row, count in enumerate(counts) if count == 1]
    best = [
        row if count == 1 else max(parts, key=lambda part: _f1(known[:, part], known[:, row]))
        for row, count in enumerate(counts)
    ]
    scores = [_f1(held_known[:, part], held_known[:, row]) for row, part in enumerate(best)]
    correlation = _correlation(held_known, held_known.astype(np.float32))
    return Recovery(
        float(np.mean([correlation[row, part] for row, part in enumerate(best)])), **_by_count(scores, names, counts)
    )


def _by_count(scores: Sequence[float], names: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    of, sizes = np.array(scores), np.array(counts)
    return {
        "f1": float(of.mean()),
        "simple_f1": float(of[sizes == 1].mean()),
        "combined_f1": float(of[sizes > 1].mean()),
        "by_count": {str(count): float(of[sizes == count].mean()) for count in sorted(set(counts))},
        "each": dict(zip(names, scores, strict=True)),
    }


def _f1(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    both = float((said & truth).sum())
    return 2 * both / max(1.0, float(said.sum() + truth.sum()))


def _correlation(known: NDArray[np.bool_], code: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of every known feature with every feature of the code; 0 where one never changes."""
    left, right = (_standard(values.astype(np.float64)) for values in (known, code))
    return left.T @ right / len(known)


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values - values.mean(0)
    spread = centred.std(0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9)


def _means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    return values[drawn].mean(1)
