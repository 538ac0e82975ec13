"""From a run to a checkpoint that can be shared: bfloat16 weights, a card that says what was measured, provenance."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint
from bdh.models import Model, build
from bdh.sampling import Sampling
from bdh.stream import Stream

from .data import CORPORA
from .evaluate import bits_per_byte
from .loop import Run

_QUESTIONS = ['What does "river" mean?', 'Tell me what "courage" means.', "What kind of thing is it?"]
_OPENING = "In the beginning, "
_PROMPT = b'\nUser: What does "river" mean?\nBot:'
_HELD_OUT_STREAMS = 8


def export(run: Run, folder: Path) -> Path:
    """Write the run's weights as a checkpoint, measured as they were written.

    Returns:
        The checkpoint's folder.
    """
    tensors = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() and not name.endswith("freqs") else tensor
        for name, tensor in run.model.state_dict().items()
    }
    model = build(run.model.config)
    model.load_state_dict(tensors)
    model.eval()
    held_out = {
        split.name: round(bits_per_byte(model, split.held_out, streams=_HELD_OUT_STREAMS), 4) for split in run.splits
    }
    provenance = {
        "recipe": dataclasses.asdict(run.recipe),
        "texts": {split.name: {"sha256": split.sha256, "trained_bytes": len(split.train)} for split in run.splits},
        "steps": run.step,
        "bytes_heard": run.step * run.recipe.chunk_bytes * sum(run.recipe.texts.values()),
        "elapsed_s": round(run.elapsed_s),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "torch": torch.__version__,
        "held_out_bits_per_byte": held_out,
    }
    return checkpoint.write(
        folder,
        model.config,
        tensors,
        card=card(run, model, held_out, provenance),
        provenance=provenance,
        dtype=torch.bfloat16,
    )


def card(run: Run, model: Model[Any], held_out: dict[str, float], provenance: dict[str, Any]) -> str:
    """The model card in Markdown, with the Hub's front matter; it says no more than the run knows."""
    recipe = run.recipe
    shipped = all((CORPORA / f"{text}.txt.xz").is_file() for text in recipe.texts)
    front = ["library_name: bdh-hatchery", "pipeline_tag: text-generation"]
    front += ["license: mit", "language: en"] if shipped else []
    tags = "\n".join(f"- {tag}" for tag in ("bdh", "byte-level", model.config.kind))
    scores = "\n".join(
        f"| {split.name} | {held_out[split.name]:.3f} | {len(split.held_out):,} |" for split in run.splits
    )
    rows = ", ".join(
        f"{count} of {sum(recipe.texts.values())} rows {Path(name).stem}" for name, count in recipe.texts.items()
    )
    parts = [
        "---\n" + "\n".join(front) + f"\ntags:\n{tags}\n---\n# {recipe.name}\n\n{recipe.description}",
        f"""| | |
|---|---|
| kind | {model.config.kind} |
| parameters | {model.parameter_count():,} |
| memory of one stream | {model.state_bytes() / 1e6:.1f} MB, at any length |
| trained on | {provenance["bytes_heard"]:,} bytes in {run.step:,} steps ({rows}) |
| time | {run.elapsed_s / 60:.0f} minutes of wall clock on {provenance["machine"]} |""",
        f"""## Measured

Bits per byte on the last {recipe.held_out:.0%} of each text, which was never trained on, heard as
{_HELD_OUT_STREAMS} streams with their state carried from end to end, with the weights of this file in float32.

| text | bits per byte | bytes |
|---|---|---|
{scores}""",
        f"""## Use

```python
import bdh

stream = bdh.Stream(bdh.load("checkpoints/{recipe.name}"))
stream.feed({_PROMPT!r})
print(bytes(w.byte for w in stream.generate(bdh.Sampling(temperature=0.5, stop=(b"\\n",)))).decode())
```""",
        f"""## Samples

Seed 0, temperature 0.5; nothing was chosen by hand.

```
{_samples(model, chat="chat" in recipe.texts)}
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


def _toml(fields: dict[str, Any]) -> str:
    """Plain values and one level of tables as TOML."""
    plain = [f"{name} = {json.dumps(value)}" for name, value in fields.items() if not isinstance(value, dict)]
    for name, table in fields.items():
        if isinstance(table, dict):
            plain += ["", f"[{name}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(plain)


def _samples(model: Model[Any], *, chat: bool) -> str:
    """A short dialogue, if the model was trained on any, and a continuation, as text."""
    stream = Stream(model)
    lines = []
    for question in _QUESTIONS if chat else ():
        opening = b"" if stream.recent.endswith(b"\n") else b"\n"
        stream.feed(opening + f"User: {question}\nBot:".encode())
        options = Sampling(temperature=0.5, seed=0, stop=(b"\n",), max_bytes=300, valid_utf8=True)
        answer = bytes(written.byte for written in stream.generate(options))
        lines.append(f"User: {question}\nBot:{answer.decode().rstrip()}")
    stream = Stream(model)
    stream.feed(f"\n{_OPENING}".encode())
    options = Sampling(temperature=0.5, seed=0, max_bytes=240, valid_utf8=True)
    prose = bytes(written.byte for written in stream.generate(options)).decode()
    return "\n".join([*lines, "", f"{_OPENING}{prose}"]).lstrip()
