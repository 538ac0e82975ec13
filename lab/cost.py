"""What one byte more costs at a position of a stream, in time and memory: several forms, timed in turn."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from bdh.errors import ConfigError, DataError
from bdh.models import Model, build
from bdh.models.flat import Flat
from bdh.models.transformer import Transformer
from bdh.stream import Stream
from train.data import Bytes

from .baseline import transformer_of
from .claim import Tell, write_json
from .recomputing import GrowingCache, last_logits, recomputing_bytes

Hear: TypeAlias = Callable[[int], object]
"""Hears one byte from where it stands."""

HEARD, SET, COMPUTED = "heard", "set", "not run"
"""How a position was reached: every byte before it was heard; the memory was filled with random numbers of its size;
or nothing was run, and the memory is what its shape says."""

_ROUND_S, _LEAST_REPEATS, _MOST_REPEATS = 0.04, 8, 16
"""A round takes about so long, of a stream at least 8 bytes: a patch's last byte costs more than its others."""
_SAVE_EVERY_BYTES = 50_000


@dataclass(frozen=True)
class Cost:
    """One form at one position."""

    name: str
    position_bytes: int
    reached: str
    memory_bytes: int
    """Of what must be kept to hear the next byte, or, of a form that keeps nothing, of what it holds meanwhile."""
    ms_per_byte: float | None
    """Median over rounds."""
    low_ms: float | None = None
    """Lower quartile."""
    high_ms: float | None = None
    """Upper quartile."""
    rounds_ms: tuple[float, ...] = ()
    """Of every round, in which all were timed in turn."""


def baseline(parameters: int, layers: int, heads: int, window: int) -> Transformer:
    """A fresh Transformer of about so many parameters: its cost does not hang on what it knows."""
    model = build(transformer_of(parameters, layers, heads, window), seed=0).eval()
    assert isinstance(model, Transformer)
    return model


def reach(
    model: Model[Any],
    text: Bytes,
    positions: Sequence[int],
    folder: Path,
    *,
    keep_bits: bool = True,
    tell: Tell | None = None,
) -> np.ndarray[Any, Any]:
    """Hear a text, over and over if it is too short, and keep the memory at each position as a file.

    What was heard before a kill is not heard again.

    Args:
        keep_bits: say what each byte of the text cost the first time it was heard.

    Returns:
        What each byte but the first cost, as far as the text was heard, (n,).
    """
    folder.mkdir(parents=True, exist_ok=True)
    furthest = max(positions)
    scored = min(furthest, len(text))
    stops = sorted({*positions, *range(_SAVE_EVERY_BYTES, furthest, _SAVE_EVERY_BYTES)})
    stream = Stream(model)
    bits: list[float] = []
    noted = folder / "heard.json"
    if noted.is_file():
        before = json.loads(noted.read_text(encoding="utf-8"))
        stream.load(memory_file(folder, before["position_bytes"]))
        bits = before["bits"]
    for stop in stops:
        while (here := stream.position_bytes) < stop:
            count = min(512, stop - here)
            piece = np.take(text, np.arange(here, here + count), mode="wrap").tobytes()
            if keep_bits and here < scored:
                costs = stream.score(piece)[: scored - here]
                bits += [round(float(one), 4) for one in (costs if here else costs[1:])]
            else:
                stream.feed(piece)
            if tell is not None:
                tell(stream.position_bytes / furthest)
        if not memory_file(folder, stop).is_file():
            stream.save(memory_file(folder, stop))
            last = json.loads(noted.read_text(encoding="utf-8"))["position_bytes"] if noted.is_file() else 0
            write_json(noted, {"position_bytes": stop, "bits": bits})
            if last and last not in positions:
                memory_file(folder, last).unlink(missing_ok=True)
    return np.array(bits)


def memory_file(folder: Path, position: int) -> Path:
    """Where the memory at a position is kept."""
    return folder / f"{position}.safetensors"


def costs(
    streams: Mapping[str, tuple[Model[Any], Path]],
    cached: Mapping[str, Transformer],
    positions: Sequence[int],
    text: bytes,
    *,
    rounds: int = 15,
    most_memory_bytes: int = 1_500_000_000,
    tell: Tell | None = None,
) -> list[Cost]:
    """Time single bytes of every form at every position, all in turn, so that load on the machine hits all alike.

    Args:
        streams: by name, a model and the folder that `reach` kept its memories in.
        cached: by name, Transformers whose cache grows; their positions are set, not heard.
        most_memory_bytes: a cache that would take more is not run.
    """
    ready: dict[tuple[str, int], tuple[Hear, str, int]] = {}
    found: list[Cost] = []
    for position in positions:
        for name, (model, folder) in streams.items():
            stream = Stream(model)
            stream.load(memory_file(folder, position))
            ready[name, position] = (_feeding(stream), HEARD, stream.state_bytes)
        for name, transformer in cached.items():
            size = GrowingCache.bytes_at(transformer, position)
            if size > most_memory_bytes:
                found.append(Cost(name, position, COMPUTED, size, None))
                continue
            cache = GrowingCache(transformer, position + (rounds + 2) * _MOST_REPEATS)
            cache.fill(position)
            ready[name, position] = (cache.step, SET, size)
    repeats, times = {}, {key: list[float]() for key in ready}
    for key, (hear, _, _) in ready.items():
        hear(text[0])
        least = 1 if key[0] in cached else _LEAST_REPEATS
        quick = _seconds(hear, text[:1]) * _MOST_REPEATS < _ROUND_S
        repeats[key] = _MOST_REPEATS if quick else least
    for number in range(rounds):
        for key, (hear, _, _) in ready.items():
            heard = bytes(text[(number * _MOST_REPEATS + i) % len(text)] for i in range(repeats[key]))
            times[key].append(1000 * _seconds(hear, heard) / len(heard))
        if tell is not None:
            tell((number + 1) / rounds)
    for (name, position), (_, reached, size) in ready.items():
        low, middle, high = statistics.quantiles(times[name, position], n=4)
        rounds_ms = tuple(round(one, 4) for one in times[name, position])
        found.append(Cost(name, position, reached, size, middle, low, high, rounds_ms))
    names = [*streams, *cached]
    return sorted(found, key=lambda one: (names.index(one.name), one.position_bytes))


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """How many times as long one took as another: the median over rounds in which both were timed."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def recomputing(
    name: str,
    model: Flat,
    positions: Sequence[int],
    text: Bytes,
    *,
    budget_s: float,
    most_memory_bytes: int = 1_500_000_000,
    tell: Tell | None = None,
) -> list[Cost]:
    """Time the released form, which hears everything again for each byte, as far as the budget reaches.

    Lengths double from 250 bytes on; before each, its time is foretold from the one before as if it grew with the
    square, and where that or its memory is too much, it is not run.
    """
    lengths = sorted({*positions, *(250 * 2**power for power in range(12) if 250 * 2**power < max(positions))})
    found, spent, before, stopped = [], 0.0, (0, 0.0), False
    for length in lengths:
        size = recomputing_bytes(model, length)
        foretold = before[1] * (length / before[0]) ** 2 if before[0] else 0.0
        stopped = stopped or spent + foretold > budget_s or size > most_memory_bytes
        if stopped:
            if length in positions:
                found.append(Cost(name, length, COMPUTED, size, None))
            continue
        ids = torch.from_numpy(np.take(text, np.arange(length), mode="wrap").astype(np.int64))
        begun = time.perf_counter()
        last_logits(model, ids)
        seconds = time.perf_counter() - begun
        spent, before = spent + seconds, (length, seconds)
        found.append(Cost(name, length, HEARD, size, 1000 * seconds))
        if tell is not None:
            tell(min(1.0, spent / budget_s))
    return found


def check_positions(positions: Sequence[int]) -> None:
    """Refuse positions that nothing can be said from.

    Raises:
        ConfigError: fewer than two, or out of bounds.
    """
    if len(set(positions)) < 2 or not all(16 <= position <= 10_000_000 for position in positions):
        raise ConfigError(
            f"positions are {', '.join(map(str, positions))}; give at least two that differ, each 16 to 10,000,000"
        )


def flat(model: Model[Any], checkpoint: str) -> Flat:
    """The model, if it is a flat one.

    Raises:
        DataError: it is of another kind.
    """
    if not isinstance(model, Flat):
        raise DataError(f"{checkpoint} is a {model.config.kind} model; this needs a flat one, such as base")
    return model


def _feeding(stream: Stream) -> Hear:
    return lambda byte: stream.feed(bytes((byte,)))


def _seconds(hear: Hear, text: bytes) -> float:
    begun = time.perf_counter()
    for byte in text:
        hear(byte)
    return time.perf_counter() - begun
