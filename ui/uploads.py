"""Uploaded models on disk: a folder each with a note of whose it is, so that its owner finds it after a restart."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from train.clock import Clock

_NOTE = "upload.json"


class Upload(NamedTuple):
    """An upload that was kept."""

    id: str
    """What the registry knows it by."""
    title: str
    folder: Path
    """Where its checkpoint lies."""
    root: Path
    """All that belongs to it."""


class Uploads:
    """The uploads below a folder."""

    def __init__(self, root: Path, keep_s: float, clock: Clock) -> None:
        """Find those of an earlier process; what has no note was half taken in."""
        self.root, self._keep_s, self._clock = root, keep_s, clock
        noted = {upload.root for _, upload in self._records()}
        for left in root.iterdir() if root.is_dir() else ():
            if left not in noted:
                shutil.rmtree(left, ignore_errors=True)
        self._unclaimed: dict[str, list[Upload]] = {}
        for owner, upload in self._records():
            self._unclaimed.setdefault(owner, []).append(upload)

    def room(self) -> Path:
        """A new folder for an upload, which is gone at the next start unless it is kept."""
        root = self.root / secrets.token_hex(8)
        root.mkdir(parents=True, mode=0o700)
        return root

    def keep(self, root: Path, id: str, title: str, folder: Path, owner: str) -> None:
        """Note whose an upload is."""
        told = {"owner": _hashed(owner), "id": id, "title": title, "folder": folder.relative_to(root).as_posix()}
        written = root / f"{_NOTE}.new"
        written.write_text(json.dumps(told), encoding="utf-8")
        os.replace(written, root / _NOTE)

    def claimed(self, owner: str) -> list[Upload]:
        """What an owner uploaded to an earlier process; each is told once."""
        return self._unclaimed.pop(_hashed(owner), []) if self._unclaimed else []

    def old(self) -> list[Path]:
        """The folders whose time is over."""
        found = []
        for _, upload in list(self._records()):
            with suppress(OSError):
                if self._clock.file_age(upload.root / _NOTE) > self._keep_s:
                    found.append(upload.root)
        return found

    def remove(self, folder: Path) -> None:
        """Delete the upload that a folder belongs to; its note goes first, so that half of one is taken for nothing."""
        root = self.root / folder.relative_to(self.root).parts[0]
        (root / _NOTE).unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)

    def bytes(self) -> int:
        """What they take on disk."""
        sizes = 0
        for path in self.root.rglob("*"):
            with suppress(OSError):  # it is being deleted
                sizes += path.stat().st_size if path.is_file() else 0
        return sizes

    def _records(self) -> Iterator[tuple[str, Upload]]:
        for root in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            with suppress(OSError, ValueError, KeyError, TypeError):  # none, or damaged
                told = json.loads((root / _NOTE).read_text(encoding="utf-8"))
                upload = Upload(str(told["id"]), str(told["title"]), root / told["folder"], root)
                yield str(told["owner"]), upload


def _hashed(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()
