from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import FLAT, FLAT_DAMPED, HEBBIAN, HIERARCHICAL_DAMPED, TRANSFORMER, ZOO

from bdh.config import (
    CONFIGS,
    ComposedConfig,
    FlatConfig,
    HebbianConfig,
    HierarchicalConfig,
    TransformerConfig,
    config_from_dict,
    config_to_dict,
)
from bdh.errors import ConfigError
from bdh.models import MAX_PARAMETERS, build, parameter_count

BOUNDS: list[tuple[type[Any], str, float, float, dict[str, Any]]] = [
    (FlatConfig, "n_layer", 1, 256, {}),
    (FlatConfig, "n_embd", 2, 16384, {}),
    (FlatConfig, "n_head", 1, 256, {}),
    (FlatConfig, "mlp_internal_dim_multiplier", 1, 65536, {}),
    (FlatConfig, "dropout", 0.0, 0.95, {}),
    (HierarchicalConfig, "patch_size", 1, 256, {}),
    (HierarchicalConfig, "max_seq_len", 1, 2**24, {"patch_size": 1}),
    (HierarchicalConfig, "global_n_layer", 1, 256, {}),
    (HierarchicalConfig, "global_n_embd", 2, 16384, {}),
    (HierarchicalConfig, "global_n_head", 1, 256, {}),
    (HierarchicalConfig, "global_mlp_mult", 1, 65536, {}),
    (HierarchicalConfig, "local_n_layer", 1, 256, {}),
    (HierarchicalConfig, "local_n_embd", 2, 16384, {}),
    (HierarchicalConfig, "local_n_head", 1, 256, {}),
    (HierarchicalConfig, "local_mlp_mult", 1, 65536, {}),
    (HierarchicalConfig, "dropout", 0.0, 0.95, {}),
    (HebbianConfig, "n_layer", 1, 256, {}),
    (HebbianConfig, "n_head", 1, 256, {"n_embd": 512}),
    (HebbianConfig, "n_embd", 2, 16384, {"n_head": 1}),
    (HebbianConfig, "block_size", 1, 2**20, {}),
    (HebbianConfig, "dropout", 0.0, 0.95, {}),
    (TransformerConfig, "n_layer", 1, 256, {}),
    (TransformerConfig, "n_head", 1, 256, {"n_embd": 512}),
    (TransformerConfig, "n_embd", 2, 16384, {"n_head": 1}),
    (TransformerConfig, "block_size", 1, 2**20, {}),
    (TransformerConfig, "dropout", 0.0, 0.95, {}),
    (ComposedConfig, "share_rate", 0.0, 0.5, {"members": (FLAT, FLAT)}),
    (ComposedConfig, "n_embd", 2, 16384, {"members": (FLAT, FLAT)}),
]

HUGE = 10**5000
"""Too long for Python to print."""


@pytest.mark.parametrize(("cls", "field", "low", "high", "others"), BOUNDS, ids=lambda v: getattr(v, "kind", str(v)))
def test_a_field_is_allowed_up_to_its_bounds_and_refused_beyond(
    cls: type[Any], field: str, low: float, high: float, others: dict[str, Any]
) -> None:
    assert getattr(cls(**others, **{field: low}), field) == low
    assert getattr(cls(**others, **{field: high}), field) == high
    step = 1 if isinstance(low, int) else 1e-6
    for value in (low - step, high + step, HUGE, -HUGE):
        with pytest.raises(ConfigError, match=rf"{field} is .*must be from {low} to {high}"):
            cls(**others, **{field: value})


@pytest.mark.parametrize(("cls", "field", "low", "high", "others"), BOUNDS, ids=lambda v: getattr(v, "kind", str(v)))
@pytest.mark.parametrize("value", [True, "6", None, [6], {}, math.nan, math.inf, 6.0, "x" * 100_000, [HUGE]], ids=type)
def test_a_value_of_the_wrong_type_is_refused_by_name_in_a_short_message(
    cls: type[Any], field: str, low: float, high: float, others: dict[str, Any], value: object
) -> None:
    if isinstance(low, float) and value == 6.0:
        value = 1
    fields = {**config_to_dict(cls(**others)), field: value}
    with pytest.raises(ConfigError, match=field) as caught:
        config_from_dict(fields)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("cls", [FlatConfig, HierarchicalConfig, HebbianConfig, TransformerConfig])
@pytest.mark.parametrize("value", [255, 0, True, 256.0, "256", None, HUGE], ids=lambda v: type(v).__name__)
def test_models_speak_256_byte_values_and_nothing_else(cls: type[Any], value: object) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        cls(vocab_size=value)


@pytest.mark.parametrize(
    "decay", [(0.5,), (0.5, 0.5, 0.5), (0.0, 1.0), (1.1, 1.0), (-1, 1), (True, 1), ("1", 1), (math.nan, 1), 0.9, "ab"]
)
def test_a_decay_is_one_number_a_head_above_0_and_at_most_1(decay: Any) -> None:
    with pytest.raises(ConfigError, match="decay"):
        FlatConfig(n_head=2, decay=decay)
    with pytest.raises(ConfigError, match="decay"):
        HebbianConfig(n_head=2, decay=decay)
    with pytest.raises(ConfigError, match="global_decay"):
        HierarchicalConfig(global_n_head=2, global_decay=decay)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "flat", "n_embd": 10, "n_head": 4, "mlp_internal_dim_multiplier": 2}, "divisible by 8"),
        ({"kind": "flat", "n_embd": 3, "n_head": 1, "mlp_internal_dim_multiplier": 1}, "divisible by 2"),
        ({"kind": "hebbian", "n_embd": 20, "n_head": 4}, "multiple of 8"),
        ({"kind": "transformer", "n_embd": 20, "n_head": 4}, "multiple of 8"),
        ({"kind": "hierarchical", "patch_size": 5}, "multiple of patch_size 5"),
        ({"kind": "hierarchical", "local_n_embd": 9, "local_mlp_mult": 1}, "local_mlp_mult"),
        ({"kind": "hierarchical", "use_bdh_attention": False, "global_n_embd": 12}, "multiple of 8 heads"),
        ({"kind": "hierarchical", "use_bdh_attention": False, "global_decay": [0.5] * 8}, "leave it empty"),
        ({"kind": "hierarchical", "use_bdh_attention": 1}, "true or false"),
        ({"kind": "hierarchical", "use_bdh_attention": "no"}, "true or false"),
        ({"kind": "composed", "method": "vote", "members": [{"kind": "flat"}] * 2}, "average, mixture, deep"),
        ({"kind": "composed", "method": [], "members": [{"kind": "flat"}] * 2}, "average, mixture, deep"),
        ({"kind": "composed", "members": [{"kind": "flat"}]}, "2 to 16"),
        ({"kind": "composed", "members": [{"kind": "flat"}] * 17}, "2 to 16"),
        ({"kind": "composed", "members": [{"kind": "flat"}] * 257}, "at most 256"),
        ({"kind": "composed", "members": {"kind": "flat"}}, "2 to 16"),
        ({"kind": "composed", "members": "ab"}, "2 to 16"),
        ({"kind": "composed", "members": [{"kind": "flat"}, 7]}, "JSON object"),
        ({"kind": "composed", "members": [{"kind": "flat"}, {"kind": "composed"}]}, "must be one of flat"),
        ({"kind": "composed", "members": [{"kind": "flat"}, {"kind": "flat", "n_layer": 0}]}, "n_layer"),
        ({"kind": "flat", "n_layers": 6}, "does not know 'n_layers'; it knows n_layer"),
        ({"kind": "flat", "x" * 100_000: 6}, "does not know"),
        ({"kind": "hebbian", "mlp_mult": 6}, "does not know"),
        ({"kind": "FLAT"}, "must be one of flat"),
        ({"kind": ["flat"]}, "must be one of flat"),
        ({"kind": "x" * 100_000}, "must be one of flat"),
        ({}, "kind is None"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_what_does_not_fit_together_is_refused_with_what_would(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_dict(fields)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("fields", [None, [], "flat", 3, [("kind", "flat")]])
def test_a_configuration_that_is_no_object_is_refused(fields: Any) -> None:
    with pytest.raises(ConfigError, match="must be a JSON object"):
        config_from_dict(fields)


@pytest.mark.parametrize("name", ZOO)
def test_a_configuration_survives_its_json_text(name: str) -> None:
    fields = config_to_dict(ZOO[name])
    assert next(iter(fields)) == "kind"
    assert config_from_dict(json.loads(json.dumps(fields, allow_nan=False))) == ZOO[name]


def test_reading_a_configuration_leaves_what_was_read_alone() -> None:
    fields = {"kind": "composed", "members": [config_to_dict(FLAT_DAMPED), config_to_dict(TRANSFORMER)]}
    before = json.dumps(fields)
    config_from_dict(fields)
    assert json.dumps(fields) == before


def test_a_model_of_a_million_million_neurons_is_refused_before_anything_is_allocated() -> None:
    config = FlatConfig(n_embd=16384, mlp_internal_dim_multiplier=65536, n_layer=256)
    assert parameter_count(config) == 2 * 256 * 16384 + 3 * 65536 * 16384**2 > MAX_PARAMETERS
    with pytest.raises(ConfigError, match=r"would have 52,776,566,521,856 parameters; at most 4,000,000,000"):
        build(config)
    with pytest.raises(ConfigError, match=r"at most 1,000 are allowed"):
        build(FLAT, max_parameters=1000)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.sampled_from([2**31, 2**63, -(2**63), 10**400, 256, 4, 8])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*CONFIGS, *ComposedConfig.METHODS])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_NAMES = sorted({name for config in ZOO.values() for name in config_to_dict(config)})
_CONFIGS = st.sampled_from([config_to_dict(c) for c in (FLAT_DAMPED, HIERARCHICAL_DAMPED, HEBBIAN, *ZOO.values())])


@settings(max_examples=300)
@given(_CONFIGS, st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=5), _VALUES, max_size=3), st.booleans())
def test_any_json_is_either_a_configuration_that_round_trips_or_a_config_error(
    base: dict[str, Any], changes: dict[str, Any], within: bool
) -> None:
    fields = {"kind": "composed", "members": [{**base, **changes}] * 2} if within else {**base, **changes}
    try:
        config = config_from_dict(fields)
    except ConfigError as error:
        assert 0 < len(str(error)) < 1000
    else:
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config), allow_nan=False))) == config
        assert hash(config) == hash(config_from_dict(fields))
