"""Who holds which stream: conversations by owner, a bounded number of them live, the others put aside to disk."""

from __future__ import annotations

import codecs
import hashlib
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdh.errors import HatcheryError, StateError
from bdh.models import Model
from bdh.stream import Snapshot, Stream

from .limits import Limits
from .registry import Owner, Registry, size_text

_SNAPSHOT_BYTES = 64_000_000
"""Most bytes of snapshots that one conversation keeps for undoing; what is older is heard again."""
_PARKING_S = 30.0
"""Seconds to wait for a conversation that is being put aside."""
_SWEEP_S = 600
"""Seconds between two looks for conversations that have been idle for too long."""


@dataclass
class Turn:
    """One message and its answer, as the bytes that the stream heard."""

    message: str
    heard: bytes
    """What was fed for the message."""
    written: bytes = b""
    """What the model wrote, the stop string included."""
    before: Snapshot | None = None
    """The stream before the message, as long as there is room for it."""

    @property
    def answer(self) -> str:
        """The answer as text; a character still open at its end is left out."""
        return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(self.written).strip()


def heard_in(turns: Iterable[Turn]) -> bytes:
    """What the stream heard in these turns, its own answers included."""
    return b"".join(turn.heard + turn.written for turn in turns)


@dataclass
class Conversation:
    """A stream and what it takes to come back to any of its turns."""

    owner: Owner
    model_id: str
    stream: Stream | None
    turns: list[Turn] = field(default_factory=list)
    base: Snapshot | None = None
    """Where the turns begin, if not at an empty memory: after a file was heard or a memory was loaded."""
    base_text: str = ""
    """What the base is, for a person."""
    base_due: bool = False
    """The stream as it stands is to become the base, before it is used again."""
    unheard: bytes = b""
    """The last bytes of the turns that the stream has yet to hear, before anything else."""
    snapshot_bytes: int = _SNAPSHOT_BYTES
    """Of snapshots that are kept for undoing."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    parking: bool = False
    """It is busy being put aside, which ends by itself."""
    last_used: float = field(default_factory=time.monotonic)

    def begin(self, message: str) -> Turn:
        """A new turn, with the way back to before it; the stream has caught up."""
        turn = Turn(message, b"", before=self.live.snapshot())
        self.turns.append(turn)
        kept = 0
        for older in reversed(self.turns):
            if older.before is not None:
                kept += older.before.size_bytes
                if kept > self.snapshot_bytes and older is not turn:
                    older.before = None
        return turn

    def catching_up(self) -> Iterator[int]:
        """Hear what is still unheard; a generator of how many bytes are left, which may be dropped at any of them."""
        waiting = self.unheard
        for done in self.live.feeding(waiting):
            self.unheard = waiting[done:]
            yield len(self.unheard)

    def catch_up(self) -> None:
        """Hear all that is still unheard."""
        for _ in self.catching_up():
            pass

    def rewind(self, count: int) -> None:
        """Come back to the nearest snapshot before the end of the first `count` turns; the rest is to be caught up."""
        stream, dropped = self.live, self.turns[count:]
        if not dropped:
            return
        start = count
        while start > 0 and self.turns[start].before is None:
            start -= 1
        before = self.turns[start].before
        if before is not None:
            stream.restore(before)
        elif self.base is not None:
            stream.restore(self.base)
        else:
            stream.clear()
        del self.turns[count:]
        self.unheard = heard_in(self.turns[start:])

    def rebase(self, text: str) -> None:
        """Make the state of now the one that the turns begin at."""
        self.turns.clear()
        self.unheard = b""
        self.base, self.base_text, self.base_due = self.live.snapshot(), text, False

    def mend(self) -> None:
        """After hearing broke off in the middle of a byte, come back to where the turns begin, to hear them again."""
        if self.base is not None:
            self.live.restore(self.base)
        else:
            self.live.clear()
        if self.base_due:
            self.base_text, self.base_due = self.base_text if self.base is not None else "", False
        self.unheard = heard_in(self.turns)

    def clear(self) -> None:
        """Forget everything."""
        self.live.clear()
        self.turns.clear()
        self.base, self.base_text, self.base_due, self.unheard = None, "", False, b""

    @property
    def live(self) -> Stream:
        """The stream, which is in memory while the conversation is in use."""
        assert self.stream is not None, "a conversation is brought back before it is used"
        return self.stream

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the stream and its snapshots take."""
        stream, snapshots = self.stream, [turn.before for turn in self.turns] + [self.base]
        return (stream.state_bytes if stream else 0) + sum(s.size_bytes for s in snapshots if s)

    @property
    def is_empty(self) -> bool:
        """Nothing was said or read, and nothing is in memory."""
        return self.stream is None and not self.turns and not self.base_text


class Sessions:
    """Conversations by owner and model. Only their owner's secret leads to them."""

    def __init__(self, registry: Registry, data: Path, limits: Limits) -> None:
        self._registry, self._limits = registry, limits
        # All conversations together stay near what their memories may take.
        self._snapshot_bytes = min(_SNAPSHOT_BYTES, limits.max_state_bytes // limits.max_live_streams)
        self._parked = data / "parked"
        # The conversations that memories of an earlier process belong to are gone.
        shutil.rmtree(self._parked, ignore_errors=True)
        self._parked.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._conversations: dict[tuple[Owner, str], Conversation] = {}
        self._sweep_due = time.monotonic() + _SWEEP_S
        registry.park_idle, registry.forget = self.park_idle, self.forget

    @contextmanager
    def use(self, owner: Owner, model_id: str, *, wait_s: float = 0.0) -> Iterator[Conversation]:
        """The owner's conversation with a model, begun or brought back if need be, for this block alone.

        Args:
            wait_s: how long to wait for a request of the same owner to end, such as one just stopped.

        Raises:
            HatcheryError: it is in use elsewhere, or there is no room for another.
        """
        self._registry.config(model_id, owner)  # an unknown model leaves no trace
        self._sweep_if_due()
        with self._lock:
            conversation = self._conversations.get((owner, model_id))
            if conversation is None:
                conversation = Conversation(owner, model_id, None, snapshot_bytes=self._snapshot_bytes)
                self._conversations[owner, model_id] = conversation
        if not self._take(conversation, wait_s):
            raise HatcheryError("this conversation is still busy in another request; stop that one, or wait for it")
        try:
            self._bring_back(conversation)
            if conversation.live.torn:
                conversation.mend()
            elif conversation.base_due:
                conversation.rebase(conversation.base_text)
            yield conversation
        finally:
            conversation.last_used = time.monotonic()
            with self._lock:
                if conversation.is_empty:  # it could not even begin
                    self._conversations.pop((owner, model_id), None)
            conversation.busy.release()

    def _take(self, conversation: Conversation, wait_s: float) -> bool:
        """Make a conversation this request's own, whether it can be; one that is being put aside is waited for."""
        if conversation.busy.acquire(timeout=wait_s):
            return True
        with self._lock:
            parking = conversation.parking
        return conversation.busy.acquire(timeout=_PARKING_S if parking else 0.0)

    def _take_idle(self, conversation: Conversation) -> bool:
        """Take a conversation that nobody uses, to put it aside."""
        with self._lock:
            conversation.parking = conversation.busy.acquire(blocking=False)
            return conversation.parking

    def _give_back(self, conversation: Conversation) -> None:
        with self._lock:
            conversation.parking = False
            conversation.busy.release()

    def peek(self, owner: Owner, model_id: str) -> Conversation | None:
        """The conversation as it is, for looking at only."""
        self._sweep_if_due()
        with self._lock:
            return self._conversations.get((owner, model_id))

    def live_count(self) -> int:
        """Streams in memory."""
        with self._lock:
            return sum(c.stream is not None for c in self._conversations.values())

    def park_idle(self, model_id: str) -> None:
        """Put the idle streams of a model aside, so that nothing but work under way holds it."""
        with self._lock:
            conversations = [c for c in self._conversations.values() if c.model_id == model_id]
        for conversation in conversations:
            if self._take_idle(conversation):
                try:
                    self._park(conversation)
                finally:
                    self._give_back(conversation)

    def forget(self, model_id: str) -> None:
        """Forget the conversations with a model that is gone for good."""
        with self._lock:
            for key in [key for key in self._conversations if key[1] == model_id]:
                self._forget_files(self._conversations.pop(key))

    def _sweep_if_due(self) -> None:
        with self._lock:
            if (now := time.monotonic()) < self._sweep_due:
                return
            self._sweep_due = now + _SWEEP_S
        self.sweep()

    def sweep(self) -> None:
        """Forget what has been idle for longer than its time."""
        limit = time.monotonic() - self._limits.parked_hours * 3600
        with self._lock:
            for key, conversation in list(self._conversations.items()):
                if conversation.last_used < limit and conversation.busy.acquire(blocking=False):
                    self._let_go(conversation)
                    self._forget_files(conversation)
                    del self._conversations[key]

    def _bring_back(self, conversation: Conversation) -> None:
        if conversation.stream is not None:
            return
        model = self._registry.acquire(conversation.model_id, conversation.owner)
        try:
            stream = self._with_room(conversation, model)
            self._recall(conversation, stream)
        except BaseException:
            conversation.stream = None
            self._registry.release(conversation.model_id)
            raise

    def _recall(self, conversation: Conversation, stream: Stream) -> None:
        """Fill a fresh stream with what was put aside; what cannot be read is to be heard again, or is lost."""
        file, base = self._files(conversation)
        whole = False
        try:
            if base.is_file():
                stream.load(base)
                conversation.base = stream.snapshot()
            if file.is_file():
                stream.load(file)
                whole = True
        except StateError:
            stream.clear()
            conversation.base = None
        # Any other error, such as a lack of memory, leaves the files for the next try.
        self._forget_files(conversation)
        if whole:
            return
        if conversation.base is not None:
            stream.restore(conversation.base)
        elif conversation.base_text:
            conversation.turns.clear()
            conversation.base_text = ""
        conversation.unheard = heard_in(conversation.turns)

    def _with_room(self, conversation: Conversation, model: Model[Any]) -> Stream:
        """A fresh stream for the conversation; idle ones are put aside, oldest first, until there is room for it.

        Other people's requests go on while the disk is written to.
        """
        needed = model.state_bytes()
        if needed > self._limits.max_state_bytes:
            raise HatcheryError(
                f"a memory of this model takes {size_text(needed)}; at most "
                f"{size_text(self._limits.max_state_bytes)} are allowed here"
            )
        passed_over: set[int] = set()
        deadline = time.monotonic() + _PARKING_S
        while True:
            with self._lock:
                live = [c for c in self._conversations.values() if c.stream is not None]
                held = sum(c.held_bytes for c in live)
                if len(live) < self._limits.max_live_streams and held + needed <= self._limits.max_state_bytes:
                    conversation.stream = Stream(model)
                    return conversation.stream
                idle = sorted((c for c in live if id(c) not in passed_over), key=lambda c: c.last_used)
                oldest = next((c for c in idle if self._take_idle(c)), None)
                others = any(c.parking for c in live if c is not oldest)
            if oldest is None and others and time.monotonic() < deadline:
                time.sleep(0.02)  # somebody else's request is making room
                continue
            if oldest is None:
                raise HatcheryError(
                    f"there is room for {self._limits.max_live_streams} conversations at once and all are busy; "
                    "try again in a while"
                )
            passed_over.add(id(oldest))
            try:
                self._park(oldest)
            finally:
                self._give_back(oldest)

    def _park(self, conversation: Conversation) -> None:
        """Write an idle stream to disk and free its memory; what it takes to undo is heard again later.

        Where the disk refuses, the stream stays where it is.
        """
        stream = conversation.stream
        if stream is None:
            return
        file, base = self._files(conversation)
        try:
            # A stream that has yet to catch up, or is torn, is of no use later: then all is heard again.
            if stream.position_bytes and not conversation.unheard and not stream.torn:
                stream.save(file)
            if conversation.base is not None:
                before = Stream(stream.model)
                before.restore(conversation.base)
                before.save(base)
        except StateError:
            self._forget_files(conversation)
            return
        conversation.base = None
        for turn in conversation.turns:
            turn.before = None
        self._let_go(conversation)
        self._trim_parked()

    def _let_go(self, conversation: Conversation) -> None:
        if conversation.stream is not None:
            conversation.stream = None
            self._registry.release(conversation.model_id)

    def _trim_parked(self) -> None:
        with self._lock:
            files = []
            for path in self._parked.glob("*.safetensors"):
                with suppress(FileNotFoundError):  # its owner came back
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            files.sort()
            total = sum(size for _, size, _ in files)
            for _, size, path in files:
                if total <= self._limits.max_parked_bytes:
                    return
                total -= size
                path.unlink(missing_ok=True)

    def _forget_files(self, conversation: Conversation) -> None:
        for path in self._files(conversation):
            path.unlink(missing_ok=True)

    def _files(self, conversation: Conversation) -> tuple[Path, Path]:
        """Where a conversation and its base are put aside: names that tell nothing of their owner."""
        key = hashlib.sha256(f"{conversation.owner}\0{conversation.model_id}".encode()).hexdigest()
        return self._parked / f"{key}.safetensors", self._parked / f"{key}.base.safetensors"
