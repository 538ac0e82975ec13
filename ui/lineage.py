"""Whose neurons carried a text, as markup: each parent has a colour, the same in texts, bars and legends."""

from __future__ import annotations

import html
import secrets
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdh.text import Utf8Assembler

from . import tint
from .tint import Glyph, Pair

LIGHT = (
    Pair("#b7e0c8", "#1f2933"),
    Pair("#ffd3a1", "#1f2933"),
    Pair("#b9d3f6", "#1f2933"),
    Pair("#f4bcd6", "#1f2933"),
    Pair("#d8c6f5", "#1f2933"),
    Pair("#efe08a", "#1f2933"),
    Pair("#b5e5e8", "#1f2933"),
    Pair("#d8d0c2", "#1f2933"),
)
"""A pair for each parent; beyond the last they begin anew."""
DARK = (
    Pair("#17633a", "#f3f4f6"),
    Pair("#86460f", "#f3f4f6"),
    Pair("#23509c", "#f3f4f6"),
    Pair("#8a1d4f", "#f3f4f6"),
    Pair("#5a34a0", "#f3f4f6"),
    Pair("#665808", "#f3f4f6"),
    Pair("#176b70", "#f3f4f6"),
    Pair("#57503f", "#f3f4f6"),
)
"""The same on a dark page."""
BARS = ("#34a06a", "#e08a2b", "#4a86d8", "#d0568f", "#8a63d2", "#b79f1b", "#2aa3aa", "#8b7f6a")
"""The same as bars of a chart, which are seen on light and dark pages."""
_FAINT_LEAD = 0.1
"""A lead over the next parent below which a character's colour is faint, in parts of all activity."""


class Carried(NamedTuple):
    """A character, and the part that each parent had in it."""

    glyph: Glyph
    shares: tuple[float, ...]

    @property
    def parent(self) -> int:
        """The one that carried most of it."""
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    @property
    def faint(self) -> bool:
        """Whether another parent carried nearly as much."""
        first, second = sorted((0.0, *self.shares), reverse=True)[:2]
        return first - second < _FAINT_LEAD


def carried_by(data: bytes, shares: NDArray[np.float32]) -> list[Carried]:
    """The characters of a text, each with the mean shares of its bytes.

    Args:
        shares: (bytes, parents).
    """
    assembler, found, at = Utf8Assembler(), [], 0
    characters = [character for byte in data for character in assembler.push(byte)] + list(assembler.flush())
    for character in characters:
        part = shares[at : at + len(character.raw)].mean(0)
        at += len(character.raw)
        found.append(Carried(Glyph(character.text, character.raw, ()), tuple(map(float, part))))
    return found


def tinted(characters: Sequence[Carried], names: Sequence[str]) -> str:
    """Markup of characters, each on its parent's ground; all text is escaped."""
    pieces = []
    for (parent, faint), group in groupby(characters, key=lambda one: (one.parent, one.faint)):
        run = list(group)
        for start in range(0, len(run), tint.RUN_CHARACTERS):
            part = run[start : start + tint.RUN_CHARACTERS]
            tooltip = html.escape(_parts(np.mean([one.shares for one in part], axis=0), names))
            text = "".join(_shown(one.glyph) for one in part)
            faintly = " faint" if faint else ""
            pieces.append(f'<span class="p{parent % len(LIGHT)}{faintly}" title="{tooltip}">{text}</span>')
    return "".join(pieces)


def drawn(markup: str, run: str) -> dict[str, Any]:
    """Markup as `tint.DRAW` takes it, of a text that is told from others by `run`."""
    return {"run": run, "first": 0, "pages": [markup]}


def new_run() -> str:
    """What a new text is told from others by."""
    return secrets.token_hex(4)


def overall(characters: Sequence[Carried], names: Sequence[str]) -> str:
    """The parts that parents had in a text, in words."""
    return _parts(np.mean([one.shares for one in characters], axis=0), names) if characters else ""


def legend(names: Sequence[str]) -> str:
    """Markup that says which colour is whose."""
    listed = "".join(
        f'<li><span class="p{place % len(LIGHT)}">{html.escape(name)}</span></li>' for place, name in enumerate(names)
    )
    return (
        '<div class="tint lineage legend"><p>Each character stands on the colour of the parent that carried most of '
        "it; faint where another was close. Point at the text for the shares.</p>"
        f'<ul aria-label="Colours">{listed}</ul></div>'
    )


def bars(shares: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Markup of a bar for each text, cut into the parts that each parent had in it."""
    rows = []
    for text, parts in shares.items():
        cut = "".join(
            f'<span class="p{place % len(LIGHT)}" style="flex-grow:{part:.4f}" '
            f'title="{html.escape(name)}: {part:.1%}">{f"{part:.0%}" if part > 0.06 else ""}</span>'
            for place, (name, part) in enumerate(zip(names, parts, strict=True))
        )
        rows.append(f'<dt>{html.escape(text)}</dt><dd class="bar">{cut}</dd>')
    return f'<div class="tint lineage shares"><dl>{"".join(rows)}</dl>{_chips(names)}</div>'


def _chips(names: Sequence[str]) -> str:
    listed = "".join(
        f'<li><span class="p{place % len(LIGHT)}">{html.escape(name)}</span></li>' for place, name in enumerate(names)
    )
    return f'<ul aria-label="Colours">{listed}</ul>'


def _shown(glyph: Glyph) -> str:
    return f'<span class="badge">{html.escape(glyph.badge)}</span>' if glyph.badge else html.escape(glyph.text)


def _parts(shares: Sequence[float] | NDArray[Any], names: Sequence[str]) -> str:
    return " · ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=False))


def _rules(pairs: Sequence[Pair], before: str) -> str:
    rules = []
    for place, pair in enumerate(pairs):
        rules.append(f"{before}.tint .p{place} {{ background: {pair.ground}; color: {pair.text}; }}")
        faint = f"color-mix(in srgb, {pair.ground} 45%, transparent)"
        rules.append(f"{before}.tint .p{place}.faint {{ background: {faint}; color: inherit; }}")
    return "\n".join(rules)


CSS = (
    """
.lineage.shares { padding: 12px; border: 1px solid var(--border-color-primary); font-size: var(--text-sm); }
.lineage.shares dl { display: grid; grid-template-columns: minmax(4rem, max-content) 1fr; gap: 6px 12px; margin: 0; }
.lineage.shares dd { margin: 0; }
.lineage .bar { display: flex; border-radius: 4px; overflow: hidden; }
.lineage .bar span { flex-basis: 0; min-width: 0; border-radius: 0; padding: 1px 0; text-align: center;
  white-space: nowrap; overflow: hidden; }
.lineage ul { display: flex; flex-wrap: wrap; gap: 6px 10px; list-style: none; margin: 0; padding: 0; }
.lineage.shares ul { margin: 0 !important; padding: 12px 0 0; }
.summary .lineage { font-size: inherit; background: none; }
.lineage li { margin: 0; padding: 0; }
.lineage li span { padding: 1px 6px; }
"""
    + _rules(LIGHT, "")
    + "\n"
    + _rules(DARK, ".dark ")
    + "\n"
)
"""The looks, for the page's style sheet."""
