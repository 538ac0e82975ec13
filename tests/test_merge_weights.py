"""Merging by mixing weights: its identities, its refusals, and mergekit's results on equal tensors.

`golden/mergekit.safetensors` was made by mergekit's own `merge_tensors` (its version stands in the header) on random
float32 tensors of 5 names: `base.NAME`, `parent.0.NAME` to `parent.2.NAME`. The parents are the base plus noise, but
for `parallel` (the base scaled) and `unrelated` (drawn alone). The header's `cases` lists mergekit's method and
parameters, and the number of weights is that of the parents; `linear` has no base, `slerp` merges the first two
parents. `merged.CASE.NAME` is the result. `kept.CASE.PARENT.NAME` is what `torch.bernoulli` drew within DARE, which
ran with `rescale` off and a `lambda` already divided by the density.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from zoo import fresh

from bdh.checkpoint import is_frequency
from bdh.errors import MergeError
from bdh.merge import weights
from bdh.merge.weights import Tensors, average, dare, slerp, task_arithmetic, ties

CLOSE = {"atol": 1e-6, "rtol": 0.0}
FREQUENCIES = "attn.freqs"

with safe_open(Path(__file__).parent / "golden" / "mergekit.safetensors", "pt") as _file:
    CASES: list[tuple[str, dict[str, Any]]] = json.loads(_file.metadata()["cases"])
    GOLDEN = {key: _file.get_tensor(key) for key in _file.keys()}  # noqa: SIM118


def under(prefix: str) -> dict[str, Tensor]:
    """The golden tensors whose names begin so, without that beginning."""
    return {key.removeprefix(prefix): tensor for key, tensor in GOLDEN.items() if key.startswith(prefix)}


def some(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A model's tensors: weights drawn from the seed, frequencies the same for all."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"encoder": (2, 4, 6), "decoder": (12, 4), "bias": (5,)}
    drawn = {name: (torch.randn(shape, generator=generator) / 5).to(dtype) for name, shape in shapes.items()}
    return {**drawn, FREQUENCIES: torch.arange(1.0, 7.0).view(1, 1, 1, 6) / 7}


BASE, A, B, C = (some(seed) for seed in range(4))


def close(merged: Tensors, expected: Tensors) -> bool:
    torch.testing.assert_close(dict(merged), dict(expected), **CLOSE)
    return True


def same(merged: Tensors, expected: Tensors) -> bool:
    return list(merged) == list(expected) and all(torch.equal(merged[name], expected[name]) for name in expected)


METHODS: dict[str, Callable[[list[Tensors], list[float]], dict[str, Tensor]]] = {
    "average": average,
    "task_arithmetic": lambda parents, w: task_arithmetic(BASE, parents, w, 0.7),
    "ties": lambda parents, w: ties(BASE, parents, w, 0.4),
    "ties, sums": lambda parents, w: ties(BASE, parents, w, 0.4, 0.7, normalize=False),
    "dare": lambda parents, w: dare(BASE, parents, w, 0.4, seed=1),
    "dare, signs": lambda parents, w: dare(BASE, parents, w, 0.4, seed=1, elect_sign=True),
}
"""Every method that takes any number of parents."""
SAME_IN_ANY_ORDER = [name for name in METHODS if not name.startswith("dare")]
all_methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
some_weights = st.floats(0.1, 5.0)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{method} {given}" for method, given in CASES])
def test_equal_tensors_give_what_mergekit_gives(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method, options = CASES[case]
    shares = options.get("weight", [0.5, 0.5])
    base, parents = under("base."), [under(f"parent.{index}.") for index in range(len(shares))]
    density, scale = options.get("density", 1.0), options.get("lambda", 1.0)
    if method == "linear":
        merged = average(parents, shares)
    elif method == "slerp":
        merged = slerp(*parents, options["t"])
    elif method == "task_arithmetic":
        merged = task_arithmetic(base, parents, shares, scale)
    elif method == "ties":
        merged = ties(base, parents, shares, density, scale, options["normalize"])
    else:
        monkeypatch.setattr(
            weights, "kept", lambda _shape, _density, _seed, parent, name: GOLDEN[f"kept.{case}.{parent}.{name}"].bool()
        )
        merged = dare(base, parents, shares, density, scale * density, seed=0, elect_sign=method == "dare_ties")
    assert close(merged, under(f"merged.{case}."))


@given(some_weights, some_weights, some_weights)
def test_the_average_of_a_model_with_itself_is_itself_to_the_last_bit(u: float, v: float, w: float) -> None:
    assert same(average([A, A, A], [u, v, w]), A)


@given(some_weights, some_weights)
def test_the_average_is_the_weighted_mean(u: float, v: float) -> None:
    mean = {name: ((u * A[name].double() + v * B[name].double()) / (u + v)).float() for name in A}
    assert close(average([A, B], [u, v]), mean)


def test_a_parent_with_all_the_weight_is_the_average() -> None:
    assert same(average([A, B, C], [0.0, 3.0, 0.0]), B)


def test_slerp_runs_from_the_first_to_the_second() -> None:
    assert same(slerp(A, B, 0.0), A)
    assert same(slerp(A, B, 1.0), B)


@given(st.floats(0.0, 1.0))
def test_slerp_keeps_to_the_circle(t: float) -> None:
    first, second = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 3.0])}
    angle = torch.tensor(t * torch.pi / 2)
    assert close(slerp(first, second, t), {"w": 3 * torch.stack((angle.cos(), angle.sin()))})


@given(st.floats(0.0, 1.0))
def test_slerp_of_parallel_tensors_is_linear(t: float) -> None:
    for factor in (2.0, 1.0, -1.0, 0.0):
        scaled = {**A, "encoder": factor * A["encoder"]}
        merged = slerp(A, scaled, t)["encoder"]
        if factor:
            torch.testing.assert_close(merged, (1 - t + t * factor) * A["encoder"], **CLOSE)
        assert torch.isfinite(merged).all()


def test_one_parent_of_weight_1_is_the_result() -> None:
    assert close(task_arithmetic(BASE, [A], [1.0], 1.0), A)
    assert close(ties(BASE, [A], [1.0], 1.0), A)
    assert close(ties(BASE, [A], [0.3], 1.0), A)
    assert close(ties(BASE, [A], [1.0], 1.0, normalize=False), A)
    assert close(dare(BASE, [A], [1.0], 1.0, seed=0, elect_sign=True), A)


@given(some_weights, some_weights)
def test_parents_equal_to_the_base_change_nothing(u: float, v: float) -> None:
    for method in METHODS.values():
        assert same(method([BASE, BASE], [u, v]), BASE)


@given(st.permutations(range(3)), st.lists(some_weights, min_size=3, max_size=3))
def test_the_order_of_parents_does_not_matter(order: list[int], shares: list[float]) -> None:
    parents: list[Tensors] = [A, B, C]
    for name in SAME_IN_ANY_ORDER:
        merged = METHODS[name]([parents[index] for index in order], [shares[index] for index in order])
        torch.testing.assert_close(merged, METHODS[name](parents, shares), atol=1e-5, rtol=0.0)


@given(some_weights, some_weights)
def test_dare_that_drops_nothing_is_task_arithmetic(u: float, v: float) -> None:
    assert same(dare(BASE, [A, B], [u, v], 1.0, 0.7, seed=3), task_arithmetic(BASE, [A, B], [u, v], 0.7))


def test_ties_keeps_the_largest_and_averages_those_of_the_elected_sign() -> None:
    base = {"w": torch.zeros(4)}
    first, second = {"w": torch.tensor([4.0, 1.0, -3.0, 2.0])}, {"w": torch.tensor([2.0, 3.0, 4.0, -1.0])}
    # Trimmed: [4, 0, -3, 2] and [2, 3, 4, 0].
    assert ties(base, [first, second], [1.0, 1.0], 0.75)["w"].tolist() == [3.0, 3.0, 4.0, 2.0]
    assert ties(base, [first, second], [1.0, 1.0], 0.75, 0.5, normalize=False)["w"].tolist() == [3.0, 1.5, 2.0, 1.0]
    assert ties(base, [first, second], [2.0, 1.0], 0.75)["w"].tolist() == pytest.approx([10 / 3, 3.0, -3.0, 2.0])


def test_where_the_signs_are_balanced_the_positive_one_is_elected() -> None:
    base, up, down = {"w": torch.zeros(1)}, {"w": torch.tensor([2.0])}, {"w": torch.tensor([-2.0])}
    for parents in ([up, down], [down, up]):
        assert ties(base, parents, [1.0, 1.0], 1.0)["w"].tolist() == [2.0]


def test_ties_keeps_one_at_least_and_all_that_are_as_large_as_the_last_kept() -> None:
    base, parent = {"w": torch.zeros(5)}, {"w": torch.tensor([0.5, -2.0, 1.0, 2.0, 1.0])}
    assert ties(base, [parent], [1.0], 0.01)["w"].tolist() == [0.0, -2.0, 0.0, 2.0, 0.0]


def test_what_dare_drops_is_rescaled_to_the_same_expectation() -> None:
    base, parent = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    merged = dare(base, [parent], [1.0], 0.25, seed=0)["w"]
    assert set(merged.tolist()) == {0.0, 4.0}
    assert merged.mean().item() == pytest.approx(1.0, abs=0.02)  # 3.6 standard deviations of the mean


def test_what_dare_drops_is_drawn_from_the_seed_the_place_and_the_name_alone() -> None:
    def merged(base: Tensors, parents: list[Tensors], seed: int = 5) -> dict[str, Tensor]:
        return dare(base, parents, [1.0] * len(parents), 0.5, seed=seed)

    first = merged(BASE, [A, B])
    torch.manual_seed(99)
    assert same(merged(BASE, [A, B]), first)
    turned = [dict(reversed(tensors.items())) for tensors in (BASE, A, B)]
    assert same(dict(reversed(merged(turned[0], turned[1:]).items())), first)
    assert not same(merged(BASE, [A, B], seed=6), first)
    assert not same(merged(BASE, [B, A]), first)

    def mask(*given: Any) -> Tensor:
        return weights.kept((64,), 0.5, *given)

    assert not torch.equal(mask(5, 0, "encoder"), mask(5, 0, "decoder"))
    assert not torch.equal(mask(5, 0, "encoder"), mask(5, 1, "encoder"))


def test_what_a_seed_drops_stays_what_it_is() -> None:
    drawn = weights.kept((16,), 0.5, 7, 1, "encoder")
    assert "".join("01"[keep] for keep in drawn.tolist()) == "1001010011101011"


@all_methods
@pytest.mark.parametrize("piece", [1, 7])
def test_the_size_of_the_pieces_changes_nothing(
    method: Callable[..., dict[str, Tensor]], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, arc = method([A, B, C], [1.0, 0.5, 0.2]), slerp(A, B, 0.3)
    monkeypatch.setattr(weights, "_PIECE", piece)
    assert same(method([A, B, C], [1.0, 0.5, 0.2]), whole)
    assert close(slerp(A, B, 0.3), arc)


@all_methods
def test_parents_stay_as_they_were_and_share_nothing_with_the_result(method: Callable[..., dict[str, Tensor]]) -> None:
    models = [some(seed) for seed in (1, 2)]
    for merged in (method(models, [1.0, 0.5]), slerp(*models, 0.0), average(models, [1.0, 0.0])):
        for tensor in merged.values():
            tensor.fill_(7.0)
        assert same(models[0], A) and same(models[1], B) and same(BASE, some(0))


@all_methods
def test_short_floats_are_merged_in_float32(method: Callable[..., dict[str, Tensor]]) -> None:
    models = [some(seed, torch.bfloat16) for seed in (1, 2)]
    wide = [{name: tensor.float() for name, tensor in model.items()} for model in models]
    merged = method(models, [1.0, 0.5])
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    assert same(merged, method(wide, [1.0, 0.5]))


@all_methods
def test_a_model_takes_the_weights_that_were_merged(
    method: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh("hierarchical")
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parents = [{n: t if is_frequency(n) else t + torch.randn_like(t) / 50 for n, t in own.items()} for _ in range(3)]
    monkeypatch.setitem(globals(), "BASE", own)
    for merged in (method(parents, [1.0, 0.5, 0.2]), slerp(*parents[:2], 0.5)):
        model.load_state_dict(merged, strict=True)
        assert all(torch.equal(merged[name], own[name]) for name in own if is_frequency(name))
        assert not any(torch.equal(merged[name], own[name]) for name in own if not is_frequency(name))


@all_methods
def test_frequencies_are_copied_and_must_be_equal_to_the_last_bit(method: Callable[..., dict[str, Tensor]]) -> None:
    assert torch.equal(method([A, B], [1.0, 1.0])[FREQUENCIES], A[FREQUENCIES])
    other = {**B, FREQUENCIES: torch.nextafter(B[FREQUENCIES], torch.tensor(9.0))}
    for act in (lambda: method([A, other], [1.0, 1.0]), lambda: slerp(A, other, 0.5)):
        with pytest.raises(MergeError, match=r"frequencies attn\.freqs of .* and parent 2 differ"):
            act()


def test_the_base_must_have_the_parents_frequencies() -> None:
    other = {**BASE, FREQUENCIES: 2 * BASE[FREQUENCIES]}
    with pytest.raises(MergeError, match=r"frequencies attn\.freqs of the base and parent 1 differ"):
        task_arithmetic(other, [A], [1.0])


@all_methods
def test_the_first_tensor_of_another_shape_is_named_with_both_shapes(method: Callable[..., dict[str, Tensor]]) -> None:
    other = {**C, "decoder": torch.zeros(12, 5), "bias": torch.zeros(6)}
    with pytest.raises(MergeError, match=r"decoder is \(12, 4\) in (parent 1|the base) and \(12, 5\) in parent 3"):
        method([A, B, other], [1.0, 1.0, 1.0])


@all_methods
def test_a_tensor_that_some_lack_is_named(method: Callable[..., dict[str, Tensor]]) -> None:
    fewer = {name: tensor for name, tensor in B.items() if name != "bias"}
    with pytest.raises(MergeError, match=r"bias is in (parent 1|the base) and not in parent 2"):
        method([A, fewer], [1.0, 1.0])
    with pytest.raises(MergeError, match=r"more is in parent 2 and not in (parent 1|the base)"):
        method([A, {**B, "more": B["bias"]}], [1.0, 1.0])


@all_methods
def test_weights_that_do_not_fit_are_refused(method: Callable[..., dict[str, Tensor]]) -> None:
    with pytest.raises(MergeError, match="weights: 3 given for 2 parents"):
        method([A, B], [1.0, 1.0, 1.0])
    with pytest.raises(MergeError, match="weight 2 is nan"):
        method([A, B], [1.0, float("nan")])
    with pytest.raises(MergeError, match="parents: 0 given"):
        method([], [])


def test_a_mean_needs_two_parents_and_a_positive_sum() -> None:
    with pytest.raises(MergeError, match="parents: 1 given; at least 2"):
        average([A], [1.0])
    with pytest.raises(MergeError, match="weights sum to 0"):
        average([A, B], [1.0, -1.0])


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_a_density_out_of_bounds_is_refused(density: float) -> None:
    for act in (lambda: ties(BASE, [A], [1.0], density), lambda: dare(BASE, [A], [1.0], density, seed=0)):
        with pytest.raises(MergeError, match=r"density is .*; it must be above 0 and at most 1"):
            act()


def test_a_scale_or_t_out_of_bounds_is_refused() -> None:
    with pytest.raises(MergeError, match="scale is inf"):
        task_arithmetic(BASE, [A], [1.0], float("inf"))
    for t in (-0.1, 1.1, float("nan")):
        with pytest.raises(MergeError, match=r"t is .*; it must be from 0"):
            slerp(A, B, t)
