"""A law of loss by parameters and bytes, fitted, with how sure it is: L = E + A (P₀ / P)^α + C (B₀ / B)^β."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bdh.errors import DataError

DRAWS = 200
"""Fits to residuals drawn anew."""
MOST, MOST_EXPONENT = 8.0, 3.0
"""What a term may be at most: an end of an interval that lies there, or at 0, is none."""

_TERMS = ("floor", "by_parameters", "alpha", "by_bytes", "beta")
_LOW, _HIGH = (0.0, 0.0, 0.0, 0.0, 0.0), (MOST, MOST, MOST_EXPONENT, MOST, MOST_EXPONENT)
_START = (1.0, 0.5, 0.3, 0.5, 0.3)


@dataclass(frozen=True)
class Point:
    """A loss, in bits per byte, of a model of so many parameters after so many bytes."""

    parameters: int
    heard_bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class Law:
    """The terms of a fitted law, with ends of their intervals of 95 %."""

    floor: float
    """E, in bits per byte."""
    by_parameters: float
    """A: what the smallest model adds."""
    alpha: float
    by_bytes: float
    """C: what the fewest bytes add."""
    beta: float
    least_parameters: int
    """P₀."""
    least_bytes: int
    """B₀."""
    low: dict[str, float]
    """By term, from a bootstrap over the residuals of whole trainings."""
    high: dict[str, float]
    error: float
    """Mean of the relative residuals' absolute values."""

    def at(self, parameters: float, heard_bytes: float) -> float:
        """The loss that the law foretells."""
        return (
            self.floor
            + self.by_parameters * (self.least_parameters / parameters) ** self.alpha
            + self.by_bytes * (self.least_bytes / heard_bytes) ** self.beta
        )


def fit(points: Sequence[Point], *, draws: int | None = None, seed: int = 0) -> Law:
    """Fit the law to losses by least squares of their logarithms.

    The intervals are of a bootstrap: each size is given the residuals of a size drawn anew, all of them together since
    losses of one training hang together, and the law is fitted again.

    Args:
        draws: how often; None is 200 times.

    Raises:
        DataError: fewer than six points, or of a single size or time, which fix no law.
    """
    if len(points) < 6 or len({one.parameters for one in points}) < 3 or len({one.heard_bytes for one in points}) < 3:
        raise DataError(
            f"{len(points)} losses fix no law of five terms; give at least six, of three sizes and three times"
        )
    least = min(one.parameters for one in points), min(one.heard_bytes for one in points)
    places = np.array([(least[0] / one.parameters, least[1] / one.heard_bytes) for one in points])
    losses = np.log([one.bits_per_byte for one in points])
    best = _fitted(places, losses, _START)
    foretold = _log_law(places.T, *best)
    residuals = losses - foretold
    # A fit of five terms takes part of the noise with it.
    residuals = (residuals - residuals.mean()) * np.sqrt(len(points) / max(1, len(points) - len(_TERMS)))
    generator = np.random.default_rng(seed)
    count = DRAWS if draws is None else draws
    sizes = np.array([one.parameters for one in points])
    curves = [residuals[sizes == size] for size in np.unique(sizes)]

    def drawn() -> NDArray[np.float64]:
        noise = np.empty(len(points))
        for size in np.unique(sizes):
            noise[sizes == size] = np.resize(curves[generator.integers(len(curves))], int((sizes == size).sum()))
        return noise

    again = np.array([_fitted(places, foretold + drawn(), tuple(best)) for _ in range(count)])
    low, high = np.quantile(again, (0.025, 0.975), axis=0)
    floor, by_parameters, alpha, by_bytes, beta = best.tolist()
    return Law(
        floor,
        by_parameters,
        alpha,
        by_bytes,
        beta,
        least_parameters=least[0],
        least_bytes=least[1],
        low=dict(zip(_TERMS, low.tolist(), strict=True)),
        high=dict(zip(_TERMS, high.tolist(), strict=True)),
        error=float(np.abs(np.expm1(losses - foretold)).mean()),
    )


def _log_law(
    places: NDArray[np.float64], floor: float, by_parameters: float, alpha: float, by_bytes: float, beta: float
) -> NDArray[np.float64]:
    value = floor + by_parameters * places[0] ** alpha + by_bytes * places[1] ** beta
    return np.log(np.maximum(value, 1e-9))


def _fitted(places: NDArray[np.float64], losses: NDArray[np.float64], start: Sequence[float]) -> NDArray[np.float64]:
    from scipy.optimize import OptimizeWarning, curve_fit  # noqa: PLC0415 - half a second that only a fit needs

    try:
        found, _ = curve_fit(_log_law, places.T, losses, p0=np.clip(start, _LOW, _HIGH), bounds=(_LOW, _HIGH))
    except (RuntimeError, OptimizeWarning) as error:
        raise DataError(f"no law fits these losses ({str(error)[:200]}); train for longer or more sizes") from error
    return np.asarray(found)


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The power with which the second number grows with the first, by least squares of logarithms."""
    if len(points) < 2:
        return None
    logs = np.log(np.array(points, dtype=np.float64))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
