"""Reports that were made: those that come with the repository, and those of this machine."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from .findings import RESULT, Report, read_report

SHIPPED = Path(__file__).parent / "shipped"
"""Reports on shipped checkpoints, a file each."""
RUNS = Path("runs/features")
"""Where the command puts what it finds, a folder for each checkpoint."""
_MOST = 50


def made(runs: Path | None = RUNS) -> dict[str, Path]:
    """The reports that there are, by a name that stays the same; those of this machine first, the newest before older.

    Args:
        runs: folder of this machine's experiments; None leaves them out.
    """
    own = [] if runs is None else [path for path in runs.glob(f"*/{RESULT}") if path.is_file()]
    own.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    found = {f"runs/{path.parent.name}": path for path in own[:_MOST]}
    return found | {f"shipped/{path.stem}": path for path in sorted(SHIPPED.glob("*.json"))}


def opened(path: Path) -> Report:
    """A report, read again only after it changed.

    Raises:
        DataError: it is none.
    """
    return _opened(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=8)
def _opened(path: Path, changed_ns: int) -> Report:
    return read_report(path)
