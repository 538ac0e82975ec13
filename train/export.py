"""From a run to a checkpoint that can be shared: bfloat16 weights, a card that says what was measured, provenance."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

from bdh import card as cards
from bdh import checkpoint, hub
from bdh.load import load
from bdh.merge import LINEAGE
from bdh.merge.parents import place_told
from bdh.models import Model, build
from bdh.sampling import Sampling
from bdh.stream import Stream

from .data import Bytes, Splits
from .evaluate import bits_per_byte
from .folder import environment
from .loop import Run
from .recipe import Recipe, toml_key, toml_value
from .sources import Text, is_shipped
from .strategy import plain_tensors

_QUESTIONS = ['What does "river" mean?', 'Tell me what "courage" means.', "What kind of thing is it?"]
_OPENING = "In the beginning, "
_PROMPT = b'\nUser: What does "river" mean?\nBot:'
_HELD_OUT_STREAMS = 8
_LICENSE = "mit"
"""Of weights that nobody else had a hand in, trained on the texts of this repository."""
_LANGUAGES = {"spanish": "es", "python": "code"}
"""Of the shipped texts that are not English."""
_CURVE_ROWS = 12
_LINEAGE_BYTES = 600_000
"""Of what a base says of its own making; more is not believed, for it might not fit into what is written."""


def export(run: Run, folder: Path) -> Path:
    """Write the run's best weights as a checkpoint, measured as they were written.

    Returns:
        The checkpoint's folder.
    """
    part = run.parts[run.phase]
    best = run.folder.best(part.name)
    weights = load(best, device="cpu").state_dict() if run.best and best.is_dir() else plain_tensors(run.model)
    tensors = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() and not name.endswith("freqs") else tensor
        for name, tensor in weights.items()
    }
    model = build(run.model.config)
    model.load_state_dict(tensors)
    model.eval()
    splits = run.splits[run.phase]
    most = run.recipe.test_bytes or None
    held_out = _held_out(model, splits, most)
    base = load(run.recipe.base, device="cpu") if run.recipe.base else None
    before = _held_out(base, splits, most) if base else {}
    told = base.origin.provenance if base and base.origin else {}
    provenance: dict[str, Any] = {
        "recipe": dataclasses.asdict(_told(run.recipe)),
        "texts": {one.name: {"sha256": one.sha256, "trained_bytes": len(one.train)} for one in splits},
        "steps": run.step,
        "best_step": run.best.get("step", run.step),
        "bytes_heard": run.heard_bytes,
        "elapsed_s": round(run.elapsed_s),
        **environment(),
        "held_out_bits_per_byte": held_out,
    }
    lineage = {name: told[name] for name in LINEAGE if name in told}
    if len(json.dumps(lineage)) < _LINEAGE_BYTES:
        provenance |= lineage
    if before:
        provenance["base_held_out_bits_per_byte"] = before
    if base and (place := _base_place(run.recipe, base)):
        provenance["base"] = {"commit": place, "weights_sha256": base.checksum()}
    stated = cards.license_of(_card_of(base)) if base else _LICENSE
    return checkpoint.write(
        folder,
        model.config,
        tensors,
        card=card(run, model, held_out, provenance, _place(folder, run.recipe), stated),
        provenance=provenance,
        dtype=torch.bfloat16,
    )


def _told(recipe: Recipe) -> Recipe:
    """The recipe as others may read it: of a base somewhere on this machine, no more than its folder's name."""
    return dataclasses.replace(recipe, base=place_told(Path(recipe.base))) if os.path.isabs(recipe.base) else recipe


def _base_place(recipe: Recipe, base: Model[Any]) -> str:
    """Where on the Hub a base lies, as `user/repo@commit`; empty if that is not known."""
    if recipe.base_place:
        return recipe.base_place
    origin = base.origin
    if origin is None or not origin.repo_id:
        return ""
    return hub.parse_source(origin.source, local=False).at(origin.revision or "main")


def _card_of(base: Model[Any]) -> str:
    """The card that came with a base; empty if there was none."""
    folder = base.origin.folder if base.origin else None
    return checkpoint.read_card(folder) if folder is not None and folder.is_dir() else ""


def _place(folder: Path, recipe: Recipe) -> str:
    """Where a reader of the card finds the checkpoint: a path in a clone, or a folder by the model's name."""
    told = folder.as_posix()
    return told if told.startswith("checkpoints/") else f"path/to/{recipe.name}"


def _held_out(model: Model[Any], splits: list[Splits], most: int | None) -> dict[str, float]:
    """Bits per byte of what each text keeps to the end, or its first `most` bytes."""
    return {
        one.name: round(bits_per_byte(model, held_out_bytes(one)[:most], streams=_HELD_OUT_STREAMS), 4)
        for one in splits
    }


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def held_out_bytes(splits: Splits) -> Bytes:
    """What a checkpoint is measured on: the test part, or without one the validation part."""
    return splits.test if len(splits.test) >= 2 * _HELD_OUT_STREAMS else splits.validation


def card(
    run: Run, model: Model[Any], held_out: dict[str, float], provenance: dict[str, Any], place: str, license: str
) -> str:
    """The model card in Markdown; it says no more than the run knows.

    Args:
        license: what the weights that it began with are under; that of our own texts for fresh ones.
    """
    recipe, splits = _told(run.recipe), run.splits[run.phase]
    sources = recipe.sources(run.parts[run.phase])
    chat = any(one.name == "chat" for one in splits)
    opening = recipe.prompt.strip() if recipe.prompt.strip() and not recipe.prompt.startswith("\nUser:") else _OPENING
    prompt = _PROMPT if chat else f"\n{opening}".encode()
    shipped = all(_is_ours(text) for text in sources)
    front = ""
    if shipped:
        spoken = sorted({_LANGUAGES.get(text.source or text.name, "en") for text in sources})
        stated = f"license: {license}\n" if license == _LICENSE else ""
        front = f"---\n{stated}language: [{', '.join(spoken)}]\n---\n"
    before = provenance.get("base_held_out_bits_per_byte", {})
    scores = [["text", *(["the base"] if before else []), "bits per byte", "bytes"]]
    for one in splits:
        base = [f"{before[one.name]:.3f}"] if before else []
        most = recipe.test_bytes or None
        scores.append([_name(one), *base, f"{held_out[one.name]:.3f}", f"{len(held_out_bytes(one)[:most]):,}"])
    rows = ", ".join(f"{one.rows} of {run.rows} rows {_name(one)}" for one in splits)
    parts = [
        f"{front}# {recipe.name}\n\n{cards.line(recipe.description, 1000)}",
        f"""- **kind**: {model.config.kind}
- **parameters**: {model.parameter_count():,}
- **state of one stream**: {model.state_bytes() / 1e6:.1f} MB, at any length
- **trained on**: {provenance["bytes_heard"]:,} bytes in {run.step:,} steps ({rows})
- **time**: {_minutes(run.elapsed_s)} of wall clock on {provenance["machine"]}{_lineage(provenance)}""",
        f"""## Measured

Bits per byte on the last part of each text, which was neither trained on nor looked at in training, heard as
{_HELD_OUT_STREAMS} streams with their state carried from end to end, with the weights of this file in float32.

{cards.table(scores)}""",
        *_curve(run),
        f"""## Use

```python
import bdh

stream = bdh.Stream(bdh.load("{place}"))
stream.feed({prompt!r})
print(bytes(w.byte for w in stream.generate(bdh.Sampling(temperature=0.5, stop=(b"\\n",)))).decode())
```""",
        "## Samples\n\nSeed 0, temperature 0.5; nothing was chosen by hand.\n\n"
        + cards.fenced(_samples(model, opening, chat=chat)),
        "## Made by\n\nThe recipe below, with `python -m train`; `provenance.json` has the checksums of the texts.\n\n"
        + cards.fenced(_toml(dataclasses.asdict(recipe)), "toml"),
        """## Limits

A very small model after very little training. Its text has the form of what it was trained on; what it says is often
wrong, and it knows nothing beyond its texts.""",
    ]
    if shipped:
        parts.append("The texts and their licences: `train/corpora/README.md` of BDH Hatchery.")
    return "\n\n".join(parts) + "\n"


def _curve(run: Run) -> list[str]:
    """How validation went, as a section of the card; nothing if it was looked at once or never."""
    looks = [
        one for one in run.folder.measures() if one.get("validation") and one.get("phase") == run.parts[run.phase].name
    ]
    if len(looks) < 2:
        return []
    most = _CURVE_ROWS - 1
    picked = (
        looks if len(looks) <= _CURVE_ROWS else [looks[round(i * (len(looks) - 1) / most)] for i in range(most + 1)]
    )
    names = list(picked[-1]["validation"])
    rows = [["step", "bytes heard", *(cards.line(name) for name in names)]]
    for one in picked:
        bits = [f"{one['validation'][name]:.3f}" if name in one["validation"] else "–" for name in names]
        rows.append([f"{one['step']:,}", f"{one['heard_bytes']:,}", *bits])
    said = "Bits per byte on the part of each text that is kept to validate on, as it learned"
    some = f" ({len(picked)} of {len(looks)} looks)" if len(picked) < len(looks) else ""
    return [f"## Learning curve\n\n{said}{some}.\n\n{cards.table(rows)}"]


def _lineage(provenance: dict[str, Any]) -> str:
    """What a model was made from, as more points of its list."""
    told = ""
    base = provenance.get("base")
    if isinstance(base, dict) and base.get("commit"):
        told = f"\n- **goes on from**: {cards.code(base['commit'])} on the Hub"
    merge, parents = provenance.get("merge"), provenance.get("parents")
    if not isinstance(merge, dict) or not isinstance(parents, list):
        return told
    names = ", ".join(cards.code(parent.get("source")) for parent in parents[:16] if isinstance(parent, dict))
    cut = f", cut to {cards.line(merge['neurons'])} neurons a head" if merge.get("neurons") else ""
    return f"{told}\n- **merged from**: {names} by {cards.code(merge.get('method'))}{cut}, before this training"


def _name(splits: Splits) -> str:
    return cards.line(splits.name)


def _is_ours(text: Text) -> bool:
    """Whether a text comes with the repository, or is made by it."""
    source = text.source or text.name
    return not text.dataset and (is_shipped(source) or source.startswith("generated:"))


def _toml(fields: dict[str, Any]) -> str:
    """The fields that differ from what they are by default, as TOML."""
    usual = {f.name: f.default for f in dataclasses.fields(Recipe)}
    told = {name: value for name, value in fields.items() if value != usual[name] and value not in ({}, ())}
    plain = [
        f"{name} = {toml_value(value)}" for name, value in told.items() if not isinstance(value, (dict, tuple, list))
    ]
    for name, table in told.items():
        if isinstance(table, dict):
            plain += ["", f"[{name}]", *(f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items())]
        elif isinstance(table, (tuple, list)):
            for row in table:
                plain += ["", f"[[{name}]]", *(f"{toml_key(key)} = {toml_value(value)}" for key, value in row.items())]
    return "\n".join(plain)


def _samples(model: Model[Any], opening: str, *, chat: bool) -> str:
    """A short dialogue, if the model was trained on any, and a continuation, as text."""
    stream = Stream(model)
    lines = []
    for question in _QUESTIONS if chat else ():
        before = b"" if stream.recent.endswith(b"\n") else b"\n"
        stream.feed(before + f"User: {question}\nBot:".encode())
        options = Sampling(temperature=0.5, seed=0, stop=(b"\n",), max_bytes=300, valid_utf8=True)
        answer = bytes(written.byte for written in stream.generate(options))
        lines.append(f"User: {question}\nBot:{answer.decode().rstrip()}")
    stream = Stream(model)
    stream.feed(f"\n{opening}".encode())
    options = Sampling(temperature=0.5, seed=0, max_bytes=240, valid_utf8=True)
    prose = bytes(written.byte for written in stream.generate(options)).decode()
    return "\n".join([*lines, "", f"{opening}{prose}"]).lstrip()
