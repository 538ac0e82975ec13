"""Whose request it is: the secret a browser keeps, or an API client's session."""

from __future__ import annotations

import errno
import html
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from bdh.device import is_out_of_memory
from bdh.errors import HatcheryError, one_line

from .registry import Owner

_SECRET = re.compile(r"[A-Za-z0-9_-]{32,64}")
_GREETING_S = 5.0
_MOST_GREETED = 10_000
_MOST_CHARACTERS = 1_000
"""Of what a person is told."""
_greeting = threading.Condition()
_greeted: OrderedDict[str, str] = OrderedDict()
"""The secret of each session that opened the page, newest last."""


def new_secret(kept: str | None) -> str:
    """The secret that the browser kept, or a new one for it to keep."""
    return kept if isinstance(kept, str) and _SECRET.fullmatch(kept) else secrets.token_urlsafe(32)


def greet(request: gr.Request, kept: str | None) -> str:
    """The secret of a browser that opened the page, noted for what it asks before it knows its secret itself."""
    secret = new_secret(kept)
    with _greeting:
        _greeted[request.session_hash or ""] = secret
        while len(_greeted) > _MOST_GREETED:
            _greeted.popitem(last=False)
        _greeting.notify_all()
    return secret


def identify(secret: str | None, request: gr.Request) -> Owner:
    """The owner of a request; without a valid secret it is the session, which ends with the tab.

    An empty secret is that of a page which is still being greeted: that is waited for. None comes from no page.
    """
    if isinstance(secret, str) and _SECRET.fullmatch(secret):
        return f"browser:{secret}"
    if secret == "" and request.session_hash:
        with _greeting:
            _greeting.wait_for(lambda: request.session_hash in _greeted, timeout=_GREETING_S)
            if known := _greeted.get(request.session_hash):
                return f"browser:{known}"
    if not request.session_hash:
        raise gr.Error("send a session_hash, as every Gradio client does", title="No session", print_exception=False)
    return f"session:{request.session_hash}"


def inert(text: str) -> str:
    """What a message says as one line of text: the page would obey the markup in it, and fetch its pictures."""
    return html.escape(one_line(text, _MOST_CHARACTERS), quote=False)


@contextmanager
def reported() -> Iterator[None]:
    """Show a person the errors that are meant for persons; all others stay loud."""
    try:
        yield
    except HatcheryError as error:
        raise gr.Error(inert(str(error)), title="That did not work", duration=15, print_exception=False) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = "the memory of this machine does not suffice; choose a smaller model or text, or try again in a while"
        raise gr.Error(text, title="Out of memory", duration=15, print_exception=False) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = "the disk of this machine is full; delete what you do not need here, or try again in a while"
        raise gr.Error(text, title="Disk full", duration=15, print_exception=False) from error
