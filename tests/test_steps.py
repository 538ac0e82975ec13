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
from ui.steps import Stopped, Tell, in_steps, whole


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
