"""Whose request it is: the secret a browser keeps, or an API client's session."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from bdh.device import is_out_of_memory
from bdh.errors import HatcheryError

from .registry import Owner

_SECRET = re.compile(r"[A-Za-z0-9_-]{32,64}")


def new_secret(kept: str | None) -> str:
    """The secret that the browser kept, or a new one for it to keep."""
    return kept if isinstance(kept, str) and _SECRET.fullmatch(kept) else secrets.token_urlsafe(32)


def identify(secret: str | None, request: gr.Request) -> Owner:
    """The owner of a request; without a valid secret it is the session, which ends with the tab."""
    if isinstance(secret, str) and _SECRET.fullmatch(secret):
        return f"browser:{secret}"
    if not request.session_hash:
        raise gr.Error("send a session_hash, as every Gradio client does", title="No session", print_exception=False)
    return f"session:{request.session_hash}"


@contextmanager
def reported() -> Iterator[None]:
    """Show a person the errors that are meant for persons; all others stay loud."""
    try:
        yield
    except HatcheryError as error:
        raise gr.Error(str(error), title="That did not work", duration=15, print_exception=False) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = "the memory of this machine does not suffice; choose a smaller model or text, or try again in a while"
        raise gr.Error(text, title="Out of memory", duration=15, print_exception=False) from error
