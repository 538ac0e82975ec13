"""BDH beside the Transformer baseline: zeros, memory against length, attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zoo

from bdh import probe
from bdh.config import FlatConfig, TransformerConfig
from bdh.errors import DataError
from bdh.models import build, parameter_count, state_bytes
from lab import baseline

TEXT = b"a cat, a hat, a cat, a bat."


@pytest.mark.parametrize("name", ["flat", "hierarchical", "hebbian", "transformer", "mixture"])
def test_activity_is_counted_in_pieces_as_it_would_be_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.model(name)
    monkeypatch.setattr(baseline, "_PIECE", 4)
    found = {(one.place, one.kind): one for one in baseline.activity(model, TEXT)}
    points = [point for point in probe.points(model) if point.kind in ("x_sparse", "y_sparse", "gate", "mlp")]
    assert len(found) == len(points)
    for point in points:
        values = probe.record(model, TEXT, point.name).values[point.name]
        one = found[point.place, {"gate": "x · y", "mlp": "MLP"}.get(point.kind, point.kind)]
        assert one.active == pytest.approx(float((values != 0).float().mean()))
        assert one.count == values.numel() // values.shape[-2]
        assert one.small >= 1 - one.active


def test_gelu_leaves_next_to_no_zeros_and_relu_many() -> None:
    assert all(one.active > 0.999 for one in baseline.activity(zoo.model("transformer"), TEXT))
    assert all(0 < one.active < 0.9 for one in baseline.activity(zoo.model("flat"), TEXT))


def test_the_memory_of_bdh_is_constant_and_keys_and_values_fill_a_window() -> None:
    lengths = [7, 14, 27]
    flat = baseline.held(zoo.model("flat"), TEXT, lengths)
    assert {one.allocated for one in flat} == {zoo.model("flat").state_bytes()}
    assert all(0 < one.filled <= one.allocated for one in flat)
    window = baseline.held(zoo.model("transformer"), TEXT, lengths)
    a_byte = baseline.kept_a_byte(zoo.TRANSFORMER)
    assert [one.filled for one in window] == [a_byte * min(length, 20) for length in lengths]
    even = baseline.even_bytes(zoo.FLAT, zoo.TRANSFORMER)
    assert (even - 1) * a_byte < state_bytes(zoo.FLAT) <= even * a_byte


def test_a_transformer_of_equal_size_is_found_for_every_size() -> None:
    for config in (FlatConfig(n_layer=4, n_embd=128, mlp_internal_dim_multiplier=32), FlatConfig()):
        equal = baseline.equal_transformer(config)
        assert parameter_count(equal) == pytest.approx(parameter_count(config), rel=0.05)
    with pytest.raises(DataError, match="transformer model was given"):
        baseline.equal_transformer(TransformerConfig())


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("heads", [1, 4])
def test_no_width_comes_nearer_to_a_size_than_the_one_that_is_fitted(layers: int, heads: int) -> None:
    sizes = {
        width: parameter_count(TransformerConfig(n_layer=layers, n_head=heads, n_embd=width))
        for width in range(2 * heads, 257, 2 * heads)
    }
    for wanted in (1_000, 9_000, 30_000, 121_440, 400_000):
        found = baseline.transformer_of(wanted, layers, heads, 512)
        assert found.n_embd == min(sizes, key=lambda width: abs(sizes[width] - wanted))


def test_a_softmax_map_gives_what_the_transformer_attends_to() -> None:
    model, text = zoo.model("transformer"), TEXT  # longer than its window of 20
    reading = baseline.softmax_reading(model, text, 1, 1)
    names = ["layer.1.value", "layer.1.attention"]
    found = probe.record(model, text, names, heads=1).values
    zoo.assert_close(torch.from_numpy(reading.shares) @ found[names[0]], found[names[1]])
    np.testing.assert_allclose(reading.shares.sum(1), 1, rtol=1e-5)


def test_a_hebbian_map_is_in_proportion_to_what_is_read() -> None:
    model = zoo.model("flat-damped")
    reading = baseline.hebbian_reading(model, TEXT, "layer.1", 2)
    found = probe.record(model, TEXT, ["layer.1.value", "layer.1.attention"], heads=2).values
    said = torch.from_numpy(reading.shares) @ found["layer.1.value"]
    cosine = torch.cosine_similarity(said, found["layer.1.attention"])[1:]
    zoo.assert_close(cosine, torch.ones_like(cosine))
    np.testing.assert_allclose(np.abs(reading.shares).sum(1)[1:], 1, rtol=1e-5)
    assert not reading.shares[0].any()


def test_reach_and_spread_are_those_of_a_map_known_by_hand() -> None:
    shares = np.zeros((4, 4), np.float32)
    shares[1, 0] = 1.0
    shares[3, [0, 2]] = 0.5, -0.5
    reading = baseline.Reading("by hand", shares, own=False)
    assert reading.reach == pytest.approx((1 + 2) / 2) and reading.spread == pytest.approx((1 + 2) / 2)


def test_the_bits_of_a_text_are_those_of_the_models_predictions() -> None:
    model = build(zoo.FLAT, seed=0)
    with torch.no_grad():
        model.lm_head.zero_()
    assert baseline.text_bits(model, TEXT) == pytest.approx(8)


def test_what_cannot_be_compared_is_told_in_words() -> None:
    with pytest.raises(DataError, match=r"no layer 'layer\.9'"):
        baseline.hebbian_reading(zoo.model("flat"), TEXT, "layer.9", 0)
    with pytest.raises(DataError, match="this is a flat model"):
        baseline.softmax_reading(zoo.model("flat"), TEXT, 0, 0)
    with pytest.raises(DataError, match="layers 0 to 1"):
        baseline.softmax_reading(zoo.model("transformer"), TEXT, 2, 0)
    with pytest.raises(DataError, match="flat model; what is kept"):
        baseline.kept_a_byte(zoo.FLAT)


def test_maps_are_drawn(tmp_path: Path) -> None:
    one = baseline.softmax_reading(zoo.model("transformer"), TEXT, 0, 0)
    baseline.draw(tmp_path / "maps.png", {"Transformer": one})
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
