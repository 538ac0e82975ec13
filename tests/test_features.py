"""Features: what autoencoders, baselines and measures do, and an experiment too small to find anything out."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from bdh import probe
from bdh.errors import ConfigError, DataError
from lab.__main__ import main
from lab.features import autoencoders, experiment, findings, made, measures, recording, synthetic, training
from lab.features.autoencoders import Compositional, Schedule, Shape, Standard, build_autoencoder, schedule
from lab.features.baselines import NMF, PCA, Nonnegative, Principal, fitted
from lab.features.measures import codes_of
from lab.features.training import Training, trained

SHAPE = Shape(6, features=12, composed=8, heads=2, k=4)
TEXT = np.frombuffer(b"In the beginning was the Word, and the Word was with God. " * 40, np.uint8)


def samples(count: int = 64, width: int = 6, seed: int = 0) -> Any:
    made_up = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return (made_up - made_up.mean(0)) / np.sqrt((made_up**2).mean())


def asked(tmp_path: Path, **changes: Any) -> experiment.Experiment:
    model = zoo.fresh("flat-damped").save_pretrained(tmp_path / "tiny")
    (tmp_path / "word.txt").write_bytes(TEXT.tobytes())
    told = {
        "checkpoint": str(model),
        "text": str(tmp_path / "word.txt"),
        "bytes": 300,
        "measured_bytes": 200,
        "put_back_bytes": 64,
        "features": 12,
        "composed": 8,
        "heads": 2,
        "k": 4,
        "training": Training(3, 16),
        "task_steps": 2,
        "most_active": 5,
    }
    return experiment.Experiment(**told | changes)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of few samples."""
    monkeypatch.setattr(experiment, "_TASK_SAMPLES", 150)
    monkeypatch.setattr(experiment, "_TASK_LEARNED", 100)


# Autoencoders


@pytest.mark.parametrize("name", ["standard", "compositional", *autoencoders.ABLATIONS])
@given(seed=st.integers(0, 2**16), k=st.integers(1, 8))
@settings(max_examples=8, deadline=None)
def test_a_code_is_of_its_own_sample_alone_and_has_k_features_at_most(name: str, seed: int, k: int) -> None:
    coder = build_autoencoder(name, SHAPE, seed)
    x = torch.from_numpy(samples(9, seed=seed))
    now = Schedule(k, 2)
    code = coder.encode(x, now)
    assert code.min() >= 0 and (code > 0).sum(1).max() <= k
    alone = torch.cat([coder.encode(row[None], now) for row in x])
    zoo.assert_close(code, alone)


@pytest.mark.parametrize("combined", [1, 2, 3, 4])
def test_a_feature_attends_to_so_many_features_of_its_sample(combined: int) -> None:
    coder = Compositional(SHAPE)
    values, which = coder.parts(torch.from_numpy(samples())).topk(SHAPE.k, dim=-1)
    weights = coder._weights(values, which, combined)
    active = values > 0
    assert torch.allclose(weights.sum(-1), torch.ones(()))
    attended = ((weights > 0) & active[:, None, None, :]).sum(-1).transpose(1, 2)
    expected = active.sum(1).clamp(max=combined)[:, None, None].expand_as(attended)
    assert torch.equal(attended[active], expected[active])


def test_attention_is_the_ordinary_one_over_tokens_of_one_sample() -> None:
    coder = Compositional(SHAPE, seed=3)
    x = torch.from_numpy(samples(1))
    features = coder.parts(x)[0]
    on = features.nonzero().flatten()
    tokens = features[on, None] * coder.tokens[on]
    query, key, value = (tokens @ weight for weight in (coder.query, coder.key, coder.value))
    heads = []
    for head in range(SHAPE.heads):
        part = slice(4 * head, 4 * head + 4)
        scores = query[:, part] @ key[:, part].T / 2.0
        heads.append((scores.softmax(-1) @ value[:, part]).sum(0))
    values, which = coder.parts(x).topk(SHAPE.k, dim=-1)
    zoo.assert_close(coder._composed(values, which, SHAPE.k)[0], torch.cat(heads))


def test_more_features_may_be_extracted_than_the_code_keeps() -> None:
    coder = Compositional(dataclasses.replace(SHAPE, k=2, extracted=5))
    x = torch.from_numpy(samples())
    assert (coder.parts(x) > 0).sum(1).max() == 5 and (coder.encode(x) > 0).sum(1).max() == 2
    values, which = coder.parts(x).topk(5, dim=-1)
    assert coder._weights(values, which, 4).shape == (64, 2, 5, 5)
    assert coder.attention(x, torch.arange(12)).shape == (2, 12, 12)


def test_sparsity_is_graduated_and_the_curriculum_goes_from_two_to_four() -> None:
    shape = Shape(64, features=256, composed=128, heads=8, k=32)
    at = [schedule(shape, step, 100) for step in range(100)]
    assert [one.k for one in at[::25]] == [128, 80, 32, 32]
    assert all(first.k >= second.k for first, second in itertools.pairwise(at))
    assert [at[step].combined for step in (0, 33, 34, 66, 67, 99)] == [2, 2, 3, 3, 4, 4]
    assert {schedule(shape, step, 100, curriculum=False).combined for step in range(100)} == {4}


def test_each_ablation_lacks_its_part_and_nothing_else() -> None:
    x = torch.from_numpy(samples())
    whole = Compositional(SHAPE)
    features = whole.parts(x)
    values, which = features.topk(SHAPE.k, dim=-1)
    alone = build_autoencoder(autoencoders.NO_ATTENTION, SHAPE)
    assert isinstance(alone, Compositional)
    zoo.assert_close(alone._composed(values, which, 4), features @ (alone.tokens @ alone.value))
    open_gate = build_autoencoder(autoencoders.NO_GATE, SHAPE)
    with torch.no_grad():
        whole.gate_threshold.fill_(100.0)
    zoo.assert_close(whole.encode(x), open_gate.encode(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 9}, "k is 9; it must be at most the number of features, 12, and of composed ones, 8"),
        ({"heads": 3}, "8 composed features cannot be shared among 3 heads alike"),
        ({"features": 0}, "must all be at least 1"),
        ({"extracted": 3}, "3 features are to be extracted from a sample; allowed are 4, the k, to 12, all features"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SHAPE, **changes)


# Training


@pytest.mark.parametrize("name", ["standard", "compositional"])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SAVE_S", -1.0)
    how = Training(8, 16)
    whole = trained(name, SHAPE, samples(), how, tmp_path / "whole.safetensors")

    def kill(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    again = tmp_path / "again.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(name, SHAPE, samples(), how, again, kill)
    steps: list[int] = []
    resumed = trained(name, SHAPE, samples(), how, again, lambda step, loss: steps.append(step))
    assert steps == [6, 7, 8]
    for key, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[key]), key
    trained(name, SHAPE, samples(), how, again, lambda step, loss: steps.append(step))
    assert len(steps) == 3
    assert torch.allclose(resumed.state_dict()["decoder"].norm(dim=1), torch.ones(()))


def test_training_explains_more(tmp_path: Path) -> None:
    data = samples(200)
    explained = []
    for steps in (1, 60):
        coder = trained("standard", SHAPE, data, Training(steps, 32, 1e-2), tmp_path / f"{steps}.safetensors")
        explained.append(measures.explained_variance(coder, data, codes_of(coder, data)[0]))
    assert explained[1] > explained[0] + 0.1


# Baselines


def test_all_principal_components_give_the_sample_back(tmp_path: Path) -> None:
    data = samples()
    coder = fitted(PCA, 6, data, 0, tmp_path / "pca.safetensors")
    code = coder.encode(torch.from_numpy(data))
    assert (code > 0).sum(1).max() == 6
    zoo.assert_close(coder.decode(code), torch.from_numpy(data), scale=10)
    two = Principal(fitted(PCA, 2, data, 0, tmp_path / "two.safetensors").state_dict()["components"])
    values = np.linalg.svd(data, compute_uv=False) ** 2
    explained = measures.explained_variance(two, data, two.encode(torch.from_numpy(data)))
    assert explained == pytest.approx(values[:2].sum() / values.sum(), abs=1e-4)


def test_a_factorisation_finds_what_was_made_of_its_components(tmp_path: Path) -> None:
    components = torch.eye(4, 12)
    x = torch.tensor([[0.5, 0.0, 2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 3.0, 0.0, 0.0]])
    coder = Nonnegative(components)
    zoo.assert_close(coder.encode(x), x[:, :4], scale=100)
    zoo.assert_close(coder.decode(coder.encode(x)), x, scale=100)
    found = fitted(NMF, 3, samples(), 0, tmp_path / "nmf.safetensors").state_dict()["components"]
    assert found.shape == (3, 12) and found.min() >= 0


def test_without_scikit_learn_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["features", "english", "--out", str(tmp_path / "out")]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err and not (tmp_path / "out").exists()


# Samples with known features


@pytest.mark.parametrize("name", sorted(synthetic.TASKS))
def test_only_parts_have_directions_and_what_combines_them_none(name: str) -> None:
    task = synthetic.make_task(name, 3000, 1)
    part = np.array(task.counts) == 1
    ones = np.ones((len(task.known), 1))

    def left(facts: Any) -> Any:
        """The samples less all that is the sum of a direction for each fact."""
        columns = np.column_stack([facts, ones]).astype(np.float64)
        return task.samples - columns @ np.linalg.lstsq(columns, task.samples, rcond=None)[0]

    rest = left(task.known[:, part])
    explained = 1 - np.square(rest).mean() / np.square(task.samples).mean()
    assert explained > 0.9
    # A direction for each combination besides explains no more than as many columns of chance would.
    more = 1 - np.square(left(task.known)).mean() / np.square(rest).mean()
    assert more < 1.5 * (~part).sum() / len(task.known)
    assert set(task.counts) == {1, 2, 3, 4} and len(task.counts) < Shape(1).composed
    assert task.known.any(0).all() and not task.known.all(0).any()
    assert len(set(map(bytes, task.known.T))) == len(task.names) == len(set(task.names))
    held = task.known[:, part].sum(1)
    assert held.mean() > synthetic.K and held.max() <= synthetic.EXTRACTED
    again = synthetic.make_task(name, 3000, 1)
    assert np.array_equal(task.samples, again.samples)


def known_of(name: str) -> dict[str, Any]:
    task = synthetic.make_task(name, 2000, 0)
    return dict(zip(task.names, task.known.T, strict=True))


def test_what_is_known_of_two_digits_is_true() -> None:
    known = known_of("arithmetic")
    a, b = (np.stack([known[f"{which} is {digit}"] for digit in range(4)]).argmax(0) for which in "ab")
    carried = known["carried"].astype(int)
    result = np.where(known["minus"], a - b - carried, a + b + carried)
    assert np.array_equal(known["a is 2, b is 3"], (a == 2) & (b == 3))
    assert np.array_equal(known["3 - 3"], (a == 3) & (b == 3) & known["minus"])
    assert np.array_equal(known["ends in 3"], result % 4 == 3)
    assert np.array_equal(known["beyond"], result != result % 4)


def test_what_is_known_of_variables_and_words_is_true() -> None:
    known = known_of("logic")
    assert np.array_equal(known["x7 xor x0"], known["x7"] ^ known["x0"])
    assert np.array_equal(known["x4 to x7"], known["x4 and x5"] & known["x6 and x7"])
    assert np.array_equal(known["x3 to x5"], known["x3"] & known["x4"] & known["x5"])
    known = known_of("grammar")
    assert np.array_equal(
        sum(known[name].astype(int) for name in ("determiner", "adjective", "noun", "verb")), [1] * 2000
    )
    assert not (known["verb"] & known["object"]).any()
    whole = known["noun"] & known["word 2"] & known["plural"] & known["object"]
    assert np.array_equal(known["plural noun 2 in the object"], whole) and whole.any()


def test_parts_alone_stand_for_what_they_make_up_only_in_part() -> None:
    known = np.array([[1, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]] * 5, bool)
    found = measures.parts_alone(known, known, ("a", "b", "a and b", "a xor b"), (1, 1, 2, 2))
    assert (found.simple_f1, found.by_count["1"]) == (1, 1)
    assert found.each["a and b"] == pytest.approx(2 / 3) and found.each["a xor b"] == pytest.approx(0.5)
    assert found.combined_f1 == found.by_count["2"] == pytest.approx(7 / 12)
    perfect = measures.recovery(torch.from_numpy(known).float(), known, torch.from_numpy(known).float(), known,
                                ("a", "b", "a and b", "a xor b"), (1, 1, 2, 2))  # fmt: skip
    assert perfect.combined_f1 == perfect.simple_f1 == 1


# Measures


def test_purity_is_the_part_of_the_commonest_label() -> None:
    assert measures.purity(np.array([[1, 1, 1, 2], [1, 2, 3, 4], [7, 7, 7, 7]])).tolist() == [0.75, 0.25, 1.0]


def test_known_features_are_recovered_from_a_code_that_has_them_and_not_from_noise() -> None:
    rng = np.random.default_rng(0)
    known, held = rng.random((2, 400, 3)) < 0.3
    names, counts = ("a", "b", "c"), (1, 1, 2)
    order = [2, 0, 1]
    codes = [torch.from_numpy((facts * 2.0)[:, order].astype(np.float32)) for facts in (known, held)]
    found = measures.recovery(codes[0], known, codes[1], held, names, counts)
    assert (found.f1, found.simple_f1, found.combined_f1) == (1, 1, 1) and found.correlation == pytest.approx(1)
    noise = [torch.from_numpy(rng.random((400, 3)).astype(np.float32)) for _ in range(2)]
    assert measures.recovery(noise[0], known, noise[1], held, names, counts).f1 < 0.6
    fewer = measures.recovery(codes[0][:, :1], known, codes[1][:, :1], held, names, counts)
    assert sorted(fewer.each.values()) == [0, 0, 1]


def test_a_part_is_used_by_the_features_whose_strongest_places_it_is_active_in() -> None:
    code, parts = torch.zeros(200, 2), torch.zeros(200, 3)
    code[:20, 0] = code[20:40, 1] = 1.0
    parts[:40, 0] = 1.0  # in both
    parts[:20, 1] = 1.0  # in the first alone
    assert measures.reuse(code, parts).tolist() == [2, 1, -1]
    together = code.clone()
    together[:, 1] = together[:, 0]
    assert measures.reuse(together, together).tolist() == [1, 1]


def test_intervals_hold_the_mean_and_differences_the_sign() -> None:
    high, low = np.linspace(0.6, 0.8, 40), np.linspace(0.2, 0.4, 40)
    one, gap = measures.interval(high), measures.difference(high, low)
    assert one.low < one.mean < one.high and one.mean == pytest.approx(0.7)
    assert 0.35 < gap.low < gap.mean < gap.high < 0.45


def test_the_strongest_places_are_the_same_however_a_text_is_cut() -> None:
    strengths = torch.rand(70, 5, generator=torch.Generator().manual_seed(0))
    strengths[:, 4] = 0.0
    whole = recording.Strongest.of(5)
    whole.take(strengths, torch.arange(70))
    cut = recording.Strongest.of(5)
    for start in range(0, 70, 9):
        cut.take(strengths[start : start + 9], torch.arange(start, min(70, start + 9)))
    assert torch.equal(whole.values, cut.values) and torch.equal(whole.places[:4], cut.places[:4])
    assert whole.places[0, 0] == strengths[:, 0].argmax()
    assert cut.live().tolist() == [0, 1, 2, 3]
    assert cut.most_active(2).tolist() == strengths.sum(0).argsort(descending=True)[:2].tolist()


# In a model


@pytest.mark.parametrize(("point", "head"), [("layer.0.residual", None), ("layer.1.x_sparse", 1)])
def test_what_gives_samples_back_changes_no_bit_and_the_mean_does(point: str, head: int | None, tmp_path: Path) -> None:
    model = zoo.model("flat-damped")
    place = recording.find_place(model, point, head)
    learned, scale = recording.hear_samples(model, TEXT[:200], place, tmp_path)
    recorded = probe.record(model, TEXT[:200].tobytes(), point, heads=head).values[point]
    zoo.assert_close(scale.values(torch.from_numpy(np.array(learned))), recorded, scale=10)
    assert np.square(learned).mean() == pytest.approx(1, abs=1e-4)
    coder = Principal(torch.eye(place.width))
    before = recording.bits_with(model, TEXT[:160], [])
    assert recording.bits_with(model, TEXT[:160], [recording.put_back(place, scale, coder)]) == pytest.approx(
        before, abs=1e-4
    )
    nothing = recording.put_back(place, scale, None)
    assert abs(recording.bits_with(model, TEXT[:160], [nothing]) - before) > 1e-3


def test_own_neurons_are_those_that_read_the_vector_or_those_learned_themselves() -> None:
    flat = zoo.model("flat")
    names = [point.name for point in recording.own_neurons(flat, recording.find_place(flat, "", None))]
    assert names == ["layer.1.x_sparse", "layer.0.gate"]
    place = recording.find_place(flat, "layer.1.gate", 0)
    assert recording.own_neurons(flat, place) == (place.point,) and recording._count(place.point, place) == 32
    last = recording.find_place(flat, "layer.1.residual", None)
    assert [point.name for point in recording.own_neurons(flat, last)] == ["layer.1.gate"]
    transformer = zoo.model("transformer")
    mlp = recording.own_neurons(transformer, recording.find_place(transformer, "", None))
    assert [point.name for point in mlp] == ["layer.0.mlp"]


@pytest.mark.parametrize("name", ["hierarchical", "transformer", "average"])
def test_every_kind_of_model_can_be_looked_into(
    name: str, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "draw_report", lambda found, folder: [])
    model = zoo.fresh(name).save_pretrained(tmp_path / "other")
    found = experiment.experiment(
        dataclasses.replace(asked(tmp_path), checkpoint=str(model)), tmp_path / "out", say=lambda line: None
    )
    assert set(found.codes) == set(experiment.METHODS) and found.headline in found.sets
    same = findings.read_report(tmp_path / "out" / findings.RESULT) == found
    assert same  # to say how two reports differ would take minutes


def test_an_experiment_that_was_killed_goes_on_to_the_same_report(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = asked(tmp_path, point="layer.1.x_sparse", head=1)
    whole = experiment.experiment(wish, tmp_path / "whole", say=lambda line: None)
    drawings = [tmp_path / "whole" / name for name in (findings.BARS, findings.REUSE, findings.RECOVERED)]
    assert all(drawing.read_bytes().startswith(b"\x89PNG") for drawing in drawings)
    monkeypatch.setattr(findings, "draw_report", lambda found, folder: [])

    def kill(line: str) -> None:
        if line == "logic, PCA: fitting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.experiment(wish, tmp_path / "again", say=kill)
    trained_at = {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "trained").glob("text/*")}
    lines: list[str] = []
    same = experiment.experiment(wish, tmp_path / "again", say=lines.append) == whole
    assert same
    assert trained_at == {path: path.stat().st_mtime_ns for path in trained_at} and len(trained_at) == 7
    assert "text, compositional: done before" in lines and "compositional put back: done before" in lines
    with pytest.raises(ConfigError, match="holds an experiment with other checkpoints, texts or options"):
        experiment.experiment(dataclasses.replace(wish, k=3), tmp_path / "again")
    # What an older version trained on other samples is not taken for this one's.
    monkeypatch.setattr(synthetic, "_NOISE", 0.06)
    with pytest.raises(ConfigError, match="holds an experiment with other checkpoints, texts or options"):
        experiment.experiment(wish, tmp_path / "again")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--point", "layer.9.residual"], "has no point 'layer.9.residual'"),
        (["--point", "layer.0.x_sparse"], "layer.0.x_sparse has 3 heads; choose one with --head, from 0 to 2"),
        (["--point", "layer.0.residual", "--head", "0"], "layer.0.residual has no heads; leave --head out"),
        (["--point", "layer.0.*"], "stands for 7 points"),
        (["--point", "layer.0.value"], "is neither a residual nor neurons"),
        (["--bytes", "5"], "must be at least 64"),
        (["--put-back-bytes", "20000"], "are more than the 200 measured"),
        (["--steps", "0"], "steps and batch must be at least 1"),
        (["--learning-rate", "2"], "the learning rate is 2.0"),
        (["--measured-bytes", "100000000"], "take a longer text"),
        (["--bytes", "3000"], "has 2,119 of 3,000 bytes to learn from"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_before_anything_is_heard(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = asked(tmp_path)
    data = tmp_path / "word.txt"
    out = tmp_path / "out"
    given_to = ["features", wish.checkpoint, "--data", str(data), "--out", str(out)]
    given_to += ["--bytes", "300", "--measured-bytes", "200", "--put-back-bytes", "64"]
    assert main([*given_to, *more]) == 2
    assert message in capsys.readouterr().err and not (out / "heard").exists()


def test_activations_beyond_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_SAMPLES_BYTES", 1000)
    with pytest.raises(ConfigError, match="at most 1,000 are kept"):
        experiment.experiment(asked(tmp_path), tmp_path / "out")


# Reports


def test_verdicts_follow_the_thresholds() -> None:
    found = made.opened(next(iter(made.made(None).values())))
    code = found.codes["compositional"]

    def judged(**codes: float) -> dict[str, str]:
        changed = {
            name: dataclasses.replace(code, bits_per_byte=found.before + codes.get(name.replace(" ", "_"), 0.5))
            for name in found.codes
        }
        return {one.question: one.verdict for one in findings.verdicts(dataclasses.replace(found, codes=changed))}

    even = judged()
    assert even["Does the compositional autoencoder need its gate?"] == "no difference seen"
    needed = judged(no_gate=0.53, no_attention=0.47)
    assert needed["Does the compositional autoencoder need its gate?"] == "yes"
    assert needed["Does the compositional autoencoder need its attention?"] == "harmful"

    def neurons(low: float, high: float) -> str:
        gaps = {name: measures.Interval((low + high) / 2, low, high) for name in ("standard", "compositional")}
        return next(findings.verdicts(dataclasses.replace(found, against={"most active": gaps}))).verdict

    assert (neurons(0.1, 0.2), neurons(-0.1, 0.1), neurons(-0.2, -0.1)) == ("yes", "not decided", "no")


@pytest.mark.parametrize(("gain", "verdict"), [(0.06, "yes"), (0.0, "partly"), (-0.06, "no")])
def test_composing_is_worth_it_where_it_is_cheaper_and_finds_what_is_combined(gain: float, verdict: str) -> None:
    found = made.opened(made.SHIPPED / "english.json")
    costs = {"standard": 0.5, "compositional": 0.4}
    codes = {
        name: dataclasses.replace(code, bits_per_byte=found.before + costs.get(name, 0.5))
        for name, code in found.codes.items()
    }
    tasks = {
        task: of | {"compositional": of["standard"] | {"combined_f1": of["standard"]["combined_f1"] + gain}}
        for task, of in found.tasks.items()
    }
    judged = findings.verdicts(dataclasses.replace(found, codes=codes, tasks=tasks))
    (one,) = [one for one in judged if "composing worth it" in one.question]
    assert one.verdict == verdict and one.measured.startswith(f"-20.0% bits, {gain:+.3f} F1")


def test_shipped_reports_are_small_and_can_be_read() -> None:
    shipped = made.made(None)
    assert "shipped/english" in shipped
    for name, path in shipped.items():
        assert path.stat().st_size < 300_000
        found = made.opened(path)
        assert f"shipped/{found.checkpoint}" == name and found.sets[found.headline].features


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
IN_README = {
    "standard": "standard autoencoder",
    "compositional": "compositional",
    "no attention": "… no attention",
    "no gate": "… no gate",
    "no curriculum": "… no curriculum",
    PCA: "PCA, 32 directions",
    NMF: "NMF",
    findings.PARTS_ALONE: "parts alone",
}


def test_the_table_in_the_readme_is_that_of_the_shipped_report_made_by_the_command_beside_it() -> None:
    found = made.opened(made.SHIPPED / "english.json")
    asked = dataclasses.asdict(experiment.Experiment(checkpoint="english", text="english"))
    extra = {"task_k": synthetic.K, "task_extracted": synthetic.EXTRACTED}
    assert found.settings == asked | extra and "\npython -m lab features english\n" in README
    assert f"| the model as it is | | 1 | {found.before:.3f} | | | |" in README

    def mean(name: str, which: str) -> float:
        return float(np.mean([task[name][which] for task in found.tasks.values()]))

    for name, called in IN_README.items():
        f1 = f"{mean(name, 'simple_f1'):.2f} / {mean(name, 'combined_f1'):.2f}"
        if name == findings.PARTS_ALONE:
            assert f"| {called} | | | | | | {f1} |" in README
            continue
        code, purity = found.codes[name], found.sets[name].purity["byte"]
        assert purity is not None
        cells = f"{code.width:,} | {code.explained_variance:.3f} | {code.bits_per_byte:.3f}"
        assert f"| {called} | {cells} | {of_most(purity)} | {purity.live.mean:.3f} | {f1} |" in README, called
    for name, called in (
        ("layer.2.x_sparse", "own neurons that read it"),
        ("layer.1.gate", "own neurons that wrote it"),
    ):
        own = found.sets[name].purity["byte"]
        assert own is not None
        cells = f"{found.sets[name].count:,} | | | {of_most(own)} | {own.live.mean:.3f} | |"
        assert f"| {called}, `{name}` | {cells}" in README, called


def of_most(purity: findings.Purity) -> str:
    most = purity.most
    return f"{most.mean:.3f} ({most.low:.3f} to {most.high:.3f})"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"codes": 3}', '{"sets": {"a": {}}, "codes": {}}'])
def test_what_is_no_report_is_refused_in_words(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match="is no report of features that this version reads"):
        findings.read_report(tmp_path / "report.json")


def test_reports_of_this_machine_come_first_and_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text("{}")
    assert next(iter(made.made(tmp_path))) == "runs/mine"
    assert all(name.startswith("shipped/") for name in made.made(None))


def test_standard_features_are_their_own_parts() -> None:
    code, parts = codes_of(Standard(SHAPE), samples())
    assert parts is code
    code, parts = codes_of(Compositional(SHAPE), samples())
    assert (code.shape[1], parts.shape[1]) == (8, 12)
    json.dumps(measures.reuse(code, parts).tolist())
