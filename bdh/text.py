"""Bytes and text: UTF-8 that is never torn, and a guard that lets only valid UTF-8 be written."""

from __future__ import annotations

import codecs
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CONTINUATION = (0x80, 0xBF)
_FIRST: dict[int, tuple[int, int, int]] = {
    **dict.fromkeys(range(0xC2, 0xE0), (1, *_CONTINUATION)),
    **dict.fromkeys(range(0xE1, 0xF0), (2, *_CONTINUATION)),
    0xE0: (2, 0xA0, 0xBF),
    0xED: (2, 0x80, 0x9F),
    **dict.fromkeys(range(0xF1, 0xF4), (3, *_CONTINUATION)),
    0xF0: (3, 0x90, 0xBF),
    0xF4: (3, 0x80, 0x8F),
}
"""Bytes that must follow each leading byte, and the range of the next one (Unicode 16, table 3-7)."""


class Character(NamedTuple):
    """A character as it came out of a byte stream."""

    text: str
    """The character; U+FFFD for bytes that are no UTF-8."""
    raw: bytes
    """The bytes it was made of."""
    surprise_bits: float
    """What its bytes cost together."""


class Utf8Assembler:
    """Characters from single bytes, held back until they are whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._raw = bytearray()
        self._costs: list[float] = []

    def push(self, byte: int, surprise_bits: float = 0.0) -> list[Character]:
        """The characters that this byte completes: none, one, or one behind broken bytes."""
        self._raw.append(byte)
        self._costs.append(surprise_bits)
        return self._release(self._decoder.decode(bytes([byte])), pending=len(self._decoder.getstate()[0]))

    def flush(self) -> list[Character]:
        """What is left at the end of the stream: at most one broken character."""
        return self._release(self._decoder.decode(b"", final=True), pending=0)

    def _release(self, text: str, pending: int) -> list[Character]:
        done = len(self._raw) - pending
        # Two characters at once are a broken one and the single byte, whole or broken too, that cut it off.
        start = done - 1 if len(text) > 1 else 0
        parts = [(text[:-1], 0, start), (text[-1:], start, done)]
        characters = [Character(t, bytes(self._raw[a:b]), sum(self._costs[a:b])) for t, a, b in parts if t]
        if text:
            self._raw, self._costs = self._raw[done:], self._costs[done:]
        return characters


class Utf8Guard:
    """Which bytes keep a stream valid UTF-8."""

    def __init__(self, before: bytes = b"") -> None:
        """`before` is what the stream ends with; a character that it leaves open may be completed."""
        self._needed, self._low, self._high = 0, *_CONTINUATION
        for start in range(max(0, len(before) - 3), len(before)):
            if before[start] in _FIRST and self._would_leave_open(before[start:]):
                for byte in before[start:]:
                    self.push(byte)
                break

    @staticmethod
    def _would_leave_open(tail: bytes) -> bool:
        """Whether `tail` is the beginning of one character and not all of it."""
        needed, low, high = _FIRST[tail[0]]
        for byte in tail[1:]:
            if not low <= byte <= high:
                return False
            needed, (low, high) = needed - 1, _CONTINUATION
        return needed > 0

    @property
    def needed(self) -> int:
        """Bytes that the open character still lacks."""
        return self._needed

    def allowed(self, room: int | None = None) -> NDArray[np.bool_]:
        """(256,) True for each byte that may come next; with `room` bytes left, none that needs more."""
        mask = np.zeros(256, dtype=np.bool_)
        if self._needed:
            mask[self._low : self._high + 1] = True
            return mask
        mask[:0x80] = True
        for byte, (needed, _, _) in _FIRST.items():
            mask[byte] = room is None or needed < room
        return mask

    def push(self, byte: int) -> None:
        """Take note of the byte that was written."""
        if self._needed:
            self._needed, (self._low, self._high) = self._needed - 1, _CONTINUATION
        elif byte in _FIRST:
            self._needed, self._low, self._high = _FIRST[byte]
