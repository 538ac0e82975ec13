"""How many neurons are active, and steering them to be few."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zoo import fresh

from bdh.models.layer import moments
from bdh.models.observe import observing
from train.sparsity import Activity, Steering, hoyer


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_measure_of_k_equal_values_among_n_is_k_of_n(k: int, n: int) -> None:
    x = torch.zeros(3, max(k, n))
    x[:, : min(k, n)] = 0.7
    assert hoyer(moments(x)).item() == pytest.approx(min(k, n) / max(k, n), rel=1e-5)


@given(st.floats(1e-3, 1e3))
def test_the_measure_does_not_notice_scale(scale: float) -> None:
    x = torch.rand(4, 32, generator=torch.Generator().manual_seed(0))
    assert hoyer(moments(scale * x)).item() == pytest.approx(hoyer(moments(x)).item(), rel=1e-4)


def test_silence_counts_as_no_activity_and_has_a_finite_slope() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    hoyer(moments(x)).backward()
    assert hoyer(moments(x)).item() == 0.0
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("kind", "layers"), [("flat", 2), ("hierarchical", 2)])
def test_what_is_active_is_seen_layer_by_layer(kind: str, layers: int) -> None:
    model = fresh(kind)
    ids = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    with observing(lambda name, x: seen.append(x) if name == "x_sparse" else None):
        model(ids)
    activity = Activity(press=True)
    with observing(activity):
        output = model(ids)
    assert set(activity.fractions) == {"x_sparse", "y_sparse"}
    assert len(activity.fractions["x_sparse"]) == len(activity.fractions["y_sparse"]) == len(seen) >= layers
    expected = sum((x > 0).float().mean().item() for x in seen) / len(seen)
    assert activity.mean("x_sparse") == pytest.approx(expected)
    assert activity.penalty().item() == pytest.approx(sum(hoyer(moments(x)).item() for x in seen) / len(seen), rel=1e-5)
    assert torch.equal(output.logits, model(ids).logits)


def test_nothing_is_seen_outside_the_block_nor_in_another_thread() -> None:
    model, ids, names = fresh("flat"), torch.zeros(1, 4, dtype=torch.int64), []
    with observing(lambda name, x: names.append(name)):
        other = threading.Thread(target=lambda: model(ids))
        other.start()
        other.join()
    model(ids)
    assert names == []


def test_pressing_on_a_model_makes_fewer_neurons_active() -> None:
    model = fresh("flat")
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = []
    for _ in range(30):
        activity = Activity(press=True)
        with observing(activity):
            model(ids)
        activity.penalty().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(activity.mean("x_sparse"))
    assert found[-1] < 0.6 * found[0]


def test_the_target_falls_from_what_was_active_and_the_weight_follows_the_miss() -> None:
    steering = Steering(0.1, 100)
    steering.follow(0.4)
    assert steering.aim() == pytest.approx(0.4 * 0.25 ** (1 / 100))
    before = steering.weight
    steering.follow(0.5)
    assert steering.weight > before
    before = steering.weight
    steering.follow(0.01)
    assert steering.weight < before
    steering.taken = 500
    assert steering.aim() == pytest.approx(0.1)
