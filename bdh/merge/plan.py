"""What a merge will make, known before any weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import hub
from ..checkpoint import is_frequency
from ..config import ComposedConfig, Config, FlatConfig, HierarchicalConfig
from ..errors import MergeError
from ..models import MAX_PARAMETERS
from ..models.base import expected_shapes
from .axes import groups, others
from .join import TRAINING_FIELDS, join_config
from .parents import Parent, look, renamed
from .prune import allowed_neurons
from .recipe import METHODS, Recipe

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """A recipe with its parents looked at and found to fit."""

    recipe: Recipe
    parents: tuple[Parent, ...]
    base: Parent | None
    config: Config
    """Of the result."""
    dtype: torch.dtype
    """Of the stored weights."""

    def parameter_count(self) -> int:
        """Numbers in the result's weights."""
        return _count(self.config)

    def size_bytes(self) -> int:
        """What the result takes in memory and on disk, whole."""
        return self.parameter_count() * self.dtype.itemsize

    def peak_bytes(self) -> int:
        """Memory that merging takes at its peak, estimated."""
        read = sum(parent.size_bytes() for parent in (*self.parents, *((self.base,) if self.base else ())))
        made = self.size_bytes()
        peaks = [read + made, 2 * made]  # what is written is copied once
        if self.recipe.neurons:
            whole = result_config(dataclasses.replace(self.recipe, neurons=0), [one.config for one in self.parents])
            uncut = 4 * _count(whole)
            peaks.append(read + uncut)
            peaks.append(2 * uncut + made if self.recipe.by == "activity" else uncut + made)
        if self.recipe.align:  # two models in float32, and each of them turned, and its neurons as directions
            peaks.append(read + 2 * 3 * 4 * max(parent.parameter_count() for parent in self.parents))
        return max(peaks)

    def averaged(self) -> tuple[str, ...]:
        """Names of tensors in which parents are averaged rather than kept."""
        method = METHODS[self.recipe.method]
        if method.composed or len(self.parents) == 1:
            return ()
        names = [name for name in self.parents[0].shapes if not is_frequency(name)]
        return tuple(sorted(names if method.same_size else others(self.parents[0].config, names)))

    def lines(self) -> list[str]:
        """The plan in words."""
        recipe = self.recipe
        told = [f"{recipe.method}: {METHODS[recipe.method].summary}"]
        weights = recipe.weight_list()
        for parent, weight in zip(self.parents, weights, strict=True):
            weighed = f", weight {weight:g}" if recipe.uses("weights") else ""
            told.append(f"  {parent.name}: {summary(parent.config)}, {parent.parameter_count():,} parameters{weighed}")
        if self.base:
            told.append(f"  base {self.base.name}: {summary(self.base.config)}")
        if recipe.align:
            told.append(f"  each is first brought onto {self.parents[0].name}'s space")
        if recipe.neurons:
            told.append(f"  cut to {recipe.neurons} neurons a head, chosen by {recipe.by}")
        if names := self.averaged():
            told.append(f"  averaged: {', '.join(names) if len(names) <= 8 else f'{len(names)} tensors'}")
        elif METHODS[recipe.method].composed:
            told.append("  nothing is averaged: the parents stay as they are")
        size = f"{self.size_bytes() / 1e6:,.1f} MB as {str(self.dtype).removeprefix('torch.')}"
        if recipe.by_reference:
            size = "stored by reference"
        told.append(f"result: {summary(self.config)}, {self.parameter_count():,} parameters, {size}")
        told.append(f"memory while merging: about {self.peak_bytes() / 1e6:,.0f} MB")
        return told

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "recipe": self.recipe.told(),
            "parents": [
                {"name": one.name, "source": one.source, "parameters": one.parameter_count()} for one in self.parents
            ],
            "kind": self.config.kind,
            "parameters": self.parameter_count(),
            "averaged": list(self.averaged()),
            "size_bytes": self.size_bytes(),
            "peak_bytes": self.peak_bytes(),
        }


def make_plan(
    recipe: Recipe,
    *,
    token: hub.Token = None,
    offline: bool | None = None,
    progress: hub.Progress | None = None,
    resolve: Callable[[str], str] = str,
    max_parameters: int = MAX_PARAMETERS,
) -> Plan:
    """Look at the parents and decide what comes of them.

    Args:
        token, offline, progress: as in `hub.fetch`, for parents on the Hub.
        resolve: from a source in the recipe to what `bdh.load` takes.
        max_parameters: of the result and of each parent.

    Raises:
        CheckpointError: a parent cannot be read.
        MergeError: parents do not fit the method; says what differs and which method takes them.
    """
    sources = [*recipe.parents, *([recipe.base] if recipe.base else [])]
    seen = [
        look(resolve(one), token=token, offline=offline, progress=progress, max_parameters=max_parameters)
        for one in sources
    ]
    base = seen.pop() if recipe.base else None
    parents = renamed(seen)
    config = result_config(recipe, [parent.config for parent in parents], base.config if base else None)
    for parent in parents if recipe.by_reference else ():
        if parent.place is None or parent.foreign is not None:
            why = "not on the Hub" if parent.place is None else "no checkpoint of this project's format"
            raise MergeError(f"{parent.name} is {why}, so the result cannot refer to it; store it whole")
    types = [parent.dtype for parent in (*parents, *((base,) if base else ()))]
    widest = torch.float32 if torch.float32 in types else torch.bfloat16
    expected_shapes(config, max_parameters)
    return Plan(recipe, tuple(parents), base, config, _DTYPES.get(recipe.dtype, widest))


def result_config(recipe: Recipe, configs: Sequence[Config], base: Config | None = None) -> Config:
    """The configuration that a recipe makes of parents of these configurations.

    Raises:
        MergeError: they do not fit the method.
    """
    method = METHODS[recipe.method]
    if recipe.align and not isinstance(configs[0], FlatConfig):
        raise MergeError(f"alignment is for flat models; the parents are {configs[0].kind}: merge them as they are")
    if method.composed:
        return _composed(recipe, configs)
    if recipe.method in ("concat", "concat-heads"):
        joined = join_config(configs, heads=recipe.method == "concat-heads")
        return _cut(joined, recipe.neurons) if recipe.neurons else joined
    for config in (*configs[1:], *((base,) if base else ())):
        _check_same_shape(configs[0], config)
    return configs[0]


def summary(config: Config) -> str:
    """A model's shape in a few words."""
    if isinstance(config, ComposedConfig):
        return f"{config.method} of {len(config.members)} members"
    if isinstance(config, FlatConfig):
        shape = f"{config.n_layer} layers, width {config.n_embd}, {config.n_head} heads of {config.n_neuron} neurons"
        return f"flat, {shape}"
    if isinstance(config, HierarchicalConfig):
        neurons = "/".join(str(size) for size in dict.fromkeys(g.n_neuron for g in groups(config)))
        return f"hierarchical, patches of {config.patch_size}, {neurons} neurons a head"
    return f"{config.kind}, {config.n_layer} layers, width {config.n_embd}"


def _count(config: Config) -> int:
    shapes = expected_shapes(config)
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if not is_frequency(name))


def _composed(recipe: Recipe, configs: Sequence[Config]) -> ComposedConfig:
    members: list[Any] = list(configs)
    for config in configs:
        if isinstance(config, ComposedConfig):
            raise MergeError("a composed model cannot be a member of another; merge its members instead")
    method = "average" if recipe.method == "average-logits" else recipe.method
    rate = recipe.share_rate if method == "mixture" else 0.0
    return ComposedConfig(method=method, members=tuple(members), share_rate=rate, n_embd=recipe.width)


def _cut(config: Config, neurons: int) -> Config:
    """The configuration with so many neurons a head."""
    if not isinstance(config, FlatConfig):
        raise MergeError(f"neurons cuts flat models; the parents are {config.kind}: leave it out")
    allowed = allowed_neurons(groups(config)[0])
    if neurons not in allowed:
        raise MergeError(
            f"neurons is {neurons}; of these parents' {config.n_neuron} a head it can be a multiple of {allowed.step} "
            "up to that"
        )
    return dataclasses.replace(config, mlp_internal_dim_multiplier=config.n_head * neurons // config.n_embd)


def _check_same_shape(first: Config, other: Config) -> None:
    if first.kind != other.kind:
        raise MergeError(
            f"a {first.kind} and a {other.kind} model cannot be averaged weight by weight; mixture takes models of any "
            "kinds"
        )
    for name in (field.name for field in dataclasses.fields(first)):
        one, another = getattr(first, name), getattr(other, name)
        if name not in TRAINING_FIELDS and one != another:
            fits = "concat joins models that differ in neurons, " if "mlp" in name else ""
            raise MergeError(
                f"parents differ in {name} ({one} and {another}), and weights are averaged place by place; {fits}"
                "mixture takes models of any shapes"
            )
