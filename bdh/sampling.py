"""How the next byte is chosen from a model's logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .text import Utf8Guard

MAX_STOP_BYTES = 256
"""Longest stop string."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Everything that decides which bytes are written, and when to stop."""

    max_bytes: int | None = 200
    """Bytes to write at most; None is no limit."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest byte; 0 to 10."""
    top_k: int = 0
    """Choose among this many likeliest bytes; 0 is all; 0 to 256."""
    top_p: float = 1.0
    """Choose among the likeliest bytes that together reach this probability; above 0, at most 1."""
    min_p: float = 0.0
    """Leave out bytes less likely than this part of the likeliest; 0 to 1."""
    repetition_penalty: float = 0.0
    """Taken off a byte's logit for each time it was written of late; 0 to 10."""
    repetition_decay: float = 0.98
    """What is left, a byte later, of the memory of what was written; 0 to 1."""
    seed: int | None = None
    """The same seed gives the same bytes; None draws one."""
    stop: tuple[bytes, ...] = ()
    """Writing ends when one of these has been written; up to 16, each of 1 to 256 bytes."""
    valid_utf8: bool = False
    """Let only bytes be written that keep the text valid UTF-8."""

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0, 10)
        _check_number("top_p", self.top_p, 1e-9, 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("repetition_penalty", self.repetition_penalty, 0, 10)
        _check_number("repetition_decay", self.repetition_decay, 0, 1)
        _check_whole("top_k", self.top_k, 0, 256)
        if self.max_bytes is not None:
            _check_whole("max_bytes", self.max_bytes, 0, 2**62)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.stop, tuple) or len(self.stop) > 16:
            raise DataError("stop must be a tuple of at most 16 byte strings")
        for stop in self.stop:
            if not isinstance(stop, bytes) or not 1 <= len(stop) <= MAX_STOP_BYTES:
                raise DataError(f"each stop string must be 1 to {MAX_STOP_BYTES} bytes long")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise DataError(f"{name} is {value!r:.40}; it must be a number from {low} to {high}")


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(f"{name} is {value!r:.40}; it must be a whole number from {low} to {high}")


class Sampler:
    """One piece of writing: the options, the generator behind them, and what was written of late."""

    def __init__(self, options: Sampling, before: bytes = b"") -> None:
        """`before` is what the stream ends with, for the UTF-8 guard."""
        self.options = options
        self._random = np.random.default_rng(options.seed)
        self._written = np.zeros(256)
        self._guard = Utf8Guard(before) if options.valid_utf8 else None

    def choose(self, logits: NDArray[np.float64], room: int | None = None) -> int:
        """The next byte.

        Args:
            logits: (256,), finite.
            room: bytes that may still be written, this one included.
        """
        options = self.options
        scores = logits - options.repetition_penalty * self._written
        if self._guard is not None:
            scores = np.where(self._guard.allowed(room), scores, -math.inf)
        byte = int(scores.argmax()) if options.temperature == 0 else self._draw(scores - scores.max())
        self._written *= options.repetition_decay
        self._written[byte] += 1
        if self._guard is not None:
            self._guard.push(byte)
        return byte

    def _draw(self, scores: NDArray[np.float64]) -> int:
        options = self.options
        order = np.argsort(-scores, kind="stable")
        with np.errstate(over="ignore"):  # a temperature of almost 0 leaves the likeliest alone
            weights = np.exp(scores[order] / options.temperature)
        kept = np.cumsum(weights) - weights < options.top_p * weights.sum()
        if options.top_k:
            kept[options.top_k :] = False
            total = weights[: options.top_k].sum()
            kept &= np.cumsum(weights) - weights < options.top_p * total
        kept &= weights >= options.min_p
        kept[0] = True
        cumulative = np.cumsum(np.where(kept, weights, 0.0))
        return int(order[np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")])


def surprise_bits(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """-log2 of the probability of every byte, (..., 256)."""
    top = logits.max(-1, keepdims=True)
    return (np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top - logits) / math.log(2)
