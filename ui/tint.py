"""Written bytes as markup: each character on a ground that says how surprising it was."""

from __future__ import annotations

import html
import secrets
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

from bdh.text import Utf8Assembler

BOUNDS_BITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Where one level of surprise ends and the next begins."""
LEVEL_NAMES = ("under ½ bit", "½ to 1", "1 to 2", "2 to 4", "4 to 8", "8 bits or more")
TINTED_CHARACTERS = 20_000
"""Characters that are tinted; what follows them is plain, so that the browser keeps up."""
PAGE_CHARACTERS = 500
"""A page ends at the first line break after so many characters, or at eight times as many."""
RUN_CHARACTERS = 16
"""Longest run of one colour, whose characters share a tooltip."""


class Pair(NamedTuple):
    """Text on its ground."""

    ground: str
    text: str


LIGHT = (
    Pair("#ffffff", "#1f2933"),
    Pair("#fff0cc", "#1f2933"),
    Pair("#fdd38a", "#1f2933"),
    Pair("#f9a64f", "#1f2933"),
    Pair("#d95f1e", "#0b0b0b"),
    Pair("#8f2209", "#ffffff"),
)
"""A pair for each level: one family of hues that only darkens, so that no colour vision is needed to read it."""
DARK = (
    Pair("#111827", "#e5e7eb"),
    Pair("#3b2a10", "#f3f4f6"),
    Pair("#6b3a0a", "#ffffff"),
    Pair("#9c4a0c", "#ffffff"),
    Pair("#ee8a34", "#0b0b0b"),
    Pair("#ffdc9a", "#0b0b0b"),
)
"""The same on a dark page, where the ground only brightens."""
PROMPT = Pair("#ffffff", "#4b5563"), Pair("#111827", "#b6bfcc")
"""A prompt that is not tinted: light, dark."""


class Glyph(NamedTuple):
    """A character as a model wrote it, or bytes that are no text."""

    text: str
    raw: bytes
    bits: tuple[float, ...]
    """What each byte cost."""

    @property
    def level(self) -> int:
        """How surprising the whole was, as an index of `LEVEL_NAMES`."""
        return bisect_right(BOUNDS_BITS, sum(self.bits))

    @property
    def badge(self) -> str:
        """What stands for it if it cannot be shown: its bytes or its number; empty if it can."""
        if self.raw != self.text.encode("utf-8", errors="replace"):
            return self.raw.hex(" ").upper()
        if self.text in "\n\t" or self.text.isprintable():
            return ""
        return f"{ord(self.text):02X}" if ord(self.text) < 0x80 else f"U+{ord(self.text):04X}"

    @property
    def tooltip(self) -> str:
        """The character, its bytes and its bits."""
        name = {"\n": "line break", " ": "space", "\t": "tab"}.get(self.text, self.text)
        name = "not shown" if self.badge else name
        cost = f"{sum(self.bits):.2f} bits"
        if len(self.bits) > 1:
            cost += f" ({' + '.join(f'{bits:.2f}' for bits in self.bits)})"
        return f"{name} · {self.raw.hex(' ').upper()} · {cost}"


class Glyphs:
    """Characters from single bytes with their bits, held back until they are whole."""

    def __init__(self) -> None:
        self._assembler = Utf8Assembler()
        self._bits: deque[float] = deque()

    def push(self, byte: int, surprise_bits: float) -> list[Glyph]:
        """The characters that this byte completes."""
        self._bits.append(surprise_bits)
        return [self._glyph(c.text, c.raw) for c in self._assembler.push(byte)]

    def flush(self) -> list[Glyph]:
        """What is left at the end."""
        return [self._glyph(c.text, c.raw) for c in self._assembler.flush()]

    def _glyph(self, text: str, raw: bytes) -> Glyph:
        return Glyph(text, raw, tuple(self._bits.popleft() for _ in raw))


def tinted(glyphs: Iterable[Glyph]) -> str:
    """Markup of characters; neighbours of one colour share an element. All text is escaped."""
    pieces = []
    for (level, shape), group in groupby(glyphs, key=lambda glyph: (glyph.level, _shape(glyph))):
        run = list(group)
        for start in range(0, len(run), RUN_CHARACTERS):
            part = run[start : start + RUN_CHARACTERS]
            tooltip = html.escape("\n".join(glyph.tooltip for glyph in part))
            if shape != "badge":
                text = html.escape("".join(glyph.text for glyph in part))
                pieces.append(f'<span class="s{level}{shape}" title="{tooltip}">{text}</span>')
                continue
            for glyph in part:
                tooltip = html.escape(glyph.tooltip)
                pieces.append(f'<span class="s{level} badge" title="{tooltip}">{html.escape(glyph.badge)}</span>')
    return "".join(pieces)


def plain(glyphs: Iterable[Glyph]) -> str:
    """Markup of characters without colours."""
    return html.escape("".join("\N{REPLACEMENT CHARACTER}" if glyph.badge else glyph.text for glyph in glyphs))


def _shape(glyph: Glyph) -> str:
    """Further classes of the element that a character goes into."""
    if glyph.badge:
        return "badge"
    return " newline" if glyph.text == "\n" and glyph.level else ""


class Ink:
    """Markup that grows at its end, cut into pages at line breaks; only the last page changes.

    A browser that is handed all of a long text many times a second stalls, however little of it is new.
    """

    def __init__(self, opening: str = "", characters: int = 0) -> None:
        """`opening` is markup of so many characters that stands before all that is written."""
        self.pages = [opening]
        self._open_characters = characters
        self._run = secrets.token_hex(4)
        self._glyphs = Glyphs()
        self._room = TINTED_CHARACTERS

    @property
    def markup(self) -> str:
        """All pages as one."""
        return "".join(self.pages)

    def write(self, written: Iterable[tuple[int, float]]) -> None:
        """Append bytes with the bits that each cost."""
        self._append([glyph for byte, bits in written for glyph in self._glyphs.push(byte, bits)])

    def finish(self) -> None:
        """Append what is left of a character that was never completed."""
        self._append(self._glyphs.flush())

    def whole(self) -> dict[str, Any]:
        """All pages, as `DRAW` takes them."""
        return {"run": self._run, "first": 0, "pages": list(self.pages)}

    def latest(self) -> dict[str, Any]:
        """The pages that changed of late, for one who has drawn those before."""
        first = max(0, len(self.pages) - 2)
        return {"run": self._run, "first": first, "pages": self.pages[first:]}

    def _append(self, glyphs: list[Glyph]) -> None:
        start = 0
        for end, glyph in enumerate(glyphs, 1):
            self._open_characters += 1
            at_line_break = glyph.text == "\n" and self._open_characters >= PAGE_CHARACTERS
            if at_line_break or self._open_characters >= 8 * PAGE_CHARACTERS:
                self._put(glyphs[start:end])
                self.pages.append("")
                start, self._open_characters = end, 0
        self._put(glyphs[start:])

    def _put(self, glyphs: list[Glyph]) -> None:
        tint, rest = glyphs[: self._room], glyphs[self._room :]
        self._room -= len(tint)
        self.pages[-1] += tinted(tint) + plain(rest)


def legend(*, own: bool = False) -> str:
    """Markup that explains the colours; with `own`, not the prompt is marked but what the model wrote."""
    levels = "".join(f'<li><span class="s{level}">{name}</span></li>' for level, name in enumerate(LEVEL_NAMES))
    mark = '<span class="prompt">prompt</span> what you wrote'
    if own:
        mark = '<span class="own">text</span> what the model wrote'
    return (
        '<div class="tint legend"><p>How surprised the model was by each character, in bits. 1 bit is a coin toss; '
        "8 bits is a byte guessed blindly. Point at the text for the numbers.</p>"
        f'<ul aria-label="Colours">{levels}<li><span class="s0 badge">FF</span> a byte that is no text</li>'
        f"<li>{mark}</li></ul></div>"
    )


def _rules(pairs: tuple[Pair, ...], prompt: Pair, before: str) -> str:
    rules = [f"{before}.tint {{ background: {pairs[0].ground}; color: {pairs[0].text}; }}"]
    rules += [
        f"{before}.tint .s{level} {{ background: {pair.ground}; color: {pair.text}; }}"
        for level, pair in enumerate(pairs)
    ]
    rules.append(f"{before}.tint .prompt {{ color: {prompt.text}; }}")
    return "\n".join(rules)


CSS = (
    """
.flush .html-container { padding: 0 !important; }
.summary { margin: 0 !important; font-size: var(--text-sm); min-height: 1.4em; overflow-wrap: anywhere; }
.tint { border-radius: var(--radius-lg); font-size: var(--text-md); line-height: 1.65; }
.tint span { color: inherit; border-radius: 2px; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.tint.written { font-family: var(--font-mono); white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto;
  min-height: 9rem; max-height: 32rem; padding: 12px; border: 1px solid var(--border-color-primary); tab-size: 4; }
.tint.written:empty::before { content: attr(data-empty); opacity: 0.75; font-family: var(--font); }
.tint.written:focus-visible { outline: 2px solid var(--color-accent); }
.tint .prompt { border-bottom: 1px dotted currentColor; }
.tint .own { border-bottom: 2px solid var(--color-accent); }
.tint .badge { font-size: 0.75em; padding: 0 3px; margin: 0 1px; border: 1px solid currentColor; border-radius: 3px;
  font-family: var(--font-mono); white-space: nowrap; }
.tint .newline::before { content: "\\21B5"; font-size: 0.8em; }
.tint.legend { padding: 10px 12px; font-size: var(--text-sm); border: 1px solid var(--border-color-primary); }
.tint.legend p { margin: 0 0 6px; color: inherit; }
.tint.legend ul { display: flex; flex-wrap: wrap; gap: 6px 10px; list-style: none; margin: 0; padding: 0; }
.tint.legend li { margin: 0; padding: 0; color: inherit; }
.tint.legend li span:not(.prompt) { padding: 1px 6px; }
"""
    + _rules(LIGHT, PROMPT[0], "")
    + "\n"
    + _rules(DARK, PROMPT[1], ".dark ")
    + "\n"
)
"""The looks, for the page's style sheet."""

TEMPLATE = '<div class="tint written" tabindex="0" role="region" aria-label="{label}" data-empty="{empty}"></div>'
"""Where markup is drawn; filled in with escaped words when a component is made."""

DRAW = """
const place = element.querySelector('.written');
let run = null;
let drawn = [];
const draw = () => {
  const value = props.value || { run: '', first: 0, pages: [] };
  const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
  if (value.run !== run) {
    run = value.run;
    drawn = [];
    place.replaceChildren();
  }
  value.pages.forEach((markup, offset) => {
    const index = value.first + offset;
    for (; drawn.length <= index; drawn.push('')) place.append(document.createElement('div'));
    const before = drawn[index];
    if (!markup.startsWith(before)) place.children[index].innerHTML = markup;
    else if (markup.length > before.length) {
      place.children[index].insertAdjacentHTML('beforeend', markup.slice(before.length));
    }
    drawn[index] = markup;
  });
  if (atEnd) place.scrollTop = place.scrollHeight;
};
watch('value', draw);
draw();
"""
"""Draws what `Ink.latest` or `Ink.whole` gives, and of that only what is new."""
