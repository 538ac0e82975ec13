"""The laws that every kind of model keeps, over the whole zoo."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from zoo import (
    HIERARCHICAL,
    ZOO,
    assert_close,
    assert_equal_state,
    assert_same_state,
    fresh,
    model,
    text,
)

from bdh import state as states
from bdh.config import TransformerConfig
from bdh.errors import DataError
from bdh.models import Model, base, build

each = pytest.mark.parametrize("name", ZOO)
modes = pytest.mark.parametrize("grad", [False, True], ids=["inference", "autograd"])


@st.composite
def splits(draw: st.DrawFn, longest: int = 20) -> list[int]:
    """Lengths of calls that follow one another."""
    total = draw(st.integers(1, longest))
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=6))) if total > 1 else []
    return [after - before for before, after in pairwise([0, *cuts, total])]


def listen(listening: Model[Any], ids: Tensor, lengths: list[int], state: Any = None) -> base.Output:
    """Hear `ids` in calls of the given lengths, functionally."""
    heard = []
    for part in ids.split(lengths, dim=1):
        logits, state = listening(part, state)
        heard.append(logits)
    return base.Output(torch.cat(heard, 1), state)


def step(listening: Model[Any], ids: Tensor, lengths: list[int], state: Any) -> base.Output:
    """Hear `ids` in calls of the given lengths, in place."""
    heard = [listening.step_(part, state, last_only=False).logits for part in ids.split(lengths, dim=1)]
    return base.Output(torch.cat(heard, 1), state)


def whole(name: str) -> Model[Any]:
    """The model that hears everything at once, however long it is."""
    uncut = fresh(name)
    for part in uncut.modules():
        if isinstance(part, Model):
            part.chunk_bytes = lambda inplace: 2**30
    return uncut


# 1. Split invariance


@each
@settings(max_examples=8)
@given(splits(), st.integers(1, 3), st.integers(0, 9))
@torch.no_grad()
def test_however_the_bytes_are_split_logits_and_memory_are_the_same(
    name: str, lengths: list[int], batch: int, seed: int
) -> None:
    listening, total = model(name), sum(lengths)
    ids = text(total, batch, seed)
    logits, state = whole(name)(ids)
    for split in (lengths, [1] * total):
        by_calls = listen(listening, ids, split)
        assert_close(by_calls.logits, logits)
        assert_same_state(by_calls.state, state)
        in_place = step(listening, ids, split, listening.empty_state(batch))
        assert_close(in_place.logits, logits)
        assert_same_state(in_place.state, state)


@each
@settings(max_examples=4)
@given(splits(), st.integers(0, 9))
def test_however_the_bytes_are_split_gradients_are_the_same(name: str, lengths: list[int], seed: int) -> None:
    ids = text(sum(lengths), 2, seed)
    gradients = []
    for split in (lengths, [sum(lengths)], [1] * sum(lengths)):
        listening = fresh(name)
        logits, state = listen(listening, ids, split)
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        for tensor in states.named_tensors(state).values():
            if tensor.is_floating_point():
                loss = loss + tensor.square().mean()
        loss.backward()
        gradients.append({key: p.grad for key, p in listening.named_parameters() if p.requires_grad})
    for other in gradients[1:]:
        for key, gradient in gradients[0].items():
            # A split may leave a weight without a path to the loss where one pass has a path of zeros.
            left, right = (torch.zeros(1) if g is None else g for g in (gradient, other[key]))
            scale = max(1.0, float(left.abs().max()))
            torch.testing.assert_close(left / scale, (right / scale).expand_as(left), atol=1e-4, rtol=1e-4)


@each
@torch.no_grad()
def test_an_input_of_many_chunks_is_one_pass(name: str) -> None:
    listening = model(name)
    ids = text(2 * base.CHUNK * 4 + 77)
    logits, state = whole(name)(ids)
    chunked = listening(ids)
    assert_close(chunked.logits, logits, scale=2.0)
    assert_same_state(chunked.state, state, scale=3.0)
    odd = listen(listening, ids, [131, 1, 517, ids.shape[1] - 649])
    assert_close(odd.logits, logits, scale=2.0)
    assert_same_state(odd.state, state, scale=3.0)


@each
def test_an_input_of_many_chunks_has_the_gradients_of_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_GRAD", 7)
    ids = text(60, 2)
    gradients = []
    for listening in (fresh(name), whole(name)):
        F.cross_entropy(listening(ids).logits.flatten(0, 1), ids.flatten()).backward()
        gradients.append([p.grad for p in listening.parameters() if p.requires_grad])
    for left, right in zip(*gradients, strict=True):
        assert left is not None and right is not None
        torch.testing.assert_close(left, right, atol=1e-6 + 1e-4 * float(right.abs().max()), rtol=1e-4)


@each
@modes
def test_asking_for_less_changes_nothing_of_what_is_given(name: str, grad: bool) -> None:
    listening = model(name)
    with torch.set_grad_enabled(grad):
        for before in (None, listening(text(6, 2)).state):
            for length in (1, 4, 9):
                ids = text(length, 2, seed=length)
                logits, state = listening(ids, before)
                last = listening(ids, before, last_only=True)
                assert last.logits.shape == (2, 1, 256)
                assert_close(last.logits, logits[:, -1:])
                assert_equal_state(last.state, state)
                for last_only in (False, True):
                    forgetful = listening(ids, before, last_only=last_only, keep_state=False)
                    assert forgetful.state is None
                    assert_close(forgetful.logits, logits[:, -1:] if last_only else logits)


@each
@modes
def test_leaving_out_the_last_memory_keeps_those_between_chunks(
    name: str, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text(60, 2)
    with torch.set_grad_enabled(grad):
        logits = whole(name)(ids).logits
        monkeypatch.setattr(base, "CHUNK", 5)
        monkeypatch.setattr(base, "CHUNK_GRAD", 5)
        assert_close(model(name)(ids, keep_state=False).logits, logits)
        assert_close(model(name)(ids, keep_state=False, last_only=True).logits, logits[:, -1:])


@each
@torch.no_grad()
def test_an_empty_memory_is_no_memory(name: str) -> None:
    listening = model(name)
    ids = text(11, 2)
    logits, state = listening(ids)
    again = listening(ids, listening.empty_state(2))
    assert_close(again.logits, logits)
    assert_same_state(again.state, state)
    first = listening.step_(ids, None, last_only=False)
    assert_close(first.logits, logits)
    assert_same_state(first.state, state)


@pytest.mark.parametrize("name", ["hierarchical", "hierarchical-damped", "hierarchical-transformer"])
@torch.no_grad()
def test_a_hierarchical_model_streams_past_its_training_length_and_is_its_full_pass_at_every_byte(name: str) -> None:
    listening = model(name)
    ids = text(7 * listening.config.max_seq_len + 3)
    logits, state = whole(name)(ids)
    streamed = step(listening, ids, [1] * ids.shape[1], listening.empty_state())
    assert_close(streamed.logits, logits, scale=2.0)
    assert_same_state(streamed.state, state, scale=2.0)


@torch.no_grad()
def test_bdh_patches_remember_past_the_training_length_and_transformer_patches_do_not() -> None:
    moved = {}
    for name in ("hierarchical", "hierarchical-transformer"):
        listening = model(name)
        ids = text(3 * listening.config.max_seq_len)
        other = ids.clone()
        other[:, 0] ^= 255
        moved[name] = bool((listening(ids).logits != listening(other).logits)[:, -1].any())
    assert moved == {"hierarchical": True, "hierarchical-transformer": False}


@torch.no_grad()
def test_a_transformer_looks_back_exactly_its_window_itself_included() -> None:
    listening = build(TransformerConfig(n_layer=1, n_head=1, n_embd=8, block_size=5), seed=0).eval()
    ids = text(17)
    for lengths in ([17], [1] * 17, [4, 9, 4]):
        logits = listen(listening, ids, lengths).logits[:, 12]
        moves = []
        for place in range(13):
            other = ids.clone()
            other[:, place] ^= 170
            moves.append(not torch.equal(listen(listening, other, lengths).logits[:, 12], logits))
        assert moves == [False] * 8 + [True] * 5


# The forward pass changes nothing that it was given


@each
@modes
@pytest.mark.parametrize("before", [0, 3, 8])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_hearing_leaves_the_given_memory_as_it_was_and_shares_nothing_with_it(
    name: str, grad: bool, before: int, length: int
) -> None:
    listening = model(name)
    with torch.set_grad_enabled(grad):
        given_ = listening(text(before, 2)).state if before else listening.empty_state(2)
        copy = states.clone(given_)
        ids = text(length, 2, seed=1)
        heard = ids.clone()
        after = listening(ids, given_).state
    assert_equal_state(given_, copy)
    assert torch.equal(ids, heard)
    mine, theirs = ({t.untyped_storage().data_ptr() for t in states.named_tensors(s).values()} for s in (given_, after))
    assert not mine & theirs
    listening.step_(text(5, 2, seed=2), after)
    assert_equal_state(given_, copy)


@each
def test_a_step_in_place_returns_the_very_memory_it_was_given(name: str) -> None:
    listening = model(name)
    for prefix in ((4, 4), (3, 6)):
        state = states.join([listening(text(length)).state for length in prefix])
        before = states.named_tensors(state)
        for length in (1, 2, 7):
            after = states.named_tensors(listening.step_(text(length, 2), state).state)
            assert all(after[key] is tensor for key, tensor in before.items())


# 2. Causality


@each
@modes
@settings(max_examples=8)
@given(st.data())
def test_changing_a_byte_moves_no_logit_before_it(name: str, grad: bool, data: st.DataObject) -> None:
    listening = model(name)
    length = data.draw(st.integers(2, 40), label="length")
    changed = data.draw(st.integers(0, length - 1), label="changed")
    before = data.draw(st.integers(0, 6), label="before")
    ids = text(length, 2, seed=length)
    other = ids.clone()
    other[:, changed] ^= data.draw(st.integers(1, 255), label="flip")
    with torch.set_grad_enabled(grad):
        state = listening(text(before, 2)).state if before else None
        logits, moved = listening(ids, state).logits, listening(other, state).logits
    assert torch.equal(logits[:, :changed], moved[:, :changed])
    assert not torch.equal(logits[:, changed], moved[:, changed])


@each
@torch.no_grad()
def test_changing_a_byte_moves_no_logit_before_it_across_chunks(name: str) -> None:
    listening = model(name)
    ids = text(700)
    logits = listening(ids).logits
    for changed in (127, 128, 511, 512, 513, 699):
        other = ids.clone()
        other[:, changed] ^= 90
        moved = listening(other).logits
        assert torch.equal(logits[:, :changed], moved[:, :changed])
        assert not torch.equal(logits[:, changed], moved[:, changed])


@pytest.mark.parametrize("name", ["flat", "hierarchical", "hierarchical-transformer", "hebbian", "transformer"])
@pytest.mark.parametrize("place", [0, 2, 3, 4, 7, 10])
def test_no_gradient_reaches_a_logit_from_a_later_byte(name: str, place: int) -> None:
    listening = model(name)
    embedded: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    embedding = next(m for m in listening.modules() if isinstance(m, torch.nn.Embedding))
    handle = embedding.register_forward_hook(record)
    try:
        listening(text(12)).logits[:, place].sum().backward()
    finally:
        handle.remove()
        listening.zero_grad()
    felt = torch.zeros(12)
    for output in embedded:
        if output.grad is not None:
            # Of a hierarchical model, as patches and as bytes within: both are all 12 bytes in order.
            felt += output.grad.flatten(0, -2).abs().sum(-1)
    assert torch.equal(felt[place + 1 :], torch.zeros(11 - place))
    assert felt[place] > 0


# 3. Independence


@each
@torch.no_grad()
def test_streams_that_take_turns_on_one_model_hear_as_if_alone(name: str) -> None:
    listening = model(name)
    texts = [text(20, seed=seed) for seed in range(3)]
    alone = [step(listening, ids, [1, 3, 1, 5, 10], listening.empty_state()) for ids in texts]
    memories = [listening.empty_state() for _ in texts]
    heard: list[list[Tensor]] = [[] for _ in texts]
    place = 0
    for length in (1, 3, 1, 5, 10):
        for stream, ids in enumerate(texts):
            out = listening.step_(ids[:, place : place + length], memories[stream], last_only=False)
            heard[stream].append(out.logits)
        place += length
    for stream, expected in enumerate(alone):
        assert torch.equal(torch.cat(heard[stream], 1), expected.logits)
        assert_equal_state(memories[stream], expected.state)


@each
@modes
@settings(max_examples=8)
@given(st.lists(st.integers(0, 13), min_size=2, max_size=4), st.integers(1, 15))
def test_streams_at_different_positions_hear_together_as_if_alone(
    name: str, grad: bool, before: list[int], length: int
) -> None:
    listening = model(name)
    ids = text(length, len(before), seed=length)
    with torch.set_grad_enabled(grad):
        memories = [
            listening(text(count, seed=seed)).state if count else listening.empty_state()
            for seed, count in enumerate(before)
        ]
        together = states.join(memories)
        alone = [listening(ids[stream : stream + 1], memory) for stream, memory in enumerate(memories)]
        out = listening(ids, together)
        quiet = listening(ids, together, keep_state=False)
        assert_close(out.logits, torch.cat([one.logits for one in alone]))
        assert_same_state(out.state, states.join([one.state for one in alone]))
        assert_close(quiet.logits, out.logits)
        if grad:
            out.logits.sum().backward()
            listening.zero_grad()
    stepped = listening.step_(ids, states.clone(states.detach(together)), last_only=False)
    assert_close(stepped.logits, out.logits)
    assert_same_state(stepped.state, out.state)


@each
@torch.no_grad()
def test_a_stream_of_a_batch_can_be_taken_out_and_go_on_alone(name: str) -> None:
    listening = model(name)
    ids = text(18, 3)
    logits = listening(ids).logits
    state = listening(ids[:, :7]).state
    for stream in range(3):
        alone = listening(ids[stream : stream + 1, 7:], states.select(state, [stream]))
        assert_close(alone.logits, logits[stream : stream + 1, 7:])


# 4. Constant cost


@each
@torch.no_grad()
def test_the_memory_of_a_stream_never_grows(name: str) -> None:
    listening = model(name)
    ids = text(1000)
    state = listening(ids[:, :1]).state
    shapes = {key: (t.shape, t.dtype) for key, t in states.named_tensors(state).items()}
    later = listening(ids[:, 1:], state).state
    assert {key: (t.shape, t.dtype) for key, t in states.named_tensors(later).items()} == shapes
    for memory in (state, later, listening.empty_state()):
        assert states.state_bytes(memory) == listening.state_bytes()
        storages = [t.untyped_storage() for t in states.named_tensors(memory).values()]
        held = {storage.data_ptr(): storage.nbytes() for storage in storages}
        assert sum(held.values()) == listening.state_bytes()
    assert listening.state_bytes(3) == 3 * listening.state_bytes()


@each
def test_under_autograd_a_kept_memory_holds_no_more_than_itself(name: str) -> None:
    listening = model(name)
    state = listening(text(61, 2)).state
    held = sum(t.untyped_storage().nbytes() for t in states.named_tensors(states.detach(state)).values())
    assert held == listening.state_bytes(2)


_PEAK = """
import resource, sys
import torch
from bdh.config import FlatConfig
from bdh.models import build
from bdh.presets import PRESETS
torch.set_num_threads(1)

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def grown_bytes(config, lengths):
    model = build(config, seed=0).eval()
    ids = torch.zeros(1, max(lengths), dtype=torch.uint8)
    with torch.no_grad():
        model(ids[:, :10], last_only=True)
        start = peak_bytes()
        for length in lengths:
            model(ids[:, :length], last_only=True)
            print(peak_bytes() - start)

grown_bytes(FlatConfig(n_layer=1, n_embd=64, n_head=1, mlp_internal_dim_multiplier=2), [20_000, 60_000])
grown_bytes(PRESETS["flat-5m"], [300])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is read from resource")
def test_the_memory_of_reading_does_not_grow_with_the_length_and_a_5m_model_reads_in_under_2_gb() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    short, long, five_million = map(int, ran.stdout.split())
    # What would be kept of 40,000 more bytes: hidden states alone are 10 MB; the bytes themselves, as int64, 0.3.
    assert long - short < 3_000_000
    # Besides this, reading a million bytes needs only the bytes, 8 MB, and 1,024 MB of logits if all are asked for.
    assert five_million < 1_900_000_000


# What a person may get wrong


@pytest.mark.parametrize(
    "ids",
    [
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.zeros(1, 3),
        torch.zeros(1, 3, dtype=torch.bool),
        torch.zeros(1, 3, dtype=torch.complex64),
        torch.tensor([[256]]),
        torch.tensor([[3, -1]]),
        torch.tensor([[-1]], dtype=torch.int8),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}",
)
def test_what_is_no_byte_is_refused(ids: Tensor) -> None:
    for name in ("flat", "hierarchical", "mixture"):
        with pytest.raises(DataError, match="bytes must be"):
            model(name)(ids)
        with pytest.raises(DataError, match="bytes must be"):
            model(name).step_(ids, model(name).empty_state(1))


@each
def test_a_memory_of_other_streams_is_refused(name: str) -> None:
    listening = model(name)
    with pytest.raises(DataError, match="2 streams of bytes were given with the memory of 3"):
        listening(text(4, 2), listening.empty_state(3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32])
@torch.no_grad()
def test_bytes_of_any_whole_type_are_heard_alike(dtype: torch.dtype) -> None:
    ids = text(9, 2)
    for name in ("flat", "hierarchical", "mixture"):
        assert torch.equal(model(name)(ids.to(dtype)).logits, model(name)(ids).logits)


# Positions


@pytest.mark.parametrize("name", ["flat", "flat-damped", "hierarchical", "hierarchical-damped"])
@torch.no_grad()
def test_a_stream_that_begins_at_a_thousand_million_bytes_hears_what_one_at_zero_hears(name: str) -> None:
    listening = model(name)
    ids = text(90)
    near = listening(ids, listening.empty_state())
    start = 10**9 - 10**9 % getattr(listening.config, "patch_size", 1)
    far = listening(ids, listening.empty_state()._replace(position=torch.tensor([start])))
    assert_close(far.logits, near.logits, scale=3.0)
    assert far.state.position.tolist() == [start + 90]
    streamed = listening.empty_state()._replace(position=torch.tensor([start]))
    assert_close(step(listening, ids, [1] * 90, streamed).logits, near.logits, scale=3.0)


@torch.no_grad()
def test_a_full_window_hears_at_a_thousand_million_bytes_what_it_hears_nearby() -> None:
    listening = model("transformer")
    window = listening.config.block_size
    outs = []
    for start in (window, 10**9):
        state = listening.empty_state()._replace(position=torch.tensor([start]))
        outs.append(listening(text(3 * window), state).logits[:, 2 * window :])
    assert_close(outs[1], outs[0], scale=3.0)


# Damping


@pytest.mark.parametrize("name", ["flat", "hierarchical", "hebbian"])
@torch.no_grad()
def test_a_damping_of_one_is_no_damping(name: str) -> None:
    plain = fresh(name)
    field = "global_decay" if name == "hierarchical" else "decay"
    damped = type(plain)(type(plain.config)(**{**vars(plain.config), field: (1.0, 1.0)})).eval()
    damped.load_state_dict(plain.state_dict())
    ids = text(300)
    logits, state = plain(ids)
    out = damped(ids)
    assert_close(out.logits, logits)
    assert_same_state(out.state, state)


@pytest.mark.parametrize("name", ["flat", "hierarchical", "hebbian"])
@torch.no_grad()
def test_a_damped_memory_forgets_and_an_undamped_one_does_not(name: str) -> None:
    plain = fresh(name)
    field = "global_decay" if name == "hierarchical" else "decay"
    damped = type(plain)(type(plain.config)(**{**vars(plain.config), field: (0.5, 0.5)})).eval()
    damped.load_state_dict(plain.state_dict())
    ids = text(400)
    other = ids.clone()
    other[:, :4] ^= 85
    moved = [float((m(ids).logits - m(other).logits)[:, -1].abs().max()) for m in (plain, damped)]
    assert moved[0] > 1e-4 > 1e-6 > moved[1]


# Carried memory in training


@each
def test_a_detached_memory_carries_values_and_no_gradient(name: str) -> None:
    listening = fresh(name)
    ids = text(20, 2)
    carried = states.detach(listening(ids[:, :9]).state)
    assert not any(t.requires_grad for t in states.named_tensors(carried).values())
    logits = listening(ids[:, 9:], carried).logits
    assert_close(logits, listening(ids).logits[:, 9:])
    logits.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in listening.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in listening.parameters())


def test_training_reaches_every_weight_of_a_hierarchical_model() -> None:
    for state in (None, fresh("hierarchical").empty_state(2)):
        listening = fresh("hierarchical")
        listening(text(HIERARCHICAL.patch_size * 3, 2), state).logits.square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in listening.parameters())


@each
def test_dropout_acts_in_training_and_never_in_evaluation(name: str) -> None:
    listening = fresh(name)
    ids = text(12)
    assert torch.equal(listening(ids).logits, listening(ids).logits)
    listening.train()
    # The members of a deep combination are frozen, and stay as they are used.
    members = () if name == "deep" else getattr(ZOO[name], "members", ())
    dropped = any(getattr(c, "dropout", 0) for c in (ZOO[name], *members))
    assert torch.equal(listening(ids).logits, listening(ids).logits) != dropped


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat-damped", "hebbian-damped", "transformer"])
@pytest.mark.filterwarnings("error:.*complex")
def test_a_model_compiles_as_one_graph_that_hears_and_learns_the_same(name: str) -> None:
    heard = []
    for compiled in (False, True):
        torch.compiler.reset()
        listening = fresh(name)
        called = torch.compile(listening, fullgraph=True, backend="aot_eager") if compiled else listening
        given_ = listening(text(5, 2)).state
        before = states.clone(given_)
        logits, state = called(text(9, 2, 1), states.detach(given_))
        F.cross_entropy(logits.flatten(0, 1), text(9, 2, 2).flatten()).backward()
        assert_equal_state(given_, before)
        with torch.no_grad():
            assert_close(called(text(9, 2, 1), states.detach(given_)).logits, logits.detach())
        heard.append((logits, state, {key: p.grad for key, p in listening.named_parameters()}))
    assert_close(heard[1][0], heard[0][0])
    assert_same_state(heard[1][1], heard[0][1])
    for key, gradient in heard[0][2].items():
        assert gradient is not None and heard[1][2][key] is not None
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(heard[1][2][key] / scale, gradient / scale, atol=1e-5, rtol=1e-5)
