"""The Write tab: free completion of a prompt by one model or two, each byte tinted by how surprising it was."""

from __future__ import annotations

import codecs
import html
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import gradio as gr

from bdh.errors import DataError, HatcheryError
from bdh.sampling import Sampling
from bdh.stream import Stream, Written

from . import tint
from .limits import Limits
from .owner import identify, reported
from .registry import Owner, Registry
from .writing import MAX_SEED, ON_ZERO_GPU, batched, hear_and_write

T = TypeVar("T")

EXAMPLES = [
    ['User: What does "river" mean?\nBot:', "\\nUser:"],
    ['User: Can you define "courage"?\nBot:', "\\nUser:"],
    ['User: I keep seeing the word "lantern". What is it?\nBot:', "\\nUser:"],
    ["In the beginning, ", ""],
    ["And he said to them, ", ""],
]
"""Prompts with their stop strings, in the forms that the shipped models were trained on."""
NO_SECOND = ("No second model", "")
SHOWN_PROMPT_CHARACTERS = 500
"""Of a longer prompt, the end is shown before what was written."""
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def stop_strings(text: str | list[str]) -> tuple[bytes, ...]:
    r"""Stop strings from lines of text, in which \n is a line break; or from a list, taken as it is."""
    if isinstance(text, str):
        lines = [line for line in text.split("\n") if line.strip()]
        text = [re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], line) for line in lines]
    if not isinstance(text, list) or not all(isinstance(stop, str) for stop in text):
        raise DataError("stop must be a text, or a list of texts")
    return tuple(stop.encode("utf-8", errors="replace") for stop in text if stop)


def sampling(
    limits: Limits,
    *,
    max_bytes: float,
    temperature: float,
    top_k: float,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    repetition_decay: float,
    seed: float | None,
    stop: str | list[str],
    valid_utf8: bool,
) -> Sampling:
    """The options that a form or a request asks for; without a seed, or with a negative one, a new seed is drawn.

    Raises:
        DataError: a value that is not allowed, or more bytes than the page lets be written.
    """
    count = _whole("max_bytes", max_bytes)
    if not 1 <= count <= limits.max_write_bytes:
        raise DataError(
            f"the bytes to write (max_bytes) are {count!r:.40}; allowed are 1 to {limits.max_write_bytes:,}"
        )
    chosen = -1 if seed is None else _whole("seed", seed)
    if chosen > MAX_SEED:
        raise DataError(f"the seed is {chosen!r:.40}; it must be at most {MAX_SEED}, or -1 to draw one")
    return Sampling(
        max_bytes=count,
        temperature=temperature,
        top_k=_whole("top_k", top_k),
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_decay=repetition_decay,
        seed=secrets.randbelow(2**31) if chosen < 0 else chosen,
        stop=stop_strings(stop),
        valid_utf8=bool(valid_utf8),
    )


def _whole(name: str, value: float) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise DataError(f"{name} is {value!r:.40}; it must be a whole number")
    return int(value)


def prompt_bytes(prompt: str, limits: Limits) -> bytes:
    """What a model hears of a prompt; a line break for an empty one, since a model needs something to go on.

    Raises:
        DataError: no text, or longer than the page allows.
    """
    if not isinstance(prompt, str):
        raise DataError("the prompt must be a text")
    data = prompt.encode("utf-8", errors="replace")
    if len(data) > limits.max_prompt_bytes:
        raise DataError(
            f"the prompt has {len(data):,} bytes; at most {limits.max_prompt_bytes:,} are allowed. Shorten it"
        )
    return data or b"\n"


@dataclass
class Piece:
    """What one model makes of a prompt, as far as it has come."""

    title: str
    ink: tint.Ink = field(default_factory=tint.Ink)
    heard: int = 0
    to_hear: int = 0
    prompt_bits: float = 0.0
    scored: bool = False
    written: int = 0
    bits: float = 0.0
    timed: int = 0
    elapsed_s: float = 0.0
    stopped: bool = False
    """It wrote a stop string."""

    @property
    def bits_per_byte(self) -> float:
        """What the model's own bytes cost it."""
        return self.bits / self.written if self.written else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Speed of writing, waits for others left out."""
        return self.timed / self.elapsed_s if self.elapsed_s else 0.0

    def proceed(self, stream: Stream, prompt: bytes, options: Sampling, *, score: bool) -> Iterator[None]:
        """Hear the prompt and write, coming back 10 to 20 times a second, and whenever this may be dropped."""
        self.to_hear = len(prompt)
        if score:
            yield from self._score(stream, prompt)
        else:
            self.ink = _opened(prompt, None)
        batches = hear_and_write(stream, b"" if score else prompt, options)
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            bytes_written = [part for part in batch if isinstance(part, Written)]
            if len(bytes_written) == len(batch):
                self.timed += len(batch)
                self.elapsed_s += time.perf_counter() - begun
            else:
                self.heard = max(part for part in batch if not isinstance(part, Written))
            self._take(bytes_written)
            yield
        self.ink.finish()
        yield

    def _score(self, stream: Stream, prompt: bytes) -> Iterator[None]:
        costs: list[float] = []
        for batch in batched(scored(stream, prompt)):
            costs += [bits for part in batch for bits in part]
            self.heard = len(costs)
            yield
            if len(costs) == len(prompt):
                break
        self.scored, self.prompt_bits = True, sum(costs)
        self.ink = _opened(prompt, costs)

    def _take(self, batch: list[Written]) -> None:
        self.written += len(batch)
        self.bits += sum(part.surprise_bits for part in batch)
        self.stopped = self.stopped or any(part.is_stop for part in batch)
        self.ink.write((part.byte, part.surprise_bits) for part in batch if not part.is_stop)

    def pages(self, *, all: bool) -> dict[str, Any]:
        """The text, for drawing: what is new of late, or all of it."""
        return self.ink.whole() if all else self.ink.latest()

    def summary(self) -> str:
        """Markup of how it went so far, in one line."""
        parts = [f"<b>{html.escape(self.title)}</b>"]
        if not self.to_hear:
            parts.append("getting ready")
        if not self.written and self.heard < self.to_hear:
            parts.append(f"reading {self.heard:,} of {self.to_hear:,} bytes")
        if self.scored:
            parts.append(f"prompt {self.prompt_bits / self.to_hear:.2f} bits a byte")
        if self.written:
            parts.append(f"{self.written:,} bytes written")
            parts.append(f"{self.bits_per_byte:.2f} bits a byte")
        if self.elapsed_s > 0.2:
            parts.append(f"{self.bytes_per_s:,.0f} bytes/s")
        if self.stopped:
            parts.append("ended at a stop string")
        return f'<p class="summary">{" · ".join(parts)}</p>'


def scored(stream: Stream, data: bytes) -> Iterator[list[float]]:
    """Bits that each byte costs which a stream hears, piece by piece; it may be dropped after any of them."""
    for start in range(0, len(data), stream.piece_bytes):
        yield stream.score(data[start : start + stream.piece_bytes]).tolist()


def _opened(prompt: bytes, costs: list[float] | None) -> tint.Ink:
    """Ink that the end of a prompt stands in, tinted if it is known what its bytes cost."""
    glyphs = tint.Glyphs()
    found = [
        glyph
        for byte, bits in zip(prompt, costs or [0.0] * len(prompt), strict=True)
        for glyph in glyphs.push(byte, bits)
    ] + glyphs.flush()
    end = found[-SHOWN_PROMPT_CHARACTERS:]
    cut = "…" if len(end) < len(found) else ""
    markup = tint.plain(end) if costs is None else tint.tinted(end)
    return tint.Ink(f'<span class="prompt">{cut}{markup}</span>', len(end))


def side_by_side(runs: Iterable[Iterator[T]]) -> Iterator[T]:
    """One item of each, made at the same time, again and again until all have ended; closing this closes all.

    Nothing goes on while the caller looks at an item.
    """
    live, end = list(runs), object()
    with ThreadPoolExecutor(max(1, len(live))) as pool:
        try:
            while live:
                coming = [pool.submit(next, run, end) for run in live]
                wait(coming)
                items = [one.result() for one in coming]
                live = [run for run, item in zip(live, items, strict=True) if item is not end]
                yield from cast(list[T], [item for item in items if item is not end])
        finally:
            for run in live:
                if (close := getattr(run, "close", None)) is not None:
                    close()


def one_after_another(runs: Iterable[Iterator[T]]) -> Iterator[T]:
    """All of each in turn, where two GPUs would have to be lent at once."""
    for run in runs:
        yield from run


class Author:
    """What the tab and the public endpoint do, without components."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry, self._limits = registry, limits

    def pieces(
        self, models: list[str], owner: Owner, prompt: bytes, options: Sampling, *, score: bool = False
    ) -> Generator[list[Piece], None, None]:
        """What each model makes of the prompt, again and again as it grows; both get equal time.

        Raises:
            HatcheryError: an unknown model, or no room for its memory.
        """
        pieces = [Piece(self._registry.title(id, owner)) for id in models]
        yield pieces
        with ExitStack() as stack:
            leased = [stack.enter_context(self._registry.lease(id, owner)) for id in models]
            stack.enter_context(self._registry.reserve(sum(model.state_bytes() for model in leased)))
            runs = [
                piece.proceed(Stream(model), prompt, options, score=score)
                for piece, model in zip(pieces, leased, strict=True)
            ]
            for _ in (one_after_another if ON_ZERO_GPU else side_by_side)(runs):
                yield pieces

    def generate(
        self,
        request: gr.Request,
        prompt: str,
        model: str = "",
        max_bytes: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 0.0,
        repetition_decay: float = 0.98,
        seed: int = -1,
        stop: list[str] | str = "",
        valid_utf8: bool = True,
    ) -> Iterator[str]:
        r"""Continue a prompt byte by byte; streams the text written so far, without the prompt.

        Args:
            prompt: the text to go on from; if empty, a line break.
            model: id of a model as the Models tab lists it; if empty, the first one.
            max_bytes: bytes to write at most.
            temperature: 0 always takes the likeliest byte; 0 to 10.
            top_k: choose among this many likeliest bytes; 0 is all.
            top_p: choose among the likeliest bytes that together reach this probability.
            min_p: leave out bytes less likely than this part of the likeliest.
            repetition_penalty: taken off a byte's logit for each time it was written of late; 0 to 10.
            repetition_decay: what is left of that, a byte later; 0 to 1.
            seed: the same seed gives the same text; -1 draws one.
            stop: writing ends before these; a list, or one a line with \n for a line break.
            valid_utf8: let only valid UTF-8 be written.
        """
        with reported():
            options = sampling(
                self._limits,
                max_bytes=max_bytes,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                repetition_decay=repetition_decay,
                seed=seed,
                stop=stop,
                valid_utf8=valid_utf8,
            )
            data = prompt_bytes(prompt, self._limits)
            with (
                self._registry.lease(self.known(model), identify(None, request)) as leased,
                self._registry.reserve(leased.state_bytes()),
            ):
                decoder, text = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
                for batch in hear_and_write(Stream(leased), data, options):
                    text += decoder.decode(bytes(p.byte for p in batch if isinstance(p, Written) and not p.is_stop))
                    yield text
                yield text + decoder.decode(b"", final=True)

    # Gradio describes an endpoint by its annotations as they stand, and a stream of texts as a text.
    generate.__annotations__["return"] = str

    def known(self, model: str) -> str:
        """The id that was given, or the default's.

        Raises:
            HatcheryError: there is no model at all.
        """
        chosen = model or self._registry.default()
        if not isinstance(chosen, str) or not chosen:
            raise HatcheryError("there is no model here yet; load one in the Models tab first")
        return chosen


class Shown(NamedTuple):
    """What each update of the tab carries, in the order of its components."""

    first: dict[str, Any]
    first_summary: str
    second: dict[str, Any] | None
    second_summary: str
    note: str
    write: Any
    stop: Any


def shown(pieces: list[Piece], options: Sampling, *, running: bool) -> Shown:
    """An update of the tab."""
    second = pieces[1] if len(pieces) > 1 else None
    return Shown(
        pieces[0].pages(all=not running),
        pieces[0].summary(),
        second.pages(all=not running) if second else None,
        second.summary() if second else "",
        f"Seed **{options.seed}**: with it, the same prompt and settings give the same text again.",
        *_buttons(running=running),
    )


def _buttons(*, running: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


@dataclass
class WriteTab:
    """The components that other parts of the page need."""

    model: gr.Dropdown
    other: gr.Dropdown
    prompt: gr.Textbox
    temperature: gr.Slider
    seed: gr.Number
    copy: gr.Button
    link: gr.Textbox


def build_write(registry: Registry, owner: gr.BrowserState, limits: Limits) -> WriteTab:
    """Lay out the tab and wire it."""
    author = Author(registry, limits)
    with gr.Row():
        model = gr.Dropdown(
            choices=registry.choices(""),
            value=registry.default() or None,
            label="Model",
            min_width=280,
            elem_id="write-model",
        )
        other = gr.Dropdown(
            choices=[NO_SECOND, *registry.choices("")],
            value="",
            label="Compare with, on the same prompt and seed",
            min_width=280,
            elem_id="write-other",
        )
    prompt = gr.Textbox(
        label="Prompt",
        info="The model goes on where this ends. Shift+Enter writes.",
        placeholder="In the beginning, ",
        lines=4,
        max_lines=12,
        elem_id="write-prompt",
    )
    stops = gr.Textbox(
        label="Stop strings", info="one a line; \\n is a line break", lines=2, render=False, elem_id="write-stops"
    )
    gr.Examples(
        [list(example) for example in EXAMPLES],
        [prompt, stops],
        label="Examples",
        example_labels=[example[0].replace("\n", " ⏎ ") for example in EXAMPLES],
        api_visibility="private",
    )
    with gr.Row(equal_height=True):
        write = gr.Button("Write", variant="primary", scale=2, min_width=120, elem_id="write-go")
        stop = gr.Button("Stop", variant="stop", min_width=90, interactive=False, elem_id="write-stop")
        copy = gr.Button("Copy link", min_width=90, elem_id="write-copy")
    link = gr.Textbox(
        label="Link",
        info="It opens this page on Write with this model, prompt, temperature and seed.",
        visible=False,
        max_lines=3,
        buttons=["copy"],
        elem_id="write-link",
    )
    with gr.Accordion("How it writes", open=False):
        with gr.Row():
            max_bytes = gr.Number(
                200,
                label="Bytes to write",
                info=f"1 to {limits.max_write_bytes:,}",
                precision=0,
            )
            temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0 always takes the likeliest byte")
            seed = gr.Number(-1, label="Seed", info="-1 draws a new one each time", precision=0)
        with gr.Row():
            top_k = gr.Slider(0, 256, 0, step=1, label="Top-k", info="choose among so many bytes; 0 is all")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="leave out the unlikely rest")
            min_p = gr.Slider(0, 1, 0, step=0.01, label="Min-p", info="leave out what is so much less likely")
        with gr.Row():
            penalty = gr.Slider(0, 5, 0, step=0.1, label="Repetition penalty", info="makes repeated bytes less likely")
            decay = gr.Slider(0, 1, 0.98, step=0.01, label="Repetition decay", info="how long a repeat is remembered")
            stops.render()
        valid_utf8 = gr.Checkbox(True, label="Write only valid UTF-8 text", container=False)
    score = gr.Checkbox(False, label="Colour the prompt too", container=False, elem_id="write-score")
    with gr.Row():
        with gr.Column(min_width=280):
            first_summary = gr.HTML(elem_classes="flush", elem_id="write-first-summary")
            first = paper("What the model wrote", "Text appears here, byte by byte.", "write-first")
        with gr.Column(min_width=280, visible=False) as beside:
            second_summary = gr.HTML(elem_classes="flush", elem_id="write-second-summary")
            second = paper("What the second model wrote", "The second model's text appears here.", "write-second")
    note = gr.Markdown(elem_id="write-note")
    gr.HTML(tint.legend(), elem_classes="flush")

    def on_write(
        request: gr.Request, secret: str, model: str | None, other: str | None, prompt: str, score: bool,
        max_bytes: float | None, temperature: float, top_k: float, top_p: float, min_p: float, penalty: float,
        decay: float, seed: float | None, stops: str, valid_utf8: bool,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        with reported():
            options = sampling(
                limits, max_bytes=0 if max_bytes is None else max_bytes, temperature=temperature, top_k=top_k,
                top_p=top_p, min_p=min_p, repetition_penalty=penalty, repetition_decay=decay, seed=seed,
                stop=stops or "", valid_utf8=valid_utf8,
            )  # fmt: skip
            models = [author.known(model or ""), *([other] if other else [])]
            data = prompt_bytes(prompt or "", limits)
            pieces: list[Piece] = []
            with closing(author.pieces(models, identify(secret, request), data, options, score=score)) as progress:
                for pieces in progress:
                    yield shown(pieces, options, running=True)
            yield shown(pieces, options, running=False)

    output = [first, first_summary, second, second_summary, note, write, stop]
    private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    writing = gr.on(
        [write.click, prompt.submit],
        on_write,
        [
            owner, model, other, prompt, score, max_bytes, temperature, top_k, top_p, min_p, penalty, decay, seed,
            stops, valid_utf8,
        ],
        output,
        api_visibility="private",
        concurrency_limit=limits.max_at_once,
        concurrency_id="writing",
        show_progress="hidden",
    )  # fmt: skip
    idle: Callable[[], Any] = lambda: _buttons(running=False)  # noqa: E731
    writing.failure(idle, None, [write, stop], **private)
    stop.click(idle, None, [write, stop], cancels=[writing], **private)
    other.change(lambda id: gr.Column(visible=bool(id)), other, beside, **private)
    gr.api(  # type: ignore[attr-defined]
        author.generate, api_name="generate", concurrency_limit=limits.max_at_once, concurrency_id="writing"
    )
    return WriteTab(model, other, prompt, temperature, seed, copy, link)


def paper(label: str, empty: str, elem_id: str) -> gr.HTML:
    """Where tinted text is drawn."""
    template = tint.TEMPLATE.format(label=html.escape(label), empty=html.escape(empty))
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=tint.DRAW,
        apply_default_css=False,
        elem_classes="flush",
        elem_id=elem_id,
    )
