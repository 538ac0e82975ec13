"""What a person asks of a training run, and the command line that does it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bdh.config import config_to_dict
from bdh.errors import ConfigError, DataError
from bdh.presets import PRESETS
from train.recipe import toml_value
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
NUMBERS: dict[str, tuple[str, float, float]] = {
    "megabytes": ("Megabytes", 0.01, 10**6),
    "learning_rate": ("Learning rate", 1e-6, 1),
    "rows": ("Rows", 1, 128),
    "chunk_bytes": ("Chunk", 16, 2048),
    "lora_rank": ("LoRA rank", 1, 256),
    "activity_percent": ("Active neurons, %", 0, 100),
    "dropout": ("Dropout", 0, 0.9),
    "held_out_percent": ("Held out, %", 1, 40),
    "patience": ("Patience", 0, 10**6),
    "seed": ("Seed", 0, 2**53 - 1),
}
"""Numbers of the form: how the page calls each, its least and its largest value. The shell takes more."""
_MOST_CHARACTERS = 1000
_TEST_BYTES = 32_768
"""Of each text, measured at the end of a run of the page: seconds, for people wait for it."""
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


def is_number(value: Any) -> bool:
    """Whether a form's value is a number that one can calculate with, and not one of hundreds of digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def checked(wish: Wish, limits: Limits) -> Wish:
    """The wish with whole numbers where there must be, held against the limits; the recipe checks the rest.

    Raises:
        ConfigError: a number that is none, or more than is allowed.
    """
    if wish.budget not in (MINUTES, STEPS):
        raise ConfigError(f"the budget is in {wish.budget!r:.40}; it must be in {MINUTES} or {STEPS}")
    if wish.data not in (OWN, SHIPPED, DATASET):
        raise ConfigError(f"it is to learn from {wish.data!r:.40}; it must be from {OWN}, {SHIPPED} or {DATASET}")
    most = limits.max_train_minutes if wish.budget == MINUTES else 10**9
    bounds = NUMBERS | {"amount": ("Budget", 0.01 if wish.budget == MINUTES else 1, most)}
    for name, (label, low, high) in bounds.items():
        value = getattr(wish, name)
        unit = f" {wish.budget}" if name == "amount" else ""
        allowed = f"from {low:,} to {high:,}{unit}"
        if value is None:
            raise ConfigError(f"{label} is empty; give a number {allowed}")
        if not is_number(value):
            raise ConfigError(f"{label} is {value!r:.40}; it must be a number {allowed}")
        if not low <= value <= high:
            raise ConfigError(f"{label} is {value:g}; allowed here is {allowed}")
    for name in ("base", "prompt", "name", "dataset", "config", "split", "column"):
        text = getattr(wish, name)
        if not isinstance(text, str) or len(text) > _MOST_CHARACTERS or text != text.encode("utf-8", "ignore").decode():
            raise ConfigError(f"{name} must be a text of at most {_MOST_CHARACTERS:,} characters; given {text!r:.40}")
    if not isinstance(wish.corpora, list) or not all(one in SHIPPED_TEXTS for one in wish.corpora):
        raise ConfigError(f"the shipped texts are {', '.join(SHIPPED_TEXTS)}; given {wish.corpora!r:.80}")
    if not isinstance(wish.trained, str) or wish.trained not in TRAINED:
        raise ConfigError(f"what learns is {wish.trained!r:.40}; it must be one of {', '.join(TRAINED)}")
    whole = ("rows", "chunk_bytes", "lora_rank", "patience", "seed", *(["amount"] if wish.budget == STEPS else []))
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
    learned = {OWN: "a text of its owner", SHIPPED: ", ".join(texts), DATASET: f"{wish.dataset.strip()} from the Hub"}
    told["description"] = f"A specialist: {base or 'a fresh ' + wish.fresh} that learned from {learned[wish.data]}."
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
    return value if bare and value not in ("true", "false", "inf", "nan") else toml_value(value)
