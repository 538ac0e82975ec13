"""The last word of a passage, to be guessed from all before it, as in LAMBADA (arXiv 1606.06031)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from bdh.errors import DataError
from bdh.models import Model

from .hearing import Progress, Tally, hear, judge, streams_side_by_side
from .score import wilson_interval

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>[^/\s]+))?/(?P<path>\S+)")
# The base of what the Hub client's HTTP library raises, whichever library that is.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
_LAST_WORD = re.compile(r"\w(?:[\w'’-]*\w)?(?=\W*\Z)")
# Bytes that would make a word longer. Of UTF-8's leading bytes, C2 and E2 begin quotes, dashes and signs.
_GOES_ON = frozenset(b"'-_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | (
    frozenset(range(0x80, 0x100)) - {0xC2, 0xE2}
)


class Passage(NamedTuple):
    """A text cut before its last word; what stood behind the word is left out."""

    context: bytes
    """Its last byte is what the word follows, mostly a space."""
    word: bytes


@dataclass(frozen=True)
class LastWord:
    """How often the last word was written as it stands."""

    passages: int
    """Passages asked."""
    passages_given: int
    right: int
    """Passages where the model, always writing the likeliest byte, writes the word and then ends it."""
    accuracy: float
    low: float
    """Where the true accuracy lies with 95 % confidence: Wilson's interval, from here …"""
    high: float
    """… to here."""
    bits_per_word: float
    """Mean over the passages of what the bytes of the word cost together."""


def read_passages(path: str | Path) -> list[Passage]:
    """The passages of a file, one a line: plain, or as JSON with a `text` (.jsonl, or the first line is an object).

    Raises:
        DataError: the file or a line cannot be used; says which.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{str(path)[:200]} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)[:200]} is no UTF-8 text: byte {error.start:,} does not fit") from error
    as_json = Path(path).suffix == ".jsonl" or text.lstrip().startswith("{")
    passages = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"line {number:,} of {str(path)[:200]}"
            passages.append(passage(_json_text(line, where) if as_json else line, where))
    if not passages:
        raise DataError(f"{str(path)[:200]} holds no passages; it needs one a line")
    return passages


def dataset_file(address: str, *, login: bool = False, offline: bool = False) -> Path:
    """The cached copy of a file in a Hub data set, `hf://datasets/user/name[@revision]/path`.

    Args:
        login: read with this machine's login; otherwise as a stranger.
        offline: take it from the cache only.

    Raises:
        DataError: the address has another form, or the Hub does not give the file.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise DataError(f"{address[:200]} must have the form hf://datasets/user/name/path or …/name@revision/path")
    try:
        return Path(
            hf_hub_download(
                found["repo"],
                found["path"],
                repo_type="dataset",
                revision=found["revision"],
                token=login,
                local_files_only=offline,
                endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
            )
        )
    except (_TransportError, OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(f"{address[:200]} cannot be had from the Hub: {first[:200] or type(error).__name__}") from error


def passage(text: str, where: str) -> Passage:
    """The text cut before its last word; `where` is said if it has none behind a context."""
    text = text.strip()
    found = _LAST_WORD.search(text)
    if found is None or found.start() == 0:
        raise DataError(f"{where} must have a last word and something before it")
    return Passage(text[: found.start()].encode(), found.group().encode())


def last_word(
    model: Model[Any], passages: Sequence[Passage], *, most_bytes: int = 100_000, progress: Progress | None = None
) -> LastWord:
    """Ask for the last words of the first passages, as many as have `most_bytes` bytes together, at least one.

    The space before the word is given, so the word alone is scored. Passages are heard each from an empty memory.
    """
    if not passages:
        raise DataError("there are no passages to ask for the last word of")
    asked, size = 0, 0
    for given in passages:
        size += len(given.context)
        if asked and size > most_bytes:
            break
        asked += 1
    # Passages of a length side by side go most of the way together.
    chosen = sorted(passages[:asked], key=lambda given: len(given.context))
    tally = Tally(progress, sum(len(given.context) for given in chosen))
    right, bits = 0, 0.0
    side_by_side = streams_side_by_side(model)
    for start in range(0, asked, side_by_side):
        batch = chosen[start : start + side_by_side]
        heard = hear(model, [given.context for given in batch], tally)
        for given, judged in zip(batch, judge(model, heard, [given.word for given in batch]), strict=True):
            right += judged.is_greedy(given.word) and int(judged.likeliest[-1]) not in _GOES_ON
            bits += float(judged.bits.sum())
    low, high = wilson_interval(right, asked)
    return LastWord(asked, len(passages), right, right / asked, low, high, bits / asked)


def _json_text(line: str, where: str) -> str:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise DataError(f'{where} must be an object with a text, {{"text": "…"}}')
    return fields["text"]
