"""Cutting a model to fewer neurons: by chance, or leaving those that do least on a text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..config import Config, FlatConfig
from ..errors import MergeError
from ..models import Model, skeleton
from ..models.base import CHUNK
from ..models.observe import observing
from .axes import Group, groups, select_pairs

Tensors: TypeAlias = Mapping[str, Tensor]
Kept: TypeAlias = dict[str, Tensor]
"""By the prefix of a group: for each head the pairs that stay, (H, K) int64, in their new order."""

METHODS = ("random", "activity")
CALIBRATION_BYTES = 8192
"""Of the text that activity is measured on; what is longer is not heard."""


def pruned(
    tensors: Tensors,
    config: Config,
    neurons: int | Mapping[str, int] | None = None,
    *,
    fraction: float | None = None,
    by: Literal["random", "activity"] = "random",
    seed: int = 0,
    text: bytes | None = None,
) -> tuple[Config, dict[str, Tensor], Kept]:
    """A model with some of the neurons, in whole pairs, that its heads have.

    `random` keeps the same pairs in all heads. `activity` keeps those whose gated activity
    Σ_t x_sparse · y_sparse, summed over layers and heads, is largest on a text; where several pairs have one
    frequency, as in merged models, each head keeps its own.

    Args:
        neurons: of one head that stay; of a hierarchical model by scale, `{"global": …, "local": …}`, where a scale
            that is left out stays whole.
        fraction: instead of `neurons`, the part that stays; the nearest size there can be is taken.
        seed: of `random`.
        text: of `activity`; its first `CALIBRATION_BYTES` are heard.

    Returns:
        The configuration, the tensors and what was kept of each group.

    Raises:
        MergeError: the kind has no neurons, a size that there cannot be, or no text to measure activity on.
    """
    if by not in METHODS:
        raise MergeError(f"pruning by {by!r:.80} is not known; it can be by {' or '.join(METHODS)}")
    if by == "activity" and not text:
        raise MergeError("pruning by activity needs a text to hear; give one, or prune by random")
    found = groups(config)
    sizes = _sizes(config, neurons, fraction)
    activity = _activity(tensors, config, (text or b"")[:CALIBRATION_BYTES]) if by == "activity" else {}
    generator = torch.Generator().manual_seed(seed)
    result, kept = dict(tensors), {}
    for group in found:
        size = sizes[_scale(group)] // 2
        if size == group.n_neuron // 2:
            pairs = torch.arange(size).repeat(group.n_head, 1)
        elif by == "random":
            chosen = torch.randperm(group.n_neuron // 2, generator=generator)[:size].sort().values
            pairs = chosen.repeat(group.n_head, 1)
        else:
            pairs = _most_active(activity[group.prefix], tensors[group.frequencies].flatten()[::2].cpu(), size)
        kept[group.prefix] = pairs
        result.update(select_pairs(tensors, group, pairs))
    changes: dict[str, Any] = {}
    for group in found:
        changes[_multiplier(group)] = group.n_head * sizes[_scale(group)] // group.n_embd
    return dataclasses.replace(config, **changes), result, kept


def allowed_neurons(group: Group) -> range:
    """How many neurons of one head there can be: all heads together must be a whole multiple of the width."""
    step = 2 * group.n_embd // math.gcd(group.n_embd, 2 * group.n_head)
    return range(step, group.n_neuron + 1, step)


def _sizes(config: Config, neurons: int | Mapping[str, int] | None, fraction: float | None) -> dict[str, int]:
    """Neurons of a head that stay, by scale; the scale of a flat model has no name."""
    scales = {_scale(group): group for group in groups(config)}
    if (neurons is None) == (fraction is None):
        raise MergeError("how much to prune is given as neurons or as fraction, one of the two")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise MergeError(f"fraction is {fraction}; the part of the neurons that stays is above 0 and at most 1")
        return {
            scale: min(allowed_neurons(group), key=lambda size, whole=group.n_neuron: abs(size - fraction * whole))
            for scale, group in scales.items()
        }
    if isinstance(config, FlatConfig):
        if not isinstance(neurons, int):
            raise MergeError("a flat model has neurons of one scale; give their number for one head")
        asked = {"": neurons}
    elif isinstance(neurons, Mapping) and neurons and neurons.keys() <= scales.keys():
        asked = dict(neurons)
    else:
        raise MergeError(f"a {config.kind} model has neurons at the scales {', '.join(scales)}; give a number for each")
    for scale, size in asked.items():
        if size not in (allowed := allowed_neurons(scales[scale])):
            raise MergeError(
                f"{size} neurons a head cannot stay{f' of the {scale} scale' if scale else ''}; with width "
                f"{scales[scale].n_embd} and {scales[scale].n_head} heads there can be multiples of {allowed.step} up "
                f"to {scales[scale].n_neuron}"
            )
    return {scale: asked.get(scale, group.n_neuron) for scale, group in scales.items()}


def _scale(group: Group) -> str:
    return group.prefix.partition("_")[0]


def _multiplier(group: Group) -> str:
    return f"{scale}_mlp_mult" if (scale := _scale(group)) else "mlp_internal_dim_multiplier"


@torch.no_grad()
def _activity(tensors: Tensors, config: Config, text: bytes) -> dict[str, Tensor]:
    """Gated activity of the pairs of each group, (H, N / 2) float64, summed over a text that one stream hears."""
    model: Model[Any] = skeleton(config)
    model.load_state_dict(tensors, assign=True)
    model.eval()
    found = groups(config)
    totals = {group.prefix: torch.zeros(group.n_head, group.n_neuron, dtype=torch.float64) for group in found}
    speaking = found[0]
    x_sparse = torch.empty(0)

    def name_group(group: Group) -> None:
        nonlocal speaking
        speaking = group

    def look(name: str, activation: Tensor) -> None:
        nonlocal x_sparse
        if name == "x_sparse":
            x_sparse = activation
        elif name == "y_sparse":
            totals[speaking.prefix] += (x_sparse * activation).flatten(1, 2).double().sum(1).cpu()

    for group in found:
        if group.prefix:
            block = model.get_submodule(group.prefix.rstrip("."))
            block.register_forward_pre_hook(lambda *_, group=group: name_group(group))
    state = model.empty_state(1)
    ids = torch.tensor(list(text), dtype=torch.uint8)[None]
    with observing(look):
        for piece in ids.split(CHUNK, dim=1):
            state = model.step_(piece, state).state
    return {prefix: total.unflatten(1, (-1, 2)).sum(2) for prefix, total in totals.items()}


def _most_active(activity: Tensor, frequencies: Tensor, size: int) -> Tensor:
    """The pairs of each head, (H, size), that together are most active while all heads keep the same frequencies.

    Among pairs of one frequency a head's most active takes the first place, its next the second: what is chosen are
    places, by the activity of all heads there.
    """
    places, worth = [], []
    for one in frequencies.unique():
        alike = (frequencies == one).nonzero()[:, 0]
        ranked = activity[:, alike].sort(dim=1, descending=True, stable=True)
        places.append(alike[ranked.indices])
        worth.append(ranked.values.sum(0))
    best = torch.cat(worth).argsort(descending=True, stable=True)[:size]
    chosen = torch.cat(places, dim=1)[:, best]
    return chosen[:, chosen[0].argsort()]
