"""Claims put to the test: thresholds, kept parts, forms held against each other, laws, reports and their view."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import text as text

import bdh
from bdh.errors import ConfigError, DataError
from bdh.models import build, parameter_count
from bdh.stream import Stream
from lab import activity, capacity, causality, claim, cost, law, recomputing, scaling, sparsity, unlimited_context
from lab.__main__ import main
from lab.claim import NOT, PARTLY, SUPPORTED, UNTOLD, Check, Claim, Table, Threshold, Work
from train.evaluate.hearing import carried_bits
from train.folder import Folder
from ui.inspect import claims as view

TEXT = np.frombuffer(b"In the beginning was the Word, and the Word was with God.", np.uint8)
MOST = Threshold("it is small", "a number", 1.0, 2.0)
LEAST = Threshold("it is large", "a number", 2.0, 1.0, at_least=True)


@pytest.mark.parametrize(
    ("threshold", "value", "verdict"),
    [
        (MOST, 1.0, SUPPORTED),
        (MOST, 1.5, PARTLY),
        (MOST, 2.001, NOT),
        (LEAST, 2.0, SUPPORTED),
        (LEAST, 1.0, PARTLY),
        (LEAST, 0.9, NOT),
        (LEAST, None, UNTOLD),
        (MOST, float("nan"), UNTOLD),
    ],
)
def test_a_verdict_follows_from_the_bounds(threshold: Threshold, value: float | None, verdict: str) -> None:
    assert threshold.judge(value).verdict == verdict


def test_bounds_are_said_in_words() -> None:
    assert LEAST.said() == "supported if at least 2.000, partly if at least 1.000, else not"
    assert Threshold("a", "b", 1, 1, form=".0f").said() == "supported if at most 1, else not"


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([SUPPORTED, SUPPORTED], SUPPORTED),
        ([SUPPORTED, NOT], PARTLY),
        ([NOT, NOT], NOT),
        ([NOT, UNTOLD], NOT),
        ([SUPPORTED, UNTOLD], PARTLY),
        ([PARTLY], PARTLY),
        ([UNTOLD], UNTOLD),
    ],
)
def test_a_claim_is_as_its_parts_are_and_controls_do_not_count(verdicts: list[str], whole: str) -> None:
    checks = [Check("part", "measure", "threshold", 1.0, "1", verdict) for verdict in verdicts]
    assert made((*checks, Check("seen", "measure", "threshold", 1.0, "1", SUPPORTED, control=True))).verdict == whole


def made(checks: tuple[Check, ...] = (), name: str = "sparsity", said: str = "it is so") -> Claim:
    return Claim(
        name=name,
        title="Is it?",
        said=said,
        source="a paper",
        checkpoints={"base": "0123456789abcdef"},
        command="python -m lab sparsity base",
        settings={"bytes": 4},
        checks=checks or (MOST.judge(1.2, "<b>"),),
        tables=(Table("T", [["a", "b"], ["1", "2"]]),),
        drawings=("one.png",),
        numbers={"all": [1, 2]},
    )


def test_a_part_is_measured_once_and_other_settings_are_refused(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        work = Work(tmp_path, {"a": (1, 2)}, {"one": 1.0, "two": 3.0}, said.append)
        assert work.part("one", lambda tell: {"n": len(said)}) == {"n": 1}
    assert said == ["one: part 1 of 2, about 4 s left", "one: measured before"]
    with pytest.raises(ZeroDivisionError):
        work.part("two", lambda tell: 1 / 0)
    assert work.part("two", lambda tell: [1]) == [1]
    with pytest.raises(ConfigError, match="holds an experiment with other checkpoints, texts or options"):
        Work(tmp_path, {"a": (1, 3)}, {}, said.append)
    for damaged in ("{", "{}", "[1]"):
        (tmp_path / "parts" / "one.json").write_text(damaged)
        with pytest.raises(DataError, match=r"one\.json is damaged"):
            work.part("one", lambda tell: 1)


def test_equal_weights_that_compute_something_else_are_another_model_and_another_text_is_another() -> None:
    flat = zoo.fresh("flat")
    damped = build(dataclasses.replace(zoo.FLAT, decay=(0.5, 0.9)))
    damped.load_state_dict(flat.state_dict())
    one, two = claim.identities({"flat": flat, "damped": damped}).values()
    assert one["weights"] == two["weights"] and one["computes"] != two["computes"]
    dropping = build(dataclasses.replace(zoo.FLAT, dropout=0.3))
    dropping.load_state_dict(flat.state_dict())
    assert claim.identity(dropping) == one
    assert claim.digest(b"ab") == claim.digest(np.frombuffer(b"ab", np.uint8)) != claim.digest(b"ba")


def test_checkpoints_have_names_of_their_own_in_a_report() -> None:
    assert claim.by_name(["a/base", "user/chat"]) == {"base": "a/base", "chat": "user/chat"}
    with pytest.raises(ConfigError, match="a/base and b/base are both called base in the report"):
        claim.by_name(["a/base", "b/base"])
    with pytest.raises(ConfigError, match="window is what the report calls something else; rename a/window"):
        claim.by_name(["a/window"], ("window",))
    assert claim.short_name(".") == Path.cwd().name == claim.short_name("tests/..")


def test_the_command_names_no_place_of_this_machine() -> None:
    given_ = ["/home/me/base", "--out", "/home/me/x", "--quiet", "--bytes", "9", "--keep"]
    assert claim.command("sparsity", given_) == "python -m lab sparsity base --bytes 9"


def test_a_report_is_read_as_it_was_written_and_kept_without_its_numbers(tmp_path: Path) -> None:
    claim.write(made(), tmp_path)
    (tmp_path / "one.png").write_bytes(b"x" * 100)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "sparsity-2.png").write_bytes(b"old")
    fields = claim.read(claim.keep(tmp_path, tmp_path / "kept"))
    assert fields["verdict"] == PARTLY and fields["numbers"] == {} and fields["drawings"] == ["sparsity-1.png"]
    assert (tmp_path / "kept" / "sparsity-1.png").read_bytes() == b"x" * 100
    assert not (tmp_path / "kept" / "sparsity-2.png").exists()
    assert claim.read(tmp_path / "report.json")["numbers"] == {"all": [1, 2]}
    assert "| it is small | 1.200 – a number; <b> | partly supported |" in (tmp_path / "report.md").read_text()
    (tmp_path / "one.png").write_bytes(b"x" * 60_001)
    with pytest.raises(DataError, match="at most 60,000 are kept"):
        claim.keep(tmp_path, tmp_path / "kept")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(DataError, match="is no report of a claim"):
        claim.read(tmp_path / "report.json")


@pytest.mark.parametrize("name", ["flat", "flat-damped"])
def test_the_recomputing_form_gives_the_models_logits(name: str) -> None:
    model, ids = zoo.model(name), zoo.text(40)
    expected = model(ids, keep_state=False).logits[0, -1]
    torch.testing.assert_close(recomputing.last_logits(model, ids[0]), expected, atol=2e-4, rtol=1e-4)


def test_a_growing_cache_gives_the_logits_of_a_window_that_never_slides() -> None:
    model, ids = zoo.model("transformer"), zoo.text(20)
    cache = recomputing.GrowingCache(model, 21)
    said = torch.stack([cache.step(byte) for byte in ids[0].tolist()])
    torch.testing.assert_close(said, model(ids, keep_state=False).logits[0], atol=2e-5, rtol=1e-4)
    assert cache.length == 20 and cache.bytes_at(model, 10) == 10 * 2 * 2 * 16 * 4
    with pytest.raises(DataError, match="room for 21"):
        cache.fill(21)


def test_what_was_heard_before_a_kill_is_not_heard_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.model("hierarchical-damped")
    data = np.random.default_rng(0).integers(0, 256, 1500, dtype=np.uint8)
    monkeypatch.setattr(cost, "_SAVE_EVERY_BYTES", 600)
    heard: list[float] = []

    def stop(done: float) -> None:
        heard.append(done)
        if done >= 0.9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cost.reach(model, data, [500, 1500], tmp_path, tell=stop)
    again: list[float] = []
    bits = cost.reach(model, data, [500, 1500], tmp_path, tell=again.append)
    assert again[0] > 0.8 and heard[0] < 0.4
    np.testing.assert_allclose(bits, carried_bits(model, data), atol=1e-3)
    stream, whole = Stream(model), Stream(model)
    stream.load(cost.memory_file(tmp_path, 1500))
    whole.feed(data.tobytes())
    np.testing.assert_allclose(stream.prediction(), whole.prediction(), atol=1e-4)
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["1500", "500"]


def test_a_cache_that_is_too_large_is_not_run_but_counted(tmp_path: Path) -> None:
    model, peer = zoo.model("flat"), zoo.model("transformer")
    cost.reach(model, np.zeros(64, np.uint8), [32, 64], tmp_path, keep_bits=False)
    most = recomputing.GrowingCache.bytes_at(peer, 32)
    found = cost.costs({"flat": (model, tmp_path)}, {"cache": peer}, [32, 64], b"ab", rounds=3, most_memory_bytes=most)
    assert [(one.name, one.position_bytes, one.reached) for one in found] == [
        ("flat", 32, "heard"),
        ("flat", 64, "heard"),
        ("cache", 32, "set"),
        ("cache", 64, "not run"),
    ]
    assert found[0].memory_bytes == found[1].memory_bytes == model.state_bytes()
    assert found[3].memory_bytes == 2 * most and found[3].ms_per_byte is None and len(found[0].rounds_ms) == 3
    assert cost.ratio((2.0, 4.0, 9.0), (1.0, 2.0, 3.0)) == 2.0


def test_the_released_form_goes_as_far_as_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 1.0, 5.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(seconds))
    found = cost.recomputing("old", zoo.model("flat"), [100, 300, 2000], np.ones(5, np.uint8), budget_s=10.0)
    # 100 bytes took 1 s, so 250 are foretold 6.25; they took 4, so 300 are foretold 5.8, and 5 are spent.
    reached = [(one.position_bytes, one.reached) for one in found]
    assert reached == [(100, "heard"), (250, "heard"), (300, "not run"), (2000, "not run")]


def test_keys_that_do_not_overlap_are_all_found_and_equal_keys_are_not() -> None:
    assert capacity.recall(torch.eye(16), 32, 0) == 1.0
    assert capacity.recall(torch.ones(16, 16), 32, 0) <= 2 / 16


def test_more_neurons_hold_more_random_pairs() -> None:
    curves = [
        capacity.curve("random", [capacity.sparse_keys(512, neurons, 0.1, 0)], 16, [4, 16, 64, 256, 512], draws=2)
        for neurons in (32, 128, 512)
    ]
    assert curves[0].held < curves[1].held < curves[2].held
    exponent = capacity.slope(curves)
    assert exponent is not None and exponent > 0.3
    with pytest.raises(DataError, match="of fewer than 4 too many are found by guessing"):
        capacity.curve("random", [capacity.sparse_keys(16, 32, 0.1, 0)], 16, [2, 8])


def test_of_few_pairs_as_many_are_asked_for_as_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}

    def counted(keys: torch.Tensor, width: int, seed: int, cues: Any = None) -> float:
        asked[len(keys)] = asked.get(len(keys), 0) + min(len(keys), 512)
        return 1.0

    monkeypatch.setattr(capacity, "recall", counted)
    capacity.curve("random", [capacity.sparse_keys(1024, 32, 0.1, head) for head in range(3)], 16, [4, 64, 1024])
    assert asked == {4: 4 * 3 * 86, 64: 64 * 3 * 6, 1024: 512 * 3 * 4}


def test_pairs_held_lie_between_two_measured_numbers() -> None:
    assert capacity.held({2: 1.0, 8: 0.0}) == pytest.approx(4.0)
    assert capacity.held({2: 0.4}) == 0.0 and capacity.held({2: 0.9, 4: 0.8}) == 4.0


def test_what_lies_at_the_edge_of_what_was_tried_is_not_fitted() -> None:
    def held(neurons: int, pairs: float, width: int = 8) -> capacity.Curve:
        return capacity.Curve("any", neurons, width, {4: 1.0, 64: 0.0}, pairs)

    growing = [held(16, 5.0), held(32, 10.0), held(64, 20.0)]
    assert [one.at_edge for one in (held(8, 0.0), held(8, 4.0), held(128, 64.0), *growing)] == [True] * 3 + [False] * 3
    assert capacity.slope(growing) == pytest.approx(1.0)
    assert capacity.slope([held(8, 0.0), *growing, held(128, 64.0), held(256, 64.0)]) == pytest.approx(1.0)
    assert capacity.slope([*growing[:2], held(64, 64.0)]) is None
    assert capacity.slope([held(16, 5.0, 8), held(16, 20.0, 16), held(16, 80.0, 32)][:2], "width") is None
    wider = [held(16, 5.0, 8), held(16, 10.0, 16), held(16, 20.0, 32)]
    assert capacity.slope(wider, "width") == pytest.approx(1.0) and capacity.slope(wider) is None


def test_memories_are_parts_of_heads_and_heads_together() -> None:
    keys = capacity.own_keys(zoo.model("flat-damped"), np.frombuffer(b"a word and a word", np.uint8), 1)
    assert len(keys) == 3 and len({one.shape for one in keys}) == 1
    sizes = capacity.memories(keys)
    assert {count: [tuple(one.shape) for one in of] for count, of in sizes.items()} == {
        count: [(len(keys[0]), count)] * sets for count, sets in ((2, 3), (4, 3), (8, 3), (16, 3), (32, 1))
    }
    assert torch.equal(sizes[16][2], keys[2]) and torch.equal(sizes[32][0], torch.cat(keys[:2], dim=1))
    assert all((sizes[8][0][:, [column]] == keys[0]).all(0).any() for column in range(8))
    (alone,) = capacity.own_keys(bdh.models.build(zoo.FLAT.__class__(n_layer=1, n_embd=8, n_head=1), seed=0), TEXT, 0)
    assert list(capacity.memories([alone])) == [alone.shape[1] // part for part in (8, 4, 2, 1)]


@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_question_has_its_answer_among_eight_words_most_of_them_told(count: int) -> None:
    context, endings = capacity._trial(count, (0, count))
    name = context.rsplit(b"The secret word of ", 1)[1].removesuffix(b" is")
    assert context.count(b" The secret word of " + name + b" is" + endings[0] + b".") == 1
    assert len(set(endings)) == 8
    assert sum(ending + b"." in context for ending in endings) == min(8, count)


def test_facts_are_counted_by_trials() -> None:
    found = capacity.told_and_asked(zoo.model("flat"), [1, 3], 4)
    assert [(one.facts, one.trials) for one in found] == [(1, 4), (3, 4)]
    assert all(0 <= one.found <= 4 for one in found)


@settings(max_examples=8, deadline=None)
@given(alpha=st.floats(0.2, 1.0), beta=st.floats(0.2, 1.0), floor=st.floats(0.5, 2.0))
def test_a_law_without_noise_is_found_again(alpha: float, beta: float, floor: float) -> None:
    def loss(parameters: int, heard: int) -> float:
        return floor + 1.5 * (1000 / parameters) ** alpha + 0.8 * (100 / heard) ** beta

    sizes, times = (1000, 4000, 16_000, 64_000), (100, 400, 1600, 6400)
    found = law.fit([law.Point(p, b, loss(p, b)) for p in sizes for b in times], draws=2)
    assert found.error < 1e-3
    assert found.at(32_000, 3000) == pytest.approx(loss(32_000, 3000), rel=1e-2)


def test_intervals_of_a_noisy_law_hold_what_was_fitted_and_too_few_points_are_refused() -> None:
    noise = np.random.default_rng(0)
    points = [
        law.Point(p, b, (1 + (1000 / p) ** 0.5 + (100 / b) ** 0.4) * float(np.exp(noise.normal(0, 0.003))))
        for p in (1000, 4000, 16_000, 64_000)
        for b in (100, 400, 1600, 6400)
    ]
    found = law.fit(points, draws=20)
    assert (found.alpha, found.beta) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.4, abs=0.05))
    assert (
        found.low["alpha"] < found.alpha < found.high["alpha"] and found.low["beta"] < found.beta < found.high["beta"]
    )
    with pytest.raises(DataError, match="fix no law"):
        law.fit(points[:4])


def test_intervals_are_wider_where_whole_trainings_lie_above_or_below_the_law() -> None:
    def width(offsets: Any) -> float:
        places = [(p, b) for p in (1000, 4000, 16_000, 64_000) for b in (100, 400, 1600, 6400)]
        points = [
            law.Point(p, b, (1 + (1000 / p) ** 0.5 + (100 / b) ** 0.4) * float(np.exp(offset)))
            for (p, b), offset in zip(places, offsets, strict=True)
        ]
        found = law.fit(points, draws=40)
        return found.high["alpha"] - found.low["alpha"]

    signs = np.array([1, -1, -1, 1])
    assert width(np.repeat(signs, 4) * 0.01) > 2 * width(np.tile(signs, 4) * 0.01)


def test_an_exponent_is_the_slope_of_logarithms() -> None:
    assert law.exponent([(10, 5), (100, 500), (1000, 50_000)]) == pytest.approx(2.0)
    assert law.exponent([(10, 5)]) is None


@pytest.mark.parametrize("name", zoo.ZOO)
def test_no_earlier_logit_of_a_model_moves(name: str) -> None:
    model = zoo.model(name)
    found = causality.moved(lambda ids: model(ids, keep_state=False).logits, 40)
    assert (found.before, found.largest, found.after) == (0, 0.0, True)


def test_a_patch_model_that_sees_its_own_patch_is_caught() -> None:
    leaky = causality.moved(causality.PatchModel(leaky=True).eval(), 64)
    assert leaky.before > 0 and leaky.largest > 0
    assert causality.moved(causality.PatchModel(leaky=False).eval(), 64).before == 0


def test_a_causal_patch_model_scores_the_same_with_the_future_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causality, "_LENGTH", 32)
    data = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8)
    causal, leaky = causality.PatchModel(leaky=False).eval(), causality.PatchModel(leaky=True).eval()
    assert causality.honest_bits(causal, data) == pytest.approx(causality.claimed_bits(causal, data), rel=1e-5)
    assert causality.honest_bits(leaky, data) != pytest.approx(causality.claimed_bits(leaky, data), rel=1e-5)


@pytest.mark.parametrize("name", ["flat-damped", "hierarchical"])
def test_what_is_active_is_counted_layer_by_layer(name: str) -> None:
    model = zoo.model(name)
    data = np.random.default_rng(0).integers(0, 256, 512, dtype=np.uint8)
    found = activity.active(model, data)
    seen: list[torch.Tensor] = []
    with torch.no_grad(), bdh.models.observe.observing(lambda n, a: seen.append(a) if n == "x_sparse" else None):
        model(torch.from_numpy(data.astype(np.int64))[None], model.empty_state(1))
    layers = len(found.x)
    active = [float(torch.cat([(one > 0).float().flatten() for one in seen[i::layers]]).mean()) for i in range(layers)]
    assert list(found.x.values()) == pytest.approx(active, abs=1e-4)
    assert list(found.x) == list(found.y)
    names = ["global 0", "global 1", "local 0", "local 1"] if name == "hierarchical" else ["layer 0", "layer 1"]
    assert list(found.x) == names


def test_of_a_gelu_exact_zeros_are_counted_and_no_hook_stays() -> None:
    model = zoo.fresh("transformer")
    data = np.zeros(512, np.uint8)
    assert set(activity.active(model, data).x.values()) == {1.0}
    with torch.no_grad():
        model.blocks[0].mlp[0].weight.zero_()
    found = activity.active(model, data)
    assert list(found.x.values()) == [0.0, 1.0] and found.y == {} and not model.blocks[0].mlp[1]._forward_hooks
    with pytest.raises(DataError, match="has no x_sparse"):
        activity.active(zoo.model("hebbian"), data)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[[str], str]:
    """Saves a model of the zoo, and says where."""
    return lambda name: str(zoo.fresh(name).save_pretrained(tmp_path / name))


def test_unlimited_context_from_the_command_line(
    checkpoints: Callable[[str], str],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unlimited_context, "_TOLD_COUNTS", (1, 8))
    out = tmp_path / "out"
    asked = ["unlimited-context", checkpoints("flat-damped"), "--beside", checkpoints("hierarchical-damped")]
    asked += ["--positions", "64", "256", "--data", str(text), "--budget", "1", "--rounds", "3", "--haystacks", "100"]
    asked += ["--trials", "1", "--pairs", "64", "--out", str(out)]
    assert main(asked) == 0
    found = json.loads((out / "report.json").read_text())
    values = {check["part"]: check["value"] for check in found["checks"]}
    assert values["the memory of a stream does not grow"] == 1.0
    assert values["a long past does no harm"] is None
    pairs = found["numbers"]["pairs"]
    assert pairs["counts"][0] == 4 and pairs["head"] in [[one["neurons"], one["width"]] for one in pairs["curves"]]
    (row,) = [row for row in found["tables"][-1]["rows"] if row[:2] == [str(number) for number in pairs["head"]]]
    held = [one for one in pairs["curves"] if [one["neurons"], one["width"]] == pairs["head"]]
    assert row[3:] == [unlimited_context._pairs_held(one, pairs) for one in held] and len(held) == 4
    forms = {(one["name"], one["reached"]) for one in found["numbers"]["cost"]}
    assert {("flat-damped", "heard"), ("Transformer, window", "heard"), ("Transformer, cache", "set")} < forms
    assert "python -m lab unlimited-context flat-damped --beside hierarchical-damped" in found["command"]
    assert "part 1 of 10" in capsys.readouterr().err
    assert main(asked) == 0
    assert "pairs: measured before" in capsys.readouterr().err
    assert main([*asked, "--budget", "2"]) == 2
    told = text.read_bytes()
    text.write_bytes(told[::-1])
    assert main(asked) == 2
    assert "holds an experiment with other checkpoints, texts or options" in capsys.readouterr().err
    text.write_bytes(told)
    assert main(["unlimited-context", checkpoints("transformer"), "--data", str(text), "--out", str(out)]) == 2


def test_sparsity_from_the_command_line(
    checkpoints: Callable[[str], str],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activity, "_TEXTS", dict.fromkeys(activity._TEXTS, str(text)))
    out = tmp_path / "out"
    asked = ["sparsity", checkpoints("flat"), "--bytes", "512", "--steps", "20", "--rows", "1", "--chunk", "16"]
    assert main([*asked, "--data", str(text), "--out", str(out), "--quiet"]) == 0
    found = json.loads((out / "report.json").read_text())
    assert [step for step, _, _ in found["numbers"]["training"]] == [0]
    assert set(found["numbers"]["active"]) == {"flat", "untrained", "Transformer, short training"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in found["drawings"])
    assert sparsity._course(Folder(out / "short", writes=False).measures(), "the run") == found["numbers"]["training"]
    assert f"{found['numbers']['training'][0][1]:.1%}" in found["tables"][-1]["rows"][1]
    text.write_bytes(text.read_bytes() + b"and more")
    assert main([*asked, "--data", str(text), "--out", str(out), "--quiet"]) == 2
    assert "holds an experiment with other checkpoints, texts or options" in capsys.readouterr().err
    for refused in ("transformer", "average", "hierarchical-transformer"):
        assert (
            main(["sparsity", checkpoints("flat"), "--beside", checkpoints(refused), "--out", str(tmp_path / "x")]) == 2
        )
        assert "without x_sparse of its own" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_what_was_active_is_said_of_the_step_that_was_looked_at() -> None:
    def noted(step: int, x: float, weight: float = 0.0) -> dict[str, Any]:
        return {"step": step, "active": {"x_sparse": x, "y_sparse": x / 2}, "penalty_weight": weight}

    # Looks are after 0, 20 and 40 steps; what is noted between them tells of the one before.
    measures = [noted(8, 0.5), noted(20, 0.5), noted(30, 0.4), {"step": 35, "active": {}}, noted(60, 0.3)]
    assert sparsity._course(measures, "a run") == [[0, 0.5, 0.25], [20, 0.4, 0.2], [40, 0.3, 0.15]]
    assert sparsity._course([noted(8, 0.5, 0.01), noted(20, 0.4, 0.02)], "a run") == [[7, 0.5, 0.25], [19, 0.4, 0.2]]
    with pytest.raises(DataError, match="holds no run that noted what is active"):
        sparsity._course([{"active": {}}], "the run")


def test_a_checkpoint_that_looks_ahead_proves_nothing_of_how_few_bits_are_needed() -> None:
    tiny = {
        name: {"before": 9, "largest": 1.0, "claimed": [(1, 0.9)], "honest": [(1, 6.0)]} for name in ("leaky", "causal")
    }
    leaky = {"bits_per_byte": 0.2, "before": 99, "after": 5}
    honest = {"bits_per_byte": 1.7, "before": 0, "after": 5}
    assert causality._checks({"honest": honest, "leaky": leaky}, tiny)[-1].value == 1.7
    assert causality._checks({"leaky": leaky}, tiny)[-1].value is None


def test_hierarchy_and_causality_from_the_command_line(
    checkpoints: Callable[[str], str],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(causality, "_LENGTH", 16)
    monkeypatch.setattr(causality, "_SCORED_BYTES", 64)
    flat, other = checkpoints("flat-damped"), checkpoints("hierarchical-damped")
    asked = ["hierarchy", flat, other, "--texts", str(text), "--bytes", "1024", "--positions", "32", "300"]
    assert main([*asked, "--rounds", "3", "--out", str(tmp_path / "h"), "--quiet"]) == 0
    checks = json.loads((tmp_path / "h" / "report.json").read_text())["checks"]
    assert [check["control"] for check in checks] == [False] * 4 + [True] and checks[-1]["value"] == 0
    assert main(["hierarchy", flat, flat, "--texts", str(text), "--out", str(tmp_path / "x")]) == 2
    assert "name a hierarchical one second" in capsys.readouterr().err
    asked = ["causality", flat, other, "--data", str(text), "--bytes", "1024", "--steps", "10"]
    assert main([*asked, "--out", str(tmp_path / "c"), "--quiet"]) == 0
    found = json.loads((tmp_path / "c" / "report.json").read_text())
    assert found["verdict"] == NOT and found["checks"][1]["value"] > 0


@pytest.mark.parametrize("rises", [False, True])
def test_scaling_from_the_command_line(
    rises: bool,
    checkpoints: Callable[[str], str],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths = ["20", "28", "40", "56"]

    def trained(name: str, rate: float, fields: Any, options: Any, tell: Any) -> list[list[float]]:
        size = 1.1 if name.startswith("transformer") else 1.0
        size *= 1 + 10 * rate  # the lower rate is the better one
        if rises and name.startswith("flat-") and fields["n_embd"] > 48:
            size *= 1.3
        return [
            [heard, size * (1 + (8 / fields["n_embd"]) ** 0.5 + (100 / heard) ** 0.4)] for heard in range(100, 900, 100)
        ]

    monkeypatch.setattr(scaling, "_trained", trained)
    monkeypatch.setattr(law, "DRAWS", 3)
    asked = ["scaling", checkpoints("flat"), "--widths", *widths, "--data", str(text), "--budget", "1"]
    asked += ["--lengths", "64", "256", "--rounds", "3", "--quiet"]
    assert main([*asked, "--network", str(tmp_path), "--out", str(tmp_path / "s")]) == 2
    assert "give the folder that python -m lab network CHECKPOINT" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    graph = ["network", checkpoints("flat"), "--places", "head 0", "--random", "1", "--mean-degree", "4", "--quiet"]
    assert main([*graph, "--out", str(tmp_path / "n")]) == 0
    assert main([*asked, "--network", str(tmp_path / "n"), "--out", str(tmp_path / "s")]) == 0
    assert "flat, head 0: degrees" in (tmp_path / "s" / "report.md").read_text()
    found = json.loads((tmp_path / "s" / "report.json").read_text())
    values = {check["part"]: check["value"] for check in found["checks"]}
    notes = {check["part"]: check["note"] for check in found["checks"]}
    points = found["numbers"]["points"]
    assert len({point["parameters"] for point in points["flat"]}) == 4
    for one, other in zip(points["flat"], points["Transformer"], strict=True):
        assert other["parameters"] == pytest.approx(one["parameters"], rel=scaling.EQUAL)
    assert values[scaling.SIZES.part] == pytest.approx(
        max(
            abs(b["parameters"] / a["parameters"] - 1)
            for a, b in zip(points["flat"], points["Transformer"], strict=True)
        )
    )
    rates = {row[0]: row[3] for row in found["tables"][0]["rows"][1:]}
    assert rates == {"flat": "0.002", "Transformer": "0.001"}
    assert values["a stream takes as much memory at any length"] == pytest.approx(0.0, abs=1e-9)
    of_size = [threshold.part for threshold in (scaling.FITS, scaling.ALPHA, scaling.FORETELLS)]
    if rises:
        assert values[scaling.FALLS.part] == 1
        assert [values[part] for part in of_size] == [None] * 3
        assert all("losses at the end do not all fall with size" in notes[part] for part in of_size)
    else:
        assert values[scaling.FALLS.part] == 0 and values[scaling.FITS.part] < 0.01
        assert found["numbers"]["laws"]["flat"]["beta"] == pytest.approx(0.4, abs=0.1)
        assert main([*asked, "--widths", "8", "16", "--out", str(tmp_path / "t")]) == 2
        assert "needs at least four" in capsys.readouterr().err
        assert main([*asked, "--widths", "8", "16", "24", "32", "--out", str(tmp_path / "t")]) == 2
        assert "for the width of 8 that was asked for" in capsys.readouterr().err


@pytest.mark.parametrize("config", [zoo.FLAT, zoo.FLAT.__class__(n_layer=1, n_head=1, mlp_internal_dim_multiplier=32)])
def test_a_width_gives_way_to_the_nearest_that_has_a_transformer_of_equal_size(config: Any) -> None:
    asked = [32, 33, 34, 60]
    found = scaling.equals(config, asked)
    assert len(found) == 4 and list(found) == sorted(found)
    for width, (one, peer) in found.items():
        assert one.n_embd == width and (peer.n_layer, peer.n_head) == (config.n_layer, config.n_head)
        assert parameter_count(peer) == pytest.approx(parameter_count(one), rel=0.02)
        assert (one.n_layer, one.n_head) == (config.n_layer, config.n_head)
    fits = [width for width in range(20, 90) if scaling._equal(config, width)]
    assert min(abs(width - 60) for width in found) == min(abs(width - 60) for width in fits)
    said = scaling._moved({"widths asked": asked, "widths": list(found)})
    assert said == "" if list(found) == asked else said.endswith("that have one, in place of 32, 33, 34, 60")


def test_what_is_kept_was_measured_on_the_shipped_weights() -> None:
    for path in claim.REPORTS.glob("*.json"):
        fields = claim.read(path)
        assert fields["name"] == path.stem and path.stat().st_size < 60_000
        for name, checksum in fields["checkpoints"].items():
            assert bdh.load(f"checkpoints/{name}", device="cpu").checksum() == checksum, (
                f"{path.name} is of old weights"
            )
        for drawing in fields["drawings"]:
            assert (claim.REPORTS / drawing).stat().st_size <= 60_000


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
IN_README = {
    "unlimited context": "unlimited-context",
    "sparse neurons": "sparsity",
    "scaling laws": "scaling",
    "merging": "composability",
    "patches of bytes": "hierarchy",
    "0.24 bits per byte": "causality",
}


def spoken(text: str) -> str:
    """Text without links and names of checkpoints, of which the digits are no figures."""
    return re.sub(r"\]\([^)]*\)|§[\d.]+|x_sparse", "", text).replace("\u202f", " ")


@pytest.mark.parametrize("title", IN_README)
def test_what_the_readme_tells_of_a_claim_stands_in_its_report(title: str) -> None:
    fields = claim.read(claim.REPORTS / f"{IN_README[title]}.json")
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {title} |")]
    _, _, _, measured, verdict, _ = (cell.strip() for cell in row.split("|"))
    assert verdict == fields["verdict"]
    assert fields["command"].split(" --texts")[0].split(" --methods")[0] in README.replace(" \\\n    ", " ")
    # No checksums and no machine: their digits are no figures.
    told = json.dumps([fields[key] for key in ("checks", "tables", "notes", "settings")])
    known = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", told)]
    for number, unit in re.findall(r"(\d[\d,]*(?:\.\d+)?)( %| k\b)?", spoken(measured)):
        value = float(number.replace(",", ""))
        half = 0.5001 * 10 ** -len(number.partition(".")[2])
        scale = {" %": 100.0, " k": 0.001}.get(unit, 1.0)
        found = any(abs(value - one) <= half or abs(value - scale * one) <= half for one in known)
        assert found, f"{number}{unit} is in no report"


def test_a_claim_without_a_report_is_said_to_be_not_run(tmp_path: Path) -> None:
    assert view.known_reports(tmp_path) == {}
    assert view.overview({}).count("not run on the shipped checkpoints") == len(view.CLAIMS)
    assert "python -m lab hierarchy base fledgling" in view.told("hierarchy", {})
    assert view.pictures("hierarchy", {}) == ""
    with pytest.raises(DataError, match="there is no claim"):
        view.told("none", {})


def test_a_report_is_shown_with_its_verdict_and_its_data(tmp_path: Path) -> None:
    claim.write(made(said="<i>it</i>"), tmp_path)
    (tmp_path / "one.png").write_bytes(b"png")
    claim.keep(tmp_path, tmp_path / "kept")
    reports = view.known_reports(tmp_path / "kept")
    table = view.overview(reports)
    assert '<span class="claim-verdict partly">partly supported</span>' in table
    assert "&lt;i&gt;it&lt;/i&gt;" in table and "it is small: 1.200, partly supported" in table
    assert 'download="sparsity-1.png"' in view.pictures("sparsity", reports)
    assert "python -m lab sparsity base" in view.told("sparsity", reports)
    (tmp_path / "kept" / "sparsity-1.png").unlink()
    assert view.known_reports(tmp_path / "kept") == {}


class Shipped:
    """A registry of one shipped model and one that a visitor brought."""

    def source(self, model: str, owner: str) -> str:
        if model == "mine":
            raise DataError("there is no such model")
        return "shipped"

    def config(self, model: str, owner: str) -> Any:
        return argparse.Namespace(kind="transformer" if model == "peer" else "flat")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("base", "python -m lab scaling base"),
        ("peer", "is a transformer model"),
        ("mine", "Choose a shipped model"),
        (None, "Choose a shipped model"),
    ],
)
def test_the_command_is_for_the_chosen_model_where_it_fits(model: str | None, says: str) -> None:
    assert says in view.repeat("scaling", model, Shipped())  # type: ignore[arg-type]
