"""A training recipe: what is trained on what, for how long. Read from TOML, every key checked."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdh.config import Config, config_from_dict
from bdh.errors import ConfigError

from .sources import Text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

RECIPES = Path(__file__).parent / "recipes"

SCHEDULES = ("stable-decay", "cosine")
TRAINED = ("full", "local", "global", "head", "ends", "lora")
PRECISIONS = ("bfloat16", "float32")
_SWITCHES = ("auto", "on", "off")
_CHOICES = {
    "schedule": SCHEDULES,
    "trained": TRAINED,
    "precision": PRECISIONS,
    "compile": _SWITCHES,
    "recompute": _SWITCHES,
}
_BOUNDS: dict[str, tuple[float, float]] = {
    "validation": (0.0001, 0.5),
    "test": (0.0, 0.5),
    "chunk_bytes": (1, 2**20),
    "micro_rows": (0, 4096),
    "steps": (1, 10**9),
    "minutes": (0.0, 10**6),
    "warmup_steps": (0, 10**9),
    "decay_steps": (0, 10**9),
    "learning_rate": (1e-9, 1.0),
    "final_rate": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "beta1": (0.0, 0.9999),
    "beta2": (0.0, 0.99999),
    "clip": (1e-6, 1e6),
    "reset": (0.0, 1.0),
    "lora_rank": (1, 4096),
    "lora_alpha": (1e-6, 1e6),
    "activity": (0.0, 1.0),
    "activity_steps": (0, 10**9),
    "evaluate_every": (1, 10**9),
    "validation_bytes": (64, 2**31),
    "test_bytes": (0, 2**40),
    "patience": (0, 10**6),
    "sample_bytes": (0, 10_000),
    "seed": (0, 2**63 - 1),
}
"""Least and largest value; where the least is a whole number, so must the value be."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run with texts and a schedule of its own."""

    name: str
    steps: int
    texts: dict[str, Any]
    chunk_bytes: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run."""

    name: str
    """What the trained checkpoint is called."""
    description: str = ""
    """One sentence for its card."""
    base: str = ""
    """Checkpoint to go on from: a folder or a place on the Hub; empty for fresh weights."""
    base_place: str = ""
    """Where on the Hub a base that is a folder came from, as `user/repo@commit`: for the card."""
    model: dict[str, Any] = field(default_factory=dict)
    """The configuration of fresh weights, `kind` included; of a base, the fields to change (dropout, decay)."""
    texts: dict[str, Any] = field(default_factory=dict)
    """What is read, by name: rows of the batch of a shipped corpus, or a table as in `Text`."""
    phases: tuple[dict[str, Any], ...] = ()
    """Parts that follow each other, each with a name and, where they differ, `texts`, `steps`, `chunk_bytes`,
    `learning_rate`, `warmup_steps` and `decay_steps` of its own."""
    validation: float = 0.025
    """Part of every text that is validated on, right before the test part."""
    test: float = 0.025
    """Last part of every text, measured once at the end."""
    chunk_bytes: int = 256
    """Bytes between two steps; gradients reach this far back, a carried state reaches further."""
    carried: bool = True
    """Read texts chunk after chunk and carry the state (truncated backpropagation through time), or at random places
    with an empty memory."""
    reset: float = 0.01
    """Chance that a row forgets its carried state before a chunk, so that fresh starts are learned too."""
    micro_rows: int = 0
    """Rows that go through the model at once; gradients add up to those of all rows. 0 finds what fits."""
    steps: int = 1000
    """Optimizer steps."""
    minutes: float = 0.0
    """Wall clock that the run may take; the schedule of `steps` is then stretched or shrunk to it, so that a slow
    machine takes fewer steps. 0 takes all steps however long they last. Not for recipes with phases."""
    schedule: str = "stable-decay"
    """Of the learning rate after its warm-up: `stable-decay` stays level and falls at the end, or `cosine`."""
    warmup_steps: int = 100
    """Steps in which the rate rises from 0."""
    decay_steps: int = 300
    """Last steps of `stable-decay`, in which the rate falls."""
    final_rate: float = 0.0
    """Where the rate ends, as a part of `learning_rate`."""
    learning_rate: float = 2e-3
    """Highest learning rate of AdamW."""
    weight_decay: float = 0.1
    """Decoupled weight decay of AdamW, on matrices."""
    beta1: float = 0.9
    """Of AdamW: memory of the gradient."""
    beta2: float = 0.95
    """Of AdamW: memory of its square."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    trained: str = "full"
    """What learns: `full`; `local`, `global` or `head` alone; `ends`, the embedding and the head; or `lora`
    on encoder, encoder_v and decoder."""
    lora_rank: int = 8
    """Rank of what LoRA adds to a matrix."""
    lora_alpha: float = 16.0
    """What LoRA adds is scaled by alpha / rank."""
    activity: float = 0.0
    """Part of x_sparse that is to be active in the end, steered to by a penalty; 0 leaves it free."""
    activity_steps: int = 1000
    """Steps over which that target is approached."""
    precision: str = "bfloat16"
    """Type of the products in training; weights, sums and optimizer stay float32."""
    compile: str = "auto"
    """torch.compile: `on`, `off`, or `auto`, which is on for CUDA. Steps that look at what is active, all of them
    where `activity` is steered, run uncompiled."""
    recompute: str = "auto"
    """Compute activations again on the way back instead of keeping them: `on`, `off`, or `auto`, if need be."""
    evaluate_every: int = 250
    """Steps between validations, and between saves."""
    validation_bytes: int = 16_384
    """Bytes of each text that a validation hears at most."""
    test_bytes: int = 0
    """First bytes of each text's test part that are measured at the end; 0 measures all."""
    patience: int = 0
    """Stop after so many validations without a better one; 0 never does."""
    prompt: str = "\n"
    """What samples begin with."""
    sample_bytes: int = 160
    """Length of the sample that each validation writes; 0 writes none."""
    seed: int = 0
    """Of the weights, the places in the texts and the resets."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.name):
            raise ConfigError(f"name is {self.name!r:.80}; it must be letters, digits, dots, dashes and underscores")
        _check_values(self)
        for name in ("description", "base", "base_place", "prompt"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is {getattr(self, name)!r:.80}; it must be a text")
        if not isinstance(self.carried, bool):
            raise ConfigError(f"carried is {self.carried!r:.80}; it must be true or false")
        if not isinstance(self.model, dict) or not (self.model or self.base):
            raise ConfigError("model must be a table that says what is trained, or base a checkpoint to go on from")
        if self.validation + self.test >= 0.9:
            raise ConfigError(f"validation and test take {self.validation + self.test} of a text; leave 0.1 at least")
        if not isinstance(self.phases, (list, tuple)) or not all(isinstance(phase, dict) for phase in self.phases):
            raise ConfigError("phases must be a list of tables ([[phases]])")
        if self.phases and self.minutes:
            raise ConfigError(f"minutes is {self.minutes}; a recipe with phases is bounded by their steps")
        names = [phase.name for phase in self.parts()]
        if len(set(names)) < len(names):
            raise ConfigError(f"phases need names that differ; given {', '.join(names)[:200]}")
        for phase in self.parts():
            if phase.name and not (
                isinstance(phase.name, str) and re.fullmatch(r"[A-Za-z0-9][\w -]{0,40}", phase.name)
            ):
                raise ConfigError(f"a phase is called {phase.name!r:.80}; use letters, digits, spaces and dashes")
            _check_values(phase)
            self.sources(phase)

    def config(self) -> Config:
        """The configuration of fresh weights, checked."""
        return config_from_dict(self.model)

    def parts(self) -> tuple[Phase, ...]:
        """The phases, or the one that a recipe without phases is."""
        common = {name: getattr(self, name) for name in _OF_PHASES}
        if not self.phases:
            return (Phase(name="", **common),)
        parts = []
        for index, fields in enumerate(self.phases):
            if unknown := sorted(fields.keys() - {"name", *_OF_PHASES}):
                raise ConfigError(f"a phase does not know {unknown[0]!r:.80}; it knows name, {', '.join(_OF_PHASES)}")
            parts.append(Phase(**{"name": f"phase {index + 1}", **common, **fields}))
        return tuple(parts)

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.parts())

    def sources(self, phase: Phase) -> list[Text]:
        """Where the texts of a phase come from, checked."""
        if not isinstance(phase.texts, Mapping) or not phase.texts:
            raise ConfigError(
                f"texts of {phase.name or self.name} must be a table: of each text the rows of the batch that read "
                'it (english = 8), or a table (poems = { rows = 8, source = "poems.txt" })'
            )
        return [Text.parse(name, value) for name, value in phase.texts.items()]

    def rate(self, phase: Phase, step: int) -> float:
        """Learning rate at a step of a phase: up in a line, then by the schedule."""
        up = min(1.0, (step + 1) / max(1, phase.warmup_steps))
        if self.schedule == "cosine":
            done = max(0.0, (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps))
            down = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        else:
            down = min(1.0, (phase.steps - step) / max(1, phase.decay_steps))
        return phase.learning_rate * min(up, self.final_rate + (1 - self.final_rate) * down)


_OF_PHASES = tuple(f.name for f in dataclasses.fields(Phase) if f.name != "name")


_MOST_BYTES, _MOST_TABLES = 16_384, 8
"""Of a recipe: reading a key of many tables takes time that grows with the square of their number."""


def _check_values(part: Recipe | Phase) -> None:
    """Hold the numbers and choices of a recipe or a phase against what is allowed."""
    where = f"of {part.name}: " if isinstance(part, Phase) and part.name else ""
    for name, (low, high) in _BOUNDS.items():
        if not hasattr(part, name):
            continue
        value, whole = getattr(part, name), isinstance(low, int)
        fits = not isinstance(value, bool) and isinstance(value, int if whole else (int, float))
        if not fits or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{where}{name} is {value!r:.80}; it must be {kind} from {low} to {high}")
    for name, allowed in _CHOICES.items():
        if hasattr(part, name) and getattr(part, name) not in allowed:
            raise ConfigError(f"{where}{name} is {getattr(part, name)!r:.80}; it must be {' or '.join(allowed)}")


def load_recipe(source: str, overrides: list[str]) -> Recipe:
    """A recipe by its shipped name or its path, with `key=value` pairs laid over it, `table.key=value` in tables.

    Raises:
        ConfigError: an unknown recipe or key, or a value that does not fit.
    """
    return recipe_from_fields(read_fields(source, overrides), source)


def read_fields(source: str, overrides: list[str]) -> dict[str, Any]:
    """The fields of a recipe or of a comparison (train/compare.py), its name included, not yet checked.

    Raises:
        ConfigError: there is no such file, or it is no TOML.
    """
    shipped = list_recipes()
    path = RECIPES / f"{source}.toml" if source in shipped else Path(source)
    data = b""
    try:
        found = path.is_file()
        if found:
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # such as a name that no file can have
        raise ConfigError(f"{source!r:.200} cannot be read: {str(error)[:200]}") from error
    if not found:
        raise ConfigError(f"{source!r:.200} is neither a shipped recipe ({', '.join(shipped)}) nor a file")
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{source!r:.200} is above {_MOST_BYTES:,} bytes; a recipe is a small TOML file")
    try:
        fields = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # whole numbers of thousands of digits among them
        raise ConfigError(f"{path} is no recipe: {str(error)[:200]}") from error
    for override in overrides:
        _override(fields, override)
    return {"name": path.stem, **fields}


def recipe_from_fields(fields: Mapping[str, Any], path: Path | str) -> Recipe:
    """The recipe of a table of fields; `path` is what messages call it.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    known = [f.name for f in dataclasses.fields(Recipe)]
    if unknown := [name for name in fields if name not in known]:
        raise ConfigError(f"a recipe does not know {unknown[0]!r:.80}; it knows {', '.join(known)}")
    if "texts" not in fields and "phases" not in fields:
        raise ConfigError(f"{path} names no texts to train on")
    phases = fields.get("phases", ())
    return Recipe(**{**fields, "phases": tuple(phases) if isinstance(phases, list) else phases})


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def toml_key(key: str) -> str:
    """A key as TOML."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: Any) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(key)} = {toml_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _override(fields: dict[str, Any], override: str) -> None:
    keys, sign, text = override.partition("=")
    if not sign:
        raise ConfigError(f"{override!r:.100} is no key=value pair")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *tables, key = keys.strip().split(".")
    if len(tables) > _MOST_TABLES:
        raise ConfigError(f"{override!r:.100} names a table in more than {_MOST_TABLES} others")
    for table in tables:
        fields = fields.setdefault(table, {})
        if not isinstance(fields, dict):
            raise ConfigError(f"{override!r:.100}: {table} is no table")
    fields[key] = value
