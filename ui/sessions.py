"""Who holds which stream: conversations by owner, a bounded number of them live, the others put aside to disk."""

from __future__ import annotations

import codecs
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdh.device import is_out_of_memory
from bdh.errors import HatcheryError, StateError
from bdh.models import Model
from bdh.stream import Snapshot, Stream
from train.clock import Clock

from .limits import Limits
from .parked import Parked
from .registry import Owner, Registry, size_text

_logger = logging.getLogger(__name__)
_SNAPSHOT_BYTES = 64_000_000
"""Most bytes of snapshots that one conversation keeps for undoing; what is older is heard again."""
_PARKING_S = 30.0
"""Seconds to wait for a conversation that is being put aside."""
_LASTING = "browser:"
"""What the names of owners begin with who come back."""
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
    def size_bytes(self) -> int:
        """About what its texts take."""
        return len(self.message) + len(self.heard) + len(self.written)

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
    said_bytes: int = 4_000_000
    """Of turns that are kept, with what was said in them."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    parking: bool = False
    """It is busy being put aside, which ends by itself."""
    last_used: float = field(default_factory=time.monotonic)
    parked_bytes: int | None = None
    """How much the memory that was put aside had heard."""
    told: dict[str, Any] | None = None
    """What was noted of it last."""
    base_told: Snapshot | None = None
    """The base that was put beside that."""

    def begin(self, message: str) -> Turn:
        """A new turn, with the way back to before it; the stream has caught up."""
        if sum(older.size_bytes for older in self.turns) + len(message) > self.said_bytes:
            self.rebase("what was said long ago is remembered, but no longer shown")
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

    def note(self) -> dict[str, Any]:
        """What it takes to find it again after a restart, as JSON values."""
        turns = [[turn.message, turn.heard.decode("latin-1"), turn.written.decode("latin-1")] for turn in self.turns]
        return {"turns": turns, "base_text": self.base_text, "parked_bytes": self.parked_bytes}

    @classmethod
    def noted(cls, owner: Owner, model_id: str, told: dict[str, Any]) -> Conversation | None:
        """The conversation of a note, put aside; None if the note is damaged."""
        try:
            turns = [
                Turn(message, heard.encode("latin-1"), written.encode("latin-1"))
                for message, heard, written in told["turns"]
            ]
            return cls(
                owner, model_id, None, turns, base_text=str(told["base_text"]), parked_bytes=told["parked_bytes"],
                told=told,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

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

    def __init__(self, registry: Registry, data: Path, limits: Limits, clock: Clock | None = None) -> None:
        """Find the conversations that an earlier process noted; their memories are heard again if need be."""
        self._registry, self._limits = registry, limits
        # All conversations together stay near what their memories may take.
        self._snapshot_bytes = min(_SNAPSHOT_BYTES, limits.max_state_bytes // limits.max_live_streams)
        keep_s = limits.parked_hours * 3600.0
        self._parked = Parked(data / "parked", keep_s, limits.max_parked_bytes, clock or Clock())
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
            conversation = self._known(owner, model_id)
            if conversation is None:
                self._forget_oldest()
                conversation = self._bounded(Conversation(owner, model_id, None))
                self._conversations[owner, model_id] = conversation
        if not self._take(conversation, wait_s):
            raise HatcheryError("this conversation is still busy in another request; stop that one, or wait for it")
        try:
            self._bring_back(conversation)
            self._settle(conversation)
            self._note(conversation)
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
            if not conversation.busy.acquire(blocking=False):  # it may be another one who puts it aside
                return False
            conversation.parking = True
            return True

    def _give_back(self, conversation: Conversation) -> None:
        with self._lock:
            conversation.parking = False
            conversation.busy.release()

    def peek(self, owner: Owner, model_id: str) -> Conversation | None:
        """The conversation as it is, for looking at only."""
        self._sweep_if_due()
        with self._lock:
            return self._known(owner, model_id)

    def _known(self, owner: Owner, model_id: str) -> Conversation | None:
        """The conversation, also one of an earlier process."""
        known = self._conversations.get((owner, model_id))
        if known is None and (told := self._parked.noted(owner, model_id)) is not None:
            known = Conversation.noted(owner, model_id, told)
            if known is not None:
                self._conversations[owner, model_id] = self._bounded(known)
        return known

    def _bounded(self, conversation: Conversation) -> Conversation:
        """A conversation, held to what one may take."""
        conversation.snapshot_bytes, conversation.said_bytes = self._snapshot_bytes, self._limits.max_said_bytes
        return conversation

    def _forget_oldest(self) -> None:
        """Make room for one more among those that are remembered."""
        if len(self._conversations) < self._limits.max_conversations:
            return
        for oldest in sorted(self._conversations.values(), key=lambda one: one.last_used):
            if oldest.busy.acquire(blocking=False):
                self._drop(oldest)
                return
        raise HatcheryError("there are too many conversations here, and all are busy; try again in a while")

    def _drop(self, conversation: Conversation) -> None:
        """Forget a conversation that was taken, for good."""
        self._let_go(conversation)
        self._parked.forget(conversation.owner, conversation.model_id)
        self._conversations.pop((conversation.owner, conversation.model_id), None)

    @staticmethod
    def _settle(conversation: Conversation) -> None:
        """Make a whole of what broke off."""
        if conversation.live.torn:
            conversation.mend()
        elif conversation.base_due:
            conversation.rebase(conversation.base_text)

    def _note(self, conversation: Conversation) -> None:
        """Keep on disk what it takes to go on after a kill, if there is more than before; where the disk refuses, not.

        Of an API client nothing is kept: its session ends with the process.
        """
        if not conversation.owner.startswith(_LASTING) or (told := conversation.note()) == conversation.told:
            return
        try:
            if not (told["turns"] or told["base_text"]):
                self._parked.forget(conversation.owner, conversation.model_id)
            else:
                self._put_base_aside(conversation)
                self._parked.note(conversation.owner, conversation.model_id, told)
            conversation.told = told
        except (OSError, StateError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise

    def _put_base_aside(self, conversation: Conversation) -> None:
        _, file = self._parked.files(conversation.owner, conversation.model_id)
        if conversation.base is not None and (conversation.base is not conversation.base_told or not file.is_file()):
            before = Stream(conversation.live.model)
            before.restore(conversation.base)
            before.save(file)
            conversation.base_told = conversation.base

    def note_idle(self) -> None:
        """Keep on disk what was said since, in conversations that nobody uses at the moment."""
        with self._lock:
            conversations = [c for c in self._conversations.values() if c.stream is not None]
        for conversation in conversations:
            if conversation.owner.startswith(_LASTING) and self._take_idle(conversation):
                try:
                    if conversation.stream is not None:
                        self._settle(conversation)
                        self._note(conversation)
                except Exception:  # one that cannot be kept holds no other back
                    _logger.exception("a conversation could not be noted")
                finally:
                    self._give_back(conversation)

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
                self._parked.forget(*key)
                del self._conversations[key]
        self._parked.forget_model(model_id)

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
            for conversation in list(self._conversations.values()):
                if conversation.last_used < limit and conversation.busy.acquire(blocking=False):
                    self._drop(conversation)
            live = list(self._conversations)
        self._parked.expire(live)
        self._parked.trim()

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
        file, base = self._parked.files(conversation.owner, conversation.model_id)
        whole = False
        try:
            if base.is_file() and conversation.base_text:
                stream.load(base)
                conversation.base = conversation.base_told = stream.snapshot()
            if file.is_file():
                stream.load(file)
                whole = stream.position_bytes == conversation.parked_bytes
        except StateError:
            conversation.base = None
        # Any other error, such as a lack of memory, leaves the files for the next try.
        file.unlink(missing_ok=True)
        conversation.parked_bytes = None
        if whole:
            return
        stream.clear()
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
        file, _ = self._parked.files(conversation.owner, conversation.model_id)
        try:
            if conversation.base_due and not stream.torn:
                conversation.rebase(conversation.base_text)
            # A stream that has yet to catch up, or is torn, is of no use later: then all is heard again.
            if stream.position_bytes and not conversation.unheard and not stream.torn:
                stream.save(file)
                conversation.parked_bytes = stream.position_bytes
            self._put_base_aside(conversation)
        except StateError:
            file.unlink(missing_ok=True)
            conversation.parked_bytes = None
            return
        self._note(conversation)
        conversation.base = conversation.base_told = None
        for turn in conversation.turns:
            turn.before = None
        self._let_go(conversation)
        self._parked.trim()

    def _let_go(self, conversation: Conversation) -> None:
        if conversation.stream is not None:
            conversation.stream = None
            self._registry.release(conversation.model_id)
