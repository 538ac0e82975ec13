"""The Hebbian memory as synapses: how strongly each x neuron now excites each y neuron of its head."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import ComposedConfig, FlatConfig, HierarchicalConfig
from ..errors import DataError
from ..models import Model
from ..ops import rope
from .points import is_index

_MOST_SYNAPSES = 1 << 26
"""Given out at once, 256 MB."""
_ROWS = 256
"""x neurons whose synapses are looked through at once."""


class Synapse(NamedTuple):
    """From an x neuron to a y neuron of the same head."""

    x_neuron: int
    y_neuron: int
    strength: float


def synapses(
    model: Model[Any],
    state: Any,
    layer: str | int,
    head: int,
    *,
    x_neurons: Sequence[int] | None = None,
    y_neurons: Sequence[int] | None = None,
    stream: int = 0,
) -> Tensor:
    """σ(i, j) = S_i · (E_j - mean of E_j): how much x neuron i, firing with 1 at the next byte, adds to y neuron j.

    S_i is the memory's row turned to the next byte's position, E_j the column of `encoder_v`, centred because the norm
    of what is read takes its mean away. What y neuron j is excited by is Σ_i x_i σ(i, j), divided by the deviation of
    the whole read.

    Args:
        state: memory of the model that nothing is owed to, such as `Recorded.state` or `Stream.snapshot().state`.
        layer: of BDH, such as `global.1` or `member.0.layer.2`; a number is that layer of a flat model.
        x_neurons, y_neurons: these only; None is all of the head.
        stream: of the batch.

    Returns:
        (x neurons, y neurons) float32 on the CPU.

    Raises:
        DataError: a layer, head or neuron that is not there, or more synapses than are given out at once.
    """
    memory, encoder_v = _of_head(model, state, layer, head, stream)
    rows, columns = _chosen("x", x_neurons, len(memory)), _chosen("y", y_neurons, len(memory))
    if len(rows) * len(columns) > _MOST_SYNAPSES:
        raise DataError(
            f"{len(rows):,} × {len(columns):,} synapses were asked for; at most {_MOST_SYNAPSES:,} are given out at "
            "once. Choose x_neurons and y_neurons"
        )
    return memory[rows] @ encoder_v[:, columns]


def strongest(
    model: Model[Any], state: Any, layer: str | int, head: int, *, count: int = 20, stream: int = 0
) -> list[Synapse]:
    """The synapses that excite most, strongest first; arguments as `synapses`."""
    if not is_index(count, 10_001) or not count:
        raise DataError(f"{count!r:.40} synapses were asked for; from 1 to 10,000 can be")
    memory, encoder_v = _of_head(model, state, layer, head, stream)
    return heapq.nlargest(count, _candidates(memory, encoder_v, count), key=lambda synapse: synapse.strength)


def _candidates(memory: Tensor, encoder_v: Tensor, count: int) -> Iterator[Synapse]:
    """The strongest of each block of x neurons."""
    for start in range(0, len(memory), _ROWS):
        strengths = memory[start : start + _ROWS] @ encoder_v
        values, places = strengths.flatten().topk(min(count, strengths.numel()))
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            yield Synapse(start + place // strengths.shape[1], place % strengths.shape[1], value)


def turned_memory(model: Model[Any], state: Any, layer: str | int, *, stream: int = 0) -> Tensor:
    """What each x neuron of a layer, firing with 1 at the next byte, would read: S turned to its position, (H, N, D).

    Arguments as `synapses`; float32 on the model's device.
    """
    memory, position, freqs, _ = _of_layer(model, state, layer, stream)
    cos, sin = rope.cos_sin(position, 1, rope.increments(freqs))
    return rope.rotate_pairs(memory.mT.contiguous(), cos[0], -sin[0]).mT


def _of_head(model: Model[Any], state: Any, layer: str | int, head: int, stream: int) -> tuple[Tensor, Tensor]:
    """The turned memory (N, D) and the centred encoder (D, N) of a head, on the CPU."""
    with torch.no_grad():
        memory = turned_memory(model, state, layer, stream=stream)
        encoder_v = _of_layer(model, state, layer, stream)[3]
        if not is_index(head, len(memory)):
            raise DataError(f"{layer!r:.60} has no head {head!r:.40}; its heads are 0 to {len(memory) - 1}")
        mine = encoder_v[head].detach().float()
        return memory[head].cpu(), (mine - mine.mean(0)).cpu()


def _of_layer(model: Any, state: Any, layer: str | int, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The memory (H, N, D) of a layer, the position (1,) it is read at, its frequencies and its `encoder_v`."""
    place = f"layer.{layer}" if isinstance(layer, int) else layer
    scale, _, rest = place.partition(".")
    config = model.config
    if isinstance(config, ComposedConfig) and scale == "member":
        number, _, inner = rest.partition(".")
        if number.isdecimal() and int(number) < len(config.members):
            return _of_layer(model.members[int(number)], state.members[int(number)], inner, stream)
    if rest.isdecimal() and not 0 <= stream < len(state.position):
        raise DataError(f"the memory has no stream {stream!r:.40}; it has {len(state.position)}")
    if isinstance(config, FlatConfig) and scale == "layer" and rest.isdecimal() and int(rest) < config.n_layer:
        memory, position = state.memory[int(rest)], state.position[stream : stream + 1]
        return memory[stream], position, model.attn.freqs, model.encoder_v
    if isinstance(config, HierarchicalConfig) and config.use_bdh_attention and scale in ("global", "local"):
        blocks = getattr(model, f"{scale}_model").layers
        if rest.isdecimal() and int(rest) < len(blocks):
            block, size = blocks[int(rest)], config.patch_size
            heard = state.position[stream : stream + 1]
            position = (heard.cpu() // size if scale == "global" else heard.cpu() % size).to(heard.device)
            memory = getattr(state, f"{scale}_layers")[int(rest)]
            return memory[stream], position, block.attn.freqs, block.encoder_v
    raise DataError(
        f"this {config.kind} model has no BDH layer {place!r:.60}; synapses are in layers such as layer.0, global.0 or "
        "local.0 of flat and hierarchical models of BDH blocks, and of such members, as member.0.layer.0"
    )


def _chosen(side: str, neurons: Sequence[int] | None, count: int) -> list[int]:
    if neurons is None:
        return list(range(count))
    for neuron in neurons:
        if not is_index(neuron, count):
            raise DataError(f"there is no {side} neuron {neuron!r:.40}; a head's are 0 to {count - 1}")
    return list(neurons)
