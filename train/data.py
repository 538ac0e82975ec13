"""Bytes to train on: texts cut into what is trained, validated and tested on, and read as streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh.errors import ConfigError, DataError

from .shipped import CORPORA as CORPORA
from .shipped import held_out_start as held_out_start
from .sources import Prepared, find_source, read_file

Bytes: TypeAlias = NDArray[np.uint8]


def read_bytes(source: str) -> Bytes:
    """The bytes of a shipped corpus by its name, or of a file (plain, .xz or .gz) by its path, in memory."""
    path = find_source(source)
    if path.is_dir():
        raise DataError(f"{source!r:.200} is a folder; name one file of it")
    return np.frombuffer(b"".join(read_file(path)), dtype=np.uint8)


@dataclass(frozen=True)
class Splits:
    """A prepared text, cut: three contiguous pieces that do not overlap, not in memory until they are read."""

    name: str
    rows: int
    """Rows of the batch that read it."""
    train: Bytes
    validation: Bytes
    test: Bytes
    sha256: str
    """Checksum of the three together, as they lie on disk."""


def split(prepared: Prepared, *, validation: float, test: float) -> Splits:
    """Cut a text: the test from its very end, before it the validation, the rest to train on.

    What the recipe named to validate or test on takes the place of that cut.

    Args:
        validation: fraction of the text, above 0.
        test: fraction of the text; 0 makes none.

    Raises:
        ConfigError: fractions that leave nothing.
        DataError: a text too short to cut.
    """
    for name, value, least in (("validation", validation, "above 0"), ("test", test, "0 or above")):
        if not 0 <= value < 1 or (name == "validation" and not value and not prepared.validation_bytes):
            raise ConfigError(f"{name} is {value!r:.80}; it must be a fraction of the text, {least} and below 1")
    data: Bytes = np.asarray(np.memmap(prepared.path, dtype=np.uint8, mode="r"))
    size = prepared.size_bytes - prepared.validation_bytes - prepared.test_bytes
    if data.size != prepared.size_bytes or size < 0:
        raise DataError(
            f"{prepared.path.name} has {data.size:,} bytes and had {prepared.size_bytes:,} when it was prepared; "
            "remove it, and it is prepared again"
        )
    cut_test = 0 if prepared.test_bytes else int(size * test)
    cut_validation = 0 if prepared.validation_bytes else int(size * validation)
    ends = np.cumsum([size - cut_validation - cut_test, cut_validation, cut_test, prepared.validation_bytes])
    trained, cut, tested, named, last = np.split(data, ends)
    splits = Splits(
        prepared.text.name,
        prepared.text.rows,
        trained,
        named if prepared.validation_bytes else cut,
        last if prepared.test_bytes else tested,
        prepared.sha256,
    )
    if not splits.train.size or not splits.validation.size or (test and not splits.test.size):
        raise DataError(
            f"{splits.name} has {size:,} bytes: {splits.train.size:,} to train on, {splits.validation.size:,} to "
            f"validate and {splits.test.size:,} to test; use a longer text or other fractions"
        )
    return splits


class Streams:
    """Rows of texts, chunk after chunk: each row walks on from a place of its own, or is drawn afresh every time."""

    def __init__(
        self,
        splits: Sequence[Splits],
        rows: Sequence[int],
        length: int,
        seed: int,
        *,
        shard: int = 0,
        shards: int = 1,
        carried: bool = True,
    ) -> None:
        """`rows[i]` rows read `splits[i]`; a chunk is `length` bytes.

        Args:
            shard: this process; of the batch that all share it yields every `shards`-th row, from row `shard` on.
            carried: each row goes on where it stood, so that state can be carried; False draws a place anywhere in
                its text, each as likely, at every step.
        """
        self._texts = [each.train for each, count in zip(splits, rows, strict=True) for _ in range(count)]
        if length < 1 or not 0 <= shard < shards <= len(self._texts):
            raise ConfigError(
                f"shard {shard} of {shards} cannot read chunks of {length} from {len(self._texts)} rows; every process "
                "needs a row and every chunk a byte"
            )
        for text in self._texts:
            if len(text) <= length + 1:
                raise DataError(f"a text of {len(text)} bytes is too short for chunks of {length}")
        self.length, self.carried = length, carried
        self._own = range(shard, len(self._texts), shards)
        self._generator = np.random.default_rng(seed)
        self._places = [self._draw(len(text)) for text in self._texts]

    def next(self) -> tuple[Tensor, Tensor]:
        """The next chunk of every row of this shard and the byte after each: two (B, T) int64.

        Carried rows read their text in a circle; rows drawn afresh never reach over its end.
        """
        # All shards draw and count for all rows, so that each knows where the whole batch stands.
        if not self.carried:
            self._places = [self._draw(len(text) - self.length) for text in self._texts]
        chunks = np.empty((len(self._own), self.length + 1), dtype=np.int64)
        for chunk, index in zip(chunks, self._own, strict=True):
            text, place = self._texts[index], self._places[index]
            first = text[place : place + self.length + 1]
            chunk[: len(first)] = first
            chunk[len(first) :] = text[: self.length + 1 - len(first)]
        if self.carried:
            self._places = [
                (place + self.length) % len(text) for place, text in zip(self._places, self._texts, strict=True)
            ]
        chunk_and_next = torch.from_numpy(chunks)
        return chunk_and_next[:, :-1], chunk_and_next[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        """Where every row stands and what will be drawn: the same in every shard."""
        return {"places": list(self._places), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken, by whichever shard.

        Raises:
            DataError: it was taken of other texts.
        """
        places = list(state["places"])
        if len(places) != len(self._texts) or any(
            not 0 <= place < len(text) for place, text in zip(places, self._texts, strict=True)
        ):
            raise DataError(
                f"the saved places of {len(places)} rows do not fit the {len(self._texts)} rows of these texts"
            )
        self._places = places
        self._generator.bit_generator.state = state["generator"]

    def _draw(self, below: int) -> int:
        return int(self._generator.integers(below))
