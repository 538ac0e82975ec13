"""How requests in OpenAI's style are served: few at once, bounded bodies, ends that are noticed, errors in words."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from typing import Any

import anyio
import gradio as gr
from anyio import to_thread
from gradio.context import LocalContext
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bdh.device import is_out_of_memory
from bdh.errors import ConfigError, DataError, HatcheryError

from ..door import KNOCKED, Refused
from ..limits import Limits
from ..visitors import visitor

READ_S = 30.0
"""Seconds in which a body must have come where no door stands before this."""
STALL_S = 60.0
"""Seconds that a reader may hold up its own text, in all."""
PROMPT_S = 1.0
"""What is taken within this holds up nothing; on a busy machine it takes a while to pass on anything."""
QUIET_S = 10.0
"""After so many seconds without text a stream says that it is alive."""
RETRY_S = 5
_logger = logging.getLogger(__name__)
_END: Any = object()


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        wait_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.wait_s = wait_s or (RETRY_S if status in (429, 503) else 0)
        """After so many seconds the client may come again; 0 says nothing of that."""
        usual = "server_error" if status >= 500 else "invalid_request_error"
        self.type = type or usual

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """With the status, and when to come again."""
        headers = {"Retry-After": str(math.ceil(self.wait_s))} if self.wait_s else {}
        return Plain(self.body(), self.status, headers)


class Plain(JSONResponse):
    """JSON in ASCII: a text from outside may hold what cannot be encoded."""

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return json.dumps(content).encode("ascii")


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error; nothing of what only the log should know."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Refused):
        busy = {"type": "rate_limit_error", "code": "too_many_requests"} if error.status == 429 else {}
        return Refusal(error.status, error.why, wait_s=error.wait_s, **busy)
    if isinstance(error, (DataError, ConfigError)):
        return Refusal(400, str(error))
    if isinstance(error, HatcheryError):
        return Refusal(503, str(error), code="no_room")
    if isinstance(error, gr.Error):  # a GPU could not be lent
        return Refusal(503, str(error.message), code="no_gpu")
    if isinstance(error, Exception) and is_out_of_memory(error):
        return Refusal(503, "the memory of this machine does not suffice; try again in a while", code="no_room")
    _logger.error("a request failed", exc_info=error)
    return Refusal(500, "something went wrong here; the log of the server says what")


class Gate:
    """Lets a few requests write at a time; some others wait for their turn, in order.

    Of both together one visitor has a quarter of the turns; this machine itself has all.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._most = limits, limits.max_at_once
        self._turns = anyio.Semaphore(self._most, max_value=self._most)
        self.threads = anyio.CapacityLimiter(self._most)
        """Each that writes holds one of these while it does."""
        self._most_each = max(1, self._most // 4)
        self._here: Counter[str] = Counter()

    @property
    def writing(self) -> int:
        """Requests whose turn it is."""
        return self._most - self._turns.value

    @property
    def waiting(self) -> int:
        """Requests that wait for theirs."""
        return self._turns.statistics().tasks_waiting

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """A turn, when there is one.

        Args:
            who: the visitor that asks; "" is nobody in particular.

        Raises:
            Refusal: too many wait already, or are this visitor's.
        """
        if who and self._here[who] >= self._most_each:
            raise Refusal(
                429,
                f"{self._here[who]} requests of yours are written or wait, and one visitor may have "
                f"{self._most_each} at once; try again when one has ended",
                type="rate_limit_error",
                code="too_many_requests",
            )
        if not self._turns.value and self.waiting >= self._limits.max_waiting:
            raise Refusal(
                429,
                f"{self.writing} texts are being written and {self.waiting} requests wait; try again in a while",
                type="rate_limit_error",
                code="too_many_requests",
            )
        self._here[who] += 1
        try:
            async with self._turns:
                yield
        finally:
            self._here[who] -= 1
            if not self._here[who]:
                del self._here[who]


class Pulled:
    """What a generator gives, worked out in threads, for one request, in whose name a GPU may be lent."""

    def __init__(self, generator: Generator[Any, None, None], request: Request, threads: anyio.CapacityLimiter) -> None:
        self._generator, self._threads = generator, threads
        self._context: Context = copy_context()
        self._context.run(LocalContext.request.set, gr.Request(request))

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (item := await self._run(next, self._generator, _END)) is not _END:
            yield item

    async def close(self) -> None:
        """Give back all that the generator holds, also when the request was given up."""
        with anyio.CancelScope(shield=True):
            await self._run(self._generator.close)

    async def _run(self, function: Callable[..., Any], *values: Any) -> Any:
        return await to_thread.run_sync(lambda: self._context.run(function, *values), limiter=self._threads)


class Given(Response):
    """A response that is worked out while its client listens; it ends at once when the client has gone."""

    media_type = "application/json"

    def __init__(self, parts: Pulled, gate: Gate, whole: Callable[[list[Any]], Any] | None, stream: Any) -> None:
        """Either all parts make one body, or `stream` makes texts of each part and of the end."""
        super().__init__()
        self._parts, self._gate, self._whole, self._stream = parts, gate, whole, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop when nobody listens any more."""
        with suppress(TimeoutError):  # who does not read is left; the server ends the connection
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, receive, tasks.cancel_scope)
                sender = _Patient(send)
                try:
                    await self._answer(sender, visitor(scope))
                except TimeoutError:
                    _logger.info("a reader was too slow and is left")
                tasks.cancel_scope.cancel()

    async def _answer(self, sender: _Patient, who: str) -> None:
        try:
            async with self._gate.turn(who):
                try:
                    await (self._streamed(sender) if self._whole is None else self._gathered(sender, self._whole))
                finally:
                    await self._parts.close()
        except TimeoutError:
            raise
        except Exception as error:
            refusal = refusal_of(error)
            if not sender.begun:
                await sender.whole(refusal.response())
            else:
                await sender.piece(_event(refusal.body()), last=True)

    async def _gathered(self, sender: _Patient, whole: Callable[[list[Any]], Any]) -> None:
        found = [part async for batch in self._parts for part in batch]
        await sender.whole(Plain(whole(found)))

    async def _streamed(self, sender: _Patient) -> None:
        async for batch in self._parts:
            if not sender.begun:
                await sender.begin("text/event-stream")
                for told in self._stream.opening():
                    await sender.piece(_event(told))
            for part in batch:
                for told in self._stream.chunks(part):
                    await sender.piece(_event(told))
            if not batch and sender.quiet_s > QUIET_S:
                await sender.piece(b": alive\n\n")
        for told in self._stream.closing():
            await sender.piece(_event(told))
        await sender.piece(b"data: [DONE]\n\n", last=True)


class _Patient:
    """Sends to a client, as long as that does not hold things up for too long."""

    def __init__(self, send: Send) -> None:
        self._send, self._left_s, self._last = send, STALL_S, time.monotonic()
        self.begun = False

    @property
    def quiet_s(self) -> float:
        """Seconds since something was sent."""
        return time.monotonic() - self._last

    async def begin(self, media_type: str) -> None:
        """Send the head of a response."""
        headers = [
            (b"content-type", media_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        self.begun = True
        await self._out({"type": "http.response.start", "status": 200, "headers": headers})

    async def piece(self, body: bytes, *, last: bool = False) -> None:
        """Send some of its body."""
        await self._out({"type": "http.response.body", "body": body, "more_body": not last})

    async def whole(self, response: Response) -> None:
        """Send a response that is ready."""
        self.begun = True
        await self._out(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        await self.piece(bytes(response.body), last=True)

    async def _out(self, message: Message) -> None:
        begun = time.monotonic()
        with anyio.fail_after(self._left_s):
            await self._send(message)
        self._last = time.monotonic()
        took = self._last - begun
        self._left_s -= took if took > PROMPT_S else 0.0


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    """Stop all when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _event(told: Any) -> bytes:
    return b"data: " + json.dumps(told, separators=(",", ":")).encode("ascii") + b"\n\n"


class Bodies:
    """Refuses bodies that are too large, too slow or no JSON before they are read as such.

    Where a door stands before it, how long a body may take is the door's to say.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough, with its body read."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Request(scope), receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        except Refused as refused:
            response = refusal_of(refused).response()
            response.headers["Connection"] = "close"  # what is left of the body is not read
            await response(scope, receive, send)
            return
        if body is None:
            return
        told = False

        async def again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    async def _read(self, request: Request, receive: Receive) -> bytes | None:
        """The body; None if the client has gone."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # anything else can be sent by any page without being asked whether it may
            raise Refusal(415, f"the body's type is {kind!r:.60}; send JSON with Content-Type: application/json")
        size = request.headers.get("content-length", "0")
        too_large = Refusal(413, f"the body is larger than {self._most:,} bytes, which is all that is read here")
        if not size.isdecimal() or len(size) > 15 or int(size) > self._most:
            raise too_large
        held = bytearray()
        with anyio.move_on_after(math.inf if KNOCKED in request.scope else READ_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                held += message.get("body", b"")
                if len(held) > self._most:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(held)
        raise Refusal(408, f"the body did not come within {READ_S:.0f} seconds; send it again")
