"""A needle in a haystack: one sentence hidden in a text, and a question about it at the end."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bdh.errors import DataError
from bdh.models import Model

from ..data import Bytes
from .hearing import Progress, Tally, hear, judge, streams_side_by_side

LENGTHS_BYTES = (250, 1000, 4000)
"""Haystacks, where nothing else is asked for."""

_CONSONANTS, _VOWELS = "bdfghjklmnprstvwz", "aeiou"
_NAME_SYLLABLES, _WORD_SYLLABLES = 2, 3
_QUESTION = " The secret word of {} is"
_SOON_BYTES = 64
_NEEDLE_BYTES = len(_QUESTION.format("")) + 2 * _NAME_SYLLABLES + 1 + 2 * _WORD_SYLLABLES + 1


@dataclass(frozen=True)
class Needle:
    """How often the word was found at one place."""

    length_bytes: int
    """Of the haystack with the needle in it."""
    depth: float
    """Where in the haystack the needle lay: 0 at its start, 1 right before the question."""
    trials: int
    found: int
    """Trials where the word was the likeliest of the candidates."""
    written: int
    """Trials where the model, always writing the likeliest byte, answers with the word."""
    advantage_bits: float
    """Mean of what the word cost less than the other candidates did on average."""


@dataclass(frozen=True)
class NeedleGrid:
    """All places."""

    candidates: int
    """Words to choose from: the one that was hidden and others that were not."""
    chance: float
    """What guessing finds."""
    seed: int
    cells: tuple[Needle, ...]
    """Length by length, depth by depth."""


class Trial(NamedTuple):
    """One haystack with its needle and question."""

    context: bytes
    """Ends with the question."""
    endings: tuple[bytes, ...]
    """Candidates, all of one size; the first is the right one."""


def needle_grid(
    model: Model[Any],
    text: Bytes,
    *,
    lengths_bytes: Sequence[int] = LENGTHS_BYTES,
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    trials: int = 4,
    candidates: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> NeedleGrid:
    """Hide a needle in pieces of `text`: every length by every depth, `trials` times.

    A trial uses the same piece of text at every depth, so that depths compare, and other names and words.

    Raises:
        DataError: a number is out of bounds, or the text is shorter than a haystack.
    """
    check_grid(text, lengths_bytes, depths, trials, candidates)
    tally = Tally(progress, trials * len(depths) * sum(map(int, lengths_bytes)))
    cells = tuple(
        cell
        for length in lengths_bytes
        for cell in _row(model, text, int(length), depths, trials, candidates, seed, tally)
    )
    return NeedleGrid(candidates, 1 / candidates, seed, cells)


def check_grid(
    text: Bytes, lengths_bytes: Sequence[int], depths: Sequence[float], trials: int, candidates: int
) -> None:
    """Refuse what `needle_grid` cannot measure.

    Raises:
        DataError: says what to change.
    """
    if trials < 1 or not 2 <= candidates <= 1000:
        raise DataError(
            f"there are {trials} trials and {candidates} candidates; needed are at least 1 and from 2 to 1,000"
        )
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise DataError("depths must be numbers from 0 (the start) to 1 (right before the question), at least one")
    for length in lengths_bytes:
        if not 2 * _NEEDLE_BYTES <= length <= len(text):
            raise DataError(
                f"a haystack of {length:,} bytes was asked for; the least is {2 * _NEEDLE_BYTES} bytes, "
                f"the most is the text itself, {len(text):,}"
            )


def trial(text: Bytes, length: int, depth: float, candidates: int, seed: Sequence[int]) -> Trial:
    """One trial: `length` bytes of haystack, the needle among them, and the question behind."""
    random = np.random.default_rng(seed)
    size = length - _NEEDLE_BYTES
    start = int(random.integers(len(text) - size + 1))
    piece = text[start : start + size].tobytes()
    # What is likely of itself among words must not be the same at every depth and in every text.
    random = np.random.default_rng((*seed, round(1e6 * depth), zlib.crc32(piece)))
    name = invented_word(random, _NAME_SYLLABLES).capitalize()
    words: list[str] = []
    while len(words) < candidates:
        word = invented_word(random, _WORD_SYLLABLES)
        if word not in words and word.encode() not in piece:
            words.append(word)
    question = _QUESTION.format(name).encode()
    endings = tuple(f" {word}".encode() for word in words)
    place = _between_words(piece, round(depth * size))
    return Trial(piece[:place] + question + endings[0] + b"." + piece[place:] + question, endings)


def _row(
    model: Model[Any],
    text: Bytes,
    length: int,
    depths: Sequence[float],
    trials: int,
    candidates: int,
    seed: int,
    tally: Tally,
) -> list[Needle]:
    """The cells of one length."""
    places = [(depth, number) for depth in range(len(depths)) for number in range(trials)]
    found, written, advantage = (np.zeros((len(depths), trials)) for _ in range(3))
    side_by_side = streams_side_by_side(model)
    for start in range(0, len(places), side_by_side):
        batch = places[start : start + side_by_side]
        asked = [trial(text, length, depths[depth], candidates, (seed, length, number)) for depth, number in batch]
        heard = hear(model, [each.context for each in asked])
        judged = [judge(model, heard, [each.endings[index] for each in asked]) for index in range(candidates)]
        costs = np.array([[one.bits.sum() for one in of_all] for of_all in judged])
        for index, place in enumerate(batch):
            found[place] = costs[0, index] < costs[1:, index].min()
            written[place] = judged[0][index].is_greedy(asked[index].endings[0])
            advantage[place] = costs[1:, index].mean() - costs[0, index]
        tally.add(len(batch) * length)
    return [
        Needle(length, float(depth), trials, int(found[i].sum()), int(written[i].sum()), float(advantage[i].mean()))
        for i, depth in enumerate(depths)
    ]


def invented_word(random: np.random.Generator, syllables: int) -> str:
    """A word that can be spoken and means nothing."""
    return "".join(
        _CONSONANTS[random.integers(len(_CONSONANTS))] + _VOWELS[random.integers(len(_VOWELS))]
        for _ in range(syllables)
    )


def _between_words(piece: bytes, place: int) -> int:
    """The start, the end, or else the first place from `place` on where a word ends, if one ends soon."""
    if place in (0, len(piece)):
        return place
    ends = [found for space in (b" ", b"\n") if (found := piece.find(space, place, place + _SOON_BYTES)) >= 0]
    return min(ends, default=place)
