"""Crossing models and texts, whose neurons carry what, and the experiment over both: on models too small to matter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_merge import loud
from test_train import text as text
from zoo import FLAT, HIERARCHICAL, fresh, louder

import bdh
from bdh.config import Config
from bdh.errors import ConfigError, DataError, MergeError
from bdh.merge.join import concatenate, heritage, join_config
from bdh.merge.parents import model_of
from bdh.models import Model, build
from bdh.models.observe import observing
from lab import claim, findings
from lab.__main__ import main
from lab.crossed import Hearing, block_costs, compare, crossed, listen, mean_hearing
from lab.findings import verdict
from lab.heritage import carried, inherited, read_heritage
from train.data import Bytes, held_out_start
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
        for about, data in TEXTS.items():
            assert row.texts[about].mean == pytest.approx(bits_per_byte(model, data, streams=4), rel=1e-5)
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
    for name in TEXTS:
        both = (first.costs[name].bits + second.costs[name].bits) / 2
        assert np.allclose(mean.costs[name].bits, both)


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
    active = [(part > 0).float().mean().item() for part in (gated[..., :half], gated[..., half:])]
    assert found.texts["text"].active == pytest.approx(active, abs=1e-5)
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


@pytest.fixture
def arguments(text: Path, tmp_path: Path) -> list[str]:
    """The command for two clones of one base and two texts."""
    other = tmp_path / "count.txt"
    other.write_text(" ".join(str(number % 97) for number in range(900)))
    base = louder(build(FLAT, seed=0))
    base.save_pretrained(tmp_path / "start")
    for seed, name in ((1, "left"), (2, "right")):
        clone = fresh("flat")
        with torch.no_grad():
            for parameter in clone.parameters():
                noise_ = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.add_(0.02 * noise_)
        clone.save_pretrained(tmp_path / name, provenance={"bytes_heard": 100_000})
    parents = [str(tmp_path / "left"), str(tmp_path / "right")]
    given = ["composability", *parents, "--data", str(text), str(other), "--base", str(tmp_path / "start")]
    return [*given, "--bytes", "100", "--sample-bytes", "8", "--out", str(tmp_path / "out")]


def read(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / findings.RESULT).read_text())
    return result


def test_the_experiment_measures_parents_base_methods_and_baselines_before_and_after_healing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--methods", "concat", "--heal-steps", "2", "--seeds", "0,1"]
    assert main([*arguments, *asked]) == 0
    out = tmp_path / "out"
    found = read(out)
    methods = ["concat", "average"]
    rows = {one["name"]: one for one in found["contenders"]}
    assert set(rows) == {
        *("left", "right", "the base", "mixture"),
        *methods,
        *(f"{method}, healed" for method in methods),
    }
    held_out = {
        name: np.frombuffer(data[held_out_start(len(data)) :][:100], np.uint8)
        for name in ("rhyme", "count")
        for data in [(tmp_path / f"{name}.txt").read_bytes()]
    }
    assert [(one["name"], one["heard_bytes"]) for one in found["texts"]] == [(n, len(d)) for n, d in held_out.items()]
    merged = bdh.load(out / "merged" / "concat", device="cpu")
    for name, data in held_out.items():
        assert rows["concat"]["row"]["texts"][name]["mean"] == pytest.approx(bits_per_byte(merged, data, streams=8))
    assert rows["concat"]["row"]["parameters"] == merged.parameter_count() > rows["left"]["row"]["parameters"]
    best = min(rows["left"]["row"]["ratio"]["mean"], rows["right"]["row"]["ratio"]["mean"])
    assert 1 <= best < 1.1
    healed = rows["concat, healed"]
    assert healed["row"]["ratio"]["mean"] == pytest.approx(sum(healed["seeds"].values()) / 2)
    assert healed["spread"] == pytest.approx(abs(healed["seeds"]["0"] - healed["seeds"]["1"]) / 2**0.5)
    assert found["healed_bytes"] == 2 * 8 * 256 and found["healed_part"] == pytest.approx(4096 / 200_000)
    assert all(one["verdict"] == verdict(one["row"]["ratio"]["mean"]) for one in rows.values() if one["verdict"])
    assert {name for name, one in rows.items() if one["verdict"]} == set(rows) - {"left", "right", "the base"}
    assert set(found["heritage"]) == {"concat", "concat, healed"}
    assert sum(found["heritage"]["concat"]["texts"]["count"]["shares"]) == pytest.approx(1)
    told, report = capsys.readouterr(), (out / findings.REPORT).read_text()
    assert "# left + right: can they be merged?" in report and "2.0% of what the specialists" in report
    assert str(tmp_path) not in report + json.dumps(found)
    assert "average, healed" in told.out and "concat-healed, seed 1: step 2/2" in told.err
    for name in (findings.BARS, findings.CROSSED, findings.HERITAGE):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_healed_is_not_healed_again_and_gives_the_same_report(arguments: list[str], tmp_path: Path) -> None:
    asked = [*arguments, "--heal-steps", "2", "--seeds", "0", "--quiet"]
    assert main(asked) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("healed/*/checkpoint/*")}
    first = read(tmp_path / "out")
    assert len({file.parent for file in before}) == 2
    assert main([*asked, "--seeds", "0,1"]) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("healed/*/checkpoint/*")}
    assert len({file.parent for file in after}) == 4 and before.items() <= after.items()
    assert main(asked) == 0
    for one, other in zip(first["contenders"], read(tmp_path / "out")["contenders"], strict=True):
        assert one["row"]["texts"] == other["row"]["texts"]
    healed = bdh.load(next((tmp_path / "out").glob("healed/concat-*/checkpoint")), device="cpu")
    origin = read_heritage(healed)
    assert origin is not None and origin[1] == ("left", "right")
    assert healed.origin is not None and healed.origin.provenance["merge"]["method"] == "concat"


def test_healing_the_ends_leaves_the_neurons_as_they_were(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--heal-steps", "1", "--heal-trained", "ends", "--seeds", "3", "--quiet"]) == 0
    out = tmp_path / "out"
    merged = bdh.load(out / "merged" / "concat", device="cpu").state_dict()
    healed = bdh.load(next(out.glob("healed/concat-*/checkpoint")), device="cpu").state_dict()
    assert torch.equal(merged["encoder"], healed["encoder"]) and torch.equal(merged["decoder"], healed["decoder"])
    assert not torch.equal(merged["lm_head"], healed["lm_head"])


def test_files_that_nothing_learns_from_are_heard_whole(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "REPORTS", tmp_path / "kept")
    assert main([*arguments, "--quiet", "--keep"]) == 0
    kept = claim.read(tmp_path / "kept" / "composability.json")
    ratios = {
        one["name"]: one["row"]["ratio"]["mean"] for one in read(tmp_path / "out")["contenders"] if one["verdict"]
    }
    told = {check["part"].removesuffix(" keeps what the parents know"): check["value"] for check in kept["checks"]}
    assert told == ratios and set(kept["checkpoints"]) == {"left", "right"}
    assert str(tmp_path) not in kept["command"] and len(kept["drawings"]) == 2
    assert [one["start_bytes"] for one in read(tmp_path / "out")["texts"]] == [0, 0]
    assert "not said by left, right" in (tmp_path / "out" / findings.REPORT).read_text()


def test_methods_take_options_and_learn_from_no_byte_that_is_measured(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--methods", "concat:weights=1,3:align,ties:density=0.25", "--quiet"]) == 0
    found, out = read(tmp_path / "out"), tmp_path / "out"
    merged = {one["name"]: one for one in found["contenders"] if one["what"] == "merged"}
    assert list(merged) == ["concat:weights=1,3:align", "ties:density=0.25", "average", "mixture"]
    assert "turned onto left" in merged["concat:weights=1,3:align"]["notes"][0]
    told = bdh.load(out / "merged" / "ties_density_0.25", device="cpu").origin
    assert told is not None and told.provenance["merge"]["density"] == 0.25
    for one in found["texts"]:
        data = (tmp_path / f"{one['name']}.txt").read_bytes()
        assert one["start_bytes"] == held_out_start(len(data))
        assert data[: one["start_bytes"]][:1000] in (out / "calibration.txt").read_bytes()


def test_specialists_are_trained_first_and_only_once(arguments: list[str], tmp_path: Path) -> None:
    recipes = []
    for name in ("rhyme", "count"):
        recipe = tmp_path / f"{name}.toml"
        source = json.dumps(str(tmp_path / f"{name}.txt"))
        recipe.write_text(f'steps = 4\nsample_bytes = 0\nchunk_bytes = 32\nbase = "x"\n[texts]\n{source} = 2\n')
        recipes.append(str(recipe))
    base = arguments[arguments.index("--base") + 1]
    out = ["--bytes", "100", "--sample-bytes", "0", "--quiet", "--out", str(tmp_path / "out")]
    asked = ["composability", "--train-recipes", ",".join(recipes), "--train-steps", "2", "--base", base, *out]
    assert main(asked) == 0
    trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("specialists/*/*/model.safetensors")}
    assert {file.parent.name for file in trained} >= {"rhyme", "count"}
    assert main(asked) == 0
    again = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("specialists/*/*/model.safetensors")}
    assert again == trained
    found = read(tmp_path / "out")
    assert [one["name"] for one in found["contenders"] if one["what"] == "parent"] == ["rhyme", "count"]
    assert found["texts"][0]["trained_on"] == {"rhyme": False, "count": None}


def test_parents_of_unequal_size_are_compared_without_their_average(arguments: list[str], tmp_path: Path) -> None:
    louder(build(dataclasses.replace(FLAT, mlp_internal_dim_multiplier=6), seed=3)).save_pretrained(tmp_path / "right")
    assert main([*arguments, "--quiet"]) == 0
    found = read(tmp_path / "out")
    assert "average" not in {one["name"] for one in found["contenders"]}
    assert len(found["left_out"]) == 1 and "mlp_internal_dim_multiplier" in found["left_out"][0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "nonsense"], "nonsense"),
        (["--methods", "concat:neurons=7"], "neurons is 7"),
        (["--bytes", "3"], "--bytes is 3"),
        (["--heal-steps", "-1"], "are 0 or more"),
        (["--joint", "missing-model"], "missing-model"),
    ],
)
def test_what_cannot_be_asked_for_is_named_before_anything_is_written(
    arguments: list[str], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *more, "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_thresholds_decide_the_verdict() -> None:
    assert [verdict(ratio) for ratio in (0.99, 1.1999, 1.2, 1.4999, 1.5)] == [
        *("supported", "supported", "partly supported", "partly supported", "not supported")
    ]
