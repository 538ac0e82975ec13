"""A training process of its own: begun, known again later, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_NICENESS = 5
_CLOCK_S = 2.0
"""By how much the time a process began at may seem to move when the machine's clock is set."""


def begin(words: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m train` in a folder, a little below this process in the order of who is served first.

    Args:
        words: after `python -m train`.
        log: what it says is added to it.
    """
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "train", *words],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield_to_others(child.pid)
    return child


def yield_to_others(pid: int) -> None:
    """Let the process come after others, and go first where memory runs out."""
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process(pid).nice(_NICENESS if os.name == "posix" else 16384)  # Windows: below normal
    with contextlib.suppress(OSError):  # Linux alone
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def begun_at(pid: int) -> float:
    """When a process began, in seconds since the epoch; 0 if it is gone."""
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def find(pid: int, began: float, folder: Path) -> psutil.Process | None:
    """The process if it lives; a number that was given to another process since is not it.

    Args:
        began: what `begun_at` said; should the clock have been set since, `folder`, where it works, decides.
    """
    if not pid:
        return None
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if abs(process.create_time() - began) < _CLOCK_S or Path(process.cwd()) == folder.resolve():
            return process
    except (psutil.Error, OSError):
        pass
    return None


def kill(process: psutil.Process) -> None:
    """End a process and what it began, at once; never this one."""
    if process.pid == os.getpid():
        return
    with contextlib.suppress(psutil.Error, OSError):
        if os.name == "posix" and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
