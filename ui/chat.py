"""The Chat tab: a conversation whose memory is the model's own state, kept between turns."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from bdh.errors import DataError
from bdh.sampling import Sampling
from bdh.stream import Written

from .dialogue import END, question
from .limits import Limits, hours_text
from .owner import identify, reported
from .registry import Registry, size_text
from .sessions import Conversation, Sessions, heard_in
from .wishes import is_number
from .writing import MAX_SEED, ON_ZERO_GPU, batched, hear_and_write

EXAMPLES = [
    'What does "river" mean?',
    'Tell me what "courage" means.',
    'I keep seeing the word "lantern". What is it?',
]
PLACEHOLDER = (
    "**Ask what an English word means.**\n\nThe shipped models are small. They learned to explain words and to "
    "continue prose, byte by byte, and know nothing else."
)
MAX_ANSWER_BYTES = 2_000
_MARKUP = re.compile("([<&])(?=[A-Za-z/!?#])")
MAX_TURNS_SHOWN = 100
"""Older turns are still remembered, but no longer sent to the browser."""


class Progress(NamedTuple):
    """How far an answer is."""

    heard_bytes: int = 0
    total_bytes: int = 0
    written_bytes: int = 0
    bytes_per_s: float = 0.0
    behind_bytes: int = 0
    """Of the conversation so far, bytes that are heard again before the message."""


def answer(conversation: Conversation, message: str, options: Sampling) -> Iterator[Progress]:
    """Let the conversation hear a message and write its answer, turn by turn; progress 10 to 20 times a second.

    The turn always holds exactly the bytes that the stream heard, wherever this is stopped.
    """
    for left in caught_up(conversation):
        yield Progress(behind_bytes=left)
    turn = conversation.begin(message)
    stream = conversation.live
    data = question(message, stream.recent)
    options = dataclasses.replace(options, stop=(END,))
    turn.heard = data
    heard, begun, start = 0, 0.0, stream.position_bytes
    try:
        for batch in hear_and_write(stream, data, options):
            for part in batch:
                if isinstance(part, Written):
                    begun = begun or time.monotonic()
                    turn.written += bytes([part.byte])
                else:
                    heard = part
            elapsed = time.monotonic() - begun if begun else 0.0
            rate = (len(turn.written) - 1) / elapsed if elapsed > 0.2 else 0.0
            yield Progress(heard, len(data), len(turn.written), rate)
    finally:
        said = turn.heard + turn.written
        if ON_ZERO_GPU:
            conversation.unheard = said[stream.position_bytes - start :]
        elif not turn.written:
            turn.heard = data[: stream.position_bytes - start]


def caught_up(conversation: Conversation) -> Iterator[int]:
    """Let the conversation hear what it is behind with; how many bytes are left, 10 to 20 times a second."""
    with closing(batched(conversation.catching_up())) as batches:
        for left in batches:
            yield left[-1]
            if not left[-1]:
                return


def inert(text: str) -> str:
    """The same to look at, but nothing in it is markup: the chat component obeys some, whatever it is told."""
    return _MARKUP.sub("\\1\u200b", text)


def uttered(shown: str) -> str:
    """What `inert` was made of."""
    return re.sub("([<&])\u200b", "\\1", shown)


def history(conversation: Conversation | None) -> list[dict[str, str]]:
    """The turns as the chat component takes them."""
    messages = []
    for turn in conversation.turns[-MAX_TURNS_SHOWN:] if conversation else []:
        messages.append({"role": "user", "content": inert(turn.message)})
        messages.append({"role": "assistant", "content": inert(turn.answer) or "…"})
    return messages


def status(conversation: Conversation | None, device: str = "", rate: float = 0.0, note: str = "") -> str:
    """What the memory has heard and what it takes, in one line."""
    stream = conversation.stream if conversation is not None else None
    if conversation is not None and stream is None and (conversation.turns or conversation.base_text):
        return "The memory was put aside while you were away; it comes back with your next message."
    if conversation is None or stream is None or not stream.position_bytes:
        return note or "The memory is empty. Say something to begin."
    parts = [
        f"**{stream.position_bytes:,}** bytes heard",
        f"memory **{size_text(stream.state_bytes)}**, never larger",
    ]
    if rate:
        parts.append(f"**{rate:,.0f}** bytes/s")
    parts.append(device)
    if conversation.base_text:
        parts.append(conversation.base_text)
    if note:
        parts.append(note)
    return " · ".join(part for part in parts if part)


def message_problem(message: str, limits: Limits) -> str:
    """Why a message cannot be sent, or an empty text."""
    if not isinstance(message, str):
        return "The message must be a text."
    size = len(message.encode("utf-8", errors="replace"))
    if not message.strip():
        return "Write a message first."
    if size > limits.max_prompt_bytes:
        allowed = f"at most {limits.max_prompt_bytes:,} are allowed"
        return f"The message has {size:,} bytes; {allowed}. Feed it as a file instead."
    return ""


class Chat:
    """What happens when a person does something in the tab. Each handler finds the conversation by its owner."""

    def __init__(self, registry: Registry, sessions: Sessions, limits: Limits) -> None:
        self.registry, self.sessions, self.limits = registry, sessions, limits
        self._saving = threading.Lock()
        self._saved: list[Path] = []

    def send(
        self,
        text: str,
        model_id: str,
        temperature: float,
        top_p: float,
        length: float,
        seed: float,
        secret: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a message."""
        options = self._options(text, temperature, top_p, length, seed)
        with reported(), self.sessions.use(identify(secret, request), model_id) as conversation:
            yield from self._streamed(conversation, text, options, box="")

    def retry(
        self,
        model_id: str,
        temperature: float,
        top_p: float,
        length: float,
        seed: float,
        secret: str,
        request: gr.Request,
        event: gr.RetryData,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a message again, from the state it met."""
        with reported(), self.sessions.use(identify(secret, request), model_id) as conversation:
            turn = _turn(conversation, event.index)
            text = conversation.turns[turn].message
            yield from self._again(conversation, turn, text, self._options(text, temperature, top_p, length, seed))

    def edit(
        self,
        model_id: str,
        temperature: float,
        top_p: float,
        length: float,
        seed: float,
        secret: str,
        request: gr.Request,
        event: gr.EditData,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a changed message, from the state that the old one met."""
        text = uttered(str(event.value))
        options = self._options(text, temperature, top_p, length, seed)
        with reported(), self.sessions.use(identify(secret, request), model_id) as conversation:
            yield from self._again(conversation, _turn(conversation, event.index), text, options)

    def undo(self, model_id: str, secret: str, request: gr.Request, event: gr.UndoData) -> Iterator[tuple[Any, ...]]:
        """Come back to before a message, and give the message back to be changed."""
        with reported(), self.sessions.use(identify(secret, request), model_id, wait_s=5) as conversation:
            turn = _turn(conversation, event.index)
            text = conversation.turns[turn].message
            conversation.rewind(turn)
            yield history(conversation), self._status(conversation), text, *_buttons(writing=bool(conversation.unheard))
            for line in self._catching_up(conversation):
                yield gr.skip(), line, gr.skip(), gr.skip(), gr.skip()
            yield gr.skip(), self._status(conversation), gr.skip(), *_buttons(writing=False)

    def pick(self, event: gr.SelectData) -> str:
        """Put an example into the message box."""
        told = event.value.get("text") if isinstance(event.value, dict) else ""
        return str(told)[: self.limits.max_prompt_bytes]

    def clear(self, model_id: str, secret: str, request: gr.Request) -> tuple[Any, ...]:
        """Forget the conversation."""
        with reported(), self.sessions.use(identify(secret, request), model_id, wait_s=10) as conversation:
            conversation.clear()
        return [], status(None), gr.File(visible=False), *_buttons(writing=False)

    def view(self, model_id: str | None, secret: str, request: gr.Request) -> tuple[Any, ...]:
        """The conversation as it stands: after a reload, a stop, or another choice of model."""
        conversation = self.sessions.peek(identify(secret, request), model_id or "")
        return history(conversation), self._status(conversation), *_buttons(writing=False)

    def save(self, model_id: str, secret: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Write the memory to a file for download."""
        with reported(), self.sessions.use(identify(secret, request), model_id) as conversation:
            for line in self._catching_up(conversation):
                yield gr.skip(), line, *_buttons(writing=True)
            if not conversation.live.position_bytes:
                raise DataError("the memory is empty: there is nothing to save yet")
            title = re.sub(r"[^\w.-]+", "-", self.registry.title(model_id, conversation.owner))
            heard = f"{title}-memory-after-{conversation.live.position_bytes}-bytes"
            path = self._folder_to_serve_from() / f"{heard}.safetensors"
            conversation.live.save(path)
            saved = gr.File(str(path), visible=True)
            yield saved, self._status(conversation, note="memory saved"), *_buttons(writing=False)

    def load(self, path: str | None, model_id: str, secret: str, request: gr.Request) -> tuple[Any, ...]:
        """Take over a saved memory."""
        with reported(), self.sessions.use(identify(secret, request), model_id) as conversation:
            if not path:
                raise DataError("choose a saved memory first")
            conversation.live.load(path)
            forgets = ", in place of the conversation before" if conversation.turns else ""
            conversation.rebase(f"from a saved memory{forgets}")
            return history(conversation), self._status(conversation)

    def feed(self, path: str | None, model_id: str, secret: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Let the model read a text file into its memory."""
        with reported(), self.sessions.use(identify(secret, request), model_id) as conversation:
            data = _text_of(path, self.limits.max_feed_bytes)
            for line in self._catching_up(conversation):
                yield gr.skip(), line, *_buttons(writing=True)
            begun = time.monotonic()
            # Whatever becomes of the reading, what was read is what the next turn begins at.
            forgets = " (what was said before is remembered, but no longer shown)" if conversation.turns else ""
            conversation.turns.clear()
            conversation.base_due = True
            for batch in hear_and_write(conversation.live, data, None):
                done = int(batch[-1])  # type: ignore[arg-type]
                rate = done / max(time.monotonic() - begun, 1e-3)
                left = (len(data) - done) / rate
                note = f"reading {done:,} of {len(data):,} bytes, {left:,.0f} s left" if done < len(data) else ""
                conversation.base_text = ""
                line = self._status(conversation, rate, note)
                conversation.base_text = f"read {done:,} of {len(data):,} bytes of a text{forgets}"
                yield gr.skip(), line, *_buttons(writing=True)
            conversation.rebase(f"read a text of {len(data):,} bytes{forgets}")
            yield history(conversation), self._status(conversation), *_buttons(writing=False)

    def api(
        self,
        request: gr.Request,
        message: str,
        model: str = "",
        temperature: float = 0.3,
        top_p: float = 0.95,
        max_bytes: int = 400,
        seed: int = -1,
        restart: bool = False,
    ) -> Iterator[str]:
        """Answer a message in the client's own conversation with a model; streams the answer written so far.

        The conversation is kept between calls of the same client, in a memory whose size never changes.

        Args:
            message: one line of the dialogue.
            model: id of a model as the Models tab lists it; if empty, the first one.
            temperature: 0 always takes the likeliest byte; 0 to 10.
            top_p: choose among the likeliest bytes that together reach this probability.
            max_bytes: bytes to write at most.
            seed: the same seed gives the same answer; -1 draws one.
            restart: forget the conversation first.
        """
        options = self._options(message, temperature, top_p, max_bytes, seed)
        with reported(), self.sessions.use(identify(None, request), model or self.registry.default()) as conversation:
            if restart:
                conversation.clear()
            for progress in answer(conversation, message, options):
                if progress.total_bytes:
                    yield conversation.turns[-1].answer

    # Gradio describes an endpoint by its annotations as they stand, and a stream of texts as a text.
    api.__annotations__["return"] = str

    def _folder_to_serve_from(self) -> Path:
        """A new folder; the page has copied what is in the older ones."""
        folder = Path(tempfile.mkdtemp(prefix="memory-"))
        with self._saving:
            self._saved.append(folder)
            old, self._saved = self._saved[:-8], self._saved[-8:]
        for served in old:
            shutil.rmtree(served, ignore_errors=True)
        return folder

    def _options(self, text: str, temperature: float, top_p: float, length: float, seed: float | None) -> Sampling:
        with reported():
            if problem := message_problem(text, self.limits):
                raise DataError(problem)
            numbers = (temperature, top_p, length, -1 if seed is None else seed)
            if not all(is_number(number) for number in numbers):
                raise DataError(f"temperature, top-p, length and seed must be numbers; given {numbers!r:.100}")
            if numbers[3] > MAX_SEED:
                raise DataError(f"the seed is {numbers[3]!r:.40}; it must be at most {MAX_SEED}, or -1 to draw one")
            return Sampling(
                temperature=temperature,
                top_p=top_p,
                max_bytes=min(int(length), self.limits.max_write_bytes),
                seed=None if seed is None or seed < 0 else int(seed),
                valid_utf8=True,
            )

    def _catching_up(self, conversation: Conversation) -> Iterator[str]:
        """Status lines while the conversation is heard again, as far as it must be."""
        for left in caught_up(conversation):
            yield self._status(conversation, note=_behind(left))

    def _again(self, conversation: Conversation, turn: int, text: str, options: Sampling) -> Iterator[tuple[Any, ...]]:
        """Answer from the state before a turn; if that is broken off before it is reached, all stays as it was."""
        dropped = conversation.turns[turn:]
        conversation.rewind(turn)
        try:
            for line in self._catching_up(conversation):
                yield gr.skip(), line, gr.skip(), *_buttons(writing=True)
        finally:
            if conversation.unheard:
                conversation.turns += dropped
                conversation.unheard += heard_in(dropped)
        yield from self._streamed(conversation, text, options)

    def _streamed(
        self, conversation: Conversation, text: str, options: Sampling, box: str | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Answer; `box` is written into the message box once, and what is typed there meanwhile is left alone."""
        rate = 0.0
        for progress in answer(conversation, text, options):
            rate = progress.bytes_per_s or rate
            if not progress.total_bytes:  # the message waits in its box, where a stop leaves it
                line = self._status(conversation, note=_behind(progress.behind_bytes))
                yield gr.skip(), line, gr.skip(), *_buttons(writing=True)
                continue
            reading = not progress.written_bytes and progress.total_bytes > 2_000
            note = f"reading {progress.heard_bytes:,} of {progress.total_bytes:,} bytes" if reading else ""
            into_box, box = gr.skip() if box is None else box, None
            yield history(conversation), self._status(conversation, rate, note), into_box, *_buttons(writing=True)
        yield history(conversation), self._status(conversation, rate), gr.skip(), *_buttons(writing=False)

    def _status(self, conversation: Conversation | None, rate: float = 0.0, note: str = "") -> str:
        return status(conversation, self.registry.device.type.upper(), rate, note)


def _behind(left: int) -> str:
    return f"hearing the conversation again, {left:,} bytes left" if left else ""


def _buttons(writing: bool) -> tuple[gr.Button, gr.Button]:
    """Send and Stop, of which one is shown."""
    return gr.Button(visible=not writing), gr.Button(visible=writing)


def _turn(conversation: Conversation, index: Any) -> int:
    """The turn that a message of the chat component belongs to."""
    first = index[0] if isinstance(index, (list, tuple)) and index else index
    if isinstance(first, bool) or not isinstance(first, int):
        raise DataError("which message is meant cannot be told; reload the page")
    turn = first // 2
    turn += max(0, len(conversation.turns) - MAX_TURNS_SHOWN)
    if not 0 <= turn < len(conversation.turns):
        raise DataError("that message is no longer part of the conversation; reload the page to see it as it is")
    return turn


def _text_of(given: str | None, limit: int) -> bytes:
    """The bytes of an uploaded text.

    Raises:
        DataError: it is empty or too large.
    """
    if not given:
        raise DataError("choose a file first")
    path = Path(given)
    if not path.is_file():
        raise DataError("the file is not here any more; choose it again")
    size = path.stat().st_size
    if not 0 < size <= limit:
        raise DataError(f"the file has {size:,} bytes; it must have 1 to {limit:,}")
    return path.read_bytes()


@dataclasses.dataclass
class ChatTab:
    """The components that other parts of the page need."""

    model: gr.Dropdown
    message: gr.Textbox
    temperature: gr.Slider
    seed: gr.Number


def build_chat(
    registry: Registry, sessions: Sessions, owner: gr.BrowserState, limits: Limits, greeting: Any
) -> ChatTab:
    """Lay out the tab and wire it; `greeting` is the event after which the owner is known."""
    chat = Chat(registry, sessions, limits)
    with gr.Row(elem_id="chat-head"):
        model = gr.Dropdown(
            choices=registry.choices(""),
            value=registry.default() or None,
            label="Model",
            scale=4,
            min_width=280,
            elem_id="chat-model",
        )
        clear = gr.Button("New conversation", scale=1, min_width=160, elem_id="chat-clear")
    chatbot = gr.Chatbot(
        label="Conversation",
        show_label=False,
        height=420,
        render_markdown=False,
        allow_tags=False,
        editable="user",
        buttons=["copy"],
        placeholder=PLACEHOLDER,
        examples=[{"text": text} for text in EXAMPLES],
        elem_id="chat-log",
    )
    state_line = gr.Markdown(status(None), elem_id="chat-status")
    with gr.Row(equal_height=True):
        message = gr.Textbox(
            placeholder="Ask what a word means",
            show_label=False,
            container=False,
            scale=5,
            max_lines=4,
            autofocus=True,
            elem_id="chat-message",
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="chat-send")
        stop = gr.Button("Stop", variant="stop", scale=1, min_width=90, visible=False, elem_id="chat-stop")
    with gr.Accordion("How it answers", open=False):
        with gr.Row():
            temperature = gr.Slider(0, 2, 0.3, step=0.05, label="Temperature", info="0 always takes the likeliest byte")
            top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p", info="leave out the unlikely rest")
        with gr.Row():
            length = gr.Slider(10, MAX_ANSWER_BYTES, 400, step=10, label="Longest answer, in bytes")
            seed = gr.Number(-1, label="Seed", precision=0, info="-1 draws a new one each time")
    with gr.Accordion("Memory", open=False, elem_id="memory"):
        gr.Markdown(
            "All that is said here is kept in one block of numbers, whose size never changes. Save it to go on "
            "another day, or let the model read a text before you talk. A conversation is kept on this machine, to "
            f"be found again after a restart, until {hours_text(limits.parked_hours)} after its last message, or until "
            "you begin a new one."
        )
        with gr.Row():
            save = gr.Button("Save memory", size="sm", min_width=140, elem_id="memory-save")
            load = gr.UploadButton(
                "Load memory", file_types=[".safetensors"], size="sm", min_width=140, elem_id="memory-load"
            )
            feed = gr.UploadButton("Feed a text file", size="sm", min_width=140, elem_id="memory-feed")
        saved = gr.File(label="Saved memory", visible=False, interactive=False, elem_id="memory-file")

    settings = [model, temperature, top_p, length, seed, owner]
    shown = [chatbot, state_line]
    streaming = [*shown, message, send, stop]
    many: dict[str, Any] = {
        "concurrency_limit": limits.max_at_once,
        "concurrency_id": "writing",
        "api_visibility": "private",
    }
    quick: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}

    writes = [
        gr.on([message.submit, send.click], chat.send, [message, *settings], streaming, show_progress="hidden", **many),
        chatbot.retry(chat.retry, settings, streaming, show_progress="hidden", **many),
        chatbot.edit(chat.edit, settings, streaming, show_progress="hidden", **many),
        chatbot.undo(chat.undo, [model, owner], streaming, show_progress="hidden", **many),
        save.click(chat.save, [model, owner], [saved, state_line, send, stop], show_progress="hidden", **many),
        feed.upload(
            chat.feed,
            [feed, model, owner],
            [*shown, send, stop],
            show_progress="hidden",
            concurrency_limit=max(1, limits.max_at_once // 4),
            concurrency_id="feeding",
            api_visibility="private",
            trigger_mode="multiple",
        ),
    ]
    for event in writes:
        event.failure(chat.view, [model, owner], [*shown, send, stop], **quick)
    chatbot.example_select(chat.pick, None, message, **quick)
    stop.click(chat.view, [model, owner], [*shown, send, stop], cancels=writes, **quick)
    gr.on(
        [clear.click, chatbot.clear], chat.clear, [model, owner], [*shown, saved, send, stop], cancels=writes, **quick
    )
    model.change(chat.view, [model, owner], [*shown, send, stop], cancels=writes, **quick)
    model.change(lambda: gr.File(visible=False), None, saved, **quick)
    loaded = load.upload(chat.load, [load, model, owner], shown, api_name="load_memory", **quick)
    loaded.failure(chat.view, [model, owner], [*shown, send, stop], **quick)
    greeting.then(chat.view, [model, owner], [*shown, send, stop], **quick)
    gr.api(  # type: ignore[attr-defined]
        chat.api, api_name="chat", concurrency_limit=limits.max_at_once, concurrency_id="writing"
    )
    return ChatTab(model, message, temperature, seed)
