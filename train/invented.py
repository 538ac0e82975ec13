"""Dialogues about words that nobody knows: the shipped ones, with the asked word replaced by one made up for it.

A word that is made up anew each time cannot be known by heart. To name it, an answer must take its letters from the
question, so these dialogues train what `evaluate --names` measures.
"""

from __future__ import annotations

import functools
import lzma
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from .shipped import CORPORA, held_out_start

if TYPE_CHECKING:
    from .generated import Draws

_ASKED = re.compile(r'"([a-z]{3,})"')
_PARTS = re.compile(r"[^aeiouy]*[aeiouy]+(?:[^aeiouy]+$)?")


@functools.cache
def _trained() -> tuple[tuple[tuple[str, str], ...], tuple[str, ...], frozenset[str]]:
    """Asked words with their dialogues; the syllables of these words; and words that must not be made up.

    The last are all that stand in the corpus, its held-out part included.
    """
    data = lzma.decompress((CORPORA / "chat.txt.xz").read_bytes())
    dialogues = data[: held_out_start(len(data))].decode(errors="ignore").split("\n\n")[:-1]
    asked = [(found[1], text) for text in dialogues if (found := _ASKED.search(text.partition("\n")[0]))]
    syllables = sorted({part for word, _ in asked for part in _PARTS.findall(word)})
    return tuple(asked), tuple(syllables), frozenset(re.findall(r"\w+", data.decode(errors="ignore").lower()))


def invented_dialogue(draws: Draws) -> str:
    """A dialogue of the shipped corpus's trained part about a made-up word."""
    asked, syllables, known = _trained()
    word, text = draws.pick(asked)
    made = word
    while made in known or not 4 <= len(made) <= 14:
        made = "".join(draws.some(syllables, draws.whole(1, 4)))
    return re.sub(rf"\b{word}\b", _in_case(made), text, flags=re.IGNORECASE) + "\n\n"


def _in_case(word: str) -> Callable[[re.Match[str]], str]:
    return lambda found: word.capitalize() if found[0][0].isupper() else word
