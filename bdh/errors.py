"""The errors a person can meet: each says what was given, what is allowed and what to do."""

from __future__ import annotations

_MOST_CHARACTERS = 2_000


def one_line(text: str, most: int = _MOST_CHARACTERS) -> str:
    """A text as one line that is safe to print: nothing in it moves a terminal or begins another line."""
    if len(text) <= most and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


class HatcheryError(Exception):
    """Base of every error that is the input's fault; its text may be shown to a person as it is.

    What it quotes may come from a stranger's file, so it is always one line, of a bounded length.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(HatcheryError, ValueError):
    """A configuration value is unknown, of the wrong type or outside its bound."""


class CheckpointError(HatcheryError, ValueError):
    """A checkpoint is missing, damaged, hostile or does not fit its configuration."""


class StateError(HatcheryError, ValueError):
    """A saved memory is damaged or belongs to another model."""


class MergeError(HatcheryError, ValueError):
    """Models cannot be merged in the way that was asked for."""


class DataError(HatcheryError, ValueError):
    """Text, bytes or options given to a model or a run cannot be used."""


class TrainingError(HatcheryError):
    """A run cannot go on; what it saved last is kept."""
