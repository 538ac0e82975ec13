"""Which bytes fire a neuron most, in shipped texts: as markup, and as files to take along."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bdh.probe import Point
from lab.claim import write_json
from lab.reading import strongest_firings
from train.plots import draw_bars

from .named import one_line

_SHOWN, _COMMON = 12, 6
_BEFORE, _AFTER = 36, 12
"""Bytes shown around one that fired a neuron."""
_BEFORE_DRAWN, _AFTER_DRAWN = 20, 6


class Fired(NamedTuple):
    """A place where a neuron fired."""

    corpus: str
    first_byte: int
    """Of the byte or patch, counted from the beginning of the excerpt."""
    before: bytes
    fired: bytes
    after: bytes
    value: float


class Firings(NamedTuple):
    """What fires a neuron; small, so that a page can hold it."""

    who: str
    place: str
    """What it hears at once, "byte" or "patch"."""
    corpora: tuple[str, ...]
    heard_bytes: int
    rows: int
    """Bytes or patches heard."""
    active: int
    """Of them, those at which it fires."""
    strongest: tuple[Fired, ...]
    common: tuple[tuple[bytes, int], ...]
    """What it fires at most often, and how often."""


def firings(who: str, point: Point, found: Mapping[str, tuple[bytes, Any]]) -> Firings:
    """What fires a neuron.

    Args:
        who: the neuron in words.
        found: what was heard and the neuron's values, by the names of corpora.
    """
    patch = point.bytes_per_row
    ranked = sorted(
        (
            (firing, name, data)
            for name, (data, values) in found.items()
            for firing in strongest_firings(values, patch, count=_SHOWN)
        ),
        key=lambda one: -one[0].value,
    )[:_SHOWN]
    counted: Counter[bytes] = Counter()
    for data, values in found.values():
        for row in (values > 0).nonzero()[0].tolist():
            counted[data[row * patch : (row + 1) * patch]] += 1
    return Firings(
        who,
        "patch" if patch > 1 else "byte",
        tuple(found),
        sum(len(data) for data, _ in found.values()),
        sum(len(values) for _, values in found.values()),
        sum(counted.values()),
        tuple(
            Fired(
                name,
                firing.first,
                data[max(0, firing.first - _BEFORE) : firing.first],
                data[firing.first : firing.last + 1],
                data[firing.last + 1 : firing.last + 1 + _AFTER],
                firing.value,
            )
            for firing, name, data in ranked
        ),
        tuple(counted.most_common(_COMMON)),
    )


def markup(found: Firings) -> str:
    """Markup of the bytes that fire a neuron most, in the texts around them, and of which bytes these are."""
    names = html.escape(", ".join(found.corpora))
    who = html.escape(found.who)
    if not found.active:
        return (
            f'<p class="summary">{who} fires at none of {found.heard_bytes:,} bytes of {names}; read more with another '
            "text.</p>"
        )
    lines = "".join(
        f"<tr><td><code>{_text(one.before)}<mark>{_text(one.fired)}</mark>{_text(one.after)}</code></td>"
        f"<td>{html.escape(one.corpus)}</td><td>{one.value:.3g}</td></tr>"
        for one in found.strongest
    )
    common = ", ".join(
        f"<code>{_text(raw).replace(' ', '␣')}</code> {count / found.active:.0%}" for raw, count in found.common
    )
    places = "patches" if found.place == "patch" else "bytes"
    return (
        f'<div class="firings"><p><b>{who}</b> fires at {found.active:,} of {found.rows:,} {places} '
        f"({found.active / found.rows:.1%}) of {names}, held out from training. Most often at {common}.</p>"
        "<table><thead><tr><th>Where it fires most</th><th>Text</th><th>Value</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def save(found: Firings, folder: Path) -> list[Path]:
    """Write what fires a neuron as JSON, and where most as PNG; of one that never fires the first alone."""
    told, png = folder / "firings.json", folder / "firings.png"
    fields = {
        **found._asdict(),
        "strongest": [
            {name: _decoded(value) if isinstance(value, bytes) else value for name, value in one._asdict().items()}
            for one in found.strongest
        ],
        "common": [{found.place: _decoded(raw), "times": times} for raw, times in found.common],
    }
    write_json(told, fields)
    if not found.strongest:
        return [told]
    rows = {
        f"{index}. {_drawn(one)}": {found.who: (one.value, one.value, one.value)}
        for index, one in enumerate(found.strongest, 1)
    }
    draw_bars(rows, f"value at the {found.place} in brackets", png)
    return [told, png]


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _drawn(one: Fired) -> str:
    """What fired a neuron, in brackets, as a drawing shows it."""
    text = f"{_plain(one.before[-_BEFORE_DRAWN:])}[{_plain(one.fired)}]{_plain(one.after[:_AFTER_DRAWN])}"
    return text.replace(" ", "␣")


def _plain(data: bytes) -> str:
    return one_line(data.decode("utf-8", errors="replace"))


def _text(data: bytes) -> str:
    return html.escape(_plain(data))


CSS = """
.firings { font-size: var(--text-sm); overflow-x: auto; }
.firings p { margin: 8px 0; overflow-wrap: anywhere; }
.firings table { width: 100%; border-collapse: collapse; border: none !important; }
.firings tr { border: none !important; background: none !important; }
.firings th, .firings td { text-align: left; padding: 3px 8px; border: none !important;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.firings td:first-child { white-space: pre; }
.firings td:last-child { font-variant-numeric: tabular-nums; }
.firings mark { background: var(--primary-300); color: #0b0b0b; border-radius: 2px; padding: 0 1px; }
"""
"""The looks, for the page's style sheet."""
