"""Runs as child processes: each the command line in a folder of its own, queued, found again after a restart.

What there is to know about a job lies in its folder, so nothing is lost with the process that began it:

    job.json   whose it is, what it runs, since when it waits, its process
    given/     texts and base of its own; where the command line is run, so that no path of this machine is in recipes
    run/       the run's folder (train/folder.py)
    log.txt    what the command line said
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from bdh.checkpoint import WEIGHTS, recovered
from bdh.errors import HatcheryError, TrainingError

from . import child
from .clock import Clock
from .folder import BEST, STATE, Folder

ROOT = Path(__file__).parents[1]
"""Where the package `train` is."""
_JOB, LOG = "job.json", "log.txt"
_RUN = os.path.join("..", "run")
_ID = re.compile(r"[0-9a-f]{16}")
_LOG_BYTES = 16_000
_GRACE_S = 120.0
"""What a run may take longer than it is allowed to train: for reading its texts, and for measuring at the end."""
_WATCH_S, _IDLE_S = 1.0, 30.0
_LEAST_FREE_BYTES = 500_000_000
_DRAFT_S = 3600.0
"""After which what was drafted, or waits for a call that never came, is taken for given up."""

WAITING, RUNNING, STOPPING = "waiting", "running", "stopping"
FINISHED, STOPPED, FAILED, INTERRUPTED = "finished", "stopped", "failed", "interrupted"
_DRAFT, _ASKED, _GONE = "draft", "asked", ".gone"
_ASIDE = ".old"


@dataclass(frozen=True)
class Job:
    """A job as it is now."""

    id: str
    title: str
    state: str
    """`waiting`, `running`, `stopping`, `finished`, `stopped`, `failed` or `interrupted`."""
    place: int
    """Of those that wait, 1 is the next; 0 for all others."""
    message: str
    """Why it failed or was stopped; mostly empty."""
    created: float
    """Seconds since the epoch."""
    arguments: tuple[str, ...]
    """After `python -m train`, without the folder."""
    form: dict[str, Any]
    """What the page wants to know again about what was asked for."""
    path: Path
    """Its folder."""

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (WAITING, RUNNING, STOPPING)

    @property
    def run(self) -> Folder:
        """The run's folder."""
        return Folder(self.path / "run")

    @property
    def given(self) -> Path:
        """What it was given: texts, and the base."""
        return self.path / "given"

    @property
    def checkpoint(self) -> Path | None:
        """The specialist that it made, or None so far."""
        run = self.path / "run"
        # The best so far of a run that was killed has no measured card, but is newer than what an earlier stop made.
        made = [path for path in (run / "checkpoint", run / BEST) if (path / WEIGHTS).is_file()]
        if self.active or not made:
            return None
        return max(made, key=lambda path: (path / WEIGHTS).stat().st_mtime)

    @property
    def resumable(self) -> bool:
        """Whether it can go on, or be tried again."""
        return self.state in (STOPPED, FAILED, INTERRUPTED)

    def log(self) -> str:
        """The end of what the command line said."""
        return _tail(self.path / LOG)


@dataclass
class _Record:
    """What `job.json` holds."""

    owner: str
    """SHA-256 of the secret that its owner is known by."""
    title: str = ""
    created: float = 0.0
    arguments: list[str] = field(default_factory=list)
    form: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 0.0
    """Wall clock that it may train, all starts together; 0 is as long as it takes."""
    spent_s: float = 0.0
    """What it trained before this start."""
    log_from: int = 0
    """Where in the log this start begins, in bytes."""
    waiting_since: float = 0.0
    """Seconds since the epoch; 0 if it does not wait."""
    pid: int = 0
    began: float = 0.0
    """When the process began, as the system says; with the number it names the process for good."""
    stopping: str = ""
    """Why it was asked to stop."""


class Jobs:
    """All jobs below a folder; safe to be used by threads, and by two apps on the same folder."""

    def __init__(
        self,
        root: Path,
        *,
        at_once: int = 1,
        most_waiting: int = 16,
        most_each: int = 1,
        most_kept: int = 100,
        keep_s: float = 0.0,
        most_bytes: float = float("inf"),
        environment: Mapping[str, str] | None = None,
        watch: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """Find what was left by an earlier app, and go on with what waits.

        Args:
            root: made if it is not there, readable by its owner alone.
            at_once: jobs that run at the same time; 0 leaves their begin to `take`.
            most_waiting: jobs that wait, of all owners.
            most_each: jobs of one owner that wait or run.
            most_kept: jobs of one owner that have ended; beyond it the oldest are deleted.
            keep_s: jobs that ended so long ago are deleted; 0 keeps them.
            most_bytes: of all jobs on the disk; beyond it, no further one is taken.
            environment: of the processes; None is this one's.
            watch: begin what is due; False only looks.
            clock: says how old jobs are; None is one of their own.
        """
        self.root, self._at_once, self._most_waiting, self._most_each = root, at_once, most_waiting, most_each
        self._most_kept, self._keep_s, self._clock = most_kept, keep_s, clock or Clock()
        self._most_bytes = most_bytes
        self._environment = dict(os.environ if environment is None else environment)
        paths = [str(ROOT), *filter(None, [self._environment.get("PYTHONPATH")])]
        self._environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._guard = FileLock(root / ".lock")
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._known: dict[str, tuple[tuple[int, int], _Record]] = {}
        self._cleared: set[str] = set()
        """Jobs that ended, and of which nothing half written is left."""
        self._trying = threading.Semaphore()
        self.before_removal: Callable[[Job], None] = lambda job: None
        """Called before a job is deleted; an error keeps it."""
        self._wake, self._closed = threading.Event(), False
        if watch:
            threading.Thread(target=self._watch, daemon=True, name="jobs").start()

    @contextmanager
    def draft(self, owner: str) -> Iterator[tuple[str, Path]]:
        """A new job's id and the folder for what belongs to it; gone again if the block fails.

        Raises:
            TrainingError: the disk is full.
        """
        self._check_disk()
        id = secrets.token_hex(8)
        path = self.root / id
        (path / "given").mkdir(parents=True, mode=0o700)
        path.chmod(0o700)
        self._write(id, _Record(_hashed(owner), created=time.time()))
        try:
            yield id, path / "given"
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def submit(
        self, id: str, title: str, arguments: Sequence[str], form: Mapping[str, Any], *, limit_s: float = 0
    ) -> None:
        """Let a drafted job wait for its turn.

        Args:
            arguments: recipe and overrides, after `python -m train`.
            form: what the page wants to know again; JSON values.
            limit_s: seconds that it may train.

        Raises:
            TrainingError: too many wait, the owner has too many, or the disk is full.
        """
        with self._guard:
            record = dataclasses.replace(self._read(id), title=title, arguments=list(arguments))
            self._enqueue(id, dataclasses.replace(record, form=dict(form), limit_s=limit_s))
        self._wake.set()

    def drop(self, id: str) -> None:
        """Remove a draft."""
        with self._guard:
            self._remove(id)

    def resume(self, id: str, owner: str) -> None:
        """Let a job that was stopped, failed or was interrupted go on from what it saved.

        Raises:
            TrainingError: it is active or done, or as `submit`.
        """
        with self._guard:
            record = self._own(id, owner)
            if not self._view(id, record).resumable:
                raise TrainingError("this run cannot go on: it is under way or done; run it again with changes instead")
            self._enqueue(id, record)
        self._wake.set()

    def stop(self, id: str, owner: str, why: str = "") -> None:
        """Take a job out of the queue, or let it end after the step under way; a second call ends it at once."""
        with self._guard:
            record = self._own(id, owner)
            if record.waiting_since:
                self._leave_queue(id, record, STOPPED, "" if self._folder(id).exists() else "before its turn came")
                return
            self._end(id, record, why)

    def delete(self, id: str, owner: str) -> None:
        """Remove a job that is not active, and all it made.

        Raises:
            TrainingError: it is active.
        """
        with self._guard:
            job = self.get(id, owner)
            if job.active:
                raise TrainingError("this run is under way; stop it first")
            self.before_removal(job)
            self._remove(id)

    def get(self, id: str, owner: str) -> Job:
        """An owner's job.

        Raises:
            TrainingError: there is none, or it is another's.
        """
        return self._view(id, self._own(id, owner))

    def of(self, owner: str) -> list[Job]:
        """An owner's jobs, the newest first."""
        hashed = _hashed(owner)
        found = [self._view(id, record) for id, record in self._records() if record.owner == hashed]
        return sorted((job for job in found if job.state != _DRAFT), key=lambda job: -job.created)

    def busy(self) -> tuple[int, int]:
        """How many jobs run and how many wait, of all owners."""
        states = [self._state(id, record)[0] for id, record in self._records()]
        return sum(state in (RUNNING, STOPPING) for state in states), states.count(WAITING)

    def try_out(self, id: str, arguments: Sequence[str], timeout_s: float = 120.0) -> dict[str, Any]:
        """What a drafted job would take, by a dry run that is waited for; one at a time.

        Raises:
            TrainingError: what the dry run says is wrong, it took too long, or another one is under way.
        """
        if not self._trying.acquire(blocking=False):
            raise TrainingError("another estimate is being made; try again in a few seconds, or start without one")
        log = self.root / id / LOG
        try:
            words = [*arguments, "--out", _RUN, "--dry-run", "--json"]
            process = child.begin(words, self.root / id / "given", self._environment, log)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TrainingError(
                    f"trying it out took more than {timeout_s:.0f} s; take a smaller text or model"
                ) from None
            finally:
                process.kill()
                process.wait()
        finally:
            self._trying.release()
        said = _tail(log)
        if process.returncode:
            raise TrainingError(_said(said) or "it could not be tried out: its process ended without a word")
        return dict(json.loads(said.splitlines()[-1]))

    def advance(self) -> bool:
        """Begin what is due, stop what takes too long, delete what is old; whether there is more to watch."""
        with self._guard:
            running, waiting = 0, []
            ended: dict[str, list[tuple[float, str]]] = {}
            for id, record in list(self._records()):
                state = self._state(id, record)[0]
                if state == WAITING and not self._at_once and self._clock.age(record.waiting_since) > _DRAFT_S:
                    self._leave_queue(id, record, STOPPED, "the call that should have done it never came")
                elif state == WAITING:
                    waiting.append((record.waiting_since, id, record))
                elif state in (RUNNING, STOPPING):
                    running += 1
                    self._hold_to_limit(id, record)
                elif self._is_old(id, record, state):
                    self._expire(id, record)
                elif state != _DRAFT:
                    self._clear_halves(id)
                    ended.setdefault(record.owner, []).append((record.created, id))
                    if state == FINISHED:
                        self._tidy(id)
            for jobs in ended.values():
                for _, id in sorted(jobs)[: max(0, len(jobs) - self._most_kept)]:
                    self._expire(id, self._read(id))
            self._sweep()
            waiting.sort(key=lambda job: job[:2])
            for _, id, record in waiting[: max(0, self._at_once - running)]:
                self._begin(id, record)
            return bool(running or waiting)

    def close(self) -> None:
        """Stop watching; what runs goes on."""
        self._closed = True
        self._wake.set()

    def _watch(self) -> None:
        while not self._closed:
            try:
                pause_s = _WATCH_S if self.advance() else _IDLE_S
            except Exception:  # such as a full disk: the queue has to outlive it
                traceback.print_exc()
                pause_s = _IDLE_S
            self._wake.wait(pause_s)
            self._wake.clear()

    def _enqueue(self, id: str, record: _Record) -> None:
        jobs = [(other, self._state(other, one)[0], one.owner) for other, one in self._records() if other != id]
        own = sum(state in (WAITING, RUNNING, STOPPING) and owner == record.owner for _, state, owner in jobs)
        if own >= self._most_each:
            runs = "a run" if own == 1 else f"{own} runs"
            raise TrainingError(f"you have {runs} waiting or under way, which is all there can be; stop or await it")
        if sum(state == WAITING for _, state, _ in jobs) >= self._most_waiting:
            raise TrainingError(f"{self._most_waiting} runs are waiting, which is all there can be; try again later")
        self._check_disk()
        folder = self._folder(id)
        spent_s = max((float(one["elapsed_s"]) for one in folder.measures()), default=0.0)
        if record.limit_s and spent_s >= record.limit_s:
            raise TrainingError(
                f"this run has trained for {spent_s / 60:.0f} minutes, which is all that is allowed here; what it "
                "made can be chosen as the base of another"
            )
        folder.go_on()
        folder.ask_to_stop(False)
        record = dataclasses.replace(
            record, pid=0, began=0.0, stopping="", spent_s=spent_s, log_from=self._log_bytes(id)
        )
        self._write(id, dataclasses.replace(record, waiting_since=time.time()))

    def _check_disk(self) -> None:
        if (free := shutil.disk_usage(self.root).free) < _LEAST_FREE_BYTES:
            raise TrainingError(
                f"the disk has {free / 1e6:.0f} MB free, and a run must find {_LEAST_FREE_BYTES / 1e6:.0f}; "
                "delete runs that are done, or make room"
            )
        if self._most_bytes < float("inf") and (taken := _size_of(self.root)) > self._most_bytes:
            raise TrainingError(
                f"the runs of all visitors take {taken / 1e6:,.0f} MB, and {self._most_bytes / 1e6:,.0f} is all they "
                "may; delete runs of yours that are done, or try again later"
            )

    def _log_bytes(self, id: str) -> int:
        with contextlib.suppress(OSError):
            return (self.root / id / LOG).stat().st_size
        return 0

    def _begin(self, id: str, record: _Record) -> None:
        path = self.root / id
        self._cleared.discard(id)
        try:
            process = child.begin(self.words(id), path / "given", self._environment, path / LOG)
        except Exception as error:  # whatever it is, the jobs behind it have to go on
            self._leave_queue(id, record, FAILED, f"the process could not be started: {error}"[:300])
            return
        self._children[id] = process
        began = child.begun_at(process.pid)
        try:
            self._write(id, dataclasses.replace(record, waiting_since=0.0, pid=process.pid, began=began))
        except OSError:  # a full disk: one that nobody knows of must not run
            process.kill()
            raise

    def _leave_queue(self, id: str, record: _Record, how: str, why: str) -> None:
        """Let a job that waits end; how is noted first, for without it the job would be a draft."""
        self._folder(id).end(how, why)
        self._write(id, dataclasses.replace(record, waiting_since=0.0))

    def _hold_to_limit(self, id: str, record: _Record) -> None:
        if not record.limit_s:
            return
        over_s = self._clock.age(record.began) + record.spent_s - record.limit_s
        if over_s > _GRACE_S and not record.stopping:
            self._end(id, record, f"it may train for {record.limit_s / 60:.0f} minutes here")
        elif over_s > 3 * _GRACE_S:
            self._end(id, record, record.stopping)

    def _tidy(self, id: str) -> None:
        """Drop what only a run that goes on needs, several times the size of what it made."""
        run = self.root / id / "run"
        if (run / STATE).is_file() and (run / "checkpoint").is_dir():
            (run / STATE).unlink()
            for name in ("texts", BEST):
                shutil.rmtree(run / name, ignore_errors=True)

    def _clear_halves(self, id: str) -> None:
        """Remove what the kill of a run, or of the app beside it, left half written."""
        if id in self._cleared:
            return
        path = self.root / id
        left = [*path.glob(f"{_JOB}.*"), *path.glob("run/*.new"), *path.glob("run/.*.checkpoint.*")]
        for half in left:
            if half.suffix == _ASIDE:  # what a checkpoint was before, while the next took its place
                recovered(half.with_name(half.name.removeprefix(".").removesuffix(f".checkpoint{_ASIDE}")))
            if half.is_dir():
                shutil.rmtree(half, ignore_errors=True)
            else:
                half.unlink(missing_ok=True)
        self._cleared.add(id)

    def _sweep(self) -> None:
        """Remove what a kill left of jobs that were being made or deleted."""
        for name in os.listdir(self.root):
            path = self.root / name
            with contextlib.suppress(OSError):
                half = _ID.fullmatch(name) and not (path / _JOB).is_file() and self._clock.file_age(path) > _DRAFT_S
                if half or name.endswith(_GONE):
                    shutil.rmtree(path, ignore_errors=True)

    def words(self, id: str) -> list[str]:
        """After `python -m train`, in the folder `given`: begin the run, or go on with it."""
        how = "--resume" if (self.root / id / "run" / STATE).is_file() else "--overwrite"
        return [*self._read(id).arguments, "--out", _RUN, "--export-stopped", how]

    def take(self, id: str) -> None:
        """Do a job that waits in this process, which then runs `words`.

        Raises:
            TrainingError: it does not wait.
        """
        with self._guard:
            record = self._read(id)
            if not record.waiting_since:
                raise TrainingError("this run does not wait any more")
            pid = os.getpid()
            self._write(id, dataclasses.replace(record, waiting_since=0.0, pid=pid, began=child.begun_at(pid)))

    def give_back(self, id: str, why: str = "") -> None:
        """Say that a job which was taken, or was to be, has ended, where it did not say so itself."""
        with self._guard:
            record = self._read(id)
            if record.waiting_since:
                self._leave_queue(id, record, FAILED, why)
            elif not self._folder(id).ended()[0]:
                said = _said(_tail(self.root / id / LOG, record.log_from))
                self._folder(id).end(FAILED, why or said or "it ended without a word")

    def _end(self, id: str, record: _Record, why: str) -> None:
        """Ask a job to stop; where it was asked before, end it at once."""
        process = self._process(id, record)
        if process is None:
            return
        if record.stopping:
            child.kill(process)
        else:
            self._write(id, dataclasses.replace(record, stopping=why or _ASKED))
            self._folder(id).ask_to_stop()

    def _process(self, id: str, record: _Record) -> Any:
        return child.find(record.pid, record.began, self.root / id / "given")

    def _state(self, id: str, record: _Record) -> tuple[str, str]:
        """The state and why."""
        if record.waiting_since:
            return WAITING, ""
        begun = self._children.get(id)
        if begun is not None and begun.poll() is not None:
            self._children.pop(id, None)
        how, message = self._folder(id).ended()
        why = record.stopping.removeprefix(_ASKED)
        if how:
            return how, message or why
        if self._process(id, record) is not None:
            return (STOPPING if record.stopping else RUNNING), ""
        if not record.arguments:
            return _DRAFT, ""
        if record.stopping:
            return STOPPED, why or "at once; what was saved last is kept"
        if said := _said(_tail(self.root / id / LOG, record.log_from)):
            return FAILED, said
        return INTERRUPTED, "its process ended without a word: the machine was restarted, or memory or disk ran out"

    def _view(self, id: str, record: _Record) -> Job:
        state, message = self._state(id, record)
        place = 0
        if state == WAITING:
            place = 1 + sum(0 < one.waiting_since < record.waiting_since for _, one in self._records())
        return Job(
            id,
            record.title,
            state,
            place,
            message,
            record.created,
            tuple(record.arguments),
            record.form,
            self.root / id,
        )

    def _is_old(self, id: str, record: _Record, state: str) -> bool:
        if state == _DRAFT:
            return self._clock.age(record.created) > _DRAFT_S
        if not self._keep_s:
            return False
        with contextlib.suppress(OSError):
            return self._clock.file_age(*(self.root / id / name for name in (_JOB, "run"))) > self._keep_s
        return False

    def _own(self, id: str, owner: str) -> _Record:
        if isinstance(id, str) and _ID.fullmatch(id) and (self.root / id / _JOB).is_file():
            record = self._read(id)
            if record.owner == _hashed(owner):
                return record
        raise TrainingError("there is no such run of yours; it may have been deleted")

    def _records(self) -> Iterator[tuple[str, _Record]]:
        for name in sorted(os.listdir(self.root)):
            if _ID.fullmatch(name):
                with contextlib.suppress(OSError, ValueError, TypeError):  # being made, being deleted, damaged
                    yield name, self._read(name)

    def _read(self, id: str) -> _Record:
        path = self.root / id / _JOB
        found = path.stat()
        version = (found.st_ino, found.st_mtime_ns)
        known = self._known.get(id)
        if known is None or known[0] != version:
            known = self._known[id] = (version, _Record(**json.loads(path.read_text(encoding="utf-8"))))
        return known[1]

    def _write(self, id: str, record: _Record) -> None:
        written = self.root / id / f"{_JOB}.{secrets.token_hex(4)}"
        try:
            written.write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")
            os.replace(written, self.root / id / _JOB)
        except OSError:
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)
            raise
        self._known.pop(id, None)  # its time of change may be the one before

    def _expire(self, id: str, record: _Record) -> None:
        """Delete a job that nobody asked to delete, unless what it made is in use."""
        with contextlib.suppress(HatcheryError):
            self.before_removal(self._view(id, record))
            self._remove(id)

    def _remove(self, id: str) -> None:
        """Delete a job; first under another name, so that half of one is never taken for one."""
        self._children.pop(id, None)
        self._known.pop(id, None)
        gone = self.root / f"{id}{_GONE}"
        with contextlib.suppress(OSError):
            os.rename(self.root / id, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _folder(self, id: str) -> Folder:
        return Folder(self.root / id / "run")


def _size_of(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile takes none."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def _hashed(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()


def _tail(path: Path, start: int = 0) -> str:
    """The end of a text file from byte `start` on, from a whole line on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(start, size - _LOG_BYTES)
            file.seek(begin)
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text if begin == start else text.partition("\n")[2]


def _said(text: str) -> str:
    """What went wrong, if the last line that was said is an error."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    if last.startswith("error: "):
        return last.removeprefix("error: ")[:1000]
    return last[:300] if "Traceback (most recent call last)" in text else ""
