from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import assert_equal_state, model

from bdh import engine as engines
from bdh.engine import Engine
from bdh.errors import DataError
from bdh.sampling import Sampling
from bdh.stream import Stream, Written

KINDS = ("flat", "hierarchical", "hebbian", "transformer", "average", "mixture")
PROMPTS = [b"The quick brown fox" * (1 + 9 * (index % 3)) + bytes([index]) for index in range(7)]


def options(index: int, **more: Any) -> Sampling:
    return Sampling(**({"seed": index, "max_bytes": 25 + index, "stop": (b"e",) if index % 2 else ()} | more))


def alone(name: str, index: int, **more: Any) -> tuple[Stream, list[Written]]:
    stream = Stream(model(name))
    stream.feed(PROMPTS[index])
    return stream, list(stream.generate(options(index, **more)))


def through(engine: Engine, stream: Stream, index: int, **more: Any) -> list[Written]:
    for _ in engine.batched(stream.feeding(PROMPTS[index]), seconds=0.001):
        pass
    return [one for batch in engine.batched(stream.generate(options(index, **more)), seconds=0.001) for one in batch]


def at_once(work: Callable[[int], Any], count: int) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def same(one: Stream, other: Stream) -> None:
    one._debt.settle()
    other._debt.settle()
    assert (one.position_bytes, one.recent) == (other.position_bytes, other.recent)
    assert_equal_state(one._state, other._state)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_streams_that_write_at_once_write_and_remember_what_each_does_alone(name: str, workers: int) -> None:
    engine = Engine(workers)
    streams = [Stream(model(name)) for _ in PROMPTS]
    written = at_once(lambda index: through(engine, streams[index], index), len(PROMPTS))
    for index, stream in enumerate(streams):
        expected, said = alone(name, index)
        assert written[index] == said
        same(stream, expected)


def test_one_that_is_dropped_has_heard_exactly_what_it_gave_out() -> None:
    engine = Engine(2)

    def some(index: int) -> tuple[Stream, int]:
        stream, count = Stream(model("flat")), 0
        stream.feed(PROMPTS[index])
        batches = engine.batched(stream.generate(options(index, max_bytes=None, stop=())), seconds=0.002)
        for batch in batches:
            count += len(batch)
            if count > 10:
                break
        batches.close()  # type: ignore[attr-defined]
        return stream, count

    for index, (stream, count) in enumerate(at_once(some, 5)):
        assert stream.position_bytes == len(PROMPTS[index]) + count
        same(stream, alone("flat", index, max_bytes=count, stop=())[0])


def test_an_error_reaches_its_own_caller_with_what_came_before_it_and_nobody_else() -> None:
    engine = Engine(2)

    def breaks() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("no more")

    def work(index: int) -> list[int]:
        got: list[int] = []
        if index == 0:
            with pytest.raises(DataError, match="no more"):
                for batch in engine.batched(breaks(), seconds=10):
                    got += batch
            return got
        return [one for batch in engine.batched(range(1000), seconds=0.001) for one in batch]

    assert at_once(work, 4) == [[1, 2]] + [list(range(1000))] * 3


def busy(seconds: float, count: int) -> Iterator[float]:
    """Bits of work that take so long each; gives when each was done."""
    for _ in range(count):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        yield time.monotonic()


def test_long_bits_do_not_stall_short_ones_and_both_get_the_same_time() -> None:
    engine = Engine(1)
    done: dict[int, list[float]] = {}

    def work(index: int) -> None:
        done[index] = [
            one for batch in engine.batched(busy(*[(0.03, 12), (0.001, 200)][index]), seconds=0.01) for one in batch
        ]

    at_once(work, 2)
    shared = [time for time in done[1] if done[0][0] < time < done[0][-1]]
    between = [sum(earlier < long < later for long in done[0]) for earlier, later in pairwise(shared)]
    assert max(between) <= 1, "long bits between two short ones"
    assert len(shared) * 0.001 > 0.05 * len(done[0]) * 0.03, "half of the time, or less where others work"


def test_who_comes_late_or_pauses_gets_no_more_than_those_who_work_all_the_time() -> None:
    engine = Engine(1)
    turns: list[int] = []

    def note(index: int, parts: Iterable[float]) -> Iterator[float]:
        for part in parts:
            turns.append(index)
            yield part

    def work(index: int) -> None:
        time.sleep(0.2 * index)
        for _ in engine.batched(note(index, busy(0.002, 150)), seconds=0.01):
            pass

    at_once(work, 2)
    first, last = turns.index(1), 150 + turns[150:].index(0)
    both = turns[first : min(first + 100, last)]
    assert 0.25 < sum(both) / len(both) < 0.75


def test_the_first_part_comes_at_once_and_later_ones_together() -> None:
    sizes = [len(batch) for batch in Engine(1).batched(busy(0.001, 100), seconds=0.03)]
    assert sizes[0] == 1
    assert sum(sizes) == 100
    assert max(sizes) > 3


def test_nothing_is_done_while_the_caller_looks_at_a_batch() -> None:
    made: list[int] = []
    batches = Engine(2).batched((made.append(one) or one for one in range(10**6)), seconds=0.005)  # type: ignore[func-returns-value]
    next(batches)
    got = len(next(batches)) + 1
    time.sleep(0.05)
    assert len(made) == got


class Elsewhere(torch.nn.Module):
    """A model on a device where several streams are stepped together."""

    def __init__(self, sooner: bool) -> None:
        super().__init__()
        self.model, self.sooner, self.sizes, self.stepping = model("flat"), sooner, [], threading.Lock()
        self.device = torch.device("cuda")
        self.config, self.empty_state, self.step_ = self.model.config, self.model.empty_state, self.model.step_
        self.step_byte_, self.products_per_byte = self.model.step_byte_, self.model.products_per_byte

    def step_streams_(self, data: Sequence[int], states: Sequence[Any], debts: Sequence[Any]) -> Tensor | None:
        assert self.stepping.acquire(blocking=False), "one thread at a time steps a model's streams together"
        try:
            self.sizes.append(len(data))
            time.sleep(0.001)
            if not self.sooner:
                return None
            said = [self.step_(torch.tensor([[one]]), state) for one, state in zip(data, states, strict=True)]
            return torch.cat([one.logits[:, 0] for one in said])
        finally:
            self.stepping.release()


@pytest.mark.parametrize("sooner", [True, False])
def test_where_a_model_steps_several_streams_at_once_they_join_and_leave_at_any_byte(sooner: bool) -> None:
    engine, elsewhere = Engine(3), Elsewhere(sooner)
    streams = [Stream(elsewhere) for _ in PROMPTS]  # type: ignore[arg-type]

    def work(index: int) -> list[Written]:
        time.sleep(0.01 * index)
        return through(engine, streams[index], index)

    written = at_once(work, len(PROMPTS))
    assert max(elsewhere.sizes) > 3
    assert sum(elsewhere.sizes) == sum(
        stream.position_bytes - len(p) for stream, p in zip(streams, PROMPTS, strict=True)
    )
    for index, stream in enumerate(streams):
        expected, said = alone("flat", index)
        assert [one.byte for one in written[index]] == [one.byte for one in said]
        assert (stream.position_bytes, stream.recent) == (expected.position_bytes, expected.recent)


def test_a_stream_that_cannot_go_on_leaves_those_that_are_stepped_with_it_alone() -> None:
    engine, elsewhere = Engine(1), Elsewhere(sooner=True)

    def work(index: int) -> int:
        stream = Stream(elsewhere)  # type: ignore[arg-type]
        if index == 0:
            with pytest.raises(DataError, match="heard nothing"):
                list(engine.batched(stream.generate(options(0)), seconds=0.01))
            return 0
        return len(through(engine, stream, index, stop=()))

    assert at_once(work, 4) == [0, 26, 27, 28]


def test_newcomers_do_not_take_the_turn_of_whoever_works_on() -> None:
    engine, done = Engine(1), threading.Event()

    def work(index: int) -> float:
        begun = time.monotonic()
        if index == 0:
            list(engine.batched(busy(0.002, 200), seconds=0.01))
            done.set()
        while index and not done.is_set() and time.monotonic() - begun < 30:
            list(engine.batched(busy(0.002, 1), seconds=0.01))
        return time.monotonic() - begun

    assert at_once(work, 4)[0] < 25, "a fourth of the time is 1.6 seconds where there is nothing else to do"


def test_looking_for_garbage_is_charged_to_nobody() -> None:
    lasting: list[list[int]] = [[] for _ in range(500_000)]
    begun_s, own_s = time.thread_time(), engines._collecting.rest_s()
    gc.collect()
    spent_s = time.thread_time() - begun_s
    assert lasting and engines._collecting.rest_s() - own_s < 0.2 * spent_s


def test_a_slice_that_cost_far_too_much_is_not_held_against_whoever_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdh.engine._PATIENCE_S", 0.1)
    engine, done = Engine(1), threading.Event()

    def work(index: int) -> float:
        if index == 0:
            first, *others = [
                one for batch in engine.batched(busy(1.0, 1), busy(0.002, 20), seconds=0) for one in batch
            ]
            done.set()
            return others[-1] - first
        for _ in engine.batched(itertools.takewhile(lambda _: not done.is_set(), busy(0.002, 9_999)), seconds=0.01):
            pass
        return 0.0

    assert at_once(work, 8)[0] < 5, "seven seconds, if all others had to have had as much first"


def test_what_has_ended_is_told_without_another_turn() -> None:
    stream = Stream(model("flat"))
    stream.feed(b"abc")
    engine, turns = Engine(1), []
    turn = engine._turn
    engine._turn = lambda work: (turns.append(1), turn(work))[1]  # type: ignore[method-assign]
    written = [len(batch) for batch in engine.batched(stream.generate(options(0, stop=())), seconds=60)]
    assert (written, len(turns)) == ([1, 24], 2)


def test_writing_follows_hearing_in_the_same_turn() -> None:
    stream = Stream(model("flat"))
    parts = (stream.feeding(PROMPTS[1]), stream.generate(options(2, stop=())))
    batches = list(Engine(1).batched(*parts, seconds=60))  # type: ignore[arg-type]
    assert len(batches) == 2 + (len(PROMPTS[1]) > stream.piece_bytes)
    assert [one for batch in batches for one in batch if isinstance(one, int)][-1] == len(PROMPTS[1])
    assert sum(isinstance(one, Written) for batch in batches for one in batch) == 27


def test_nothing_of_a_work_is_kept_when_it_is_done_or_has_failed() -> None:
    engine, gone = Engine(2), []

    def work(index: int) -> None:
        stream = Stream(model("flat"))
        gone.append(weakref.ref(stream))
        if index % 2:
            stream.feed(b"abc")
        with nullcontext() if index % 2 else pytest.raises(DataError):
            list(engine.batched(stream.generate(options(1)), seconds=0.01))

    at_once(work, 6)
    gc.collect()
    assert [ref() for ref in gone] == [None] * 6


def test_an_error_of_a_thread_itself_reaches_the_caller_and_the_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(1)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_advance", lambda works: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.batched([1], seconds=1))
    assert list(engine.batched([1, 2], seconds=1)) == [[1], [2]]


def test_where_one_of_several_fails_the_others_have_heard_exactly_what_they_gave_out() -> None:
    engine, elsewhere = Engine(1), Elsewhere(sooner=False)
    streams = [Stream(elsewhere) for _ in range(4)]  # type: ignore[arg-type]
    hear = streams[2]._hear

    def fail(data: bytes, **more: Any) -> Tensor:
        if streams[2].position_bytes > len(PROMPTS[2]) + 4:
            raise MemoryError("no more")
        return hear(data, **more)

    def work(index: int) -> int:
        streams[index].feed(PROMPTS[index])
        if index == 2:
            streams[2]._hear = fail  # type: ignore[method-assign]
            with pytest.raises(MemoryError, match="no more"):
                list(engine.batched(streams[2].generate(options(2, stop=())), seconds=0.01))
            return 5
        batches = engine.batched(streams[index].generate(options(index, stop=())), seconds=0.01)
        return sum(len(batch) for batch in batches)

    counts = at_once(work, 4)
    assert counts == [25, 26, 5, 28]
    assert [stream.position_bytes for stream in streams] == [len(p) + n for p, n in zip(PROMPTS, counts, strict=False)]
