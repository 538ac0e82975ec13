from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bdh.errors import DataError
from bdh.sampling import Sampler, Sampling, surprise_bits

LOGITS = arrays(np.float64, 256, elements=st.floats(-30, 30, width=32))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def drawn(logits: np.ndarray, count: int, **options: Any) -> list[int]:
    sampler = Sampler(Sampling(**({"seed": 0} | options)))
    return [sampler.choose(logits) for _ in range(count)]


def few(**probabilities: float) -> np.ndarray:
    """Logits of the given bytes with the given probabilities."""
    logits = np.full(256, -math.inf)
    for byte, probability in probabilities.items():
        logits[ord(byte)] = math.log(probability)
    return logits


@given(LOGITS)
def test_temperature_zero_takes_the_likeliest_byte(logits: np.ndarray) -> None:
    assert drawn(logits, 1, temperature=0.0, seed=None) == [int(logits.argmax())]


@given(LOGITS, st.integers(0, 2**63 - 1))
def test_the_same_seed_gives_the_same_bytes(logits: np.ndarray, seed: int) -> None:
    assert drawn(logits, 20, seed=seed) == drawn(logits, 20, seed=seed)


def test_without_a_seed_two_writings_differ() -> None:
    assert drawn(np.zeros(256), 40, seed=None) != drawn(np.zeros(256), 40, seed=None)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_bytes_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    logits = np.full(256, -math.inf)
    logits[:8] = np.random.default_rng(1).normal(size=8)
    count = 8_000
    expected = softmax(logits / temperature)[:8] * count
    seen = np.bincount(drawn(logits, count, temperature=temperature), minlength=256)
    assert seen[8:].sum() == 0
    # Chi-square with 7 degrees of freedom is above 24.3 once in a thousand times.
    assert ((seen[:8] - expected) ** 2 / expected).sum() < 24.3


def test_top_k_keeps_just_the_likeliest() -> None:
    logits = few(a=0.4, b=0.3, c=0.2, d=0.1)
    for k, kept in ((1, "a"), (2, "ab"), (3, "abc"), (0, "abcd"), (256, "abcd")):
        assert set(map(chr, drawn(logits, 400, temperature=1.0, top_k=k))) == set(kept)


def test_top_p_keeps_the_fewest_bytes_that_reach_the_probability() -> None:
    logits = few(a=0.4, b=0.3, c=0.2, d=0.1)
    for p, kept in ((1e-9, "a"), (0.39, "a"), (0.41, "ab"), (0.69, "ab"), (0.71, "abc"), (0.95, "abcd"), (1.0, "abcd")):
        assert set(map(chr, drawn(logits, 400, temperature=1.0, top_p=p))) == set(kept), p


def test_top_p_counts_what_top_k_left() -> None:
    # Of a and b alone, a has 4/7 = 0.571.
    logits = few(a=0.4, b=0.3, c=0.2, d=0.1)
    assert set(map(chr, drawn(logits, 400, temperature=1.0, top_k=2, top_p=0.57))) == {"a"}
    assert set(map(chr, drawn(logits, 400, temperature=1.0, top_k=2, top_p=0.58))) == {"a", "b"}


def test_min_p_keeps_what_is_near_enough_to_the_likeliest() -> None:
    logits = few(a=0.4, b=0.3, c=0.2, d=0.1)
    for p, kept in ((0.0, "abcd"), (0.24, "abcd"), (0.26, "abc"), (0.6, "ab"), (0.8, "a"), (1.0, "a")):
        assert set(map(chr, drawn(logits, 400, temperature=1.0, min_p=p))) == set(kept), p


def test_cuts_are_taken_after_the_temperature() -> None:
    # At temperature 2 the ratio d : a is the square root of 1 : 4.
    logits = few(a=0.4, b=0.3, c=0.2, d=0.1)
    assert set(map(chr, drawn(logits, 400, temperature=2.0, min_p=0.49))) == set("abcd")
    assert set(map(chr, drawn(logits, 400, temperature=2.0, min_p=0.51))) == set("abc")


@given(
    LOGITS,
    st.floats(0.0, 10.0),
    st.integers(0, 256),
    st.floats(1e-9, 1.0),
    st.floats(0.0, 1.0),
)
def test_every_mix_of_options_draws_a_byte_that_all_of_them_keep(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    byte = drawn(logits, 1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)[0]
    likelier = int((logits > logits[byte]).sum())
    assert likelier < (top_k or 256)
    if temperature == 0:
        assert likelier == 0
    elif temperature > 1e-3:
        probabilities = softmax(logits / temperature)
        assert probabilities[logits > logits[byte]].sum() < top_p + 1e-9
        assert likelier == 0 or probabilities[byte] >= min_p * probabilities.max() * (1 - 1e-9)


def test_the_repetition_penalty_is_taken_off_for_each_time_and_fades() -> None:
    # a leads b by 1. Each writing costs 0.6 and halves from byte to byte.
    logits = few(a=1.0, b=math.exp(-1.0))
    written, at = {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": -1.0}
    expected = ""
    for _ in range(40):
        best = max("ab", key=lambda c: at[c] - 0.6 * written[c])
        expected += best
        written = {c: 0.5 * value + (c == best) for c, value in written.items()}
    options = {"temperature": 0.0, "repetition_penalty": 0.6, "repetition_decay": 0.5}
    assert "".join(map(chr, drawn(logits, 40, **options))) == expected
    assert {"a", "b"} == set(expected)
    forever = "".join(map(chr, drawn(logits, 40, **(options | {"repetition_decay": 1.0}))))
    assert abs(forever.count("a") - forever.count("b")) <= 2
    assert set(drawn(logits, 40, **(options | {"repetition_penalty": 0.0}))) == {ord("a")}


@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([b"", b"\xe2\x82", b"\xf0\x9f", b"\xc3", b"ok \xff"]))
def test_with_the_guard_any_logits_write_valid_text(seed: int, count: int, before: bytes) -> None:
    noise = np.random.default_rng(seed)
    sampler = Sampler(Sampling(seed=seed, temperature=3.0, valid_utf8=True), before)
    needed = {b"\xe2\x82": 1, b"\xf0\x9f": 2, b"\xc3": 1}.get(before, 0)
    count = max(count, needed)
    written = bytes(sampler.choose(noise.normal(scale=5.0, size=256), room) for room in range(count, 0, -1))
    start = before if needed else b""
    assert len((start + written).decode()) >= 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 10.0])
def test_extreme_temperatures_are_no_trouble(temperature: float) -> None:
    logits = np.linspace(-500, 500, 256)
    byte = drawn(logits, 1, temperature=temperature)[0]
    assert byte == 255 or temperature == 10.0


def test_surprise_is_the_negative_log_probability_in_bits() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 256)) * 300
    with np.errstate(divide="ignore"):
        expected = -np.log2(np.stack([softmax(row) for row in logits]))
    finite = expected < 1000  # below that the softmax itself is rounded
    np.testing.assert_allclose(surprise_bits(logits)[finite], expected[finite], atol=1e-9)
    assert np.isfinite(surprise_bits(logits)).all()
    assert surprise_bits(np.zeros(256))[7] == 8.0


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("temperature", (-0.1, 10.1, math.nan, math.inf, "1", True)),
        ("top_p", (0.0, 1.1, math.nan)),
        ("min_p", (-0.1, 1.1)),
        ("repetition_penalty", (-1, 11)),
        ("repetition_decay", (-0.1, 1.1)),
        ("top_k", (-1, 257, 1.5, True)),
        ("max_bytes", (-1, 2**63, 1.5)),
        ("seed", (-1, 2**63, 0.5)),
    ],
)
def test_an_option_out_of_bounds_is_named_with_its_bounds(option: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(DataError, match=f"^{option} is .*from "):
            Sampling(**{option: value})


@pytest.mark.parametrize("stop", [(b"",), (b"x" * 257,), ("text",), tuple([b"x"] * 17), [b"x"]])
def test_stop_strings_out_of_bounds_are_refused(stop: Any) -> None:
    with pytest.raises(DataError, match="stop"):
        Sampling(stop=stop)


def test_bounds_themselves_are_allowed() -> None:
    for option, low, high in (
        ("temperature", 0, 10),
        ("top_k", 0, 256),
        ("top_p", 1e-9, 1),
        ("min_p", 0.0, 1),
        ("seed", 0, 2**63 - 1),
        ("max_bytes", 0, None),
    ):
        for value in (low, high):
            assert getattr(Sampling(**{option: value}), option) == value
    assert len(Sampling(stop=tuple(bytes([i]) * 256 for i in range(16))).stop) == 16
