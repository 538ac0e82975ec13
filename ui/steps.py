"""What handlers tell step by step: work in a thread of its own, and updates none of which is lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import wraps
from itertools import zip_longest
from typing import Any, TypeAlias, TypeVar

import gradio as gr

Tell: TypeAlias = Callable[[float, str], None]
"""Called with the part done, 0 to 1, and what is done; raises if the work is to stop."""
Handler = TypeVar("Handler", bound=Callable[..., Any])
_AGAIN_S = 0.3
_LONG_S = 2.0
"""Of silence, after which is told how long it has lasted."""
_TOGETHER_S = 2.0
WAITING = "waiting until other work has ended; work that was stopped ends in a moment"


class Stopped(Exception):
    """Work was asked to stop."""


def in_steps(
    work: Callable[[Tell, Callable[[Any], None]], None], room: threading.Semaphore | None = None
) -> Iterator[tuple[float, str] | Any]:
    """What work tells and hands out, as it does; closing this lets the work stop at its next word.

    Of words that came together only the newest are told, and again while the work is silent, with how long it has
    been: Gradio can stop a generator only between two of them, and takes no other press of its button before.

    Args:
        work: gets `tell` and `give`; done in a thread of its own.
        room: how much work of a kind is done at once. What was stopped gives its place back when it has really ended.
    """
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped, end = threading.Event(), object()

    def tell(part: float, note: str) -> None:
        if stopped.is_set():
            raise Stopped
        told.put((part, note))

    def run() -> None:
        try:
            work(tell, told.put)
            told.put(end)
        except Stopped:
            told.put(end)
        except BaseException as error:  # it is raised where the work is waited for
            told.put(error)
        finally:
            if room is not None:
                room.release()

    while room is not None and not room.acquire(timeout=_AGAIN_S):
        yield 0.0, WAITING
    try:
        threading.Thread(target=run, daemon=True, name="steps").start()
    except BaseException:
        if room is not None:
            room.release()
        raise
    words: tuple[float, str] | None = None
    since = time.monotonic()
    try:
        while True:
            items = _arrived(told)
            if items:
                since = time.monotonic()
            elif words is not None:
                silent_s = time.monotonic() - since
                yield words if silent_s < _LONG_S else (words[0], f"{words[1]} · {silent_s:.0f} s")
            for item, following in zip_longest(items, items[1:]):
                if item is end:
                    return
                if isinstance(item, BaseException):
                    raise item
                if type(item) is tuple:
                    words = item
                    if type(following) is tuple:
                        continue
                yield item
    finally:
        stopped.set()


def kept_or(
    kept: Callable[[], Any], work: Callable[[Tell, Callable[[Any], None]], None], room: threading.Semaphore
) -> Iterator[tuple[float, str] | Any]:
    """What is kept, at once, however much is worked on; where nothing is, `in_steps`.

    Args:
        kept: gives what work would hand out, or None.
    """
    if (result := kept()) is not None:
        yield result
    else:
        yield from in_steps(work, room)


def _arrived(told: queue.SimpleQueue[Any]) -> list[Any]:
    """What has come, waited for a moment; empty if nothing has."""
    try:
        items = [told.get(timeout=_AGAIN_S)]
    except queue.Empty:
        return []
    while not told.empty():
        items.append(told.get())
    return items


def whole(handler: Handler) -> Handler:
    """A handler's updates, each with what those shortly before it said and it skips or leaves out.

    Of updates that come together a browser shows the last one only: a button that the one before it changed would
    stay as it was. What was said longer ago was shown, and may since have been changed by who looks at it. A handler
    that says nothing changes nothing: Gradio would empty all that it could have changed.
    """

    @wraps(handler)
    def telling(*given: Any, **named: Any) -> Generator[Any, None, None]:
        said: dict[Any, tuple[float, Any]] = {}
        with closing(handler(*given, **named)) as updates:
            for update in updates:
                by_name = isinstance(update, dict)
                now = time.monotonic()
                for place, value in update.items() if by_name else enumerate(update):
                    if not (isinstance(value, dict) and value == gr.skip()):
                        said[place] = now, value
                recent = {place: value for place, (when, value) in said.items() if now - when < _TOGETHER_S}
                yield recent if by_name else tuple(recent.get(place, gr.skip()) for place in range(len(update)))
        if not said:
            yield gr.skip()

    return telling  # type: ignore[return-value]
