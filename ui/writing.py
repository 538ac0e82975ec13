"""Letting streams hear and write: all visitors' together, or on a GPU that is lent for a call's length (ZeroGPU)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any, TypeVar

from bdh import state as states
from bdh.engine import Engine
from bdh.sampling import Sampling
from bdh.stream import Snapshot, Stream, Written

try:
    import spaces
except ImportError:
    spaces = None

ON_ZERO_GPU = spaces is not None and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")
_PROCESS = os.getpid()
"""Where the page is served."""
MAX_SEED = 2**53 - 1
"""The largest whole number that a browser keeps exactly."""
UPDATE_S = 0.07
"""Seconds between two updates of the page: a browser keeps up with 10 to 20 a second, not with every byte."""
_FEED_RATE, _WRITE_RATE = 5_000, 100
"""Bytes a second that a lent GPU is sure to reach; they bound how long it is asked for."""

_engine = Engine()
"""Does the work of all visitors."""
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def hear_and_write(stream: Stream, data: bytes, options: Sampling | None) -> Iterator[Sequence[int | Written]]:
    """Feed `data`, then write; lists of how many bytes were heard so far and of bytes that were written.

    On ZeroGPU the work is done in another process, so the stream follows only when the writing has ended; if
    it is dropped before, the stream stays as it was.
    """
    if not ON_ZERO_GPU:
        work: list[Iterator[int | Written]] = [stream.feeding(data)]
        if options is not None:
            work.append(stream.generate(options))
        with closing(batched(*work)) as batches:
            for parts in batches:
                yield parts
                if options is None and parts[-1] == len(data):
                    return
        return
    for batch in _on_lent_gpu(stream.model, stream.snapshot(), data, options):
        if isinstance(batch, Snapshot):
            stream.restore(batch)
        else:
            yield batch


def _parts(stream: Stream, data: bytes, options: Sampling | None) -> Iterator[int | Written]:
    yield from stream.feeding(data)
    if options is not None:
        yield from stream.generate(options)


def _seconds(model: Any, before: Snapshot, data: bytes, options: Sampling | None) -> int:
    """For how long to ask for a GPU."""
    written = 0 if options is None else min(options.max_bytes or 10_000, 10_000)
    return int(min(110, 10 + len(data) / _FEED_RATE + written / _WRITE_RATE))


def lent(seconds: Callable[..., int]) -> Callable[[F], F]:
    """Run a function in a process that has a GPU for as many seconds as its arguments ask for; elsewhere as it is."""
    return spaces.GPU(duration=seconds) if spaces is not None else lambda function: function


@lent(_seconds)
def _on_lent_gpu(
    model: Any, before: Snapshot, data: bytes, options: Sampling | None
) -> Iterator[list[int | Written] | Snapshot]:
    """Lists of what `hear_and_write` yields, and last the stream; everything crosses process borders."""
    if os.getpid() != _PROCESS:  # a new process each time: trying kernels would take longer than they save
        os.environ["BDH_COMPILED"] = "off"
    device = "cuda" if ON_ZERO_GPU else model.device
    stream = Stream(model.to(device))
    stream.restore(before)
    yield from _alone(_parts(stream, data, options))
    after = stream.snapshot()
    yield after._replace(state=states.to_device(after.state, "cpu"))


def batched(*parts: Iterable[T]) -> Generator[list[T], None, None]:
    """The parts in lists, made in turn with other visitors': the first at once, then what came in about `UPDATE_S`."""
    return _alone(chain(*parts)) if ON_ZERO_GPU else _engine.batched(*parts, seconds=UPDATE_S)


def _alone(parts: Iterable[T]) -> Generator[list[T], None, None]:
    """As `batched`, by this thread."""
    held: list[T] = []
    due = 0.0
    for part in parts:
        held.append(part)
        if time.monotonic() >= due:
            yield held
            held, due = [], time.monotonic() + UPDATE_S
    if held:
        yield held
