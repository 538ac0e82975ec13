"""The queue takes what the page sends and no more of anybody; answers that nobody reads take no memory for long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from ui import queued
from ui.limits import Limits
from ui.queued import Letters, _Post, hold_within


def message(size: int) -> Any:
    return SimpleNamespace(output={"data": ["a" * size]})


def events(*sessions: str) -> Any:
    found = {str(index): SimpleNamespace(session_hash=one, alive=True) for index, one in enumerate(sessions)}
    return SimpleNamespace(event_ids_to_events=found)


def alive(queue: Any) -> list[bool]:
    return [event.alive for event in queue.event_ids_to_events.values()]


def test_letters_arrive_whole_and_in_order() -> None:
    async def exchanged() -> list[Any]:
        box = Letters("a", events())
        for size in (1, 2, 3):
            box.put_nowait(message(size))
        assert box.held_bytes > 1500
        await box.put(None)
        read = [await box.get() for _ in range(4)]
        assert box.held_bytes == 0 and box.empty()
        return [one and len(one.output["data"][0]) for one in read]

    assert asyncio.run(exchanged()) == [1, 2, 3, None]


@pytest.mark.parametrize(("size", "count"), [(4_000_000, 5), (1, 2_100)])
def test_what_one_session_leaves_unread_is_given_up_and_its_work_ends(size: int, count: int) -> None:
    queue = events("a", "b", "a")
    box = Letters("a", queue)
    for _ in range(count):
        box.put_nowait(message(size))
    assert box.given_up and box.held_bytes == 0 and box.qsize() == 1
    assert "not read" in box.get_nowait().message
    assert alive(queue) == [False, True, False]
    box.put_nowait(message(1))
    assert box.empty()


def test_of_all_that_is_unread_the_most_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "_ALL_UNREAD_BYTES", 1_000_000)
    queue = events("large", "small")
    large, small = Letters("large", queue), Letters("small", queue)
    large.put_nowait(message(700_000))
    small.put_nowait(message(200_000))
    small.put_nowait(message(200_000))
    assert large.given_up and not small.given_up and alive(queue) == [False, True]


def test_a_flood_of_sessions_takes_no_letters_from_those_at_work() -> None:
    queue = events("at work")
    post = _Post(queue)
    post.max_size = 3
    post["at work"] = None
    kept = post["at work"]
    for index in range(10):
        post[f"new-{index}"] = None
    assert len(post) == 3 and post["at work"] is kept


WRITING, QUICK, LOADING, LOOKING = 0, 1, 2, 3


def joined(function: int, theirs: list[int], who: str = "9.9.9.9", **bounds: int) -> str:
    """Why somebody may not join, with this much of theirs in the queue; empty if they may."""
    kinds = {WRITING: ("writing", 8), QUICK: ("1", None), LOADING: ("loading", 2), LOOKING: ("searching", 2)}
    fns = {
        index: SimpleNamespace(fn=lambda: None, inputs=[], concurrency_id=group, concurrency_limit=limit)
        for index, (group, limit) in kinds.items()
    }

    def request(who: str) -> Any:
        return SimpleNamespace(scope={"client": (who, 1), "headers": []})

    async def push(**_: Any) -> Any:
        return True, "id", "success"

    page: Any = SimpleNamespace(fns=fns, preprocess_data=None)
    page._queue = queue = SimpleNamespace(push=push, event_ids_to_events={}, pending_event_ids_session={})
    for index, one in enumerate(theirs):
        event = SimpleNamespace(session_hash="a", alive=True, fn=fns[one], request=request(who))
        queue.event_ids_to_events[str(index)] = event
    hold_within(page, Limits(public=True, **bounds))
    body = SimpleNamespace(session_hash="b", fn_index=function, event_data=None, data=[])
    passed, said, kind = asyncio.run(queue.push(body=body, request=request(who), username=None))
    assert (passed, kind) in [(True, "success"), (False, "queue_full")]
    return "" if passed else said


@pytest.mark.parametrize(("at_once", "each"), [(32, 8), (7, 1), (1, 1)])
def test_one_visitor_has_a_quarter_of_the_answers_at_once(at_once: int, each: int) -> None:
    bounds = {"max_at_once": at_once, "max_waiting_each": 32}
    assert joined(WRITING, [WRITING] * (each - 1) + [LOADING, QUICK], **bounds) == ""
    assert joined(WRITING, [WRITING] * each, **bounds) == (
        f"you have {each} answers under way or waiting, which is all one visitor can have here; wait for one of them"
    )
    assert joined(LOADING, [WRITING] * each, **bounds) == ""
    assert joined(WRITING, [WRITING] * each, who="127.0.0.1", **bounds) == ""


def test_one_visitor_has_two_looks_into_models_of_a_kind_at_once() -> None:
    assert joined(LOOKING, [LOOKING, WRITING, LOADING], max_waiting_each=32) == ""
    assert "you have 2 looks into models" in joined(LOOKING, [LOOKING] * 2, max_waiting_each=32)


def test_what_is_over_in_a_moment_counts_apart() -> None:
    bounds = {"max_waiting_each": 4, "max_waiting": 40}
    assert joined(LOADING, [QUICK] * 36 + [LOADING] * 3, **bounds) == ""
    assert "many requests waiting" in joined(LOADING, [LOADING] * 4, **bounds)
    assert joined(QUICK, [LOADING] * 4 + [QUICK] * 35, **bounds) == ""
    assert "many requests waiting" in joined(QUICK, [QUICK] * 36, **bounds)


def test_nothing_is_summed_up_for_a_dashboard_that_is_not_there() -> None:
    with gr.Blocks() as page:
        page.queue()
    hold_within(page, Limits())
    queue = page._queue
    for index in range(3):
        queue.event_analytics[str(index)] = {"function": "write", "status": "success", "process_time": 1.0}
        queue.events_recorded += 1
        queue.compute_analytics_summary(list(queue.event_analytics.values()))
    assert queue.cached_event_analytics_summary == {"functions": {}}
