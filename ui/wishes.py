"""What a person asks of a training run, and the command line that does it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bdh.config import config_to_dict
from bdh.errors import ConfigError, DataError
from bdh.presets import PRESETS
from train.sources import CORPORA

from .limits import Limits

FRESH = "fresh:"
"""Before the name of a preset, where the id of a model could stand."""
OWN, SHIPPED, DATASET = "My own text", "Shipped texts", "A dataset on the Hub"
MINUTES, STEPS = "minutes", "steps"
TRAINED = {
    "everything": "full",
    "the local part": "local",
    "the global part": "global",
    "the read-out": "head",
    "LoRA: a small addition to each matrix": "lora",
}
SHIPPED_TEXTS = sorted(path.name.removesuffix(".txt.xz") for path in CORPORA.glob("*.txt.xz"))
MOST_ROWS, MOST_CHUNK_BYTES = 128, 2048
_MOST_CHARACTERS = 1000
_TEST_BYTES = 262_144
"""Of each text, measured at the end of a run of the page: at most a minute's work on two cores."""
RATE_OF_BASE, RATE_OF_FRESH = 7e-4, 2e-3
_NOMINAL_STEPS = 600
"""Of a schedule that the clock bounds."""
_HALF_LIVES = {"flat": (32, 2048), "hierarchical": (8, 512)}
"""Shortest and longest memory of fresh models' heads, in bytes or patches: what is damped holds on endless streams."""


@dataclass(frozen=True)
class Wish:
    """A filled form."""

    base: str = ""
    """A model's id, or FRESH and a preset's name."""
    data: str = OWN
    pasted: str = ""
    corpora: list[str] = field(default_factory=list)
    dataset: str = ""
    config: str = ""
    split: str = "train"
    column: str = "text"
    megabytes: float = 5
    """Of a dataset, read at most."""
    budget: str = MINUTES
    amount: float = 5
    name: str = ""
    learning_rate: float = RATE_OF_BASE
    rows: float = 8
    chunk_bytes: float = 256
    trained: str = "everything"
    lora_rank: float = 8
    activity_percent: float = 0
    """Part of x_sparse that is to be active; 0 leaves it free."""
    dropout: float = 0
    held_out_percent: float = 5
    """Of the text to validate on, and as much again to measure on at the end."""
    patience: float = 5
    prompt: str = ""
    seed: float = 0

    @property
    def fresh(self) -> str:
        """The preset whose shape fresh weights have; empty if a base is gone on from."""
        return self.base.removeprefix(FRESH) if self.base.startswith(FRESH) else ""


def checked(wish: Wish, limits: Limits) -> Wish:
    """The wish with whole numbers where there must be, held against the limits; the recipe checks the rest.

    Raises:
        ConfigError: a number that is none, or more than is allowed.
    """
    whole = ("rows", "chunk_bytes", "lora_rank", "patience", "seed")
    for name in (*whole, "amount", "learning_rate", "activity_percent", "dropout", "held_out_percent", "megabytes"):
        value = getattr(wish, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name.replace('_', ' ')} is {value!r:.40}; it must be a number")
    if wish.budget not in (MINUTES, STEPS):
        raise ConfigError(f"the budget is in {wish.budget!r:.40}; it must be in {MINUTES} or {STEPS}")
    if wish.budget == MINUTES and not 0 < wish.amount <= limits.max_train_minutes:
        raise ConfigError(f"{wish.amount:g} minutes are asked for; allowed here are up to {limits.max_train_minutes:,}")
    if wish.budget == STEPS and not 1 <= wish.amount <= 1e9:
        raise ConfigError(f"{wish.amount:g} steps are asked for; take 1 or more")
    for name in ("base", "prompt", "name", "dataset", "config", "split", "column"):
        text = getattr(wish, name)
        if not isinstance(text, str) or len(text) > _MOST_CHARACTERS or text != text.encode("utf-8", "ignore").decode():
            raise ConfigError(f"{name} must be a text of at most {_MOST_CHARACTERS:,} characters; given {text!r:.40}")
    if not isinstance(wish.corpora, list) or not set(map(str, wish.corpora)) <= set(SHIPPED_TEXTS):
        raise ConfigError(f"the shipped texts are {', '.join(SHIPPED_TEXTS)}; given {wish.corpora!r:.80}")
    if wish.trained not in TRAINED:
        raise ConfigError(f"what learns is {wish.trained!r:.40}; it must be one of {', '.join(TRAINED)}")
    if not 1 <= wish.rows <= MOST_ROWS or not 16 <= wish.chunk_bytes <= MOST_CHUNK_BYTES:
        raise ConfigError(
            f"{wish.rows:g} rows and chunks of {wish.chunk_bytes:g} bytes are asked for; the page takes up to "
            f"{MOST_ROWS} rows and chunks of 16 to {MOST_CHUNK_BYTES:,}, the shell more"
        )
    if not 0.1 <= wish.held_out_percent <= 40:
        raise ConfigError(f"{wish.held_out_percent:g} % are held out; take 0.1 to 40 %")
    if not 0 <= wish.activity_percent <= 100:
        raise ConfigError(f"{wish.activity_percent:g} % are to be active; take 0 (free) to 100 %")
    numbers: dict[str, Any] = {name: int(getattr(wish, name)) for name in whole}
    return dataclasses.replace(wish, **numbers)


def text_fields(wish: Wish, own: str, limits: Limits) -> dict[str, Any]:
    """The `texts` of the recipe.

    Args:
        own: the file or folder of the person's own text.

    Raises:
        DataError: nothing was chosen, or more than is allowed.
    """
    bound = {"max_bytes": limits.max_train_bytes}
    if wish.data == OWN:
        mine = {"rows": wish.rows, "source": own}
        # What was uploaded is measured, but a compressed file may be far more than it seems.
        return {"mine": mine if own.endswith(".txt") else mine | bound}
    if wish.data == SHIPPED:
        chosen = [name for name in SHIPPED_TEXTS if name in wish.corpora]
        if not chosen:
            raise DataError(f"choose at least one text: {', '.join(SHIPPED_TEXTS)}")
        if wish.rows < len(chosen):
            raise DataError(f"{len(chosen)} texts need {len(chosen)} rows of the batch at least; given {wish.rows}")
        share, more = divmod(int(wish.rows), len(chosen))
        return {name: share + (place < more) for place, name in enumerate(chosen)}
    if not wish.dataset.strip():
        raise DataError("give the name of a dataset on the Hub, such as roneneldan/TinyStories")
    if not 0 < wish.megabytes * 1e6 <= limits.max_train_bytes:
        raise DataError(
            f"{wish.megabytes:g} MB are to be read; allowed here are up to {limits.max_train_bytes / 1e6:g}"
        )
    told = {"dataset": wish.dataset.strip(), "config": wish.config.strip(), "split": wish.split.strip()}
    bound["max_bytes"] = int(wish.megabytes * 1e6)
    return {"data": {"rows": wish.rows, **told, "column": wish.column.strip() or "text", **bound}}


def arguments(wish: Wish, base: str, texts: Mapping[str, Any], *, kind: str) -> list[str]:
    """The words after `python -m train`; only what differs from the recipe `finetune` is said.

    Args:
        base: where the base is read from; unused for fresh weights.
        kind: of the model that is trained.
    """
    steps = _NOMINAL_STEPS if wish.budget == MINUTES else int(wish.amount)
    looks = max(3, min(20, round(wish.amount * 2.5))) if wish.budget == MINUTES else 12
    told: dict[str, Any] = {"name": wish.name or "specialist", "texts": dict(texts)}
    if wish.fresh:
        told |= {"base": "", "model": fresh_fields(wish.fresh) | {"dropout": float(wish.dropout)}}
    else:
        told["base"] = base
        if wish.dropout and kind in ("flat", "hierarchical"):
            told["model"] = {"dropout": float(wish.dropout)}
    if wish.budget == MINUTES:
        told["minutes"] = float(wish.amount)
    told |= {
        "steps": steps,
        "warmup_steps": max(1, steps // 20),
        "decay_steps": steps // 2,
        "evaluate_every": max(1, steps // looks),
        "learning_rate": float(wish.learning_rate),
        "chunk_bytes": wish.chunk_bytes,
        "validation": wish.held_out_percent / 100,
        "test": wish.held_out_percent / 100,
        "test_bytes": _TEST_BYTES,
        "patience": wish.patience,
        "seed": wish.seed,
        "prompt": wish.prompt or "\n",
        "trained": TRAINED[wish.trained],
    }
    if wish.trained == "LoRA: a small addition to each matrix":
        told["lora_rank"] = wish.lora_rank
    if wish.activity_percent:
        told |= {"activity": wish.activity_percent / 100, "activity_steps": steps // 3}
    return ["finetune", *(f"{name}={_word(value)}" for name, value in told.items() if _USUAL.get(name) != value)]


_USUAL = {"trained": "full", "prompt": "\n", "seed": 0, "chunk_bytes": 256}
"""What `finetune` has by itself."""


def fresh_fields(preset: str) -> dict[str, Any]:
    """The configuration of fresh weights, as a recipe's `model`.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r:.60}; choose one of {', '.join(PRESETS)}")
    config = PRESETS[preset]
    fields = {name: value for name, value in config_to_dict(config).items() if value not in (None, (), [])}
    if config.kind in _HALF_LIVES:
        name, heads = ("decay", "n_head") if config.kind == "flat" else ("global_decay", "global_n_head")
        fields[name] = [round(0.5 ** (1 / life), 8) for life in _spread(*_HALF_LIVES[config.kind], fields[heads])]
    return fields


def _spread(low: float, high: float, count: int) -> list[float]:
    """Numbers from `low` to `high` in equal ratios."""
    return [low * (high / low) ** (place / max(1, count - 1)) for place in range(count)]


def command(arguments: list[str]) -> str:
    """What a person types to do the same."""
    return shlex.join(["python", "-m", "train", *arguments])


def run_name(text: str, otherwise: str) -> str:
    """A name as recipes allow it, made of what a person wrote or chose."""
    plain = re.sub(r"[^\w.-]+", "-", text.strip(), flags=re.ASCII).strip("-._")[:60]
    return plain or otherwise


def _word(value: Any) -> str:
    """A value of a `key=value` pair; a text that nobody could take for something else stands bare."""
    bare = isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_./@-]*", value)
    return value if bare and value not in ("true", "false", "inf", "nan") else _toml(value)


def _toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
