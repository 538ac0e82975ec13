"""Conversations on disk: their memories while they are put aside, and what was said, to be heard again after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.clock import Clock

_NOTE, _MEMORY, _BASE = ".json", ".safetensors", ".base.safetensors"


class Parked:
    """Three files for a conversation, of names that tell nothing of its owner: a note, a memory, and its base."""

    def __init__(self, root: Path, keep_s: float, most_bytes: int, clock: Clock) -> None:
        """Find what an earlier process left; what has no note belongs to nobody any more."""
        self.root, self._keep_s, self._most_bytes, self._clock = root, keep_s, most_bytes, clock
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in root.iterdir():
            if path.suffix == ".new" or not path.with_name(_key_of(path) + _NOTE).is_file():
                path.unlink(missing_ok=True)

    def files(self, owner: str, model_id: str) -> tuple[Path, Path]:
        """Where the memory and its base are put."""
        key = _key(owner, model_id)
        return self.root / f"{key}{_MEMORY}", self.root / f"{key}{_BASE}"

    def note(self, owner: str, model_id: str, told: dict[str, Any]) -> None:
        """Keep what there is to know of a conversation.

        Raises:
            OSError: the disk refuses; what was noted before is untouched.
        """
        path = self.root / f"{_key(owner, model_id)}{_NOTE}"
        written = path.with_suffix(f"{_NOTE}.new")
        try:
            written.write_text(json.dumps({**told, "model": model_id}), encoding="utf-8")
            os.replace(written, path)
        except OSError:
            with suppress(OSError):
                written.unlink(missing_ok=True)
            raise

    def noted(self, owner: str, model_id: str) -> dict[str, Any] | None:
        """What was noted last; None if nothing was."""
        return _read(self.root / f"{_key(owner, model_id)}{_NOTE}")

    def forget(self, owner: str, model_id: str) -> None:
        """Delete all that is kept of a conversation."""
        self._delete(_key(owner, model_id))

    def forget_model(self, model_id: str) -> None:
        """Delete all conversations with a model."""
        for path in self._notes():
            if (told := _read(path)) is not None and told.get("model") == model_id:
                self._delete(_key_of(path))

    def expire(self, live: Collection[tuple[str, str]]) -> None:
        """Delete the conversations that nobody went on with for too long, but for those that are in memory."""
        kept = {_key(*one) for one in live}
        for path in self._notes():
            with suppress(OSError):
                if _key_of(path) not in kept and self._clock.file_age(path) > self._keep_s:
                    self._delete(_key_of(path))

    def trim(self) -> None:
        """Delete the oldest files beyond what all may take."""
        files = []
        for path in self.root.iterdir():
            with suppress(FileNotFoundError):  # its owner came back
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        files.sort()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._most_bytes:
                return
            total -= size
            path.unlink(missing_ok=True)

    def _notes(self) -> Iterator[Path]:
        return self.root.glob(f"*{_NOTE}")

    def _delete(self, key: str) -> None:
        for ending in (_NOTE, _MEMORY, _BASE):
            (self.root / f"{key}{ending}").unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else None
    return None


def _key(owner: str, model_id: str) -> str:
    return hashlib.sha256(f"{owner}\0{model_id}".encode()).hexdigest()


def _key_of(path: Path) -> str:
    return path.name.partition(".")[0]
