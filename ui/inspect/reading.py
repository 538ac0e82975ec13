"""The view Reading: which neurons fire while a text is read, byte by byte, and which bytes fire one of them."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

import gradio as gr

from bdh.errors import DataError, HatcheryError
from bdh.models import Model, skeleton
from bdh.probe import Point
from bdh.sampling import Sampling
from bdh.stream import Stream, Written
from lab import reading as lab
from lab.reading import Active, Reading
from train.plots import draw_bars

from .. import tint
from ..limits import Limits
from ..owner import identify, reported
from ..parting import Folders
from ..registry import Owner, Registry
from ..steps import whole
from ..writing import batched, hear_and_write
from . import firing, reader
from .named import COUNTING, KINDS, layer_name, neuron_name, of_model, point_name
from .turns import LATEST, QUICK, stops

MOST_BYTES = 1_000
"""Of a text that is read, what the model writes included: hundreds of columns is what a screen can show."""
MOST_WRITTEN = 400
CORPUS_BYTES = 4_096
"""Heard to find what fires a neuron, some seconds of two cores."""
ALL_CORPORA = "all"
EXAMPLES = [
    ['User: What does "river" mean?\nBot:', 80],
    ["In the beginning God created the heaven and the earth. And the earth was without form, and void;", 0],
    ["En el principio crió Dios los cielos y la tierra. In the beginning God created the heaven.", 0],
    ['def read(path):\n    """Return the lines of a file."""\n    with open(path) as file:\n', 120],
    ["one two three four five six seven eight nine ten 1 2 3 4 5 6 7 8 9 10 11 12", 0],
]
_NOTHING = "Nothing was read yet."
_KINDS = {
    "x_sparse": "x, what fires first",
    "y_sparse": "y, what memory excites",
    "gate": "x · y, what is sent on",
    "mlp": "mlp, between the two layers",
}
_COPIES = 4
"""Of what is kept of a reading, while it is sorted and drawn."""
_LOOK_S = 1.0
"""Between two looks at what a model that writes slowly has written so far."""
_AT_ONCE = 8
"""Readings and searches of all visitors at the same time; others wait their turn."""


class Heard(NamedTuple):
    """What was read last, for the page to go on from; small, so that no picture is kept here."""

    data: bytes
    heard_bytes: int


class SoFar(NamedTuple):
    """What a model has written up to now."""

    heard: Heard


class Choice(NamedTuple):
    """What there is to choose from, and what is chosen."""

    options: list[tuple[str, Any]]
    value: Any


def choices(points: Sequence[Point], layer: Any = None, kind: Any = None, head: Any = None) -> tuple[Choice, ...]:
    """Layers, the kinds of neuron in the chosen layer and its heads; what is not there gives way.

    The last layer is chosen first: what fires in it depends most on what came before.
    """
    patches = {point.place: point.bytes_per_row for point in points}
    layer = layer if layer in patches else next(reversed(patches))
    here = {point.kind: point for point in points if point.place == layer}
    kind = kind if kind in here else next(iter(here))
    heads = here[kind].heads
    return (
        Choice(
            [
                (f"{layer_name(place)}, hears {size} bytes at once" if size > 1 else layer_name(place), place)
                for place, size in patches.items()
            ],
            layer,
        ),
        Choice([(_KINDS[name], name) for name in here], kind),
        Choice(
            [(f"head {index + 1}", index) for index in range(heads)] or [("no heads", 0)],
            head if head in range(heads) else 0,
        ),
    )


class Inspector:
    """What the view does, without components."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry, self._limits = registry, limits
        self._folders = Folders("reading-", kept=64)

    def points(self, model: str | None, owner: Owner) -> tuple[Point, ...]:
        """The neurons of a model, known from its configuration alone.

        Raises:
            HatcheryError: there is no such model.
        """
        return lab.neuron_points(skeleton(self._registry.config(_known(model), owner)))

    def allowed(self, points: Sequence[Point]) -> str:
        """How many bytes are read at once, in words."""
        widest = max((point.width for point in points), default=1)
        most = min(MOST_BYTES, self._limits.max_prompt_bytes, lab.MOST_VALUES // widest)
        return f"up to {most:,} bytes. Shift+Enter reads."

    def text(self, text: str, write_bytes: float | None) -> tuple[bytes, int]:
        """The bytes of a text and how many are to be written after it.

        Raises:
            DataError: nothing to read, or more than is shown at once.
        """
        if not isinstance(text, str) or not text:
            raise DataError("there is no text to read; write some, or choose an example")
        data = text.encode("utf-8", errors="replace")
        most = min(MOST_BYTES, self._limits.max_prompt_bytes)
        count = 0 if write_bytes is None else write_bytes
        if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 <= count <= MOST_WRITTEN:
            raise DataError(f"the bytes to write are {count!r:.40}; allowed are 0 to {MOST_WRITTEN}")
        if len(data) + int(count) > most:
            raise DataError(
                f"the text has {len(data):,} bytes, and {int(count):,} are to be written; at most {most:,} together "
                "are shown. Shorten it"
            )
        return data, int(count)

    def go_on(
        self, model: str | None, owner: Owner, data: bytes, count: int
    ) -> Generator[str | SoFar | Heard, None, None]:
        """Let the model write after a text; how far it is, now and then what there is to read so far, in the end all.

        What is done with the former may take a quarter of the time.
        """
        written = bytearray()
        if count:
            with self._leased(model, owner, 0) as leased:
                options = Sampling(max_bytes=min(count, self._limits.max_write_bytes), seed=1)
                due = time.monotonic() + _LOOK_S
                for batch in hear_and_write(Stream(leased), data, options):
                    written += bytes(part.byte for part in batch if isinstance(part, Written))
                    yield f"writing: {len(written)} of {count} bytes"
                    if (begun := time.monotonic()) > due:
                        yield SoFar(Heard(data + bytes(written), len(data)))
                        ended = time.monotonic()
                        due = ended + max(_LOOK_S, 3 * (ended - begun))
        yield Heard(data + bytes(written), len(data))

    def read(
        self, model: str | None, owner: Owner, heard: Heard, layer: str, kind: str, head: int
    ) -> Generator[str | Reading, None, None]:
        """How far it is, and at the end the reading."""
        name = f"{layer}.{kind}"
        with self._leased(model, owner, len(heard.data)) as leased:
            yield from _told(lab.read(leased, heard.data, name, _head(head)), len(heard.data))

    def find(
        self, model: str | None, owner: Owner, name: str, head: int, neuron: float | None, corpus: str
    ) -> Generator[tuple[str, firing.Firings | None], None, None]:
        """Markup of how far it is, and what of shipped texts fires a neuron, so far as they were heard."""
        if isinstance(neuron, bool) or not isinstance(neuron, (int, float)) or not float(neuron).is_integer():
            raise DataError("no neuron was chosen; give its number, or press one in the list")
        names = lab.corpus_names() if corpus == ALL_CORPORA else [corpus]
        if corpus != ALL_CORPORA and corpus not in lab.corpus_names():
            raise DataError(f"there is no shipped corpus {corpus!r:.40}; there are {', '.join(lab.corpus_names())}")
        found: dict[str, tuple[bytes, Any]] = {}
        done, total, fires = 0, CORPUS_BYTES // len(names) * len(names), None
        with self._leased(model, owner, 1) as leased:
            point = lab.neuron_point(leased, name, _head(head))
            who = f"{self.title(model, owner)}, {neuron_name(name, _head(head) if point.heads else None, int(neuron))}"
            for each in names:
                data = lab.excerpt(each, CORPUS_BYTES // len(names))
                for told in _told(lab.fire(leased, data, name, _head(head), int(neuron)), total, done):
                    if isinstance(told, str):
                        yield _line(told), fires
                    else:
                        found[each] = (data, told)
                done += len(data)
                fires = firing.firings(who, point, found)
        yield "", fires

    def files(
        self, model: str | None, owner: Owner, heard: Heard, layer: str, kind: str, head: int,
        fires: firing.Firings | None = None,
    ) -> list[str]:  # fmt: skip
        """The reading as files: NPZ, CSV and PNG; with what fires a neuron, if that was searched."""
        made = [told for told in self.read(model, owner, heard, layer, kind, head) if isinstance(told, Reading)]
        title = self.title(model, owner)
        notes = {"model": title, "counting": COUNTING}
        heading = f"{title}, {seen_at(made[0])}"
        folder = self._folders.new()
        paths = lab.save(made[0], folder, heading=heading, notes=notes)
        active = folder / "active.png"
        bars = {f"{layer_name(one.place)}, {KINDS[one.kind]}": {title: (100 * one.part,) * 3} for one in made[0].active}
        draw_bars(bars, "neurons above 0, %", active)
        return of_model(title, [*paths, active, *(firing.save(fires, folder) if fires else ())])

    def title(self, model: str | None, owner: Owner) -> str:
        """What a model is called."""
        return self._registry.title(_known(model), owner)

    @contextmanager
    def _leased(self, model: str | None, owner: Owner, read_bytes: int) -> Iterator[Model[Any]]:
        """A model, with room for its memory and for what is kept of so many bytes."""
        with self._registry.lease(_known(model), owner) as leased:
            widest = max(point.width for point in lab.neuron_points(leased))
            kept = _COPIES * 4 * min(lab.MOST_VALUES, read_bytes * widest) + lab.PIECE_MEMORY if read_bytes else 0
            with self._registry.reserve(leased.state_bytes() + kept):
                yield leased


def seen_at(found: Reading) -> str:
    """The layer, the kind of its neurons and the head that a reading is of, in words."""
    return point_name(found.point.name) + ("" if found.head is None else f", head {found.head + 1}")


def summary(heard: Heard, found: Reading, shown: lab.Raster, model: str) -> str:
    """Markup of what is seen in a model of that name, in a line or two."""
    of = f"{len(shown.neurons):,} of the {shown.fired:,} neurons that fire, the most active"
    if len(shown.neurons) == shown.fired:
        of = f"all {shown.fired:,} neurons that fire"
    written = len(heard.data) - heard.heard_bytes
    parts = [
        f"<b>{html.escape(model)}, {html.escape(seen_at(found))}</b>",
        f"{len(heard.data):,} bytes" + (f", {written:,} of them written by the model" if written else ""),
        f"{found.bits_per_byte:.2f} bits a byte",
        f"a line is a neuron, a column a byte; shown: {of} (of {found.point.width:,}), those that fire together side "
        "by side; a neuron's number is that of its row in its head's weights, from 0",
    ]
    patch = found.point.bytes_per_row
    if patch > 1:
        parts.append(f"this layer hears whole patches: what it does stands under all {patch} bytes of each")
    return f'<p class="summary">{" · ".join(parts)}</p>'


def active_bars(active: Sequence[Active]) -> str:
    """Markup of how much of each layer fires, x and y apart."""
    groups: dict[str, list[Active]] = {}
    for one in active:
        groups.setdefault(one.kind, []).append(one)
    parts = []
    for kind, layers in groups.items():
        bars = "".join(
            f"<li><span>{html.escape(layer_name(one.place))}</span>"
            f'<i style="width: {max(0.2, 100 * one.part):.1f}%"></i>'
            f"<b>{one.part:.1%}</b></li>"
            for one in layers
        )
        parts.append(f"<div><h4>{_KINDS[kind]}: above 0</h4><ul>{bars}</ul></div>")
    return f'<div class="active-bars">{"".join(parts)}</div>'


def build_reading(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> gr.Textbox:
    """Lay out the view and wire it; returns the text that is read."""
    inspector = Inspector(registry, limits)
    points = inspector.points(registry.default(), "") if registry.default() else ()
    first = choices(points) if points else (Choice([], None),) * 3
    gr.Markdown(
        "Let a model read a text, and see which of its neurons fire at which byte. BDH's neurons are silent most of "
        "the time, so that each can be about something."
    )
    text = gr.Textbox(
        label="Text to read",
        info=inspector.allowed(points),
        placeholder="In the beginning, ",
        lines=3,
        max_lines=10,
        elem_id="reading-text",
    )
    count = gr.Slider(
        0,
        MOST_WRITTEN,
        0,
        step=10,
        label="Then let the model write, bytes",
        info="the same each time after the same text",
        elem_id="reading-count",
    )
    gr.Examples(
        [list(example) for example in EXAMPLES],
        [text, count],
        label="Examples",
        example_labels=[str(example[0]).replace("\n", " ⏎ ")[:60] for example in EXAMPLES],
        api_visibility="private",
    )
    with gr.Row():
        go = gr.Button("Read", variant="primary", scale=2, min_width=140, elem_id="reading-go")
        stop = gr.Button("Stop", variant="stop", min_width=90, interactive=False, elem_id="reading-stop")
    with gr.Row():
        layer, kind, head = (
            gr.Dropdown(
                choice.options, value=choice.value, label=label, min_width=width, elem_id=f"reading-{label.lower()}"
            )
            for choice, label, width in zip(first, ("Layer", "Neurons", "Head"), (200, 230, 120), strict=True)
        )
    progress = gr.HTML(_line(_NOTHING), elem_classes="flush", elem_id="reading-progress")
    told = gr.HTML(elem_classes="flush", elem_id="reading-told")
    shown = gr.HTML(
        None,
        html_template=reader.TEMPLATE,
        js_on_load=reader.DRAW,
        apply_default_css=False,
        elem_classes="flush",
        elem_id="reading-shown",
    )
    gr.HTML(tint.legend(own=True), elem_classes="flush")
    bars = gr.HTML(elem_classes="flush", elem_id="reading-active")
    with gr.Row(equal_height=True, visible=False) as pin:
        neuron = gr.Number(label="Neuron", precision=0, minimum=0, min_width=110, elem_id="reading-neuron")
        corpus = gr.Dropdown(
            choices=[(f"all shipped texts, {CORPUS_BYTES // max(1, len(lab.corpus_names())):,} bytes of each", "all")]
            + [(f"{name}, {CORPUS_BYTES:,} bytes", name) for name in lab.corpus_names()],
            value=ALL_CORPORA,
            label="Search in",
            scale=2,
            min_width=270,
            elem_id="reading-corpus",
        )
        find = gr.Button("Find the bytes that fire it", min_width=180, elem_id="reading-find")
    seeking = gr.HTML(elem_classes="flush", elem_id="reading-seeking")
    where = gr.HTML(elem_classes="flush", elem_id="reading-where")
    with gr.Column(visible=False) as taken:
        take = gr.Button("Make files to take along (NPZ, CSV, PNG)", size="sm", elem_id="reading-take")
        files = gr.File(label="The reading", visible=False, interactive=False, elem_id="reading-files")
    last, fired = gr.State(None), gr.State(None)

    def looked_at(
        id: str | None, visitor: Owner, heard: Heard, layer: str, kind: str, head: int
    ) -> Generator[tuple[Any, ...], None, None]:
        for told in inspector.read(id, visitor, heard, layer, kind, head):
            if isinstance(told, str):
                yield _line(told), *(gr.skip(),) * 7
                continue
            picture = lab.raster(told)
            yield (
                "",
                summary(heard, told, picture, inspector.title(id, visitor)),
                reader.drawn(told, picture, heard.heard_bytes),
                active_bars(told.active), gr.Row(visible=True), gr.Column(visible=True), gr.File(visible=False), heard,
            )  # fmt: skip

    @whole
    def on_read(
        request: gr.Request, secret: str, id: str | None, text: str, count: float | None, layer: str, kind: str,
        head: int,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        with reported():
            data, more = inspector.text(text, count)
            visitor = identify(secret, request)
            at, running = (layer, kind, head), (gr.Button(interactive=False), gr.Button(interactive=True))
            yield _line("getting ready"), *(gr.skip(),) * 7, *running
            with closing(inspector.go_on(id, visitor, data, more)) as writing:
                for told in writing:
                    if isinstance(told, str):
                        yield _line(told), *(gr.skip(),) * 7, *running
                    elif isinstance(told, SoFar):
                        # For a look beside the writing there may be no room.
                        with suppress(HatcheryError), closing(looked_at(id, visitor, told.heard, *at)) as looks:
                            for update in looks:
                                yield gr.skip(), *update[1:4], *(gr.skip(),) * 4, *running
                    else:
                        yield *(gr.skip(),) * 7, told, *running

    @whole
    def on_look(
        request: gr.Request, secret: str, id: str | None, heard: Heard | None, layer: str, kind: str, head: int
    ) -> Iterator[tuple[Any, ...]]:
        if heard is None:
            return
        with reported(), closing(looked_at(id, identify(secret, request), Heard(*heard), layer, kind, head)) as looks:
            for update in looks:
                yield *update, gr.Button(interactive=False), gr.Button(interactive=True)
            yield *(gr.skip(),) * 8, gr.Button(interactive=True), gr.Button(interactive=False)

    def on_place(request: gr.Request, secret: str, id: str | None, layer: str, kind: str, head: int) -> tuple[Any, ...]:
        with reported():
            can = choices(inspector.points(id, identify(secret, request)), layer, kind, head)
        return tuple(gr.Dropdown(choices=choice.options, value=choice.value) for choice in can)

    def on_model(
        request: gr.Request, secret: str, id: str | None, heard: Heard | None, layer: str, kind: str, head: int
    ) -> tuple[Any, ...]:
        """What was seen in another model is not this one's; the same text is read again with it."""
        chosen = on_place(request, secret, id, layer, kind, head)
        with reported():
            info = inspector.allowed(inspector.points(id, identify(secret, request)))
        line = _line("getting ready" if heard else _NOTHING)
        hidden = gr.Row(visible=False), gr.Column(visible=False)
        return (*chosen, gr.Textbox(info=info), line, "", None, "", *hidden, "", "", None)

    def on_wanted(event: gr.EventData) -> tuple[int, str]:
        return _pointed(event), _line("getting ready")

    @whole
    def on_find(
        request: gr.Request, secret: str, id: str | None, layer: str, kind: str, head: int, neuron: float | None,
        corpus: str,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        with reported():
            running = gr.Button(interactive=False), gr.Button(interactive=True)
            yield _line("getting ready"), gr.skip(), gr.skip(), *running
            found = inspector.find(id, identify(secret, request), f"{layer}.{kind}", head, neuron, corpus)
            with closing(found) as looks:
                for line, fires in looks:
                    yield line, firing.markup(fires) if fires else "", (id, fires), *running
            yield *(gr.skip(),) * 3, gr.Button(interactive=True), gr.Button(interactive=False)

    def on_take(
        request: gr.Request, secret: str, id: str | None, heard: Heard | None, layer: str, kind: str, head: int,
        found: tuple[str, firing.Firings | None] | None,
    ) -> gr.File:  # fmt: skip
        with reported():
            if heard is None:
                raise DataError("nothing was read yet; read a text first")
            who, fires = identify(secret, request), found[1] if found and found[0] == id else None
            return gr.File(inspector.files(id, who, Heard(*heard), layer, kind, head, fires), visible=True)

    worked: dict[str, Any] = QUICK | {
        "concurrency_limit": min(_AT_ONCE, limits.max_at_once), "concurrency_id": "inspecting"
    }  # fmt: skip
    place, running = [layer, kind, head], [go, stop]
    seen = [progress, told, shown, bars, pin, taken, files, last]
    chosen: dict[str, Any] = {"fn": on_place, "inputs": [owner, model, *place], "outputs": place, **QUICK | LATEST}
    again: dict[str, Any] = {
        "fn": on_look, "inputs": [owner, model, last, *place], "outputs": [*seen, *running], **worked | LATEST
    }  # fmt: skip
    search: dict[str, Any] = {
        "fn": on_find, "inputs": [owner, model, *place, neuron, corpus], "outputs": [seeking, where, fired, *running],
        **worked | LATEST,
    }  # fmt: skip
    changed = model.change(
        on_model, [owner, model, last, *place],
        [*place, text, progress, told, shown, bars, pin, taken, seeking, where, fired], **QUICK,
    )  # fmt: skip
    read = gr.on([go.click, text.submit], on_read, [owner, model, text, count, *place], [*seen, *running], **worked)
    working = [
        read,
        read.success(**again),  # at the layer and head that are chosen by then
        changed.success(**again),
        *(one.input(**chosen).success(**again) for one in (layer, kind)),
        head.input(**again),
        shown.submit(on_wanted, None, [neuron, seeking], **QUICK).success(**search),
        gr.on([find.click, neuron.submit], **search),
    ]
    shown.select(_pointed, None, neuron, **QUICK, trigger_mode="multiple")
    idle: Callable[[], Any] = lambda: (gr.Button(interactive=True), gr.Button(interactive=False))  # noqa: E731
    for event in working:
        event.failure(lambda: ("", "", *idle()), None, [progress, seeking, *running], **QUICK)
    stopped: Callable[[], Any] = lambda: (_line("Stopped."), "", *idle())  # noqa: E731
    stops(stop, stopped, [progress, seeking, *running], working)
    take.click(on_take, [owner, model, last, *place, fired], files, **worked | {"show_progress": "minimal"})
    return text


def _pointed(event: gr.EventData) -> int:
    """The neuron that was pointed at in the picture."""
    neuron = event._data.get("neuron") if isinstance(event._data, dict) else None
    return neuron if isinstance(neuron, int) else 0


def _told(parts: Iterator[Any], total: int, before: int = 0) -> Generator[Any, None, None]:
    """What comes of hearing, in turn with other visitors' work: words about how far it is, and the last part."""
    with closing(batched(parts)) as batches:
        for batch in batches:
            for part in batch:
                yield f"reading: {before + part:,} of {total:,} bytes" if isinstance(part, int) else part


def _known(model: str | None) -> str:
    if not isinstance(model, str) or not model:
        raise DataError("no model is chosen; choose one above")
    return model


def _head(head: Any) -> int:
    return head if isinstance(head, int) else 0


def _line(words: str) -> str:
    return f'<p class="summary">{html.escape(words)}</p>'


CSS = (
    firing.CSS
    + """
.active-bars { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 8px 24px;
  margin: 8px 0; font-size: var(--text-sm); }
.active-bars h4 { margin: 0 0 4px; font-size: var(--text-sm); font-weight: 600; }
.active-bars ul { list-style: none; margin: 0; padding: 0; }
.active-bars li { display: grid; grid-template-columns: 8.5rem 1fr 3.5rem; gap: 8px; align-items: center;
  margin: 2px 0; }
.active-bars li i { height: 10px; border-radius: 2px; background: var(--color-accent); justify-self: start; }
.active-bars li b { font-weight: 400; text-align: right; font-variant-numeric: tabular-nums; }
"""
)
"""The looks, for the page's style sheet, with those of what fires a neuron."""
