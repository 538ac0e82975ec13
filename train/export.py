"""From a run to a checkpoint that can be shared: bfloat16 weights, a card that says what was measured, provenance."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint
from bdh.models import Model, build
from bdh.sampling import Sampling
from bdh.stream import Stream

from .evaluate import bits_per_byte
from .loop import Run

_QUESTIONS = ['What does "river" mean?', 'Tell me what "courage" means.', "What kind of thing is it?"]
_OPENING = "In the beginning, "
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
    """The model card in Markdown, with the Hub's front matter."""
    recipe = run.recipe
    scores = "\n".join(
        f"| {split.name} | {held_out[split.name]:.3f} | {len(split.held_out):,} |" for split in run.splits
    )
    rows = ", ".join(f"{count} of {sum(recipe.texts.values())} rows {name}" for name, count in recipe.texts.items())
    overrides = f"steps={recipe.steps}"
    return f"""---
library_name: bdh-hatchery
license: mit
language: en
pipeline_tag: text-generation
tags:
- bdh
- byte-level
- {model.config.kind}
---
# {recipe.name}

{recipe.description}

| | |
|---|---|
| kind | {model.config.kind} |
| parameters | {model.parameter_count():,} |
| memory of one stream | {model.state_bytes() / 1e6:.1f} MB, at any length |
| trained on | {provenance["bytes_heard"]:,} bytes in {recipe.steps:,} steps ({rows}) |
| time | {run.elapsed_s / 60:.0f} minutes on {provenance["machine"]}, shared with other work |

## Measured

Bits per byte on the last {recipe.held_out:.0%} of each text, which was never trained on, heard as
{_HELD_OUT_STREAMS} streams with their state carried from end to end, with the weights of this file in float32.

| text | bits per byte | bytes |
|---|---|---|
{scores}

## Use

```python
import bdh

stream = bdh.Stream(bdh.load("checkpoints/{recipe.name}"))
stream.feed(b'\\nUser: What does "river" mean?\\nBot:')
print(bytes(w.byte for w in stream.generate(bdh.Sampling(temperature=0.5, stop=(b"\\n",)))).decode())
```

Dialogues have the form `User: …` / `Bot: …`, a line a turn.

## Samples

The first answers with seed 0 and temperature 0.5, and a continuation; nothing was chosen by hand.

```
{_samples(model)}
```

## Made by

`python -m train {recipe.name} {overrides}` on the corpora `{"`, `".join(recipe.texts)}`, which come with the
repository (their sources and licences: `train/corpora/README.md`).

## Limits

A very small model after very little training. It has the form of an answer and real words; what it says is often
wrong, and it knows nothing beyond its texts.
"""


def _samples(model: Model[Any]) -> str:
    """A short dialogue and a continuation, as text."""
    stream = Stream(model)
    lines = []
    for question in _QUESTIONS:
        opening = b"" if stream.recent.endswith(b"\n") else b"\n"
        stream.feed(opening + f"User: {question}\nBot:".encode())
        options = Sampling(temperature=0.5, seed=0, stop=(b"\n",), max_bytes=300, valid_utf8=True)
        answer = bytes(written.byte for written in stream.generate(options))
        lines.append(f"User: {question}\nBot:{answer.decode().rstrip()}")
    stream = Stream(model)
    stream.feed(f"\n{_OPENING}".encode())
    options = Sampling(temperature=0.5, seed=0, max_bytes=240, valid_utf8=True)
    prose = bytes(written.byte for written in stream.generate(options)).decode()
    return "\n".join(lines) + f"\n\n{_OPENING}{prose}"
