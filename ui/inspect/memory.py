"""The view Memory: a head's Hebbian state as a picture, what a byte writes into it and reads from it, its synapses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import gradio as gr

from bdh.errors import DataError, HatcheryError
from bdh.models import Model
from lab import memory as lab
from lab.memory import Place, Trace, Wiring

from ..limits import Limits
from ..markup import bar
from ..owner import identify, reported
from ..parting import Folders
from ..registry import Owner, Registry
from ..steps import in_steps, kept_or, whole
from .named import of_model
from .recent import Recent, known_by
from .remembered import (
    ALL,
    BY_NUMBER,
    BY_STRENGTH,
    CSS,
    SHOWN,
    beside,
    exchange,
    growth_charts,
    growth_note,
    heat,
    ordered,
    strip,
    summary,
    synapse_table,
)
from .taken import memory_files
from .turns import LATEST, LOOK, LOOK_AGAIN, LOOKING, QUICK, stops

__all__ = ["CSS", "build_memory"]

MOST_BYTES = 4_000
"""Of a text that is looked into: seconds of hearing."""
TEXTS = [
    'User: What does "river" mean?\nBot: "River" means a large natural stream of water.\n'
    'User: What does "lantern" mean?\nBot: "Lantern" means',
    "In the beginning God created the heavens and the earth. Now the earth was formless and empty. Darkness was on the "
    "surface of the deep. God\u2019s Spirit was hovering over the surface of the waters.",
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    return area(",
    "abcabcabcabcabcabcabcabcabcabcabcabc",
]
_OTHER = "In the beginning God created the heavens and the earth. Now the earth was dry and full of light."
_KEPT_BYTES = 200_000_000
"""Of what was heard lately, for all visitors together."""
_STOPPED = '<p class="summary">Stopped.</p>'
_AGAIN = "the memory is not kept any more, so the text is heard again"
_PICK = """
element.tabIndex = 0;
element.setAttribute('role', 'group');
element.setAttribute('aria-label',
  'The text. Arrow keys choose the byte after which the memory is shown, Home and End the first and the last one');
const heard = document.createElement('span');
heard.setAttribute('aria-live', 'polite');
heard.className = 'only-read';
element.after(heard);
const units = () => [...element.querySelectorAll('[data-at]')];
let waiting = null;
const choose = (unit, soon) => {
  if (!unit) return;
  units().forEach((one) => one.classList.toggle('here', one === unit));
  unit.scrollIntoView({ block: 'nearest', inline: 'nearest' });
  heard.textContent = unit.title;
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger('click', { at: Number(unit.dataset.at) }), soon);
};
element.addEventListener('click', (event) => choose(event.target.closest('[data-at]'), 0));
element.addEventListener('keydown', (event) => {
  const all = units(), at = all.findIndex((one) => one.classList.contains('here'));
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 10, ArrowDown: at + 10,
    Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || !all.length) return;
  event.preventDefault();
  choose(all[Math.max(0, Math.min(all.length - 1, to))], 150);
});
"""


class Look(NamedTuple):
    """What is looked into; small, so that a page can hold it."""

    model: str
    place: str
    head: int
    text: str


class Memories:
    """Traces of what was looked into, heard again when they are no longer kept."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self.registry, self.limits = registry, limits
        self._kept: Recent[Trace] = Recent(_KEPT_BYTES, lambda trace: trace.size_bytes)

    def places(self, model: str | None, owner: Owner) -> tuple[Place, ...]:
        """The layers of a model with a Hebbian memory."""
        return lab.places(self.registry.config(model or "", owner))

    def place(self, model: str | None, name: str | None, owner: Owner) -> Place:
        """A layer by its name.

        Raises:
            HatcheryError: the model has no such layer.
        """
        found = self.places(model, owner)
        if not found:
            raise DataError(lab.without_places(self.registry.config(model or "", owner)))
        for place in found:
            if place.name == name:
                return place
        raise DataError(f"this model has no layer {name!r:.60}; it has {', '.join(place.name for place in found[:6])}")

    def hearing(self, look: Look, owner: Owner, *, again: bool = False) -> Iterator[Any]:
        """How far hearing is, as (part, note), and at last a list of the trace and its wiring.

        Args:
            again: it was heard before, so where it is no longer kept the note says so.

        Raises:
            HatcheryError: there is no such layer or head, or the text is too short or too long.
        """
        place = self.place(look.model, look.place, owner)
        data = self.data(look.text, place)
        if not isinstance(look.head, int) or isinstance(look.head, bool) or not 0 <= look.head < place.heads:
            raise DataError(f"the head is {look.head!r:.40}; this layer has 1 to {place.heads}")
        why = f"{_AGAIN}: " if again else ""

        def key_of(model: Model[Any]) -> tuple[Any, ...]:
            return known_by(model), place.name, look.head, data

        def kept() -> list[Any] | None:
            with self.registry.lease(look.model, owner) as model:
                trace = self._kept.get(key_of(model))
                return None if trace is None else [trace, lab.wiring(model, place, look.head)]

        def work(tell: Any, give: Any) -> None:
            with self.registry.lease(look.model, owner) as model, self.registry.reserve(2 * model.state_bytes()):
                wiring = lab.wiring(model, place, look.head)
                key = key_of(model)
                if (trace := self._kept.get(key)) is None:
                    tell(0.0, f"{why}hearing {len(data):,} bytes")
                    trace = lab.listen(
                        model,
                        data,
                        place,
                        look.head,
                        progress=lambda done, total: tell(done / total, f"{why}heard {done:,} of {total:,} bytes"),
                    )
                    self._kept.put(key, trace)
                give([trace, wiring])

        return kept_or(kept, work, LOOKING)

    def heard(self, look: Look, owner: Owner) -> tuple[Trace, Wiring]:
        """The trace of a look, with its wiring.

        Raises:
            HatcheryError: as `hearing`.
        """
        with closing(self.hearing(look, owner)) as steps:  # type: ignore[type-var]
            (found,) = [step for step in steps if isinstance(step, list)]
        return found[0], found[1]

    def bounds(self, place: Place) -> tuple[int, int]:
        """The least and the most bytes of a text that is looked into."""
        return 2 * place.step_bytes, min(MOST_BYTES, self.limits.max_prompt_bytes, lab.most_bytes(place))

    def data(self, text: str | None, place: Place) -> bytes:
        """The bytes of a text.

        Raises:
            DataError: too few or too many.
        """
        data = text.encode("utf-8", errors="replace") if isinstance(text, str) else b""
        least, most = self.bounds(place)
        if not least <= len(data) <= most:
            raise DataError(f"the text has {len(data):,} bytes; give {least:,} to {most:,}")
        return data

    def allowed(self, place: Place | None) -> str:
        """How many bytes a text may have, in words; nothing where there is no memory."""
        return "{:,} to {:,} bytes".format(*self.bounds(place)) if place else ""


def build_memory(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> None:
    """Lay out the view and wire it.

    Args:
        model: the choice of the tab.
    """
    memories, folders = Memories(registry, limits), Folders("memory-", kept=64)
    first = lab.places(registry.config(registry.default(), "")) if registry.default() else ()
    met = _first(first)
    gr.Markdown(
        "A BDH model remembers in sums of outer products: each byte adds what its neurons stand for, and reads what "
        "earlier bytes left there. Choose a layer and a head, let it hear a text, and look at that memory at any byte."
    )
    without = lab.without_places(registry.config(registry.default(), "")) if registry.default() and not first else ""
    none = gr.Markdown(without, visible=bool(without), elem_id="memory-none")
    with gr.Column(visible=not without) as form:
        with gr.Row():
            layer = gr.Dropdown(
                _layers(first), value=met.name if met else None, label="Layer", min_width=200, elem_id="memory-layer"
            )
            head = gr.Dropdown(_heads(met), value=_last_head(met), label="Head", min_width=140, elem_id="memory-head")
        text = gr.Textbox(
            TEXTS[0], label="Text", info=memories.allowed(met), lines=3, max_lines=8, elem_id="memory-text",
        )  # fmt: skip
        gr.Examples(
            [[one] for one in TEXTS],
            [text],
            label="Texts",
            example_labels=["Dialogue", "Bible", "Python", "abcabc"],
            api_visibility="private",
        )
        with gr.Row():
            go = gr.Button("Look into the memory", variant="primary", scale=2, min_width=160, elem_id="memory-go")
            stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="memory-stop")
    progress = gr.HTML(elem_classes="flush", elem_id="memory-progress")
    line = gr.HTML(elem_classes="flush", elem_id="memory-line")
    looked, against = gr.State(None), gr.State(None)
    with gr.Column(visible=False, elem_id="memory-found") as shown:
        at = gr.Slider(1, 2, 2, step=1, label="After byte", info="or press a character below", elem_id="memory-at")
        paper = gr.HTML(js_on_load=_PICK, elem_classes="flush", elem_id="memory-strip")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Picture", id="picture"):
                with gr.Row():
                    order = gr.Radio([BY_STRENGTH, BY_NUMBER], value=BY_STRENGTH, label="Neurons", min_width=220)
                    count = gr.Radio(list(SHOWN), value=ALL, label="Zoom", info="neurons shown", min_width=220,
                                     elem_id="memory-zoom")  # fmt: skip
                    start = gr.Slider(0, 1, 0, step=1, label="From", info="zoomed in, where it begins", min_width=200)
                picture = gr.HTML(elem_classes="flush", elem_id="memory-picture")
            with gr.Tab("Written and read", id="exchange"):
                told = gr.HTML(elem_classes="flush", elem_id="memory-exchange")
            with gr.Tab("Synapses", id="synapses"):
                table = gr.HTML(elem_classes="flush", elem_id="memory-synapses")
            with gr.Tab("Growth", id="growth"):
                with gr.Row(elem_id="memory-growth"):
                    curves = [gr.Plot(show_label=False, min_width=260) for _ in range(3)]
                grown = gr.HTML(elem_classes="flush")
            with gr.Tab("Two memories", id="two"):
                other = gr.Textbox(_OTHER, label="Another text", info="heard from an empty memory, too", lines=3,
                                   max_lines=8, elem_id="memory-other")  # fmt: skip
                compare = gr.Button("Compare", variant="primary", elem_id="memory-compare")
                both = gr.HTML(elem_classes="flush", elem_id="memory-both")
        take = gr.Button("Make files to take along (NPZ, CSV, PNG)", size="sm", elem_id="memory-take")
        files = gr.File(label="The memory", visible=False, interactive=False, elem_id="memory-files")

    zoom = [order, start, count]
    views = [paper, picture, told, table]

    def at_byte(trace: Trace, wiring: Wiring, byte: float | None, *zoomed: Any) -> list[str]:
        written = _writes(trace, byte)
        weights = trace.attention(written - 1).numpy()
        return [
            strip(trace, written - 1, weights),
            heat(trace, wiring, written, *zoomed),
            exchange(trace, written - 1, weights),
            synapse_table(trace, wiring, written),
        ]

    @whole
    def on_look(
        request: gr.Request, secret: str, model: str, layer: str, head: int, text: str, *zoomed: Any
    ) -> Iterator[dict[Any, Any]]:
        with reported():
            yield {progress: bar(0, "getting ready"), **busy()}
            look, who = Look(model, layer, head, text), identify(secret, request)
            with closing(memories.hearing(look, who)) as steps:  # type: ignore[type-var]
                for step in steps:
                    if isinstance(step, tuple):
                        yield {progress: bar(*step), **busy()}
                        continue
                    trace, wiring = step
                    size = len(trace.data)
                    step_bytes = trace.place.step_bytes
                    whole = trace.writes * step_bytes
                    yield {
                        line: summary(trace, registry.title(model, who)),
                        looked: tuple(look),
                        at: gr.Slider(minimum=step_bytes, maximum=whole, value=whole, step=step_bytes),
                        start: gr.Slider(maximum=max(1, trace.place.neurons - 16), value=0),
                        **dict(zip(views, at_byte(trace, wiring, size, zoomed[0], 0, zoomed[2]), strict=True)),
                        **dict(zip(curves, growth_charts(trace), strict=True)),
                        grown: growth_note(trace),
                        both: "",
                        against: None,
                        files: gr.File(visible=False),
                        shown: gr.Column(visible=True),
                        **idle(),
                    }

    def on_other_head(request: gr.Request, secret: str, seen: Any, *given: Any) -> Iterator[dict[Any, Any]]:
        if seen:
            yield from on_look(request, secret, *given)
        else:  # nothing was looked into that another head could be seen of
            yield {line: gr.skip()}

    def idle() -> dict[Any, Any]:
        return {progress: "", go: gr.Button(interactive=True), stop: gr.Button(interactive=False)}

    def busy() -> dict[Any, Any]:
        return {go: gr.Button(interactive=False), stop: gr.Button(interactive=True)}

    def look_again(
        request: gr.Request, secret: str, looked: Any, show: Callable[[Trace, Wiring], dict[Any, Any]]
    ) -> Iterator[dict[Any, Any]]:
        """What is shown of a memory that was looked into before; if need be it is heard again."""
        if not looked:
            return
        with reported():
            who, look = identify(secret, request), Look(*looked)
            with closing(memories.hearing(look, who, again=True)) as steps:  # type: ignore[type-var]
                told = False
                for step in steps:
                    if isinstance(step, tuple):
                        told = True
                        yield {progress: bar(*step), **busy()}
                    else:
                        trace, wiring = step
                        yield {**show(trace, wiring), **(idle() if told else {})}

    @whole
    def on_at(
        request: gr.Request, secret: str, looked: Any, byte: float | None, *zoomed: Any
    ) -> Iterator[dict[Any, Any]]:
        yield from look_again(
            request, secret, looked,
            lambda trace, wiring: {
                **dict(zip(views, at_byte(trace, wiring, byte, *zoomed), strict=True)), files: gr.File(visible=False)
            },
        )  # fmt: skip

    @whole
    def on_zoom(
        request: gr.Request, secret: str, looked: Any, byte: float | None, *zoomed: Any
    ) -> Iterator[dict[Any, Any]]:
        yield from look_again(
            request, secret, looked,
            lambda trace, wiring: {
                picture: heat(trace, wiring, _writes(trace, byte), *zoomed), files: gr.File(visible=False)
            },
        )  # fmt: skip

    def on_pick(event: gr.EventData, looked: Any, byte: float) -> float:
        picked = event._data.get("at") if isinstance(event._data, dict) else None
        if isinstance(picked, bool) or not isinstance(picked, int) or not 1 <= picked <= MOST_BYTES or not looked:
            return byte
        return picked

    @whole
    def on_compare(request: gr.Request, secret: str, looked: Any, other: str) -> Iterator[dict[Any, Any]]:
        if not looked:
            return
        with reported():
            who, look = identify(secret, request), Look(*looked)
            hidden = gr.File(visible=False)
            yield {both: "", against: None, files: hidden, progress: bar(0.0, "hearing the other text"), **busy()}
            heard: list[tuple[Trace, Wiring]] = []
            yield from hear(who, [look, look._replace(text=other)], heard)
            memory, second = (lab.now(trace, wiring, trace.writes) for trace, wiring in heard)
            both_of = look._replace(text=other)
            yield {both: beside(memory, second, ("the text", "the other")), against: tuple(both_of), **idle()}

    def hear(who: Owner, looks: Sequence[Look], heard: list[tuple[Trace, Wiring]]) -> Iterator[dict[Any, Any]]:
        """How far hearing is; what was heard comes to the list. The first was heard before."""
        for look in looks:
            with closing(memories.hearing(look, who, again=look is looks[0])) as steps:  # type: ignore[type-var]
                for step in steps:
                    if isinstance(step, tuple):
                        yield {progress: bar(*step), **busy()}
                    else:
                        heard.append((step[0], step[1]))

    @whole
    def on_take(
        request: gr.Request, secret: str, looked: Any, other: Any, byte: float | None, *zoomed: Any
    ) -> Iterator[dict[Any, Any]]:
        if not looked:
            return
        with reported():
            who, look = identify(secret, request), Look(*looked)
            yield {progress: bar(0.0, "making files"), **busy()}
            heard: list[tuple[Trace, Wiring]] = []
            # Another head may have been chosen while the other text was heard.
            held = Look(*other) if other and Look(*other)[:3] == look[:3] else None
            yield from hear(who, [look, *([held] if held else [])], heard)
            (trace, wiring), title = heard[0], registry.title(look.model, who)
            written = _writes(trace, byte)

            def write(tell: Any, give: Any) -> None:
                neurons = ordered(lab.now(trace, wiring, written), *zoomed)
                paths = memory_files(folders.new(), title, trace, wiring, written, neurons, *heard[1:], tell=tell)
                give(of_model(title, paths))

            with closing(in_steps(write, LOOKING)) as steps:  # type: ignore[type-var]
                for step in steps:
                    if isinstance(step, list):
                        yield {files: gr.File(step, visible=True), **idle()}
                    else:
                        yield {progress: bar(*step), **busy()}

    def on_model(request: gr.Request, secret: str, model: str) -> list[Any]:
        with reported():
            who = identify(secret, request)
            found = memories.places(model, who)
            words = "" if found else lab.without_places(registry.config(model, who))
            met = _first(found)
        return [
            gr.Dropdown(_layers(found), value=met.name if met else None),
            gr.Dropdown(_heads(met), value=_last_head(met)),
            gr.Markdown(words, visible=not found),
            gr.Column(visible=bool(found)),
            gr.Column(visible=False),
            "",
            None,
            gr.Textbox(info=memories.allowed(met)),
        ]

    def on_layer(request: gr.Request, secret: str, model: str, layer: str, head: int) -> list[Any]:
        try:
            place = memories.place(model, layer, identify(secret, request))
        except HatcheryError:  # the model was changed since
            return [gr.skip(), gr.skip()]
        chosen = min(head, place.heads - 1) if isinstance(head, int) else 0
        return [gr.Dropdown(_heads(place), value=chosen), gr.Textbox(info=memories.allowed(place))]

    asked = [model, layer, head, text, *zoom]
    told_of = [progress, line, looked, at, start, *views, *curves, grown, both, against, files, shown, go, stop]
    looking = gr.on([go.click, text.submit], on_look, [owner, *asked], told_of, **LOOK)
    other_layer = layer.input(on_layer, [owner, model, layer, head], [head, text], **QUICK | LATEST)
    running, zoomed = [progress, go, stop], [owner, looked, at, *zoom]
    working = [
        looking,
        head.input(on_other_head, [owner, looked, *asked], told_of, **LOOK | LATEST),
        other_layer.then(on_other_head, [owner, looked, *asked], told_of, **LOOK | LATEST),
        at.change(on_at, zoomed, [*views, files, *running], **LOOK_AGAIN | LATEST),
        gr.on(
            [order.input, count.input, start.release],
            on_zoom,
            zoomed,
            [picture, files, *running],
            **LOOK_AGAIN | LATEST,
        ),
        compare.click(on_compare, [owner, looked, other], [both, against, files, *running], **LOOK),
        take.click(on_take, [owner, looked, against, at, *zoom], [files, *running], **LOOK_AGAIN),
    ]
    for event in working:
        event.failure(lambda: ["", *_idle()], None, running, **QUICK)
    stops(stop, lambda: [_STOPPED, *_idle()], running, working)
    model.change(on_model, [owner, model], [layer, head, none, form, shown, line, looked, text], **QUICK)
    paper.click(on_pick, [looked, at], at, **QUICK, trigger_mode="multiple")


def _idle() -> list[gr.Button]:
    return [gr.Button(interactive=True), gr.Button(interactive=False)]


def _layers(places: Sequence[Place]) -> list[tuple[str, str]]:
    return [(place.title, place.name) for place in places]


def _first(places: Sequence[Place]) -> Place | None:
    """What is looked into if nobody chose: the last layer whose memory lasts."""
    return next((place for place in reversed(places) if not place.span), None)


def _last_head(place: Place | None) -> int:
    """The head that is looked into if nobody chose: where heads are damped, the one that keeps most."""
    return place.decay.index(max(place.decay)) if place and place.decay else 0


def _heads(place: Place | None) -> list[tuple[str, int]]:
    if place is None:
        return [("1", 0)]
    return [
        (f"{index + 1}" + (f" \u00b7 keeps {place.decay[index]:.2%}" if place.decay else ""), index)
        for index in range(place.heads)
    ]


def _writes(trace: Trace, byte: float | None) -> int:
    """The writes that a byte of the slider stands for, the one at it included."""
    wanted = int(byte) if isinstance(byte, (int, float)) and byte == byte else len(trace.data)
    return min(max(-(-wanted // trace.place.step_bytes), 1), trace.writes)
