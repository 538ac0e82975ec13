"""What a public page has fetched from the Hub, held to a size: strangers ask for any number of models."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from bdh.errors import CheckpointError
from train.clock import Clock


def make_room(cache: Path, most_bytes: int, in_use: Callable[[Path], bool]) -> list[Path]:
    """Delete the repositories fetched longest ago from a cache of the Hub's client, until it is small enough.

    Returns:
        the folders that are gone.

    Raises:
        CheckpointError: all that is left is in use.
    """
    repos = [path for path in cache.glob("models--*") if path.is_dir() and not path.is_symlink()]
    found = sorted((_fetched_at(path), _size(path), path) for path in repos)
    taken, gone = sum(size for _, size, _ in found), []
    for _, size, path in found:
        if taken <= most_bytes:
            break
        if not in_use(path):
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path)
            taken -= size
    if taken > most_bytes:
        raise CheckpointError("there is no room for more models from the Hub right now; try again in a while")
    return gone


def expired(cache: Path, keep_s: float, clock: Clock, in_use: Callable[[Path], bool]) -> list[Path]:
    """Delete the repositories that were fetched so long ago, but for those in use; returns their folders."""
    gone = []
    for repo in cache.glob("models--*"):
        if repo.is_symlink() or not repo.is_dir() or in_use(repo):
            continue
        if clock.age(_fetched_at(repo) or repo.lstat().st_mtime) > keep_s:
            shutil.rmtree(repo, ignore_errors=True)
            gone.append(repo)
    return gone


def _fetched_at(repo: Path) -> float:
    with contextlib.suppress(OSError):
        return max((path.lstat().st_mtime for path in (repo / "snapshots").glob("*")), default=0.0)
    return 0.0


def _size(repo: Path) -> int:
    size = 0
    for path in repo.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.lstat().st_size
    return size
