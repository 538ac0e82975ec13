"""What fires while a model reads: against recordings and scores, over every kind of model."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st
from zoo import ZOO, model

import bdh
from bdh import probe
from bdh.errors import DataError
from lab import reading
from lab.reading import Reading

TEXT = "Er sagte: »Ja«\nand 1 2 3".encode()


def read(name: str, point: str, head: int = 0, data: bytes = TEXT) -> Reading:
    *steps, found = reading.read(model(name), data, point, head)
    assert steps[-1] == len(data)
    assert isinstance(found, Reading)
    return found


@pytest.mark.parametrize("name", ZOO)
def test_a_reading_is_what_is_recorded_scored_and_expected_in_pieces_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_PIECE_BYTES", 7)
    for point in reading.neuron_points(model(name))[:: 3 if len(ZOO[name].kind) > 4 else 1]:
        last = max(0, point.heads - 1)
        found = read(name, point.name, last)
        heard = probe.record(model(name), TEXT, point.name, heads=last if point.heads else None)
        values, patch = heard.values[point.name].numpy(), point.bytes_per_row
        for byte in range(len(TEXT)):
            row = values[byte // patch] if byte // patch < len(values) else np.zeros(point.width)
            assert np.allclose(found.values[byte], row, atol=1e-3)
        assert np.allclose(found.costs, bdh.Stream(model(name)).score(TEXT), atol=1e-3)
        assert found.likeliest[:, 0].tolist() == heard.logits.argmax(-1).tolist()
        assert np.allclose(found.chances[:, 0], heard.logits.softmax(-1).max(-1).values, atol=1e-3)
        parts = {f"{one.place}.{one.kind}": one.part for one in found.active}
        if point.kind != "gate":
            whole = probe.record(model(name), TEXT, point.name).values[point.name]
            assert parts[point.name] == pytest.approx(probe.active(whole).float().mean().item(), abs=1e-2)


def test_what_one_neuron_does_is_its_column() -> None:
    *_, values = reading.fire(model("flat"), TEXT, "layer.1.gate", 1, 5)
    assert np.allclose(values, read("flat", "layer.1.gate", 1).values[:, 5])
    *_, patches = reading.fire(model("hierarchical"), TEXT, "global.0.x_sparse", 0, 3)
    assert len(patches) == len(TEXT) // 4


def test_neurons_that_fire_together_stand_together() -> None:
    generator = np.random.default_rng(0)
    groups = generator.permutation(np.repeat(np.arange(4), 6))
    bytes_of = np.repeat(np.arange(4), 10)
    values = (groups[:, None] == bytes_of).astype(np.float32) * generator.uniform(0.5, 1, (24, 40)).astype(np.float32)
    order = reading.together(values)
    assert sorted(order) == list(range(24))
    assert (np.diff(groups[order]) != 0).sum() == 3


def test_a_raster_shows_the_most_active_neurons_and_counts_those_that_fire() -> None:
    found = read("flat", "layer.0.x_sparse")
    total = found.values.clip(0).sum(0)
    shown = reading.raster(found, most=5)
    assert sorted(shown.neurons) == sorted(np.argsort(-total)[:5])
    assert np.array_equal(shown.values, found.values[:, shown.neurons].T)
    assert shown.fired == (total > 0).sum() > 5
    silent = reading.raster(read("hierarchical", "global.0.x_sparse", data=b"ab"))
    assert len(silent.neurons) == silent.fired == 0


def test_at_a_byte_the_loudest_and_those_above_their_mean_are_named() -> None:
    found = read("flat", "layer.1.y_sparse")
    for byte, (loud, special) in enumerate(zip(reading.loudest(found, 3), reading.standing_out(found, 3), strict=True)):
        row = found.values[byte]
        assert [value for _, value in loud] == sorted(row[row > 0].tolist(), reverse=True)[:3]
        above = row - found.values.mean(0)
        expected = sorted(above[(row > 0) & (above > 0)].tolist(), reverse=True)[:3]
        assert [above[neuron] for neuron, _ in special] == pytest.approx(expected)


@given(
    values=st.lists(st.floats(-1, 1, width=32), max_size=60),
    patch=st.integers(1, 4),
    apart=st.integers(1, 9),
)
def test_firings_are_apart_strongest_first_and_none_is_silent(values: list[float], patch: int, apart: int) -> None:
    array = np.array(values, np.float32)
    found = reading.strongest_firings(array, patch, count=5, apart=apart)
    assert len(found) <= 5 and bool(found) == bool((array > 0).any())
    assert [one.value for one in found] == sorted((one.value for one in found), reverse=True)
    for one in found:
        assert one.value == array[one.first // patch] > 0 and one.last == one.first + patch - 1
    firsts = sorted(one.first for one in found)
    assert all(later - sooner >= apart for sooner, later in pairwise(firsts))


def test_an_excerpt_is_of_the_part_that_recipes_keep_from_training() -> None:
    assert reading.corpus_names() == ["chat", "english", "python", "spanish"]
    assert len(reading.excerpt("spanish", 300)) == 300
    with pytest.raises(DataError, match="there are chat, english, python, spanish"):
        reading.excerpt("../spanish", 300)


def test_a_reading_is_saved_as_data_table_and_picture(tmp_path: Path) -> None:
    found = read("flat", "layer.0.gate", 1)
    npz, table, png = reading.save(found, tmp_path)
    kept = np.load(npz)
    assert kept["bytes"].tobytes() == TEXT and np.array_equal(kept["activations"], found.values)
    assert str(kept["point"]) == "layer.0.gate" and int(kept["head"]) == 1
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["byte"]) for row in rows] == list(TEXT)
    assert [int(row["neurons_firing"]) for row in rows] == (found.values > 0).sum(1).tolist()
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (lambda m: reading.read(m, b"", "layer.0.gate"), "no text to read"),
        (lambda m: reading.read(m, TEXT, "layer.0.nothing"), "is no place of neurons"),
        (lambda m: reading.read(m, TEXT, "layer.0.residual"), "is no place of neurons"),
        (lambda m: reading.read(m, TEXT, "layer.0.gate", 7), "has no head 7"),
        (lambda m: reading.read(m, TEXT * 30_000, "layer.0.gate"), "read at most 524,288 bytes with this model"),
        (lambda m: reading.fire(m, TEXT, "layer.0.gate", 0, 10**6), "there is no neuron 1000000"),
    ],
)
def test_what_cannot_be_read_is_said(wish: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(wish(zoo.model("flat")))
