"""Memory in use: whether an answer names the very word that was asked about, a word that training never quoted.

Such a word cannot be known by heart as one to ask about: to name it, its letters must be taken from the stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bdh.errors import DataError
from bdh.models import Model
from bdh.sampling import Sampling
from bdh.stream import Stream

from .hearing import Progress, Tally, evaluating

QUESTIONS = (
    'What does "{}" mean?',
    'Tell me what "{}" means.',
    'What is the meaning of "{}"?',
    'Can you define "{}"?',
    'I keep seeing the word "{}". What is it?',
)
"""How dialogues of the shipped corpus ask for a word; the words take them in turn."""
PAST_TURNS = 20
"""Turns about other words, heard before a question, where it is not the first of its stream."""

_LENGTHS = ((1, 5), (6, 8), (9, None))
_GROUP = 20
_WORD = re.compile(r"[a-z]{3,}")
# Answers to these questions begin `The word "dog" means`, `"Dog" means` or `"Dog":`, or else `It means`.
_NAMING = re.compile(rb' ?(?:The word )?"')
_NAMED = re.compile(rb' ?(?:The word )?"([^"]*)"')
_UNDECIDED_BYTES = len(b' The word "')
_ANSWER_BYTES = 80


@dataclass(frozen=True)
class OfLength:
    """Words of some lengths."""

    letters: str
    """At least and at most."""
    asked: int
    naming: int
    right: int


@dataclass(frozen=True)
class Asked:
    """How often the word was named, at one place of the stream."""

    past_turns: int
    """Turns about other words before the question."""
    asked: int
    naming: int
    """Answers of a form that names a word. The others (`It means …`) are neither right nor wrong."""
    right: int
    """Of these, the answers that name the word of the question; a capital letter makes no difference."""
    lengths: tuple[OfLength, ...]
    """The same, by the length of the word."""


@dataclass(frozen=True)
class Names:
    """The same questions at both places."""

    words: int
    """Words asked about."""
    words_given: int
    """Words there are to ask about."""
    seed: int
    trained_on: bool | None
    """Whether the checkpoint trained on any of the part that the words are from; None if it does not say."""
    asked: tuple[Asked, ...]
    """At the start of a stream, and after `PAST_TURNS`."""


class Unseen(NamedTuple):
    """What held-out dialogues have to ask about."""

    words: tuple[str, ...]
    """In alphabetical order."""
    turns: tuple[bytes, ...]
    """The question that begins each dialogue, with its answer: two lines."""


def names(
    model: Model[Any],
    trained: bytes,
    held_out: bytes,
    *,
    words: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Names:
    """Ask about words that `unseen` finds, the model always writing the likeliest byte.

    Each is asked about twice: in a stream of its own, and as the next turn after `PAST_TURNS` of the held-out
    dialogues, about other words. 20 words share such a past, which is heard once.

    Args:
        trained, held_out: the two parts of a corpus of dialogues.
        words: ask about so many at most, drawn by the seed.

    Raises:
        DataError: the dialogues have nothing to ask about.
    """
    found = unseen(trained, held_out)
    if words < 1 or not found.words:
        raise DataError(f"{words} of {len(found.words)} unseen words were asked for; at least 1 is needed")
    random = np.random.default_rng(seed)
    chosen = [found.words[index] for index in random.permutation(len(found.words))[:words]]
    questions = [f"User: {QUESTIONS[i % len(QUESTIONS)].format(word)}\nBot:".encode() for i, word in enumerate(chosen)]
    groups = [range(start, min(start + _GROUP, len(chosen))) for start in range(0, len(chosen), _GROUP)]
    pasts = [_past(found.turns, [chosen[i] for i in group], random) for group in groups]
    tally = Tally(progress, 2 * sum(map(len, questions)) + sum(map(len, pasts)))
    at_start: list[bool | None] = []
    after: list[bool | None] = []
    stream = Stream(model)
    with evaluating(model):
        for past, group in zip(pasts, groups, strict=True):
            for opening, judged in ((b"\n", at_start), (past, after)):
                stream.clear()
                stream.feed(opening)
                tally.add(len(opening) if opening is past else 0)
                before = stream.snapshot()
                for index in group:
                    stream.restore(before)
                    stream.feed(questions[index])
                    judged.append(_names_it(stream, chosen[index]))
                    tally.add(len(questions[index]))
    asked = (_counted(chosen, at_start, 0), _counted(chosen, after, PAST_TURNS))
    return Names(len(chosen), len(found.words), seed, None, asked)


def unseen(trained: bytes, held_out: bytes) -> Unseen:
    """Words that stand alone in quotes in the held-out part of dialogues and nowhere in quotes in the trained part.

    A word has three letters or more and nothing else. One that the trained part quotes within a phrase counts as
    quoted; one that it only uses, outside of quotes, does not.
    """
    known = {word for quoted in _quoted(trained) for word in re.findall(r"\w+", quoted.lower())}
    words = {quoted.lower() for quoted in _quoted(held_out)} - known
    first = re.compile(rb"(?<=\n\n)User: [^\n]+\nBot: [^\n]+\n")  # the cut may lie within a dialogue
    return Unseen(tuple(sorted(filter(_WORD.fullmatch, words))), tuple(first.findall(held_out)))


def named(answer: bytes) -> str | None:
    """The word that an answer names, empty if its quotes are not closed; None if it is of another form."""
    if not _NAMING.match(answer):
        return None
    found = _NAMED.match(answer)
    return found[1].decode(errors="replace") if found else ""


def _quoted(text: bytes) -> list[str]:
    """What stands in quotes."""
    return re.findall(r'"([^"\n]+)"', text.decode(errors="replace"))


def _past(turns: Sequence[bytes], words: Sequence[str], random: np.random.Generator) -> bytes:
    """Turns that quote none of the words, a line feed before them."""
    other = [turn for turn in turns if not {quoted.lower() for quoted in _quoted(turn)} & set(words)]
    if len(other) < PAST_TURNS:
        raise DataError(f"the held-out dialogues have {len(other)} turns about other words; {PAST_TURNS} are needed")
    return b"\n" + b"".join(other[index] for index in random.permutation(len(other))[:PAST_TURNS])


def _names_it(stream: Stream, word: str) -> bool | None:
    """Whether the answer names the word; None if it names none. It is written only as far as decides that."""
    answer = b""
    for written in stream.generate(Sampling(temperature=0, max_bytes=_ANSWER_BYTES, stop=(b"\n",))):
        answer += bytes([written.byte])
        if _NAMED.match(answer) or (len(answer) >= _UNDECIDED_BYTES and not _NAMING.match(answer)):
            break
    given = named(answer)
    return None if given is None else given.lower() == word


def _counted(words: Sequence[str], judged: Sequence[bool | None], past_turns: int) -> Asked:
    lengths = []
    for least, most in _LENGTHS:
        of_length = [
            one
            for word, one in zip(words, judged, strict=True)
            if least <= len(word) and (most is None or len(word) <= most)
        ]
        letters = f"up to {most}" if least == 1 else f"{least} to {most}" if most else f"{least} and more"
        lengths.append(OfLength(letters, *_counts(of_length)))
    return Asked(past_turns, *_counts(judged), tuple(lengths))


def _counts(judged: Sequence[bool | None]) -> tuple[int, int, int]:
    """Asked, naming, right."""
    return len(judged), sum(one is not None for one in judged), sum(one is True for one in judged)
