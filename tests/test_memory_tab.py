"""The views Memory and Baseline without a browser: what they show, what they keep, and what they refuse in words."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from bdh.errors import DataError, HatcheryError
from lab import memory as lab
from train.plots import reach_of
from ui.inspect import compared, field, memory, remembered
from ui.inspect.baseline import UNTRAINED, Comparer
from ui.inspect.baseline import Look as Pair
from ui.inspect.concept import Asked, Finder
from ui.inspect.memory import Look, Memories
from ui.inspect.network import Asked as Graph
from ui.inspect.network import Mapper
from ui.inspect.reading import Heard, Inspector
from ui.inspect.recent import Recent
from ui.inspect.taken import comparison_files, memory_files
from ui.inspect.turns import AT_ONCE, LOOKING, SEARCHING
from ui.limits import Limits
from ui.registry import Registry
from ui.steps import WAITING

TEXT = "a cat, <b>a hat</b>, añb"
LIMITS = Limits(max_prompt_bytes=200)
OWNER = "browser:somebody"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("models")
    for name in ("flat", "hierarchical", "hebbian", "transformer", "mixture"):
        zoo.fresh(name).save_pretrained(folder / "checkpoints" / name)
    return Registry(folder / "checkpoints", folder, LIMITS, "cpu")


def last(steps: Any) -> Any:
    with closing(steps):
        return [step for step in steps if not isinstance(step, tuple)][-1]


@pytest.mark.parametrize(
    ("model", "layer"), [("flat", "layer.1"), ("hierarchical", "global.1"), ("hierarchical", "local.0"),
                         ("hebbian", "layer.0"), ("mixture", "member.1.global.0")],
)  # fmt: skip
def test_every_view_of_a_memory_is_shown_for_every_kind_and_nothing_in_it_is_markup(
    registry: Registry, model: str, layer: str
) -> None:
    trace, wiring = Memories(registry, LIMITS).heard(Look(model, layer, 1, TEXT), OWNER)
    weights = trace.attention(trace.writes - 1).numpy()
    shown = [
        remembered.strip(trace, trace.writes - 1, weights),
        remembered.heat(trace, wiring, trace.writes, remembered.BY_STRENGTH, 0, "16"),
        remembered.exchange(trace, trace.writes - 1, weights),
        remembered.exchange(trace, 0, trace.attention(0).numpy()),
        remembered.synapse_table(trace, wiring, trace.writes),
        remembered.summary(trace, "a <b>model"),
        remembered.beside(lab.now(trace, wiring, 2), lab.now(trace, wiring, trace.writes), ("one", "other")),
    ]
    assert not any("<b>a" in part or "</b>," in part for part in shown[:1])
    assert "<b>a &lt;b&gt;model, " in shown[5]
    assert "&lt;" in shown[0] and "Nothing: nothing that it asks for" in shown[3]
    assert len(remembered.growth_charts(trace)) == 3


def test_a_text_is_heard_once_for_several_looks_and_forgotten_when_there_is_no_room(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_KEPT_BYTES", 1)
    memories, heard = Memories(registry, LIMITS), []
    listen = lab.listen
    monkeypatch.setattr(lab, "listen", lambda *given, **named: heard.append(1) or listen(*given, **named))
    look = Look("flat", "layer.0", 0, TEXT)
    first, _ = memories.heard(look, OWNER)
    assert memories.heard(look, OWNER)[0] is first and len(heard) == 1
    memories.heard(look._replace(head=1), OWNER)
    memories.heard(look, OWNER)
    assert len(heard) == 3


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (Look("flat", "layer.0", 0, "a"), "give 2 to"),
        (Look("flat", "layer.0", 0, "a" * 300), "give 2 to 200"),
        (Look("hierarchical", "global.0", 0, "abc"), "give 8 to"),
        (Look("flat", "layer.9", 0, TEXT), "no layer"),
        (Look("flat", "layer.0", 7, TEXT), "head is 7"),
        (Look("flat", "layer.0", True, TEXT), "head is True"),
        (Look("transformer", "layer.0", 0, TEXT), "no Hebbian memory"),
        (Look("nobody", "layer.0", 0, TEXT), "no model"),
    ],
)
def test_what_cannot_be_looked_into_is_refused_in_words(registry: Registry, look: Look, words: str) -> None:
    with pytest.raises(HatcheryError, match=words):
        Memories(registry, LIMITS).heard(look, OWNER)


def test_a_picture_shows_the_neurons_that_were_asked_for() -> None:
    rows = torch.arange(40.0).view(20, 2)
    assert remembered.ordered(rows, remembered.BY_STRENGTH, 0, "16").tolist() == list(range(19, 3, -1))
    assert remembered.ordered(rows, remembered.BY_NUMBER, 9, "16").tolist() == list(range(4, 20))
    assert remembered.ordered(rows, remembered.BY_NUMBER, 9, remembered.ALL).tolist() == list(range(20))
    assert remembered.ordered(rows, "?", None, "?").tolist() == list(range(20))
    rows[5:] = 0
    assert remembered.ordered(rows, remembered.BY_STRENGTH, 0, remembered.ALL).tolist() == [4, 3, 2, 1, 0]
    values, together = remembered.columns(rows, np.array([3, 1]))
    np.testing.assert_array_equal(values, [[6, 2], [7, 3]])
    assert together == 1
    many, together = remembered.columns(torch.full((1500, 3), -2.0), np.arange(1500))
    assert (many.shape, together) == ((3, 750), 2) and (many == 2).all()


def test_a_text_is_promised_as_many_bytes_as_are_allowed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    memories = Memories(registry, LIMITS)
    place = memories.place("hierarchical", "global.0", OWNER)
    assert memories.allowed(place) == "8 to 200 bytes" and memories.allowed(None) == ""
    monkeypatch.setattr(lab, "MOST_TRACE_BYTES", 4_096)
    most = lab.most_bytes(place)
    assert memories.allowed(place) == f"8 to {most} bytes" and most < 200
    with pytest.raises(DataError, match=f"give 8 to {most}"):
        memories.data("a" * (most + 1), place)


def test_what_is_no_longer_kept_is_heard_again_and_said_so(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    memories, look = Memories(registry, LIMITS), Look("flat", "layer.0", 0, TEXT)
    assert not any("again" in note for _, note in list(memories.hearing(look, OWNER))[:-1])
    assert [step for step in memories.hearing(look, OWNER, again=True) if isinstance(step, tuple)] == []
    memories._kept = Recent(0)
    notes = [step[1] for step in memories.hearing(look, OWNER, again=True) if isinstance(step, tuple)]
    assert notes and all(
        note.startswith("the memory is not kept any more, so the text is heard again") for note in notes
    )


def test_what_is_kept_is_shown_at_once_however_much_is_worked_on(registry: Registry) -> None:
    about, other = ("\n".join(f"{word} {index} of them" for index in range(12)) for word in ("cats", "dogs"))
    asked, wanted, look = (
        Asked("flat", "", about, other, "mean"),
        Graph("flat", "head 0", 4.0),
        Look("flat", "layer.0", 0, TEXT),
    )
    memories, finder, mapper = Memories(registry, LIMITS), Finder(registry, Limits()), Mapper(registry)
    list(finder.find(asked, OWNER))
    list(mapper.around(wanted, OWNER, None))
    trace = memories.heard(look, OWNER)[0]
    turns = (SEARCHING, LOOKING) * AT_ONCE
    for one in turns:
        assert one.acquire(timeout=10)
    try:
        assert [found[0] for found in memories.hearing(look, OWNER, again=True)] == [trace]
        for kind in ("neurons", "synapses"):
            assert [known.synapses_searched for known in finder.look(asked, OWNER, kind)] == [True]
        assert [len(found) for found in mapper.around(wanted, OWNER, 3)] == [2]
        assert next(memories.hearing(look._replace(head=1), OWNER)) == (0.0, WAITING)
    finally:
        for one in turns:
            one.release()


def test_weights_that_overflow_are_told_in_words(tmp_path: Path) -> None:
    model = zoo.fresh("flat")
    with torch.no_grad():
        model.get_parameter("encoder").mul_(1e30)
    model.save_pretrained(tmp_path / "checkpoints" / "loud")
    registry = Registry(tmp_path / "checkpoints", tmp_path, LIMITS, "cpu")
    about, other = ("\n".join(f"{word} number {i:02}" for i in range(16)) for word in ("one", "other"))
    finder, reader = Finder(registry, LIMITS), Inspector(registry, LIMITS)
    for look in (
        lambda: Memories(registry, LIMITS).heard(Look("loud", "layer.0", 0, TEXT), OWNER),
        lambda: list(Comparer(registry, LIMITS).comparing(Pair("loud", UNTRAINED, TEXT), OWNER)),
        lambda: list(finder.find(Asked("loud", "", about, other, "mean"), OWNER)),
        lambda: list(reader.read("loud", OWNER, Heard(TEXT.encode(), len(TEXT)), "layer.0", "x_sparse", 0)),
    ):
        with pytest.raises(DataError, match="not finite"):
            look()
    with torch.no_grad():
        model.get_parameter("decoder").mul_(1e30)
    model.save_pretrained(tmp_path / "checkpoints" / "louder")
    registry = Registry(tmp_path / "checkpoints", tmp_path, LIMITS, "cpu")
    with pytest.raises(HatcheryError, match="not finite"):
        list(Mapper(registry).measure(Graph("louder", "head 0", 4.0), OWNER))


def test_fresh_weights_and_searches_count_as_memory_in_use(tmp_path: Path) -> None:
    zoo.fresh("flat").save_pretrained(tmp_path / "checkpoints" / "flat")
    limits = Limits(max_prompt_bytes=200, max_state_bytes=60_000)
    registry = Registry(tmp_path / "checkpoints", tmp_path, limits, "cpu")
    about, other = ("\n".join(f"{word} number {i:02}" for i in range(16)) for word in ("one", "other"))
    for work in (
        Comparer(registry, limits).comparing(Pair("flat", UNTRAINED, TEXT), OWNER),
        Finder(registry, limits).find(Asked("flat", "", about, other, "mean"), OWNER),
        Mapper(registry).measure(Graph("flat", "head 0", 4.0), OWNER),
    ):
        with pytest.raises(HatcheryError, match=re.escape("of 60 kB allowed here 0 bytes are in use")):
            list(work)


def test_two_models_are_known_as_the_equal_pair_by_their_ids_alone(registry: Registry) -> None:
    found = last(Comparer(registry, LIMITS).comparing(Pair("flat", "transformer", TEXT), OWNER))
    called = [dataclasses.replace(side, title=name) for side, name in
              zip((found.bdh, found.transformer), sorted(compared.PAIR), strict=True)]  # fmt: skip
    assert "no contest" in compared.facts(dataclasses.replace(found, bdh=called[0], transformer=called[1]))
    known = [dataclasses.replace(side, id=side.title) for side in called]
    assert "one seed" in compared.facts(dataclasses.replace(found, bdh=known[0], transformer=known[1]))


def test_a_text_is_cut_into_characters_or_patches_by_the_bytes_that_wrote_them() -> None:
    assert remembered.units("añb".encode(), 1) == ((0, 1, "a"), (1, 3, "ñ"), (3, 4, "b"))
    assert remembered.units(b"abcde", 2) == ((0, 1, "ab"), (1, 2, "cd"))


def test_a_fields_colour_says_the_sign_and_its_opacity_the_size() -> None:
    assert reach_of(np.zeros((2, 2))) == 1.0
    assert "rgba(37,99,235,0.75)" in field.shade(-1.0) and "rgba(217,98,8,0.38)" in field.shade(0.5)
    assert 'alt="a &lt;b&gt;"' in field.picture(np.eye(2), 1.0, "a <b>", height_rem=1)


@pytest.mark.parametrize(
    ("model", "other"), [("flat", "transformer"), ("hierarchical", UNTRAINED), ("mixture", "transformer")]
)
def test_a_model_is_compared_with_a_transformer(registry: Registry, model: str, other: str) -> None:
    comparer, look = Comparer(registry, LIMITS), Pair(model, other, TEXT)
    found = last(comparer.comparing(look, OWNER))
    assert found.heard_bytes == len(TEXT.encode()) and found.transformer.trained is bool(other)
    assert {one.kind for one in found.transformer.activity} == {"MLP"}
    assert "exactly 0" in compared.facts(found) + compared.zeros(found) and compared.memory_chart(found)
    assert ("fresh weights" in compared.facts(found)) is not bool(other)
    layer = {"flat": "layer.1", "hierarchical": "global.0", "mixture": "member.0.layer.1"}[model]
    drawn = compared.maps(last(comparer.readings(look, layer, 1, 0, 1, OWNER)))
    assert drawn.count("<img") == 2 and ("patches back" in drawn) is (model == "hierarchical")


@pytest.mark.parametrize(("model", "layer"), [("flat", "layer.1"), ("hierarchical", "local.0"), ("hebbian", "layer.0")])
def test_a_memory_is_taken_along_as_data_and_drawings(
    registry: Registry, tmp_path: Path, model: str, layer: str
) -> None:
    memories = Memories(registry, LIMITS)
    look = Look(model, layer, 0, TEXT)
    (trace, wiring), other = memories.heard(look, OWNER), memories.heard(look._replace(text=TEXT[::-1]), OWNER)
    rows = lab.now(trace, wiring, 3)
    files = memory_files(tmp_path, "one", trace, wiring, 3, remembered.ordered(rows, remembered.BY_NUMBER, 0, "16"))
    assert [path.name for path in files] == [
        "memory.npz", "synapses.csv", "memory.png", "byte.png", "growth.png", "synapses.png",
    ]  # fmt: skip
    synapses = lab.synapses(trace, wiring, 3)
    table = list(csv.DictReader(files[1].open(newline="")))
    assert [(int(row["x"]), int(row["y"])) for row in table] == [(one.x, one.y) for one in synapses]
    assert [float(row["strength"]) for row in table] == pytest.approx([one.strength for one in synapses], rel=1e-5)
    assert int(table[0]["written_most_after_bytes"]) == synapses[0].writer * trace.place.step_bytes
    both = memory_files(tmp_path, "one", trace, wiring, 3, np.arange(4), other)
    names = ["memory-of-the-other-text.npz", "two-memories.json", "two-memories.png"]
    assert [path.name for path in both[6:]] == names
    alike = lab.likeness(lab.now(trace, wiring, trace.writes), lab.now(*other, other[0].writes))
    assert json.loads(both[7].read_text())["cosine"] == alike.cosine
    with np.load(both[0]) as saved:
        assert saved["neurons_shown"].tolist() == [0, 1, 2, 3]
    with np.load(both[6]) as saved:
        assert bytes(saved["text"]) == TEXT[::-1].encode() and int(saved["writes"]) == other[0].writes
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in both if path.suffix == ".png")


def test_a_comparison_is_taken_along_as_data_and_drawings(registry: Registry, tmp_path: Path) -> None:
    comparer, look = Comparer(registry, LIMITS), Pair("flat", "transformer", TEXT)
    found = last(comparer.comparing(look, OWNER))
    readings = last(comparer.readings(look, "layer.1", 1, 0, 1, OWNER))
    files = comparison_files(tmp_path, look._asdict(), found, readings)
    assert [path.name for path in files] == [
        "baseline.json", "attention.npz", "zeros.png", "memory.png", "attention.png",
    ]  # fmt: skip
    told = json.loads(files[0].read_text())
    assert told["text"] == TEXT and told["bdh"]["activity"][0]["active"] == found.bdh.activity[0].active
    assert told["transformer"]["held"][-1] == found.transformer.held[-1]._asdict()
    assert [one["bytes_back"] for one in told["attention"]] == [one.reach for one in readings.values()]
    with np.load(files[1]) as saved:
        for index, (name, one) in enumerate(readings.items()):
            assert str(saved["names"][index]) == f"{name}, {one.title}"
            np.testing.assert_array_equal(saved[f"shares_{index}"], one.shares)
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in files[2:])


def test_what_cannot_be_compared_is_refused_in_words(registry: Registry) -> None:
    comparer = Comparer(registry, LIMITS)
    assert "the baseline itself" in comparer.why_not("transformer", OWNER) and not comparer.why_not("flat", OWNER)
    assert [id for _, id in comparer.baselines("flat", OWNER)] == ["transformer", UNTRAINED]
    assert [id for _, id in comparer.baselines("mixture", OWNER)] == ["transformer"]
    for look, words in [
        (Pair("transformer", UNTRAINED, TEXT), "the baseline itself"),
        (Pair("flat", "hebbian", TEXT), "no transformer"),
        (Pair("mixture", UNTRAINED, TEXT), "not composed"),
        (Pair("flat", "transformer", "short"), "give 8 to"),
    ]:
        with pytest.raises(DataError, match=words):
            last(comparer.comparing(look, OWNER))


def test_work_that_is_no_longer_wanted_ends_and_lets_go_of_its_models(registry: Registry) -> None:
    steps = Comparer(registry, LIMITS).comparing(Pair("flat", "transformer", TEXT), OWNER)
    assert isinstance(next(iter(steps)), tuple)
    steps.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 30
    while any(entry.in_use for entry in registry.entries(OWNER)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
