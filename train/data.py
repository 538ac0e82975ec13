"""Text as bytes: the corpora that ship with the repository or a person's files, split and read as streams."""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh.errors import DataError

CORPORA = Path(__file__).parent / "corpora"
Bytes = NDArray[np.uint8]


def read_bytes(source: str) -> Bytes:
    """The bytes of a shipped corpus by its name, or of a file (plain or .xz) by its path."""
    path = CORPORA / f"{source}.txt.xz"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        shipped = ", ".join(sorted(p.name.removesuffix(".txt.xz") for p in CORPORA.glob("*.txt.xz")))
        raise DataError(f"{source!r} is neither a shipped corpus ({shipped}) nor a file")
    raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return np.frombuffer(raw, dtype=np.uint8)


@dataclass(frozen=True)
class Split:
    """One text cut once: what comes first is trained on, what comes last is held out."""

    name: str
    train: Bytes
    held_out: Bytes

    @property
    def sha256(self) -> str:
        """Checksum of the whole text."""
        digest = hashlib.sha256(self.train.tobytes())
        digest.update(self.held_out.tobytes())
        return digest.hexdigest()


def load_split(source: str, held_out: float) -> Split:
    """The text with its last part, a fraction `held_out`, kept from training."""
    data = read_bytes(source)
    cut = len(data) - int(len(data) * held_out)
    return Split(Path(source).stem, data[:cut], data[cut:])


class Streams:
    """Rows that each walk through a text from a place of their own, chunk after chunk, so that state can be carried."""

    def __init__(self, splits: list[Split], rows: list[int], length: int, seed: int) -> None:
        """`rows[i]` rows read `splits[i]`; a chunk is `length` bytes."""
        generator = np.random.default_rng(seed)
        self.length = length
        self._texts = [split.train for split, count in zip(splits, rows, strict=True) for _ in range(count)]
        for text in self._texts:
            if len(text) <= length + 1:
                raise DataError(f"a text of {len(text)} bytes is too short for chunks of {length}")
        self._places = [int(generator.integers(len(text))) for text in self._texts]

    def next(self) -> tuple[Tensor, Tensor]:
        """The next chunk of every row and the byte after each: two (B, T) int64. Texts are read in a circle."""
        rows = []
        for index, text in enumerate(self._texts):
            place = self._places[index]
            rows.append(np.take(text, np.arange(place, place + self.length + 1), mode="wrap"))
            self._places[index] = (place + self.length) % len(text)
        chunk = torch.from_numpy(np.stack(rows).astype(np.int64))
        return chunk[:, :-1], chunk[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        """Where every row stands."""
        return {"places": list(self._places)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self._places = list(state["places"])
