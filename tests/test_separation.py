"""Statistics of which measurement tells two groups apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu

from lab import separation
from lab.separation import benjamini_hochberg, best_by_chance, bonferroni, halves, ranked


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
        expected = mannwhitneyu(one, other, alternative="greater", method="asymptotic")
        assert found.u[column] == expected.statistic
        assert found.p[column] == pytest.approx(expected.pvalue, rel=1e-9)
        assert found.effect[column] == pytest.approx(2 * expected.statistic / (n1 * n2) - 1)


def test_the_paper_s_separation_of_50_against_50_has_its_p() -> None:
    values = np.arange(100.0)[:, None]
    whole = separation.separation(ranked(values.astype(np.float32)), np.arange(100) >= 50)
    assert whole.u[0] == 2500 and whole.effect[0] == 1
    assert whole.p[0] == pytest.approx(mannwhitneyu(values[50:], values[:50], alternative="greater").pvalue[0])
    assert 0 < whole.p[0] < 1e-17


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
