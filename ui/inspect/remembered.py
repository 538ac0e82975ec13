"""A Hebbian memory as markup: its field of numbers, what a byte writes and reads, its synapses, its growth."""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh.text import Utf8Assembler
from lab import memory as lab
from lab.memory import Trace, Wiring
from train.plots import reach_of

from ..registry import size_text
from . import field
from .field import number

if TYPE_CHECKING:
    import altair as alt

BY_STRENGTH, BY_NUMBER = "strongest first", "by number"
ALL = "all"
SHOWN = (ALL, "256", "64", "16")
"""Neurons in a picture, as a person chooses."""
_MOST_COLUMNS = 1_024
"""Of a picture; of more neurons, neighbours share one."""
_BEFORE, _AFTER = 600, 60
"""Writes around the chosen one that are shown as text."""


def ordered(rows: Tensor, order: str, first: float | None, shown: str) -> NDArray[np.int64]:
    """The neurons that a picture shows, from left to right; by strength, those that wrote anything."""
    neurons = np.arange(len(rows))
    if order == BY_STRENGTH:
        norms = rows.norm(dim=1)
        written = max(1, int((norms > 0).sum()))
        neurons = norms.argsort(descending=True, stable=True).numpy()[:written]
    count = len(neurons)
    size = count if shown == ALL or shown not in SHOWN else min(int(shown), count)
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
    reach = reach_of(values)
    what = "neuron" if trace.place.excites else "query dimension"
    shared = f" {together} neighbours share a column: the root of their mean square." if together > 1 else ""
    span = f"{len(neurons):,} of {len(rows):,} {what}s" if len(neurons) < len(rows) else f"all {len(rows):,} {what}s"
    silent = int((~rows.any(1)).sum())
    span += f" ({silent:,} have written nothing)" if silent else ""
    meaning = (
        f"A column is an x neuron: what the layer would read now if that neuron alone fired, in {values.shape[0]} "
        "dimensions from top to bottom."
        if trace.place.excites
        else f"A column is a dimension of the query, top to bottom the {values.shape[0]} dimensions of what is read."
    )
    named = ""
    if len(neurons) <= lab.NAMED_NEURONS:
        named = f'<div class="named">{"".join(f"<span>{one}</span>" for one in neurons)}</div>'
    label = f"The memory after {count} writes as a field of {values.shape[0]} by {values.shape[1]} numbers"
    return (
        f'<div class="inside">{field.picture(values, reach, label, height_rem=18, crisp=values.shape[1] < 512)}'
        f"{named}<p>{span}, {order}; {field.scale(reach)}</p><p>{meaning}{shared}</p></div>"
    )


@lru_cache(maxsize=32)
def units(data: bytes, step_bytes: int) -> tuple[tuple[int, int, str], ...]:
    """A text in parts that are written together or are one character: first write, the one after the last, text."""
    if step_bytes > 1:
        return tuple(
            (start // step_bytes, start // step_bytes + 1, data[start : start + step_bytes].decode(errors="replace"))
            for start in range(0, len(data) - step_bytes + 1, step_bytes)
        )
    assembler, at = Utf8Assembler(), 0
    found = []
    for character in [one for byte in data for one in assembler.push(byte)] + list(assembler.flush()):
        found.append((at, at + len(character.raw), character.text))
        at += len(character.raw)
    return tuple(found)


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
    parts = units(trace.data, trace.place.step_bytes)
    found = parts[bisect_right(parts, write, key=lambda part: part[0]) - 1]
    return found[2].replace(" ", "\u2423")


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
        f"left); the sizes of the weights add up to {number(total)}. Negative ones take away.</p>"
        f"<ol>{''.join(rows)}</ol>"
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
    reach = reach_of(values)
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
    return field.fitted(
        alt.Chart(points)
        .mark_line(color="#d96208", point=len(values) < 4)
        .encode(
            x=alt.X("bytes:Q", title="bytes heard", axis=alt.Axis(format=",d", tickCount=4)),
            y=alt.Y("value:Q", title=label, scale=alt.Scale(zero=True)),
            tooltip=[alt.Tooltip("bytes:Q", format=","), alt.Tooltip("value:Q", format=".4g", title=label)],
        ),
        190,
    )


def ordered_for_both(first: Tensor, second: Tensor) -> NDArray[np.int64]:
    """The neurons that wrote into either of two memories, those with the strongest rows first."""
    return ordered(torch.maximum(first.norm(dim=1), second.norm(dim=1))[:, None], BY_STRENGTH, 0, ALL)


def beside(first: Tensor, second: Tensor, names: tuple[str, str]) -> str:
    """Markup of two memories of one head and of their difference, neurons in one order and colours in one scale."""
    alike = lab.likeness(first, second)
    order = ordered_for_both(first, second)
    drawn = {f"after {names[0]}": first, f"after {names[1]}": second, "the second less the first": second - first}
    fields = {name: columns(rows, order)[0] for name, rows in drawn.items()}
    reach = reach_of(*fields.values())
    pictures = "".join(
        f"<figure><figcaption>{name} <small>norm {number(float(drawn[name].norm()))}</small></figcaption>"
        f"{field.picture(values, reach, name, height_rem=9, crisp=values.shape[1] < 512)}</figure>"
        for name, values in fields.items()
    )
    apart = (second - first).norm(dim=1)
    top = ", ".join(str(int(one)) for one in apart.topk(min(8, len(apart))).indices)
    return (
        f'<div class="inside">{pictures}<p>Neurons with the strongest rows stand left, in the same order in all '
        f"three, without those that wrote nothing in both; {field.scale(reach)}</p>"
        f"<p>Cosine <b>{alike.cosine:.3f}</b> (1: the same direction, 0: nothing in "
        f"common). Both have written {alike.both:.0%} of the rows, the first alone {alike.only[0]:.0%}, the second "
        f"alone {alike.only[1]:.0%}. Rows that differ most: {top}. Each memory is turned to the position that reads it "
        "next, so that texts of different lengths can be compared.</p></div>"
    )


def summary(trace: Trace, model: str) -> str:
    """Markup of what a model of that name heard, in one line."""
    place = trace.place
    damped = f" \u00b7 keeps {trace.decay:.2%} from write to write" if trace.decay < 1 else ""
    fresh = f" \u00b7 begins anew every {place.span} bytes" if place.span else ""
    wrote = f"{trace.writes:,} patches of {place.step_bytes} bytes" if place.step_bytes > 1 else ""
    heard = " \u00b7 ".join(one for one in (f"{len(trace.data):,} bytes heard", wrote) if one)
    return (
        f'<p class="summary"><b>{html.escape(model)}, {html.escape(place.title)}, head {trace.head + 1}</b> \u00b7 '
        f"{heard} \u00b7 {place.neurons:,} \u00d7 {place.width} numbers, {size_text(place.memory_bytes)} at any length"
        f"{damped}{fresh}</p>"
    )


def growth_note(trace: Trace) -> str:
    """Markup that says how to read the curves."""
    damped = (
        "Damping lets the norm level off: what is written makes up for what is lost."
        if trace.decay < 1
        else "Nothing damps this head, so its norm grows with all that it hears."
    )
    fresh = f" It begins anew every {trace.place.span} bytes; shown are the first." if trace.place.span else ""
    return (
        f'<div class="inside"><p>The memory takes {size_text(trace.place.memory_bytes)} from the first byte to the '
        f"last; what changes is how much of it is in use. {fresh or damped} The effective rank says how "
        "many directions of what is read are told apart.</p></div>"
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
.inside ol { margin: 4px 0; padding-left: 1.6em; columns: 12rem 2; font-size: var(--text-sm); list-style: decimal; }
.inside li small { color: var(--body-text-color-subdued); }
.inside.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 16px; }
.inside.strip { font-family: var(--font-mono); font-size: var(--text-md); line-height: 1.65; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 14rem; overflow-y: auto; padding: 10px 12px;
  border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
.inside.strip span { cursor: pointer; border-radius: 2px; }
.inside.strip span:hover { outline: 1px solid var(--color-accent); }
.inside.strip .here { outline: 2px solid var(--color-accent); font-weight: 700; }
.inside.strip .later { color: var(--body-text-color-subdued); }
.inside .vector { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 10px; }
#memory-growth .vega-embed, #memory-growth .altair { width: 100%; }
#memory-growth .vega-embed details { display: none; }
"""
)
"""The looks, for the page's style sheet."""
