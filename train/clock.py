"""How long ago something was, for what is deleted after a time: setting the machine's clock makes nothing old."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_SET_S = 60.0
"""By how much the machine's clock moves against the time that passes, if it was set."""
_GAP_S = 86_400.0
"""Time in which nobody looked counts as no more: the clock may have been set meanwhile."""
_MOST_SET = 100


def _passed() -> float:
    """Seconds that passed since the machine was started, asleep or awake."""
    with suppress(AttributeError, OSError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Clock:
    """Ages of what carries a time of the machine's clock, which may have been set since.

    Whenever the clock was set by d, what is older carries a time of the clock before. So an age may be what the clock
    says, or d less if the moment was before that; of what is possible the least is taken.
    """

    def __init__(
        self,
        last_seen: float | None = None,
        *,
        wall: Callable[[], float] = lambda: time.time(),
        passed: Callable[[], float] = _passed,
    ) -> None:
        """`last_seen` is when it was last looked at what this is for, in seconds since the epoch."""
        self._wall, self._passed = wall, passed
        self._lock = threading.Lock()
        self._offset = wall() - passed()
        self._set: list[tuple[float, float]] = []
        """What the clock said whenever it was set, and by how much it was."""
        if last_seen is not None and (gap := wall() - last_seen) > _GAP_S:
            self._set.append((last_seen, gap - _GAP_S))

    def age(self, moment: float) -> float:
        """Seconds since a moment, given in seconds since the epoch."""
        with self._lock:
            now = self._wall()
            offset = now - self._passed()
            moved, self._offset = offset - self._offset, offset
            if abs(moved) > _SET_S:
                self._set = [*self._set, (now - moved, moved)][-_MOST_SET:]
            ago = now - moment
            possible = [ago]
            for said, by in reversed(self._set):
                ago -= by
                possible += [ago] * (moment <= said)
            return min((one for one in possible if one >= 0), default=0.0)

    def file_age(self, *paths: Path) -> float:
        """Seconds since the latest of these files was changed; a time still to come is set right."""
        changed = {path: path.stat().st_mtime for path in paths}
        age = min(self.age(moment) for moment in changed.values())
        for path, moment in changed.items():
            if moment - self._wall() > _GAP_S and not self._set:
                os.utime(path, times=(self._wall(), self._wall()))
        return age
