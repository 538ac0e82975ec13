"""From a plan to a checkpoint: parents are read, merged, described and written whole."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .. import card as cards
from .. import checkpoint
from ..config import ComposedConfig, Config
from ..errors import MergeError
from ..models import Model, build
from . import weights
from .align import Alignment, aligned
from .join import Heritage, concatenate, concatenate_heads, heritage, join_config
from .parents import model_of
from .plan import Plan, summary
from .prune import pruned
from .recipe import CALIBRATION_BYTES, METHODS

LINEAGE = ("merge", "parents", "heritage")
"""What of a merge's provenance stays true of the model that it is trained into."""
_HERITAGE_BYTES = 1 << 19
Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what is done next."""


@dataclass
class Merged:
    """What a merge gives."""

    plan: Plan
    config: Config
    tensors: dict[str, Tensor]
    checksums: tuple[str, ...]
    """Of each parent's weights."""
    heritage: Heritage = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What was found on the way, in words."""
    text: bytes = b""
    """What was heard of the text that the recipe names."""

    def model(self) -> Model[Any]:
        """The result as a model in float32 on the CPU."""
        return model_of(self.config, self.tensors)

    def fields(self) -> dict[str, Any]:
        """The recipe with places as others may read them: no paths of this machine."""
        plan = self.plan
        fields = plan.recipe.told() | {"parents": [parent.place or parent.source for parent in plan.parents]}
        if plan.base:
            fields["base"] = plan.base.place or plan.base.source
        if "text" in fields:
            fields["text"] = Path(plan.recipe.text).name
        return fields

    def provenance(self) -> dict[str, Any]:
        """What the checkpoint keeps of its making; nothing in it depends on when or where it was made."""
        told: dict[str, Any] = {
            "merge": self.fields(),
            "parents": [
                {"name": parent.name, "source": parent.source, "weights_sha256": checksum}
                | ({"commit": parent.place} if parent.place else {})
                for parent, checksum in zip(self.plan.parents, self.checksums, strict=False)
            ],
        }
        if self.plan.base:
            told["base"] = {"source": self.plan.base.source, "weights_sha256": self.checksums[-1]}
        if self.text:
            told["text"] = {"heard_bytes": len(self.text), "sha256": hashlib.sha256(self.text).hexdigest()}
        if self.heritage:
            told["heritage"] = self.heritage
        if self.notes:
            told["notes"] = self.notes
        return told


def merge(plan: Plan, *, text: bytes | None = None, progress: Progress | None = None) -> Merged:
    """Read the parents and merge them.

    Args:
        text: what alignment and activity are measured on; None reads the file that the recipe names, if any.

    Raises:
        CheckpointError: a parent is damaged.
        MergeError: the weights do not allow what the shapes did (other frequencies, too little text).
    """
    recipe = plan.recipe
    if text is None and recipe.text and recipe.listens:
        text = _read_text(recipe.text)
    steps = len(plan.parents) + bool(plan.base) + 1
    say = progress or (lambda done, total, note: None)
    read: list[dict[str, Tensor]] = []
    notes: list[str] = []
    checksums = []
    for index, parent in enumerate((*plan.parents, *((plan.base,) if plan.base else ()))):
        say(index, steps, f"reading {parent.name}")
        tensors = parent.read()
        checksums.append(checkpoint.weights_checksum(tensors))
        if recipe.align and index:
            say(index, steps, f"aligning {parent.name}")
            reference = model_of(plan.parents[0].config, read[0])
            tensors, found = aligned(reference, model_of(parent.config, tensors), text)
            notes.append(_words(parent.name, plan.parents[0].name, found))
        read.append(tensors)
    say(steps - 1, steps, "merging")
    base = read.pop() if plan.base else None
    config, tensors = plan.config, _tensors(plan, read, base)
    origin = {}
    if recipe.method in ("concat", "concat-heads"):
        configs = [parent.config for parent in plan.parents]
        origin = heritage(configs, heads=recipe.method == "concat-heads")
    read.clear()
    if recipe.neurons:
        say(steps - 1, steps, "choosing neurons")
        whole = join_config([parent.config for parent in plan.parents], heads=False)
        by: Literal["random", "activity"] = "random" if recipe.by == "random" else "activity"
        config, tensors, kept = pruned(tensors, whole, recipe.neurons, by=by, seed=recipe.seed, text=text)
        origin = {
            prefix: [_left(head, pairs) for head, pairs in zip(heads, kept[prefix].tolist(), strict=True)]
            for prefix, heads in origin.items()
        }
    stored = {
        name: tensor if checkpoint.is_frequency(name) else tensor.to(plan.dtype) for name, tensor in tensors.items()
    }
    say(steps, steps, "merged")
    if len(json.dumps(origin)) > _HERITAGE_BYTES:
        origin = {}
        notes.append("which neuron is whose is too long a list to be kept with so many neurons")
    heard = (text or b"")[:CALIBRATION_BYTES] if recipe.listens else b""
    return Merged(plan, config, stored, tuple(checksums), origin, notes, heard)


def write(merged: Merged, out: str | Path, *, card: str | None = None) -> Path:
    """Write a merged model as a checkpoint folder, or replace one whole.

    Args:
        card: Markdown to put in place of the plain card.

    Raises:
        CheckpointError: as `checkpoint.write`.
    """
    config, tensors = merged.config, dict(merged.tensors)
    if merged.plan.recipe.by_reference and isinstance(config, ComposedConfig):
        places = tuple(parent.place or "" for parent in merged.plan.parents)
        config = dataclasses.replace(config, sources=places)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("members.")}
    return checkpoint.write(
        out, config, tensors, card=card or describe(merged, Path(out)), provenance=merged.provenance()
    )


def describe(merged: Merged, out: Path) -> str:
    """The card: what was merged, how, and the recipe that makes the same bytes again."""
    plan, recipe = merged.plan, merged.plan.recipe
    place = out.as_posix() if out.as_posix().startswith("checkpoints/") else f"path/to/{recipe.name}"
    rows = [["parent", "weight", "what it is", "weights (SHA-256)"]]
    for parent, weight, checksum in zip(plan.parents, recipe.weight_list(), merged.checksums, strict=False):
        told = f"{weight:g}" if recipe.uses("weights") else "–"
        rows.append([cards.code(parent.place or parent.source), told, summary(parent.config), f"`{checksum[:16]}`"])
    if plan.base:
        rows.append(
            [
                cards.code(plan.base.place or plan.base.source),
                "base",
                summary(plan.base.config),
                f"`{merged.checksums[-1][:16]}`",
            ]
        )
    count = sum(t.numel() for name, t in merged.tensors.items() if not checkpoint.is_frequency(name))
    notes = "".join(f"\n- {cards.line(note, 400)}" for note in merged.notes)
    front = cards.inherited([checkpoint.read_card(one.folder) if one.folder else "" for one in plan.parents])
    fields = "\n".join(f"{name} = {_toml(value)}" for name, value in merged.fields().items())
    return (
        "\n\n".join(
            [
                f"{front}# {cards.line(recipe.name)}",
                f"Made of {len(plan.parents)} by `{recipe.method}`: {METHODS[recipe.method].summary}.",
                f"- **kind**: {summary(merged.config)}\n- **parameters**: {count:,}{notes}",
                "## Lineage\n\n" + cards.table(rows),
                "The same recipe on the same parents gives the same bytes: `python -m bdh merge --recipe FILE`.",
                cards.fenced(fields, "toml"),
                "## Use\n\n" + cards.fenced(f'import bdh\n\nmodel = bdh.load("{cards.line(place)}")', "python"),
                "## Limits\n\nIt was not trained after merging, and nothing was measured for this card: what the "
                "merge kept of its parents is what `python -m lab composability` and the page's Merge tab measure.",
            ]
        )
        + "\n"
    )


def _tensors(plan: Plan, read: list[dict[str, Tensor]], base: dict[str, Tensor] | None) -> dict[str, Tensor]:
    recipe, weigh = plan.recipe, list(plan.recipe.weight_list())
    configs = [parent.config for parent in plan.parents]
    if recipe.method == "concat":
        return concatenate(read, configs, weigh)
    if recipe.method == "concat-heads":
        return concatenate_heads(read, configs, weigh)
    if not METHODS[recipe.method].composed:
        return _mixed(plan, read, base)
    whole = {
        f"members.{index}.{name}": tensor for index, tensors in enumerate(read) for name, tensor in tensors.items()
    }
    front = build(plan.config, seed=recipe.seed).state_dict()
    return (
        whole
        | {name: tensor for name, tensor in front.items() if not name.startswith("members.")}
        | ({"combine_weight": torch.tensor(weigh).clamp_min(1e-30).log()} if recipe.method == "average-logits" else {})
    )


def _mixed(plan: Plan, read: list[dict[str, Tensor]], base: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors of a same-size method, made one after the other, the parents' let go as they are done with."""
    recipe, weigh = plan.recipe, list(plan.recipe.weight_list())

    def mix(parents: list[dict[str, Tensor]], start: dict[str, Tensor]) -> dict[str, Tensor]:
        match recipe.method:
            case "average":
                return weights.average(parents, weigh) if len(parents) > 1 else parents[0]
            case "slerp":
                return weights.slerp(parents[0], parents[1], recipe.t)
            case "task-arithmetic":
                return weights.task_arithmetic(start, parents, weigh, recipe.scale)
            case "ties":
                return weights.ties(start, parents, weigh, recipe.density, recipe.scale)
        elect = recipe.method == "dare-ties"
        return weights.dare(start, parents, weigh, recipe.density, recipe.scale, seed=recipe.seed, elect_sign=elect)

    mixed = {}
    for name in list(read[0]):
        made = mix([{name: tensors.pop(name)} for tensors in read], {name: base.pop(name)} if base is not None else {})[
            name
        ]
        mixed[name] = made if checkpoint.is_frequency(name) else made.to(plan.dtype)
    return mixed


def _left(stretches: list[list[int]], pairs: list[int]) -> list[list[int]]:
    """The stretches of a head of which some pairs of neurons are left, in their new order."""
    owners = [parent for parent, neurons in stretches for _ in range(neurons // 2)]
    return [[parent, 2 * len(list(run))] for parent, run in itertools.groupby(owners[pair] for pair in pairs)]


def _words(name: str, reference: str, found: Alignment) -> str:
    """An alignment in a line."""
    cosines = ", ".join(f"{source} {found.before[source]:.2f} → {after:.2f}" for source, after in found.after.items())
    return f"{name} was turned onto {reference}, cosines: {cosines}"


def _read_text(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(CALIBRATION_BYTES)
    except OSError as error:
        raise MergeError(f"{path} could not be read: {error.strerror}; it is the text to measure on") from None
    if not data:
        raise MergeError(f"{path} is empty; it is the text to measure on")
    return data


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
