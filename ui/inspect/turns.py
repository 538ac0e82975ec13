"""How many looks into models are worked on at the same time, of all visitors, and how the page asks for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

AT_ONCE = 2
"""Of searches, and of other looks."""
SEARCHING, LOOKING = threading.BoundedSemaphore(AT_ONCE), threading.BoundedSemaphore(AT_ONCE)
"""Searches (concepts, networks) and looks (memories, comparisons) that are worked on, also those that were stopped."""

QUICK: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
"""A listener that is over in a moment."""
SEARCH: dict[str, Any] = QUICK | {"concurrency_limit": AT_ONCE, "concurrency_id": "searching"}
LOOK: dict[str, Any] = QUICK | {"concurrency_limit": AT_ONCE, "concurrency_id": "looking"}
LOOK_AGAIN: dict[str, Any] = QUICK | {"concurrency_limit": 4 * AT_ONCE, "concurrency_id": "looking again"}
"""A listener that mostly shows what is kept, and waits for a turn of the other work itself where it is not."""
LATEST: dict[str, Any] = {"trigger_mode": "always_last"}
"""A listener that, pressed again while it is worked on, does what was chosen last when that has ended."""
CHAINED: dict[str, Any] = {"trigger_mode": "multiple"}
"""For a listener begun by another one: the page would drop it while it still waits for the end of what was stopped."""
_LAST_WORD_S = 0.6
"""After which nothing more is said by work that was stopped."""


def stops(button: gr.Button, idle: Callable[[], Any], outputs: Sequence[Any], work: list[Any]) -> None:
    """Let a button stop work: no button can be pressed until its last word has come, then nothing is done."""

    def rest() -> Any:
        return [gr.Button(interactive=False) if isinstance(one, gr.Button) else gr.skip() for one in outputs]

    def idle_after() -> Any:
        time.sleep(_LAST_WORD_S)
        return idle()

    # The page cancels when the first of them is over: it must not be the one that waits.
    button.click(rest, None, outputs, cancels=work, **QUICK).then(idle_after, None, outputs, **QUICK)
