"""A Hebbian memory taken apart, and the view of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from bdh import probe
from bdh import state as states
from bdh.errors import DataError
from lab import memory
from lab.memory import Place, Trace, Wiring

TEXT = b"a cat, a hat, a cat."
HEBBIAN = [name for name in zoo.ZOO if memory.places(zoo.ZOO[name])]


def traced(name: str, text: bytes = TEXT, head: int = 1) -> list[tuple[Trace, Wiring]]:
    """Every layer of a model, its last head or another."""
    model = zoo.model(name)
    return [
        (
            memory.listen(model, text, place, min(head, place.heads - 1)),
            memory.wiring(model, place, min(head, place.heads - 1)),
        )
        for place in memory.places(model.config)
    ]


def state_of(name: str, place: Place, text: bytes) -> Any:
    model = zoo.model(name)
    with torch.no_grad():
        state = model(torch.tensor([list(text)])).state
    scale, index = place.name.split(".")[-2:]
    tensors = states.named_tensors(state)
    member = f"members.{place.name.split('.')[1]}." if place.name.startswith("member") else ""
    return tensors[
        member + {"layer": "memory", "global": "global_layers", "local": "local_layers"}[scale] + f".{index}"
    ]


@pytest.mark.parametrize("name", HEBBIAN)
def test_what_was_written_adds_up_to_the_models_own_memory(name: str) -> None:
    text = TEXT[:19]  # of a patch of 3 one byte is open, of one of 4 three
    for trace, _ in traced(name, text):
        zoo.assert_close(trace.memory(trace.writes), state_of(name, trace.place, text)[0, trace.head])


@pytest.mark.parametrize("name", HEBBIAN)
def test_the_weights_of_earlier_bytes_give_what_the_model_read(name: str) -> None:
    model = zoo.model(name)
    for trace, _ in traced(name):
        point = f"{trace.place.name}.attention"
        read = probe.record(model, TEXT, point, heads=trace.head).values[point][: trace.writes]
        zoo.assert_close(torch.stack([trace.read(write) for write in range(trace.writes)]), read, scale=4)
        zoo.assert_close(trace.attention_map() @ trace.value, read, scale=4)


@pytest.mark.parametrize("name", ["flat-damped", "hierarchical-damped"])
def test_the_strongest_synapses_are_those_of_the_probe_and_each_is_the_sum_of_what_bytes_added(name: str) -> None:
    model = zoo.model(name)
    state = probe.record(model, TEXT, "*.value").state
    for trace, wiring in traced(name):
        assert wiring.excites is not None
        count = trace.writes
        found = memory.synapses(trace, wiring, count, most=5)
        expected = probe.strongest(model, state, trace.place.name, trace.head, count=5)
        assert [(one.x, one.y) for one in found] == [(one.x_neuron, one.y_neuron) for one in expected]
        assert [one.strength for one in found] == pytest.approx([one.strength for one in expected], rel=1e-4)
        begin, left = trace.weights(count)
        for one in found:
            added = []
            for write in range(begin, count):
                alone = torch.outer(trace.key[write], trace.value[write]) * left[write - begin]
                position = count - begin if trace.place.span else count
                added.append(float(memory.turned(alone, wiring, position)[one.x] @ wiring.excites[:, one.y]))
            assert sum(added) == pytest.approx(one.strength, rel=1e-4)
            assert one.writer == begin + int(np.argmax(added))
            assert one.share == pytest.approx(max(added) / one.strength, rel=1e-4)


def test_a_row_of_the_turned_memory_is_what_a_neuron_reads_that_fires_alone() -> None:
    trace, wiring = traced("flat")[0]
    assert wiring.increments is not None
    rows = memory.now(trace, wiring, 7)
    for neuron in (0, 3):
        alone = torch.zeros(1, trace.place.neurons)
        alone[0, neuron] = 1.0
        cos, sin = memory.rope.cos_sin(torch.tensor([7]), 1, wiring.increments)
        zoo.assert_close(memory.rope.rotate_pairs(alone, cos[0], sin[0])[0] @ trace.memory(7), rows[neuron])


def test_a_memory_grows_as_it_is_written_and_a_local_one_begins_anew() -> None:
    trace, _ = traced("flat-damped")[0]
    grown = memory.growth(trace, points=5)
    assert grown.heard_bytes == (4, 8, 12, 16, 20)
    for at, norm, rank in zip(grown.heard_bytes, grown.norm, grown.rank, strict=True):
        assert norm == pytest.approx(float(trace.memory(at).norm()), rel=1e-4)
        assert rank == pytest.approx(memory.effective_rank(trace.memory(at)), rel=1e-3)
    assert grown.written[-1] == float((trace.key != 0).any(0).float().mean())
    local = traced("hierarchical")[-1][0]
    assert local.place.span == 4 and local.begin(4) == 4 and len(local.attention(4)) == 4
    assert not local.attention(4).any() and local.attention(7)[4:].any()


def test_the_effective_rank_counts_equal_directions_and_no_others() -> None:
    assert memory.effective_rank(torch.zeros(4, 3)) == 0.0
    assert memory.effective_rank(torch.outer(torch.arange(5.0), torch.ones(3))) == pytest.approx(1, abs=1e-3)
    assert memory.effective_rank(torch.eye(6)[:, :3]) == pytest.approx(3)


def test_two_memories_are_alike_if_one_is_the_other_and_unlike_if_nothing_is_common() -> None:
    rows = torch.zeros(4, 2)
    rows[0] = torch.tensor([3.0, 4.0])
    alike = memory.likeness(rows, 2 * rows)
    assert alike.cosine == pytest.approx(1) and alike.norms == (5, 10) and alike.difference == 5
    assert (alike.both, alike.only) == (0.25, (0, 0))
    unlike = memory.likeness(rows, rows.roll(1, 0))
    assert (unlike.cosine, unlike.both, unlike.only) == (0, 0, (0.25, 0.25))
    assert memory.likeness(rows, torch.zeros(4, 2)).cosine == 0


def test_what_cannot_be_looked_into_is_told_in_words() -> None:
    model = zoo.model("hierarchical")
    place = memory.places(model.config)[0]
    with pytest.raises(DataError, match="give 4 to"):
        memory.listen(model, b"abc", place, 0)
    with pytest.raises(DataError, match="heads 0 to 1"):
        memory.listen(model, TEXT, place, 2)
    assert "last 20 bytes" in memory.without_places(zoo.TRANSFORMER)
    assert "Transformer blocks" in memory.without_places(zoo.HIERARCHICAL_TRANSFORMER)


def test_a_trace_is_saved_with_all_that_it_is_made_of_and_drawn(tmp_path: Path) -> None:
    trace, wiring = traced("flat")[1]
    memory.save(tmp_path / "one.npz", trace, wiring, 9)
    with np.load(tmp_path / "one.npz") as saved:
        assert bytes(saved["text"]) == TEXT and str(saved["place"]) == "layer.1" and int(saved["writes"]) == 9
        np.testing.assert_array_equal(saved["memory"], trace.memory(9).numpy())
        np.testing.assert_array_equal(saved["attention"], trace.attention(8).numpy())
        np.testing.assert_array_equal(saved["read"], trace.read(8).numpy())
        np.testing.assert_array_equal(saved["activity"], trace.activity.numpy())
        np.testing.assert_array_equal(saved["growth_rank"], memory.growth(trace).rank)
    memory.draw(tmp_path / "one.png", {"memory": memory.now(trace, wiring, 9)}, neurons=np.array([3, 1]))
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
