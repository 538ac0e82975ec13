"""Configurations by name, from 1 M to 100 M parameters."""

from __future__ import annotations

from typing import NamedTuple

from .config import Config, FlatConfig, HebbianConfig, HierarchicalConfig, TransformerConfig
from .models import skeleton
from .state import state_bytes

PRESETS: dict[str, Config] = {
    "flat-1m": FlatConfig(n_layer=4, n_embd=128, mlp_internal_dim_multiplier=20),
    "flat-3m": FlatConfig(n_layer=5, n_embd=192, mlp_internal_dim_multiplier=26),
    "flat-5m": FlatConfig(n_embd=192, mlp_internal_dim_multiplier=44),
    "flat-10m": FlatConfig(n_embd=256, mlp_internal_dim_multiplier=50),
    # Upstream's default.
    "flat-25m": FlatConfig(n_embd=256, mlp_internal_dim_multiplier=128),
    # The paper's Table 5: the width and the depth stay, the neurons grow.
    "flat-50m": FlatConfig(n_layer=8, n_embd=256, mlp_internal_dim_multiplier=256),
    "flat-100m": FlatConfig(n_layer=8, n_embd=256, mlp_internal_dim_multiplier=512),
    # Upstream's own (newsbubbles/bdh).
    "hierarchical-tiny": HierarchicalConfig(
        patch_size=4,
        global_n_layer=3,
        global_n_embd=128,
        global_n_head=4,
        global_mlp_mult=16,
        local_n_layer=2,
        local_n_embd=64,
        local_n_head=2,
        local_mlp_mult=16,
    ),
    "hierarchical-small": HierarchicalConfig(
        patch_size=8,
        global_n_layer=4,
        global_n_embd=224,
        global_n_head=4,
        global_mlp_mult=40,
        local_n_layer=2,
        local_n_embd=160,
        local_n_head=4,
        local_mlp_mult=40,
    ),
    "hierarchical-base": HierarchicalConfig(
        patch_size=8,
        global_n_layer=6,
        global_n_embd=256,
        global_n_head=8,
        global_mlp_mult=48,
        local_n_layer=3,
        local_n_embd=192,
        local_n_head=4,
        local_mlp_mult=48,
    ),
    "hierarchical-large": HierarchicalConfig(
        patch_size=8,
        global_n_layer=8,
        global_n_embd=384,
        global_n_head=8,
        global_mlp_mult=64,
        local_n_layer=4,
        local_n_embd=256,
        local_n_head=8,
        local_mlp_mult=64,
    ),
    # As many parameters as the flat models of the same name, for comparisons.
    "hebbian-5m": HebbianConfig(n_layer=6, n_head=4, n_embd=256, block_size=512),
    "hebbian-25m": HebbianConfig(n_layer=8, n_head=8, n_embd=512, block_size=512),
    "transformer-5m": TransformerConfig(n_layer=6, n_head=4, n_embd=256),
    "transformer-25m": TransformerConfig(n_layer=8, n_head=8, n_embd=512),
}
"""Every preset by its name, `KIND-SIZE`."""


class Preset(NamedTuple):
    """What a preset costs."""

    name: str
    kind: str
    parameters: int
    """Numbers that training changes."""
    state_bytes: int
    """Memory of one stream, whatever its length."""


def describe() -> tuple[Preset, ...]:
    """Every preset with its size, in order, counted on models without storage."""
    presets = []
    for name, config in PRESETS.items():
        model = skeleton(config)
        presets.append(Preset(name, config.kind, model.parameter_count(), state_bytes(model.empty_state())))
    return tuple(presets)
