"""Many streams at once: their work in short turns, by as many threads as there are cores, single bytes together.

On a CPU streams of one model are stepped side by side, each memory being traffic of its own; where a model can step
several at once sooner (`Model.step_streams_`), they are stepped together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

from .models import Model
from .stream import Writing, hear_together

T = TypeVar("T")

_SLICE_S = 0.02
"""For how long a thread stays with one work while others wait. Passing on what comes of it costs some milliseconds."""
_TOGETHER = 256
"""Most streams that are stepped together."""


class _Work(Generic[T]):
    """Something that one caller wants done bit by bit, and what has come of it in this turn."""

    def __init__(self, parts: Iterable[T]) -> None:
        self.parts: Any = iter(parts)
        self.batchable = _batchable(self.parts)
        """The model that this writes with, if single bytes may be heard together with others' on its device."""
        self.batch: list[T] = []
        self.error: BaseException | None = None
        self.ended = False
        self.turn_over = threading.Event()
        self.used_s = 0.0
        self.turn_s = 0.0
        """How long a turn is, from its first bit on."""
        self.due = 0.0

    def is_over(self, now: float) -> bool:
        """Whether the caller gets what there is."""
        return self.ended or (bool(self.batch) and now >= self.due)

    def begin(self, now: float) -> None:
        """A thread takes it in hand."""
        self.due = self.due or now + self.turn_s

    def advance(self) -> None:
        """Do the next bit."""
        try:
            self.batch.append(next(self.parts))
        except StopIteration:
            self.ended = True
        except BaseException as error:  # it is the caller's
            self.error, self.ended = error, True


def _batchable(parts: Iterator[Any]) -> Model[Any] | None:
    model = parts.stream.model if isinstance(parts, Writing) else None
    return None if model is None or model.device.type == "cpu" else model


class Engine:
    """Does the work of many callers, fairly: whoever has had the least time is next.

    What is done is cut at the bits that a work comes in: a byte that is written, a chunk that is heard. So nobody waits
    for longer than others' bits take, and what a stream writes does not depend on who else is there.
    """

    def __init__(self, workers: int | None = None) -> None:
        """`workers` threads do the work, as many as torch uses if None; they start with the first."""
        self._count = workers or torch.get_num_threads()
        self._change = threading.Condition()
        self._ready: list[_Work[Any]] = []
        self._stepping: set[int] = set()
        """Models that a thread steps several streams of."""
        self._clock_s = 0.0
        """The time that whoever has had the least had when last chosen: newcomers begin with it."""
        self._threads: list[threading.Thread] = []

    def batched(self, parts: Iterable[T], seconds: float) -> Iterator[list[T]]:
        """The parts in lists: the first at once, then what came in about so many seconds.

        Nothing is done for it while the caller looks at a list, and nothing once this is closed.
        """
        work = _Work(parts)
        try:
            while True:
                self._turn(work)
                if work.batch:
                    yield work.batch
                    work.batch = []
                if work.error is not None:
                    raise work.error
                if work.ended:
                    return
                work.turn_s = seconds
        finally:
            if (close := getattr(work.parts, "close", None)) is not None:
                close()

    def _turn(self, work: _Work[Any]) -> None:
        """Have a work done for its time, and at least one bit."""
        work.turn_over.clear()
        work.due = 0.0
        with self._change:
            self._start()
            work.used_s = max(work.used_s, self._clock_s)
            self._ready.append(work)
            self._change.notify()
        work.turn_over.wait()

    def _start(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._serve, name=f"engine-{index}", daemon=True)
                for index in range(self._count)
            ]
            for thread in self._threads:
                thread.start()

    def _serve(self) -> None:
        while True:
            works = self._take()
            begun = time.monotonic()
            for work in works:
                work.begin(begun)
            while True:
                self._advance(works)
                now = time.monotonic()
                if any(work.is_over(now) for work in works) or (self._ready and now - begun >= _SLICE_S):
                    break
            self._put_back(works, now - begun, now)

    def _take(self) -> list[_Work[Any]]:
        """The work that has had the least time, and others that are best done with it."""
        with self._change:
            while (first := self._next()) is None:
                self._change.wait()
            works, model = [first], first.batchable
            if model is not None:
                self._stepping.add(id(model))
                works += [work for work in self._ready if work is not first and work.batchable is model]
                works = works[:_TOGETHER]
            for work in works:
                self._ready.remove(work)
            self._clock_s = max(self._clock_s, first.used_s)
            return works

    def _next(self) -> _Work[Any] | None:
        free = [work for work in self._ready if work.batchable is None or id(work.batchable) not in self._stepping]
        return min(free, key=lambda work: work.used_s, default=None)

    def _put_back(self, works: list[_Work[Any]], took_s: float, now: float) -> None:
        with self._change:
            # Whose time would be over before it is in hand again need not wait for that.
            back = now + len(self._ready) * _SLICE_S / self._count
            self._stepping.discard(id(works[0].batchable))
            for work in works:
                work.used_s += took_s / len(works)
                if work.is_over(back):
                    work.turn_over.set()
                else:
                    self._ready.append(work)
            self._change.notify_all()

    def _advance(self, works: list[_Work[Any]]) -> None:
        """Do one bit of each."""
        if works[0].batchable is None:
            works[0].advance()
            return
        chosen = []
        for work in works:
            try:
                byte = work.parts.choose()
            except Exception as error:  # it is the caller's
                work.error, work.ended = error, True
            else:
                chosen += [] if byte is None else [(work, byte)]
        try:
            if chosen:
                hear_together([work.parts.stream for work, _ in chosen], [byte for _, byte in chosen])
        except Exception as error:
            for work, _ in chosen:
                work.error, work.ended = error, True
            return
        for work, _ in chosen:
            work.parts.heard()
        for work in works:
            work.batch += work.parts.taken()
            work.ended = work.ended or work.parts.ended
