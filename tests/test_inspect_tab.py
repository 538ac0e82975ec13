"""What the view Reading does without its components: words, bounds, markup, files."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import zoo
from PIL import Image

from bdh import probe
from bdh.errors import HatcheryError
from bdh.models import build
from lab import reading as lab
from lab.reading import Reading
from ui import queued
from ui.inspect import build_inspect, reader, reading
from ui.inspect.firing import firings, markup, save
from ui.inspect.named import point_name
from ui.inspect.reading import MOST_BYTES, Heard, Inspector, active_bars, choices, summary
from ui.inspect.recent import known_by
from ui.limits import Limits
from ui.registry import Registry

HURT = "<img src=x onerror=hurt()> & é".encode()


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspector]:
    folder = tmp_path_factory.mktemp("inspect")
    for name in ("flat", "hierarchical", "transformer"):
        zoo.fresh(name).save_pretrained(folder / "checkpoints" / name)
    limits = Limits()
    yield Inspector(Registry(folder / "checkpoints", folder / "data", limits, "cpu"), limits)


def last(parts: Iterator[Any]) -> Any:
    *_, found = parts
    return found


def seen(inspector: Inspector, model: str, layer: str, kind: str) -> tuple[Heard, Reading]:
    heard = Heard(HURT, len(HURT) - 4)
    found = last(inspector.read(model, "me", heard, layer, kind, 1))
    assert isinstance(found, Reading)
    return heard, found


@pytest.mark.parametrize(
    ("model", "layers", "kinds", "heads"),
    [
        ("flat", ["layer.0", "layer.1"], ["x_sparse", "y_sparse", "gate"], 2),
        ("hierarchical", ["global.0", "global.1", "local.0", "local.1"], ["x_sparse", "y_sparse", "gate"], 2),
        ("transformer", ["layer.0", "layer.1"], ["mlp"], 1),
    ],
)
def test_what_can_be_chosen_is_what_the_model_has(
    inspector: Inspector, model: str, layers: list[str], kinds: list[str], heads: int
) -> None:
    points = inspector.points(model, "me")
    layer, kind, head = choices(points, "elsewhere.9", "nothing", 99)
    assert [id for _, id in layer.options] == layers and layer.value == layers[-1]
    assert [id for _, id in kind.options] == kinds and kind.value == kinds[0]
    assert [id for _, id in head.options] == list(range(heads)) and head.value == 0
    kept = choices(points, layers[0], kinds[-1], heads - 1)
    assert [choice.value for choice in kept] == [layers[0], kinds[-1], heads - 1]


def test_what_the_model_writes_is_read_after_the_text(inspector: Inspector) -> None:
    heard = last(inspector.go_on("flat", "me", HURT, 12))
    assert heard.heard_bytes == len(HURT) and len(heard.data) == len(HURT) + 12 and heard.data.startswith(HURT)
    assert last(inspector.go_on("flat", "me", HURT, 0)) == Heard(HURT, len(HURT))
    found = last(inspector.read("flat", "me", heard, "layer.1", "gate", 0))
    assert found.data == heard.data and found.values.shape == (len(heard.data), zoo.FLAT.n_neuron)


def test_what_a_slow_model_has_written_so_far_is_looked_at_while_it_goes_on(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = last(inspector.go_on("flat", "me", HURT, 12))
    monkeypatch.setattr(reading, "_LOOK_S", 0.0)
    told = [one for one in inspector.go_on("flat", "me", HURT, 12) if not isinstance(one, str)]
    assert told[-1] == whole
    seen = [one.heard for one in told[:-1]]
    assert seen  # how many bytes come at once is up to the machine
    assert all(one.data == whole.data[: len(one.data)] and one.heard_bytes == len(HURT) for one in seen)
    assert [len(one.data) for one in seen] == sorted(len(one.data) for one in seen)


@pytest.mark.parametrize(
    ("text", "count", "says"),
    [
        ("", 0, "no text to read"),
        (None, 0, "no text to read"),
        ("a" * (MOST_BYTES - 9), 10, "at most 1,000 together"),
        ("a", 401, "allowed are 0 to 400"),
        ("a", float("nan"), "allowed are 0 to 400"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_in_words(inspector: Inspector, text: Any, count: Any, says: str) -> None:
    with pytest.raises(HatcheryError, match=says):
        inspector.text(text, count)


def test_what_is_not_there_is_refused_in_words(inspector: Inspector) -> None:
    heard = Heard(HURT, len(HURT))
    for wish, says in (
        (lambda: inspector.read("flat", "me", heard, "layer.7", "gate", 0), "is no place of neurons"),
        (lambda: inspector.read("none", "me", heard, "layer.0", "gate", 0), "there is no model"),
        (lambda: inspector.read(None, "me", heard, "layer.0", "gate", 0), "no model is chosen"),
        (lambda: inspector.read("flat", "me", heard, "layer.0", "gate", 9), "has no head 9"),
        (lambda: inspector.find("flat", "me", "layer.0.gate", 0, None, "all"), "no neuron was chosen"),
        (lambda: inspector.find("flat", "me", "layer.0.gate", 0, 9999, "all"), "no neuron 9999"),
        (lambda: inspector.find("flat", "me", "layer.0.gate", 0, 1, "../x"), "no shipped corpus"),
    ):
        with pytest.raises(HatcheryError, match=says):
            list(wish())


@pytest.mark.parametrize(
    ("model", "layer", "kind"),
    [("flat", "layer.1", "x_sparse"), ("hierarchical", "global.0", "gate"), ("transformer", "layer.0", "mlp")],
)
def test_what_is_drawn_is_the_reading(inspector: Inspector, model: str, layer: str, kind: str) -> None:
    heard, found = seen(inspector, model, layer, kind)
    picture = lab.raster(found)
    drawn = json.loads(json.dumps(reader.drawn(found, picture, heard.heard_bytes)))
    assert bytes(drawn["bytes"]) == HURT and drawn["heard"] == len(HURT) - 4
    assert "".join(shown for _, shown, *_ in drawn["glyphs"]).encode() == HURT
    assert drawn["firing"] == (found.values > 0).sum(1).tolist()
    assert [len(drawn[name]) for name in ("bits", "next", "loudest", "special")] == [len(HURT)] * 4
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(drawn["image"].split(",")[1]))))
    assert np.array_equal(pixels[..., 1] > 0, picture.values > 0)
    words = summary(heard, found, picture, "<b>one")
    assert words.startswith(f'<p class="summary"><b>&lt;b&gt;one, {point_name(f"{layer}.{kind}")}')
    assert "4 of them written by the model" in words and ("whole patches" in words) == (model == "hierarchical")


def test_x_and_y_are_shown_apart_layer_by_layer(inspector: Inspector) -> None:
    _, found = seen(inspector, "flat", "layer.0", "gate")
    markup = active_bars(found.active)
    assert markup.count("<h4>") == 2 and markup.count("<li>") == 4
    assert f"<b>{found.active[1].part:.1%}</b>" in markup


def test_a_neuron_is_found_in_the_shipped_texts_with_what_stands_around_it(inspector: Inspector) -> None:
    said = list(inspector.find("flat", "me", "layer.0.x_sparse", 1, 3, "all"))
    assert "reading: " in said[0][0] and "of 4,096 bytes" in said[0][0]
    line, found = said[-1][0], markup(said[-1][1])
    earlier = {markup(fires) if fires else "" for line, fires in said if line}
    assert line == "" and "flat, layer 1, x, head 2, neuron 3</b>" in found and "held out from training" in found
    assert found.count("<tr>") <= 13 and found not in earlier and len(earlier) > 1  # text by text


def test_texts_are_no_markup_and_silence_is_said() -> None:
    (point,) = probe.selected(zoo.model("flat"), "layer.0.gate")
    told = markup(firings("neuron <b>", point, {"<i>": (HURT, np.arange(len(HURT), dtype=np.float32))}))
    assert "<img" not in told and "<i>" not in told and "neuron <b>" not in told and "&lt;" in told
    silent = firings("neuron 1", point, {"text": (HURT, np.zeros(len(HURT), np.float32))})
    assert "fires at none of" in markup(silent)


def test_what_fires_a_neuron_is_taken_along_as_data_and_drawn(tmp_path: Path) -> None:
    (point,) = probe.selected(zoo.model("flat"), "layer.0.gate")
    text = b"it costs $5 or $6,\n=1+1 \xff\t\xe2\x82\xac each, or so they say"
    values = np.zeros(len(text), np.float32)
    values[[12, 24]] = 0.5, 2.0
    found = firings("neuron 1", point, {"prices": (text, values)})
    told, png = save(found, tmp_path)
    fields = json.loads(told.read_text(encoding="utf-8"))
    assert fields["strongest"] == [  # the other is too near
        {
            "corpus": "prices", "first_byte": 24, "before": "it costs $5 or $6,\n=1+1 ", "fired": "\\xff",
            "after": "\t€ each, o", "value": 2.0,
        }
    ]  # fmt: skip
    assert fields["who"] == "neuron 1" and (fields["active"], fields["rows"]) == (2, len(text))
    assert sorted(one["byte"] for one in fields["common"]) == ["\\xff", "o"]
    assert png.read_bytes()[:4] == b"\x89PNG"
    (silent,) = save(firings("neuron 2", point, {"prices": (text, 0 * values)}), tmp_path)
    assert json.loads(silent.read_text(encoding="utf-8"))["active"] == 0


def test_a_reading_can_be_taken_along(inspector: Inspector) -> None:
    heard = Heard(HURT, len(HURT))
    files = [Path(path) for path in inspector.files("flat", "me", heard, "layer.0", "gate", 0)]
    names = ["flat-reading.npz", "flat-reading.csv", "flat-reading.png", "flat-active.png"]
    assert [path.name for path in files] == names
    assert all(path.stat().st_size for path in files)
    kept = np.load(files[0])
    assert kept["model"] == "flat" and "counted from 0" in str(kept["counting"]) and kept["head"] == 0


def test_models_of_equal_weights_and_another_damping_share_no_results() -> None:
    model = zoo.fresh("flat-damped")
    config = dataclasses.replace(model.config, decay=tuple(0.5 for _ in model.config.decay))
    other = build(config)
    other.load_state_dict(model.state_dict())
    assert model.checksum() == other.checksum() and known_by(model) != known_by(other)


def test_what_is_chosen_last_is_done_and_all_that_computes_can_be_stopped(inspector: Inspector) -> None:
    with gr.Blocks() as page:
        build_inspect(inspector._registry, gr.BrowserState(""), Limits())
    told = page.get_config_file()
    names = {one["id"]: one["props"].get("elem_id") for one in told["components"]}
    events = {one["id"]: one for one in told["dependencies"]}
    asked = {
        (names[target], event): one["id"]
        for one in events.values()
        for target, event in one["targets"]
        if target in names and names[target] not in (None, "inspect-model")
    }
    for name in ("reading-layer", "reading-neurons", "reading-head", "memory-layer", "memory-head", "concept-find",
                 "baseline-layer", "baseline-head", "network-neuron"):  # fmt: skip
        first = asked[name, "submit" if name == "network-neuron" else "input"]
        after = [one["id"] for one in events.values() if one["trigger_after"] == first and not one["js"]]
        modes = {events[id]["trigger_mode"] for id in (first, *after) if page.fns[id].concurrency_limit or id == first}
        assert modes == {"always_last"}, name
    stopped = {id for one in events.values() for id in one["cancels"]}
    works = {id for id, one in page.fns.items() if one.concurrency_id in queued._LOOKING}
    assert set(queued._LOOKING) <= {one.concurrency_id for one in page.fns.values()}
    assert {names[target] for id in works - stopped for target, _ in events[id]["targets"]} == {
        "reading-take", "features-take",
    }  # fmt: skip
