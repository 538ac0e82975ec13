"""Work that is told step by step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr
import pytest

from bdh.errors import MergeError
from ui import steps
from ui.steps import WAITING, Stopped, Tell, in_steps, whole


def test_work_stops_at_its_next_word() -> None:
    going, ended = threading.Event(), threading.Event()

    def work(tell: Tell, give: Any) -> None:
        try:
            give("first")
            while True:
                tell(0.5, "on it")
                going.wait(0.01)
        except Stopped:
            ended.set()
            raise

    steps = in_steps(work)
    assert next(steps) == "first"
    assert next(steps) == (0.5, "on it")
    steps.close()
    assert ended.wait(60)


def test_what_goes_wrong_is_raised_and_nothing_given_is_lost() -> None:
    def work(tell: Tell, give: Any) -> None:
        for number in range(3):
            give(number)
            tell(number / 3, "next")
        raise MergeError("no more")

    found: list[Any] = []
    with pytest.raises(MergeError, match="no more"):
        found.extend(iter_into(found, in_steps(work)))
    assert [item for item in found if isinstance(item, int)] == [0, 1, 2]


def iter_into(found: list[Any], steps: Iterator[Any]) -> list[Any]:
    for item in steps:
        found.append(item)
    return []


def test_silent_work_lets_itself_be_stopped_between_two_words() -> None:
    going = threading.Event()

    def work(tell: Tell, give: Any) -> None:
        tell(0.5, "a long step")
        going.wait(60)
        give("done")

    with closing(in_steps(work)) as steps:
        assert [next(steps) for _ in range(3)] == [(0.5, "a long step")] * 3
        going.set()
        assert [item for item in steps if not isinstance(item, tuple)] == ["done"]


def test_work_that_was_stopped_keeps_its_place_until_it_has_ended() -> None:
    room, going, begun = threading.BoundedSemaphore(1), threading.Event(), threading.Event()

    def slow(tell: Tell, give: Any) -> None:
        tell(0.0, "a long step")
        begun.set()
        going.wait(60)

    first = in_steps(slow, room)
    assert next(first) == (0.0, "a long step") and begun.wait(60)
    first.close()
    second = in_steps(lambda tell, give: give("done"), room)
    assert [next(second) for _ in range(2)] == [(0.0, WAITING)] * 2
    going.set()
    assert [item for item in second if not isinstance(item, tuple)] == ["done"]
    assert room.acquire(timeout=60)


def test_who_stops_waiting_for_a_place_takes_none() -> None:
    room = threading.BoundedSemaphore(1)
    with room:
        waiting = in_steps(lambda tell, give: give("never"), room)
        assert next(waiting) == (0.0, WAITING)
        waiting.close()
    assert room.acquire(timeout=60)


def test_of_work_that_is_silent_for_long_is_told_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_LONG_S", 0.0)
    going = threading.Event()

    def work(tell: Tell, give: Any) -> None:
        tell(0.5, "a long step")
        going.wait(60)

    with closing(in_steps(work)) as told:
        assert [next(told) for _ in range(2)] == [(0.5, "a long step"), (0.5, "a long step · 0 s")]
        going.set()


def test_every_update_says_what_those_shortly_before_it_said() -> None:
    @whole
    def by_place(first: int) -> Iterator[tuple[Any, ...]]:
        yield first, "b", gr.skip()
        yield gr.skip(), "c", gr.skip()

    @whole
    def by_name() -> Iterator[dict[str, int]]:
        yield {"a": 1, "b": 2}
        yield {"b": 3}

    assert list(by_place(7)) == [(7, "b", gr.skip()), (7, "c", gr.skip())]
    assert list(by_name()) == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]


def test_a_handler_that_says_nothing_changes_nothing() -> None:
    @whole
    def silent() -> Iterator[tuple[Any, ...]]:
        yield from ()

    assert list(silent()) == [gr.skip()]


def test_what_was_said_long_ago_is_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(steps.time, "monotonic", lambda: now)

    @whole
    def slow() -> Iterator[tuple[Any, ...]]:
        nonlocal now
        yield "chosen", "begun"
        now = 60.0
        yield gr.skip(), "done"

    assert list(slow()) == [("chosen", "begun"), (gr.skip(), "done")]
