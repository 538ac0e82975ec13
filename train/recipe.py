"""A training recipe: what is trained on what, for how long. Read from TOML, every key checked."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdh.config import Config, config_from_dict
from bdh.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_BOUNDS: dict[str, tuple[float, float]] = {
    "held_out": (0.0001, 0.9),
    "chunk_bytes": (1, 2**20),
    "steps": (1, 10**9),
    "warmup_steps": (0, 10**9),
    "decay_steps": (0, 10**9),
    "learning_rate": (1e-9, 1.0),
    "weight_decay": (0.0, 10.0),
    "clip": (1e-6, 1e6),
    "reset": (0.0, 1.0),
    "seed": (0, 2**63 - 1),
    "evaluate_every": (1, 10**9),
}

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run."""

    name: str
    """What the trained checkpoint is called."""
    description: str = ""
    """One sentence for its card."""
    model: dict[str, Any] = field(default_factory=dict)
    """The model's configuration, `kind` included."""
    texts: dict[str, int]
    """Rows of the batch that read each text: shipped corpora by name, files by path."""
    held_out: float = 0.05
    """The last part of every text, never trained on."""
    chunk_bytes: int = 256
    """Bytes between two steps; gradients reach this far back, the carried state reaches further."""
    steps: int = 1000
    """Optimizer steps."""
    warmup_steps: int = 100
    """Steps in which the rate rises from 0."""
    decay_steps: int = 300
    """Last steps, in which the rate falls to 0; it stays level between."""
    learning_rate: float = 2e-3
    """Level learning rate of AdamW."""
    weight_decay: float = 0.1
    """Decoupled weight decay of AdamW, on matrices."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    reset: float = 0.01
    """Chance a row forgets its carried state before a chunk, so that fresh starts are learned too."""
    seed: int = 0
    """Of the weights, the rows' places and the resets."""
    evaluate_every: int = 250
    """Steps between evaluations on held-out text, and between saves."""

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            whole = isinstance(low, int)
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else (int, float))
                or not low <= value <= high
            ):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"{name} is {value!r:.80}; it must be {kind} from {low} to {high}")
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.name):
            raise ConfigError(f"name is {self.name!r:.80}; it must be letters, digits, dots, dashes and underscores")
        if not isinstance(self.description, str) or not isinstance(self.model, dict):
            raise ConfigError("description must be a text and model a table")
        texts = self.texts
        if (
            not isinstance(texts, dict)
            or not texts
            or any(type(n) is not int or not 1 <= n <= 4096 for n in texts.values())
        ):
            raise ConfigError("texts must be a table of texts, each with the 1 to 4096 rows of the batch that read it")

    def config(self) -> Config:
        """The model's configuration, checked."""
        return config_from_dict(self.model)

    def rate(self, step: int) -> float:
        """Learning rate at a step: up in a line, level, down in a line."""
        up = min(1.0, (step + 1) / max(1, self.warmup_steps))
        down = min(1.0, (self.steps - step) / max(1, self.decay_steps))
        return self.learning_rate * min(up, down)


def load_recipe(source: str, overrides: list[str]) -> Recipe:
    """A recipe by its shipped name or its path, with `key=value` pairs laid over it.

    Raises:
        ConfigError: an unknown recipe or key, or a value that does not fit.
    """
    path = RECIPES / f"{source}.toml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        raise ConfigError(f"{source!r} is neither a shipped recipe ({', '.join(list_recipes())}) nor a file")
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no recipe: {str(error)[:200]}") from error
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise ConfigError(f"{override!r} is no key=value pair")
        try:
            fields[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            fields[key] = value
    known = [f.name for f in dataclasses.fields(Recipe)]
    if unknown := [name for name in fields if name not in known]:
        raise ConfigError(f"a recipe does not know {unknown[0]!r}; it knows {', '.join(known)}")
    if "texts" not in fields:
        raise ConfigError(f"{path} names no texts to train on")
    return Recipe(**{"name": path.stem, **fields})


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))
