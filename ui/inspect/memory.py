"""The view Memory: a head's Hebbian state as a picture, what a byte writes into it and reads from it, its synapses."""

from __future__ import annotations

import html
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh.errors import DataError, HatcheryError
from bdh.text import Utf8Assembler
from lab import memory as lab
from lab.memory import Place, Trace, Wiring

from ..kept import in_steps
from ..limits import Limits
from ..markup import bar
from ..owner import identify, reported
from ..registry import Owner, Registry, size_text
from . import field
from .field import number

if TYPE_CHECKING:
    import altair as alt

MOST_BYTES = 4_000
"""Of a text that is looked into: seconds of hearing."""
TEXTS = [
    'User: What does "river" mean?\nBot: "River" means a large natural stream of water.\n'
    'User: What does "lantern" mean?\nBot: "Lantern" means',
    "In the beginning God created the heavens and the earth. Now the earth was formless and empty. Darkness was on the "
    "surface of the deep. God\u2019s Spirit was hovering over the surface of the waters.",
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    return area(width,",
    "abcabcabcabcabcabcabcabcabcabcabcabc",
]
_OTHER = "In the beginning God created the heavens and the earth. Now the earth was dry and full of light."
_BY_STRENGTH, _BY_NUMBER = "strongest first", "by number"
_ALL = "all"
_SHOWN = (_ALL, "256", "64", "16")
_MOST_COLUMNS = 1_024
"""Of a picture; of more neurons, neighbours share one."""
_NAMED_NEURONS = 16
"""Up to so many neurons have their numbers below the picture."""
_BEFORE, _AFTER = 600, 60
"""Writes around the chosen one that are shown as text."""
_KEPT_BYTES = 200_000_000
"""Of what was heard lately, for all visitors together."""
_INK = "#78879f"
_PICK = """
element.addEventListener('click', event => {
  const unit = event.target.closest('[data-at]');
  if (unit) trigger('click', { at: Number(unit.dataset.at) });
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
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int, bytes], Trace] = OrderedDict()

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

    def hearing(self, look: Look, owner: Owner) -> Iterator[Any]:
        """How far hearing is, as (part, note), and at last the trace with its wiring.

        Raises:
            HatcheryError: there is no such layer or head, or the text is too short or too long.
        """
        place = self.place(look.model, look.place, owner)
        data = self.data(look.text, place)
        if not isinstance(look.head, int) or isinstance(look.head, bool) or not 0 <= look.head < place.heads:
            raise DataError(f"the head is {look.head!r:.40}; this layer has 1 to {place.heads}")

        def work(tell: Any, give: Any) -> None:
            with self.registry.lease(look.model, owner) as model, self.registry.reserve(model.state_bytes()):
                wiring = lab.wiring(model, place, look.head)
                key = (model.checksum(), place.name, look.head, data)
                with self._lock:
                    trace = self._kept.get(key)
                    if trace is not None:
                        self._kept.move_to_end(key)
                if trace is None:
                    trace = lab.listen(
                        model,
                        data,
                        place,
                        look.head,
                        progress=lambda done, total: tell(done / total, f"heard {done:,} of {total:,} bytes"),
                    )
                    self._keep(key, trace)
                give([trace, wiring])

        return in_steps(work)

    def heard(self, look: Look, owner: Owner) -> tuple[Trace, Wiring]:
        """The trace of a look, with its wiring.

        Raises:
            HatcheryError: as `hearing`.
        """
        with closing(self.hearing(look, owner)) as steps:  # type: ignore[type-var]
            for step in steps:
                if isinstance(step, list):
                    return step[0], step[1]
        raise DataError("hearing was broken off; look again")

    def data(self, text: str | None, place: Place) -> bytes:
        """The bytes of a text.

        Raises:
            DataError: too few or too many.
        """
        data = text.encode("utf-8", errors="replace") if isinstance(text, str) else b""
        most = min(MOST_BYTES, self.limits.max_prompt_bytes, lab.most_bytes(place))
        least = 2 * place.step_bytes
        if not least <= len(data) <= most:
            raise DataError(f"the text has {len(data):,} bytes; give {least:,} to {most:,}")
        return data

    def _keep(self, key: tuple[str, str, int, bytes], trace: Trace) -> None:
        with self._lock:
            self._kept[key] = trace
            while sum(one.size_bytes for one in self._kept.values()) > _KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)


def ordered(rows: Tensor, order: str, first: float | None, shown: str) -> NDArray[np.int64]:
    """The neurons that a picture shows, from left to right."""
    count = len(rows)
    if order == _BY_STRENGTH:
        neurons = rows.norm(dim=1).argsort(descending=True, stable=True).numpy()
    else:
        neurons = np.arange(count)
    size = count if shown == _ALL or shown not in _SHOWN else min(int(shown), count)
    start = min(max(int(first or 0), 0), count - size)
    return neurons[start : start + size].astype(np.int64)


def columns(rows: Tensor, neurons: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
    """Neurons as columns (D, columns), and how many share one: of these the root of the mean of squares."""
    values = rows.numpy()[neurons]
    together = -(-len(values) // _MOST_COLUMNS)
    if together > 1:
        values = np.pad(values, ((0, -len(values) % together), (0, 0)))
        values = np.sqrt(np.square(values.reshape(-1, together, values.shape[1])).mean(1))
    return values.T, together


def heat(trace: Trace, wiring: Wiring, count: int, order: str, first: float | None, shown: str) -> str:
    """Markup of the memory after `count` writes."""
    rows = lab.now(trace, wiring, count)
    neurons = ordered(rows, order, first, shown)
    values, together = columns(rows, neurons)
    reach = field.reach_of(values)
    what = "neuron" if trace.place.excites else "query dimension"
    shared = f" {together} neighbours share a column: the root of their mean square." if together > 1 else ""
    span = f"{len(neurons):,} of {len(rows):,} {what}s" if len(neurons) < len(rows) else f"all {len(rows):,} {what}s"
    meaning = (
        f"A column is an x neuron: what the layer would read now if that neuron alone fired, in {values.shape[0]} "
        "dimensions from top to bottom. One without colour wrote nothing."
        if trace.place.excites
        else f"A column is a dimension of the query, from top to bottom the {values.shape[0]} dimensions of what is read."
    )
    named = ""
    if len(neurons) <= _NAMED_NEURONS:
        named = f'<div class="named">{"".join(f"<span>{one}</span>" for one in neurons)}</div>'
    label = f"The memory after {count} writes as a field of {values.shape[0]} by {values.shape[1]} numbers"
    return (
        f'<div class="inside">{field.picture(values, reach, label, height_rem=18, crisp=values.shape[1] < 512)}'
        f'{named}<p>{span}, {order}; {field.scale(reach)}</p><p>{meaning}{shared}</p></div>'
    )


def units(data: bytes, step_bytes: int) -> list[tuple[int, int, str]]:
    """A text in parts that are written together or are one character: first write, the one after the last, text."""
    if step_bytes > 1:
        return [
            (start // step_bytes, start // step_bytes + 1, data[start : start + step_bytes].decode(errors="replace"))
            for start in range(0, len(data) - step_bytes + 1, step_bytes)
        ]
    assembler, at = Utf8Assembler(), 0
    found = []
    for character in [one for byte in data for one in assembler.push(byte)] + list(assembler.flush()):
        found.append((at, at + len(character.raw), character.text))
        at += len(character.raw)
    return found


def visible(text: str) -> str:
    """A piece of text of which every character is seen, escaped."""
    return "".join(
        "\u21b5" if one == "\n" else html.escape(one) if one.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for one in text
    )


def named_write(trace: Trace, write: int) -> str:
    """A write in words, as markup."""
    text, step = f"<b>{visible(_text_at(trace, write))}</b>", trace.place.step_bytes
    if step > 1:
        return f"patch {write + 1} {text} (bytes {write * step + 1} to {(write + 1) * step})"
    return f"byte {write + 1} {text}"


def _text_at(trace: Trace, write: int) -> str:
    for begin, end, text in units(trace.data, trace.place.step_bytes):
        if begin <= write < end:
            return text.replace(" ", "\u2423")
    return ""


def strip(trace: Trace, write: int, weights: NDArray[Any]) -> str:
    """Markup of the text around a write; the ground says how much of what it reads comes from where."""
    largest = float(np.abs(weights).max()) if len(weights) else 0.0
    pieces = []
    for begin, end, text in units(trace.data, trace.place.step_bytes):
        if end <= write - _BEFORE or begin > write + _AFTER:
            continue
        kinds, style, told = "", "", named_write(trace, begin).replace("<b>", "").replace("</b>", "")
        if begin <= write < end:
            kinds = ' class="here"'
        elif end <= write and largest:
            part = float(weights[begin:end].sum())
            style = f' style="{field.shade(part / largest)}"' if abs(part) > 0.02 * largest else ""
            told += f" \u00b7 weight {number(part)}"
        elif begin > write:
            kinds = ' class="later"'
        shown = html.escape(text) if text == "\n" or text.isprintable() or len(text) > 1 else visible(text)
        shown = shown.replace("\n", "\u21b5\n")
        pieces.append(f'<span data-at="{end * trace.place.step_bytes}" title="{told}"{kinds}{style}>{shown}</span>')
    cut = "\u2026" if write > _BEFORE else ""
    return f'<div class="inside strip" role="group" aria-label="The text">{cut}{"".join(pieces)}</div>'


def exchange(trace: Trace, write: int, weights: NDArray[Any]) -> str:
    """Markup of what a write added to the memory, and of what it read from it before."""
    active = trace.activity[write]
    top = active.topk(min(8, int((active > 0).sum()) or 1))
    what = "neuron" if trace.place.excites else "query dimension"
    fired = int((active > 0).sum())
    strongest = "".join(
        f"<li>{what} {int(i)} <small>{number(float(a))}</small></li>"
        for a, i in zip(top.values, top.indices, strict=True)
        if a > 0
    )
    value, read = trace.value[write].numpy(), trace.read(write).numpy()
    rows: list[str] = []
    order = np.argsort(-np.abs(weights))[:8]
    total = float(np.abs(weights).sum())
    for j in order:
        if weights[j]:
            rows.append(f"<li>{named_write(trace, int(j))} <small>{number(weights[j])}</small></li>")
    reading = (
        f"<p>The read is the sum of the values written before, each times a weight (queries · keys, and what damping "
        f"left); the sizes of the weights add up to {number(total)}. Negative ones take away.</p><ol>{''.join(rows)}</ol>"
        f"{_vector(read, 'What was read, before the norm')}"
        if rows
        else "<p>Nothing: nothing that it asks for was written before.</p>"
    )
    return (
        '<div class="inside pair"><section><h4>Written at this byte</h4>'
        f"<p>{fired:,} of {len(active):,} {what}s fire ({fired / len(active):.1%}); each takes the value below, times "
        f"its activity. The strongest:</p><ol>{strongest}</ol>{_vector(value, 'The value')}</section>"
        f"<section><h4>Read at this byte</h4>{reading}</section></div>"
    )


def _vector(values: NDArray[Any], label: str) -> str:
    reach = field.reach_of(values)
    drawn = field.picture(values[None], reach, label, height_rem=1.4)
    return f'<p class="vector">{label}, {len(values)} dimensions {field.scale(reach)}</p>{drawn}'


def synapse_table(trace: Trace, wiring: Wiring, count: int) -> str:
    """Markup of the strongest synapses after `count` writes."""
    found = lab.synapses(trace, wiring, count)
    if not found:
        return '<div class="report"><p>There are none yet: nothing was written.</p></div>'
    names = ("x neuron", "y neuron") if wiring.excites is not None else ("row", "column")
    rows = "".join(
        f'<tr><th scope="row">{one.x}</th><td>{one.y}</td><td>{number(one.strength)}</td>'
        f"<td class='text'>{named_write(trace, one.writer)}</td><td>{one.share:.0%}</td></tr>"
        for one in found
    )
    told = (
        "Strength: how much y neuron j is excited, before the layer's norm divides it, if x neuron i alone fires next. "
        if wiring.excites is not None
        else "This kind of model has no neurons behind its memory: these are its largest entries. "
    )
    return (
        f'<div class="report"><div class="wide"><table><thead><tr><th>{names[0]} i</th><th>{names[1]} j</th>'
        "<th>strength</th><th>written most by</th><th>its part</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div><p>{told}A synapse is a sum over all that was written, so its part is "
        "exact; above 100 % others took away from it.</p></div>"
    )


def growth_charts(trace: Trace) -> list[alt.Chart | Any]:
    """Three curves against the bytes heard: norm, effective rank, rows ever written."""
    grown = lab.growth(trace)
    most = min(trace.place.neurons, trace.place.width)
    return [
        _curve(grown.heard_bytes, grown.norm, "norm"),
        _curve(grown.heard_bytes, grown.rank, f"effective rank, of {most}"),
        _curve(grown.heard_bytes, [100 * part for part in grown.written], "rows ever written, %"),
    ]


def _curve(heard: Sequence[int], values: Sequence[float], label: str) -> alt.Chart | Any:
    import altair as alt  # noqa: PLC0415 - the page starts without it

    points = alt.InlineData([{"bytes": at, "value": value} for at, value in zip(heard, values, strict=True)])
    plain = {"labelColor": _INK, "titleColor": _INK}
    return (
        alt.Chart(points)
        .mark_line(color="#d96208", point=len(values) < 4)
        .encode(
            x=alt.X("bytes:Q", title="bytes heard", axis=alt.Axis(format=",d", tickCount=4)),
            y=alt.Y("value:Q", title=label, scale=alt.Scale(zero=True)),
            tooltip=[alt.Tooltip("bytes:Q", format=","), alt.Tooltip("value:Q", format=".4g", title=label)],
        )
        .properties(width="container", height=190, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
        .configure(background="transparent")
        .configure_axis(**plain, gridColor=_INK, gridOpacity=0.25, domainColor=_INK, tickColor=_INK)
        .configure_view(stroke=None)
    )


def beside(first: Tensor, second: Tensor, names: tuple[str, str]) -> str:
    """Markup of two memories of one head and of their difference, neurons in one order and colours in one scale."""
    alike = lab.likeness(first, second)
    order = torch.maximum(first.norm(dim=1), second.norm(dim=1)).argsort(descending=True, stable=True).numpy()
    drawn = {f"after {names[0]}": first, f"after {names[1]}": second, "the second less the first": second - first}
    fields = {name: columns(rows, order)[0] for name, rows in drawn.items()}
    reach = field.reach_of(*fields.values())
    pictures = "".join(
        f"<figure><figcaption>{name} <small>norm {number(float(drawn[name].norm()))}</small></figcaption>"
        f"{field.picture(values, reach, name, height_rem=9, crisp=values.shape[1] < 512)}</figure>"
        for name, values in fields.items()
    )
    apart = (second - first).norm(dim=1)
    top = ", ".join(str(int(one)) for one in apart.topk(min(8, len(apart))).indices)
    return (
        f'<div class="inside">{pictures}<p>Neurons with the strongest rows stand left, in the same order in all '
        f"three; {field.scale(reach)}</p><p>Cosine <b>{alike.cosine:.3f}</b> (1: the same direction, 0: nothing in "
        f"common). Both have written {alike.both:.0%} of the rows, the first alone {alike.only[0]:.0%}, the second "
        f"alone {alike.only[1]:.0%}. Rows that differ most: {top}. Each memory is turned to the position that reads it "
        "next, so that texts of different lengths can be compared.</p></div>"
    )


def summary(trace: Trace) -> str:
    """Markup of what was heard, in one line."""
    place = trace.place
    damped = f" \u00b7 keeps {trace.decay:.2%} from write to write" if trace.decay < 1 else ""
    fresh = f" \u00b7 begins anew every {place.span} bytes" if place.span else ""
    wrote = f"{trace.writes:,} patches of {place.step_bytes} bytes" if place.step_bytes > 1 else ""
    heard = " \u00b7 ".join(one for one in (f"{len(trace.data):,} bytes heard", wrote) if one)
    return (
        f'<p class="summary"><b>{html.escape(place.title)}, head {trace.head + 1}</b> \u00b7 {heard} \u00b7 '
        f"{place.neurons:,} \u00d7 {place.width} numbers, {size_text(place.memory_bytes)} at any length{damped}{fresh}</p>"
    )


CSS = (
    field.CSS
    + """
.inside p { margin: 6px 0; font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.inside h4 { margin: 0 0 4px; }
.inside .named { display: flex; }
.inside .named span { flex: 1 1 0; min-width: 0; text-align: center; font-size: var(--text-xs); overflow: hidden;
  color: var(--body-text-color-subdued); }
.inside figure { margin: 0 0 10px; }
.inside figcaption { font-size: var(--text-sm); margin-bottom: 3px; }
.inside ol { margin: 4px 0; padding-left: 1.6em; columns: 2; font-size: var(--text-sm); list-style: decimal; }
.inside li small { color: var(--body-text-color-subdued); }
.inside.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 16px; }
.inside.strip { font-family: var(--font-mono); font-size: var(--text-md); line-height: 1.65; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 14rem; overflow-y: auto; padding: 10px 12px;
  border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
.inside.strip span { cursor: pointer; border-radius: 2px; }
.inside.strip span:hover { outline: 1px solid var(--color-accent); }
.inside.strip .here { outline: 2px solid var(--color-accent); font-weight: 700; }
.inside.strip .later { opacity: 0.45; }
.inside .vector { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 10px; }
#memory-growth .vega-embed, #memory-growth .altair { width: 100%; }
#memory-growth .vega-embed details { display: none; }
"""
)
"""The looks, for the page's style sheet."""


def build_memory(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> None:
    """Lay out the view and wire it.

    Args:
        model: the choice of the tab.
    """
    memories = Memories(registry, limits)
    first = lab.places(registry.config(registry.default(), "")) if registry.default() else ()
    met = _first(first)
    gr.Markdown(
        "A BDH model remembers in sums of outer products: each byte adds what its neurons stand for, and reads what "
        "earlier bytes left there. Choose a layer and a head, let it hear a text, and look at that memory at any byte."
    )
    none = gr.Markdown(visible=False, elem_id="memory-none")
    with gr.Column() as form:
        with gr.Row():
            layer = gr.Dropdown(
                _layers(first), value=met.name if met else None, label="Layer", min_width=200, elem_id="memory-layer"
            )
            head = gr.Dropdown(
                _heads(met), value=_last_head(met), label="Head", min_width=140, elem_id="memory-head"
            )
        text = gr.Textbox(
            TEXTS[0], label="Text", info=f"up to {min(MOST_BYTES, limits.max_prompt_bytes):,} bytes", lines=3,
            max_lines=8, elem_id="memory-text",
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
    line = gr.HTML(elem_classes="flush", elem_id="memory-line")
    looked = gr.State(None)
    with gr.Column(visible=False, elem_id="memory-found") as shown:
        at = gr.Slider(1, 2, 2, step=1, label="After byte", info="or press a character below", elem_id="memory-at")
        paper = gr.HTML(js_on_load=_PICK, elem_classes="flush", elem_id="memory-strip")
        with gr.Tabs():
            with gr.Tab("Picture", id="picture"):
                with gr.Row():
                    order = gr.Radio([_BY_STRENGTH, _BY_NUMBER], value=_BY_STRENGTH, label="Neurons", min_width=220)
                    count = gr.Radio(list(_SHOWN), value=_ALL, label="Zoom", info="neurons shown", min_width=220,
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
        with gr.Row():
            data = gr.Button("Data (NPZ)", size="sm", min_width=120, elem_id="memory-npz")
            drawing = gr.Button("Picture (PNG)", size="sm", min_width=120, elem_id="memory-png")
        file = gr.File(label="To take along", visible=False, interactive=False, elem_id="memory-file")

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

    def on_look(
        request: gr.Request, secret: str, model: str, layer: str, head: int, text: str, *zoomed: Any
    ) -> Iterator[dict[Any, Any]]:
        with reported():
            yield {line: bar(0, "getting ready"), go: gr.Button(interactive=False), stop: gr.Button(interactive=True)}
            look = Look(model, layer, head, text)
            with closing(memories.hearing(look, identify(secret, request))) as steps:  # type: ignore[type-var]
                for step in steps:
                    if isinstance(step, tuple):
                        yield {line: bar(*step)}
                        continue
                    trace, wiring = step
                    size = len(trace.data)
                    step_bytes = trace.place.step_bytes
                    whole = trace.writes * step_bytes
                    yield {
                        line: summary(trace),
                        looked: tuple(look),
                        at: gr.Slider(minimum=step_bytes, maximum=whole, value=whole, step=step_bytes),
                        start: gr.Slider(maximum=max(1, trace.place.neurons - 16), value=0),
                        **dict(zip(views, at_byte(trace, wiring, size, zoomed[0], 0, zoomed[2]), strict=True)),
                        **dict(zip(curves, growth_charts(trace), strict=True)),
                        grown: _growth_note(trace),
                        both: "",
                        file: gr.File(visible=False),
                        shown: gr.Column(visible=True),
                        **idle(),
                    }

    def idle() -> dict[Any, Any]:
        return {go: gr.Button(interactive=True), stop: gr.Button(interactive=False)}

    def on_at(request: gr.Request, secret: str, looked: Any, byte: float | None, *zoomed: Any) -> list[Any]:
        if not looked:
            return [gr.skip()] * len(views)
        with reported():
            return at_byte(*memories.heard(Look(*looked), identify(secret, request)), byte, *zoomed)

    def on_zoom(request: gr.Request, secret: str, looked: Any, byte: float | None, *zoomed: Any) -> Any:
        if not looked:
            return gr.skip()
        with reported():
            trace, wiring = memories.heard(Look(*looked), identify(secret, request))
            return heat(trace, wiring, _writes(trace, byte), *zoomed)

    def on_pick(event: gr.EventData, looked: Any, byte: float) -> float:
        picked = event._data.get("at") if isinstance(event._data, dict) else None
        if isinstance(picked, bool) or not isinstance(picked, int) or not 1 <= picked <= MOST_BYTES or not looked:
            return byte
        return picked

    def on_compare(request: gr.Request, secret: str, looked: Any, other: str) -> Iterator[str]:
        if not looked:
            return
        with reported():
            who, look = identify(secret, request), Look(*looked)
            yield bar(0.5, "hearing the other text")
            trace, wiring = memories.heard(look, who)
            second, _ = memories.heard(look._replace(text=other), who)
            yield beside(
                lab.now(trace, wiring, trace.writes), lab.now(second, wiring, second.writes), ("the text", "the other")
            )

    def on_data(request: gr.Request, secret: str, looked: Any, byte: float | None) -> Any:
        if not looked:
            return gr.skip()
        with reported():
            trace, wiring = memories.heard(Look(*looked), identify(secret, request))
            path = _new_file("memory.npz")
            lab.save(path, trace, wiring, _writes(trace, byte))
            return gr.File(str(path), visible=True)

    def on_drawing(request: gr.Request, secret: str, looked: Any, byte: float | None, *zoomed: Any) -> Any:
        if not looked:
            return gr.skip()
        with reported():
            trace, wiring = memories.heard(Look(*looked), identify(secret, request))
            path, written = _new_file("memory.png"), _writes(trace, byte)
            rows = lab.now(trace, wiring, written)
            title = f"{trace.place.title}, head {trace.head + 1}, after {written * trace.place.step_bytes:,} bytes"
            lab.draw(path, {title: rows}, neurons=ordered(rows, *zoomed))
            return gr.File(str(path), visible=True)

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
        ]

    def on_layer(request: gr.Request, secret: str, model: str, layer: str, head: int) -> gr.Dropdown:
        try:
            place = memories.place(model, layer, identify(secret, request))
        except HatcheryError:  # the model was changed since
            return gr.Dropdown()
        return gr.Dropdown(_heads(place), value=min(head or 0, place.heads - 1))

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quick: dict[str, Any] = {**private, "concurrency_limit": None}
    some: dict[str, Any] = {**private, "concurrency_limit": 2, "concurrency_id": "looking"}
    looking = gr.on(
        [go.click, text.submit],
        on_look,
        [owner, model, layer, head, text, *zoom],
        [line, looked, at, start, *views, *curves, grown, both, file, shown, go, stop],
        **some,
    )
    looking.failure(lambda: [*_idle(), ""], None, [go, stop, line], **quick)
    stop.click(lambda: [*_idle(), ""], None, [go, stop, line], cancels=[looking], **quick)
    model.change(on_model, [owner, model], [layer, head, none, form, shown, line, looked], **quick)
    layer.input(on_layer, [owner, model, layer, head], head, **quick)
    moved: dict[str, Any] = {**some, "trigger_mode": "always_last"}
    at.change(on_at, [owner, looked, at, *zoom], views, **moved)
    paper.click(on_pick, [looked, at], at, **quick)
    gr.on([order.input, count.input, start.release], on_zoom, [owner, looked, at, *zoom], picture, **moved)
    compare.click(on_compare, [owner, looked, other], both, **some)
    data.click(on_data, [owner, looked, at], file, **some)
    drawing.click(on_drawing, [owner, looked, at, *zoom], file, **some)


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


def _growth_note(trace: Trace) -> str:
    damped = (
        "Damping lets the norm level off: what is written makes up for what is lost."
        if trace.decay < 1
        else "Nothing damps this head, so its norm grows with all that it hears."
    )
    fresh = f" It begins anew every {trace.place.span} bytes; shown are the first." if trace.place.span else ""
    return (
        f'<div class="inside"><p>The memory takes {size_text(trace.place.memory_bytes)} from the first byte to the '
        f"last; what changes is how much of it is in use. {damped if not fresh else fresh} The effective rank says how "
        "many directions of what is read are told apart.</p></div>"
    )


def _new_file(name: str) -> Path:
    """Where a file is made that the page serves a copy of."""
    return Path(tempfile.mkdtemp(prefix="inspect-")) / name
