"""The corpora that come with the repository, and the part of each that is kept from training."""

from __future__ import annotations

from pathlib import Path

CORPORA = Path(__file__).parent / "corpora"
HELD_OUT = 0.05
"""The part of a shipped corpus that recipes keep from training, if they do not say otherwise."""


def held_out_start(size_bytes: int) -> int:
    """Where in a shipped corpus of so many bytes the part begins that recipes keep from training."""
    # Half of it to validate on and half to test on, each in whole bytes.
    return size_bytes - 2 * int(size_bytes * HELD_OUT / 2)
