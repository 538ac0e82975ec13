"""What holds of the GPU's kernels for single bytes, on a GPU or, with TRITON_INTERPRET=1, as Triton interprets them.

`test_gpu_step` runs this file in a process of its own, since Triton decides once how it runs kernels.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import louder

import bdh
from bdh import state as states
from bdh.config import FlatConfig
from bdh.models import Flat, build
from bdh.ops import gpu_step, step
from bdh.ops.debt import Debt
from bdh.ops.gpu_step import Blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_NEAR = 1e-5 if DEVICE == "cpu" else 1e-4
_PAYS_SOON = 2.0**-16


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with programs so small that these models need several; where they are not used, plain operations are."""
    monkeypatch.setattr(gpu_step, "_DEVICES", (DEVICE,))
    monkeypatch.setattr(gpu_step, "blocks_for", lambda _: Blocks(neurons=16, tiles=2, rows=4, parts=2))
    monkeypatch.setattr(gpu_step, "usable", lambda *_: "graph")
    monkeypatch.setattr(step, "usable", lambda *_: False)


def _model(layers: int = 1, decay: tuple[float, ...] = (), **changed: int) -> Flat:
    """By default one head of two tiles of neurons, the second not full."""
    sizes = {"n_embd": 10, "n_head": 1, "mlp_internal_dim_multiplier": 2} | changed
    config = FlatConfig(n_layer=layers, dropout=0.0, decay=decay, **sizes)
    return louder(build(config, seed=0)).eval().to(DEVICE)  # type: ignore[return-value]


class Listener:
    """A stream as a scheduler holds it."""

    def __init__(self, model: Flat, position: int = 0) -> None:
        self.state, self.debt = model.empty_state(1), Debt()
        self.state.position.fill_(position)


def _together(model: Flat, listeners: Sequence[Listener], data: Sequence[int]) -> Tensor:
    said = model.step_streams_(data, [one.state for one in listeners], [one.debt for one in listeners])
    assert said is not None
    return said


def _plainly(model: Flat, listener: Listener, byte: int) -> Tensor:
    return model.step_(torch.tensor([[byte]]), listener.state).logits[0, 0]


def _assert_same_memory(ours: Listener, theirs: Listener, tolerance: float = _NEAR) -> None:
    ours.debt.settle()
    named = states.named_tensors(theirs.state)
    for name, tensor in states.named_tensors(ours.state).items():
        torch.testing.assert_close(tensor, named[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("decay", "sizes"),
    [
        ((), {"n_head": 2, "mlp_internal_dim_multiplier": 8}),
        ((0.9, _PAYS_SOON), {"n_head": 2, "mlp_internal_dim_multiplier": 8}),
        ((0.9, 1e-45, 1.0), {"n_embd": 16, "n_head": 3, "mlp_internal_dim_multiplier": 3}),
    ],
    ids=["undamped", "damped and paid", "damped to next to nothing"],
)
@torch.no_grad()
def test_streams_at_different_positions_hear_and_remember_what_plain_operations_do(
    decay: tuple[float, ...], sizes: dict[str, int]
) -> None:
    model = _model(2 if decay == () else 1, decay, **sizes)
    starts = (300, 10**12 + 7) if decay == () else (5,)
    ours, theirs = ([Listener(model, start) for start in starts] for _ in range(2))
    for t in range(2 if decay == () else 4):
        data = [(50 * t + 9 * index) % 256 for index in range(len(ours))]
        logits = _together(model, ours, data)
        plain = torch.stack([_plainly(model, one, byte) for one, byte in zip(theirs, data, strict=True)])
        torch.testing.assert_close(logits, plain, atol=_NEAR, rtol=_NEAR)
    for one, other in zip(ours, theirs, strict=True):
        _assert_same_memory(one, other)


@torch.no_grad()
def test_a_stream_hears_the_same_bits_in_any_company_and_in_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_step, "_IN_TURN", 1)
    model = _model(1, (2.0**-24,))

    def hear(starts: Sequence[int]) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        listeners = [Listener(model, start) for start in starts]
        said = torch.stack([_together(model, listeners, [t + start % 100 for start in starts]) for t in (40, 80)])
        return [(said[:, index], (one.state.memory[0], one.state.position)) for index, one in enumerate(listeners)]

    company, (alone,), (again,) = hear((70, 1001)), hear((1001,)), hear((1001,))
    for one, other in ((company[1], alone), (again, alone)):
        assert torch.equal(one[0], other[0])
        assert all(torch.equal(left, right) for left, right in zip(one[1], other[1], strict=True))


def _nobody_fires(model: Flat) -> None:
    model.encoder.zero_()


def _all_fire(model: Flat) -> None:
    x = torch.nn.functional.layer_norm(model.embed.weight[7], (10,))
    model.encoder.copy_(x[:, None].expand_as(model.encoder) + 0.01 * model.encoder)


@pytest.mark.parametrize("change", [_nobody_fires, _all_fire])
@torch.no_grad()
def test_where_nobody_or_everybody_fires_the_byte_is_heard(change: Callable[[Flat], None]) -> None:
    model = _model()
    change(model)
    ours, theirs = Listener(model), Listener(model)
    for _ in range(2):
        logits = _together(model, [ours], [7])[0]
        torch.testing.assert_close(logits, _plainly(model, theirs, 7), atol=_NEAR, rtol=_NEAR)
    _assert_same_memory(ours, theirs)
    assert bool(ours.state.memory[0].any()) == (change is _all_fire)


@pytest.mark.parametrize("where", ["embed.weight", "encoder", "encoder_v", "decoder", "memory"])
@torch.no_grad()
def test_a_number_that_is_none_shows_and_only_to_the_stream_it_belongs_to(where: str) -> None:
    model = _model()
    _all_fire(model)
    bad, good = Listener(model, 3), [Listener(model, 9)] if where in ("embed.weight", "memory") else []
    if where == "memory":
        bad.state.memory[0][0, 0, 5, 4] = float("nan")
    elif where == "embed.weight":
        model.embed.weight[7, 2] = float("nan")
    else:
        whole = getattr(model, where)
        whole.view(-1)[whole.numel() // 2 :: 7] = float("nan")
    for _ in range(2 if where == "decoder" else 1):  # nothing is decoded until something is remembered
        logits = _together(model, [bad, *good], [7, 8][: 1 + len(good)])
    assert bool(logits[0].isnan().all())
    assert bool(logits[1:].isfinite().all())


@torch.no_grad()
def test_weights_that_changed_with_or_without_a_mark_are_heard_as_they_are_now() -> None:
    model = _model()
    listener = Listener(model)
    _together(model, [listener], [1])
    for change in (lambda: model.encoder_v.mul_(-1), lambda: model.encoder_v.data.mul_(-1)):
        change()
        ours, theirs = Listener(model), Listener(model)
        _together(model, [ours], [3])
        _plainly(model, theirs, 3)
        torch.testing.assert_close(_together(model, [ours], [5])[0], _plainly(model, theirs, 5), atol=_NEAR, rtol=_NEAR)
    model.encoder_v = torch.nn.Parameter(model.encoder_v.detach() * 2)
    torch.testing.assert_close(_together(model, [ours], [9])[0], _plainly(model, theirs, 9), atol=_NEAR, rtol=_NEAR)


def test_what_is_owed_is_settled_before_anybody_else_sees_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(1, (0.5,))

    def listen() -> list[Any]:
        stream = bdh.Stream(model)
        stream.feed(b"It was a bright cold")
        stream.feed(b" ")
        seen = [stream.snapshot()]
        stream.feed(b"d")
        stream.feed(b"ay in April")  # several bytes at once, by plain operations
        stream.feed(b",")
        stream.restore(seen[0])
        stream.feed(b"-")
        seen.append(stream.fork().snapshot())
        return seen

    ours = listen()
    monkeypatch.setattr(gpu_step, "_DEVICES", ())
    for one, other in zip(ours, listen(), strict=True):
        torch.testing.assert_close(one.logits, other.logits, atol=_NEAR, rtol=_NEAR)
        for mine, plain in zip(one.state.memory, other.state.memory, strict=True):
            torch.testing.assert_close(mine, plain, atol=_NEAR, rtol=_NEAR)


@torch.no_grad()
def test_what_the_kernels_do_not_serve_is_left_to_plain_operations() -> None:
    model = _model()
    one, other = Listener(model), Listener(model)
    for byte in (-1, 256):
        with pytest.raises(bdh.errors.DataError, match="from 0 to 255"):
            model.step_streams_([byte], [one.state], [one.debt])
    assert model.step_streams_([], [], []) is None
    assert model.step_streams_([1, 2], [one.state, one.state], [one.debt, one.debt]) is None
    several = model.empty_state(2)
    assert model.step_streams_([1], [several], [Debt()]) is None
    assert model.step_streams_([1], [other.state._replace(memory=(other.state.memory[0].mT,))], [Debt()]) is None
    with torch.autocast(DEVICE, torch.bfloat16):
        assert model.step_streams_([1], [other.state], [other.debt]) is None
    assert model.bfloat16().step_streams_([1], [other.state], [other.debt]) is None
    assert not other.state.memory[0].any() and int(other.state.position) == 0


def test_a_stream_that_was_begun_in_inference_mode_goes_on_outside_it_and_settles() -> None:
    model = _model(1, (0.5,))
    with torch.inference_mode():
        ours = Listener(model)
        _together(model, [ours], [1])
    theirs = Listener(model)
    logits = _together(model, [ours], [2])
    _plainly(model, theirs, 1)
    torch.testing.assert_close(logits[0], _plainly(model, theirs, 2), atol=_NEAR, rtol=_NEAR)
    _assert_same_memory(ours, theirs)


def test_kernels_are_tried_against_the_equations() -> None:
    assert gpu_step._error(torch.device(DEVICE), 16, 18, 20, True, graphs=True, count=2) < _NEAR


def test_the_trial_notices_where_weights_that_changed_without_a_mark_are_not_taken_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bdh.ops import gpu_kernels  # noqa: PLC0415 - where there is Triton

    monkeypatch.setattr(gpu_kernels, "refresh", defaultdict(lambda: lambda *_, **__: None))
    assert gpu_step._error(torch.device(DEVICE), 16, 18, 20, True, graphs=True, count=2) > gpu_step._TOLERANCE


@pytest.mark.parametrize("what", ["_Bucket", "Engine", "room"])
@torch.no_grad()
def test_where_memory_runs_out_plain_operations_hear_the_byte_until_there_is_some_again(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_step, "_warned", set())
    model = _model(1, (0.5,))
    stream, theirs = bdh.Stream(model), Listener(model)
    stream.feed(b"a")

    def runs_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 MiB")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(*(gpu_step.Engine, what) if what == "room" else (gpu_step, what), runs_out)
        if what == "_Bucket":
            gpu_step._engines[id(model.encoder_v)][2]._buckets.clear()
        elif what == "Engine":
            gpu_step._engines.clear()
        for byte in b"bc":
            stream.feed(bytes([byte]))
            assert id(model.encoder_v) not in gpu_step._engines
    assert [record.message for record in caplog.records] == [gpu_step._SHORT]
    stream.feed(b"d")
    assert id(model.encoder_v) in gpu_step._engines
    for byte in b"abcd":
        logits = _plainly(model, theirs, byte)
    torch.testing.assert_close(stream.snapshot().logits.view(-1), logits.cpu(), atol=_NEAR, rtol=_NEAR)
    torch.testing.assert_close(
        stream.snapshot().state.memory[0].to(DEVICE), theirs.state.memory[0], atol=_NEAR, rtol=_NEAR
    )
