"""The graph of a model's weights: its edges, fits and communities, on graphs of which these are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import exp, lerchphi
from scipy.optimize import minimize_scalar
from scipy.special import zeta

from bdh.config import FlatConfig
from bdh.errors import ConfigError, DataError
from bdh.models import build
from lab import network
from lab.__main__ import main
from lab.network import (
    Fit,
    Graph,
    Measured,
    Network,
    communities,
    fit_power_law,
    graph,
    places,
    randomised,
    surroundings,
)
from lab.network_experiment import tables_of
from ui.inspect.network import Asked, Mapper
from ui.limits import Limits
from ui.registry import Registry

CONFIG = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8)


def test_edges_are_the_strongest_weights_from_decoder_to_encoder() -> None:
    model = zoo.model("flat")
    found = graph(model, places(model.config)["head 1"], mean_degree=3)
    decoder = model.get_parameter("decoder").detach().view(2, 32, 16)[1]
    encoder = model.get_parameter("encoder").detach()[1]
    weights = (decoder - decoder.mean(-1, keepdim=True)) @ encoder
    weights.fill_diagonal_(-1)
    kept = {(int(i), int(j)) for i, j in (weights >= weights.flatten().sort().values[-96]).nonzero()}
    assert {*zip(found.source.tolist(), found.target.tolist(), strict=True)} == kept
    assert len(kept) == 96 == found.out_degree.sum() == found.in_degree.sum()
    both = graph(model, places(model.config)["all heads"], mean_degree=3)
    assert both.count == both.of == 64


def test_what_a_neuron_adds_to_another_s_drive_is_its_weight() -> None:
    model = build(CONFIG, seed=0)
    found = graph(model, places(CONFIG)["head 0"], mean_degree=2)
    said = model.get_parameter("decoder").detach()[int(found.source[0])]
    drive = (said - said.mean()) @ model.get_parameter("encoder").detach()[0]
    assert float(drive[int(found.target[0])]) == pytest.approx(float(found.weight[0]), rel=1e-4)


def test_blocks_with_weights_of_their_own_lead_from_layer_to_layer() -> None:
    model = zoo.model("hierarchical")
    known = places(model.config)
    assert list(known)[:3] == [f"global layer 0 to 1, {which}" for which in ("head 0", "head 1", "all heads")]
    found = graph(model, known["local layer 0 to 1, head 0"], mean_degree=2)
    side = len(found.neurons)
    assert found.count == 2 * side and found.source.max() < side <= found.target.min()
    a, b = randomised(found.source, found.target, found.count, 0, sides=True)
    assert max(a.max(), b.min() - side) < side <= b.min()


def test_of_many_neurons_some_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MOST_NEURONS", 20)
    place = places(CONFIG)["head 0"]
    one, again, other = (graph(build(CONFIG), place, mean_degree=2, seed=seed) for seed in (0, 0, 1))
    assert len(one.neurons) == 20 and one.of == 64
    assert (one.neurons == again.neurons).all() and (one.neurons != other.neurons).any()


@settings(max_examples=12)
@given(st.integers(0, 1_000), st.integers(8, 40))
def test_random_graphs_keep_every_degree_and_have_neither_loops_nor_double_edges(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    codes = np.unique(generator.integers(0, count * count, 3 * count))
    a, b = codes // count, codes % count
    simple = a < b
    a, b = a[simple], b[simple]
    c, d = randomised(a, b, count, seed)
    before, after = (np.bincount(np.concatenate(ends), minlength=count) for ends in ((a, b), (c, d)))
    assert (before == after).all() and (c != d).all()
    assert len({frozenset(edge) for edge in zip(c.tolist(), d.tolist(), strict=True)}) == len(a)


def test_a_random_graph_has_lost_the_communities_that_were_planted() -> None:
    generator = np.random.default_rng(0)
    weights = torch.from_numpy(generator.random((60, 60)).astype(np.float32))
    for part in range(3):
        weights[part * 20 : part * 20 + 20, part * 20 : part * 20 + 20] += 1
    strongest = weights.fill_diagonal_(-1).flatten().topk(360).indices.numpy()
    planted = Graph(60, strongest // 60, strongest % 60, np.ones(360, np.float32), np.arange(60), True, 60)
    member, modularity = communities(planted)
    assert modularity > 0.6
    assert [len(set(member[part * 20 : part * 20 + 20].tolist())) for part in range(3)] == [1, 1, 1]
    a, b = np.unique(np.sort(np.stack([planted.source, planted.target]), axis=0), axis=1)
    c, d = randomised(a, b, 60, 1)
    mixed = Graph(60, c, d, np.ones(len(c), np.float32), np.arange(60), True, 60)
    assert communities(mixed)[1] < modularity - 0.2
    around = surroundings(planted, member, 5, most=12)
    assert around.nodes[0]["neuron"] == 5 and len(around.nodes) == 12
    assert {node["community"] for node in around.nodes} == {int(member[5])}
    shown = {node["node"] for node in around.nodes}
    inside = np.isin(planted.source, list(shown)) & np.isin(planted.target, list(shown))
    assert len(around.edges) == inside.sum() > 11


def test_a_power_law_is_recovered_and_a_narrow_distribution_is_none() -> None:
    generator = np.random.default_rng(0)
    scale_free = fit_power_law(generator.zipf(2.4, 2_000))
    assert scale_free.alpha == pytest.approx(2.4, abs=0.1)
    assert scale_free.verdict == "power law not ruled out"
    assert set(scale_free.against) == set(network.ALTERNATIVES)
    assert scale_free.p > 0.2
    hubs = fit_power_law(np.concatenate([generator.geometric(0.35, 900), generator.integers(120, 200, 40)]))
    assert hubs.against["exponential"].ratio > 0 and hubs.p < 0.1 and "not ruled out" not in hubs.verdict
    narrow = fit_power_law(generator.poisson(8, 1_000))
    assert narrow.verdict == "too short a tail to tell" and narrow.against == {}
    assert narrow.alpha > 5  # beyond where the package would stop by itself
    with pytest.raises(ConfigError, match="nearly all the same"):
        fit_power_law(np.full(100, 8))


def test_the_start_of_a_tail_is_where_the_likeliest_power_law_is_nearest_to_it() -> None:
    generator = np.random.default_rng(2)
    degrees = np.concatenate([generator.zipf(2.1, 300) + 3, generator.integers(1, 12, 200)])
    distances, alphas = {}, {}
    for least in np.unique(degrees).tolist():
        tail = np.sort(degrees[degrees >= least])
        if len(tail) < network.LEAST_TAIL:
            break
        cost = partial(_unlikely, tail)
        alphas[least] = minimize_scalar(cost, bounds=(1.01, 30), method="bounded").x
        all_of_it = np.arange(least, tail[-1] + 1)
        part = np.searchsorted(tail, all_of_it, side="right") / len(tail)
        law = 1 - zeta(alphas[least], all_of_it + 1.0) / zeta(alphas[least], least)
        distances[least] = np.abs(part - law).max()
    found = fit_power_law(degrees)
    assert len(distances) > 5 and found.least_degree == min(distances, key=lambda least: distances[least])
    assert found.distance == pytest.approx(distances[found.least_degree], rel=0.01)
    assert found.alpha == pytest.approx(alphas[found.least_degree], rel=2e-3)


@pytest.mark.parametrize(
    "degrees",
    [
        np.arange(1, 100),
        np.concatenate([np.full(60, 200), [201, 202]]),
        np.repeat([201, 202, 203], [50, 10, 10]),
        np.concatenate([np.arange(1, 30), np.repeat([201, 202, 203], [60, 3, 3])]),
    ],
    ids=["each once", "nearly all 200", "201 to 203", "a body and a peak"],
)
def test_of_degrees_that_are_nearly_alike_a_fit_is_as_far_as_its_alpha_says(degrees: np.ndarray) -> None:
    found = fit_power_law(degrees)
    tail = np.sort(degrees[degrees >= found.least_degree])
    all_of_it = np.arange(tail[0], tail[-1] + 1)
    part = np.searchsorted(tail, all_of_it, side="right") / len(tail)
    law = 1 - zeta(found.alpha, all_of_it + 1.0) / zeta(found.alpha, float(tail[0]))
    assert found.distance == pytest.approx(np.abs(part - law).max(), rel=0.05)  # both stop near the same largest alpha
    assert found.p < 0.05 and "not ruled out" not in found.verdict


def _unlikely(tail: np.ndarray, alpha: float) -> float:
    return float(len(tail) * np.log(zeta(alpha, tail[0])) + alpha * np.log(tail).sum())


def test_degrees_that_follow_a_power_law_are_as_far_from_their_fit_as_chance_takes_them() -> None:
    generator = np.random.default_rng(0)
    chances = [fit_power_law(generator.zipf(2.2, 300), seed).p for seed in range(20)]
    assert 0.3 < np.mean(chances) < 0.7 and min(chances) < 0.3 and max(chances) > 0.7  # alike often: not too mild
    far = np.concatenate([generator.geometric(0.4, 600), np.full(60, 25)])
    assert fit_power_law(far).p < 0.05 and fit_power_law(far).p >= 1 / (1 + network.DRAWS)


@pytest.mark.parametrize(
    ("alpha", "rate", "least"), [(2.5, 0.01, 3), (1.9, 1e-9, 2), (0.5, 0.05, 10), (2.0, 1e-3, 400)]
)
def test_the_sum_of_a_power_law_with_a_cut_off_is_lerch_s(alpha: float, rate: float, least: int) -> None:
    expected = lerchphi(exp(-rate), alpha, least) * exp(-rate * least)
    assert network.lerch_sum(alpha, rate, least) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["transformer", "hebbian", "hierarchical-transformer", "average"])
def test_models_without_such_weights_are_refused_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match="no encoder and decoder"):
        places(zoo.ZOO[name])


@pytest.mark.parametrize(
    ("trained", "untrained", "verdict"),
    [
        (0.40, 0.22, "modular"),
        (0.40, 0.37, "modular, but not clearly more than fresh weights are"),
        (0.23, 0.37, "a little modular, but not clearly more than fresh weights are"),
        (0.19, 0.37, "as random"),
    ],
)
def test_communities_that_fresh_weights_have_too_are_not_laid_to_training(
    trained: float, untrained: float, verdict: str
) -> None:
    fit = Fit(2.0, 0.1, 1, 60, 20, 0.1, 0.5, {})
    both = [Measured([], [], 1.0, fit, fit, 3, one, [0.18, 0.2]) for one in (trained, untrained)]
    assert Network("head 0", 64, 64, 256, 4.0, 0, *both).verdict == verdict


def test_one_layer_has_no_next_one_to_excite() -> None:
    with pytest.raises(ConfigError, match="with one layer"):
        places(FlatConfig(n_layer=1, n_embd=16, n_head=1, mlp_internal_dim_multiplier=8))
    lone = FlatConfig(n_layer=2, n_embd=16, n_head=1, mlp_internal_dim_multiplier=8)
    assert list(places(lone)) == ["head 0"] and graph(build(lone), places(lone)["head 0"]).of == 128


def test_a_mean_degree_out_of_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="the mean degree is 99"):
        graph(build(CONFIG), places(CONFIG)["head 0"], mean_degree=99)


def test_the_command_writes_a_report_and_measures_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(CONFIG, seed=3).save_pretrained(tmp_path / "model")
    arguments = ["network", str(tmp_path / "model"), "--places", "head 1", "--mean-degree", "4", "--random", "2"]
    arguments += ["--out", str(tmp_path / "out"), "--quiet"]
    assert main(arguments) == 0
    kept = tmp_path / "out" / "parts" / "head-1.json"
    measured_ns = kept.stat().st_mtime_ns
    assert main(arguments) == 0
    assert kept.stat().st_mtime_ns == measured_ns
    (found,) = json.loads((tmp_path / "out" / "report.json").read_text())["places"]
    assert found["edges"] == 256 == sum(found["trained"]["in_degree"])
    assert len(found["untrained"]["random"]) == 2
    assert "against" in capsys.readouterr().out and "| trained, in |" in (tmp_path / "out" / "report.md").read_text()
    for name in ("degrees.png", "surroundings.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--seed", "1"]) == 2
    assert "holds an experiment with other checkpoints" in capsys.readouterr().err
    titles = [table.title for table in tables_of(tmp_path / "out")]
    assert titles == ["model, head 1: communities", "model, head 1: degrees"]
    for spoiled in ("{}", "[]", '{"tables": [], "places": [], "checkpoint": "a"}', "{"):
        (tmp_path / "report.json").write_text(spoiled)
        with pytest.raises(DataError, match="is no report on a network"):
            tables_of(tmp_path)
    assert main([*arguments[:3], "head 9"]) == 2
    assert "no place 'head 9'; there are head 0, head 1, all heads" in capsys.readouterr().err


def test_the_view_gives_the_graph_then_what_is_measured_and_neighbours_and_files(tmp_path: Path) -> None:
    build(CONFIG, seed=3).save_pretrained(tmp_path / "checkpoints" / "alpha")
    zoo.fresh("transformer").save_pretrained(tmp_path / "checkpoints" / "beta")
    mapper = Mapper(Registry(tmp_path / "checkpoints", tmp_path / "data", Limits(), "cpu"))
    assert mapper.places("beta", "") == []
    asked = Asked("alpha", mapper.places("alpha", "")[0], 4.0)
    drawn, measured = (one for one in mapper.measure(asked, "") if not isinstance(one, tuple))
    assert drawn.graph.count == 64 and measured.edges == 256
    assert made(mapper.around(asked, "", 17))[1].nodes[0]["neuron"] == 17
    files = [Path(path) for path in made(mapper.files(asked, "", None))]
    assert [path.name for path in files][:2] == ["alpha-network.json", "alpha-network-edges.csv"] and len(files) == 4
    assert json.loads(files[0].read_text())["model"] == "alpha"
    with pytest.raises(DataError, match="neuron 4000 is not in the graph; its neurons are 0 to 63"):
        made(mapper.around(asked, "", 4000))
    for degree in (1e9, 4.5, float("nan"), "8", True):
        with pytest.raises(DataError, match="choose a whole number, 2 to 32"):
            list(mapper.measure(asked._replace(mean_degree=degree), ""))


def made(steps: Iterator[Any]) -> list[Any]:
    """What comes at last of work that is told step by step."""
    return [one for one in steps if isinstance(one, list)][-1]
