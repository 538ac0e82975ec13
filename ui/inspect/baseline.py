"""The view Baseline: a BDH model beside a Transformer, by what is exactly zero, memory against length, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import gradio as gr

from bdh.config import ComposedConfig, TransformerConfig
from bdh.errors import DataError
from bdh.models import Model, build, parameter_count, state_bytes
from lab import baseline as lab
from lab.memory import Place, places, without_places

from ..limits import Limits
from ..markup import bar
from ..owner import identify, reported
from ..parting import Folders
from ..registry import Owner, Registry, compact
from ..steps import in_steps, whole
from .compared import CSS, Comparison, Side, facts, maps, memory_chart, memory_note, zeros
from .named import of_model
from .taken import comparison_files
from .turns import LATEST, LOOK, LOOKING, QUICK, stops

__all__ = ["CSS", "build_baseline"]

MOST_BYTES = 800
"""Of the text: a map of attention has the square of that many fields."""
TEXTS = {
    "Prose": "The old shepherd went up to the city at the time of the harvest, and he took his three sons with him. "
    "When they came to the gate, the watchman asked them, \u201cWhere do you come from, and what do you carry?\u201d "
    "The old shepherd answered the watchman, \u201cWe come from the hills, and we carry wool and cheese.\u201d",
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
_WINDOW, _NUMBER_BYTES = 256, 4


class Look(NamedTuple):
    """What is compared; small, so that a page can hold it."""

    model: str
    baseline: str
    text: str


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
                titles = self.titles(look, owner)
                first = self._side(model, look.model, titles[0], data, tell, 0.0)
                second = self._side(baseline, look.baseline, titles[1], data, tell, 0.5, trained=bool(look.baseline))
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

        return in_steps(work, LOOKING)

    def titles(self, look: Look, owner: Owner) -> tuple[str, str]:
        """What the two models are called."""
        other = self.registry.title(look.baseline, owner) if look.baseline else "a Transformer of equal size"
        return self.registry.title(look.model, owner), other

    def readings(
        self, look: Look, layer: str, head: int, other_layer: int, other_head: int, owner: Owner
    ) -> Iterator[Any]:
        """How far it is, and at last where a head of each reads from: `Reading`s by the models' names.

        Raises:
            HatcheryError: there is no such layer or head.
        """
        data = text_bytes(look.text, self.limits)

        def work(tell: Any, give: Any) -> None:
            tell(0.0, f"hearing {len(data):,} bytes")
            with ExitStack() as stack:
                model, baseline = self._models(look, owner, stack)
                first, second = self.titles(look, owner)
                found = {f"BDH: {first}": lab.hebbian_reading(model, data, layer, head)}
                tell(0.5, f"{second} hears {len(data):,} bytes")
                give({**found, f"Transformer: {second}": lab.softmax_reading(baseline, data, other_layer, other_head)})

        return in_steps(work, LOOKING)

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
        fresh = 0 if look.baseline else _NUMBER_BYTES * parameter_count(config)
        stack.enter_context(self.registry.reserve(2 * (model.state_bytes() + state_bytes(config)) + fresh))
        if look.baseline:
            return model, stack.enter_context(self.registry.lease(look.baseline, owner))
        return model, build(config, seed=0).to(self.registry.device).eval()

    def _side(
        self, model: Model[Any], id: str, title: str, data: bytes, tell: Any, begun: float, *, trained: bool = True
    ) -> Side:
        def follow(done: int, total: int) -> None:
            tell(begun + 0.3 * done / total, f"{title} hears {done:,} of {total:,} bytes")

        active = lab.activity(model, data, progress=follow)
        tell(begun + 0.35, f"the memory of {title}")
        lengths = sorted({min(2**power, len(data)) for power in range(12)})
        held = lab.held(model, data, lengths, progress=lambda done, total: tell(begun + 0.4, f"the memory of {title}"))
        bits = lab.text_bits(model, data)
        if not math.isfinite(bits):
            raise DataError(f"what {title} predicts is not finite: its weights overflow; check the checkpoint")
        return Side(
            id,
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


def build_baseline(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> None:
    """Lay out the view and wire it.

    Args:
        model: the choice of the tab.
    """
    comparer, folders = Comparer(registry, limits), Folders("baseline-", kept=64)
    met = registry.default()
    choices = comparer.baselines(met, "") if met and not comparer.why_not(met, "") else []
    gr.Markdown(
        "The same text in a BDH model and in a Transformer: how many neurons are exactly zero, what each remembers as "
        "the text grows, and where each looks back to."
    )
    without = comparer.why_not(met, "") if met else ""
    none = gr.Markdown(without, visible=bool(without), elem_id="baseline-none")
    with gr.Column(visible=not without) as form:
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
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Zeros", id="zeros"):
                active = gr.HTML(elem_classes="flush", elem_id="baseline-zeros")
            with gr.Tab("Memory against length", id="memory"):
                chart = gr.Plot(show_label=False, elem_id="baseline-memory")
                note = gr.HTML(elem_classes="flush")
            with gr.Tab("Attention", id="attention"):
                with gr.Row():
                    layer = gr.Dropdown([], label="BDH layer", min_width=150, elem_id="baseline-layer")
                    head = gr.Dropdown([("1", 0)], value=0, label="Head", min_width=90, elem_id="baseline-head")
                    other_layer = gr.Dropdown([], label="Transformer layer", min_width=150)
                    other_head = gr.Dropdown([("1", 0)], value=0, label="Head", min_width=90)
                drawn = gr.HTML(elem_classes="flush", elem_id="baseline-maps")
        take = gr.Button("Make files to take along (JSON, NPZ, PNG)", size="sm", elem_id="baseline-take")
        files = gr.File(label="The comparison", visible=False, interactive=False, elem_id="baseline-files")
    measured = gr.State(None)
    heads = [layer, head, other_layer, other_head]

    @whole
    def on_go(request: gr.Request, secret: str, model: str, other: str | None, text: str) -> Iterator[dict[Any, Any]]:
        with reported():
            yield {line: bar(0, "getting ready"), **busy()}
            who, look = identify(secret, request), Look(model, other or UNTRAINED, text)
            with closing(comparer.comparing(look, who)) as steps:  # type: ignore[type-var]
                for step in steps:
                    if isinstance(step, tuple):
                        yield {line: bar(*step), **busy()}
                        continue
                    found: Comparison = step
                    baseline = comparer.transformer(look, who)
                    lasting = [place for place in places(registry.config(model, who)) if not place.span]
                    chosen = lasting[-1] if lasting else places(registry.config(model, who))[-1]
                    heard = (chosen.name, _longest(chosen), baseline.n_layer - 1, 0)
                    yield {
                        looked: tuple(look),
                        measured: found,
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
                        drawn: "",
                        files: gr.File(visible=False),
                        shown: gr.Column(visible=True),
                    }
            yield from read_from(look, heard, who, lambda readings: {drawn: maps(readings)})

    def read_from(
        look: Look, chosen: Sequence[Any], who: Owner, show: Callable[[dict[str, lab.Reading]], dict[Any, Any]]
    ) -> Iterator[dict[Any, Any]]:
        """What is shown of where the chosen heads read from."""
        layer, head, other_layer, other_head = chosen
        numbers = [one for one in (head, other_layer, other_head) if isinstance(one, int) and not isinstance(one, bool)]
        if len(numbers) < 3 or not isinstance(layer, str):
            raise DataError("choose a layer and a head of each model")
        steps = comparer.readings(look, layer, numbers[0], numbers[1], numbers[2], who)
        with closing(steps) as going:  # type: ignore[type-var]
            for step in going:
                if isinstance(step, dict):
                    yield {**show(step), **over()}
                else:
                    yield {line: bar(step[0], f"where heads read from: {step[1]}"), **busy()}

    def busy() -> dict[Any, Any]:
        return {go: gr.Button(interactive=False), stop: gr.Button(interactive=True)}

    def over() -> dict[Any, Any]:
        return {line: "", go: gr.Button(interactive=True), stop: gr.Button(interactive=False)}

    def on_layer(request: gr.Request, secret: str, looked: Any, layer: str, head: int) -> gr.Dropdown:
        if not looked:
            return gr.skip()
        with reported():
            found = {one.name: one for one in places(registry.config(looked[0], identify(secret, request)))}
        if layer not in found:
            return gr.skip()
        return gr.Dropdown(_numbers(found[layer].heads), value=min(head or 0, found[layer].heads - 1))

    @whole
    def on_heads(request: gr.Request, secret: str, looked: Any, *chosen: Any) -> Iterator[dict[Any, Any]]:
        if not looked:
            return
        with reported():
            who = identify(secret, request)
            hidden = gr.File(visible=False)
            yield from read_from(Look(*looked), chosen, who, lambda readings: {drawn: maps(readings), files: hidden})

    @whole
    def on_take(
        request: gr.Request, secret: str, looked: Any, measured: Comparison | None, *chosen: Any
    ) -> Iterator[dict[Any, Any]]:
        if not looked or measured is None:
            return
        with reported():
            who, look = identify(secret, request), Look(*looked)
            heard: dict[str, lab.Reading] = {}

            def keep(readings: dict[str, lab.Reading]) -> dict[Any, Any]:
                heard.update(readings)
                return {}

            def write(tell: Any, give: Any) -> None:
                paths = comparison_files(folders.new(), look._asdict(), measured, heard, tell=tell)
                give(of_model(comparer.titles(look, who)[0], paths))

            yield from read_from(look, chosen, who, keep)
            with closing(in_steps(write, LOOKING)) as steps:  # type: ignore[type-var]
                for step in steps:
                    if isinstance(step, list):
                        yield {files: gr.File(step, visible=True), **over()}
                    else:
                        yield {line: bar(*step), **busy()}

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

    running, changed_heads = [line, go, stop], [owner, looked, *heads]
    comparing = go.click(
        on_go,
        [owner, model, other, text],
        [*running, looked, measured, table, active, chart, note, *heads, drawn, files, shown],
        **LOOK,
    )
    changed = layer.input(on_layer, [owner, looked, layer, head], head, **QUICK | LATEST)
    working = [
        comparing,
        changed.then(on_heads, changed_heads, [drawn, files, *running], **LOOK | LATEST),
        gr.on(
            [head.input, other_layer.input, other_head.input], on_heads, changed_heads, [drawn, files, *running],
            **LOOK | LATEST,
        ),
        take.click(on_take, [owner, looked, measured, *heads], [files, *running], **LOOK),
    ]  # fmt: skip
    for event in working:
        event.failure(idle, None, [go, stop, line], **QUICK)
    stops(stop, idle, [go, stop, line], working)
    model.change(on_model, [owner, model, other], [other, none, form, shown, line, looked], **QUICK)


def _longest(place: Place) -> int:
    """The head that keeps most."""
    return place.decay.index(max(place.decay)) if place.decay else 0


def _numbers(count: int) -> list[tuple[str, int]]:
    return [(f"{index + 1}", index) for index in range(count)]
