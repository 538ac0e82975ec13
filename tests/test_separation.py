"""Statistics of which measurement tells two groups apart."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu

from lab import separation
from lab.separation import (
    benjamini_hochberg,
    best_by_chance,
    bonferroni,
    chance_of,
    halves,
    ranked,
    smallest_groups,
)


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(3, 12), st.integers(3, 12), st.integers(1, 6))
def test_u_p_and_effect_are_those_of_scipy_with_and_without_ties(seed: int, n1: int, n2: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, levels + 1, (n1 + n2, 7)).astype(np.float32)
    values[:, 0] = generator.normal(size=n1 + n2)
    first = generator.permutation(np.arange(n1 + n2) < n1)
    found = separation.separation(ranked(values), first)
    for column in range(values.shape[1]):
        one, other = (values[group, column].astype(float) for group in (first, ~first))
        if len(np.unique(values[:, column])) == 1:
            assert (found.effect[column], found.p[column]) == (0, 1)
            continue
        shared = np.unique(values[:, column], return_counts=True)[1]
        ties = shared.max() > 1
        expected = mannwhitneyu(one, other, alternative="greater", method="asymptotic" if ties else "exact")
        assert found.u[column] == expected.statistic
        if shared[1:].max() > 1 or not ties:  # what shares the lowest value alone is counted out below
            assert found.p[column] == pytest.approx(max(expected.pvalue, 1 / comb(n1 + n2, n1)), rel=1e-9)
        assert found.effect[column] == pytest.approx(2 * expected.statistic / (n1 * n2) - 1)


def test_the_paper_s_separation_of_50_against_50_has_its_p() -> None:
    values = np.arange(100.0)[:, None]
    whole = separation.separation(ranked(values.astype(np.float32)), np.arange(100) >= 50)
    assert whole.u[0] == 2500 and whole.effect[0] == 1
    assert whole.p[0] == pytest.approx(1 / comb(100, 50)) == separation.least_p(50, 50)
    first = np.concatenate([np.zeros(6, bool), np.ones(3, bool), np.zeros(44, bool), np.ones(47, bool)])
    found = separation.separation(ranked(values.astype(np.float32)), first)
    expected = mannwhitneyu(values[first], values[~first], alternative="greater", method="exact")
    assert found.u[0] == 2368 and found.p[0] == pytest.approx(expected.pvalue[0]) and found.p[0] < 1e-14


def test_beyond_small_groups_the_normal_distribution_stands_in() -> None:
    values = np.arange(120.0)[:, None].astype(np.float32)
    first = np.random.default_rng(0).permutation(120) >= 60
    found = separation.separation(ranked(values), first)
    expected = mannwhitneyu(values[first], values[~first], alternative="greater", method="asymptotic")
    assert found.p[0] == pytest.approx(expected.pvalue[0], rel=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5), st.integers(1, 10))
def test_where_silence_is_the_only_tie_p_is_the_part_of_all_orders(seed: int, n1: int, n2: int, silent: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.maximum(np.arange(n1 + n2) + 1 - silent, 0)).astype(np.float32)[:, None]
    first = np.arange(n1 + n2) < n1
    found = separation.separation(ranked(values), first)
    orders = [np.isin(np.arange(n1 + n2), some) for some in combinations(range(n1 + n2), n1)]
    assert len(orders) == comb(n1 + n2, n1)
    reached = [separation.separation(ranked(values), order).u[0] >= found.u[0] for order in orders]
    assert found.p[0] == pytest.approx(np.mean(reached))


def test_a_neuron_that_is_silent_in_all_others_has_the_smallest_p_of_few_sentences() -> None:
    values = np.concatenate([np.arange(1, 14), np.zeros(13)]).astype(np.float32)[:, None]
    found = separation.separation(ranked(values), np.arange(26) < 13)
    assert found.effect[0] == 1 and found.p[0] == pytest.approx(separation.least_p(13, 13))


def test_ties_never_give_a_p_that_no_order_of_the_sentences_could() -> None:
    values = np.array([[0.0], [0], [0], [1], [1], [1]], np.float32)
    found = separation.separation(ranked(values), np.arange(6) >= 3)
    assert found.effect[0] == 1 and found.p[0] == 1 / comb(6, 3)


def test_corrections_are_those_of_scipy_and_of_arithmetic() -> None:
    p = np.random.default_rng(0).random(50) ** 4
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p))
    assert bonferroni(np.array([0.001, 0.5])) == pytest.approx([0.002, 1.0])


def test_the_best_by_chance_is_that_of_shuffled_labels_and_grows_with_what_is_tried() -> None:
    values = np.random.default_rng(1).normal(size=(20, 5_000)).astype(np.float32)
    first = np.arange(20) < 10
    few, many = (best_by_chance(ranked(values[:, :count]), first, 50, 3) for count in (5, 5_000))
    generator, effects = np.random.default_rng(3), []
    for _ in range(50):
        shuffled = np.zeros(20, bool)
        shuffled[generator.permutation(20)[:10]] = True
        effects.append(separation.separation(ranked(values[:, :5]), shuffled).effect.max())
    assert few == pytest.approx(np.sort(effects))
    assert np.median(many) > np.median(few) + 0.3
    assert list(many) == sorted(many)


@settings(max_examples=15)
@given(st.integers(0, 1_000), st.integers(2, 30), st.integers(2, 30))
def test_half_of_each_group_is_searched_and_a_seed_always_splits_alike(seed: int, n1: int, n2: int) -> None:
    first = np.arange(n1 + n2) < n1
    searched = halves(first, seed)
    assert (searched[first].sum(), searched[~first].sum()) == ((n1 + 1) // 2, (n2 + 1) // 2)
    assert (searched == halves(first, seed)).all()


def test_matched_sentences_are_searched_or_held_out_together() -> None:
    searched = halves(np.arange(60) < 30, 3)
    assert (searched[:30] == searched[30:]).all() and searched.sum() == 30


def test_the_part_of_shuffles_as_good_counts_the_true_groups_too() -> None:
    shuffled = np.linspace(0.1, 0.8, 19)
    assert chance_of(np.array([0.9, 0.8, 0.0]), shuffled).tolist() == [0.05, 0.1, 1]


def test_the_smallest_groups_that_can_be_sure_are_those_of_arithmetic() -> None:
    assert smallest_groups(9, 0.01) == 6 and smallest_groups(10, 0.01) == 7  # 924 ways of choosing 6 of 12
    assert smallest_groups(11_392, 0.01) == 12 and 11_392 / comb(24, 12) < 0.01 < 11_392 / comb(22, 11)


def test_a_group_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 0 and 4 rows"):
        separation.separation(ranked(np.zeros((4, 1), np.float32)), np.zeros(4, bool))
