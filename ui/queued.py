"""What waits in Gradio's queue, held within bounds: whose it is, what it asks for, and answers that nobody reads."""

from __future__ import annotations

import asyncio
import re
import sys
import weakref
from functools import cache
from typing import Any, ClassVar, get_type_hints

import gradio as gr
from gradio.queueing import Queue
from gradio.route_utils import GradioMultiPartParser
from gradio.server_messages import UnexpectedErrorMessage
from gradio.utils import LRUCache
from starlette.formparsers import MultiPartException

from .limits import Limits
from .owner import inert
from .visitors import visitor

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SESSIONS = 2_000
"""Whose answers are kept for them to be read."""
_UNREAD, _UNREAD_BYTES = 2_000, 16_000_000
"""Messages, and their bytes, that one session may leave unread: some minutes of writing."""
_ALL_UNREAD_BYTES = 512_000_000
_MOST_FIELD_BYTES = 4_096
"""Of what stands beside the files of an upload, which is held in memory."""
_FEW_BYTES = 64_000
_LOOKING, _LOOKS = ("searching", "looking", "looking again", "inspecting"), ("looks into models", 2)
"""The groups of functions that look into models; what one visitor may have of each at once."""
_WRITING = "writing"
"""The group of functions that write; what it can do at once is shared."""
_TOO_LATE = "the answer was not read as it came, so it was given up"


class Letters(asyncio.Queue[Any]):
    """What one session has yet to read. Who leaves too much unread gets no more: it would fill the memory."""

    known: ClassVar[weakref.WeakSet[Letters]] = weakref.WeakSet()
    """All there are, of every page of this process."""

    def __init__(self, session: str, queue: Queue) -> None:
        super().__init__()
        self._session, self._queue_of_page = session, queue
        self.held_bytes, self.given_up = 0, False
        Letters.known.add(self)

    def _put(self, item: Any) -> None:
        if self.given_up:
            return
        super()._put((weight := _weight(item), item))
        self.held_bytes += weight
        if self.qsize() > _UNREAD or self.held_bytes > _UNREAD_BYTES:
            self.give_up()
        elif self.held_bytes > _FEW_BYTES:
            while sum(one.held_bytes for one in Letters.known) > _ALL_UNREAD_BYTES:
                max(Letters.known, key=lambda one: one.held_bytes).give_up()

    def _get(self) -> Any:
        weight, item = super()._get()
        self.held_bytes -= weight
        return item

    def give_up(self) -> None:
        """Drop what is unread, and end what makes more of it."""
        self.given_up = True
        while self.qsize():
            self._get()
        message = UnexpectedErrorMessage(message=_TOO_LATE, success=False)
        super()._put((0, message))
        for event in list(self._queue_of_page.event_ids_to_events.values()):
            if event.session_hash == self._session:
                event.alive = False


class _Post(LRUCache):  # type: ignore[type-arg]
    """Letters by session; what Gradio puts here is made into them."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(_SESSIONS)
        self._queue_of_page = queue

    def __setitem__(self, session: str, _: Any) -> None:
        if len(self) >= self.max_size:  # a flood of new sessions must not take a letter box that is in use
            used = {event.session_hash for event in self._queue_of_page.event_ids_to_events.values()}
            self.pop(next((one for one in self if one not in used), session), None)
        super().__setitem__(session, Letters(session, self._queue_of_page))


def hold_within(page: gr.Blocks, limits: Limits) -> None:
    """Let a page's queue take what its components send and so many of each visitor; what is wrong is told in short.

    Args:
        page: built, with its queue made.
    """
    queue = page._queue
    queue.pending_messages_per_session = _Post(queue)
    # All that is kept of events is summed up anew after each, for a dashboard that this page does not have.
    queue.ANALYTICS_MAX_EVENTS, queue.ANAYLTICS_CACHE_FREQUENCY = 100, sys.maxsize
    push, preprocess = queue.push, page.preprocess_data

    async def checked_push(body: Any, request: Any, username: Any) -> Any:
        problem = _problem(page, body)
        if problem:
            return False, problem, "error"
        who = visitor(request.scope)
        theirs = [one for one in queue.event_ids_to_events.values() if who and visitor(one.request.scope) == who]
        if refused := _too_many(page.fns[body.fn_index], [one.fn for one in theirs], limits):
            return False, refused, "queue_full"
        if len(queue.pending_event_ids_session) > 2 * _SESSIONS:
            for session in set(queue.pending_event_ids_session) - set(queue.pending_messages_per_session):
                del queue.pending_event_ids_session[session]
        return await push(body=body, request=request, username=username)

    async def told_preprocess(*given: Any, **named: Any) -> Any:
        try:
            return await preprocess(*given, **named)
        except Exception as error:
            # A wrong input is its sender's fault, and no page of the log; what it says may be of any length.
            said = str(error) if isinstance(error, gr.Error) else "an input is not what this asks for"
            raise gr.Error(inert(said), print_exception=False) from None

    _bound_fields()
    vars(queue)["push"], vars(page)["preprocess_data"] = checked_push, told_preprocess


def _too_many(wanted: Any, theirs: list[Any], limits: Limits) -> str:
    """Why a visitor may not ask for more right now, or an empty text.

    Args:
        wanted: the function that is asked for.
        theirs: those that the visitor has under way or waiting; none of nobody in particular.
    """
    # What runs without a limit is over in a moment. A page has some ten of them when it is opened, and many people can
    # share an address; they count apart, and leave others room in the queue.
    quick = wanted.concurrency_limit is None
    most = (
        max(limits.max_waiting - limits.max_waiting_each, limits.max_waiting_each) if quick else limits.max_waiting_each
    )
    if sum((one.concurrency_limit is None) == quick for one in theirs) >= most:
        return "you have many requests waiting; try again when some are answered"
    group = wanted.concurrency_id
    shared = {_WRITING: ("answers", max(1, limits.max_at_once // 4)), **dict.fromkeys(_LOOKING, _LOOKS)}
    what, bound = shared.get(group, ("", 0))
    same = sum(one.concurrency_id == group for one in theirs)
    if what and same >= bound:
        told = f"you have {same} {what} under way or waiting"
        return f"{told}, which is all one visitor can have here; wait for one of them"
    return ""


def _bound_fields() -> None:
    """Files go to the disk as they come, but other fields of an upload are held in memory: let these be short."""
    parser: Any = GradioMultiPartParser
    usual = parser.on_part_data
    if getattr(usual, "bounds_fields", False):
        return

    def on_part_data(self: Any, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > _MOST_FIELD_BYTES:
            raise MultiPartException(f"a field beside the files has more than {_MOST_FIELD_BYTES:,} bytes")
        usual(self, data, start, end)

    vars(on_part_data)["bounds_fields"] = True
    parser.on_part_data = on_part_data


def _problem(page: gr.Blocks, body: Any) -> str:
    """Why a request cannot be put into the queue, or an empty text."""
    if body.session_hash is not None and not _SESSION.fullmatch(body.session_hash):
        return "session_hash must be up to 64 letters, digits, - and _"
    if body.fn_index is None or (function := page.fns.get(body.fn_index)) is None:
        return "there is no such function"
    if not _fits_event(function.fn, body.event_data):
        return "event_data is not what this asks for"
    if any(
        isinstance(one, gr.Dataset) and not isinstance(value, int)
        for one, value in zip(function.inputs, body.data, strict=False)
    ):
        return "choose one of the examples by its number"
    if function.fn is not None and len(body.data) != len(function.inputs):
        return f"data must have {len(function.inputs)} values; given {len(body.data)}"
    return ""


def _fits_event(function: Any, data: Any) -> bool:
    """Whether what a function wants to know of an event can be read from what was sent."""
    for kind in _event_kinds(function):
        try:
            kind(None, data)
        except Exception:  # Gradio reads it as if it were there
            return False
    return True


@cache
def _event_kinds(function: Any) -> tuple[type, ...]:
    try:
        hints = get_type_hints(function) if function is not None else {}
    except (TypeError, NameError):
        return ()
    return tuple(kind for kind in hints.values() if isinstance(kind, type) and issubclass(kind, gr.EventData))


def _weight(item: Any) -> int:
    """About how many bytes a message takes."""
    weight, left, seen = 500, [getattr(item, "output", None)], 0
    while left and seen < 5_000:
        one = left.pop()
        seen += 1
        if isinstance(one, (str, bytes)):
            weight += len(one)
        elif isinstance(one, dict):
            left += one.values()
        elif isinstance(one, (list, tuple)):
            left += one
        weight += 60
    return weight
