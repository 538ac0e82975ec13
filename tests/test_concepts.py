"""Concepts: planted ones are found and hold, sentences are measured as if alone, silence is what it says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from bdh import probe
from bdh.errors import DataError
from bdh.models import Model, build
from bdh.sampling import Sampling
from bdh.stream import Stream
from lab import concepts, silencing
from lab.__main__ import main
from lab.concept_experiment import _found, fields, verdict_line
from lab.concepts import Columns, Neuron, search, search_synapses
from lab.sentences import LEAST, PRESETS, Sentences, parse, preset
from lab.silencing import Cost, Silenced
from ui.inspect import concept
from ui.inspect.concept import Asked, Concept, Finder, Hushed, head, table, texts_markup
from ui.limits import Limits
from ui.registry import Registry

WORDS = "river stone lamp house wind bread horse garden winter letter"


def sentences(count: int = 16) -> Sentences:
    """The concept's have an X in them; nothing else tells them apart."""
    words = WORDS.split()
    lines = [f"{words[i % 10]} and {words[(3 * i + 1) % 10]}{i}" for i in range(2 * count)]
    return parse(
        "planted", "\n".join(f"{line} X" for line in lines[:count]), "\n".join(f"{one} v" for one in lines[count:])
    )


def columns(model: Model[Any]) -> Columns:
    return Columns([one for one in probe.points(model) if one.kind in ("x_sparse", "y_sparse", "mlp")])


SUMMED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda rows: rows.mean(-2),
    "max": lambda rows: rows.amax(-2),
    "last": lambda rows: rows[..., -1, :],
}


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("flat-damped", "mean"),
        ("flat-damped", "max"),
        ("flat-damped", "last"),
        ("hierarchical", "mean"),
        ("hierarchical-damped", "max"),
        ("hierarchical-damped", "last"),
        ("average", "mean"),
        ("deep", "last"),
        ("hierarchical-transformer", "max"),
        ("transformer", "mean"),
        ("hebbian-damped", "max"),
    ],
)
def test_sentences_heard_side_by_side_are_measured_as_if_each_were_heard_alone(name: str, summary: str) -> None:
    model = zoo.model(name)
    heard = [b"a short one", b"and another, which is longer", bytes(range(40, 180)), b"x" * 600]
    measured = concepts.activities(model, heard, columns(model), summary)
    for row, sentence in enumerate(heard):
        alone = probe.record(model, sentence, [one.name for one in columns(model).points])
        expected = torch.cat([SUMMED[summary](alone.values[one.name]).flatten() for one in columns(model).points])
        zoo.assert_close(torch.from_numpy(measured[row]), expected, scale=10)


def test_columns_and_neurons_name_each_other() -> None:
    known = columns(zoo.model("flat"))
    assert known.neuron(0) == Neuron("layer.0.x_sparse", 0, 0)
    assert str(known.neuron(len(known) - 1)) == "layer.1.y_sparse 1:31"
    assert all(known.column(known.neuron(column)) == column for column in range(0, len(known), 7))
    headless = columns(zoo.model("transformer"))
    assert headless.neuron(70) == Neuron("layer.1.mlp", None, 6) and str(headless.neuron(70)) == "layer.1.mlp 6"
    assert all(headless.column(headless.neuron(column)) == column for column in range(len(headless)))


def test_a_planted_concept_is_found_holds_and_beats_chance() -> None:
    found = search(zoo.model("flat"), sentences(), summary="last", seed=1, shuffles=50)
    best = found.neurons.best[0]
    assert (best.effect, best.held_auc) == (1, 1) and best.by_chance < 0.1
    assert best.bonferroni == min(1, best.p * found.neurons.tried) < best.held_p * 100
    assert np.median(found.neurons.chance) < 0.95
    first, values = found.sentences.is_concept, np.array(best.values)
    assert values[first].min() > values[~first].max()
    share = found.baselines[1]
    assert share.name in ("share of 'X'", "share of capitals") and share.held_auc == 1
    told = verdict_line(fields(found, None, None))
    assert f"without any model {share.name} does as well (held-out AUC 1.00)" in told


def test_what_the_concept_has_less_of_tells_sentences_apart_without_a_model_too() -> None:
    given = sentences()
    longer = Sentences("longer", given.concept, tuple(b"%s again and again" % one for one in given.contrast))
    length, share = search(zoo.model("flat"), longer, shuffles=19).baselines
    assert (length.name, length.effect, length.held_auc) == ("length in bytes, the less", 1, 1)
    assert share.effect == 1 and share.held_auc == 1


def test_where_there_is_nothing_the_held_out_sentences_say_so() -> None:
    words = sentences().all
    mixed = Sentences("nothing", words[::2], words[1::2])
    found = search(zoo.model("flat"), mixed, shuffles=50)
    assert found.neurons.best[0].effect > 0.4  # some of hundreds of neurons always look as if
    assert found.neurons.best[0].by_chance > 0.05
    assert {one.verdict for one in found.neurons.best} == {"does not hold"}


def test_few_sentences_are_said_to_be_too_few_and_enough_are_not() -> None:
    def given(count: int) -> Sentences:
        return Sentences("many", *(tuple(b"%d %s" % (i, b * 8) for i in range(count)) for b in (b"a", b"b")))

    told: list[str] = []
    found = search(zoo.model("flat"), sentences(12), shuffles=19, tell=lambda part, note: told.append(note))
    few = found.neurons.too_few
    assert few == concepts.too_few(found.neurons.tried, given(12)) and found.neurons.tried == 256
    assert "with 12 and 12 sentences, half of them searched, the smallest possible p is 1.1e-03, and 0.28 after" in few
    assert "at least 17 sentences a set are needed, or at most 9 neurons tried" in few  # 9 of 18 in 48,620 ways
    assert "too few for anything to hold" in told[0]
    assert [bool(concepts.too_few(256, given(count))) for count in (16, 17)] == [True, False]
    assert [bool(concepts.too_few(most, given(12))) for most in (10, 9)] == [True, False]
    synapses = search_synapses(zoo.model("flat"), found, shuffles=19)
    assert synapses is not None and "at least 14 sentences a set are needed" in synapses.too_few
    page = head(Concept(found).fields(), "chat")
    assert "Nothing can hold: with 12 and 12" in page


def test_with_as_many_sentences_as_are_needed_a_planted_concept_holds_and_with_one_less_it_cannot() -> None:
    for count, verdict in ((16, "does not hold"), (17, "holds")):
        best = search(zoo.model("flat"), sentences(count), summary="last", shuffles=19).neurons.best[0]
        assert (best.effect, best.held_auc, best.by_chance, best.verdict) == (1, 1, 0.05, verdict)


def test_neurons_of_some_points_can_be_searched_alone() -> None:
    model = zoo.model("flat")
    found = search(model, sentences(), points=["layer.1.y_sparse"], shuffles=19)
    assert found.neurons.tried == 64 and {one.what[0] for one in found.neurons.best} == {"layer.1.y_sparse"}
    assert search_synapses(model, found, shuffles=19) is None  # they lead from x neurons to y neurons
    assert silencing.silence(model, found, [one.what for one in found.neurons.best[:2]], controls=1).controls  # type: ignore[misc]
    with pytest.raises(DataError, match=r"layer\.0\.residual has no neurons to search"):
        search(model, sentences(), points=["layer.0.residual"])
    for few in (lambda: search(model, sentences(), shuffles=18), lambda: search_synapses(model, found, shuffles=18)):
        with pytest.raises(DataError, match="fewer than 19"):
            few()
    with pytest.raises(DataError, match="a set has 1 sentences; half are held out"):
        search(model, Sentences("one", (b"a sentence",), (b"another one", b"and one more")))


@pytest.mark.parametrize("summary", concepts.SUMMARIES)
def test_a_sentence_that_fills_no_patch_is_refused_in_words(summary: str) -> None:
    config = dataclasses.replace(zoo.HIERARCHICAL, patch_size=16, max_seq_len=64)
    short = Sentences("short", (b"fifteen bytes..", b"more than sixteen"), (b"sixteen bytes...", b"as many as that.."))
    with pytest.raises(
        DataError, match=r"'fifteen bytes\.\.' has 15 bytes and fills no patch: this model hears patches of 16"
    ):
        search(build(config).eval(), short, summary=summary)
    assert np.isfinite(
        concepts.activities(zoo.model("hierarchical"), short.all, columns(zoo.model("hierarchical")), summary)
    ).all()


def test_of_synapses_only_what_is_held_out_is_evidence() -> None:
    neuron, synapse = Neuron("layer.0.x_sparse", 0, 0), concepts.Synapse("layer.0", 0, 1, 2)
    rest = {"effect": 1.0, "p": 1e-9, "q": 0.0, "by_chance": 0.05, "held_effect": 1.0, "held_auc": 1.0, "values": ()}
    finds = [
        concepts.Find(what=what, bonferroni=tried, held_p=held, **rest)  # type: ignore[arg-type]
        for what in (neuron, synapse)
        for tried, held in ((1e-6, 0.5), (0.5, 1e-6))
    ]
    assert [one.verdict for one in finds] == ["holds", "does not hold", "does not hold", "holds"]


@pytest.mark.parametrize("count", [16, 24, 40])
def test_what_is_counted_is_what_verdicts_say(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(concepts, "SHOWN", 256)  # so that every neuron has a verdict
    model = zoo.model("flat")
    found = search(model, sentences(count), summary="last", shuffles=19)
    neurons, synapses = found.neurons, search_synapses(model, found, shuffles=19)
    assert synapses is not None and len(neurons.best) == neurons.tried
    for finds in (neurons, synapses):
        assert finds.sure == sum(one.verdict != "does not hold" or one.sure for one in finds.best)
        assert finds.holding == sum(one.verdict == "holds" for one in finds.best)
        assert bool(finds.holding) == (count > 16)
    told = fields(found, synapses, None)
    (said,) = [line for line in _found("synapses", told["synapses"]) if "tried" in line]
    shown = len(synapses.best)
    assert f"of the {shown} that are held against the other sentences {synapses.holding} hold" in said
    assert f"{synapses.holding} of those shown hold" in table(told["synapses"], "synapses")
    assert f"of the sure {neurons.holding:,} have an AUC of 0.9 or more" in "".join(_found("neurons", told["neurons"]))
    assert f"{neurons.sure:,} are sure" in head(told, "one")
    assert "of those shown hold" not in table(told["neurons"], "neurons")


@pytest.mark.parametrize("name", ["flat-damped", "hierarchical-damped", "average", "mixture", "deep"])
def test_strengths_of_synapses_are_those_of_the_memory_after_the_sentence(name: str) -> None:
    model = zoo.model(name)
    found = search(model, sentences(12), shuffles=19)
    synapses = search_synapses(model, found, shuffles=19)
    assert synapses is not None
    for find in synapses.best[:3]:
        what: Any = find.what
        for row in (0, 20):
            assert what.place.split(".")[-2] != "local"
            state = probe.record(model, found.sentences.all[row], f"{what.place}.residual").state
            strength = probe.synapses(model, state, what.place, what.head, x_neurons=[what.x], y_neurons=[what.y])
            assert find.values[row] == pytest.approx(float(strength), rel=1e-3, abs=1e-5)


def test_models_without_such_synapses_have_none_to_search() -> None:
    found = search(zoo.model("transformer"), sentences(12), shuffles=19)
    assert search_synapses(zoo.model("transformer"), found) is None


@pytest.mark.parametrize("name", zoo.ZOO)
def test_sentences_cost_side_by_side_what_each_costs_alone_in_every_kind(name: str) -> None:
    model = zoo.model(name)
    heard = [b"a short one", b"and another, longer one", b"x" * 100 + b" and beyond the window of all of them"]
    alone = np.concatenate([Stream(model).score(one)[1:] for one in heard])
    assert silencing.bits_per_byte(model, heard) == pytest.approx(alone.mean(), rel=1e-3)


@pytest.mark.parametrize("name", ["transformer", "hebbian", "hierarchical-transformer", "average"])
def test_neurons_without_heads_are_silenced_too(name: str) -> None:
    model = zoo.model(name)
    found = search(model, sentences(), shuffles=19)
    silenced = silencing.silence(model, found, [one.what for one in found.neurons.best[:2]], controls=1)
    assert silenced.found != silenced.whole


def test_silence_costs_what_the_edited_model_loses_and_others_are_as_active() -> None:
    model = zoo.model("flat")
    found = search(model, sentences(), shuffles=19)
    chosen: list[Any] = [one.what for one in found.neurons.best[:3]]
    silenced = silencing.silence(model, found, chosen, controls=4)
    held = [one for one, seen in zip(found.sentences.concept, found.searched, strict=False) if not seen]

    def cost() -> float:
        return float(np.concatenate([Stream(model).score(one)[1:] for one in held]).mean())

    assert silenced.whole.concept == pytest.approx(cost(), rel=1e-4)
    with probe.edited(silencing.silencing(model, chosen), model):
        assert silenced.found.concept == pytest.approx(cost(), rel=1e-4)
    assert silenced.found != silenced.whole
    drawn = silencing.stand_ins(found, chosen, 4, seed=0)
    active = [sum(found.activity[found.columns.column(one)] for one in some) for some in (chosen, *drawn)]
    assert silenced.alike == pytest.approx(np.mean(active[1:]) / active[0], rel=1e-5)
    for others in drawn:
        assert len(set(others)) == 3 and not set(others) & set(chosen)
        assert sorted(one.point for one in others) == sorted(one.point for one in chosen)
    options = Sampling(max_bytes=12, temperature=0, seed=0)
    assert silencing.go_on(model, b"a river", (), options) == bytes(
        one.byte for one in _after(model, b"a river").generate(options)
    )
    assert len(silencing.go_on(model, b"a river", chosen, options)) == 12


def _after(model: Model[Any], data: bytes) -> Stream:
    stream = Stream(model)
    stream.feed(data)
    return stream


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Cost(2.001, 2.0), "no more than others"),
        (Cost(1.999, 2.0), "nothing: the concept costs no more without them"),
        (Cost(2.1, 2.1), "more than others, but not to the concept alone"),
        (Cost(2.1, 2.0), "more than others, and to the concept most"),
    ],
)
def test_verdicts_on_silence_compare_with_every_draw_of_others(found: Cost, verdict: str) -> None:
    controls = (Cost(2.01, 1.99), Cost(1.99, 2.0))
    assert Silenced((), Cost(2.0, 2.0), found, controls, 1.0).verdict == verdict


def test_the_shipped_sentences_are_many_different_and_their_lengths_do_not_give_them_away_upwards() -> None:
    for name in PRESETS:
        found = preset(name)
        assert len(found.concept) == len(found.contrast) >= 50
        lengths = [np.mean([len(one) for one in which]) for which in (found.concept, found.contrast)]
        assert lengths[0] < 1.1 * lengths[1]


@pytest.mark.parametrize(
    ("concept", "contrast", "message"),
    [
        ("one sentence", "\n".join(WORDS.split()), "has 1 different sentences"),
        (
            "\n".join(f"word {i} here" for i in range(LEAST)),
            "\n".join(f"word {i} here" for i in range(5, 30)),
            "both sets",
        ),
        ("\n".join(f"{i}" for i in range(LEAST)), "", "a sentence has 8 to 256"),
        ("\n".join(f"{i}" + "x" * 300 for i in range(LEAST)), "", "301 bytes"),
    ],
)
def test_sentences_that_cannot_be_searched_are_refused_in_words(concept: str, contrast: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse("mine", concept, contrast)


def test_the_command_writes_a_report_and_measures_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.fresh("flat").save_pretrained(tmp_path / "model")
    given = sentences()
    for which in ("concept", "contrast"):
        (tmp_path / f"{which}.txt").write_bytes(b"\n".join(getattr(given, which)))
    arguments = ["concept", str(tmp_path / "model"), "--concept", str(tmp_path / "concept.txt"), "--shuffles", "19"]
    arguments += ["--controls", "2", "--summary", "last", "--sample-bytes", "8", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--concept and --contrast go together" in capsys.readouterr().err
    arguments += ["--contrast", str(tmp_path / "contrast.txt")]
    assert main(arguments) == 0
    capsys.readouterr()
    (kept,) = (tmp_path / "out" / "parts").iterdir()
    measured_ns = kept.stat().st_mtime_ns
    assert main(arguments) == 0
    assert kept.stat().st_mtime_ns == measured_ns and "measured before" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    (found,) = result["concepts"]
    assert found["neurons"]["best"][0]["held_auc"] == 1 and len(found["silenced"]["controls"]) == 2
    report = (tmp_path / "out" / "report.md").read_text()
    assert found["neurons"]["best"][0]["what"]["name"] in report and "share of" in report
    assert (tmp_path / "out" / "strips.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--seed", "5"]) == 2
    assert "holds an experiment with other checkpoints, texts or options" in capsys.readouterr().err
    # Other sentences in a file of the same name are another concept, the same weights otherwise damped another model.
    (tmp_path / "contrast.txt").write_bytes(b"\n".join(one + b"!" for one in given.contrast))
    assert main(arguments) == 0 and len(list(kept.parent.iterdir())) == 2
    damped = build(dataclasses.replace(zoo.FLAT, decay=(0.5, 0.9)), seed=0)
    damped.load_state_dict(zoo.fresh("flat").state_dict())
    damped.save_pretrained(tmp_path / "model")
    assert main(arguments) == 2


def test_the_view_gives_neurons_then_synapses_then_what_silence_does_and_files(tmp_path: Path) -> None:
    zoo.fresh("flat").save_pretrained(tmp_path / "checkpoints" / "alpha")
    finder = Finder(Registry(tmp_path / "checkpoints", tmp_path / "data", Limits(), "cpu"), Limits())
    given = sentences()
    about, other = (b"\n".join(which).decode() for which in (given.concept, given.contrast))
    asked = Asked("alpha", "names", about, other, "last")
    stages = [one for one in finder.find(asked, "browser:me") if isinstance(one, Concept)]
    assert len(stages) == 2 and stages[0].search.sentences.name == "sentences of your own"
    told = [one for one in finder.silence(asked, "browser:me", 2, "river <b>") if isinstance(one, Hushed)]
    assert [len(text) for text in told[0].texts.values()] == [80, 80] and told[0].cost is None
    hushed = told[1]
    assert len(hushed.cost.neurons) == 2 and hushed == told[0]._replace(cost=hushed.cost)
    kept = [one for one in finder.look(asked, "browser:me", "synapses") if not isinstance(one, tuple)]
    assert kept == [stages[-1]]
    (made,) = [one for one in finder.files(asked, "browser:me", 0, "synapses", hushed) if isinstance(one, list)]
    files = [Path(path) for path in made]
    names = ["alpha-concept.json", "alpha-concept.csv", "alpha-concept.png", "alpha-concept-silenced.png"]
    assert [path.name for path in files] == names
    written = json.loads(files[0].read_text())
    assert written["silenced"]["verdict"] == hushed.cost.verdict
    assert written["prompt"] == "river <b>" and list(written["written"]) == ["with all its neurons", "without them"]
    assert written["model"] == "alpha" and "counted from 0" in written["counting"]
    assert files[1].read_text().splitlines()[0].startswith("kind,name,effect") and files[2].stat().st_size > 1_000
    elsewhere = hushed._replace(asked=asked._replace(summary="mean"))
    (plain,) = [one for one in finder.files(asked, "browser:me", 0, "synapses", elsewhere) if isinstance(one, list)]
    bare = json.loads(Path(plain[0]).read_text())
    assert len(plain) == 3 and bare["silenced"] is None and "written" not in bare
    zoo.fresh("flat-damped").save_pretrained(tmp_path / "others" / "alpha")
    finder._registry = Registry(tmp_path / "others", tmp_path / "data", Limits(), "cpu")
    again = list(finder.files(asked, "browser:me", 0, "neurons", hushed))
    assert json.loads(Path(again[-1][0]).read_text())["silenced"] is None  # other weights under the same name
    assert any("not kept any more, so it is searched again" in one[1] for one in again[:-1])
    with pytest.raises(DataError, match="choose 1 to 24"):
        finder.silence(asked, "browser:me", 99, "river")


def test_what_is_too_large_to_be_kept_is_searched_again_with_its_synapses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept, "_MOST_KEPT_NEURONS", 0)
    zoo.fresh("flat").save_pretrained(tmp_path / "checkpoints" / "alpha")
    finder = Finder(Registry(tmp_path / "checkpoints", tmp_path / "data", Limits(), "cpu"), Limits())
    given = sentences()
    about, other = (b"\n".join(which).decode() for which in (given.concept, given.contrast))
    asked = Asked("alpha", "names", about, other, "last")
    *_, shown = finder.find(asked, "browser:me")
    *words, again = finder.look(asked, "browser:me", "synapses")
    assert again.fields()["synapses"] == shown.fields()["synapses"] is not None
    assert any("not kept any more, so it is searched again" in note for _, note in words)
    *_, (made, *_) = finder.files(asked, "browser:me", 0, "neurons")
    assert json.loads(Path(made).read_text())["synapses"] == json.loads(json.dumps(shown.fields()["synapses"]))


def test_more_sentences_than_may_be_heard_are_refused(tmp_path: Path) -> None:
    limits = Limits(max_report_bytes=500)
    finder = Finder(Registry(tmp_path / "checkpoints", tmp_path / "data", limits, "cpu"), limits)
    given = sentences()
    about, other = (b"\n".join(which).decode() for which in (given.concept, given.contrast))
    with pytest.raises(DataError, match="at most 500 are searched here"):
        finder.check(Asked("alpha", "", about, other, "mean"))


def test_what_is_shown_of_a_concept_is_no_markup() -> None:
    written = texts_markup("<b>a river", {"with all its neurons": b"<script>", "without them": b"<script>"})
    assert "<b>" not in written and "<script>" not in written and "Both write the same" in written
    found = search(zoo.model("flat"), sentences(12), shuffles=19)
    told = Concept(found).fields()
    assert "<b>" not in head(told, "<b>model").split(":")[0]
    assert "neurons were tried" in head(told, "one") and table(told["neurons"], "neurons").count("<tr>") == 25
