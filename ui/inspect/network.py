"""The view Network: a model's weights as a graph from neuron to neuron, its degrees, communities and neighbourhoods."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from bdh.errors import DataError, HatcheryError
from bdh.models import Model, parameter_count
from lab.claim import write_json
from lab.network import (
    ALL_HEADS,
    LEAST_SPAN,
    LEAST_TAIL,
    MEAN_DEGREE,
    MODULAR,
    MOST_NEURONS,
    SURE,
    Graph,
    Network,
    Surroundings,
    Whole,
    communities,
    graph,
    measure,
    places,
    surroundings,
)
from lab.network_experiment import (
    as_csv,
    draw_degrees,
    draw_surroundings,
    fields,
    fit_line,
    hub,
    tail_points,
)

from ..markup import bar
from ..owner import identify, reported
from ..parting import Folders
from ..registry import Owner, Registry
from ..steps import Tell, in_steps, kept_or, whole
from .field import INK, fitted
from .named import COUNTING, graph_name, of_model
from .recent import Recent, known_by
from .turns import CHAINED, LATEST, LOOK_AGAIN, QUICK, SEARCH, SEARCHING, stops

DEGREES = (2, 32)
"""Mean degrees to choose from."""
_RANDOM = 5
"""Random graphs: few enough to wait for."""
_KEPT = 12
_AGAIN = "the graph is not kept any more, so it is made again"
_NOTHING = "Nothing was measured in this model yet. It takes some seconds."
_GRAPH_BYTES = 5 * 4 * MOST_NEURONS**2
"""Of a graph that is made: all weights between its neurons, and what sorts them."""
_HUBS = 6
"""Neurons named below the picture."""
_TRAINED, _UNTRAINED = "#d97706", "#0284c7"
_COMMUNITIES = ["#d97706", "#0284c7", "#059669", "#be185d", "#7c3aed", "#ca8a04", "#64748b"]
_GIVEN = "network.json", "network-edges.csv", "network-degrees.png", "network-neuron.png"


class Asked(NamedTuple):
    """Which graph; small, and all that it takes to make it again."""

    model: str
    place: str
    mean_degree: float


@dataclass(frozen=True)
class Drawn:
    """A graph and the community of each node."""

    graph: Graph
    member: Whole


class Mapper:
    """What the view does, without components."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._folders = registry, Folders("network-", kept=64)
        self._graphs, self._measured = Recent[Drawn](_KEPT), Recent[Network](_KEPT)

    def places(self, model: str | None, owner: Owner) -> list[str]:
        """Where graphs can be taken from, known from the configuration alone; none if the model has none."""
        if not model:
            return []
        try:
            return list(places(self._registry.config(model, owner)))
        except HatcheryError:
            return []

    def measure(self, asked: Asked, owner: Owner) -> Iterator[Any]:
        """How far it is, then the graph, then what was measured of it."""

        def work(tell: Tell, give: Callable[[Any], None]) -> None:
            give(self._drawn(asked, owner, tell))
            give(self._network(asked, owner, tell))

        return in_steps(work, SEARCHING)

    def around(self, asked: Asked, owner: Owner, neuron: float | None) -> Iterator[Any]:
        """How far the graph is if it must be made again, then it and a neuron's `Surroundings`, as a list.

        Of None the neuron that most others excite.
        """

        def work(tell: Tell, give: Callable[[Any], None]) -> None:
            found = self._drawn(asked, owner, lambda part, note: tell(part, f"{_AGAIN}: {note}"))
            give(around(found))

        def around(found: Drawn) -> list[Any]:
            return [found, surroundings(found.graph, found.member, _node(found.graph, neuron))]

        def kept() -> list[Any] | None:
            with self._registry.lease(asked.model, owner) as model:
                found = self._graphs.get(_key(model, asked))
            return None if found is None else around(found)

        return kept_or(kept, work, SEARCHING)

    def files(self, asked: Asked, owner: Owner, neuron: float | None) -> Iterator[Any]:
        """How far it is, and a list of files: the measurements as JSON, the edges as CSV, and the drawings."""
        return in_steps(lambda tell, give: give(self._files(asked, owner, neuron, tell)), SEARCHING)

    def _drawn(self, asked: Asked, owner: Owner, tell: Tell) -> Drawn:
        """The graph with its communities.

        Raises:
            HatcheryError: there is no such model or place, or the mean degree is not allowed.
        """
        tell(0.0, "loading the model")
        with self._registry.lease(asked.model, owner) as model:
            key = _key(model, asked)
            if (found := self._graphs.get(key)) is None:
                known = places(model.config)
                if asked.place not in known:
                    raise DataError(f"there is no place {asked.place!r:.60}; there are {', '.join(known)}")
                with self._registry.reserve(_GRAPH_BYTES):
                    tell(0.02, "the strongest weights between neurons")
                    made = graph(model, known[asked.place], mean_degree=checked_degree(asked.mean_degree))
                    tell(0.05, "communities")
                    found = Drawn(made, communities(made)[0])
                self._graphs.put(key, found)
        return found

    def _network(self, asked: Asked, owner: Owner, tell: Tell) -> Network:
        with self._registry.lease(asked.model, owner) as model:
            key = _key(model, asked)
            if (found := self._measured.get(key)) is None:
                place = places(model.config)[asked.place]
                fresh = 4 * parameter_count(model.config)
                with self._registry.reserve(fresh + _GRAPH_BYTES):
                    found = measure(model, place, mean_degree=asked.mean_degree, random_graphs=_RANDOM, tell=tell)
                self._measured.put(key, found)
        return found

    def _files(self, asked: Asked, owner: Owner, neuron: float | None, tell: Tell) -> list[str]:
        def again(part: float, note: str) -> None:
            tell(0.8 * part, f"{_AGAIN}: {note}")

        drawn = self._drawn(asked, owner, again)
        node = _node(drawn.graph, neuron)
        told = fields(self._network(asked, owner, again))
        title, place = self._registry.title(asked.model, owner), graph_name(asked.place)
        with self._registry.lease(asked.model, owner) as model:
            about = {"model": title, "weights": model.checksum(), "counting": COUNTING}
        tell(0.9, "writing files")
        folder: Path = self._folders.new()
        paths = [folder / name for name in _GIVEN]
        write_json(paths[0], about | told)
        paths[1].write_text(as_csv(drawn.graph), encoding="utf-8")
        draw_degrees([told | {"place": f"{title}, {place}"}], paths[2])
        draw_surroundings(surroundings(drawn.graph, drawn.member, node), paths[3], of=f"{title}, {place}")
        return of_model(title, paths)


def checked_degree(mean_degree: Any) -> float:
    """The mean degree that is asked for.

    Raises:
        DataError: it is no whole number, or not allowed.
    """
    low, high = DEGREES
    number = isinstance(mean_degree, (int, float)) and not isinstance(mean_degree, bool)
    if not number or not float(mean_degree).is_integer() or not low <= mean_degree <= high:
        raise DataError(f"the mean degree is {mean_degree!r:.40}; choose a whole number, {low} to {high}")
    return float(mean_degree)


def _key(model: Model[Any], asked: Asked) -> tuple[Any, ...]:
    """What results are kept under."""
    return known_by(model), asked.place, asked.mean_degree


def _node(found: Graph, neuron: float | None) -> int:
    """The node of a neuron; where the graph leads from layer to layer, the one that hears."""
    if neuron is None:
        return hub(found)
    if isinstance(neuron, bool) or not isinstance(neuron, (int, float)) or not float(neuron).is_integer():
        raise DataError(f"the neuron is {neuron!r:.40}; give its number, a whole one")
    places_of = np.flatnonzero(found.neurons == int(neuron))
    if not len(places_of):
        drawn = "" if len(found.neurons) == found.of else f" Of {found.of:,} neurons {len(found.neurons):,} were drawn."
        raise DataError(f"neuron {int(neuron)} is not in the graph; its neurons are 0 to {found.of - 1}.{drawn}")
    return int(places_of[0]) + (0 if found.loops else len(found.neurons))


def head(found: Network, model: str) -> str:
    """Markup of what was measured of a model of that name, in words and a table."""
    own, fresh = found.trained, found.untrained
    drawn = f", {found.neurons:,} of {found.of:,} drawn by a fixed seed" if found.neurons < found.of else ""
    rows = ""
    for name, one in (("trained", own), ("fresh weights", fresh)):
        rows += (
            f'<tr><th scope="row">{name}</th><td>{one.modularity:.3f}</td>'
            f"<td>{min(one.random):.3f} to {max(one.random):.3f}</td><td>{one.communities}</td>"
            f"<td>{one.verdict}</td></tr>"
        )
    fits = ""
    for name, one in (("trained", own), ("fresh weights", fresh)):
        for side, fit in (("in", one.in_fit), ("out", one.out_fit)):
            ratios = "".join(
                f"<td>{fit.against[other].ratio:+.1f} <small>p {_small(fit.against[other].p)}</small></td>"
                if other in fit.against
                else "<td>–</td>"
                for other in ("exponential", "lognormal", "truncated_power_law")
            )
            fits += (
                f'<tr><th scope="row">{name}, {side}</th><td>{fit.alpha:.2f} <small>± {fit.sigma:.2f}</small></td>'
                f"<td>{fit.least_degree} to {fit.largest_degree}</td><td>{fit.tail:,}</td>"
                f"<td>{fit.distance:.3f} <small>p {_small(fit.p)}</small></td>{ratios}"
                f'<td class="worded">{fit.verdict}</td></tr>'
            )
    return (
        f'<div class="report"><p class="concept-said">{html.escape(model)}, {graph_name(found.place)}. '
        f"In-degree: <b>{own.in_fit.verdict}</b>. Out-degree: "
        f"<b>{own.out_fit.verdict}</b>. Communities: <b>{found.verdict}</b>.</p><p>{found.neurons:,} neurons{drawn}, "
        f"{found.edges:,} edges: the strongest positive weights from neuron to neuron, G = decoder · encoder, "
        f"{found.mean_degree:g} a neuron on average, in trained and fresh weights alike.</p>"
        '<div class="wide"><table><thead><tr><th>weights</th><th>modularity</th><th>random graphs</th>'
        f"<th>communities</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
        '<div class="wide"><table><thead><tr><th>degree</th><th>alpha</th><th>tail</th><th>neurons in it</th>'
        "<th>distance</th><th>exponential</th><th>lognormal</th><th>truncated</th><th></th></tr></thead>"
        f"<tbody>{fits}</tbody></table></div><p>Random graphs have the same degrees; modular is {MODULAR} above all of "
        "them. A power law is fitted where the tail fits best; against each other distribution stands the normalised "
        "log-likelihood ratio, above 0 where the power law is likelier. It is not ruled out if the exponential is "
        f"worse (p under {SURE}), no other better, and degrees drawn from it are as far from their own fits in "
        f"{SURE:.0%} of the draws; a tail of under {LEAST_TAIL} neurons, or that spans less than a factor of "
        f"{LEAST_SPAN:g}, tells nothing.</p></div>"
    )


def degrees_chart(found: Mapping[str, Any], side: str) -> Any:
    """What part of neurons has at least so high a degree, with the fitted tails, as a chart."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    names = {"trained": "trained", "untrained": "fresh weights"}
    points: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for which, name in names.items():
        own = found[which]
        for degree, part in tail_points(own[f"{side}_degree"]):
            points.append({"weights": name, "degree": degree, "part": part})
        for end, part in fit_line(own[f"{side}_fit"], own[f"{side}_degree"]):
            lines.append({"weights": name, "degree": end, "part": part})
    log = alt.Scale(type="log", nice=False)
    x = alt.X("degree:Q", title=f"{side}-degree", scale=log, axis=alt.Axis(tickCount=4, format="~s"))
    y = alt.Y("part:Q", title="part with as many or more", scale=log, axis=alt.Axis(tickCount=4, format="~g"))
    colour = alt.Color(
        "weights:N", title=None, scale=alt.Scale(domain=list(names.values()), range=[_TRAINED, _UNTRAINED]),
        legend=alt.Legend(orient="bottom"),
    )  # fmt: skip
    tooltip = [alt.Tooltip("weights:N"), alt.Tooltip("degree:Q"), alt.Tooltip("part:Q", format=".4f")]
    return fitted(alt.layer(
        alt.Chart(alt.InlineData(points)).mark_point(filled=True, size=28).encode(
            x=x, y=y, color=colour, tooltip=tooltip, shape=alt.Shape("weights:N", title=None, legend=None)
        ),
        alt.Chart(alt.InlineData(lines)).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour),
    ), 290)  # fmt: skip


def picture(found: Surroundings) -> Any:
    """A neuron and its neighbours, as a chart."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    nodes = found.nodes
    order = {member: place for place, member in enumerate(dict.fromkeys(node["community"] for node in nodes))}
    last = len(_COMMUNITIES) - 1
    shown = [
        {
            "name": str(node["neuron"]) + ("′" if node["layer"] else ""),
            "x": node["x"],
            "y": node["y"],
            "community": "others" if order[node["community"]] >= last else f"community {node['community'] + 1}",
            "in": node["in_degree"],
            "out": node["out_degree"],
            "size": 420 if place == 0 else 190,
        }
        for place, node in enumerate(nodes)
    ]
    edges = [
        {
            "x": nodes[edge["source"]]["x"],
            "y": nodes[edge["source"]]["y"],
            "x2": nodes[edge["target"]]["x"],
            "y2": nodes[edge["target"]]["y"],
        }
        for edge in found.edges
    ]
    names = list(dict.fromkeys(str(node["community"]) for node in shown))
    reach = max([abs(float(value)) for node in shown for value in (node["x"], node["y"])] + [0.1]) * 1.12
    span = alt.Scale(domain=[-reach, reach])
    x, y = alt.X("x:Q", axis=None, scale=span), alt.Y("y:Q", axis=None, scale=span)
    dots = alt.Chart(alt.InlineData(shown)).encode(x=x, y=y)
    colour = alt.Color(
        "community:N", title=None, scale=alt.Scale(domain=names, range=_COMMUNITIES[: len(names)]),
        legend=alt.Legend(orient="bottom", columns=3),
    )  # fmt: skip
    tooltip = [alt.Tooltip("name:N", title="neuron"), "community:N", alt.Tooltip("in:Q", title="in-degree"),
               alt.Tooltip("out:Q", title="out-degree")]  # fmt: skip
    return fitted(alt.layer(
        alt.Chart(alt.InlineData(edges)).mark_rule(strokeWidth=0.8, opacity=0.35, color=INK).encode(
            x=x, y=y, x2="x2:Q", y2="y2:Q"
        ),
        dots.mark_point(filled=True, opacity=1).encode(
            color=colour, size=alt.Size("size:Q", scale=None, legend=None), tooltip=tooltip
        ),
        dots.mark_text(dy=-14, fontSize=10, color=INK).encode(text="name:N"),
    ), 500)  # fmt: skip


def around_line(found: Drawn, shown: Surroundings, of: str) -> str:
    """Markup of what the picture shows; `of` names the model and the place."""
    first = shown.nodes[0]
    incoming = np.bincount(found.graph.target, minlength=found.graph.count)
    hubs = ", ".join(str(found.graph.neuron(node)) for node in np.argsort(-incoming, kind="stable")[:_HUBS].tolist())
    prime = "" if found.graph.loops else " A number with ′ is of the next layer, which hears."
    return (
        f'<div class="report"><p>{html.escape(of)}: neuron {first["neuron"]} is excited by {first["in_degree"]} others '
        f"and excites {first['out_degree']}; shown are the strongest {len(shown.nodes)} around it, coloured by "
        f"community.{prime} Most excited of all: {hubs}. Neurons are numbered from 0, as in the weights.</p></div>"
    )


def build_network(registry: Registry, owner: gr.BrowserState, model: gr.Dropdown) -> None:
    """Lay out the view and wire it."""
    mapper = Mapper(registry)
    known = mapper.places(registry.default() or None, "")
    gr.Markdown(
        "Which neuron excites which? A neuron speaks through its row of the decoder and is heard through others' "
        "columns of the encoder; the strongest of these weights are a graph. Does it have hubs and communities, more "
        "than chance would give, and more than fresh weights have?"
    )
    unfit = gr.HTML(_unfit(), visible=not known, elem_classes="flush", elem_id="network-unfit")
    with gr.Row(equal_height=True):
        place = gr.Dropdown(
            _listed(known), value=known[0] if known else None, label="Neurons",
            info=f"up to {MOST_NEURONS:,} of them are taken", min_width=220, elem_id="network-place",
        )  # fmt: skip
        degree = gr.Slider(
            *DEGREES, MEAN_DEGREE, step=1, label="Mean degree", info="edges kept for each neuron", min_width=200,
            elem_id="network-degree",
        )  # fmt: skip
    with gr.Row():
        go = gr.Button("Measure", variant="primary", scale=2, min_width=140, interactive=bool(known),
                       elem_id="network-go")  # fmt: skip
        stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="network-stop")
    progress = gr.HTML(elem_classes="flush", elem_id="network-progress")
    said = gr.HTML(_hint(_NOTHING), elem_classes="flush", elem_id="network-said")
    with gr.Row(visible=False) as charts:
        incoming = gr.Plot(show_label=False, min_width=320, elem_id="network-in", elem_classes="network-plot")
        outgoing = gr.Plot(show_label=False, min_width=320, elem_id="network-out", elem_classes="network-plot")
    with gr.Column(visible=False) as shown:
        with gr.Row(equal_height=True):
            neuron = gr.Number(
                label="Around neuron", precision=0, minimum=0, scale=3, min_width=140, elem_id="network-neuron"
            )
            look = gr.Button("Show it", min_width=120, elem_id="network-look")
        line = gr.HTML(elem_classes="flush", elem_id="network-line")
        drawing = gr.Plot(show_label=False, elem_id="network-drawing", elem_classes="network-plot")
        take = gr.Button("Make files to take along (JSON, CSV, PNG)", size="sm", elem_id="network-take")
        files = gr.File(label="What was measured", visible=False, interactive=False, elem_id="network-files")
    last = gr.State(None)

    def on_model(request: gr.Request, secret: str, id: str | None, chosen: str | None) -> tuple[Any, ...]:
        listed = mapper.places(id, identify(secret, request))
        value = chosen if chosen in listed else listed[0] if listed else None
        return (
            gr.Dropdown(choices=_listed(listed), value=value), gr.Button(interactive=bool(listed)),
            gr.HTML(visible=not listed), None, _hint(_NOTHING) if listed else "", gr.Row(visible=False),
            gr.Column(visible=False), gr.File(visible=False),
        )  # fmt: skip

    def on_ask(id: str | None, chosen: str | None, mean: float) -> tuple[Any, ...]:
        """What is measured is kept, because the components may say something else before it has ended."""
        with reported():
            if not id or not chosen:
                raise DataError("choose a model and neurons of it above")
            asked = Asked(id, chosen, checked_degree(mean))
        return asked, bar(0.0, "getting ready"), gr.File(visible=False), *_running(True)

    @whole
    def on_measure(request: gr.Request, secret: str, asked: Asked | None) -> Iterator[tuple[Any, ...]]:
        if asked is None:
            return
        whose, asked = identify(secret, request), Asked(*asked)
        with reported(), closing(mapper.measure(asked, whose)) as steps:  # type: ignore[type-var]
            title = registry.title(asked.model, whose)
            for item in steps:
                if isinstance(item, Drawn):
                    of = f"{title}, {graph_name(asked.place)}"
                    seen = surroundings(item.graph, item.member, hub(item.graph))
                    yield (
                        gr.skip(), gr.skip(), gr.Row(visible=False), gr.skip(), gr.skip(), gr.Column(visible=True),
                        seen.nodes[0]["neuron"], around_line(item, seen, of), picture(seen), *_running(True),
                        tuple(asked),
                    )  # fmt: skip
                elif isinstance(item, Network):
                    told = fields(item)
                    yield (
                        gr.skip(), head(item, title), gr.Row(visible=True),
                        degrees_chart(told, "in"), degrees_chart(told, "out"), *[gr.skip()] * 4, *_running(True),
                        gr.skip(),
                    )  # fmt: skip
                else:
                    yield bar(*item), *[gr.skip()] * 8, *_running(True), gr.skip()
        yield "", *[gr.skip()] * 8, *_running(False), gr.skip()

    @whole
    def on_look(
        request: gr.Request, secret: str, asked: Asked | None, number: float | None
    ) -> Iterator[tuple[Any, ...]]:
        with reported():
            asked, whose = _asked(asked), identify(secret, request)
            of = f"{registry.title(asked.model, whose)}, {graph_name(asked.place)}"
            with closing(mapper.around(asked, whose, number)) as steps:  # type: ignore[type-var]
                for item in steps:
                    if isinstance(item, list):
                        yield around_line(item[0], item[1], of), picture(item[1]), "", *_running(False)
                    else:
                        yield gr.skip(), gr.skip(), bar(*item), *_running(True)

    @whole
    def on_take(
        request: gr.Request, secret: str, asked: Asked | None, number: float | None
    ) -> Iterator[tuple[Any, ...]]:
        with reported():
            yield gr.skip(), bar(0.0, "making files"), *_running(True)
            with closing(mapper.files(_asked(asked), identify(secret, request), number)) as steps:  # type: ignore[type-var]
                for item in steps:
                    if isinstance(item, list):
                        yield gr.File(item, visible=True), "", *_running(False)
                    else:
                        yield gr.skip(), bar(*item), *_running(True)

    model.change(on_model, [owner, model, place], [place, go, unfit, last, said, charts, shown, files], **QUICK)
    begin = go.click(on_ask, [model, place, degree], [last, progress, files, go, stop], **QUICK)
    measured = begin.success(
        on_measure, [owner, last],
        [progress, said, charts, incoming, outgoing, shown, neuron, line, drawing, go, stop, last],
        **SEARCH | CHAINED,
    )  # fmt: skip
    idle: Callable[[], Any] = lambda: ("", *_running(False))  # noqa: E731
    looked = gr.on(
        [look.click, neuron.submit], on_look, [owner, last, neuron], [line, drawing, progress, go, stop],
        **LOOK_AGAIN | LATEST,
    )  # fmt: skip
    taken = take.click(on_take, [owner, last, neuron], [files, progress, go, stop], **SEARCH)
    working = [measured, looked, taken]
    for event in working:
        event.failure(idle, None, [progress, go, stop], **QUICK)
    stops(stop, idle, [progress, go, stop], working)


def _listed(places: Sequence[str]) -> list[tuple[str, str]]:
    return [(graph_name(place), place) for place in places]


def _asked(asked: Asked | None) -> Asked:
    if asked is None:
        raise DataError("nothing was measured yet; measure first")
    return Asked(*asked)


def _small(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-16 else "&lt; 1e-16"


def _unfit() -> str:
    return _hint(
        "This model has no encoder and decoder that lead from neuron to neuron. Choose a flat model, or a hierarchical "
        f"one of BDH layers; where there are several heads, {ALL_HEADS} are one of the choices."
    )


def _hint(words: str) -> str:
    return f'<div class="report"><p>{html.escape(words)}</p></div>'


def _running(running: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


CSS = """
.report .wide td.worded { white-space: normal; min-width: 8.5rem; }
.network-plot .vega-embed, .network-plot .altair { width: 100%; }
.network-plot .vega-embed details { display: none; }
"""
"""The looks, for the page's style sheet."""
