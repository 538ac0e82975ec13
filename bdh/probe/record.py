"""Recording activations by name while a model hears bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import state as states
from ..config import VOCAB_SIZE
from ..errors import DataError
from ..models import Model
from ..models.observe import Scaling, probing
from .points import Point, is_index, selected

MOST_BYTES = 512 << 20
"""What a recording may take if nothing else is said."""
_NUMBER_BYTES = 4


class Recorded(NamedTuple):
    """What was recorded; float32 on the CPU."""

    values: dict[str, Tensor]
    """By the name of a point: (H, T, N) where it has heads, (T, N) if one head was asked for, (T, D) where it has none.
    A global point of a hierarchical model has one row for each patch that was completed."""
    at: dict[str, Tensor]
    """By the same names, the index of the byte that each row was computed at, (T,) int64: for a patch its last byte."""
    logits: Tensor
    """(T, 256): what is predicted after each byte."""
    state: Any
    """The memory after the last byte."""


@torch.no_grad()
def record(
    model: Model[Any],
    data: bytes,
    names: str | Iterable[str],
    *,
    heads: int | Sequence[int] | None = None,
    state: Any = None,
    most_bytes: int = MOST_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Recorded:
    """Hear bytes and keep the activations at some points; edits of a block around it are heard with.

    Args:
        names: of points, or patterns such as `layer.*.x_sparse`.
        heads: keep these only, where a point has heads; of a single number that head alone, without its axis.
        state: the memory of one stream before the first byte, which is left as it was; None is an empty one.
        most_bytes: what the recording may take.
        progress: called with bytes heard and bytes in all after each piece; what it raises ends the work.

    Raises:
        DataError: no bytes, a point or a head that is not there, or a recording that would take too much; before
            anything is computed.
    """
    chosen = selected(model, names)
    if not data:
        raise DataError("there are no bytes to hear; give at least one")
    kept = {point.name: _heads(point, heads) for point in chosen}
    if state is not None and (streams := state.position.shape[0]) != 1:
        raise DataError(f"the memory of {streams} streams was given; one stream is recorded at a time")
    position = 0 if state is None else int(state.position)
    rows = {
        point.name: (position + len(data)) // point.bytes_per_row - position // point.bytes_per_row for point in chosen
    }
    size = _NUMBER_BYTES * (
        len(data) * VOCAB_SIZE + sum(rows[point.name] * max(1, len(kept[point.name])) * point.width for point in chosen)
    )
    if size > most_bytes:
        raise DataError(
            f"recording {len(chosen)} points over {len(data):,} bytes would take {size:,} bytes of memory; at most "
            f"{most_bytes:,} are allowed. Record fewer points or heads, or a shorter text"
        )
    recorder = _Recorder({point.name: _Track(point, kept[point.name], rows[point.name]) for point in chosen})
    here = states.clone(model.empty_state(1) if state is None else state)
    logits = torch.empty(len(data), VOCAB_SIZE)
    ids = torch.from_numpy(np.frombuffer(data, np.uint8).copy())[None]
    training = model.training
    model.eval()
    try:
        with probing(recorder):
            done = 0
            for piece in ids.split(model.chunk_bytes(inplace=True), dim=1):
                output = model.step_(piece, here, last_only=False)
                here = output.state
                logits[done : done + piece.shape[1]] = output.logits[0].float().cpu()
                done += piece.shape[1]
                if progress is not None:
                    progress(done, len(data))
    finally:
        model.train(training)
    alone = heads is not None and not isinstance(heads, Iterable)
    values = {
        name: track.values[0] if alone and track.point.heads else track.values
        for name, track in recorder.tracks.items()
    }
    at = {point.name: _places(point, rows[point.name], position) for point in chosen}
    return Recorded(values, at, logits, here)


def _heads(point: Point, heads: int | Sequence[int] | None) -> tuple[int, ...]:
    """The heads that are kept at a point; none where it has none."""
    if not point.heads or heads is None:
        return tuple(range(point.heads))
    wishes = tuple(heads) if isinstance(heads, Iterable) else (heads,)
    for head in wishes:
        if not is_index(head, point.heads):
            raise DataError(f"{point.name} has no head {head!r:.40}; its heads are 0 to {point.heads - 1}")
    if not wishes:
        raise DataError(f"no head of {point.name} was asked for; its heads are 0 to {point.heads - 1}")
    return wishes


def _places(point: Point, rows: int, position: int) -> Tensor:
    """The byte that each row was computed at."""
    patch = point.bytes_per_row
    return patch - 1 - position % patch + patch * torch.arange(rows)


@dataclass
class _Track:
    """What is kept of one point."""

    point: Point
    heads: tuple[int, ...]
    rows: int
    done: int = 0

    def __post_init__(self) -> None:
        shape = (len(self.heads), self.rows, self.point.width) if self.point.heads else (self.rows, self.point.width)
        self.values = torch.empty(shape)

    def take(self, activation: Tensor) -> None:
        """Keep (H, B, T, N) or (B, T, D), whose first axes are one stream's bytes in their order."""
        heard = activation.flatten(-3, -2)
        count = heard.shape[-2]
        into = self.values[..., self.done : self.done + count, :]
        into.copy_(heard if self.heads == tuple(range(self.point.heads)) else heard[list(self.heads)])
        self.done += count


class _Recorder:
    """A probe that keeps what it sees."""

    edits = False

    def __init__(self, tracks: dict[str, _Track]) -> None:
        self.tracks = tracks

    def wants(self, point: str) -> bool:
        return point in self.tracks

    def see(self, point: str, activation: Tensor) -> None:
        self.tracks[point].take(activation)

    def scalings(self, place: str, encoder_v: Tensor) -> Sequence[Scaling]:
        return ()
