"""What a visitor takes along: files in folders that last until the page has copied them, a checkpoint as one file."""

from __future__ import annotations

import shutil
import tempfile
import threading
import zipfile
from pathlib import Path

from bdh import checkpoint

_FOLDERS_KEPT = 4


class Folders:
    """New temporary folders, each in the stead of one whose files the page has copied by then."""

    def __init__(self, prefix: str, *, kept: int = _FOLDERS_KEPT) -> None:
        """Begin all names with `prefix`, and keep so many: more than visitors have files made at the same time."""
        self._prefix, self._kept = prefix, kept
        self._serving, self._folders = threading.Lock(), list[Path]()

    def new(self) -> Path:
        """A new temporary folder; those before the last few are gone then."""
        folder = Path(tempfile.mkdtemp(prefix=self._prefix))
        with self._serving:
            self._folders.append(folder)
            old, self._folders = self._folders[: -self._kept], self._folders[-self._kept :]
        for served in old:
            shutil.rmtree(served, ignore_errors=True)
        return folder


class Packer:
    """Packs checkpoints into files that the page may serve."""

    def __init__(self) -> None:
        self._folders = Folders("specialist-")

    def zipped(self, checkpoint_folder: Path, title: str) -> Path:
        """A checkpoint as one file, in a temporary folder of its own."""
        path = self._folders.new() / f"{title}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            for name in checkpoint.FILES:
                if (checkpoint_folder / name).is_file():
                    file.write(checkpoint_folder / name, f"{title}/{name}")
        return path
