"""The folder that Gradio keeps uploads and downloads in: how full it is, and what has been there for too long."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from train.clock import Clock

from .data_folder import LEAST_PAUSE_S

_LOOK_S = 20.0
"""Seconds between two looks at the whole folder."""
_YOUNG_S = 600.0
"""What is younger is needed, unless there is twice as much as may be."""
_TORN_S = 600.0
"""After which an upload that broke off is gone."""
_LEAST_FREE_BYTES = 500_000_000
_HASHED, _COMING = re.compile(r"[0-9a-f]{64}"), re.compile(r"tmp[a-z0-9_]{8}")
"""Names that Gradio gives: a folder for each content, and a file as long as it is uploaded."""
_ENTRY_BYTES = 8_192
"""What a file takes beside its content, with the folder that it lies in."""


class _Found(NamedTuple):
    changed: float
    size: int
    path: Path


class Served:
    """What is kept for downloads, and what was uploaded and is not yet used."""

    def __init__(self, root: Path, most_bytes: int, keep_s: float, clock: Clock | None = None) -> None:
        """Bound what lies below `root`, and its age.

        Args:
            most_bytes: of all files together; beyond it the oldest go.
            keep_s: what has not been changed for so long goes.
        """
        self.root, self._most, self._keep_s, self._clock = root, most_bytes, keep_s, clock or Clock()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._shared = root.resolve() == Path(tempfile.gettempdir()).resolve()
        self._lock, self._looked = threading.Lock(), -float("inf")
        self._held = 0

    @property
    def due(self) -> bool:
        """Whether it is time for `tidy`."""
        return time.monotonic() - self._looked > min(_LOOK_S, max(LEAST_PAUSE_S, self._keep_s))

    def room(self) -> int:
        """Bytes that may be added, as far as is known."""
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.root if self.root.exists() else self.root.parent).free
            return max(0, min(self._most - self._held, free - _LEAST_FREE_BYTES))
        return max(0, self._most - self._held)

    def add(self, size: int) -> None:
        """Take note of bytes that came, until the next look."""
        self._held += size

    def tidy_if_due(self) -> None:
        """`tidy`, if it is time for it."""
        if self.due:
            self.tidy()

    def tidy(self) -> None:
        """Look through the folder: delete what is too old, what broke off, and the oldest if it is too full."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            left: list[_Found] = []
            for one in self._files():
                age = self._clock.age(one.changed)
                torn = one.path.parent == self.root and age > _TORN_S
                if torn or age > self._keep_s:
                    _remove(one.path, self.root)
                else:
                    left.append(one)
            held = sum(one.size for one in left)
            for one in sorted(left):
                if held <= self._most or (self._clock.age(one.changed) < _YOUNG_S and held <= 2 * self._most):
                    break
                _remove(one.path, self.root)
                held -= one.size
            self._held = held
        finally:
            self._lock.release()

    def _files(self) -> list[_Found]:
        """What Gradio put here; what else lies in the folder is not this page's."""
        found = []
        for entry in self.root.iterdir():
            folder = _HASHED.fullmatch(entry.name)
            if not folder and (self._shared or not _COMING.fullmatch(entry.name)):
                continue
            with contextlib.suppress(OSError):
                for path in entry.iterdir() if folder else [entry]:
                    stat = path.lstat()
                    found.append(_Found(max(stat.st_mtime, stat.st_ctime), stat.st_size + _ENTRY_BYTES, path))
        return found


def _remove(path: Path, root: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    with contextlib.suppress(OSError):
        if path.parent != root:
            path.parent.rmdir()  # it is left alone where it is not empty
