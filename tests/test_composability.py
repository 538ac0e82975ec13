"""Crossing models and texts, whose neurons carry what, and the experiment over both: on models too small to matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from test_merge import loud
from zoo import FLAT, HIERARCHICAL, fresh

from bdh.config import Config
from bdh.errors import ConfigError, DataError, MergeError
from bdh.merge.join import concatenate, heritage, join_config
from bdh.merge.parents import model_of
from bdh.models import Model
from bdh.models.observe import observing
from lab.crossed import Hearing, block_costs, compare, crossed, listen, mean_hearing
from lab.heritage import carried, inherited, read_heritage
from train.data import Bytes
from train.evaluate import bits_per_byte


def noise(length: int, seed: int, alphabet: int = 256) -> Bytes:
    return np.random.default_rng(seed).integers(0, alphabet, length).astype(np.uint8)


TEXTS = {"letters": noise(4000, 0, 128), "bytes": noise(3001, 1)}


def joined(config: Config, seeds: tuple[int, ...], silent: int | None = None) -> tuple[Model[Any], Any]:
    parents = [loud(config, seed) for seed in seeds]
    if silent is not None:
        for name, tensor in parents[silent].state_dict().items():
            if name.endswith(("encoder", "encoder_v", "decoder")):
                tensor.zero_()
    configs = [config] * len(seeds)
    tensors = concatenate([parent.state_dict() for parent in parents], configs, [1.0] * len(seeds))
    return model_of(join_config(configs, heads=False), tensors), heritage(configs, heads=False)


def test_crossing_gives_the_bits_that_evaluation_gives() -> None:
    models = {"one": fresh("flat"), "two": fresh("hierarchical", seed=1), "three": fresh("mixture-shared")}
    told: list[tuple[int, int, str]] = []
    found = crossed(models, TEXTS, streams=4, progress=lambda *now: told.append(now))
    for name, model in models.items():
        row = found.row(name)
        for text, data in TEXTS.items():
            assert row.texts[text].mean == pytest.approx(bits_per_byte(model, data, streams=4), rel=1e-5)
        assert row.average.mean == pytest.approx(sum(one.mean for one in row.texts.values()) / 2)
        assert row.parameters == model.parameter_count() and row.bytes_per_s > 0
    assert found.predicted_bytes == {"letters": 4 * 999, "bytes": 4 * 749}
    assert [one[0] for one in told] == sorted(one[0] for one in told) and told[-1][0] <= told[-1][1] == 3 * 7001
    assert list(dict.fromkeys(name for _, _, name in told)) == list(models)


def test_a_ratio_is_the_mean_over_texts_of_bits_over_those_of_the_specialist() -> None:
    models = {"one": fresh("flat"), "two": fresh("flat", seed=1), "merged": fresh("flat", seed=2)}
    found = crossed(models, TEXTS, parents=("one", "two"), specialists={"letters": "one", "bytes": "two"})
    of = {name: {text: found.row(name).texts[text].mean for text in TEXTS} for name in models}
    expected = (of["merged"]["letters"] / of["one"]["letters"] + of["merged"]["bytes"] / of["two"]["bytes"]) / 2
    ratio = found.row("merged").ratio
    assert ratio.mean == pytest.approx(expected)
    assert ratio.low < expected < ratio.high
    assert {text: one.mean for text, one in found.best().items()} == {
        "letters": of["one"]["letters"],
        "bytes": of["two"]["bytes"],
    }


def test_the_best_parent_of_each_text_is_its_specialist_and_has_the_ratio_1() -> None:
    models = {"one": fresh("flat"), "two": fresh("flat", seed=1), "other": fresh("flat", seed=2)}
    found = crossed(models, {"bytes": TEXTS["bytes"]}, parents=("one", "two"))
    best = min(("one", "two"), key=lambda name: found.row(name).average.mean)
    assert found.specialists == {"bytes": best}
    assert dataclasses.astuple(found.row(best).ratio) == (1.0, 1.0, 1.0)


def test_intervals_of_95_per_cent_cover_the_true_mean_that_often() -> None:
    generator = np.random.default_rng(0)
    hits = {"average": 0, "ratio": 0}
    for _ in range(400):
        easy = [generator.gamma(4.0, 0.5, (4, 5 * 512)) for _ in range(2)]
        heard = {}
        for name, factor in (("one", 1.0), ("two", 1.5)):
            costs = {
                text: block_costs(factor * bits * generator.uniform(0.9, 1.1, bits.shape))
                for text, bits in zip("ab", easy, strict=True)
            }
            heard[name] = Hearing(costs, 0, 1.0)
        row = compare(heard, specialists={"a": "one", "b": "one"}).row("two")
        hits["average"] += row.average.low <= 3.0 <= row.average.high
        hits["ratio"] += row.ratio.low <= 1.5 <= row.ratio.high
    assert all(0.92 <= count / 400 <= 0.98 for count in hits.values()), hits


def test_seeds_are_averaged_block_by_block() -> None:
    first, second = listen(fresh("flat"), TEXTS), listen(fresh("flat", seed=1), TEXTS)
    mean = mean_hearing([first, second])
    for text in TEXTS:
        both = (first.costs[text].bits + second.costs[text].bits) / 2
        assert np.allclose(mean.costs[text].bits, both)


def test_what_cannot_be_crossed_is_named() -> None:
    with pytest.raises(DataError, match="short has 20 bytes to measure on; 8 streams need at least 24"):
        crossed({"one": fresh("flat")}, {"short": noise(20, 0)})
    with pytest.raises(ConfigError, match="at least one model and one text"):
        crossed({"one": fresh("flat")}, {})
    with pytest.raises(ConfigError, match="specialist of bytes is 'nobody'; it must be one of one"):
        crossed({"one": fresh("flat")}, {"bytes": TEXTS["bytes"]}, specialists={"bytes": "nobody"})


@pytest.mark.parametrize("config", [FLAT, HIERARCHICAL], ids=["flat", "hierarchical"])
def test_shares_of_the_parents_sum_to_1_at_every_byte(config: Config) -> None:
    merged, origin = joined(config, (0, 1, 2))
    shares = carried(merged, origin, TEXTS["bytes"].tobytes()[:523])
    assert shares.shape == (523, 3)
    assert np.allclose(shares.sum(1), 1, atol=1e-5) and (shares > 0.01).mean() > 0.9


@pytest.mark.parametrize("config", [FLAT, HIERARCHICAL], ids=["flat", "hierarchical"])
def test_a_silent_parent_carries_nothing(config: Config) -> None:
    merged, origin = joined(config, (0, 1), silent=0)
    silent = 4 if config is HIERARCHICAL else 70
    for place, shares in enumerate(carried(merged, origin, TEXTS["bytes"].tobytes()[:70])):
        # Where a stream, or a patch, begins there is nothing to recall, so nothing fires.
        assert np.allclose(shares, [0, 1] if place % silent else [0.5, 0.5])
    found = inherited(merged, origin, ("still", "loud"), TEXTS)
    for on in found.texts.values():
        assert on.shares == pytest.approx((0, 1)) and on.active[0] == on.firing[0] == 0 < on.active[1]
    assert found.overlaps[0].both[0] == found.overlaps[0].either[0] == 0


def test_shares_are_of_the_gated_activity_layer_by_layer() -> None:
    merged, origin = joined(FLAT, (0, 1))
    data = TEXTS["bytes"][:50]
    seen: dict[str, list[torch.Tensor]] = {"x_sparse": [], "y_sparse": [], "residual": []}
    with observing(lambda name, x: seen[name].append(x)), torch.no_grad():
        merged(torch.from_numpy(data.copy())[None])
    gated = torch.stack([x * y for x, y in zip(seen["x_sparse"], seen["y_sparse"], strict=True)])
    half = FLAT.n_neuron
    by_parent = torch.stack([gated[..., :half].sum((1, 4)), gated[..., half:].sum((1, 4))], -1)[:, 0]
    expected = (by_parent / by_parent.sum(-1, keepdim=True)).mean(0)
    shares = carried(merged, origin, data.tobytes())
    assert np.allclose(shares[0], 0.5) and np.allclose(shares[1:], expected[1:], atol=1e-5)
    found = inherited(merged, origin, ("one", "two"), {"text": data}, streams=1)
    assert found.texts["text"].shares == pytest.approx(expected[1:].mean(0).tolist(), abs=1e-5)
    active = (gated > 0).float()
    assert found.texts["text"].active == pytest.approx((active[..., :half].mean(), active[..., half:].mean()), abs=1e-5)
    assert found.neurons == (FLAT.n_head * half,) * 2


def test_neurons_that_fire_on_two_texts_are_counted_by_parent() -> None:
    merged, origin = joined(FLAT, (0, 1))
    found = inherited(merged, origin, ("one", "two"), {**TEXTS, "again": TEXTS["bytes"]})
    overlaps = {one.texts: one for one in found.overlaps}
    assert set(overlaps) == {("letters", "bytes"), ("letters", "again"), ("bytes", "again")}
    same = overlaps["bytes", "again"]
    assert same.both == same.either == found.texts["bytes"].firing
    mixed = overlaps["letters", "bytes"]
    for parent in (0, 1):
        firing = found.texts["letters"].firing[parent] + found.texts["bytes"].firing[parent]
        assert mixed.both[parent] + mixed.either[parent] == firing > 0


def test_bytes_of_a_mixture_are_carried_by_whom_it_trusts_after_each() -> None:
    mixture = fresh("mixture-shared")
    data = TEXTS["letters"].tobytes()[:40]
    shares, state = carried(mixture, None, data), mixture.empty_state(1)
    for index, byte in enumerate(data):
        state = mixture.step_(torch.tensor([[byte]]), state).state
        assert np.allclose(shares[index], state.log_weights[0].exp(), atol=1e-4)
    average = fresh("average")
    weights = torch.softmax(average.combine_weight.detach(), 0).numpy()
    assert np.allclose(carried(average, None, data), np.tile(weights, (40, 1)))


def test_what_has_no_heritage_or_another_model_s_is_refused() -> None:
    merged, origin = joined(FLAT, (0, 1))
    with pytest.raises(MergeError, match="keeps no heritage"):
        carried(merged, None, b"text")
    with pytest.raises(MergeError, match="it is another model's"):
        carried(fresh("flat"), origin, b"text")
    with pytest.raises(MergeError, match="weighs hidden units"):
        carried(fresh("deep"), None, b"text")
    assert read_heritage(merged) is None
    for wrong in ({"": 3}, {"": [[["x", 1]]] * 2}, [], {"": [[[-1, 32], [0, 32]]] * 2}):
        with pytest.raises(MergeError, match="another model's"):
            carried(merged, wrong, b"text")  # type: ignore[arg-type]
