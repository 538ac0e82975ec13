"""A Hebbian memory, taken apart while a text is heard: who wrote what, what is read, which synapses it makes.

One head of one layer writes and asks by S_(t+1) = λ S_t + k_tᵀ ⊗ v_t and read_t = q_t · S_t. So its keys, queries and
values say everything about its memory at any byte, and every number of it can be traced to the bytes that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh import probe
from bdh.config import ComposedConfig, Config, FlatConfig, HebbianConfig, HierarchicalConfig, TransformerConfig
from bdh.errors import DataError
from bdh.models import Model
from bdh.ops import rope
from train.plots import Map, draw_maps

MOST_TRACE_BYTES = 64_000_000
"""Of what is recorded of one head."""
_GROWTH_POINTS = 48
_BLOCK = 1024
"""Neurons whose synapses are looked through at once."""
NAMED_NEURONS = 16
"""Up to so many neurons of a picture have their numbers below it."""


class Place(NamedTuple):
    """A layer that remembers by a Hebbian sum."""

    name: str
    """As points of `bdh.probe` begin, such as `layer.0`."""
    title: str
    heads: int
    neurons: int
    """N, rows of a head's memory."""
    width: int
    """D, its columns."""
    decay: tuple[float, ...]
    """λ of each head; empty is 1."""
    step_bytes: int = 1
    """Bytes that are written as one: those of a patch, for a global layer."""
    span: int | None = None
    """Writes after which the memory begins anew: the bytes of a patch, for a local layer."""
    excites: bool = True
    """What is read excites the neurons of y_sparse; a `hebbian` model has none."""

    @property
    def memory_bytes(self) -> int:
        """What one head's memory takes, at any length."""
        return 4 * self.neurons * self.width


def places(config: Config, prefix: str = "", before: str = "") -> tuple[Place, ...]:
    """The layers of a model that remember by a Hebbian sum; none of a Transformer."""
    if isinstance(config, ComposedConfig):
        return tuple(
            place
            for index, member in enumerate(config.members)
            for place in places(member, f"member.{index}.", f"member {index + 1} ({member.kind}), ")
        )
    if isinstance(config, FlatConfig):
        return tuple(
            Place(f"{prefix}layer.{index}", _title(before, "layer", index, config.n_layer), config.n_head,
                  config.n_neuron, config.n_embd, config.decay)
            for index in range(config.n_layer)
        )  # fmt: skip
    if isinstance(config, HebbianConfig):
        size = config.n_embd // config.n_head
        return tuple(
            Place(f"{prefix}layer.{index}", _title(before, "layer", index, config.n_layer), config.n_head, size, size,
                  config.decay, excites=False)
            for index in range(config.n_layer)
        )  # fmt: skip
    if isinstance(config, HierarchicalConfig) and config.use_bdh_attention:
        size = config.patch_size
        wide = config.global_n_embd * config.global_mlp_mult // config.global_n_head
        near = config.local_n_embd * config.local_mlp_mult // config.local_n_head
        return tuple(
            Place(f"{prefix}global.{index}", _title(before, "global layer", index, config.global_n_layer),
                  config.global_n_head, wide, config.global_n_embd, config.global_decay, step_bytes=size)
            for index in range(config.global_n_layer)
        ) + tuple(
            Place(f"{prefix}local.{index}", _title(before, "local layer", index, config.local_n_layer),
                  config.local_n_head, near, config.local_n_embd, (), span=size)
            for index in range(config.local_n_layer)
        )  # fmt: skip
    return ()


def without_places(config: Config) -> str:
    """In words, what a model without such layers has instead."""
    if isinstance(config, TransformerConfig):
        return (
            "This Transformer has no Hebbian memory: it keeps the keys and values of the last "
            f"{config.block_size:,} bytes as they are and forgets all before. The view Baseline shows its attention."
        )
    if isinstance(config, HierarchicalConfig):
        return (
            "This hierarchical model is made of Transformer blocks, which have no Hebbian memory: they keep the keys "
            f"and values of the last {config.max_seq_len:,} bytes as they are."
        )
    return "No member of this composed model has a Hebbian memory; each keeps a window of what it heard last."


def _title(before: str, what: str, index: int, count: int) -> str:
    return f"{before}{what} {index + 1} of {count}"


@dataclass(frozen=True)
class Trace:
    """All that one head wrote and asked while a text was heard. A write is a byte, or a patch of a global layer."""

    place: Place
    head: int
    data: bytes
    query: Tensor
    """(T, N), turned to its position."""
    key: Tensor
    """(T, N), likewise; of a `hebbian` layer with its learned rate."""
    value: Tensor
    """(T, D)."""
    activity: Tensor
    """(T, N), what asks and writes before it is turned; of a `hebbian` layer the query."""

    @property
    def writes(self) -> int:
        """T."""
        return len(self.key)

    @property
    def decay(self) -> float:
        """λ of this head."""
        return self.place.decay[self.head] if self.place.decay else 1.0

    @property
    def size_bytes(self) -> int:
        """Memory that this takes."""
        tensors = {id(one): one for one in (self.query, self.key, self.value, self.activity)}
        return sum(one.nbytes for one in tensors.values()) + len(self.data)

    def heard(self, write: int) -> bytes:
        """The bytes of a write."""
        return self.data[write * self.place.step_bytes : (write + 1) * self.place.step_bytes]

    def begin(self, write: int) -> int:
        """The first write that is still remembered when `write` asks."""
        return write // self.place.span * self.place.span if self.place.span else 0

    def weights(self, count: int) -> tuple[int, Tensor]:
        """What is left of each write after `count` of them: the first that is remembered, and a factor for each.

        A local memory is taken as it is before it begins anew.
        """
        begin = self.begin(count - 1) if count else 0
        ages = torch.arange(count - begin - 1, -1, -1, dtype=torch.float32)
        return begin, self.decay**ages

    def memory(self, count: int) -> Tensor:
        """S after `count` writes, (N, D)."""
        begin, left = self.weights(count)
        return self.key[begin:count].mT @ (left[:, None] * self.value[begin:count])

    def attention(self, write: int) -> Tensor:
        """The weight with which `write` reads the value of each write before it: read = Σ_j weight_j v_j, (write,)."""
        begin = self.begin(write)
        ages = torch.arange(write - begin - 1, -1, -1, dtype=torch.float32)
        weights = torch.zeros(write)
        weights[begin:] = self.decay**ages * (self.key[begin:write] @ self.query[write])
        return weights

    def attention_map(self) -> Tensor:
        """`attention` of all writes, (T, T), 0 on and above the diagonal."""
        steps = torch.arange(self.writes)
        age = steps[:, None] - steps - 1
        seen = age >= 0
        if self.place.span:
            seen &= steps[:, None] // self.place.span == steps // self.place.span
        return (self.query @ self.key.mT) * torch.where(seen, self.decay ** age.clamp(min=0).float(), 0.0)

    def read(self, write: int) -> Tensor:
        """What `write` reads before the layer's norm, (D,)."""
        return self.attention(write) @ self.value[:write]


class Wiring(NamedTuple):
    """The weights of a head by which its memory is read."""

    excites: Tensor | None
    """encoder_v less the mean of each column, which the norm of what is read takes away, (D, N)."""
    increments: Tensor | None
    """Fixed-point turns a position of each pair of neurons, (N / 2,); None where rows are not neurons."""


def listen(
    model: Model[Any],
    data: bytes,
    place: Place,
    head: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """Hear a text from an empty memory, and keep what one head wrote and asked.

    Args:
        progress: as in `probe.record`.

    Raises:
        DataError: the text is too short or too long for it, or its memory overflows.
    """
    least, most = place.step_bytes, most_bytes(place)
    if not least <= len(data) <= most:
        raise DataError(
            f"the text has {len(data):,} bytes; to look into {place.title} of this model give {least:,} to {most:,}"
        )
    if not 0 <= head < place.heads:
        raise DataError(f"the head is {head}; {place.title} has heads 0 to {place.heads - 1}")
    names = [f"{place.name}.{name}" for name in ("key", "value", "x_sparse" if place.excites else "query")]
    found = probe.record(model, data, names, heads=head, progress=progress).values
    key, value, activity = (found[name] for name in names)
    if not place.excites:
        layer: Any = _layer(model, place)
        key = key * layer.attn.eta.detach().float().cpu()
    count = len(data) // place.step_bytes
    key, value, activity = key[:count], value[:count], activity[:count]
    trace = Trace(place, head, data, key if place.excites else activity, key, value, activity)
    if not all(bool(one.isfinite().all()) for one in (key, value, activity, trace.memory(count).norm())):
        raise DataError("the memory of this model is not finite: its weights overflow; check the checkpoint")
    return trace


def most_bytes(place: Place) -> int:
    """Bytes of a text that can be looked into at once."""
    return MOST_TRACE_BYTES // (4 * (2 * place.neurons + place.width)) * place.step_bytes


def wiring(model: Model[Any], place: Place, head: int) -> Wiring:
    """The weights that go with a trace."""
    if not place.excites:
        return Wiring(None, None)
    layer: Any = _layer(model, place)
    columns = layer.encoder_v[head].detach().float().cpu()
    return Wiring(columns - columns.mean(0), layer.attn.increments().cpu())


def _layer(model: Any, place: Place) -> Any:
    """The module that holds a layer's weights."""
    parts = place.name.split(".")
    if parts[0] == "member":
        model, parts = model.members[int(parts[1])], parts[2:]
    scale, index = parts[0], int(parts[1])
    if scale == "layer":
        return model if model.config.kind == "flat" else model.blocks[index]
    return (model.global_model if scale == "global" else model.local_model).layers[index]


def turned(rows: Tensor, wiring: Wiring, position: int) -> Tensor:
    """Rows of a memory (N, D) as neurons find them that fire at a position, so that q · S = x · turned S."""
    if wiring.increments is None:
        return rows
    cos, sin = rope.cos_sin(torch.tensor([position]), 1, wiring.increments)
    return rope.rotate_pairs(rows.mT.contiguous(), cos[0], -sin[0]).mT


def now(trace: Trace, wiring: Wiring, count: int) -> Tensor:
    """The memory after `count` writes, turned to the position at which it is read next, (N, D).

    Row i is what is read if neuron i alone fires, by 1. A local memory is read last at the end of its patch.
    """
    span = trace.place.span
    position = (count - 1) % span + 1 if span and count else count
    return turned(trace.memory(count), wiring, position)


class Growth(NamedTuple):
    """A memory as it fills; an entry for each place that was looked at."""

    heard_bytes: tuple[int, ...]
    norm: tuple[float, ...]
    """Root of the sum of all squares."""
    rank: tuple[float, ...]
    """Effective rank: e to the entropy of the singular values as parts of their sum (Roy and Vetterli 2007)."""
    written: tuple[float, ...]
    """Part of the rows that were ever written."""


def growth(trace: Trace, points: int = _GROWTH_POINTS) -> Growth:
    """How a memory fills; of a local one, which begins anew with each patch, the first bytes."""
    total = trace.writes
    if trace.place.span:
        counts = list(range(1, min(total, points) + 1))
    else:
        counts = sorted({max(1, round(total * part / points)) for part in range(1, points + 1)})
    fires = (trace.key != 0).int().cummax(0).values.float().mean(1)
    memory, before = torch.zeros(trace.place.neurons, trace.place.width), 0
    norms, ranks = [], []
    for count in counts:
        if trace.place.span:
            memory = trace.memory(count)
        else:
            left = trace.decay ** torch.arange(count - before - 1, -1, -1, dtype=torch.float32)
            memory = memory * trace.decay ** (count - before)
            memory = memory + trace.key[before:count].mT @ (left[:, None] * trace.value[before:count])
        before = count
        norms.append(float(memory.norm()))
        ranks.append(effective_rank(memory))
    step = trace.place.step_bytes
    return Growth(
        tuple(count * step for count in counts),
        tuple(norms),
        tuple(ranks),
        tuple(float(fires[count - 1]) for count in counts),
    )


def effective_rank(memory: Tensor) -> float:
    """The exponential of the entropy of singular values as parts of their sum; 0 of a memory of zeros."""
    wide = memory.double()
    gram = wide.mT @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.mT
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    # Below this, roots of an eigenvalue's rounding errors look like directions.
    values = values[values > 1e-7 * values.max()]
    if not len(values):
        return 0.0
    parts = values / values.sum()
    return math.exp(float(-(parts * parts.log()).sum()))


class Synapse(NamedTuple):
    """How strongly one neuron now excites another through the memory."""

    x: int
    y: int
    strength: float
    """σ(i, j) = S_i, turned to the position that reads next, · encoder_v[:, j] less its mean: as `probe.synapses`."""
    writer: int
    """The write that added most to it."""
    share: float
    """Its part of the strength; above 1 where others took away."""


def synapses(trace: Trace, wiring: Wiring, count: int, most: int = 20) -> list[Synapse]:
    """The strongest synapses after `count` writes, the strongest first; none where rows are not neurons.

    Of a `hebbian` layer, which has no neurons behind its memory, entries of the memory itself.
    """
    if not count:
        return []
    rows = now(trace, wiring, count)
    strengths = torch.empty(0)
    indices = torch.empty(0, dtype=torch.int64)
    columns = trace.place.width if wiring.excites is None else wiring.excites.shape[1]
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        block = block if wiring.excites is None else block @ wiring.excites
        best, where = block.flatten().topk(min(most, block.numel()))
        strengths = torch.cat((strengths, best))
        indices = torch.cat((indices, where + start * columns))
    strengths, order = strengths.topk(min(most, len(strengths)))
    x, y = indices[order] // columns, indices[order] % columns
    begin, left = trace.weights(count)
    span = trace.place.span
    position = (count - 1) % span + 1 if span else count
    keys = turned(trace.key[begin:count].mT, wiring, position).mT[:, x]
    values = trace.value[begin:count]
    values = values[:, y] if wiring.excites is None else values @ wiring.excites[:, y]
    parts = left[:, None] * keys * values
    added, writer = parts.max(0)
    return [
        Synapse(int(i), int(j), float(s), begin + int(w), float(a / s))
        for i, j, s, w, a in zip(x, y, strengths, writer, added, strict=True)
        if s > 0
    ]


class Likeness(NamedTuple):
    """How two memories compare, each turned to the position that reads it next."""

    cosine: float
    """1 is the same direction, 0 nothing in common."""
    norms: tuple[float, float]
    difference: float
    """Norm of their difference."""
    both: float
    """Part of the rows that both have written."""
    only: tuple[float, float]
    """Parts of the rows that the first alone, and the second alone, has written."""


def likeness(first: Tensor, second: Tensor) -> Likeness:
    """Compare two memories (N, D)."""
    norms = float(first.norm()), float(second.norm())
    inner = float((first.double() * second.double()).sum())
    one, other = (rows.ne(0).any(1) for rows in (first, second))
    parts = [float(part.float().mean()) for part in (one & other, one & ~other, other & ~one)]
    return Likeness(
        inner / (norms[0] * norms[1]) if all(norms) else 0.0,
        norms,
        float((second - first).norm()),
        parts[0],
        (parts[1], parts[2]),
    )


def save(
    path: Path,
    trace: Trace,
    wiring: Wiring,
    count: int,
    notes: Mapping[str, str] | None = None,
    *,
    grown: Growth | None = None,
    neurons: NDArray[np.int64] | None = None,
) -> None:
    """Write all that is known of a memory after `count` writes as an NPZ file.

    `attention` and `read` are of the last of them, `growth_…` of all that was heard.

    Args:
        notes: kept as texts under their names.
        grown: worked out before; None works it out.
        neurons: those of a picture in its order, kept as `neurons_shown`.
    """
    arrays: dict[str, NDArray[Any]] = {
        "text": np.frombuffer(trace.data, np.uint8),
        "key": trace.key.numpy(),
        "value": trace.value.numpy(),
        "memory": trace.memory(count).numpy(),
        "memory_turned": now(trace, wiring, count).numpy(),
        "attention": trace.attention(count - 1).numpy(),
        "activity": trace.activity.numpy(),
        "read": trace.read(count - 1).numpy(),
        "decay": np.float32(trace.decay),
        "head": np.int64(trace.head),
        "writes": np.int64(count),
        "place": np.str_(trace.place.name),
    }
    arrays |= {f"growth_{name}": np.array(values) for name, values in (grown or growth(trace))._asdict().items()}
    if neurons is not None:
        arrays["neurons_shown"] = neurons
    arrays |= {name: np.str_(note) for name, note in (notes or {}).items()}
    if trace.query is not trace.key:
        arrays["query"] = trace.query.numpy()
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def draw(path: Path, memories: dict[str, Tensor], *, neurons: NDArray[np.int64] | None = None) -> None:
    """Write memories (N, D) as a picture, in one scale.

    Args:
        neurons: the rows that are shown, in this order; None is all.
    """
    chosen = {name: rows if neurons is None else rows[torch.from_numpy(neurons)] for name, rows in memories.items()}
    names = [str(one) for one in neurons] if neurons is not None and len(neurons) <= NAMED_NEURONS else []
    what = "neuron" if neurons is None or names else "neuron, in the order of the page"
    draw_maps(
        {name: Map(rows.mT.numpy(), what, "dimension of what is read", names) for name, rows in chosen.items()},
        path,
        label="strength",
    )
