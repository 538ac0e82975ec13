"""Who holds which stream: conversations by owner, a bounded number of them live, the others put aside to disk."""

from __future__ import annotations

import codecs
import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bdh.errors import HatcheryError, StateError
from bdh.stream import Snapshot, Stream

from .limits import Limits
from .registry import Owner, Registry, size_text

_SNAPSHOT_BYTES = 64_000_000
"""Bytes of snapshots that one conversation keeps for undoing; what is older is heard again."""


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
    """What was said while the stream could not follow: hearing it comes first."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    last_used: float = field(default_factory=time.monotonic)

    def begin(self, message: str) -> Turn:
        """A new turn, with the way back to before it."""
        self.live.feed(self.unheard)
        self.unheard = b""
        turn = Turn(message, b"", before=self.live.snapshot())
        self.turns.append(turn)
        kept = 0
        for older in reversed(self.turns):
            if older.before is not None:
                kept += older.before.size_bytes
                if kept > _SNAPSHOT_BYTES and older is not turn:
                    older.before = None
        return turn

    def rewind(self, count: int) -> None:
        """Come back to the state after the first `count` turns: the nearest snapshot, then hearing the rest again."""
        stream, dropped = self.live, self.turns[count:]
        if not dropped:
            return
        self.unheard = b""
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
        for turn in self.turns[start:]:
            stream.feed(turn.heard + turn.written)

    def rebase(self, text: str) -> None:
        """Make the state of now the one that the turns begin at."""
        self.turns.clear()
        self.base, self.base_text, self.base_due = self.live.snapshot(), text, False

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
        snapshots = [turn.before for turn in self.turns] + [self.base]
        return (self.stream.state_bytes if self.stream else 0) + sum(s.size_bytes for s in snapshots if s)


class Sessions:
    """Conversations by owner and model. Only their owner's secret leads to them."""

    def __init__(self, registry: Registry, data: Path, limits: Limits) -> None:
        self._registry, self._limits = registry, limits
        self._parked = data / "parked"
        # The conversations that memories of an earlier process belong to are gone.
        shutil.rmtree(self._parked, ignore_errors=True)
        self._parked.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._conversations: dict[tuple[Owner, str], Conversation] = {}
        registry.park_idle = self.park_idle

    @contextmanager
    def use(self, owner: Owner, model_id: str, *, wait_s: float = 0.0) -> Iterator[Conversation]:
        """The owner's conversation with a model, begun or brought back if need be, for this block alone.

        Args:
            wait_s: how long to wait for a request of the same owner to end, such as one just stopped.

        Raises:
            HatcheryError: it is in use elsewhere, or there is no room for another.
        """
        self._registry.config(model_id, owner)  # an unknown model leaves no trace
        with self._lock:
            conversation = self._conversations.get((owner, model_id))
            if conversation is None:
                conversation = Conversation(owner, model_id, None)
                self._conversations[owner, model_id] = conversation
        if not conversation.busy.acquire(timeout=wait_s):
            raise HatcheryError("this conversation is still busy in another request; stop that one, or wait for it")
        try:
            self._bring_back(conversation)
            if conversation.base_due:
                conversation.rebase(conversation.base_text)
            yield conversation
        finally:
            conversation.last_used = time.monotonic()
            conversation.busy.release()

    def peek(self, owner: Owner, model_id: str) -> Conversation | None:
        """The conversation as it is, for looking at only."""
        with self._lock:
            return self._conversations.get((owner, model_id))

    def live_count(self) -> int:
        """Streams in memory."""
        with self._lock:
            return sum(c.stream is not None for c in self._conversations.values())

    def park_idle(self, model_id: str) -> None:
        """Put the idle streams of a model aside, so that nothing but work under way holds it."""
        with self._lock:
            for conversation in self._conversations.values():
                if conversation.model_id == model_id and conversation.stream is not None:
                    self._park_if_idle(conversation)

    def sweep(self) -> None:
        """Forget what has been idle for longer than its time."""
        limit = time.monotonic() - self._limits.parked_hours * 3600
        with self._lock:
            for key, conversation in list(self._conversations.items()):
                if conversation.last_used < limit and conversation.busy.acquire(blocking=False):
                    self._let_go(conversation)
                    for path in self._files(conversation):
                        path.unlink(missing_ok=True)
                    del self._conversations[key]

    def _bring_back(self, conversation: Conversation) -> None:
        if conversation.stream is not None:
            return
        model = self._registry.acquire(conversation.model_id, conversation.owner)
        try:
            with self._lock:
                self._make_room(model.state_bytes())
                stream = conversation.stream = Stream(model)
            self._recall(conversation, stream)
        except BaseException:
            conversation.stream = None
            self._registry.release(conversation.model_id)
            raise

    def _recall(self, conversation: Conversation, stream: Stream) -> None:
        """Fill a fresh stream with what was put aside; what cannot be read is heard again, or is lost."""
        file, base = self._files(conversation)
        try:
            if base.is_file():
                stream.load(base)
                conversation.base = stream.snapshot()
            if file.is_file():
                stream.load(file)
                return
        except StateError:
            stream.clear()
            conversation.base = None
        finally:
            file.unlink(missing_ok=True)
            base.unlink(missing_ok=True)
        if conversation.base is not None:
            stream.restore(conversation.base)
        elif conversation.base_text:
            conversation.turns.clear()
            conversation.base_text = ""
        for turn in conversation.turns:
            stream.feed(turn.heard + turn.written)
        conversation.unheard = b""

    def _make_room(self, needed_bytes: int) -> None:
        """Put idle streams aside, oldest first, until one more fits."""
        if needed_bytes > self._limits.max_state_bytes:
            raise HatcheryError(
                f"a memory of this model takes {size_text(needed_bytes)}; at most "
                f"{size_text(self._limits.max_state_bytes)} are allowed here"
            )
        with self._lock:
            live = [c for c in self._conversations.values() if c.stream is not None]
            idle = sorted(live, key=lambda c: c.last_used)
            count, held = len(live), sum(c.held_bytes for c in live)
            for conversation in idle:
                if count < self._limits.max_live_streams and held + needed_bytes <= self._limits.max_state_bytes:
                    return
                freed = conversation.held_bytes
                if self._park_if_idle(conversation):
                    count, held = count - 1, held - freed
            if count >= self._limits.max_live_streams or held + needed_bytes > self._limits.max_state_bytes:
                raise HatcheryError(
                    f"there is room for {self._limits.max_live_streams} conversations at once and all are busy; "
                    "try again in a while"
                )

    def _park_if_idle(self, conversation: Conversation) -> bool:
        """Put a conversation aside unless it is in use; whether it was."""
        if not conversation.busy.acquire(blocking=False):
            return False
        try:
            if conversation.stream is not None:
                self._park(conversation, conversation.stream)
            return True
        except StateError:
            return False  # the disk refuses: the stream stays where it is
        finally:
            conversation.busy.release()

    def _park(self, conversation: Conversation, stream: Stream) -> None:
        """Write the stream to disk and free its memory; what it takes to undo is heard again later."""
        file, base = self._files(conversation)
        if stream.position_bytes:
            stream.save(file)
        if conversation.base is not None:
            before = Stream(stream.model)
            before.restore(conversation.base)
            before.save(base)
            conversation.base = None
        for turn in conversation.turns:
            turn.before = None
        self._trim_parked()
        self._let_go(conversation)

    def _let_go(self, conversation: Conversation) -> None:
        if conversation.stream is not None:
            conversation.stream = None
            self._registry.release(conversation.model_id)

    def _trim_parked(self) -> None:
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._parked.iterdir())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._limits.max_parked_bytes:
                return
            total -= size
            path.unlink(missing_ok=True)

    def _files(self, conversation: Conversation) -> tuple[Path, Path]:
        """Where a conversation and its base are put aside: names that tell nothing of their owner."""
        key = hashlib.sha256(f"{conversation.owner}\0{conversation.model_id}".encode()).hexdigest()
        return self._parked / f"{key}.safetensors", self._parked / f"{key}.base.safetensors"
