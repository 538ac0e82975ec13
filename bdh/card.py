"""Model cards: the Hub's front matter, made or completed, and text from elsewhere as it may stand in Markdown.

A card's front matter says what the Hub sorts by. What it says was known when the checkpoint was made, or stands in its
provenance; what nobody said is left out, and a licence that nobody gave is called unknown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from .errors import CheckpointError

LIBRARY, TAG = "bdh-hatchery", "bdh"
UNKNOWN = "unknown"
"""The Hub's word for a licence that nobody gave."""
LICENSES = (
    "mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0",
    "openrail", "other", UNKNOWN,
)  # fmt: skip
"""Those that are offered to choose from; any other of the Hub's names may be given."""
RELATIONS = ("finetune", "merge", "adapter", "quantized")
METRIC = "bits_per_byte"

_ORDER = (
    "library_name", "pipeline_tag", "license", "license_name", "license_link", "language", "tags", "base_model",
    "base_model_relation", "datasets", "model-index",
)  # fmt: skip
_MAX_FRONT_BYTES = 16_384
_MAX_LISTED = 32
_MAX_WORD = 100
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,40}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?|code|multilingual")
_WORD = re.compile(r"[\w.+:/ -]{1,100}")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def completed(
    card: str,
    kind: str,
    provenance: Mapping[str, Any],
    *,
    name: str = "",
    license: str = "",
    language: Sequence[str] = (),
) -> str:
    """A card whose front matter says all that is known; its body is left as it is.

    Of the front matter that it has, only what the Hub sorts models by is kept, and of that what is well formed. To
    complete a card twice changes nothing.

    Args:
        kind: of the model.
        provenance: what the checkpoint says of its making, which is not believed to be well formed.
        name: what the measures stand under; else what the recipe is called.
        license: put in place of what the card says.

    Raises:
        CheckpointError: the licence is no name of the Hub's.
    """
    told, body = split(card)
    bases, relation = _origin(provenance)
    given = [one for one in _words(told.get("base_model")) if is_hub_id(one)]
    if given:
        stated = told.get("base_model_relation")
        bases, relation = given, stated if stated in RELATIONS else ""
    tags = [*_words(told.get("tags")), TAG, "byte-level", kind, *(["merge"] if "merge" in provenance else [])]
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="text-generation",
        license=checked_license(license) if license else _license_told(told) or UNKNOWN,
        license_name=_word(told.get("license_name")),
        license_link=_link(told.get("license_link")),
        language=[one for one in (_words(told.get("language")) or language) if _LANGUAGE.fullmatch(one)] or None,
        tags=list(dict.fromkeys(tags))[:_MAX_LISTED],
        base_model=bases or None,
        datasets=_unique(one for one in [*_words(told.get("datasets")), *_datasets(provenance)] if is_hub_id(one))
        or None,
    ).to_dict()
    if bases and relation:
        data["base_model_relation"] = relation
    results = [
        EvalResult("text-generation", text, text, METRIC, bits, dataset_split="held out", metric_name="bits per byte")
        for text, bits in held_out(provenance).items()
    ]
    if results:
        title = name or _recipe_name(provenance) or "model"
        data |= ModelCardData(model_name=line(title), eval_results=results).to_dict()
    elif _is_index(told.get("model-index")):
        data["model-index"] = told["model-index"]
    data = {key: data[key] for key in _ORDER if key in data}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1_000)
    return f"---\n{text}---\n{body if body.startswith(chr(10)) or not body else chr(10) + body}"


def split(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body; a front matter that is too long, or no plain YAML mapping, is dropped."""
    match = _FRONT.match(card)
    if match is None:
        return {}, card
    text, body = match[1], card[match.end() :]
    if len(text) > _MAX_FRONT_BYTES:
        return {}, body
    try:
        # What refers to itself may be far larger than it looks.
        if any(isinstance(token, (yaml.AliasToken, yaml.AnchorToken)) for token in yaml.scan(text)):
            return {}, body
        told = yaml.safe_load(text)
        json.dumps(told, allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}, body
    return (told, body) if isinstance(told, dict) else ({}, body)


def inherited(cards: Sequence[str]) -> str:
    """A front matter of what several cards say together: the licence if they agree, and all languages."""
    licenses = {license_of(card) for card in cards}
    told: dict[str, Any] = {}
    if len(licenses) == 1 and "" not in licenses:
        told["license"] = licenses.pop()
    if spoken := sorted({one for card in cards for one in _words(split(card)[0].get("language"))}):
        told["language"] = spoken
    return f"---\n{yaml.safe_dump(told, sort_keys=False)}---\n" if told else ""


def license_of(card: str) -> str:
    """The licence that a card states; empty if it states none."""
    told = _license_told(split(card)[0])
    return "" if told == UNKNOWN else told


def checked_license(license: str) -> str:
    """A licence as the Hub names it.

    Raises:
        CheckpointError: it can be no such name.
    """
    if not isinstance(license, str) or not _LICENSE.fullmatch(license):
        raise CheckpointError(
            f"license {str(license)!r:.60} is no name of the Hub's; such are {', '.join(LICENSES)} and others on "
            "https://huggingface.co/docs/hub/repositories-licenses"
        )
    return license


def is_hub_id(text: object) -> bool:
    """Whether a text can be the name of a repository on the Hub, and is no place in a clone of this project."""
    if not isinstance(text, str) or text.count("/") != 1 or text.startswith(("checkpoints/", "base/", "path/")):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", text, re.ASCII))


def repo_of(place: object) -> str:
    """The repository of `user/repo@commit:subfolder`; empty if the text is none."""
    repo = re.split("[@:]", place, maxsplit=1)[0] if isinstance(place, str) else ""
    return repo if is_hub_id(repo) else ""


def held_out(provenance: Mapping[str, Any]) -> dict[str, float]:
    """Bits per byte of each text that a checkpoint's provenance says were measured on what it never heard."""
    told = provenance.get("held_out_bits_per_byte")
    if not isinstance(told, Mapping):
        return {}
    return {
        line(name): float(bits)
        for name, bits in list(told.items())[:_MAX_LISTED]
        if line(name) and isinstance(bits, (int, float)) and not isinstance(bits, bool) and 0 <= bits < 1_000
    }


def line(told: object, limit: int = _MAX_WORD) -> str:
    """What somebody else says, as words on a line in which no Markdown, HTML or table begins."""
    text = "".join(one if one.isprintable() else " " for one in str(told)[: 4 * limit])
    return re.sub(r"[\\`*{}\[\]<>#|~$&]+", "", text).strip()[:limit]


def code(told: object, limit: int = _MAX_WORD) -> str:
    """What somebody else says, as code on a line or in a table."""
    return f"`{line(told, limit) or '?'}`"


def fenced(text: str, language: str = "") -> str:
    """A text of several lines as it is, however many backticks are in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as Markdown; the first are the headings."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *map(list, rows[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _origin(provenance: Mapping[str, Any]) -> tuple[list[str], str]:
    """The repositories that a model was made from, and how; empty if they are not on the Hub."""
    base = provenance.get("base")
    if "recipe" in provenance and isinstance(base, Mapping) and (repo := repo_of(base.get("commit"))):
        return [repo], "finetune"
    parents = provenance.get("parents")
    if "merge" in provenance and isinstance(parents, list):
        repos = [repo_of(one.get("commit")) for one in parents[:_MAX_LISTED] if isinstance(one, Mapping)]
        if found := sorted(filter(None, set(repos))):
            return found, "merge"
    return [], ""


def _datasets(provenance: Mapping[str, Any]) -> list[str]:
    """The Hub's datasets that a run's recipe names."""
    recipe = provenance.get("recipe")
    if not isinstance(recipe, Mapping):
        return []
    phases = recipe.get("phases")
    parts = [recipe, *(phases if isinstance(phases, (list, tuple)) else ())][:_MAX_LISTED]
    texts = [part.get("texts") for part in parts if isinstance(part, Mapping)]
    sources = [one for table in texts if isinstance(table, Mapping) for one in table.values()]
    named = [str(one.get("dataset") or "") for one in sources if isinstance(one, Mapping)]
    return [one.partition("@")[0] for one in named[:_MAX_LISTED]]


def _recipe_name(provenance: Mapping[str, Any]) -> str:
    recipe = provenance.get("recipe")
    return line(recipe.get("name") or "") if isinstance(recipe, Mapping) else ""


def _license_told(told: Mapping[str, Any]) -> str:
    license = told.get("license")
    license = license[0] if isinstance(license, list) and len(license) == 1 else license
    return license if isinstance(license, str) and _LICENSE.fullmatch(license) else ""


def _words(value: object) -> list[str]:
    """A text, or a list of texts, as far as they are short words."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values[:_MAX_LISTED] if isinstance(one, str) and _WORD.fullmatch(one)]


def _word(value: object) -> str | None:
    return next(iter(_words(value)), None)


def _link(value: object) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"(https://)?[\w.\-/#%+]{1,200}", value) else None


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _is_index(value: object) -> bool:
    """Whether a model-index has the form that the Hub reads."""
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return False
    try:
        found = model_index_to_eval_results(value)[1]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return False
    return bool(found) and all(
        isinstance(one.metric_value, (int, float)) and math.isfinite(one.metric_value) for one in found or ()
    )
