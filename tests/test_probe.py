"""Recording by name, edits and synapses, over every kind of model."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import given
from hypothesis import strategies as st
from zoo import ZOO, fresh, model

import bdh
from bdh import probe
from bdh.errors import DataError
from bdh.models.layer import norm
from bdh.models.observe import observed, observing
from bdh.ops import reference, rope

TEXT = bytes(zoo.text(27, seed=5)[0].tolist())
BDH = ("flat", "flat-damped", "hierarchical", "hierarchical-damped", "average", "mixture", "mixture-shared", "deep")


def heard(name: str, data: bytes = TEXT) -> torch.Tensor:
    """Logits (T, 256) of a fresh stream in one pass."""
    return model(name).step_(torch.tensor([list(data)]), model(name).empty_state(1), last_only=False).logits[0]


@pytest.mark.parametrize("name", ZOO)
def test_every_point_is_recorded_in_its_shape_and_no_logit_moves_by_a_bit(name: str) -> None:
    points = probe.points(model(name))
    seen = probe.record(model(name), TEXT, "*")
    assert list(seen.values) == [point.name for point in points]
    for point in points:
        rows = len(TEXT) // point.bytes_per_row
        assert seen.values[point.name].shape[-2:] == (rows, point.width)
        assert seen.values[point.name].shape == (*point.shape[:-1], rows, point.width)
        assert seen.at[point.name].tolist() == [(row + 1) * point.bytes_per_row - 1 for row in range(rows)]
        assert torch.isfinite(seen.values[point.name]).all()
    assert torch.equal(seen.logits, heard(name))
    assert not observed()


@given(name=st.sampled_from(sorted(ZOO)), cuts=st.lists(st.integers(1, len(TEXT) - 1), max_size=4, unique=True))
def test_pieces_give_each_byte_what_one_pass_gives_it(name: str, cuts: list[int]) -> None:
    whole = probe.record(model(name), TEXT, "*")
    ends = [0, *sorted(cuts), len(TEXT)]
    state, parts = None, []
    for start, end in pairwise(ends):
        parts.append((start, probe.record(model(name), TEXT[start:end], "*", state=state)))
        state = parts[-1][1].state
    for point, expected in whole.values.items():
        rows = torch.cat([part.values[point] for _, part in parts], dim=-2)
        zoo.assert_close(rows, expected, scale=100)
        assert torch.equal(torch.cat([start + part.at[point] for start, part in parts]), whole.at[point])
    zoo.assert_same_state(state, whole.state, scale=100)


def test_what_is_recorded_of_a_flat_model_is_what_its_weights_give() -> None:
    flat: Any = model("flat-damped")
    seen = probe.record(flat, TEXT, "*", heads=[2, 0])
    length, decay = len(TEXT), torch.tensor(flat.config.decay)
    x = norm(flat.embed(torch.tensor(list(TEXT)))).detach()
    cos, sin = rope.cos_sin(torch.zeros(1, dtype=torch.int64), length, rope.increments(flat.attn.freqs))
    for layer in range(flat.config.n_layer):
        zoo.assert_close(seen.values[f"layer.{layer}.value"], x)
        x_sparse = F.relu(x @ flat.encoder).detach()
        key = reference.rotate_pairs(x_sparse, cos[0], sin[0])
        read = torch.zeros(len(decay), length, x.shape[1])
        for t in range(length):
            for j in range(t):
                read[:, t] += (decay ** (t - 1 - j) * (key[:, t] * key[:, j]).sum(-1))[:, None] * x[j]
        y_sparse = F.relu(norm(read) @ flat.encoder_v).detach()
        gate = x_sparse * y_sparse
        out = torch.cat(list(gate), dim=-1) @ flat.decoder.detach()
        x = norm(x + norm(out))
        for kind, value in {
            "x_sparse": x_sparse, "key": key, "attention": read, "y_sparse": y_sparse, "gate": gate
        }.items():  # fmt: skip
            zoo.assert_close(seen.values[f"layer.{layer}.{kind}"], value[[2, 0]], scale=100)
        zoo.assert_close(seen.values[f"layer.{layer}.residual"], x, scale=10)
    zoo.assert_close(seen.logits, (x @ flat.lm_head).detach(), scale=10)
    one = probe.record(flat, TEXT, "layer.1.*", heads=2).values
    assert torch.equal(one["layer.1.gate"], seen.values["layer.1.gate"][0])


@pytest.mark.parametrize("name", ZOO)
def test_edits_by_a_factor_of_one_change_nothing(name: str) -> None:
    points = probe.points(model(name))
    edits: list[probe.Edit] = [probe.ScaleNeurons(point.name, None, 1.0) for point in points]
    edits += [probe.ScaleSynapses(point.place, factor=1.0) for point in points if point.kind == "x_sparse"]
    edits += [probe.Replace(point.name, torch.clone) for point in points]
    with probe.edited(edits, model(name)):
        assert torch.equal(heard(name), probe.record(model(name), TEXT, points[0].name).logits)
        edited = heard(name)
    zoo.assert_close(edited, heard(name), scale=100)


WEIGHTS = {"x_sparse": ("encoder",), "y_sparse": ("encoder_v",), "mlp": ("mlp.0.weight",)}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_silencing_all_neurons_of_a_kind_is_as_zeroing_the_weights_that_excite_them(name: str, kind: str) -> None:
    points = [point for point in probe.points(model(name)) if point.kind == kind]
    if not points:
        pytest.skip("no such neurons")
    zeroed = fresh(name)
    with torch.no_grad():
        for weight, tensor in zeroed.named_parameters():
            if weight.endswith(WEIGHTS[kind]):
                tensor.zero_()
    expected = zeroed.step_(torch.tensor([list(TEXT)]), zeroed.empty_state(1), last_only=False).logits[0]
    for edit in (probe.Silence, probe.Drive, probe.ScaleNeurons):
        options = {} if edit is probe.Silence else {"value": 0.0} if edit is probe.Drive else {"factor": 0.0}
        with probe.edited([edit(point.name, **options) for point in points], model(name)):
            zoo.assert_close(heard(name), expected)
    assert not torch.allclose(heard(name), expected, atol=1e-3)


@pytest.mark.parametrize("name", BDH)
def test_without_any_synapse_nothing_is_read(name: str) -> None:
    layers = [point for point in probe.points(model(name)) if point.kind == "x_sparse"]
    with probe.edited([probe.ScaleSynapses(point.place, factor=0.0) for point in layers], model(name)):
        unread = heard(name)
    with probe.edited([probe.Silence(f"{point.place}.attention") for point in layers], model(name)):
        zoo.assert_close(unread, heard(name), scale=10)
    assert not torch.allclose(unread, heard(name), atol=1e-3)


def test_synapses_scaled_change_the_excitement_of_their_y_neurons_alone_and_by_their_share() -> None:
    flat: Any = model("flat")
    before = probe.record(flat, TEXT, ["layer.0.x_sparse", "layer.0.attention", "layer.0.y_sparse"])
    state = probe.record(flat, TEXT[:-1], "layer.0.value").state
    sending, receiving = [(0, i) for i in range(5)], [(0, j) for j in range(1, 9)]
    with probe.edited([probe.ScaleSynapses(0, sending, receiving, 3.0)], flat):
        after = probe.record(flat, TEXT, "layer.0.y_sparse").values["layer.0.y_sparse"]
    y_sparse = before.values["layer.0.y_sparse"]
    others = torch.ones_like(y_sparse[:, 0], dtype=torch.bool)
    others[0, 1:9] = False
    assert torch.equal(after.transpose(0, 1)[:, others], y_sparse.transpose(0, 1)[:, others])
    strengths = probe.synapses(flat, state, 0, 0)
    x_last = before.values["layer.0.x_sparse"][0, -1]
    deviation = (before.values["layer.0.attention"][0, -1].var(unbiased=False) + 1e-5).sqrt()
    excited = (x_last @ strengths + 2 * x_last[:5] @ strengths[:5]) / deviation
    zoo.assert_close(after[0, -1, 1:9], F.relu(excited[1:9]), scale=100)


@pytest.mark.parametrize("name", BDH)
def test_what_the_synapses_excite_is_what_fires_at_the_next_byte(name: str) -> None:
    cut = 24  # at the end of a patch, so that the global layers hear the next one from the byte on
    state = probe.record(model(name), TEXT[:cut], "*").state
    for point in [point for point in probe.points(model(name)) if point.kind == "x_sparse"]:
        if point.place.split(".")[-2] == "local":
            past = probe.record(model(name), TEXT[: cut + 1], "*").state
            after = probe.record(model(name), TEXT[cut + 1 : cut + 2], f"{point.place}.*", state=past).values
        else:
            past, after = state, probe.record(model(name), TEXT[cut:], f"{point.place}.*", state=state).values
            if point.bytes_per_row > len(TEXT) - cut:
                continue
        for head in range(point.heads):
            x_sparse, read = after[f"{point.place}.x_sparse"][head, 0], after[f"{point.place}.attention"][head, 0]
            strengths = probe.synapses(model(name), past, point.place, head)
            excited = x_sparse @ strengths / (read.var(unbiased=False) + 1e-5).sqrt()
            zoo.assert_close(F.relu(excited), after[f"{point.place}.y_sparse"][head, 0], scale=100)
            top = probe.strongest(model(name), past, point.place, head, count=3)
            assert [one.strength for one in top] == pytest.approx(strengths.flatten().topk(3).values.tolist(), 1e-5)
            assert [strengths[one.x_neuron, one.y_neuron].item() for one in top] == pytest.approx(
                [one.strength for one in top], 1e-5
            )
            part = probe.synapses(model(name), past, point.place, head, x_neurons=[3, 1], y_neurons=[2])
            zoo.assert_close(part, strengths[[3, 1]][:, [2]])


@pytest.mark.parametrize("name", ["flat-damped", "hierarchical", "mixture", "hebbian", "transformer"])
def test_a_stream_writes_under_edits_as_it_hears_under_them(name: str) -> None:
    chosen = next(point for point in probe.points(model(name)) if point.is_neurons)
    edits = [probe.Silence(chosen.name, [(0, 1), (1, 3)] if chosen.heads else [1, 3])]
    if chosen.kind == "x_sparse":
        edits.append(probe.ScaleSynapses(chosen.place, [(0, 0)], None, 0.0))
    stream = bdh.Stream(model(name))
    with probe.edited(edits, model(name)):
        stream.feed(TEXT[:9])
        written = bytes(part.byte for part in stream.generate(bdh.Sampling(max_bytes=9, temperature=0.0)))
        logits = probe.record(model(name), TEXT[:9] + written, chosen.name).logits
    assert list(written) == logits[8:-1].argmax(-1).tolist()
    zoo.assert_close(torch.from_numpy(stream.prediction()).float(), logits[-1], scale=100)
    assert not torch.allclose(logits, heard(name, TEXT[:9] + written), atol=1e-3)


def test_gradients_of_an_edited_model_are_those_of_the_edited_function_recomputed_or_not() -> None:
    grads = []
    for recompute in (False, True):
        flat: Any = fresh("flat")
        flat.recompute = recompute
        with probe.edited([probe.ScaleNeurons("layer.1.x_sparse", [(0, 2), (1, 5)], 0.5)], flat):
            said = flat(torch.tensor([list(TEXT)])).logits
        said.square().mean().backward()
        grads.append(flat.encoder.grad)
    zoo.assert_close(*grads)
    plain: Any = fresh("flat")
    plain(torch.tensor([list(TEXT)])).logits.square().mean().backward()
    assert not torch.allclose(plain.encoder.grad, grads[0], rtol=1e-2)


def test_nothing_is_left_behind_whatever_is_raised() -> None:
    before = heard("flat")

    def fails(activation: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="no"), probe.edited([probe.Replace("layer.0.gate", fails)]):
        heard("flat")
    with pytest.raises(KeyboardInterrupt):
        probe.record(model("flat"), TEXT, "*", progress=stop)
    assert not observed() and torch.equal(heard("flat"), before)


def test_observers_see_what_they_always_saw_and_edits_too() -> None:
    names: list[str] = []
    with observing(lambda name, _: names.append(name)):
        heard("flat")
    assert names == ["x_sparse", "y_sparse", "residual"] * 2
    seen: list[torch.Tensor] = []
    with (
        probe.edited([probe.Drive("layer.1.y_sparse", value=2.5)]),
        observing(lambda name, x: seen.append(x) if name == "y_sparse" else None),
    ):
        heard("flat")
    assert (seen[1] == 2.5).all() and not (seen[0] == 2.5).any()


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (lambda m: probe.record(m, TEXT, "layer.9.x_sparse"), "no point 'layer.9.x_sparse'; it has 14, such as"),
        (lambda m: probe.record(m, TEXT, []), "no point was asked for"),
        (lambda m: probe.record(m, b"", "*"), "no bytes"),
        (lambda m: probe.record(m, TEXT, "*", heads=2), "has no head 2; its heads are 0 to 1"),
        (lambda m: probe.record(m, TEXT, "*", most_bytes=1000), "at most 1,000 are allowed"),
        (lambda m: probe.record(m, TEXT, "*", state=m.empty_state(2)), "memory of 2 streams"),
        (lambda m: probe.edited(["x"]).__enter__(), "is no edit"),
        (lambda m: probe.edited([probe.Silence("layer.0.x")]).__enter__(), "is no point"),
        (
            lambda m: probe.edited([probe.Silence("layer.*.gate")], m).__enter__(),
            "is a pattern; an edit is of one point",
        ),
        (lambda m: probe.edited([probe.Silence("layer.7.gate")], m).__enter__(), "has no point 'layer.7.gate'"),
        (lambda m: probe.edited([probe.Silence("layer.0.gate", [(2, 0)])], m).__enter__(), "no neuron (2, 0)"),
        (lambda m: probe.edited([probe.Silence("layer.0.gate", [3])], m).__enter__(), "give (head, index) pairs"),
        (lambda m: probe.edited([probe.ScaleSynapses(0, [(0, 99)])], m).__enter__(), "no neuron (0, 99)"),
        (lambda m: probe.edited([probe.Silence("layer.0.gate", ["ab"])], m).__enter__(), "no neuron 'ab'"),
        (lambda m: probe.edited([probe.Silence("layer.0.gate", [(0, 1.5)])], m).__enter__(), "no neuron (0, 1.5)"),
        (lambda m: probe.edited([probe.Silence("layer.0.gate", [(0, True)])], m).__enter__(), "no neuron (0, True)"),
        (lambda m: probe.edited([probe.Silence("layer.0.gate", 7)], m).__enter__(), "are 7; give a mask or a list"),
        (lambda m: probe.Drive("layer.0.gate", None, float("nan")), "must be a finite number"),
        (lambda m: probe.synapses(m, m.empty_state(1), "global.0", 0), "no BDH layer 'global.0'"),
        (lambda m: probe.synapses(m, m.empty_state(1), 0, 5), "no head 5"),
        (lambda m: probe.synapses(m, m.empty_state(1), 0, 0, x_neurons=[-1]), "no x neuron -1"),
        (lambda m: probe.strongest(m, m.empty_state(1), 0, 0, count=0), "from 1 to 10,000"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(wish: Any, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        wish(model("flat"))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("member.2.layer.0", "this transformer model has no BDH layer 'layer.0'"),
        ("member.3.layer.0", "this composed model has no BDH layer 'member.3.layer.0'"),
        ("layer.0", "this composed model has no BDH layer 'layer.0'"),
    ],
)
def test_synapses_of_members_that_have_none_are_refused_in_words(place: str, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        probe.synapses(model("average"), model("average").empty_state(1), place, 0)


def test_a_neuron_fires_through_its_own_row_and_that_of_its_partner_in_rotation() -> None:
    flat: Any = model("flat")
    state = probe.record(flat, TEXT, "layer.0.value").state
    for pair in (0, 7):
        one, two = 2 * pair, 2 * pair + 1
        alone = state._replace(memory=tuple(memory.clone() for memory in state.memory))
        others = [row for row in range(flat.config.n_neuron) if row not in (one, two)]
        alone.memory[0][:, 0, others] = 0
        expected = probe.synapses(flat, state, 0, 0, x_neurons=[one, two])
        zoo.assert_close(probe.synapses(flat, alone, 0, 0, x_neurons=[one, two]), expected)
        alone.memory[0][:, 0, two] = 0
        assert not torch.allclose(probe.synapses(flat, alone, 0, 0, x_neurons=[one]), expected[:1], rtol=0.01)


def test_active_is_what_is_not_exactly_0() -> None:
    assert probe.active(F.relu(torch.tensor([-1.0, 0.0, 2.0]))).tolist() == [False, False, True]
    assert probe.active(F.gelu(torch.tensor([-1.0, 0.0, 2.0]))).tolist() == [True, False, True]


def test_numbers_of_numpy_name_neurons_and_heads_too() -> None:
    flat = model("flat")
    one, two = np.int64(1), np.int64(2)
    with probe.edited([probe.Silence("layer.0.gate", [(one, two)])], flat):
        seen = probe.record(flat, TEXT, "layer.0.gate", heads=one).values["layer.0.gate"]
    assert seen.shape == (len(TEXT), 32) and (seen[:, 2] == 0).all() and (seen[:, 3] != 0).any()
    state = probe.record(flat, TEXT, "layer.0.gate").state
    by_numpy = probe.synapses(flat, state, 0, one, x_neurons=np.array([3, 4]), y_neurons=[two])  # type: ignore[arg-type]
    assert torch.equal(by_numpy, probe.synapses(flat, state, 0, 1, x_neurons=[3, 4], y_neurons=[2]))


def test_what_replaces_an_activation_has_its_shape() -> None:
    with (
        probe.edited([probe.Replace("layer.0.gate", lambda x: x[..., :1])]),
        pytest.raises(DataError, match="it must be"),
    ):
        heard("flat")
