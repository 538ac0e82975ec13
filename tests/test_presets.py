from __future__ import annotations

import pytest
import torch

from bdh.config import FlatConfig, HierarchicalConfig, config_from_dict, config_to_dict
from bdh.models import build, parameter_count, skeleton
from bdh.presets import PRESETS, Preset, describe

SIZES = {
    "flat-1m": (1_048_576, 5_242_888),
    "flat-3m": (2_973_696, 19_169_288),
    "flat-5m": (4_964_352, 38_928_392),
    "flat-10m": (9_961_472, 78_643_208),
    "flat-25m": (25_296_896, 201_326_600),
    "flat-50m": (50_462_720, 536_870_920),
    "flat-100m": (100_794_368, 1_073_741_832),
    "hierarchical-tiny": (2_827_200, 3_670_312),
    "hierarchical-small": (30_635_616, 40_305_352),
    "hierarchical-base": (73_092_160, 96_731_976),
    "hierarchical-large": (277_844_224, 369_099_848),
    "hebbian-5m": (4_784_134, 393_224),
    "hebbian-25m": (25_296_904, 1_048_584),
    "transformer-5m": (4_790_784, 6_291_464),
    "transformer-25m": (25_314_304, 16_777_224),
}


def test_every_preset_has_exactly_the_parameters_and_state_bytes_it_is_known_for() -> None:
    assert describe() == tuple(
        Preset(name, name.split("-")[0], parameters, state) for name, (parameters, state) in SIZES.items()
    )


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("flat")])
def test_a_flat_preset_counts_as_its_equation_says(name: str) -> None:
    config = PRESETS[name]
    assert isinstance(config, FlatConfig)
    width, neurons = config.n_embd, config.mlp_internal_dim_multiplier * config.n_embd
    assert parameter_count(config) == 2 * 256 * width + 3 * neurons * width
    millions = int(name.removeprefix("flat-").removesuffix("m"))
    assert abs(parameter_count(config) / 1e6 - millions) < 0.05 * millions


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("hierarchical")])
def test_a_hierarchical_preset_counts_as_its_equation_says(name: str) -> None:
    c = PRESETS[name]
    assert isinstance(c, HierarchicalConfig)
    wide, narrow = c.global_n_embd, c.local_n_embd
    embedder = 256 * narrow + c.patch_size * narrow * wide + 2 * wide
    blocks = 3 * (c.global_n_layer * c.global_mlp_mult * wide**2 + c.local_n_layer * c.local_mlp_mult * narrow**2)
    ends = 2 * wide + 2 * narrow + wide * narrow + narrow + c.patch_size * narrow + 256 * narrow
    assert parameter_count(c) == embedder + blocks + ends


def test_upstreams_default_is_the_flat_preset_of_25_million() -> None:
    assert PRESETS["flat-25m"] == FlatConfig()


def test_upstreams_hierarchical_presets_have_the_sizes_of_its_code() -> None:
    sizes = {}
    for size in ("tiny", "small", "base", "large"):
        c = PRESETS[f"hierarchical-{size}"]
        assert isinstance(c, HierarchicalConfig) and c.use_bdh_attention and not c.global_decay
        sizes[size] = (
            c.patch_size,
            (c.global_n_layer, c.global_n_embd, c.global_n_head, c.global_mlp_mult),
            (c.local_n_layer, c.local_n_embd, c.local_n_head, c.local_mlp_mult),
        )
    assert sizes == {
        "tiny": (4, (3, 128, 4, 16), (2, 64, 2, 16)),
        "small": (8, (4, 224, 4, 40), (2, 160, 4, 40)),
        "base": (8, (6, 256, 8, 48), (3, 192, 4, 48)),
        "large": (8, (8, 384, 8, 64), (4, 256, 8, 64)),
    }


@pytest.mark.parametrize("size", ["5m", "25m"])
def test_presets_of_one_size_are_comparable_across_kinds(size: str) -> None:
    counts = [parameter_count(PRESETS[f"{kind}-{size}"]) for kind in ("flat", "hebbian", "transformer")]
    assert max(counts) < 1.05 * min(counts)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_json_form(name: str) -> None:
    assert config_from_dict(config_to_dict(PRESETS[name])) == PRESETS[name]


def test_counting_allocates_nothing_and_a_built_preset_has_what_was_counted() -> None:
    assert all(p.device.type == "meta" for p in skeleton(PRESETS["hierarchical-large"]).parameters())
    config = PRESETS["flat-1m"]
    model = build(config, seed=0)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config) == model.parameter_count()
    state = model.empty_state(2)
    assert sum(t.nbytes for t in (state.position, *state.memory)) == model.state_bytes(2) == 2 * SIZES["flat-1m"][1]
    assert torch.device("cpu") == model.device
