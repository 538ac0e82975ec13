"""A byte heard by loops that touch only what fires is the byte heard by plain operations."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ZOO, fresh, louder

import bdh
from bdh import state as states
from bdh.config import FlatConfig
from bdh.models import Model, build, flat
from bdh.models.observe import observing
from bdh.ops import debt as debts
from bdh.ops import loops, prepared, step
from bdh.ops import step_kernels as kernels

_TEXT = b"It was a bright cold day in April, and the clocks were striking thirteen. "


@pytest.fixture(autouse=True)
def compiled() -> None:
    assert loops.available()


def _plain(monkeypatch: pytest.MonkeyPatch, do: Any) -> Any:
    """What `do` gives without compiled loops."""
    with monkeypatch.context() as patch:
        patch.setattr(step, "usable", lambda *_: False)
        return do()


def _assert_same_state(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    named = states.named_tensors(theirs)
    for name, tensor in states.named_tensors(ours).items():
        scale = max(1.0, float(named[name].abs().max()))
        torch.testing.assert_close(tensor, named[name], atol=tolerance * scale, rtol=tolerance)


_CONFIGS = st.builds(
    lambda layers, heads, width, multiplier, decay: FlatConfig(
        n_layer=layers,
        n_embd=heads * width,
        n_head=heads,
        mlp_internal_dim_multiplier=2 * multiplier,
        dropout=0.0,
        decay=(decay,) * heads if decay else (),
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3, 0.97]),
)


@settings(max_examples=25)
@given(config=_CONFIGS, batch=st.integers(1, 3), seed=st.integers(0, 9))
def test_stepping_agrees_with_hearing_all_at_once_for_any_shape(config: FlatConfig, batch: int, seed: int) -> None:
    model = louder(build(config, seed=seed)).eval()
    ids = torch.randint(0, 256, (batch, 12), generator=torch.Generator().manual_seed(seed))
    state, logits = model.empty_state(batch), []
    for one in ids.split(1, dim=1):
        output = model.step_(one, state)
        state = output.state
        logits.append(output.logits)
    with torch.no_grad():
        whole = model(ids, model.empty_state(batch))
    scale = max(1.0, float(whole.logits.abs().max()))
    assert float((torch.cat(logits, 1) - whole.logits).abs().max()) < 1e-4 * scale
    _assert_same_state(state, whole.state)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_stream_of_every_kind_hears_and_remembers_as_plain_operations_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(name)

    def hear() -> tuple[Any, list[torch.Tensor]]:
        stream = bdh.Stream(model)
        stream.feed(_TEXT[:7])
        logits = [stream._hear(_TEXT[index : index + 1]) for index in range(7, len(_TEXT))]
        return stream.snapshot().state, logits

    ours, theirs = hear(), _plain(monkeypatch, hear)
    scale = max(1.0, max(float(one.abs().max()) for one in theirs[1]))
    assert max(float((a - b).abs().max()) for a, b in zip(ours[1], theirs[1], strict=True)) < 1e-4 * scale
    _assert_same_state(ours[0], theirs[0])


@settings(max_examples=30)
@given(
    name=st.sampled_from(sorted(ZOO)),
    pieces=st.lists(st.tuples(st.sampled_from([1, 1, 2, 5, 9]), st.booleans()), max_size=12),
)
def test_however_bytes_come_and_whoever_looks_the_memory_is_the_same(name: str, pieces: list[tuple[int, bool]]) -> None:
    model, here = fresh(name), 0
    stream, whole = bdh.Stream(model), bdh.Stream(model)
    for size, looks in pieces:
        with observing(lambda *_: None) if looks else nullcontext():
            stream._hear(_TEXT[here : here + size])
        here += size
    if here:
        whole._hear(_TEXT[:here])
    _assert_same_state(stream.snapshot().state, whole.snapshot().state, 1e-3)


def _damped(rates: tuple[float, ...]) -> Model[Any]:
    config = FlatConfig(
        n_layer=2, n_embd=16, n_head=len(rates), mlp_internal_dim_multiplier=8, dropout=0.0, decay=rates
    )
    return louder(build(config, seed=3)).eval()


def test_damping_owed_over_thousands_of_bytes_stays_finite_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _damped((0.05, 0.999))

    def hear() -> Any:
        stream = bdh.Stream(model)
        for index in range(2000):
            stream._hear(_TEXT[index % len(_TEXT)].to_bytes(1, "big"))
        return stream.snapshot().state

    ours, theirs = hear(), _plain(monkeypatch, hear)
    _assert_same_state(ours, theirs)


def test_what_is_owed_is_settled_before_anybody_else_sees_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _damped((0.5, 0.9))

    def listen() -> list[Any]:
        stream = bdh.Stream(model)
        stream.feed(_TEXT)
        options = bdh.Sampling(max_bytes=9, temperature=0.0)
        list(stream.generate(options))
        seen = [stream.snapshot()]
        list(stream.generate(options))
        stream.save(tmp_path / "memory.safetensors")
        stream.feed(_TEXT)  # several bytes at once, by plain operations
        seen.append(stream.snapshot())
        list(stream.generate(options))
        stream.restore(seen[0])
        list(stream.generate(options))
        seen.append(stream.fork().snapshot())
        other = bdh.Stream(model)
        other.load(tmp_path / "memory.safetensors")
        seen.append(other.snapshot())
        list(stream.generate(options))
        stream.clear()
        seen.append(stream.snapshot())
        return seen

    ours, theirs = listen(), _plain(monkeypatch, listen)
    for one, other in zip(ours, theirs, strict=True):
        assert one.recent == other.recent
        _assert_same_state(one.state, other.state)


def test_without_somebody_to_owe_it_to_damping_is_given_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _damped((0.5, 0.9))

    def hear() -> Any:
        state = model.empty_state(2)
        for byte in _TEXT[:10]:
            state = model.step_(torch.full((2, 1), byte), state).state
        return state

    _assert_same_state(hear(), _plain(monkeypatch, hear))


def test_weights_that_changed_are_heard_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _damped((0.9,))
    before = model.step_(torch.tensor([[65]]), model.empty_state(1)).logits
    with torch.no_grad():
        model.encoder_v.mul_(-1)  # type: ignore[operator]

    def hear() -> torch.Tensor:
        state = model.empty_state(1)
        model.step_(torch.tensor([[65]]), state)
        return model.step_(torch.tensor([[66]]), state).logits

    after, plain = hear(), _plain(monkeypatch, hear)
    torch.testing.assert_close(after, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, after, atol=1e-2)


def test_weights_that_are_not_finite_give_predictions_that_are_not() -> None:
    model = _damped((0.9,))
    with torch.no_grad():
        model.decoder[3, 2] = float("nan")  # type: ignore[index, operator]
        model.encoder[:, :, 3] = 1e3  # type: ignore[index, operator]
    stream = bdh.Stream(model)
    with pytest.raises(bdh.errors.DataError, match="not finite"):
        for byte in _TEXT:
            stream._hear(bytes([byte]))
            stream.prediction()


def test_whoever_looks_sees_the_activations_of_single_bytes() -> None:
    model = _damped((0.9,))
    seen: list[str] = []
    with observing(lambda name, _: seen.append(name)):
        model.step_(torch.tensor([[65]]), model.empty_state(1))
    assert seen.count("x_sparse") == seen.count("y_sparse") == 2


def test_a_model_that_is_gone_leaves_no_weights_behind() -> None:
    model = _damped((0.9,))
    model.step_(torch.tensor([[65]]), model.empty_state(1))
    key = id(model.encoder_v)
    assert key in prepared._prepared
    del model
    assert key not in prepared._prepared


def test_compiled_loops_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDH_COMPILED", "off")
    loops.available.cache_clear()
    try:
        assert not loops.available()
        assert not loops.usable(torch.device("cpu"))
    finally:
        loops.available.cache_clear()


def test_weights_that_an_optimizer_changed_without_a_mark_are_heard_as_they_are_now() -> None:
    model = _damped((0.9,)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for _ in range(3):
        stream = bdh.Stream(model)
        stream.feed(_TEXT[:1])
        stepped = [stream._hear(_TEXT[index : index + 1]) for index in range(1, 20)]
        with torch.no_grad():
            ids = torch.tensor([list(_TEXT[:20])])
            whole = model(ids).logits[0, 1:]
        torch.testing.assert_close(torch.cat(stepped), whole, atol=1e-4, rtol=1e-4)
        model(ids).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_weights_replaced_at_the_same_address_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _damped((0.9,))
    for seed in range(6):
        drawn = torch.randn(model.encoder_v.shape, generator=torch.Generator().manual_seed(seed))
        model.encoder_v = torch.nn.Parameter(drawn)
        del drawn

        def hear() -> torch.Tensor:
            state = model.empty_state(1)
            model.step_(torch.tensor([[65]]), state)
            return model.step_(torch.tensor([[66]]), state).logits

        torch.testing.assert_close(hear(), _plain(monkeypatch, hear), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rate", [1e-45, 1e-30, 1e-11])
def test_damping_that_keeps_next_to_nothing_stays_finite(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _damped((rate, 0.9))

    def hear() -> Any:
        stream = bdh.Stream(model)
        for index in range(30):
            stream._hear(_TEXT[index : index + 1])
        return stream.snapshot().state

    _assert_same_state(hear(), _plain(monkeypatch, hear))


def test_a_copy_of_a_stream_goes_on_as_the_stream_does() -> None:
    stream = bdh.Stream(_damped((0.5, 0.9)))
    for index in range(9):
        stream._hear(_TEXT[index : index + 1])
    other = copy.deepcopy(stream)
    torch.testing.assert_close(other._hear(b"x"), stream._hear(b"x"), atol=1e-5, rtol=1e-5)


def test_several_streams_at_different_places_are_heard_inside_the_block_too() -> None:
    model = fresh("hierarchical-damped") if "hierarchical-damped" in ZOO else fresh("hierarchical")
    ids = torch.tensor([list(_TEXT[:16]), list(_TEXT[20:36])])

    def ragged() -> Any:
        first = model.step_(ids[:1, :1], model.empty_state(1)).state
        return states.join([first, model.step_(ids[1:, :2], model.empty_state(1)).state])

    state, other = ragged(), ragged()
    for place in range(2, 16):
        with debts.owing(debts.Debt()):
            ours = model.step_(ids[:, place, None], state)
        with torch.no_grad():
            theirs = model(ids[:, place, None], other)
        state, other = ours.state, theirs.state
        torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-2, rtol=1e-2)


@settings(max_examples=60)
@given(
    width=st.sampled_from([1, 3, 32, 200]),
    seed=st.integers(0, 10**6),
    exponents=st.tuples(st.integers(-30, 12), st.integers(-12, 12)),
    aligned=st.floats(-1e-6, 1e-6),
)
def test_no_neuron_that_fires_is_screened_out(
    width: int, seed: int, exponents: tuple[int, int], aligned: float
) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal(width) * 10.0 ** exponents[1]).astype(np.float32)
    encoder = random.standard_normal((1, width, 24))
    # Half of the neurons are all but orthogonal to x, so that rounding alone would decide.
    toward = x.astype(np.float64) / np.linalg.norm(x)
    encoder[0, :, ::2] += toward[:, None] * (aligned - toward @ encoder[0, :, ::2])
    encoder[0, :, 5] = 0
    encoder = (encoder * 10.0 ** exponents[0]).astype(np.float32)
    rows, scan, bounds = prepared._screen(torch.from_numpy(encoder))
    rounded, latent = np.empty(width, np.float32), np.empty(24, np.float32)
    firing, active = np.empty(25, np.int64), np.empty(25, np.float32)
    known = kernels._round(x, rounded)
    kernels._excite(rounded, scan[0], latent)
    candidates = kernels._screen(latent, *known, bounds[0], firing)
    exact = x.astype(np.float64) @ encoder[0].astype(np.float64)
    assert set(np.flatnonzero(exact > 0)) <= set(firing[:candidates].tolist())
    assert 5 not in firing[:candidates]
    count = kernels._excite_some(x, rows[0], candidates, firing, active)
    norms = np.linalg.norm(x.astype(np.float64)) * np.linalg.norm(encoder[0].astype(np.float64), axis=0)
    np.testing.assert_array_less(np.abs(active[:count] - exact[firing[:count]]), 1e-5 * norms[firing[:count]] + 1e-30)


def test_most_neurons_that_do_not_fire_are_screened_out() -> None:
    random = np.random.default_rng(0)
    encoder = random.standard_normal((1, 128, 4096)).astype(np.float32)
    x = random.standard_normal(128).astype(np.float32)
    rounded, latent, firing = np.empty(128, np.float32), np.empty(4096, np.float32), np.empty(4097, np.int64)
    _, scan, bounds = prepared._screen(torch.from_numpy(encoder))
    known = kernels._round(x, rounded)
    kernels._excite(rounded, scan[0], latent)
    candidates = kernels._screen(latent, *known, bounds[0], firing)
    fired = int((x @ encoder[0] > 0).sum())
    assert fired <= candidates < 1.2 * fired


@pytest.mark.parametrize("what", ["wide", "shared"])
def test_layers_too_wide_to_screen_and_layers_shared_by_threads_hear_the_same(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _damped((0.9, 0.99, 0.5, 0.7))

    def hear() -> tuple[torch.Tensor, Any]:
        stream = bdh.Stream(copy.deepcopy(model))
        logits = [stream._hear(_TEXT[index : index + 1]) for index in range(20)]
        return torch.cat(logits), stream.snapshot().state

    logits, state = hear()
    if what == "wide":
        monkeypatch.setattr(prepared, "_SCREENED_WIDTH", 0)
    else:
        monkeypatch.setattr(step, "_WORTH_SHARING", 1)
        monkeypatch.setattr(step, "_ALONE_S", -1.0)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    again, after = hear()
    torch.testing.assert_close(again, logits, atol=1e-5 if what == "wide" else 0.0, rtol=0)
    _assert_same_state(after, state, 1e-5 if what == "wide" else 0.0)


def test_many_streams_whose_layers_threads_share_hear_what_each_hears_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _damped((0.9, 0.99, 0.5, 0.7))

    def hear(start: int) -> torch.Tensor:
        stream = bdh.Stream(model)
        return torch.cat([stream._hear(_TEXT[index : index + 1]) for index in range(start, start + 30)])

    alone = [hear(start) for start in range(6)]
    monkeypatch.setattr(step, "_WORTH_SHARING", 1)
    monkeypatch.setattr(step, "_ALONE_S", -1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with ThreadPoolExecutor(6) as pool:
        for mine, others in zip(alone, pool.map(hear, range(6)), strict=True):
            assert torch.equal(mine, others)


def _layers_of_a_byte() -> tuple[Any, ...]:
    """What the loops take for a byte through 5 layers of 4 heads; x comes first, the memory fifth."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    encoder, encoder_v = torch.from_numpy(draw(4, 16, 32)), torch.from_numpy(draw(4, 16, 32))
    weights = prepared.Weights((), encoder, encoder_v, torch.from_numpy(draw(128, 16)))
    phase = random.uniform(0, 6, (1, 16)).astype(np.float32)
    memory, owed = draw(5, 1, 4, 32, 16), np.ones((5, 1, 4), np.float32)
    decay = np.linspace(0.5, 1, 4, dtype=np.float32)
    turned = (np.cos(phase), np.sin(phase))
    rest = (*weights.arrays, *prepared.NO_TABLE[1:], np.empty((1, 4, 16), np.float32))
    return draw(1, 16), np.full(1, -1), *turned, memory, owed, decay, *rest


def test_threads_that_come_together_late_or_not_at_all_hear_what_one_hears() -> None:
    alone, shared = _layers_of_a_byte(), _layers_of_a_byte()
    for _ in range(30):
        step._hear(0, 5, *alone)
        work = np.zeros(11, np.int64)

        def help(work: Any = work) -> None:
            while not loops.call("stack", work, *shared):
                pass

        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(help) for _ in range(3)]:
                done.result()
        for ours, theirs in zip(shared, alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert loops.call("stack", work, *shared)  # late: all is done, and nothing is done twice
        np.testing.assert_array_equal(shared[4], alone[4])
        assert work[0] == 5
        assert (work[2::2] == 4).all()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_nobody_writes_any_more_when_a_byte_was_broken_off(
    failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, shared = _layers_of_a_byte(), _layers_of_a_byte()
    step._hear(0, 5, *alone)
    work, mine, begun = step._work, threading.get_ident(), threading.Event()

    def broken(arguments: Any) -> None:
        if threading.get_ident() == mine:
            assert begun.wait(60)
            raise failure
        begun.set()
        work(arguments)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(step, "_helpers", lambda _: pool)
        monkeypatch.setattr(step, "_work", broken)
        with pytest.raises(failure):
            step._hear(1, 5, *shared)
        after = shared[4].copy()
    np.testing.assert_array_equal(shared[4], after)  # the other, who had begun, went to the end
    np.testing.assert_array_equal(after, alone[4])


def test_a_thread_that_cannot_be_started_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, shared = _layers_of_a_byte(), _layers_of_a_byte()
    step._hear(0, 5, *alone)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    monkeypatch.setattr(step, "_helpers", lambda _: pool)
    step._hear(3, 5, *shared)
    for ours, theirs in zip(shared, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_processor_for_which_counters_cannot_be_compiled_does_without_loops() -> None:
    code = (
        "from llvmlite import ir\n"
        "del ir.IRBuilder.atomic_rmw\n"
        "import bdh\n"
        "from bdh.ops import loops\n"
        "stream = bdh.Stream(bdh.build(bdh.FlatConfig(n_layer=1, n_embd=8, n_head=1), seed=0))\n"
        "stream._hear(b'a')\n"
        "print(loops.available())\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": os.devnull}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "without compiled loops" in done.stderr


def test_bytes_that_lie_apart_are_heard_by_the_loops_that_are_compiled() -> None:
    model = _damped((0.9,))
    model.step_(torch.tensor([[65], [66], [67]]), model.empty_state(3))
    before = len(kernels.stack.signatures)
    ids = torch.tensor([[1, 65], [2, 66], [3, 67]])
    state = model.empty_state(3)
    apart = model.step_(ids[:, 1:], state).logits
    assert torch.equal(apart, model.step_(ids[:, 1:].contiguous(), model.empty_state(3)).logits)
    assert len(kernels.stack.signatures) == before


def test_rows_of_a_memory_do_not_lie_across_lines_of_a_cache() -> None:
    for state in (_damped((0.9,)).empty_state(3), build(FlatConfig(n_layer=3), seed=0).empty_state(1)):
        assert {memory.data_ptr() % 64 for memory in state.memory} == {0}
        assert not any(memory.any() for memory in state.memory)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_text_heard_by_loops_is_what_its_bytes_are_one_after_another(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _damped((0.9, 0.99, 0.5, 0.7))
    monkeypatch.setattr(flat, "_SPARSE_IF_SMALL", 2.0)
    monkeypatch.setattr(step, "_WORTH_SHARING", 10_000 if threads > 1 else 10**9)
    monkeypatch.setattr(step, "_ALONE_S", -1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    text = (_TEXT * 5)[:300]
    one, other = bdh.Stream(model), bdh.Stream(model)
    logits = torch.cat([one._hear(text[index : index + 1]) for index in range(len(text))])
    heard = torch.cat([other._hear(text[:7], last_only=False), other._hear(text[7:], last_only=False)])
    torch.testing.assert_close(heard, logits, atol=1e-5, rtol=1e-5)  # hidden states are equal, read out by a product
    _assert_same_state(other.snapshot().state, one.snapshot().state, 0.0)
    with torch.no_grad():  # from no memory at all
        whole = model(torch.tensor([list(text)]))
    torch.testing.assert_close(whole.logits[0], logits, atol=1e-5, rtol=1e-5)
    _assert_same_state(whole.state, one.snapshot().state, 1e-5)  # damping was paid after each chunk


@pytest.mark.parametrize(("active", "loops_hear"), [(0.19, True), (0.31, False)])
def test_texts_are_heard_by_loops_where_few_neurons_fire(
    active: float, loops_hear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bdh.build(FlatConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=32), seed=0).eval()
    assert 0.4 < model.active() < 0.6  # type: ignore[operator]
    monkeypatch.setattr(flat.Flat, "active", lambda _: active)
    heard: list[int] = []
    stack = step.stack
    monkeypatch.setattr(step, "stack", lambda x, *rest, **named: (heard.append(len(x)), stack(x, *rest, **named))[1])
    bdh.Stream(model)._hear(_TEXT)
    assert heard == ([len(_TEXT)] if loops_hear else [])


def test_bytes_heard_without_a_block_of_memories_are_the_same() -> None:
    model = _damped((0.9, 0.99))
    joined, apart = model.empty_state(1), states.clone(model.empty_state(1))
    for byte in _TEXT[:12]:
        ids = torch.tensor([[byte]])
        assert torch.equal(model.step_(ids, joined).logits, model.step_(ids, apart).logits)
    _assert_same_state(joined, apart, 0.0)


def test_an_embedding_that_changed_is_heard_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _damped((0.9,))
    model.step_(torch.tensor([[65]]), model.empty_state(1))
    with torch.no_grad():
        model.embed.weight.copy_(model.embed.weight.flip(0))  # type: ignore[union-attr, operator]

    def hear() -> torch.Tensor:
        return model.step_(torch.tensor([[65]]), model.empty_state(1)).logits

    torch.testing.assert_close(hear(), _plain(monkeypatch, hear), atol=1e-4, rtol=1e-4)


def test_an_embedding_that_an_optimizer_changed_without_a_mark_is_heard_as_it_is_now() -> None:
    model = _damped((0.9,)).train()
    optimizer = torch.optim.AdamW(model.embed.parameters(), lr=0.05, fused=True)  # type: ignore[union-attr]
    for _ in range(3):
        stream = bdh.Stream(model)
        stepped = torch.cat([stream._hear(_TEXT[index : index + 1]) for index in range(20)])
        with torch.no_grad():
            whole = model(torch.tensor([list(_TEXT[:20])])).logits[0]
        torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)
        model(torch.tensor([list(_TEXT[:20])])).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_memories_stepped_together_in_another_company_are_each_heard() -> None:
    model = _damped((0.5, 0.9))
    first, second, third = (model.empty_state(1).memory[0] for _ in range(3))
    debt = debts.Debt()
    one = debt.block((first, second))
    assert debt.block((first, second)) is one
    one.owed[:] = 0.5
    first += 1
    assert debt.block((first, third)) is not one
    assert torch.equal(first, torch.full_like(first, 0.5))  # what was owed is settled


def test_streams_that_alternate_do_not_crowd_the_cores_and_one_alone_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(step.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(step, "_last", (0, 0.0, 0.0))
    shares = []
    for who in (1, 1, 2, 1, 2, 2, 2):
        now[0] += 0.06
        shares.append(step._alone(who))
    assert shares == [True, True, False, False, False, True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_shares_layers_among_threads_of_its_own() -> None:
    code = (
        "import os, sys, warnings, torch, bdh\n"
        "warnings.simplefilter('ignore')\n"
        "from bdh.ops import step\n"
        "step._WORTH_SHARING, step._ALONE_S, torch.get_num_threads = 1, -1.0, lambda: 2\n"
        "config = bdh.FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)\n"
        "stream = bdh.Stream(bdh.build(config, seed=0).eval())\n"
        "stream._hear(b'a')\n"
        "child = os.fork()\n"
        "stream._hear(b'b')\n"
        "os._exit(0) if not child else sys.exit(os.waitpid(child, 0)[1])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("length", [2, 6, 7])
def test_dropout_in_training_mode_is_drawn_for_few_bytes_too(length: int) -> None:
    config = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.5)
    model = louder(build(config, seed=0)).train()
    ids = torch.tensor([list(_TEXT[:length])])
    first, second = (model.step_(ids, model.empty_state(1)).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_a_damaged_cache_of_compiled_loops_is_done_without(tmp_path: Path) -> None:
    code = (
        "import numpy, bdh\n"
        "from bdh.ops import loops\n"
        "x = numpy.zeros((1, 4), numpy.float32)\n"
        "loops.call('product', x[0], x.T.copy(), numpy.zeros(1, numpy.float32))\n"
        "from bdh.ops import compiling\n"
        "print('kept' if compiling.keeps else 'not kept')\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def run() -> str:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert run() == "kept"
    (index,) = tmp_path.rglob("step_kernels.product-*.nbi")
    index.write_bytes(index.read_bytes()[:10])
    assert run() == "not kept"


def test_a_model_says_how_it_hears_single_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    by = {name: fresh(name).single_bytes() for name in ("flat", "hierarchical", "hierarchical-transformer", "hebbian")}
    assert by == {
        "flat": "compiled loops",
        "hierarchical": "compiled loops",
        "hierarchical-transformer": "PyTorch",
        "hebbian": "PyTorch",
    }
    assert fresh("flat").to(torch.bfloat16).single_bytes() == "PyTorch"
    monkeypatch.setattr(loops, "usable", lambda device: False)
    assert fresh("flat").single_bytes() == fresh("hierarchical").single_bytes() == "PyTorch"
