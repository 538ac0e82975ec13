"""What stands between the network and the page: bounds on requests, bodies, uploads and readers."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio.to_thread

from bdh.errors import one_line

from .limits import Limits
from .served import Served
from .visitors import Allowance, from_others, misnamed, visitor

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_API = "/gradio_api/"
_UPLOAD = f"{_API}upload"
CLOSED = (
    *(
        f"{_API}{name}"
        for name in (
            "component_server", "deep_link", "dev/", "process_recording", "proxy=", "run-history/", "stream/", "vibe-",
        )
    ),
    "/monitoring",
)  # fmt: skip
"""What Gradio answers and this page has no use for; some of it writes to the disk, starts programs or never ends."""
_FILES = (
    "/assets/", f"{_API}theme.css", "/favicon.ico", "/manifest.json", "/pwa_icon", "/robots.txt", "/static/",
    "/svelte/", "/theme.css",
)  # fmt: skip
"""Scripts, styles and fonts, the same for everybody: a page that is opened asks for a hundred of them at once."""
_MULTIPART_BYTES = 1_000_000
"""What stands around the files of an upload."""
_PATIENCE_S = 30.0
"""Seconds in which a body has to begin, and without a word between two pieces of it."""
_SLOWEST_RATE = 20_000
"""Bytes a second that a body comes with at least, after its first seconds."""
_STALLED_S = 60.0
"""Seconds after which a reader that takes nothing is gone."""
_BODIES_AT_ONCE = 8
"""As many requests of the largest size are held at the same time."""
KNOCKED = "bdh.door"
"""In a request's scope: it came through the door, which reads its body with patience and bounds of its own."""
_GONE: Message = {"type": "http.disconnect"}
_logger = logging.getLogger(__name__)


class Refused(Exception):
    """A request goes no further."""

    def __init__(self, status: int, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.why, self.wait_s = status, why, wait_s


class Door:
    """Lets requests through, as far as they stay within the limits; an ASGI middleware."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], limits: Limits, served: Served) -> None:
        self._app, self._limits, self._served = app, limits, served
        self._open: Counter[str] = Counter()
        self._held_bytes = 0
        self._requests = Allowance(limits.max_requests_each, 60.0)
        self._uploads = Allowance(limits.max_served_bytes / 4, 3600.0)
        self._served_as = os.environ.get("GRADIO_SERVER_NAME", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        who = visitor(scope)
        opened = f"files of {who}" if who and _is_file(scope) else who
        self._open[""] += 1
        self._open[opened] += bool(who)
        request = _Request(self, scope, receive, send, who)
        try:
            self._check(scope, who)
            if self._served.due:
                await anyio.to_thread.run_sync(self._served.tidy)
            scope[KNOCKED] = True
            await self._app(scope, request.receive, request.send)
            if request.refused is not None:
                await request.refuse(request.refused)
        except Refused as refused:
            await request.refuse(refused)
        except Exception as error:
            if request.refused is None:
                # A page of traceback for each would fill the log.
                _logger.error("%s %s: %s", scope["method"], one_line(scope["path"], 120), one_line(repr(error), 300))
                _logger.debug("where it broke", exc_info=error)
            await request.refuse(request.refused or _stumbled(error))
        finally:
            self._held_bytes -= request.held
            request.end()
            for name in {"", opened}:
                self._open[name] -= 1
                if not self._open[name]:
                    del self._open[name]

    def _check(self, scope: Scope, who: str) -> None:
        if not self._limits.public and from_others(scope):
            raise Refused(403, "others reach this page: start it with BDH_PUBLIC=true")
        if not self._limits.public and misnamed(scope, self._served_as):
            raise Refused(403, "this page is not known by that name here: open it as localhost or 127.0.0.1")
        if _path(scope).startswith(CLOSED):
            raise Refused(404, "there is nothing here")
        most, most_each = self._limits.max_connections, self._limits.max_connections_each
        if self._open[""] > most:
            raise Refused(503, "too many people are here right now; try again in a while", 10)
        files = bool(who) and _is_file(scope)
        # Files alone may be more, but nobody takes all places with them.
        if who and (
            self._open[f"files of {who}"] > max(most // 2, most_each) if files else self._open[who] > most_each
        ):
            raise Refused(429, "too many requests of yours are open at once; close some pages", 10)
        if not files and (wait_s := self._requests.take(who)):
            raise Refused(429, "too many requests; try again in a while", wait_s)

    def most_body_bytes(self, scope: Scope, who: str, announced: int) -> int:
        """Bytes that a request's body may have.

        Raises:
            Refused: an upload for which there is no room.
        """
        if not _is_upload(scope):
            return self._limits.max_request_bytes
        room = self._served.room()
        if room < max(announced, 1):
            raise Refused(507, "there is no room for uploads right now; try again in a while", 60)
        return min(room, self._limits.max_upload_bytes + _MULTIPART_BYTES if self._limits.public else room)

    def hold(self, request: _Request, size: int) -> None:
        """Take note of bytes of a body.

        Raises:
            Refused: there are too many of all requests, or of this visitor.
        """
        if request.upload:
            self._served.add(size)
            if wait_s := self._uploads.take(request.who, size):
                raise Refused(429, "you have uploaded much of late; try again in a while", wait_s)
            return
        request.held += size
        self._held_bytes += size
        if self._held_bytes > _BODIES_AT_ONCE * self._limits.max_request_bytes:
            raise Refused(503, "too many large requests at once; try again in a while", 10)


class _Request:
    """One request on its way through the door."""

    def __init__(self, door: Door, scope: Scope, receive: Receive, send: Send, who: str) -> None:
        self._door, self._scope, self._receive, self._send, self.who = door, scope, receive, send, who
        self.held = 0
        self.refused: Refused | None = None
        """Why its body is not read to the end."""
        self.upload = _is_upload(scope)
        self._came, self._began, self._most, self._whole = 0, time.monotonic(), -1, False
        self._started = self._gone = False
        self._coming: asyncio.Future[Message] | None = None
        """What is listened for; it outlasts whoever asked for it, since some ask only whether it is there already."""

    async def receive(self) -> Message:
        """The next piece of the body; then, that the reader has gone."""
        if self._gone:
            return _GONE
        if self._whole:
            return await self._next(None)
        try:
            return await self._piece()
        except Refused as refused:
            self.refused = refused
            raise

    async def _piece(self) -> Message:
        if self._most < 0:
            announced = _announced(self._scope)
            self._most = self._door.most_body_bytes(self._scope, self.who, announced)
            if announced > self._most:
                raise self._too_large()
        message = await self._next(_PATIENCE_S)
        if message["type"] != "http.request":
            return message
        size = len(message.get("body", b""))
        self._came += size
        self._whole = not message.get("more_body", False)
        if self._came > self._most:
            raise self._too_large()
        self._door.hold(self, size)
        if time.monotonic() - self._began > _PATIENCE_S + self._came / _SLOWEST_RATE:
            raise Refused(408, "the request came too slowly")
        if self._whole:
            self._listen()
        return message

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is too large; at most {self._most:,} bytes are taken")

    def _listen(self) -> asyncio.Future[Message]:
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._receive())
        return self._coming

    async def _next(self, patience_s: float | None) -> Message:
        coming = self._listen()
        if not coming.done():
            await asyncio.wait([coming], timeout=patience_s)
        if self._gone or coming.cancelled():
            return _GONE
        if not coming.done():
            raise Refused(408, "the request came too slowly")
        message = coming.result()
        if message["type"] != "http.disconnect":
            self._coming = None
        return message

    def end(self) -> None:
        """Listen no longer."""
        if self._coming is not None and not self._coming.cancel() and not self._coming.cancelled():
            self._coming.exception()  # nobody asked for it

    async def send(self, message: Message) -> None:
        """Pass a piece of the answer on, to a reader that takes it."""
        if self._gone:
            return
        if self.refused is not None and not self._started and message.get("status") != self.refused.status:
            return  # whatever was made of half a body; what tells of the refusal itself may do so in its own form
        self._started = True
        try:
            await asyncio.wait_for(self._send(message), _STALLED_S)
        except (TimeoutError, asyncio.TimeoutError):
            self._gone = True
            self.end()

    async def refuse(self, refused: Refused) -> None:
        """Answer that it goes no further, unless an answer has begun."""
        if self._started or self._gone:
            return
        self._started = True
        body = json.dumps({"detail": refused.why, "error": refused.why}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # what is left of its body is not read
        ]
        if refused.wait_s:
            headers.append((b"retry-after", str(math.ceil(refused.wait_s)).encode()))
        await self._send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _stumbled(error: Exception) -> Refused:
    """What is said of a request on which something broke."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused(507, "there is no room on this machine's disk right now; try again in a while", 60)
    theirs = isinstance(error, RecursionError) or (isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG)
    if isinstance(error, (OSError, RuntimeError, MemoryError)) and not theirs:
        return Refused(500, "something went wrong here; try again")
    return Refused(400, "this request cannot be answered")


def _path(scope: Scope) -> str:
    """The path below the place where the page is served."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if path.startswith(f"{root}/") else path


def _is_upload(scope: Scope) -> bool:
    return _path(scope).rstrip("/") == _UPLOAD


def _is_file(scope: Scope) -> bool:
    return scope["method"] == "GET" and _path(scope).startswith(_FILES)


def _announced(scope: Scope) -> int:
    """The length that a request says its body has; 0 if it says none."""
    told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(told) if told.isdigit() and len(told) < 20 else 0
