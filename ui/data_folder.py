"""The folder that keeps what visitors made: one app's alone, of a layout that this version knows, and kept tidy.

    layout        the number of the layout; when it was changed says when the app last looked after the folder
    browser-key   what browsers' stored secrets are sealed with
    uploads/      models, a folder each, with a note of whose they are (ui/uploads.py)
    parked/       conversations and memories that were put aside (ui/parked.py)
    merges/       merged models (ui/merges.py)
    runs/         what is trained (train/job.py)
    hub/          what a public page fetched from the Hub (ui/fetched.py)

Files on their way to or from visitors lie in a temporary folder of this app's own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bdh.errors import DataError
from train.clock import Clock

LAYOUT = 1
_LAYOUT, KEY, LOCK = "layout", "browser-key", ".lock"
_OF_THE_FIRST = (KEY, "uploads", "parked", "merges", "runs")
"""What a folder holds that was begun before layouts had numbers."""
_PATIENCE_S = 5.0
"""An app that was told to end may take so long."""
_TIDY_S = 15.0
LEAST_PAUSE_S = 1.0
"""Between two looks, however soon something is to be deleted: they are not all that the machine has to do."""
_held: dict[Path, FileLock] = {}
"""Locks of this process; they last as long as it does, however it ends."""


def take(folder: Path) -> None:
    """Make the folder this process's own, bring it to the layout of now, and clear away what a kill left in passing.

    Raises:
        DataError: another app has it, its layout is a newer one, or it is something else's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _lock(folder)
        _migrate(folder)
        _take_temporary(folder)
    except OSError as error:
        raise DataError(
            f"the data folder {folder} cannot be used ({error.strerror or error}); make room, or name another: "
            "BDH_DATA=FOLDER"
        ) from error


def _lock(folder: Path) -> None:
    place = folder.resolve()
    if place in _held:
        return
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout:
        raise DataError(
            f"another app is using the data folder {folder}: close that one, or give this one a folder of its own: "
            "BDH_DATA=FOLDER python app.py"
        ) from None
    _held[place] = lock


def _migrate(folder: Path) -> None:
    """Bring a folder to the layout of now.

    Raises:
        DataError: it is of a layout that this version does not know, or something else's.
    """
    path = folder / _LAYOUT
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text == str(LAYOUT):
            return
        if text.isdecimal() and int(text) > LAYOUT:
            raise DataError(
                f"the data folder {folder} has layout {text[:20]}, and this version knows layout {LAYOUT}: bring the "
                "hatchery up to date, or name another folder: BDH_DATA=FOLDER"
            )
        raise DataError(
            f"{path} says {text[:40]!r}, which is no layout; if the folder was made by the hatchery, delete that "
            "file, else name another folder: BDH_DATA=FOLDER"
        )
    names = sorted(name for name in os.listdir(folder) if not name.startswith(".") and name != "lost+found")
    if names and (KEY not in names or set(names) - {*_OF_THE_FIRST}):
        strange = next((name for name in names if name not in _OF_THE_FIRST), names[0])
        raise DataError(
            f"{folder} holds {strange[:80]!r} and is no data folder of the hatchery, which would delete in it: name "
            "a new or an empty folder: BDH_DATA=FOLDER"
        )
    # There whose they were was known to the process alone.
    if {"uploads", "parked"} & set(names):
        print(f"{folder} is of an older layout: its uploads and conversations, which nobody could claim, are deleted")
    for name in ("uploads", "parked"):
        shutil.rmtree(folder / name, ignore_errors=True)
    written = folder / f".{_LAYOUT}"
    written.write_text(f"{LAYOUT}\n", encoding="utf-8")
    os.replace(written, path)


def last_seen(folder: Path) -> float | None:
    """When the app last looked after a folder, in seconds since the epoch; None if it never did."""
    with suppress(OSError):
        return (folder / _LAYOUT).stat().st_mtime
    return None


def _take_temporary(folder: Path) -> None:
    """Let all temporary files of this process lie in a folder of its own, empty at first.

    What is in another app's, and what strangers put beside, is left alone.
    """
    above = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    above.mkdir(parents=True, exist_ok=True)
    name = f"bdh-hatchery-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]}"
    if above.parent.name == name:  # taken before, by this process or by one that began it
        above = above.parent.parent
    own = above / name
    if tempfile.tempdir == str(own / "made"):
        return
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode) or (os.name == "posix" and found.st_uid != os.geteuid()):
        own = Path(tempfile.mkdtemp(prefix=f"{own.name}-", dir=above))
    own.chmod(0o700)
    for left in own.iterdir():
        shutil.rmtree(left, ignore_errors=True)
    for name in ("gradio", "made"):
        (own / name).mkdir()
    # What Gradio keeps, and what is made to be handed to it, which may be served from nowhere else.
    os.environ["GRADIO_TEMP_DIR"] = str(own / "gradio")
    tempfile.tempdir = str(own / "made")


def expire_temporary(keep_s: float, clock: Clock) -> None:
    """Delete what this process made to be handed to Gradio long ago; what Gradio keeps is `Served`'s to bound."""
    gradio = os.environ.get("GRADIO_TEMP_DIR", "")
    own = Path(gradio).parent
    if not gradio or tempfile.tempdir != str(own / "made"):  # not of this process alone
        return
    for place, folders, files in os.walk(own / "made", topdown=False):
        for name in files:
            with suppress(OSError):
                if clock.file_age(Path(place, name)) > keep_s:
                    os.unlink(Path(place, name))
        for name in folders:
            with suppress(OSError):  # most are not empty
                if clock.file_age(Path(place, name)) > keep_s:
                    os.rmdir(Path(place, name))


def keep_tidy(folder: Path, tasks: Sequence[Callable[[], object]], within_s: float = float("inf")) -> None:
    """Do the tasks every few seconds from now on, and note that the folder is looked after.

    While the folder is not there, such as a disk that is mounted again, nothing is done.

    Args:
        within_s: do them at least so often, but not more than once a second.
    """

    def look_after() -> None:
        while True:
            for task in tasks if folder.is_dir() else ():
                try:
                    task()
                except Exception:  # such as a full disk: the next time may be better
                    traceback.print_exc()
            with suppress(OSError):
                os.utime(folder / _LAYOUT)
            time.sleep(min(_TIDY_S, max(LEAST_PAUSE_S, within_s)))

    threading.Thread(target=look_after, daemon=True, name="tidying").start()
