"""From a run to a checkpoint that can be shared: bfloat16 weights, a card that says what was measured, provenance."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint
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
from .sources import is_shipped
from .strategy import plain_tensors

_QUESTIONS = ['What does "river" mean?', 'Tell me what "courage" means.', "What kind of thing is it?"]
_OPENING = "In the beginning, "
_PROMPT = b'\nUser: What does "river" mean?\nBot:'
_HELD_OUT_STREAMS = 8
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
    return checkpoint.write(
        folder,
        model.config,
        tensors,
        card=card(run, model, held_out, provenance, _place(folder, run.recipe)),
        provenance=provenance,
        dtype=torch.bfloat16,
    )


def _told(recipe: Recipe) -> Recipe:
    """The recipe as others may read it: of a base somewhere on this machine, no more than its folder's name."""
    return dataclasses.replace(recipe, base=place_told(Path(recipe.base))) if os.path.isabs(recipe.base) else recipe


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


def card(run: Run, model: Model[Any], held_out: dict[str, float], provenance: dict[str, Any], place: str) -> str:
    """The model card in Markdown, with the Hub's front matter; it says no more than the run knows."""
    recipe, splits = _told(run.recipe), run.splits[run.phase]
    sources = recipe.sources(run.parts[run.phase])
    chat = any(one.name == "chat" for one in splits)
    opening = recipe.prompt.strip() if recipe.prompt.strip() and not recipe.prompt.startswith("\nUser:") else _OPENING
    prompt = _PROMPT if chat else f"\n{opening}".encode()
    shipped = all(is_shipped(text.source or text.name) and not text.dataset for text in sources)
    front = ["library_name: bdh-hatchery", "pipeline_tag: text-generation"]
    if shipped:
        spoken = sorted({"es" if (text.source or text.name) == "spanish" else "en" for text in sources})
        front += ["license: mit", f"language: [{', '.join(spoken)}]"]
    tags = "\n".join(f"- {tag}" for tag in ("bdh", "byte-level", model.config.kind))
    before = provenance.get("base_held_out_bits_per_byte", {})
    columns = ["text", *(["the base"] if before else []), "bits per byte", "bytes"]
    table = [columns, ["---"] * len(columns)]
    for one in splits:
        base = [f"{before[one.name]:.3f}"] if before else []
        table.append(
            [one.name, *base, f"{held_out[one.name]:.3f}", f"{len(held_out_bytes(one)[: recipe.test_bytes or None]):,}"]
        )
    scores = "\n".join(f"| {' | '.join(row)} |" for row in table)
    rows = ", ".join(f"{one.rows} of {run.rows} rows {one.name}" for one in splits)
    parts = [
        "---\n" + "\n".join(front) + f"\ntags:\n{tags}\n---\n# {recipe.name}\n\n{recipe.description}",
        f"""- **kind**: {model.config.kind}
- **parameters**: {model.parameter_count():,}
- **state of one stream**: {model.state_bytes() / 1e6:.1f} MB, at any length
- **trained on**: {provenance["bytes_heard"]:,} bytes in {run.step:,} steps ({rows})
- **time**: {_minutes(run.elapsed_s)} of wall clock on {provenance["machine"]}{_lineage(provenance)}""",
        f"""## Measured

Bits per byte on the last part of each text, which was neither trained on nor looked at in training, heard as
{_HELD_OUT_STREAMS} streams with their state carried from end to end, with the weights of this file in float32.

{scores}""",
        f"""## Use

```python
import bdh

stream = bdh.Stream(bdh.load("{place}"))
stream.feed({prompt!r})
print(bytes(w.byte for w in stream.generate(bdh.Sampling(temperature=0.5, stop=(b"\\n",)))).decode())
```""",
        f"""## Samples

Seed 0, temperature 0.5; nothing was chosen by hand.

```
{_samples(model, opening, chat=chat)}
```""",
        f"""## Made by

The recipe below, with `python -m train`; `provenance.json` has the checksums of the texts.

```toml
{_toml(dataclasses.asdict(recipe))}
```""",
        """## Limits

A very small model after very little training. Its text has the form of what it was trained on; what it says is often
wrong, and it knows nothing beyond its texts.""",
    ]
    if shipped:
        parts.append("The texts and their licences: `train/corpora/README.md` of BDH Hatchery.")
    return "\n\n".join(parts) + "\n"


def _lineage(provenance: dict[str, Any]) -> str:
    """What a healed model was merged from, as one more point of its list."""
    merge, parents = provenance.get("merge"), provenance.get("parents")
    if not isinstance(merge, dict) or not isinstance(parents, list):
        return ""
    names = ", ".join(f"`{_plain(parent.get('source'))}`" for parent in parents[:16] if isinstance(parent, dict))
    cut = f", cut to {_plain(merge['neurons'])} neurons a head" if merge.get("neurons") else ""
    return f"\n- **merged from**: {names} by `{_plain(merge.get('method'))}`{cut}, before this training"


def _plain(told: object) -> str:
    """What another checkpoint says, as a word on a line."""
    return re.sub(r"[^\w./@: -]", "", str(told))[:120]


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
