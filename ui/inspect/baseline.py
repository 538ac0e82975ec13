"""The view Baseline: a BDH model beside a Transformer, by what is exactly zero, memory against length, attention."""

from __future__ import annotations

import dataclasses
import html
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
import numpy as np

from bdh.config import ComposedConfig, TransformerConfig
from bdh.errors import DataError
from bdh.models import Model, build, parameter_count, state_bytes
from lab import baseline as lab
from lab.memory import Place, places, without_places
from ..kept import in_steps
from ..limits import Limits
from ..markup import bar
from ..owner import identify, reported
from ..registry import Owner, Registry, compact, size_text
from . import field

if TYPE_CHECKING:
    import altair as alt

MOST_BYTES = 800
"""Of the text: a map of attention has the square of that many fields."""
TEXTS = {
    "Prose": "The old shepherd went up to the city at the time of the harvest, and he took his three sons with him. When "
    "they came to the gate, the watchman asked them, \u201cWhere do you come from, and what do you carry?\u201d The old "
    "shepherd answered the watchman, \u201cWe come from the hills, and we carry wool and cheese.\u201d",
    "Dialogue": 'User: What does "harbor" mean?\nBot: "Harbor" means a place where ships are safe.\n'
    'User: What does "anchor" mean?\nBot: "Anchor" means a heavy thing that holds a ship.\n',
    "Python": "class Counter:\n    def __init__(self, start):\n        self.value = start\n\n    def up(self, step):\n"
    "        self.value = self.value + step\n        return self.value\n",
    "abcabc": "abcabcabcabcabcabcabcabcabcabcabcabcabcabcabc",
}
"""Made up for this, so that no model has trained on them."""
UNTRAINED = ""
"""Chosen instead of a model: a Transformer of equal size with fresh weights."""
_MOST_PARAMETERS = 30_000_000
"""Of a Transformer that is made on the spot."""
_WINDOW = 256
_LONGEST_BYTES = 1_000_000
_INK = "#78879f"
_COLOURS = ("#0284c7", "#d97706", "#be185d")


class Look(NamedTuple):
    """What is compared; small, so that a page can hold it."""

    model: str
    baseline: str
    text: str


@dataclass(frozen=True)
class Side:
    """One of the two models, measured."""

    title: str
    kind: str
    trained: bool
    parameters: int
    state_bytes: int
    bits_per_byte: float
    activity: tuple[lab.Activity, ...]
    held: tuple[lab.Held, ...]


@dataclass(frozen=True)
class Comparison:
    """A BDH model and a Transformer on one text."""

    heard_bytes: int
    bdh: Side
    transformer: Side
    kept_a_byte: int
    """What keys and values of one more byte take."""
    window_bytes: int
    """Bytes that the Transformer looks back."""
    even_bytes: int
    """The length from which a Transformer that forgets nothing takes more memory."""


class Comparer:
    """Compares models of the registry with Transformers."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self.registry, self.limits = registry, limits

    def baselines(self, model: str | None, owner: Owner) -> list[tuple[str, str]]:
        """The Transformers that a model can be held against, as (label, id)."""
        found = [
            (f"{one.title} \u00b7 {compact(one.parameters)} parameters, trained", one.id)
            for one in self.registry.entries(owner)
            if one.kind == "transformer" and one.id != model
        ]
        config = self.registry.config(model, owner) if model else None
        if config is not None and self._can_be_equalled(config):
            found.append((f"equal to this model: {compact(parameter_count(config))} parameters, untrained", UNTRAINED))
        return found

    def why_not(self, model: str | None, owner: Owner) -> str:
        """In words, why a model cannot be compared; empty if it can."""
        config = self.registry.config(model or "", owner)
        if isinstance(config, TransformerConfig):
            return "This is a Transformer, the baseline itself. Choose a BDH model above to hold beside it."
        if not places(config):
            return f"{without_places(config)} Choose a BDH model above."
        return ""

    def comparing(self, look: Look, owner: Owner) -> Iterator[Any]:
        """How far it is, as (part, note), and at last a `Comparison`.

        Raises:
            HatcheryError: the models cannot be compared, or the text is too short or too long.
        """
        data = text_bytes(look.text, self.limits)
        if words := self.why_not(look.model, owner):
            raise DataError(words)

        def work(tell: Any, give: Any) -> None:
            with ExitStack() as stack:
                model, baseline = self._models(look, owner, stack)
                first = self._side(model, self.registry.title(look.model, owner), data, tell, 0.0)
                name = self.registry.title(look.baseline, owner) if look.baseline else "a Transformer of equal size"
                second = self._side(baseline, name, data, tell, 0.5, trained=bool(look.baseline))
                give(
                    Comparison(
                        len(data),
                        first,
                        second,
                        lab.kept_a_byte(baseline.config),
                        baseline.config.block_size,
                        lab.even_bytes(model.config, baseline.config),
                    )
                )

        return in_steps(work)

    def readings(
        self, look: Look, layer: str, head: int, other_layer: int, other_head: int, owner: Owner
    ) -> dict[str, lab.Reading]:
        """Where a head of each reads from.

        Raises:
            HatcheryError: there is no such layer or head.
        """
        data = text_bytes(look.text, self.limits)
        with ExitStack() as stack:
            model, baseline = self._models(look, owner, stack)
            return {
                "BDH": lab.hebbian_reading(model, data, layer, head),
                "Transformer": lab.softmax_reading(baseline, data, other_layer, other_head),
            }

    def transformer(self, look: Look, owner: Owner) -> TransformerConfig:
        """The configuration of the Transformer of a look.

        Raises:
            HatcheryError: it is none, or would be too large.
        """
        if look.baseline:
            config = self.registry.config(look.baseline, owner)
            if not isinstance(config, TransformerConfig):
                raise DataError(f"{look.baseline!r:.60} is no transformer; choose one that is")
            return config
        config = self.registry.config(look.model, owner)
        if not self._can_be_equalled(config):
            raise DataError(
                f"a Transformer of equal size is made of models that are not composed, of at most "
                f"{_MOST_PARAMETERS:,} parameters; choose a trained one"
            )
        return lab.equal_transformer(config, block_size=_WINDOW)

    def _can_be_equalled(self, config: Any) -> bool:
        one_model = not isinstance(config, (ComposedConfig, TransformerConfig))
        return one_model and parameter_count(config) <= _MOST_PARAMETERS

    def _models(self, look: Look, owner: Owner, stack: ExitStack) -> tuple[Model[Any], Model[Any]]:
        """Both models, until the stack is closed."""
        config = self.transformer(look, owner)
        model = stack.enter_context(self.registry.lease(look.model, owner))
        stack.enter_context(self.registry.reserve(model.state_bytes() + state_bytes(config)))
        if look.baseline:
            return model, stack.enter_context(self.registry.lease(look.baseline, owner))
        return model, build(config, seed=0).to(self.registry.device).eval()

    def _side(
        self, model: Model[Any], title: str, data: bytes, tell: Any, begun: float, *, trained: bool = True
    ) -> Side:
        def follow(done: int, total: int) -> None:
            tell(begun + 0.3 * done / total, f"{title} hears {done:,} of {total:,} bytes")

        active = lab.activity(model, data, progress=follow)
        tell(begun + 0.35, f"the memory of {title}")
        lengths = sorted({min(2**power, len(data)) for power in range(12)})
        held = lab.held(model, data, lengths, progress=lambda done, total: tell(begun + 0.4, f"the memory of {title}"))
        bits = lab.text_bits(model, data)
        return Side(
            title,
            model.config.kind,
            trained,
            model.parameter_count(),
            model.state_bytes(),
            bits,
            tuple(active),
            tuple(held),
        )


def text_bytes(text: str | None, limits: Limits) -> bytes:
    """The bytes of a text.

    Raises:
        DataError: too few or too many.
    """
    data = text.encode("utf-8", errors="replace") if isinstance(text, str) else b""
    most = min(MOST_BYTES, limits.max_prompt_bytes)
    if not 8 <= len(data) <= most:
        raise DataError(f"the text has {len(data):,} bytes; give 8 to {most:,}")
    return data


def facts(found: Comparison) -> str:
    """Markup of the two models in one table."""
    bdh, other = found.bdh, found.transformer
    equal = min(bdh.parameters, other.parameters) / max(bdh.parameters, other.parameters) > 0.95
    untrained = "" if other.trained else " (untrained)"
    rows = [
        ("parameters", f"{bdh.parameters:,}", f"{other.parameters:,}"),
        (f"bits per byte, these {found.heard_bytes:,} bytes", f"{bdh.bits_per_byte:.3f}",
         f"{other.bits_per_byte:.3f}{untrained}"),
        ("neurons exactly 0", _zero(bdh), _zero(other)),
        ("memory of a stream", f"{size_text(bdh.state_bytes)} at any length",
         f"{size_text(found.kept_a_byte)} a byte heard"),
        ("looks back", "as far as damping lets it", f"{found.window_bytes:,} bytes here"),
    ]  # fmt: skip
    body = "".join(f'<tr><th scope="row">{name}</th><td>{a}</td><td>{b}</td></tr>' for name, a, b in rows)
    notes = []
    if not equal:
        more = "more" if other.parameters > bdh.parameters else "fewer"
        ratio = max(bdh.parameters, other.parameters) / min(bdh.parameters, other.parameters)
        notes.append(f"They are not equally large: the Transformer has {ratio:.1f} times {more} parameters.")
    if not other.trained:
        notes.append(
            "This Transformer has fresh weights: what is exactly 0 and what its memory takes are those of any such "
            "Transformer; its bits and its attention say nothing about a trained one."
        )
    elif {bdh.title, other.title} == {"baseline-flat", "baseline-transformer"}:
        notes.append("These two heard the same bytes by the same recipe (<code>python -m train baseline</code>).")
    else:
        notes.append(
            "They were not trained on the same bytes, so their bits are no contest; baseline-flat and "
            "baseline-transformer were."
        )
    told = "".join(f"<p>{note}</p>" for note in notes)
    head = f"<th></th><th>{html.escape(bdh.title)}</th><th>{html.escape(other.title)}</th>"
    return f'<div class="report"><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{told}</div>'


def _zero(side: Side) -> str:
    kinds = dict.fromkeys(one.kind for one in side.activity)
    parts = []
    for kind in kinds:
        of_kind = [one for one in side.activity if one.kind == kind]
        total = sum(one.count for one in of_kind)
        parts.append(f"{kind} {sum((1 - one.active) * one.count for one in of_kind) / total:.1%}")
    return " \u00b7 ".join(parts)


def zeros(found: Comparison) -> str:
    """Markup of what is exactly 0 and what nearly so, layer by layer."""
    rows = []
    for side in (found.bdh, found.transformer):
        rows.append(f'<tr class="merged"><th scope="row" colspan="4">{html.escape(side.title)}</th></tr>')
        for one in side.activity:
            rows.append(
                f'<tr><th scope="row">{_layer(one.place)} <small>{html.escape(one.kind)}</small></th>'
                f"<td>{one.count:,}</td><td>{_meter(1 - one.active)}</td><td>{_meter(one.small)}</td></tr>"
            )
    return (
        '<div class="report"><div class="wide"><table><thead><tr><th>layer</th><th>numbers a byte</th>'
        f"<th>exactly 0</th><th>under {lab.SMALL:.0%} of the byte's largest</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><p>BDH cuts at zero (ReLU), so a silent neuron is exactly 0 and "
        "what it would multiply can be left out. A Transformer's GELU makes small numbers, hardly ever zeros: the last "
        "column says how many of them are small. x \u00b7 y is what a layer of BDH writes out.</p></div>"
    )


def _layer(place: str) -> str:
    """A layer's name as a person reads it."""
    parts = place.split(".")
    named = [f"{name} {int(index) + 1}" for name, index in zip(parts[::2], parts[1::2], strict=True)]
    return html.escape(", ".join(named))


def _meter(part: float) -> str:
    return f'<span class="meter"><i style="width:{100 * part:.1f}%"></i><b>{part:.1%}</b></span>'


def memory_chart(found: Comparison) -> alt.LayerChart | Any:
    """Memory against length: lines are computed, points measured."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    lengths = np.unique(np.geomspace(1, _LONGEST_BYTES, 60).round().astype(int)).tolist()
    constant = f"{found.bdh.title}: constant"
    window = f"Transformer, window of {found.window_bytes:,}"
    growing = "Transformer that forgets nothing"
    points = [
        {"bytes": length, "memory": memory, "which": which}
        for length in lengths
        for which, memory in (
            (constant, found.bdh.state_bytes),
            (window, found.kept_a_byte * min(length, found.window_bytes)),
            (growing, found.kept_a_byte * length),
        )
    ]
    measured = [
        {"bytes": one.heard_bytes, "memory": one.filled, "which": which}
        for which, side in ((constant, found.bdh), (window, found.transformer))
        for one in side.held
    ]
    names = [constant, window, growing]
    x = alt.X("bytes:Q", title="bytes heard", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s", tickCount=6))
    y = alt.Y("memory:Q", title="memory, bytes", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s", tickCount=6))
    colour = alt.Color(
        "which:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=list(_COLOURS)),
        legend=alt.Legend(orient="bottom", labelLimit=320, columns=1),
    )
    tooltip = [
        alt.Tooltip("which:N", title=" "),
        alt.Tooltip("bytes:Q", format=","),
        alt.Tooltip("memory:Q", format=","),
    ]
    lines = alt.Chart(alt.InlineData(points)).mark_line().encode(x=x, y=y, color=colour, tooltip=tooltip)
    dots = alt.Chart(alt.InlineData(measured)).mark_point(filled=True, size=40)
    plain = {"labelColor": _INK, "titleColor": _INK}
    return (
        alt.layer(lines, dots.encode(x=x, y=y, color=colour, tooltip=tooltip))
        .properties(width="container", height=300)
        .configure(background="transparent")
        .configure_axis(**plain, gridColor=_INK, gridOpacity=0.25, domainColor=_INK, tickColor=_INK)
        .configure_legend(**plain)
        .configure_view(stroke=None)
    )


def memory_note(found: Comparison) -> str:
    """Markup that says how to read the chart."""
    return (
        f'<div class="inside"><p>Lines are computed; points are measured on this text: the part of the memory that is '
        f"not 0. BDH's {size_text(found.bdh.state_bytes)} are taken from the first byte on and never grow; a "
        f"Transformer that forgets nothing takes more from {found.even_bytes:,} bytes on. One with a window stays "
        f"small, and has forgotten all that is further back than {found.window_bytes:,} bytes.</p></div>"
    )


def maps(readings: dict[str, lab.Reading]) -> str:
    """Markup of the two maps of attention."""
    figures = []
    for name, one in readings.items():
        # A byte's largest shares are what is seen; rows with few places would else outshine all others.
        reach = field.reach_of(one.shares)
        own = "A byte sees itself, too." if one.own else "A byte does not see itself; blue takes away."
        figures.append(
            f"<figure><figcaption><b>{name}</b>, {html.escape(one.title)} {field.scale(reach)}</figcaption>"
            f"{field.picture(one.shares, reach, f'Attention of {name}', height_rem=20, crisp=False)}"
            f"<p>Reads {one.reach:.1f} {_steps(one)} back on average, over {one.spread:.1f} places at a time. {own}</p>"
            "</figure>"
        )
    return (
        f'<div class="inside pair">{"".join(figures)}</div><div class="inside"><p>Row by row from top to bottom the '
        "text, from left to right what came before: how much of what is read comes from there. BDH's linear attention "
        "is what its Hebbian memory amounts to, worked out exactly from keys, queries and damping; each row is divided "
        "by the sum of its sizes, as softmax does by itself. A layer that hears patches has a row for each.</p></div>"
    )


def _steps(reading: lab.Reading) -> str:
    return "patches" if reading.title.startswith("global") or ", global" in reading.title else "bytes"


CSS = """
.report .meter { position: relative; display: inline-block; width: 9rem; max-width: 100%; text-align: right;
  padding: 0 6px; border-radius: 3px; background: var(--background-fill-secondary); overflow: hidden; }
.report .meter i { position: absolute; inset: 0 auto 0 0; background: rgba(217, 98, 8, 0.35); }
.report .meter b { position: relative; font-weight: 500; }
#baseline-memory .vega-embed, #baseline-memory .altair { width: 100%; }
#baseline-memory .vega-embed details { display: none; }
"""
"""The looks, for the page's style sheet; the rest is in those of the view Memory."""


def build_baseline(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> None:
    """Lay out the view and wire it.

    Args:
        model: the choice of the tab.
    """
    comparer = Comparer(registry, limits)
    met = registry.default()
    choices = comparer.baselines(met, "") if met else []
    gr.Markdown(
        "The same text in a BDH model and in a Transformer: how many neurons are exactly zero, what each remembers as "
        "the text grows, and where each looks back to."
    )
    none = gr.Markdown(visible=False, elem_id="baseline-none")
    with gr.Column() as form:
        other = gr.Dropdown(choices, value=choices[0][1] if choices else None, label="Transformer",
                            elem_id="baseline-other")  # fmt: skip
        text = gr.Textbox(
            TEXTS["Prose"], label="Text",
            info=f"8 to {min(MOST_BYTES, limits.max_prompt_bytes):,} bytes", lines=3, max_lines=6,
            elem_id="baseline-text",
        )  # fmt: skip
        gr.Examples(
            [[one] for one in TEXTS.values()],
            [text],
            label="Texts",
            example_labels=list(TEXTS),
            api_visibility="private",
        )
        with gr.Row():
            go = gr.Button("Compare", variant="primary", scale=2, min_width=160, elem_id="baseline-go")
            stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="baseline-stop")
    line = gr.HTML(elem_classes="flush", elem_id="baseline-line")
    looked = gr.State(None)
    with gr.Column(visible=False, elem_id="baseline-found") as shown:
        table = gr.HTML(elem_classes="flush", elem_id="baseline-facts")
        with gr.Tabs():
            with gr.Tab("Zeros", id="zeros"):
                active = gr.HTML(elem_classes="flush", elem_id="baseline-zeros")
            with gr.Tab("Memory against length", id="memory"):
                chart = gr.Plot(show_label=False, elem_id="baseline-memory")
                note = gr.HTML(elem_classes="flush")
            with gr.Tab("Attention", id="attention"):
                with gr.Row():
                    layer = gr.Dropdown([], label="BDH layer", min_width=150, elem_id="baseline-layer")
                    head = gr.Dropdown([("1", 0)], value=0, label="Head", min_width=90)
                    other_layer = gr.Dropdown([], label="Transformer layer", min_width=150)
                    other_head = gr.Dropdown([("1", 0)], value=0, label="Head", min_width=90)
                drawn = gr.HTML(elem_classes="flush", elem_id="baseline-maps")
        with gr.Row():
            data = gr.Button("Data (JSON)", size="sm", min_width=120, elem_id="baseline-json")
            picture = gr.Button("Attention (PNG)", size="sm", min_width=120, elem_id="baseline-png")
        file = gr.File(label="To take along", visible=False, interactive=False, elem_id="baseline-file")
    measured = gr.State(None)
    heads = [layer, head, other_layer, other_head]

    def on_go(
        request: gr.Request, secret: str, model: str, other: str | None, text: str
    ) -> Iterator[dict[Any, Any]]:
        with reported():
            yield {line: bar(0, "getting ready"), go: gr.Button(interactive=False), stop: gr.Button(interactive=True)}
            who, look = identify(secret, request), Look(model, other or UNTRAINED, text)
            with closing(comparer.comparing(look, who)) as steps:  # type: ignore[type-var]
                for step in steps:
                    if isinstance(step, tuple):
                        yield {line: bar(*step)}
                        continue
                    found: Comparison = step
                    baseline = comparer.transformer(look, who)
                    lasting = [place for place in places(registry.config(model, who)) if not place.span]
                    chosen = lasting[-1] if lasting else places(registry.config(model, who))[-1]
                    heard = (chosen.name, _longest(chosen), baseline.n_layer - 1, 0)
                    yield {
                        line: "",
                        looked: tuple(look),
                        measured: dataclasses.asdict(found),
                        table: facts(found),
                        active: zeros(found),
                        chart: memory_chart(found),
                        note: memory_note(found),
                        layer: gr.Dropdown(
                            [(one.title, one.name) for one in places(registry.config(model, who))], value=heard[0]
                        ),
                        head: gr.Dropdown(_numbers(chosen.heads), value=heard[1]),
                        other_layer: gr.Dropdown(_numbers(baseline.n_layer), value=heard[2]),
                        other_head: gr.Dropdown(_numbers(baseline.n_head), value=heard[3]),
                        drawn: maps(comparer.readings(look, *heard, who)),
                        file: gr.File(visible=False),
                        shown: gr.Column(visible=True),
                        go: gr.Button(interactive=True),
                        stop: gr.Button(interactive=False),
                    }

    def chosen_readings(secret: str, request: gr.Request, looked: Any, chosen: Sequence[Any]) -> dict[str, lab.Reading]:
        layer, head, other_layer, other_head = chosen
        numbers = [one for one in (head, other_layer, other_head) if isinstance(one, int) and not isinstance(one, bool)]
        if len(numbers) < 3 or not isinstance(layer, str):
            raise DataError("choose a layer and a head of each model")
        return comparer.readings(Look(*looked), layer, *numbers, identify(secret, request))

    def on_layer(request: gr.Request, secret: str, looked: Any, layer: str, head: int) -> gr.Dropdown:
        if not looked:
            return gr.skip()
        with reported():
            found = {one.name: one for one in places(registry.config(looked[0], identify(secret, request)))}
        if layer not in found:
            return gr.skip()
        return gr.Dropdown(_numbers(found[layer].heads), value=min(head or 0, found[layer].heads - 1))

    def on_heads(request: gr.Request, secret: str, looked: Any, *chosen: Any) -> Any:
        if not looked:
            return gr.skip()
        with reported():
            return maps(chosen_readings(secret, request, looked, chosen))

    def on_data(looked: Any, measured: Any) -> Any:
        if not looked:
            return gr.skip()
        path = Path(tempfile.mkdtemp(prefix="inspect-")) / "baseline.json"
        told = dict(zip(Look._fields, looked, strict=True))
        path.write_text(json.dumps({**told, **measured}, indent=1) + "\n", encoding="utf-8")
        return gr.File(str(path), visible=True)

    def on_picture(request: gr.Request, secret: str, looked: Any, *chosen: Any) -> Any:
        if not looked:
            return gr.skip()
        with reported():
            path = Path(tempfile.mkdtemp(prefix="inspect-")) / "attention.png"
            lab.draw(path, chosen_readings(secret, request, looked, chosen))
            return gr.File(str(path), visible=True)

    def on_model(request: gr.Request, secret: str, model: str, other: str | None) -> list[Any]:
        with reported():
            who = identify(secret, request)
            words = comparer.why_not(model, who)
            found = [] if words else comparer.baselines(model, who)
        ids = [id for _, id in found]
        value = other if other in ids else ids[0] if ids else None
        return [
            gr.Dropdown(found, value=value),
            gr.Markdown(words, visible=bool(words)),
            gr.Column(visible=not words),
            gr.Column(visible=False),
            "",
            None,
        ]

    def idle() -> list[Any]:
        return [gr.Button(interactive=True), gr.Button(interactive=False), ""]

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quick: dict[str, Any] = {**private, "concurrency_limit": None}
    some: dict[str, Any] = {**private, "concurrency_limit": 2, "concurrency_id": "looking"}
    comparing = go.click(
        on_go,
        [owner, model, other, text],
        [line, looked, measured, table, active, chart, note, *heads, drawn, file, shown, go, stop],
        **some,
    )
    comparing.failure(idle, None, [go, stop, line], **quick)
    stop.click(idle, None, [go, stop, line], cancels=[comparing], **quick)
    model.change(on_model, [owner, model, other], [other, none, form, shown, line, looked], **quick)
    changed = layer.input(on_layer, [owner, looked, layer, head], head, **quick)
    changed.then(on_heads, [owner, looked, *heads], drawn, **some)
    gr.on([head.input, other_layer.input, other_head.input], on_heads, [owner, looked, *heads], drawn, **some)
    data.click(on_data, [looked, measured], file, **quick)
    picture.click(on_picture, [owner, looked, *heads], file, **some)


def _longest(place: Place) -> int:
    """The head that keeps most."""
    return place.decay.index(max(place.decay)) if place.decay else 0


def _numbers(count: int) -> list[tuple[str, int]]:
    return [(f"{index + 1}", index) for index in range(count)]
