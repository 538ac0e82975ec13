"""Joining models by their neurons or heads: n parents in, one model of the same kind and width out.

Both are what the paper's §7.1 does, on different axes: whatever has neurons is put side by side, whatever has none
is averaged. No weight is scaled: the norms behind the decoder see only the direction of the sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..config import Config, FlatConfig, HierarchicalConfig
from ..errors import MergeError
from .axes import groups, others

Tensors: TypeAlias = Mapping[str, Tensor]
Heritage: TypeAlias = dict[str, list[list[list[int]]]]
"""By the prefix of a group: for each head, in order, [parent, neurons] of the stretches it is made of."""

TRAINING_FIELDS = ("dropout", "max_seq_len")
"""Fields in which parents may differ, for they change nothing of what a model computes: the first one's stay."""


def join_config(configs: Sequence[Config], *, heads: bool) -> Config:
    """The configuration of the joined model.

    Args:
        heads: join heads instead of the neurons of a head.

    Raises:
        MergeError: says in which field parents differ that must not.
    """
    first = configs[0]
    groups(first)
    grown: dict[str, Any] = {}
    free = {*TRAINING_FIELDS}
    for scale in ("",) if isinstance(first, FlatConfig) else ("global_", "local_"):
        multiplier = scale + ("mlp_mult" if scale else "mlp_internal_dim_multiplier")
        free.add(multiplier)
        if heads:
            free |= {f"{scale}n_head", f"{scale}decay"}
    for config in configs[1:]:
        _check_alike(first, config, free)
    for name in free - {*TRAINING_FIELDS}:
        values = [getattr(config, name, ()) for config in configs]
        if name.endswith("decay"):
            if isinstance(first, (FlatConfig, HierarchicalConfig)) and hasattr(first, name) and any(values):
                grown[name] = tuple(rate for config in configs for rate in _decay(config, name))
        else:
            grown[name] = sum(values)
    if heads:
        for parts in zip(*map(groups, configs), strict=True):
            if len({part.n_neuron for part in parts}) > 1:
                sizes = ", ".join(str(part.n_neuron) for part in parts)
                raise MergeError(
                    f"parents have {sizes} neurons a head, and heads of one model are all of one size; join the "
                    "neurons instead (concat)"
                )
    return dataclasses.replace(first, **grown)


def concatenate(parents: Sequence[Tensors], configs: Sequence[Config], weights: Sequence[float]) -> dict[str, Tensor]:
    """The tensors of `join_config(configs, heads=False)`: each head holds the neurons of that head of every parent.

    Frequencies stay with their neurons. Equal parents give the parent's function; the order of parents does not
    matter; a parent whose neurons are all zero adds nothing.

    Args:
        parents: state dicts; as a tensor of the result is made, those of the parents are no longer looked at.
        weights: of each parent in the average of what has no neurons; any positive scale.
    """
    joined = dict(_averaged(parents, configs, weights))
    for parts in zip(*map(groups, configs), strict=True):
        for index in (0, 1):
            name = parts[0].encoders[index]
            joined[name] = torch.cat([parent[name] for parent in parents], dim=2)
        by_head = [part.by_head(parent[part.decoder]) for part, parent in zip(parts, parents, strict=True)]
        joined[parts[0].decoder] = torch.cat(by_head, dim=1).flatten(0, 1)
        joined[parts[0].frequencies] = torch.cat([parent[parts[0].frequencies] for parent in parents], dim=3)
    return joined


def concatenate_heads(
    parents: Sequence[Tensors], configs: Sequence[Config], weights: Sequence[float]
) -> dict[str, Tensor]:
    """The tensors of `join_config(configs, heads=True)`: the heads of all parents; see `concatenate`.

    Raises:
        MergeError: parents have other frequencies; all heads of a model share theirs.
    """
    joined = dict(_averaged(parents, configs, weights))
    for parts in zip(*map(groups, configs), strict=True):
        name = parts[0].frequencies
        if not all(torch.equal(parent[name], parents[0][name]) for parent in parents):
            raise MergeError(f"{name} differs between parents, and all heads of a model share it; join the neurons")
        joined[name] = parents[0][name].clone()
        for name in (*parts[0].encoders, parts[0].decoder):
            joined[name] = torch.cat([parent[name] for parent in parents], dim=0)
    return joined


def heritage(configs: Sequence[Config], *, heads: bool) -> Heritage:
    """Which parent each neuron of a joined model is from."""
    found: Heritage = {}
    for parts in zip(*map(groups, configs), strict=True):
        if heads:
            found[parts[0].prefix] = [
                [[index, part.n_neuron]] for index, part in enumerate(parts) for _ in range(part.n_head)
            ]
        else:
            stretches = [[index, part.n_neuron] for index, part in enumerate(parts)]
            found[parts[0].prefix] = [stretches for _ in range(parts[0].n_head)]
    return found


def _averaged(
    parents: Sequence[Tensors], configs: Sequence[Config], weights: Sequence[float]
) -> Iterator[tuple[str, Tensor]]:
    """What has no neurons, as weighted means in float32."""
    total = sum(weights)
    for name in others(configs[0], parents[0]):
        mean = sum(
            (weight / total) * parent[name].float() for weight, parent in zip(weights, parents, strict=True) if weight
        )
        assert isinstance(mean, Tensor)
        yield name, mean


def _check_alike(first: Config, config: Config, free: set[str]) -> None:
    if config.kind != first.kind:
        raise MergeError(
            f"a {first.kind} and a {config.kind} model have no neurons in common places; mixture takes models of any "
            "kinds"
        )
    for name in (field.name for field in dataclasses.fields(first)):
        one, other = getattr(first, name), getattr(config, name)
        if name not in free and one != other:
            raise MergeError(
                f"parents differ in {name} ({one} and {other}), which joining by neurons or heads does not allow; "
                "mixture takes models of any shapes"
            )


def _decay(config: Config, name: str) -> tuple[float, ...]:
    rates: tuple[float, ...] = getattr(config, name)
    return rates or (1.0,) * getattr(config, name.replace("decay", "n_head"))
