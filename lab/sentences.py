"""Two sets of sentences, one about a concept and one that is not: the shipped ones, and those a person gives.

The shipped ones were made for this project from patterns with words put in; only the prose is verses from the held-out
part of the corpora of `train/corpora`, which are in the public domain.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdh.errors import DataError

from .separation import halves

FOLDER = Path(__file__).parent / "sentences"
"""Of each preset a file of the concept and one of the contrast, a sentence a line."""
PRESETS = {
    "currencies": "the same sentences with a currency, and with another thing in its place",
    "numbers": "the same sentences with a number in words, and with another word",
    "names": "the same sentences with a person's name, and with a kind of person",
    "questions": "questions, and statements with the same words, neither with the mark at its end",
    "code": "lines of Python, and English prose",
    "spanish": "Spanish prose, and English prose",
}
LEAST, MOST = 12, 200
"""Sentences of one set."""
LEAST_BYTES, MOST_BYTES = 8, 256
"""Of one sentence."""


class Sentences(NamedTuple):
    """What a concept is searched in."""

    name: str
    concept: tuple[bytes, ...]
    contrast: tuple[bytes, ...]

    @property
    def all(self) -> tuple[bytes, ...]:
        """The concept's, then the contrast's."""
        return self.concept + self.contrast

    @property
    def is_concept(self) -> NDArray[np.bool_]:
        """Which of `all` are the concept's."""
        return np.arange(len(self.all)) < len(self.concept)

    def searched(self, seed: int) -> NDArray[np.bool_]:
        """Which of `all` are looked at; the others are held out. Decided before anything is heard."""
        return halves(self.is_concept, seed)


def preset(name: str) -> Sentences:
    """A shipped pair of sets.

    Raises:
        DataError: there is none of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise DataError(f"there are no sentences {name!r:.40}; there are {', '.join(PRESETS)}")
    concept, contrast = ((FOLDER / f"{name}.{which}.txt").read_text(encoding="utf-8") for which in _SETS)
    return parse(name, concept, contrast)


_SETS = ("concept", "contrast")


def parse(name: str, concept: str, contrast: str) -> Sentences:
    """Two sets from text with a sentence a line; empty lines and repeated sentences are left out.

    Raises:
        DataError: too few or too many sentences, one too short or too long, or one that is in both sets.
    """
    both = [_lines(text, which) for text, which in zip((concept, contrast), _SETS, strict=True)]
    if shared := set(both[0]) & set(both[1]):
        one = min(shared).decode("utf-8", "replace")
        raise DataError(f"{one!r:.80} stands in both sets; a sentence is either about the concept or not")
    return Sentences(name, *both)


def _lines(text: str, which: str) -> tuple[bytes, ...]:
    lines = [line.rstrip() for line in text.splitlines()]
    sentences = tuple(dict.fromkeys(line.encode("utf-8", "replace") for line in lines if line.strip()))
    if not LEAST <= len(sentences) <= MOST:
        raise DataError(
            f"the {which} has {len(sentences):,} different sentences, a line each; give {LEAST} to {MOST}, better 50"
        )
    for sentence in sentences:
        if not LEAST_BYTES <= len(sentence) <= MOST_BYTES:
            raise DataError(
                f"{sentence.decode('utf-8', 'replace')!r:.60} in the {which} has {len(sentence):,} bytes; a sentence "
                f"has {LEAST_BYTES} to {MOST_BYTES}"
            )
    return sentences
