"""Waiting for a server that may never answer, without being caught in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import CheckpointError

SILENCE_S = 300.0
"""For how long the Hub may say nothing before an upload is given up."""
LOOK_S = 60.0
"""… and before a question is."""
_POLL_S = 0.05
_R = TypeVar("_R")


class Sent:
    """How much was sent, and whether more is to be."""

    def __init__(self) -> None:
        self.bytes, self.stopped = 0, False


def waiting(
    work: Callable[[], _R], silence_s: float, sent: Sent | None = None, tell: Callable[[], None] | None = None
) -> _R:
    """What `work` gives, done beside, so that whoever waits is told how far it is and may leave.

    Raises:
        CheckpointError: nothing was heard for so long.
    """
    result: list[_R] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    threading.Thread(target=run, daemon=True, name="hub").start()
    moved, seen = time.monotonic(), -1
    while not done.wait(_POLL_S):
        now = sent.bytes if sent is not None else 0
        if now != seen:
            moved, seen = time.monotonic(), now
        if tell is not None:
            tell()
        if time.monotonic() - moved > silence_s:
            raise CheckpointError(f"the Hub has not answered for {silence_s:,.0f} seconds; try again later")
    if failure:
        raise failure[0]
    return result[0]
