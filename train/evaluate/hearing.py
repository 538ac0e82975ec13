"""What a model makes of bytes: what each cost, and what was likeliest in its place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bdh import state as states
from bdh.errors import DataError
from bdh.models import Model

from ..data import Bytes

Bits: TypeAlias = NDArray[np.float64]
"""What bytes cost: -log2 of the probability that the model gave each."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_CHUNK_BYTES = 512
"""Bytes a call, so that progress is seen."""
_STATES_BYTES = 1 << 29
"""Of the memories of streams heard side by side; as much again where they are copied to try several endings."""
_MOST_STREAMS_CPU, _MOST_STREAMS = 8, 64
"""Of them: a CPU is as fast with few, and its memory and the progress are the better for it."""


@torch.no_grad()
def bits_per_byte(model: Model[Any], text: Bytes, *, streams: int = 1, chunk: int = 512) -> float:
    """Mean surprise a byte, with the state carried from the first byte to the last.

    Args:
        text: at least two bytes a stream; what does not divide by `streams` is left out.
        streams: contiguous pieces heard side by side, each from an empty state.
        chunk: bytes a call.
    """
    training = model.training
    model.eval()
    length = len(text) // streams
    ids = torch.from_numpy(text[: length * streams].astype("int64")).view(streams, length)
    state = model.empty_state(streams)
    nats = 0.0
    for start in range(0, length - 1, chunk):
        piece = ids[:, start : min(start + chunk, length - 1)].to(model.device)
        target = ids[:, start + 1 : start + 1 + piece.shape[1]].to(model.device)
        output = model.step_(piece, state, last_only=False)
        state = output.state
        nats += F.cross_entropy(output.logits.float().flatten(0, 1), target.flatten(), reduction="sum").item()
    model.train(training)
    return nats / math.log(2) / (streams * (length - 1))


def carried_bits(model: Model[Any], text: Bytes, *, progress: Progress | None = None) -> Bits:
    """What each byte but the first cost in one stream from an empty memory, (len(text) - 1,)."""
    return _rows_bits(model, _checked(text)[None], Tally(progress, len(text) - 1))[0]


def cold_bits(model: Model[Any], text: Bytes, window_bytes: int, *, progress: Progress | None = None) -> Bits:
    """What each byte but the first cost when the memory is emptied every `window_bytes` bytes, (len(text) - 1,).

    Windows do not overlap: the first byte of one is predicted from one byte, the last from all of its window.
    """
    if window_bytes < 1:
        raise DataError(f"the window is {window_bytes} bytes; it must be at least 1")
    predicted = len(_checked(text)) - 1
    tally = Tally(progress, predicted)
    whole = predicted // window_bytes
    parts = []
    if whole:
        windows = np.lib.stride_tricks.sliding_window_view(text, window_bytes + 1)[::window_bytes][:whole]
        side_by_side = streams_side_by_side(model)
        for start in range(0, whole, side_by_side):
            parts.append(_rows_bits(model, windows[start : start + side_by_side], tally).ravel())
    if whole * window_bytes < predicted:
        parts.append(_rows_bits(model, text[None, whole * window_bytes :], tally)[0])
    return np.concatenate(parts)


def streams_bits(model: Model[Any], text: Bytes, streams: int, *, progress: Progress | None = None) -> Bits:
    """What each byte but the first cost in contiguous pieces, each heard from an empty memory, (streams, length - 1).

    What does not divide by `streams` is left out. Their mean is `bits_per_byte`.

    Raises:
        DataError: less than two bytes a stream.
    """
    length = len(text) // streams
    if length < 2:
        raise DataError(f"the text has {len(text)} bytes; {streams} streams need at least {2 * streams}")
    rows = text[: streams * length].reshape(streams, length)
    tally = Tally(progress, streams * (length - 1))
    side_by_side = streams_side_by_side(model)
    parts = [_rows_bits(model, rows[start : start + side_by_side], tally) for start in range(0, streams, side_by_side)]
    return np.concatenate(parts)


class Heard(NamedTuple):
    """What streams know at the end of what they heard."""

    logits: Tensor
    """(B, V): of the byte to come."""
    state: Any
    """The memory of B streams."""


@torch.no_grad()
def hear(model: Model[Any], rows: Sequence[bytes], tally: Tally | None = None) -> Heard:
    """Hear rows of any lengths side by side, each from an empty memory.

    Raises:
        DataError: a row is empty.
    """
    if not rows or not all(rows):
        raise DataError("there is an empty text to hear; it must have at least one byte")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    alive = [np.frombuffer(rows[index], np.uint8) for index in order]
    state = model.empty_state(len(rows))
    logits, memories = [], []
    done = 0
    with evaluating(model):
        while alive:
            # All rows go on to where the shortest ends.
            stop = len(alive[0])
            ids = torch.from_numpy(np.stack([row[done:stop] for row in alive]))
            for piece in ids.split(_CHUNK_BYTES, dim=1):
                output = model.step_(piece, state)
                state = output.state
                if tally is not None:
                    tally.add(piece.numel())
            ended = sum(len(row) == stop for row in alive)
            logits.append(output.logits[:ended, -1])
            memories.append(states.select(state, range(ended)) if ended < len(alive) else state)
            state = states.select(state, range(ended, len(alive))) if ended < len(alive) else None
            alive, done = alive[ended:], stop
    back = sorted(range(len(order)), key=order.__getitem__)
    if back == list(range(len(order))):
        return Heard(torch.cat(logits), states.join(memories) if len(memories) > 1 else memories[0])
    return Heard(torch.cat(logits)[back], states.select(states.join(memories), back))


class Judged(NamedTuple):
    """What a model makes of one ending."""

    bits: Bits
    """(n,): what each of its bytes cost."""
    likeliest: Bytes
    """(n + 1,): the likeliest byte in place of each, and behind the last."""

    def is_greedy(self, ending: bytes) -> bool:
        """Whether the model, always writing the likeliest byte, writes this ending."""
        return self.likeliest[: len(ending)].tobytes() == ending


@torch.no_grad()
def judge(model: Model[Any], heard: Heard, endings: Sequence[bytes]) -> list[Judged]:
    """What one ending for each stream costs behind what it heard; `heard` stays as it is."""
    rows = np.zeros((len(endings), max(map(len, endings))), np.uint8)
    for row, ending in zip(rows, endings, strict=True):
        row[: len(ending)] = np.frombuffer(ending, np.uint8)
    pieces = torch.from_numpy(rows).split(_CHUNK_BYTES, dim=1) if rows.size else ()
    before, state = heard.logits[:, None], heard.state
    costs, best = [np.zeros((len(endings), 0))], [_likeliest(before)]
    with evaluating(model):
        for index, piece in enumerate(pieces):
            output = model(piece, state, keep_state=index < len(pieces) - 1)
            costs.append(_costs(torch.cat((before, output.logits[:, :-1]), dim=1), piece))
            best.append(_likeliest(output.logits))
            before, state = output.logits[:, -1:], output.state
    bits, likeliest = np.concatenate(costs, axis=1), np.concatenate(best, axis=1)
    # Behind a shorter ending come zeros, which by causality change nothing before them.
    return [
        Judged(bits[index, : len(ending)], likeliest[index, : len(ending) + 1]) for index, ending in enumerate(endings)
    ]


def streams_side_by_side(model: Model[Any]) -> int:
    """How many streams are heard at once, so that their memories stay within bounds."""
    most = _MOST_STREAMS_CPU if model.device.type == "cpu" else _MOST_STREAMS
    return max(1, min(most, _STATES_BYTES // max(1, model.state_bytes())))


@contextlib.contextmanager
def evaluating(model: Model[Any]) -> Iterator[None]:
    """Without dropout; afterwards the model trains on if it did before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class Tally:
    """Counts bytes and tells how many are done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


@torch.no_grad()
def _rows_bits(model: Model[Any], rows: Bytes, tally: Tally) -> Bits:
    """Rows (B, n) of bytes to costs (B, n - 1), each row from an empty memory."""
    predicted = rows.shape[1] - 1
    ids = torch.from_numpy(rows.astype(np.uint8))
    state = None
    parts = []
    with evaluating(model):
        for start in range(0, predicted, _CHUNK_BYTES):
            stop = min(start + _CHUNK_BYTES, predicted)
            if state is None and stop == predicted:
                output = model(ids[:, :stop], keep_state=False)
            else:
                state = model.empty_state(len(rows)) if state is None else state
                output = model.step_(ids[:, start:stop], state, last_only=False)
                state = output.state
            parts.append(_costs(output.logits, ids[:, start + 1 : stop + 1]))
            tally.add(len(rows) * (stop - start))
    return np.concatenate(parts, axis=1)


def _costs(logits: Tensor, targets: Tensor) -> Bits:
    """Bits (B, T) of bytes (B, T) under logits (B, T, V)."""
    nats = F.cross_entropy(logits.float().transpose(1, 2), targets.long().to(logits.device), reduction="none")
    bits = nats.cpu().double().numpy() / math.log(2)
    if not np.isfinite(bits).all():
        raise DataError("the model's prediction is not finite, so there is nothing to measure; check the checkpoint")
    return bits


def _likeliest(logits: Tensor) -> Bytes:
    """The likeliest bytes (B, T) under logits (B, T, V)."""
    return logits.argmax(-1).to(torch.uint8).cpu().numpy()


def _checked(text: Bytes) -> Bytes:
    if len(text) < 2:
        raise DataError(f"the text has {len(text)} bytes; at least 2 are needed, one to go on from and one to predict")
    return text
