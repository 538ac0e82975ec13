"""What strangers may send, and what must hold whatever it is."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from bdh.errors import HatcheryError

FACTOR = int(os.environ.get("BDH_FUZZ", "1"))
"""How many times as many cases as usual; then each time others."""
MOST_CHARACTERS = 5_000
SECONDS = 20.0
"""No input takes longer to be refused; mostly it is milliseconds."""


def cases(count: int) -> settings:
    """So many cases of a test, the same each time unless more are asked for."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


NASTY = (
    "", " ", "\n", "\0", "a\0b", "\x1b[2J\x1b[31m", "a\nerror: forged", "\u202egnp.exe", "\u200b", "\ud800", "ﷺ" * 50,
    "../../../etc/passwd", "/etc/passwd", "..", ".", "~", "~root", "C:\\x", "//x", "file:///etc/passwd", "/dev/zero",
    "http://127.0.0.1:1/x", "user/repo", "user/repo@../x", "user/repo:..", "<img src=x onerror=alert(1)>",
    "![a](http://x)", "</script><script>", "{{7*7}}", "%s%n", "$(id)", "`id`", "'; drop", "-1", "1e400", "nan", "0x10",
    "1_000",
    "٣", "--out", "-", "=", "a=b", "[" * 3000, "{" * 3000, "a" * 5000, "a " * 3000, "---\n" * 500, "0" * 5000, "null",
    "fresh:", "fresh:x",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 255, 256, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e308)
ODD = (float("nan"), float("inf"), -float("inf"), True, False, None)

TEXTS = st.sampled_from(NASTY) | st.text(max_size=20)
SCALARS = TEXTS | st.sampled_from(NUMBERS) | st.sampled_from(ODD) | st.integers() | st.floats()
JUNK = st.sampled_from((*NUMBERS, *ODD)) | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""What JSON can hold, and some more."""


def told(error: BaseException) -> str:
    """What a person would be told, which is one line that can be printed."""
    text = error.message if isinstance(error, gr.Error) else str(error)
    assert isinstance(text, str) and text and len(text) <= MOST_CHARACTERS, f"{len(text)} characters: {text[:300]!r}"
    assert text.isprintable(), repr(text[:500])
    assert "<" not in text or not isinstance(error, gr.Error), "a page obeys the markup in its messages"
    return text


def only_refuses(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it was refused in words; it does neither break nor hang."""
    with in_time():
        try:
            return call()
        except (HatcheryError, gr.Error) as error:
            told(error)
            return None


@contextmanager
def in_time(seconds: float = SECONDS) -> Iterator[None]:
    """A block that ends in time, or is broken off."""
    begun = time.monotonic()
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        assert time.monotonic() - begun < seconds
        return

    def late(*_: Any) -> None:
        raise AssertionError(f"this took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)  # of the clock, on a machine that does much else
    worked = time.process_time()
    try:
        yield
        assert time.process_time() - worked < seconds
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a folder, to be compared before and after."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were right: some changed, cut out, doubled or put in, most of them near the beginning."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.booleans())
        at = draw(st.integers(0, min(len(data), 2_000) if near else len(data)))
        match draw(st.integers(0, 5)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                del data[at : at + draw(st.integers(1, 64))]
            case 2:
                data[at:at] = draw(st.binary(max_size=16))
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case 4:
                data[at : at + 8] = draw(st.sampled_from([2**63, 2**64 - 1, 2**32, 0, 10**8])).to_bytes(8, "little")
            case _:
                del data[at:]
    return bytes(data)
