"""The view Concept: neurons and synapses that tell two sets of sentences apart, and the model without them."""

from __future__ import annotations

import dataclasses
import html
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from bdh.errors import DataError
from bdh.models import Model
from bdh.sampling import Sampling
from lab.claim import write_json
from lab.concept_experiment import as_csv, draw_silence, draw_strips, fields
from lab.concepts import (
    FAINT,
    HOLDS,
    SHOWN,
    SUMMARIES,
    SURE,
    Finds,
    Search,
    search,
    search_bytes,
    search_synapses,
)
from lab.sentences import LEAST, MOST, MOST_BYTES, PRESETS, Sentences, parse, preset
from lab.silencing import Silenced, go_on, silence

from ..limits import Limits
from ..markup import bar
from ..owner import identify, reported
from ..parting import Folders
from ..registry import Owner, Registry
from ..steps import Tell, in_steps, kept_or, whole
from .field import fitted
from .named import COUNTING, NEURONS, find_name, of_model
from .recent import Recent, known_by
from .turns import CHAINED, LATEST, LOOK_AGAIN, QUICK, SEARCH, SEARCHING, stops

OWN = "sentences of your own"
WRITTEN_BYTES, MOST_PROMPT_BYTES = 80, 400
_WORD_S = 0.3
"""Between two words on how far the writing is."""
_CONTROLS = 5
"""Draws of other neurons: few enough to wait for."""
_KEPT, _MOST_KEPT_NEURONS = 12, 500_000
"""Searches that are kept for going on with them, and the neurons of a model above which none is."""
_NOTHING = "Nothing was searched in this model yet. The search takes some seconds."
_CONCEPT, _CONTRAST = "#d97706", "#0284c7"
_AGAIN = "what was found is not kept any more, so it is searched again"
_GIVEN = "concept.json", "concept.csv", "concept.png"


class Asked(NamedTuple):
    """What was searched; small, and all that it takes to search it again."""

    model: str
    preset: str
    concept: str
    contrast: str
    summary: str

    def sentences(self) -> Sentences:
        """The two sets; their name is the preset's only as long as they are its own."""
        found = parse(OWN, self.concept, self.contrast)
        if self.preset in PRESETS and (known := preset(self.preset))[1:] == found[1:]:
            return known
        return found


class Hushed(NamedTuple):
    """What silence did; small, so that a page can hold it."""

    asked: Asked
    weights: tuple[str, str]
    """Of which model, as `known_by` tells."""
    prompt: str
    texts: dict[str, bytes]
    """What was written with all neurons, and without those found."""
    cost: Silenced | None = None
    """Measured after that."""


@dataclasses.dataclass
class Concept:
    """What is known of a concept in a model."""

    search: Search
    synapses: Finds | None = None
    synapses_searched: bool = False

    def fields(self, silenced: Silenced | None = None) -> dict[str, Any]:
        """As JSON takes it."""
        return fields(self.search, self.synapses, silenced)


class Finder:
    """What the view does, without components."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry, self._limits, self._folders = registry, limits, Folders("concept-", kept=64)
        self._recent = Recent[Concept](_KEPT)

    def check(self, asked: Asked) -> Sentences:
        """The sentences that are asked for.

        Raises:
            DataError: they cannot be searched, or are more than may be heard here.
        """
        sentences, most = asked.sentences(), self._limits.max_report_bytes
        if (size := sum(map(len, sentences.all))) > most:
            raise DataError(f"the sentences have {size:,} bytes; at most {most:,} are searched here. Give fewer")
        return sentences

    def find(self, asked: Asked, owner: Owner) -> Iterator[Any]:
        """How far it is, and what is known after each stage."""
        return in_steps(lambda tell, give: self._find(asked, owner, tell, give), SEARCHING)

    def look(self, asked: Asked, owner: Owner, kind: str) -> Iterator[Any]:
        """What was searched before; if it is not kept any more, first how far searching it again is.

        Args:
            kind: what must be known of it, "neurons" or "synapses".
        """

        def kept() -> Concept | None:
            known = self._kept(asked, owner)
            return known if known and (kind == "neurons" or known.synapses_searched) else None

        return kept_or(kept, lambda tell, give: give(self._again(asked, owner, tell, kind)), SEARCHING)

    def silence(self, asked: Asked, owner: Owner, count: float, prompt: str) -> Iterator[Any]:
        """How far it is, then what is written with and without the neurons, then the same with what silence costs."""
        if isinstance(count, bool) or not isinstance(count, (int, float)) or not 1 <= count <= SHOWN:
            raise DataError(f"the neurons to silence are {count!r:.40}; choose 1 to {SHOWN} of the best")
        data = (prompt or "").encode("utf-8", errors="replace")
        if not 1 <= len(data) <= MOST_PROMPT_BYTES:
            raise DataError(f"the beginning has {len(data):,} bytes; give 1 to {MOST_PROMPT_BYTES}")
        return in_steps(lambda tell, give: self._silence(asked, owner, int(count), data, tell, give), SEARCHING)

    def files(self, asked: Asked, owner: Owner, place: int, kind: str, hushed: Hushed | None = None) -> Iterator[Any]:
        """How far it is, and a list of files: what was found as JSON, CSV and a drawing of one find.

        With what silence did, if that was tried.
        """
        return in_steps(lambda tell, give: give(self._files(asked, owner, place, kind, hushed, tell)), SEARCHING)

    def _files(self, asked: Asked, owner: Owner, place: int, kind: str, hushed: Hushed | None, tell: Tell) -> list[str]:
        # Of what is no longer kept the page may show both.
        known = self._again(asked, owner, tell, kind if self._kept(asked, owner) else "synapses")
        with self._registry.lease(asked.model, owner) as model:
            # Of another search, or of other weights by now, it would be in the wrong file.
            hushed = hushed if hushed and hushed[:2] == (asked, known_by(model)) else None
            checksum = model.checksum()
        title = self._registry.title(asked.model, owner)
        told = known.fields(hushed.cost if hushed else None)
        if hushed:
            written = {which: text.decode("utf-8", "replace") for which, text in hushed.texts.items()}
            told |= {"prompt": hushed.prompt, "written": written}
        find = found_at(told, kind, place)
        tell(0.9, "writing files")
        folder: Path = self._folders.new()
        paths = [folder / name for name in _GIVEN]
        about = {"model": title, "weights": checksum, "counting": COUNTING}
        write_json(paths[0], about | told)
        paths[1].write_text(as_csv(told), encoding="utf-8")
        named = {**find, "what": {**find["what"], "name": find_name(find["what"])}}
        drawn = {**told, kind: {**told[kind], "best": [named]}}
        draw_strips({f"{title}, {told['name']}": drawn}, paths[2], kind=kind)
        if hushed and hushed.cost:
            paths.append(folder / "concept-silenced.png")
            draw_silence(hushed.cost, paths[-1])
        return of_model(title, paths)

    def _again(self, asked: Asked, owner: Owner, tell: Tell, kind: str) -> Concept:
        """What was searched before; its neurons, or its synapses too, are searched again if they are not kept."""
        known = self._known(asked, owner, lambda part, note: tell(0.4 * part, f"{_AGAIN}: {note}"))
        if kind == "synapses":
            self._synapses(known, asked, owner, lambda part, note: tell(0.4 + 0.4 * part, f"{_AGAIN}: {note}"))
        return known

    def _key(self, model: Model[Any], asked: Asked) -> tuple[Any, ...]:
        """What results are kept under."""
        return known_by(model), asked.sentences(), asked.summary

    def _kept(self, asked: Asked, owner: Owner) -> Concept | None:
        """What was searched before, if it is still kept."""
        with self._registry.lease(asked.model, owner) as model:
            return self._recent.get(self._key(model, asked))

    def _known(self, asked: Asked, owner: Owner, tell: Tell) -> Concept:
        """What is known after a search of the neurons."""
        sentences = self.check(asked)
        with self._registry.lease(asked.model, owner) as model:
            key = self._key(model, asked)
            if (known := self._recent.get(key)) is None:
                with self._registry.reserve(search_bytes(model, sentences)):
                    known = Concept(search(model, sentences, summary=asked.summary, tell=tell))
                if known.search.neurons.tried <= _MOST_KEPT_NEURONS:
                    self._recent.put(key, known)
        return known

    def _synapses(self, known: Concept, asked: Asked, owner: Owner, tell: Tell) -> None:
        """Search the synapses, if that was not done before."""
        if known.synapses_searched:
            return
        with (
            self._registry.lease(asked.model, owner) as model,
            self._registry.reserve(search_bytes(model, known.search.sentences)),
        ):
            known.synapses = search_synapses(model, known.search, tell=tell)
        known.synapses_searched = True

    def _find(self, asked: Asked, owner: Owner, tell: Tell, give: Callable[[Any], None]) -> None:
        known = self._known(asked, owner, lambda part, note: tell(0.5 * part, note))
        give(known)
        if not known.synapses_searched:
            self._synapses(known, asked, owner, lambda part, note: tell(0.5 + 0.5 * part, note))
            give(known)

    def _silence(
        self, asked: Asked, owner: Owner, count: int, prompt: bytes, tell: Tell, give: Callable[[Any], None]
    ) -> None:
        known = self._again(asked, owner, tell, "neurons")
        chosen: Any = [one.what for one in known.search.neurons.best[:count]]
        options = Sampling(max_bytes=WRITTEN_BYTES, temperature=0.0, seed=0)
        with (
            self._registry.lease(asked.model, owner) as model,
            self._registry.reserve(search_bytes(model, known.search.sentences)),
        ):
            texts = {}
            for index, (which, neurons) in enumerate((("with all its neurons", ()), ("without them", chosen))):
                told_s = 0.0

                def follow(index: int = index, which: str = which) -> None:
                    nonlocal told_s
                    if time.monotonic() - told_s > _WORD_S:  # each word takes the page longer than a byte takes
                        told_s = time.monotonic()
                        tell(0.3 + 0.1 * index, f"writing {which}")

                texts[which] = go_on(model, prompt, neurons, options, follow)
            hushed = Hushed(asked, known_by(model), prompt.decode("utf-8", "replace"), texts)
            give(hushed)
            silenced = silence(
                model, known.search, chosen, controls=_CONTROLS, tell=lambda part, note: tell(0.5 + 0.5 * part, note)
            )
        give(hushed._replace(cost=silenced))


def found_at(told: Mapping[str, Any], kind: str, place: int) -> Mapping[str, Any]:
    """One find of what was found.

    Raises:
        DataError: it is not there.
    """
    if told[kind] is None or place >= len(told[kind]["best"]):
        raise DataError("there is no such find; search again, or choose another one of the list")
    found: Mapping[str, Any] = told[kind]["best"][place]
    return found


def head(known: Mapping[str, Any], model: str) -> str:
    """Markup of what was found in a model of that name, in words, and what one could tell without a model."""
    own = known["neurons"]
    chance = own["best_by_chance"]
    best = own["best"][0]
    name = html.escape(find_name(best["what"]))
    said = {
        "holds": f"<b>{name}</b> tells them apart, also in sentences held out",
        "faint": f"<b>{name}</b> tells them apart, in sentences held out only faintly",
        "does not hold": "<b>No neuron holds.</b> What looks best does not hold in sentences held out, or is no better "
        "than chance",
    }[best["verdict"]]
    searched = sum(known["searched"])
    few = f"<p><b>{html.escape(own['too_few'][0].upper() + own['too_few'][1:])}.</b></p>" if own["too_few"] else ""
    others = "; ".join(f"{html.escape(one['name'])}: AUC {one['held_auc']:.2f} held out" for one in known["baselines"])
    return (
        f'<div class="report"><p class="concept-said">{html.escape(model)}, {html.escape(known["name"])}: {said}.</p>'
        f"{few}<p>{own['tried']:,} neurons were tried on {searched} sentences; "
        f"{len(known['searched']) - searched} were held out. {own['sure']:,} are sure after "
        f"Bonferroni's correction and beside shuffled labels, and {own['holding']:,} of these have an AUC of {HOLDS} "
        "or more in the sentences held out. With shuffled labels the best effect is "
        f"{chance[len(chance) // 2]:.2f} (median) to {chance[-1]:.2f} (largest): below that, an effect means nothing. "
        f"Without any model: {others}. {NEURONS}</p></div>"
    )


def table(finds: Mapping[str, Any] | None, kind: str, *, searched: bool = True) -> str:
    """Markup of the best finds."""
    if finds is None:
        why = (
            "This model has no layer of BDH that remembers a whole sentence, so there are no synapses to search."
            if searched
            else "Synapses are searched after the neurons."
        )
        return f'<div class="report"><p>{why}</p></div>'
    rows = ""
    for one in finds["best"]:
        mark = one["verdict"].split()[0]
        rows += (
            f'<tr><th scope="row">{html.escape(find_name(one["what"]))}</th><td>{one["effect"]:.2f}</td>'
            f"<td>{_small(one['bonferroni'])}</td><td>{_small(one['q'])}</td><td>{one['by_chance']:.1%}</td>"
            f"<td>{one['held_effect']:.2f}</td><td>{one['held_auc']:.2f}</td>"
            f'<td><span class="verdict concept-{mark}">{one["verdict"]}</span></td></tr>'
        )
    named = {
        "neurons": "x is what fires first, y what memory excites.",
        "synapses": "From an x neuron to a y neuron of one head. They are those between the most separating neurons of "
        "each head, chosen on the same sentences, so only what is held out is evidence: it is the p there, times the "
        f"finds shown, that must be under {SURE}.",
    }[kind]
    chance = finds["best_by_chance"]
    held = f"{finds['holding']} of those shown hold. " if kind == "synapses" else ""
    return (
        f'<div class="report concept-finds"><div class="wide"><table><thead><tr><th>{kind[:-1]}</th><th>effect</th>'
        f"<th>p, Bonferroni</th><th>q</th><th>shuffles as good</th><th>effect held out</th><th>AUC held out</th>"
        f"<th></th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"<p>The best {len(finds['best'])} of {finds['tried']:,}. {held}{named} "
        "Effect: rank-biserial, 1 if every sentence about the concept is above every other. p: one-sided Mann-Whitney "
        f"U times the number tried; q: Benjamini and Hochberg. Best of shuffled labels: {chance[len(chance) // 2]:.2f} "
        f"to {chance[-1]:.2f}. A find holds from an AUC of {HOLDS}, and is faint from {FAINT}.</p></div>"
    )


def _small(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def cost(silenced: Silenced) -> str:
    """Markup of what silence costs."""
    rows = [("nothing", [silenced.whole]), ("the neurons found", [silenced.found])]
    rows.append(("others near in activity", list(silenced.controls)))
    cells = ""
    for name, costs in rows:
        cells += f'<tr class="{"merged" if costs[0] is silenced.found else ""}"><th scope="row">{name}</th>'
        for side in (0, 1):
            bits = [(one.concept, one.contrast)[side] for one in costs]
            more = [silenced.more(one)[side] for one in costs]
            reach = f"{more[0]:+.4f}" if len(more) == 1 else f"{min(more):+.4f} to {max(more):+.4f}"
            cells += f"<td>{sum(bits) / len(bits):.4f}</td><td>{'' if name == 'nothing' else reach}</td>"
        cells += "</tr>"
    count = len(silenced.neurons)
    return (
        f'<div class="report"><p class="concept-said">The {count} best neurons matter <b>{silenced.verdict}</b>.</p>'
        '<div class="wide"><table><thead><tr><th>silenced</th><th>concept</th><th>more</th><th>contrast</th>'
        f"<th>more</th></tr></thead><tbody>{cells}</tbody></table></div><p>Bits per byte of the held-out sentences. "
        f"Others are {len(silenced.controls)} draws of {count} neurons at the same points, those that come near in "
        f"activity on the concept ({silenced.alike:.0%} of that of the neurons found): their mean, and the range. By "
        f"chance neurons cost more than all others once in {len(silenced.controls) + 1} times.</p></div>"
    )


def texts_markup(prompt: str, texts: Mapping[str, bytes]) -> str:
    """Markup of what was written."""
    parts = "".join(
        f"<dt>{html.escape(which)}</dt><dd><i>{html.escape(prompt)}</i>"
        f"{html.escape(text.decode('utf-8', 'replace'))}</dd>"
        for which, text in texts.items()
    )
    same = (
        "" if len(set(texts.values())) > 1 else "<p>Both write the same: these neurons do not decide what follows.</p>"
    )
    return f'<div class="report concept-texts"><dl>{parts}</dl>{same}</div>'


def strip(known: Mapping[str, Any], kind: str, place: int) -> Any:
    """The values of one find in every sentence, as a chart."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    find, own = known[kind]["best"][place], known["sentences"]
    labels = [(which, text) for which in ("concept", "contrast") for text in own[which]]
    points = [
        {
            "set": "about the concept" if which == "concept" else "not about it",
            "sentence": text[:120],
            "value": value,
            "part": "searched" if searched else "held out",
            "spread": (row * 0.618) % 1,
        }
        for row, ((which, text), value, searched) in enumerate(
            zip(labels, find["values"], known["searched"], strict=True)
        )
    ]
    title = "strength after the sentence" if kind == "synapses" else SUMMARIES[known["summary"]]
    return fitted(
        alt.Chart(alt.InlineData(points))
        .mark_point(size=46, strokeWidth=1.5, opacity=0.9)
        .encode(
            x=alt.X("value:Q", title=[title, "full: searched, hollow: held out"], axis=alt.Axis(tickCount=8)),
            y=alt.Y("set:N", title=None, sort=None, axis=alt.Axis(labelLimit=120)),
            yOffset=alt.YOffset("spread:Q", scale=alt.Scale(domain=[-0.6, 1.6])),
            color=alt.Color("set:N", legend=None, sort=None, scale=alt.Scale(range=[_CONCEPT, _CONTRAST])),
            fill=alt.Fill("set:N", legend=None, sort=None, scale=alt.Scale(range=[_CONCEPT, _CONTRAST])),
            fillOpacity=alt.FillOpacity(
                "part:N", legend=None, scale=alt.Scale(domain=["searched", "held out"], range=[0.9, 0])
            ),
            tooltip=[alt.Tooltip("sentence:N"), alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("part:N")],
        ),
        230,
    )  # fmt: skip


def build_concept(registry: Registry, owner: gr.BrowserState, limits: Limits, model: gr.Dropdown) -> None:
    """Lay out the view and wire it."""
    finder = Finder(registry, limits)
    first = "names"  # of which neurons tell, and so does the share of capitals
    begun = preset(first)
    gr.Markdown(
        "Is there a neuron for it? Give sentences about a concept, and others that differ in nothing else. Half of "
        "them are searched for neurons and synapses that tell the two apart; whether these are real is tested on the "
        "other half."
    )
    with gr.Row():
        chosen = gr.Dropdown(
            [(f"{name}: {what}", name) for name, what in PRESETS.items()], value=first, label="Sentences", scale=2,
            min_width=260, elem_id="concept-preset",
        )  # fmt: skip
        summary = gr.Dropdown(
            [(what, name) for name, what in SUMMARIES.items()], value="mean", label="Of each neuron", min_width=180,
            elem_id="concept-summary",
        )  # fmt: skip
    with gr.Accordion("The sentences, to read or to write over", open=False, elem_id="concept-sentences"), gr.Row():
        info = f"one a line, {LEAST} to {MOST} of up to {MOST_BYTES} bytes; better 50"
        concept = gr.Textbox(
            _lines(begun.concept), label="About the concept", info=info, lines=8, max_lines=8, min_width=280,
            elem_id="concept-about",
        )  # fmt: skip
        contrast = gr.Textbox(
            _lines(begun.contrast), label="Not about it", info="as like the others as can be", lines=8, max_lines=8,
            min_width=280, elem_id="concept-not",
        )  # fmt: skip
    with gr.Row():
        go = gr.Button("Search", variant="primary", scale=2, min_width=140, elem_id="concept-go")
        stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="concept-stop")
    progress = gr.HTML(elem_classes="flush", elem_id="concept-progress")
    said = gr.HTML(_hint(_NOTHING), elem_classes="flush", elem_id="concept-said")
    with gr.Column(visible=False) as shown:
        find = gr.Dropdown([], label="Shown in every sentence", elem_id="concept-find")
        plot = gr.Plot(show_label=False, elem_id="concept-plot")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Neurons"):
                neurons = gr.HTML(elem_classes="flush", elem_id="concept-neurons")
            with gr.Tab("Synapses"):
                synapses = gr.HTML(elem_classes="flush", elem_id="concept-synapses")
        gr.Markdown(
            "### Silence them\nWhat does the model do without the best neurons, and without others near in activity?"
        )
        with gr.Row(equal_height=True):
            count = gr.Slider(1, SHOWN, 8, step=1, label="Of the best, silence", min_width=200, elem_id="concept-count")
            prompt = gr.Textbox(
                label="Let it go on from", max_lines=1, scale=2, min_width=240, elem_id="concept-prompt"
            )
            hush = gr.Button("Silence", variant="primary", min_width=120, elem_id="concept-silence")
        texts = gr.HTML(elem_classes="flush", elem_id="concept-texts")
        costs = gr.HTML(elem_classes="flush", elem_id="concept-costs")
        take = gr.Button("Make files to take along (JSON, CSV, PNG)", size="sm", elem_id="concept-take")
        files = gr.File(label="What was found", visible=False, interactive=False, elem_id="concept-files")
    last, hushed = gr.State(None), gr.State(None)

    def on_preset(name: str) -> tuple[str, str]:
        with reported():
            found = preset(name)
        return _lines(found.concept), _lines(found.contrast)

    def on_ask(id: str | None, name: str, about: str, other: str, how: str) -> tuple[Any, ...]:
        """What is searched is kept, because the components may say something else before the search has ended."""
        with reported():
            asked = Asked(_known(id), name, about or "", other or "", how)
            beginning = _beginning(finder.check(asked))
        return asked, beginning, bar(0.0, "getting ready"), "", "", None, gr.File(visible=False), *_running(True)

    @whole
    def on_find(request: gr.Request, secret: str, asked: Asked | None) -> Iterator[tuple[Any, ...]]:
        if asked is None:
            return
        whose = identify(secret, request)
        known: Concept | None = None
        with reported(), closing(finder.find(Asked(*asked), whose)) as steps:  # type: ignore[type-var]
            for item in steps:
                if not isinstance(item, Concept):
                    yield bar(*item), *[gr.skip()] * 6, *_running(True), gr.skip()
                    continue
                fresh, known = known is None, item
                told = known.fields()
                yield (
                    gr.skip(), head(told, registry.title(asked[0], whose)), gr.Column(visible=True),
                    _choices(told, fresh),
                    strip(told, "neurons", 0) if fresh else gr.skip(), table(told["neurons"], "neurons"),
                    table(told["synapses"], "synapses", searched=known.synapses_searched), *_running(True),
                    tuple(asked),
                )  # fmt: skip
        yield "", *[gr.skip()] * 6, *_running(False), gr.skip()

    def on_model() -> tuple[Any, ...]:
        """What was found in another model is not this one's."""
        return None, _hint(_NOTHING), gr.Column(visible=False), "", "", None, gr.File(visible=False)

    @whole
    def on_look(request: gr.Request, secret: str, asked: Asked | None, pick: str | None) -> Iterator[tuple[Any, ...]]:
        if asked is None:
            return
        kind, place = _pick(pick)
        with reported(), closing(finder.look(Asked(*asked), identify(secret, request), kind)) as steps:  # type: ignore[type-var]
            for item in steps:
                if isinstance(item, Concept):
                    told = item.fields()
                    found_at(told, kind, place)
                    yield strip(told, kind, place), "", *_running(False)
                else:
                    yield gr.skip(), bar(*item), *_running(True)

    @whole
    def on_silence(
        request: gr.Request, secret: str, asked: Asked | None, many: float, beginning: str
    ) -> Iterator[tuple[Any, ...]]:
        whose = identify(secret, request)
        with reported():
            if asked is None:
                raise DataError("nothing was searched yet; search first")
            steps = finder.silence(Asked(*asked), whose, many, beginning)
            yield bar(0.0, "getting ready"), gr.skip(), "", gr.skip(), *_running(True)
            with closing(steps) as going:  # type: ignore[type-var]
                for item in going:
                    if isinstance(item, Hushed):
                        cells = cost(item.cost) if item.cost else gr.skip()
                        yield gr.skip(), texts_markup(item.prompt, item.texts), cells, item, *_running(True)
                    else:
                        yield bar(*item), *(gr.skip(),) * 3, *_running(True)
            yield "", *(gr.skip(),) * 3, *_running(False)

    @whole
    def on_take(
        request: gr.Request, secret: str, asked: Asked | None, pick: str | None, wrote: Hushed | None
    ) -> Iterator[tuple[Any, ...]]:
        with reported():
            if asked is None:
                raise DataError("nothing was searched yet; search first")
            kind, place = _pick(pick)
            yield gr.skip(), bar(0.0, "making files"), *_running(True)
            steps = finder.files(Asked(*asked), identify(secret, request), place, kind, wrote)
            with closing(steps) as going:  # type: ignore[type-var]
                for item in going:
                    if isinstance(item, list):
                        yield gr.File(item, visible=True), "", *_running(False)
                    else:
                        yield gr.skip(), bar(*item), *_running(True)

    asking = [model, chosen, concept, contrast, summary]
    seen = [progress, said, shown, find, plot, neurons, synapses, go, stop, last]
    chosen.input(on_preset, chosen, [concept, contrast], **QUICK)
    model.change(on_model, None, [last, said, shown, texts, costs, hushed, files], **QUICK)
    idle: Callable[[], Any] = lambda: ("", *_running(False), gr.Button(interactive=True))  # noqa: E731
    begin = go.click(on_ask, asking, [last, prompt, progress, texts, costs, hushed, files, go, stop], **QUICK)
    found = begin.success(on_find, [owner, last], seen, **SEARCH | CHAINED)
    looked = find.input(on_look, [owner, last, find], [plot, progress, go, stop], **LOOK_AGAIN | LATEST)
    silenced = gr.on(
        [hush.click, prompt.submit], on_silence, [owner, last, count, prompt],
        [progress, texts, costs, hushed, hush, stop], **SEARCH,
    )  # fmt: skip
    taken = take.click(on_take, [owner, last, find, hushed], [files, progress, go, stop], **SEARCH)
    working = [found, looked, silenced, taken]
    for event in working:
        event.failure(idle, None, [progress, go, stop, hush], **QUICK)
    stops(stop, idle, [progress, go, stop, hush], working)


def _choices(told: Mapping[str, Any], fresh: bool) -> gr.Dropdown:
    """What can be shown in every sentence."""
    listed = [
        (f"{find_name(one['what'])} · AUC {one['held_auc']:.2f} held out", f"{kind}:{place}")
        for kind in ("neurons", "synapses")
        if told[kind] is not None
        for place, one in enumerate(told[kind]["best"])
    ]
    return gr.Dropdown(choices=listed, value=listed[0][1]) if fresh else gr.Dropdown(choices=listed)


def _pick(value: str | None) -> tuple[str, int]:
    kind, _, place = (value if isinstance(value, str) else "neurons:0").partition(":")
    if kind not in ("neurons", "synapses") or not place.isdecimal():
        raise DataError(f"there is no find {value!r:.40}; choose one of the list")
    return kind, min(int(place), SHOWN - 1)


def _beginning(sentences: Sentences) -> str:
    """About half of a sentence about the concept, up to the end of a word."""
    text = sentences.concept[0].decode("utf-8", "replace")
    end = text.find(" ", len(text) // 2)
    return text[: end if end > 0 else max(1, len(text) // 2)]


def _lines(sentences: Sequence[bytes]) -> str:
    return "\n".join(one.decode("utf-8", "replace") for one in sentences)


def _known(model: str | None) -> str:
    if not isinstance(model, str) or not model:
        raise DataError("no model is chosen; choose one above")
    return model


def _hint(words: str) -> str:
    return f'<div class="report"><p>{html.escape(words)}</p></div>'


def _running(running: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


CSS = """
.report p.concept-said { font-size: var(--text-md); color: var(--body-text-color); }
.report .concept-holds { color: #047857; } .dark .report .concept-holds { color: #6ee7b7; }
.report .concept-faint { color: #b45309; } .dark .report .concept-faint { color: #fbbf24; }
.report .concept-does { color: var(--body-text-color-subdued); }
.concept-finds .wide { max-height: 23rem; overflow-y: auto; }
.concept-texts dt { font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.concept-texts dd { margin: 0 0 8px; font-family: var(--font-mono); font-size: var(--text-sm); white-space: pre-wrap;
  overflow-wrap: anywhere; }
.concept-texts dd i { font-style: normal; color: var(--body-text-color-subdued); }
#concept-plot .vega-embed, #concept-plot .altair { width: 100%; }
#concept-plot .vega-embed details { display: none; }
"""
"""The looks, for the page's style sheet."""
