"""Many streams at once: their work in short turns, by as many threads as there are cores, single bytes together.

On a CPU streams of one model are stepped side by side, each memory being traffic of its own; where a model can step
several at once sooner (`Model.step_streams_`), they are stepped together.
"""

from __future__ import annotations

import copy
import gc
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any, Generic, TypeVar

import torch

from .models import Model
from .stream import Writing, hear_together

T = TypeVar("T")

_SLICE_S = 0.02
"""Processor time a thread gives one work while others wait. Passing on what comes of it costs some milliseconds."""
_LONGEST_SLICE_S = 3 * _SLICE_S
"""Time that passes in a slice at most, however little of it is spent by the processor."""
_PATIENCE_S = 1.0
"""Longer than this and two rounds of slices nobody waits for a turn, whatever time it has had."""
_TOGETHER = 256
"""Most streams that are stepped together."""
_MOST_THREADS = 8
"""Products have threads of their own, so more would only crowd the cores."""


class _Collecting(threading.local):
    """What this thread has spent on the interpreter's looks for garbage, which is the whole process's."""

    begun_s = 0.0
    spent_s = 0.0

    def note(self, phase: str, _: Any) -> None:
        """Called as a look begins and ends."""
        now = time.thread_time()
        if phase == "start":
            self.begun_s = now
        else:
            self.spent_s += now - self.begun_s

    def rest_s(self) -> float:
        """Processor time that this thread has spent on all else."""
        return time.thread_time() - self.spent_s


_collecting = _Collecting()
gc.callbacks.append(_collecting.note)


class _Work(Generic[T]):
    """What one caller wants done bit by bit, one iterator after another, and what has come of it in this turn."""

    def __init__(self, parts: Iterable[Iterable[T]]) -> None:
        self._parts = [iter(part) for part in parts]
        self.batch: list[T] = []
        self.error: BaseException | None = None
        self.ended = False
        self.turn_over = threading.Event()
        self.used_s = 0.0
        self.since = 0.0
        """When it began to wait for a thread."""
        self.turn_s = 0.0
        """How long a turn is, from its first bit on."""
        self.due = 0.0
        """When its turn is over."""
        self._next()

    def _next(self) -> None:
        """Take up the iterator that is first now."""
        self.ended = not self._parts
        self.current: Any = self._parts[0] if self._parts else None
        model = self.current.stream.model if isinstance(self.current, Writing) else None
        self.batchable: Model[Any] | None = None if model is None or model.device.type == "cpu" else model
        """The model that this writes with, if single bytes may be heard together with others' on its device."""

    def begin(self, now: float) -> None:
        """A thread takes it in hand."""
        self.due = self.due or now + self.turn_s

    def is_over(self, now: float) -> bool:
        """Whether the caller gets what there is."""
        return self.ended or (bool(self.batch) and now >= self.due)

    def fail(self, error: BaseException) -> None:
        """What went wrong is the caller's."""
        self.error, self.ended = error, True

    def advance(self) -> None:
        """Do the next bit."""
        try:
            while not self.ended:
                try:
                    self.batch.append(next(self.current))
                except StopIteration:
                    self._parts.pop(0)
                    self._next()
                    continue
                self.settle()
                return
        except BaseException as error:
            self.fail(error)

    def settle(self) -> None:
        """Take what writing has ready, and notice its end without being asked again for it."""
        if isinstance(self.current, Writing):
            self.batch += self.current.taken()  # type: ignore[arg-type]
            if self.current.ended:
                self._parts.pop(0)
                self._next()

    def close(self) -> None:
        """Let go of what is not done."""
        for part in self._parts:
            if (close := getattr(part, "close", None)) is not None:
                close()


class Engine:
    """Does the work of many callers, fairly: whoever has had the least time is next, or has waited for too long.

    What is done is cut at the bits that a work comes in: a byte that is written, a chunk that is heard. So nobody waits
    for longer than others' bits take, and what a stream writes does not depend on who else is there.
    """

    def __init__(self, workers: int | None = None) -> None:
        """`workers` threads do the work, as many as torch uses (at most 8) if None; they start with the first."""
        self._count = workers or min(_MOST_THREADS, torch.get_num_threads())
        self._change = threading.Condition()
        self._ready: list[_Work[Any]] = []
        self._stepping: set[int] = set()
        """Models that a thread steps several streams of."""
        self._clock_s = 0.0
        """The time that each has had on average: newcomers begin with it."""
        self._slice_s = _SLICE_S
        """How long slices have been of late."""
        self._threads: list[threading.Thread] = []

    def batched(self, *parts: Iterable[T], seconds: float) -> Generator[list[T], None, None]:
        """What comes of the parts, one after another, in lists: the first at once, then in about so many seconds.

        Nothing is done for it while the caller looks at a list, and nothing once this is closed.
        """
        work = _Work(parts)
        try:
            while not work.ended:
                self._turn(work)
                if work.batch:
                    yield work.batch
                    work.batch = []
                work.turn_s = seconds
            if work.error is not None:
                raise work.error
        finally:
            work.error = None  # it holds on to what was going on
            work.close()

    def _turn(self, work: _Work[Any]) -> None:
        """Have a work done for its time, and at least one bit."""
        work.turn_over.clear()
        work.due = 0.0
        with self._change:
            self._start()
            work.used_s = max(work.used_s, self._clock_s)
            work.since = time.monotonic()
            self._ready.append(work)
            self._change.notify()
        try:
            work.turn_over.wait()
        except BaseException:  # interrupted: still, nobody may go on with it behind the caller's back
            with self._change:
                waiting = work in self._ready
                if waiting:
                    self._ready.remove(work)
            if not waiting:
                work.turn_s = 0.0
                work.due = time.monotonic()
                work.turn_over.wait()
            raise

    def _start(self) -> None:
        while len(self._threads) < self._count:
            thread = threading.Thread(target=self._serve, name=f"engine-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self) -> None:
        while True:
            self._serve_once()

    def _serve_once(self) -> None:
        """Do the work that is next for a while. Nothing of it is held on to afterwards."""
        works = self._take()
        model = id(works[0].batchable)
        begun, spent_s = time.monotonic(), _collecting.rest_s()
        now = begun
        try:
            for work in works:
                work.begin(begun)
            while True:
                self._advance(works)
                now = time.monotonic()
                if any(work.is_over(now) for work in works):
                    break
                # What a busy machine takes away in between is nobody's fault, and would make for tiny updates.
                late = now - begun >= _LONGEST_SLICE_S
                if self._ready and (late or (now - begun >= _SLICE_S and _collecting.rest_s() - spent_s >= _SLICE_S)):
                    break
        except BaseException as error:  # no caller is left waiting
            for work in works:
                work.fail(error)
        self._put_back(works, model, _collecting.rest_s() - spent_s, now - begun, now)

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
            return works

    def _next(self) -> _Work[Any] | None:
        free = [work for work in self._ready if work.batchable is None or id(work.batchable) not in self._stepping]
        if not free:
            return None
        longest = min(free, key=lambda work: work.since)
        round_s = len(self._ready) * self._slice_s / self._count
        if time.monotonic() - longest.since > _PATIENCE_S + 2 * round_s:
            # Such as one in whose slice the machine stood still.
            longest.used_s = min(longest.used_s, self._clock_s)
            return longest
        return min(free, key=lambda work: work.used_s)

    def _put_back(self, works: list[_Work[Any]], model: int, spent_s: float, took_s: float, now: float) -> None:
        with self._change:
            self._clock_s += spent_s / (len(self._ready) + len(works))
            self._slice_s += (took_s - self._slice_s) / 8
            # Whose time would be over before it is in hand again need not wait for that.
            back = now + len(self._ready) * self._slice_s / self._count
            for work in works:
                work.used_s += spent_s / len(works)
                if work.is_over(back):
                    work.turn_over.set()
                else:
                    work.since = now
                    self._ready.append(work)
            self._stepping.discard(model)
            self._change.notify_all()

    def _advance(self, works: list[_Work[Any]]) -> None:
        """Do one bit of each."""
        if works[0].batchable is None:
            works[0].advance()
            return
        chosen = []
        for work in works:
            try:
                byte = work.current.choose()
            except BaseException as error:
                work.fail(error)
            else:
                chosen += [] if byte is None else [(work, byte)]
        try:
            together = bool(chosen) and hear_together(
                [work.current.stream for work, _ in chosen], [byte for _, byte in chosen]
            )
        except BaseException as error:
            for work, _ in chosen:
                work.fail(copy.copy(error))  # each caller's own
            return
        for work, byte in chosen:
            try:
                if together:
                    work.current.heard()
                else:
                    work.current.hear(byte)
            except BaseException as error:
                work.fail(error)
        for work in works:
            if work.error is None:
                work.settle()
