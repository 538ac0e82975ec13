"""A BDH model beside a Transformer, as markup and a chart."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lab import baseline as lab
from train.plots import reach_of

from ..registry import size_text
from . import field
from .named import KINDS, layer_name

if TYPE_CHECKING:
    import altair as alt

PAIR = {"baseline-flat", "baseline-transformer"}
"""Ids of shipped models of equal size that heard the same bytes; anybody may call another model so."""
_LONGEST_BYTES = 1_000_000
_COLOURS = ("#0284c7", "#d97706", "#be185d")


@dataclass(frozen=True)
class Side:
    """One of the two models, measured."""

    id: str
    """In the registry; empty of one that was made on the spot."""
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
    elif {bdh.id, other.id} == PAIR:
        notes.append(
            "These two heard the same bytes by the same recipe (<code>python -m train baseline</code>), with one "
            "seed and one learning rate for both."
        )
    else:
        notes.append(
            "They were not trained on the same bytes, so their bits are no contest; baseline-flat and "
            "baseline-transformer were."
        )
    told = "".join(f"<p>{note}</p>" for note in notes)
    head = f"<th></th><th>{html.escape(bdh.title)}</th><th>{html.escape(other.title)}</th>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="report facts"><div class="wide">{table}</div>{told}</div>'


def _zero(side: Side) -> str:
    kinds = dict.fromkeys(one.kind for one in side.activity)
    parts = []
    for kind in kinds:
        of_kind = [one for one in side.activity if one.kind == kind]
        total = sum(one.count for one in of_kind)
        zero = sum((1 - one.active) * one.count for one in of_kind) / total
        parts.append(f"{html.escape(KINDS.get(kind, kind))}\u00a0{zero:.1%}")
    return "<br>".join(parts)


def zeros(found: Comparison) -> str:
    """Markup of what is exactly 0 and what nearly so, layer by layer."""
    rows = []
    for side in (found.bdh, found.transformer):
        rows.append(f'<tr class="merged"><th scope="row" colspan="4">{html.escape(side.title)}</th></tr>')
        for one in side.activity:
            kind = html.escape(KINDS.get(one.kind, one.kind))
            rows.append(
                f'<tr><th scope="row">{html.escape(layer_name(one.place))} <small>{kind}</small></th>'
                f"<td>{one.count:,}</td><td>{_meter(1 - one.active)}</td><td>{_meter(one.small)}</td></tr>"
            )
    return (
        '<div class="report zeros"><div class="wide"><table><thead><tr><th>layer</th><th>numbers a byte</th>'
        f"<th>exactly 0</th><th>under {lab.SMALL:.0%} of the byte's largest</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><p>BDH cuts at zero (ReLU), so a silent neuron is exactly 0 and "
        "what it would multiply can be left out. A Transformer's GELU makes small numbers, hardly ever zeros: the last "
        "column says how many of them are small. x \u00b7 y is what a layer of BDH writes out.</p></div>"
    )


def _meter(part: float) -> str:
    return f'<span class="meter"><i style="width:{100 * part:.1f}%"></i><b>{part:.1%}</b></span>'


def memory_lines(found: Comparison, points: int = 60) -> dict[str, list[tuple[int, int]]]:
    """Memory against length as computed, (bytes heard, bytes of memory) by what keeps it."""
    lengths = np.unique(np.geomspace(1, _LONGEST_BYTES, points).round().astype(int)).tolist()
    constant, window = _kept_by(found)
    return {
        constant: [(length, found.bdh.state_bytes) for length in lengths],
        window: [(length, found.kept_a_byte * min(length, found.window_bytes)) for length in lengths],
        "Transformer that forgets nothing": [(length, found.kept_a_byte * length) for length in lengths],
    }


def memory_points(found: Comparison) -> dict[str, list[tuple[int, int]]]:
    """The part of the memory that is not 0 as measured, by the names of `memory_lines`."""
    sides = zip(_kept_by(found), (found.bdh, found.transformer), strict=True)
    return {name: [(one.heard_bytes, one.filled) for one in side.held] for name, side in sides}


def _kept_by(found: Comparison) -> tuple[str, str]:
    return f"{found.bdh.title}: constant", f"Transformer, window of {found.window_bytes:,}"


def memory_chart(found: Comparison) -> alt.LayerChart | Any:
    """Memory against length: lines are computed, points measured."""
    import altair as alt  # noqa: PLC0415 - the page starts without it

    computed = memory_lines(found)
    names = list(computed)
    points, measured = (
        [{"bytes": at, "memory": memory, "which": which} for which, line in of.items() for at, memory in line]
        for of in (computed, memory_points(found))
    )
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
    return field.fitted(alt.layer(lines, dots.encode(x=x, y=y, color=colour, tooltip=tooltip)), 400)


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
        reach = reach_of(one.shares)
        own = "A byte sees itself, too." if one.own else "A byte does not see itself; blue takes away."
        figures.append(
            f"<figure><figcaption><b>{html.escape(name)}</b>, {html.escape(one.title)}<br>"
            f"{field.scale(reach)}</figcaption>"
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
.report.facts .wide :is(th, td), .report.zeros .wide thead th { white-space: normal; overflow-wrap: break-word; }
.report:is(.facts, .zeros) .wide th:first-child { min-width: 4.5rem; }
@media (max-width: 500px) { .report:is(.facts, .zeros) .wide :is(th, td) { padding: 5px 4px; } }
.report .meter { position: relative; display: inline-block; width: min(9rem, 18vw); text-align: right;
  padding: 0 6px; border-radius: 3px; background: var(--background-fill-secondary); overflow: hidden; }
.report .meter i { position: absolute; inset: 0 auto 0 0; background: rgba(217, 98, 8, 0.35); }
.report .meter b { position: relative; font-weight: 500; }
#baseline-memory .vega-embed, #baseline-memory .altair { width: 100%; }
#baseline-memory .vega-embed details { display: none; }
"""
"""The looks, for the page's style sheet; the rest is in those of the view Memory."""
