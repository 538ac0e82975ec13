"""Whose neurons carry what a merged model hears: activity by parent, and how many neurons fire for several texts.

The activity of a neuron is what it sends on, x_sparse · y_sparse. Shares are taken within a layer and then averaged
over layers, because the norm behind each decoder gives all layers the same say, however loud they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdh.config import ComposedConfig, Config, HierarchicalConfig
from bdh.errors import MergeError
from bdh.merge.axes import Group, groups
from bdh.models import Model
from bdh.models.observe import observing
from train.data import Bytes
from train.evaluate.hearing import evaluating, streams_side_by_side

Heritage: TypeAlias = Mapping[str, Sequence[Sequence[Sequence[int]]]]
"""As in `bdh.merge.Merged`: by the prefix of a group, for each head [parent, neurons] of its stretches, in order."""

FIRES = 0.01
"""A neuron fires on a text if it is active in at least this part of its places (bytes or patches, times layers)."""
_MOST_PARENTS = 256


@dataclass(frozen=True)
class OnText:
    """What the neurons of each parent do on one text; a number a parent."""

    shares: tuple[float, ...]
    """Of the activity, mean over the places where any neuron fires; they sum to 1."""
    active: tuple[float, ...]
    """Part of the parent's neurons that is active, mean over places."""
    firing: tuple[int, ...]
    """Neurons that fire on the text."""


@dataclass(frozen=True)
class Overlap:
    """Neurons that fire on two texts; a number a parent."""

    texts: tuple[str, str]
    both: tuple[int, ...]
    either: tuple[int, ...]


@dataclass(frozen=True)
class Inherited:
    """A merged model's neurons by the parent that they are from."""

    parents: tuple[str, ...]
    neurons: tuple[int, ...]
    """Of each parent, in all groups."""
    texts: dict[str, OnText]
    overlaps: tuple[Overlap, ...]
    """Of every two texts."""


def read_heritage(model: Model[Any]) -> tuple[dict[str, list[list[list[int]]]], tuple[str, ...]] | None:
    """The heritage that a checkpoint keeps and the names of its parents; None if it keeps none.

    Raises:
        MergeError: it does not fit the model.
    """
    provenance = model.origin.provenance if model.origin else {}
    heritage, told = provenance.get("heritage"), provenance.get("parents")
    if not heritage:
        return None
    count = max((int(owners.max()) for owners in _owners(model.config, heritage)), default=-1) + 1
    names = [str(one.get("name", "")) for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    return heritage, tuple(
        names[i] if i < len(names) and names[i] else f"parent {i + 1}" for i in range(max(count, len(names)))
    )


def carried(model: Model[Any], heritage: Heritage | None, data: bytes, *, parents: int = 0) -> NDArray[np.float32]:
    """By whom each byte was carried, (T, parents); each row sums to 1.

    A byte at which nothing fires is everyone's alike: the first, of which nothing is recalled. Of a hierarchical model only the local layers count: the global
    ones hear patches, not bytes, and the first byte of every patch is silent. Of a mixture these are its weights after each byte, of an average its fixed weights;
    both need no heritage.

    Args:
        data: heard from an empty memory.
        parents: how many there are, if more than own neurons.

    Raises:
        MergeError: the heritage does not fit the model, or the model has none.
    """
    if isinstance(model.config, ComposedConfig):
        return _trusted(model, data)
    if heritage is None:
        raise MergeError("the model keeps no heritage; join parents by neurons or heads (concat, concat-heads)")
    owners = [_one_hot(each, parents, model) for each in _owners(model.config, heritage)]
    local = [not group.prefix.startswith("global_") for group in groups(model.config)]
    rows = []
    ids = torch.tensor(list(data), dtype=torch.uint8)[None]
    state = model.empty_state(1)
    for piece in _pieces(model, ids):
        seen: list[Tensor] = []

        def take(group: int, gated: Tensor, seen: list[Tensor] = seen) -> None:
            if local[group]:
                seen.append(_by_parent(gated, owners[group]))

        state = _look(model, piece, state, take)
        rows.append(_shares(torch.stack(seen)))
    width = owners[0].shape[-1]
    return np.concatenate([np.zeros((0, width), np.float32), *(row.cpu().numpy() for row in rows)])


def inherited(
    model: Model[Any], heritage: Heritage, parents: Sequence[str], texts: Mapping[str, Bytes], *, streams: int = 8
) -> Inherited:
    """Activity by parent on each text, and the neurons that fire on two of them.

    Args:
        parents: their names, in the order of the merge.
        streams: contiguous pieces of each text, heard side by side.

    Raises:
        MergeError: the heritage does not fit the model.
    """
    owners = [_one_hot(each, len(parents), model) for each in _owners(model.config, heritage)]
    neurons = sum(each.sum((0, 1)) for each in owners)
    assert isinstance(neurons, Tensor)
    found: dict[str, OnText] = {}
    fires: dict[str, list[Tensor]] = {}
    for name, text in texts.items():
        active = [torch.zeros(each.shape[:2], device=model.device) for each in owners]
        places = [0] * len(owners)
        shares = torch.zeros(len(owners), len(parents), device=model.device)

        def take(
            group: int,
            gated: Tensor,
            active: list[Tensor] = active,
            places: list[int] = places,
            shares: Tensor = shares,
        ) -> None:
            active[group] += (gated > 0).sum(1)
            places[group] += gated.shape[1]
            of_parents = _by_parent(gated, owners[group])
            heard = of_parents[of_parents.sum(-1) > 0]
            shares[group] += _shares(heard[None]).sum(0)

        _hear(model, text, streams, take)
        seen = torch.tensor(places, device=model.device).clamp_min(1)
        rates = [each / count for each, count in zip(active, seen, strict=True)]
        fires[name] = [rate >= FIRES for rate in rates]
        found[name] = OnText(
            tuple(_shares(shares[:, None])[0].tolist()),
            tuple((_counted(rates, owners) / neurons.clamp_min(1)).tolist()),
            _whole(_counted(fires[name], owners)),
        )
    overlaps = tuple(
        Overlap(
            pair,
            _whole(_counted([a & b for a, b in zip(*(fires[name] for name in pair), strict=True)], owners)),
            _whole(_counted([a | b for a, b in zip(*(fires[name] for name in pair), strict=True)], owners)),
        )
        for pair in itertools.combinations(texts, 2)
    )
    return Inherited(tuple(parents), _whole(neurons), found, overlaps)


def _owners(config: Config, heritage: Any) -> list[Tensor]:
    """The parent of each neuron, (H, N) int64 for each group."""
    return [
        _owners_of(group, heritage.get(group.prefix) if isinstance(heritage, Mapping) else None)
        for group in groups(config)
    ]


def _owners_of(group: Group, heads: Any) -> Tensor:
    # A checkpoint comes from anywhere: its heritage is looked at before it is believed.
    try:
        stretches = [[(int(parent), int(count)) for parent, count in head] for head in heads]
    except (TypeError, ValueError):
        stretches = []
    fits = len(stretches) == group.n_head and all(
        sum(count for _, count in head) == group.n_neuron
        and all(0 <= parent < _MOST_PARENTS and count >= 0 for parent, count in head)
        for head in stretches
    )
    if not fits:
        raise MergeError(
            f"the heritage of {group.prefix or 'the model'} does not tell whose the {group.n_neuron} neurons of each "
            f"of its {group.n_head} heads are; it is another model's"
        )
    return torch.stack([torch.cat([torch.full((count,), parent) for parent, count in head]) for head in stretches])


def _one_hot(owners: Tensor, parents: int, model: Model[Any]) -> Tensor:
    """(H, N, parents) float32."""
    count = max(parents, int(owners.max()) + 1)
    return torch.nn.functional.one_hot(owners, count).float().to(model.device)


def _pieces(model: Model[Any], ids: Tensor) -> Iterator[Tensor]:
    """Pieces of at most a chunk; of a hierarchical model whole patches, and what is left of the last one apart."""
    size = model.config.patch_size if isinstance(model.config, HierarchicalConfig) else 1
    whole = ids.shape[1] // size * size
    for part in (ids[:, :whole], ids[:, whole:]):
        if part.shape[1]:
            yield from part.split(model.chunk_bytes(inplace=True), dim=1)


def _look(model: Model[Any], piece: Tensor, state: Any, take: Callable[[int, Tensor], None]) -> Any:
    """Hear a piece; `take` gets the group and the gated activity (H, places, N) of each layer. The state after it."""
    order = itertools.cycle([0])
    if isinstance(model.config, HierarchicalConfig):
        scales = [group.prefix.startswith("global_") for group in groups(model.config)]
        patches = piece.shape[1] % model.config.patch_size == 0
        order = itertools.cycle([index for index, is_global in enumerate(scales) if patches or not is_global])
    fired: list[Tensor] = []

    def see(name: str, activation: Tensor) -> None:
        if name == "x_sparse":
            fired[:] = [activation]
        elif name == "y_sparse":
            take(next(order), (fired[0] * activation).float().flatten(1, 2))

    with evaluating(model), observing(see):
        return model.step_(piece, state).state


def _hear(model: Model[Any], text: Bytes, streams: int, take: Callable[[int, Tensor], None]) -> None:
    length = len(text) // streams
    ids = torch.from_numpy(text[: streams * length].astype(np.uint8)).view(streams, length)
    for rows in ids.split(streams_side_by_side(model)):
        state = model.empty_state(len(rows))
        for piece in _pieces(model, rows):
            state = _look(model, piece, state, take)


def _by_parent(gated: Tensor, owners: Tensor) -> Tensor:
    """Activity (H, places, N) summed over the neurons of each parent, (places, parents)."""
    return torch.bmm(gated, owners).sum(0)


def _shares(activity: Tensor) -> Tensor:
    """Activity (layers, places, parents) as parts of 1 in each place, (places, parents); silent layers do not count."""
    total = activity.sum(-1, keepdim=True)
    parts = torch.where(total > 0, activity / total.clamp_min(torch.finfo(total.dtype).tiny), 0)
    layers = (total > 0).sum(0)
    return torch.where(layers > 0, parts.sum(0) / layers.clamp_min(1), 1 / activity.shape[-1])


def _counted(by_neuron: Sequence[Tensor], owners: Sequence[Tensor]) -> Tensor:
    """Values (H, N) of each group summed over the neurons of each parent, (parents,)."""
    return torch.stack(
        [torch.einsum("hn,hnp->p", values.float(), each) for values, each in zip(by_neuron, owners, strict=True)]
    ).sum(0)


def _whole(values: Tensor) -> tuple[int, ...]:
    return tuple(int(value) for value in values.round().tolist())


def _trusted(model: Model[Any], data: bytes) -> NDArray[np.float32]:
    """How much each member of a composed model has to say after each byte, (T, members)."""
    config = model.config
    if config.method == "average":
        learned: Any = model.combine_weight
        weights = torch.softmax(learned.detach().float(), 0).cpu().numpy()
        return np.tile(weights, (len(data), 1))
    if config.method != "mixture":
        raise MergeError(f"a combiner weighs hidden units, not members; of {config.method} models nothing can be told")
    parts: list[Tensor] = []

    def see(name: str, activation: Tensor) -> None:
        if name == "log_weights":
            parts.append(activation[0].mT.exp().cpu())

    if data:
        with evaluating(model), observing(see):
            model.step_(torch.tensor(list(data), dtype=torch.uint8)[None], model.empty_state(1))
    return torch.cat([torch.zeros(0, len(config.members)), *parts]).numpy()
