from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, localcontext
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bdh.ops import chunked, reference, rope

SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 11), st.integers(1, 4).map(lambda n: 2 * n), st.integers(1, 5)
)
"""Heads, streams, bytes, neurons, width."""


def operands(
    shape: tuple[int, ...], seed: int, with_memory: bool, with_decay: bool, one_value: bool
) -> list[Tensor | None]:
    """Random query, key, value, memory and decay."""
    heads, batch, length, neurons, width = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, requires_grad=True)

    return [
        normal(heads, batch, length, neurons),
        normal(heads, batch, length, neurons),
        normal(1 if one_value else heads, batch, length, width),
        normal(batch, heads, neurons, width) if with_memory else None,
        (0.5 + 0.5 * torch.rand(heads, generator=generator)) if with_decay else None,
    ]


@given(SHAPES, st.integers(0, 99), st.booleans(), st.booleans(), st.booleans())
def test_the_chunked_memory_agrees_with_the_plain_one_in_reads_sums_and_gradients(
    shape: tuple[int, ...], seed: int, with_memory: bool, with_decay: bool, one_value: bool
) -> None:
    gradients = []
    for attention in (chunked.hebbian_attention, reference.hebbian_attention):
        inputs = operands(shape, seed, with_memory, with_decay, one_value)
        read, memory = attention(*inputs)
        assert memory is not None
        weights = torch.Generator().manual_seed(seed + 1)
        loss = (read * torch.randn(read.shape, generator=weights)).sum()
        loss = loss + (memory * torch.randn(memory.shape, generator=weights)).sum()
        loss.backward()
        given_ = [x for x in inputs[:4] if x is not None]
        gradients.append([read, memory, *(torch.zeros_like(x) if x.grad is None else x.grad for x in given_)])
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, atol=2e-5, rtol=2e-5)


@contextmanager
def skipping(block: int) -> Iterator[None]:
    """Leave out scores above the diagonal whatever the device and length, by blocks of so many rows; 0 is never."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_skips", lambda _: block > 0)
        patch.setattr(chunked, "_BLOCK", block)
        yield


@pytest.mark.parametrize("block", [0, 1, 3, 64])
@given(SHAPES, st.integers(0, 99), st.booleans(), st.booleans())
def test_where_the_query_is_the_key_values_and_gradients_agree_too(
    block: int, shape: tuple[int, ...], seed: int, with_memory: bool, with_decay: bool
) -> None:
    results = []
    for attention in (chunked.hebbian_attention, reference.hebbian_attention):
        _, key, value, memory, decay = operands(shape, seed, with_memory, with_decay, True)
        assert key is not None and value is not None
        with skipping(block):
            read, written = attention(key, key, value, memory, decay)
        assert written is not None
        weights = torch.randn(read.shape, generator=torch.Generator().manual_seed(seed + 1))
        ((read * weights).sum() + written.square().sum()).backward()
        results.append((read, written, key.grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("half", [False, True])
def test_long_chunks_without_the_scores_above_the_diagonal_agree_with_whole_ones_and_keep_no_more(half: bool) -> None:
    results = []
    for block in (chunked._BLOCK, 0):
        _, key, value, _, _ = operands((2, 1, 589, 8, 4), 0, False, False, True)
        assert key is not None and value is not None
        kept: list[int] = []
        with (
            skipping(block),
            torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            read, _ = chunked.hebbian_attention(key, key, value, None, write=False)
        read.square().sum().backward()
        results.append((read, key.grad, value.grad, torch.tensor(sum(kept))))
    for fast, plain in zip(*results, strict=True):
        scale = float(plain.detach().abs().max())
        torch.testing.assert_close(fast, plain, atol=scale * (2**-7 if half else 1e-5), rtol=0)


@pytest.mark.parametrize(
    ("device", "length", "skips"), [("cuda", 512, True), ("cuda", 511, False), ("cpu", 512, False)]
)
def test_scores_above_the_diagonal_are_left_out_of_long_chunks_on_a_gpu(device: str, length: int, skips: bool) -> None:
    assert chunked._skips(SimpleNamespace(device=torch.device(device), shape=(4, 1, length, 8))) == skips


@pytest.mark.parametrize("block", [0, 4])
@torch.no_grad()
def test_a_later_byte_changes_no_read_before_it_bit_for_bit(block: int) -> None:
    _, key, value, memory, _ = operands((2, 2, 23, 8, 4), 0, True, False, True)
    assert key is not None and value is not None and memory is not None
    with skipping(block):
        read, _ = chunked.hebbian_attention(key, key, value, memory)
        for place in (3, 4, 5, 22):
            changed, worth = key.clone(), value.clone()
            changed[:, :, place:] += 1
            worth[:, :, place:] -= 1
            other, _ = chunked.hebbian_attention(changed, changed, worth, memory)
            assert torch.equal(other[:, :, :place], read[:, :, :place])
            assert not torch.equal(other, read)


@given(SHAPES, st.integers(0, 99), st.booleans(), st.booleans())
@torch.no_grad()
def test_writing_in_place_gives_the_same_and_overwrites_only_the_memory(
    shape: tuple[int, ...], seed: int, with_memory: bool, with_decay: bool
) -> None:
    inputs = operands(shape, seed, with_memory, with_decay, True)
    before = [None if x is None else x.clone() for x in inputs]
    read, memory = chunked.hebbian_attention(*inputs)
    for given_, kept in zip(inputs, before, strict=True):
        assert (given_ is None and kept is None) or torch.equal(given_, kept)
    again, written = chunked.hebbian_attention(*inputs, inplace=True)
    assert memory is not None and written is not None and torch.equal(again, read)
    torch.testing.assert_close(written, memory, atol=1e-6, rtol=1e-6)
    if with_memory:
        assert inputs[3] is written
    for index in (0, 1, 2, 4):
        assert inputs[index] is None or torch.equal(inputs[index], before[index])


@given(SHAPES, st.integers(0, 99), st.booleans(), st.booleans())
@torch.no_grad()
def test_leaving_out_the_write_changes_no_read_and_no_memory(
    shape: tuple[int, ...], seed: int, with_memory: bool, with_decay: bool
) -> None:
    inputs = operands(shape, seed, with_memory, with_decay, False)
    kept = None if inputs[3] is None else inputs[3].clone()
    read, _ = chunked.hebbian_attention(*inputs)
    silent, nothing = chunked.hebbian_attention(*inputs, write=False, inplace=True)
    assert nothing is None and torch.equal(silent, read)
    assert kept is None or torch.equal(inputs[3], kept)


@given(SHAPES, st.integers(0, 99))
@torch.no_grad()
def test_a_decay_of_one_is_no_decay(shape: tuple[int, ...], seed: int) -> None:
    query, key, value, memory, _ = operands(shape, seed, True, False, True)
    assert query is not None and key is not None and value is not None
    plain = chunked.hebbian_attention(query, key, value, memory)
    damped = chunked.hebbian_attention(query, key, value, memory, torch.ones(shape[0]))
    for left, right in zip(plain, damped, strict=True):
        assert left is not None and right is not None
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", [chunked.hebbian_attention, reference.hebbian_attention])
@torch.no_grad()
def test_damping_forgets_by_its_power_each_byte(attention: Callable[..., tuple[Tensor, Tensor]]) -> None:
    decay = torch.tensor([0.5, 0.9])
    query = torch.ones(2, 1, 4, 2)
    key = torch.zeros(2, 1, 4, 2)
    key[:, :, 0] = 1.0
    value = torch.zeros(1, 1, 4, 1)
    value[:, :, 0] = 3.0
    read, memory = attention(query, key, value, torch.full((1, 2, 2, 1), 10.0), decay)
    for head, rate in enumerate((0.5, 0.9)):
        # The old memory reads 2 × 10 at first; the byte written first reads 2 × 3 from the second on.
        expected = [20.0, 20 * rate + 6, 20 * rate**2 + 6 * rate, 20 * rate**3 + 6 * rate**2]
        assert read[head, 0, :, 0].tolist() == pytest.approx(expected, rel=1e-6)
        assert memory[0, head, :, 0].tolist() == pytest.approx([10 * rate**4 + 3 * rate**3] * 2, rel=1e-6)


@torch.no_grad()
def test_a_byte_does_not_read_itself() -> None:
    query, key, value, _, _ = operands((2, 1, 1, 4, 3), 0, False, False, True)
    assert query is not None and key is not None and value is not None
    read, memory = chunked.hebbian_attention(query, key, value, None)
    assert memory is not None and torch.equal(read, torch.zeros(2, 1, 1, 3)) and memory.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_sums_are_float32_whatever_the_type_of_the_operands(dtype: torch.dtype) -> None:
    query, key, value, memory, decay = operands((2, 2, 5, 4, 3), 0, True, True, True)
    assert query is not None and key is not None and value is not None
    low = [x.to(dtype) for x in (query, key, value)]
    for attention in (chunked.hebbian_attention, reference.hebbian_attention):
        read, written = attention(*low, memory, decay)
        exact, sums = reference.hebbian_attention(*(x.float() for x in low), memory, decay)
        assert read.dtype == dtype and written.dtype == torch.float32
        torch.testing.assert_close(written, sums, atol=1e-5, rtol=1e-5)
        assert torch.equal(read, exact.to(dtype)) or (read - exact).abs().max() < 0.05


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 7), st.integers(1, 5)),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rotating_pairs_agrees_with_the_plain_rotation_in_values_and_gradients(
    shape: tuple[int, ...], seed: int, dtype: torch.dtype
) -> None:
    heads, batch, length, pairs = shape
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 10**9, (batch,), generator=generator)
    cos, sin = rope.cos_sin(start, length, torch.randint(0, 2**62, (pairs,), generator=generator))
    results = []
    for rotate in (rope.rotate_pairs, reference.rotate_pairs):
        x = torch.randn(heads, batch, length, 2 * pairs, generator=torch.Generator().manual_seed(seed))
        x = x.to(dtype).requires_grad_()
        turned = rotate(x, cos, sin)
        assert turned.dtype == dtype
        (turned.float() * torch.arange(turned.numel()).view_as(turned)).sum().backward()
        assert x.grad is not None
        results.append((turned.detach().float(), x.grad.float()))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=tolerance * max(1.0, float(plain.abs().max())), rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_rotation_may_lie_in_memory_as_it_likes(dtype: torch.dtype) -> None:
    cos, sin = rope.cos_sin(torch.tensor([5]), 3, torch.tensor([2**60, 2**62]))
    results = []
    for gradient in (torch.ones(1, 1, 1).expand(2, 3, 4), torch.ones(2, 4, 3).mT):
        x = torch.zeros(2, 3, 4, dtype=dtype, requires_grad=True)
        rope.rotate_pairs(x, cos, sin).backward(gradient.to(dtype))
        results.append(x.grad)
    assert results[0] is not None and torch.equal(results[0], results[1]) and bool(results[0].any())


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_rotating_halves_turns_each_pair_in_the_plane(length: int, pairs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 2 * pairs, generator=generator)
    angle = 6.3 * torch.rand(length, pairs, generator=generator)
    turned = torch.complex(x[:, :pairs], x[:, pairs:]) * torch.polar(torch.ones_like(angle), angle)
    ours = rope.rotate_halves(x, angle.cos(), angle.sin())
    torch.testing.assert_close(ours, torch.cat((turned.real, turned.imag), -1), atol=1e-6, rtol=1e-6)


def exact_cos_sin(position: int, turns_a_byte: Fraction) -> tuple[float, float]:
    """Cosine and sine of a phase reduced in whole numbers."""
    turn = position * turns_a_byte % 1
    return math.cos(2 * math.pi * float(turn)), math.sin(2 * math.pi * float(turn))


@given(
    st.integers(0, 10**9) | st.sampled_from([0, 2**24, 2**31 - 1, 2**31, 10**9]) | st.integers(10**9, 10**12),
    st.integers(1, 4),
    st.sampled_from([2, 96, 256, 8192]),
    st.integers(0, 4095),
)
def test_a_phase_is_exact_at_any_position(position: int, length: int, neurons: int, pair: int) -> None:
    freqs = rope.frequencies(neurons)
    pair %= neurons // 2
    cos, sin = rope.cos_sin(torch.tensor([position]), length, rope.increments(freqs))
    assert cos.shape == sin.shape == (1, length, neurons // 2) and cos.dtype == sin.dtype == torch.float32
    for step in range(length):
        expected = exact_cos_sin(position + step, Fraction(freqs[2 * pair].item()))
        assert cos[0, step, pair].item() == pytest.approx(expected[0], abs=5e-7, rel=0)
        assert sin[0, step, pair].item() == pytest.approx(expected[1], abs=5e-7, rel=0)


def test_every_frequency_of_the_default_model_is_held_without_rounding() -> None:
    freqs = rope.frequencies(8192)
    assert [Fraction(int(step), 2**64) for step in rope.increments(freqs)] == [Fraction(f.item()) for f in freqs[::2]]
    assert torch.equal(freqs[::2], freqs[1::2])


def test_the_usual_rotary_embedding_is_exact_at_a_thousand_million_bytes() -> None:
    size, theta, position = 16, 10_000, 10**9
    cos, sin = rope.cos_sin(torch.tensor([position]), 1, rope.radian_increments(size, theta, torch.device("cpu")))
    with localcontext() as context:
        context.prec = 60
        turn = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        for pair in range(size // 2):
            radians = float(position * (Decimal(theta).ln() * Decimal(-2 * pair) / Decimal(size)).exp() % turn)
            assert cos[0, 0, pair].item() == pytest.approx(math.cos(radians), abs=5e-7, rel=0)
            assert sin[0, 0, pair].item() == pytest.approx(math.sin(radians), abs=5e-7, rel=0)


@given(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 2**62))
def test_what_two_rotated_bytes_say_to_each_other_depends_on_their_distance_alone(
    distance: int, position: int, seed: int
) -> None:
    increment = rope.increments(rope.frequencies(64))
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 64, generator=generator) for _ in range(2))

    def score(start: int) -> float:
        there = rope.rotate_pairs(key, *(phase[0] for phase in rope.cos_sin(torch.tensor([start]), 1, increment)))
        here = rope.rotate_pairs(
            query, *(phase[0] for phase in rope.cos_sin(torch.tensor([start + distance]), 1, increment))
        )
        return float((here * there).sum())

    assert score(position) == pytest.approx(score(0), abs=5e-5)
