"""Cutting a model to fewer neurons: by chance, or leaving out those that do least on a text.

Frequencies go first. In a merge of clones the pairs of one frequency are near doubles, and the model suffers far less
from losing one of them than from losing both; so no frequency loses its last pair while another has two.
"""

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
from .recipe import CALIBRATION_BYTES, PRUNED_BY

Tensors: TypeAlias = Mapping[str, Tensor]
Kept: TypeAlias = dict[str, Tensor]
"""By the prefix of a group: for each head the pairs that stay, (H, K) int64, in their new order."""


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

    As many frequencies as there can be keep a pair, then as many as there can be a second one. Which pairs stay is
    left to chance (`random`), or they are those that add most on a text (`activity`):
    Σ_t (x_sparse · y_sparse)² |decoder row|², over layers and both neurons. Among pairs of one frequency, which merged
    models have, each head keeps its own; else all heads keep the same, for they share their frequencies.

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
    if by not in PRUNED_BY:
        raise MergeError(f"pruning by {by!r:.80} is not known; it can be by {' or '.join(PRUNED_BY)}")
    if by == "activity" and not text:
        raise MergeError("pruning by activity needs a text to hear; give one, or prune by random")
    found = groups(config)
    sizes = _sizes(config, neurons, fraction)
    activity = _activity(tensors, config, (text or b"")[:CALIBRATION_BYTES]) if by == "activity" else {}
    generator = torch.Generator().manual_seed(seed)
    result, kept = dict(tensors), {}
    for group in found:
        size = sizes[_scale(group)] // 2
        pairs = torch.arange(group.n_neuron // 2).repeat(group.n_head, 1)
        if size < pairs.shape[1]:
            worth = activity[group.prefix] if by == "activity" else torch.rand(pairs.shape, generator=generator)
            pairs = _chosen(worth, tensors[group.frequencies].flatten()[::2].cpu(), size)
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
        return {scale: _nearest(allowed_neurons(group), fraction * group.n_neuron) for scale, group in scales.items()}
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


def _nearest(sizes: range, wanted: float) -> int:
    return min(sizes, key=lambda size: abs(size - wanted))


def _scale(group: Group) -> str:
    return group.prefix.partition("_")[0]


def _multiplier(group: Group) -> str:
    return f"{scale}_mlp_mult" if (scale := _scale(group)) else "mlp_internal_dim_multiplier"


@torch.no_grad()
def _activity(tensors: Tensors, config: Config, text: bytes) -> dict[str, Tensor]:
    """What the pairs of each group add on a text that one stream hears, (H, N / 2) float64; see `pruned`."""
    model: Model[Any] = skeleton(config)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
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
            totals[speaking.prefix] += (x_sparse * activation).flatten(1, 2).double().square().sum(1).cpu()

    for group in found:
        if group.prefix:
            block = model.get_submodule(group.prefix.rstrip("."))
            block.register_forward_pre_hook(lambda *_, group=group: name_group(group))
    state = model.empty_state(1)
    ids = torch.tensor(list(text), dtype=torch.uint8)[None]
    with observing(look):
        for piece in ids.split(CHUNK, dim=1):
            state = model.step_(piece, state).state
    for group in found:
        totals[group.prefix] *= group.by_head(tensors[group.decoder]).double().square().sum(2).cpu()
    return {prefix: total.unflatten(1, (-1, 2)).sum(2) for prefix, total in totals.items()}


def _chosen(worth: Tensor, frequencies: Tensor, size: int) -> Tensor:
    """The pairs of each head that stay, (H, size), where all heads keep the same frequencies.

    Among pairs of one frequency a head's best takes the first place, its next the second. What is chosen are places:
    first places before second ones, and among these by what the pairs of all heads there are worth.
    """
    pairs, places = [], []
    for one in frequencies.unique():
        alike = (frequencies == one).nonzero()[:, 0]
        ranked = worth[:, alike].sort(dim=1, descending=True, stable=True)
        pairs.append(alike[ranked.indices])
        places += [(place, -value) for place, value in enumerate(ranked.values.sum(0).tolist())]
    best = sorted(range(len(places)), key=places.__getitem__)[:size]
    chosen = torch.cat(pairs, dim=1)[:, best]
    return chosen[:, chosen[0].argsort()]
