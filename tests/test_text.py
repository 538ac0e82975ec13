from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bdh.text import Character, Utf8Assembler, Utf8Guard

NEAR_UTF8 = st.lists(
    st.one_of(
        st.text(max_size=4).map(str.encode),
        st.binary(max_size=3),
        st.sampled_from([b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0", b"\xf4\x90", b"\xc0", b"\xef\xbf\xbd"]),
    ),
    max_size=8,
).map(b"".join)
"""Bytes that are UTF-8 in parts, broken in the ways that occur."""


def assembled(data: bytes) -> list[Character]:
    assembler = Utf8Assembler()
    characters = [character for cost, byte in enumerate(data) for character in assembler.push(byte, float(cost))]
    return characters + assembler.flush()


@given(NEAR_UTF8)
def test_characters_are_what_decoding_at_once_gives(data: bytes) -> None:
    assert "".join(character.text for character in assembled(data)) == data.decode(errors="replace")


@given(NEAR_UTF8)
def test_no_byte_and_no_cost_is_lost(data: bytes) -> None:
    characters = assembled(data)
    assert b"".join(character.raw for character in characters) == data
    assert all(character.raw and character.text for character in characters)
    costs = iter(range(len(data)))
    for character in characters:
        assert character.surprise_bits == sum(next(costs) for _ in character.raw)


@given(st.text())
def test_whole_characters_come_one_by_one_with_their_own_bytes(text: str) -> None:
    data = text.encode()
    assert [(character.text, character.raw) for character in assembled(data)] == [(c, c.encode()) for c in text]


def test_a_character_is_held_back_until_it_is_whole() -> None:
    assembler = Utf8Assembler()
    pushed = [assembler.push(byte, 1.5) for byte in "a€".encode()]
    assert pushed == [[Character("a", b"a", 1.5)], [], [], [Character("€", "€".encode(), 4.5)]]
    assert assembler.flush() == []


def test_a_broken_character_is_let_go_with_the_byte_that_broke_it() -> None:
    assembler = Utf8Assembler()
    assert [assembler.push(byte, 1.0) for byte in b"\xe2\x82"] == [[], []]
    assert assembler.push(0x41, 2.0) == [Character("\ufffd", b"\xe2\x82", 2.0), Character("A", b"A", 2.0)]


def test_an_open_character_is_broken_by_the_end() -> None:
    assembler = Utf8Assembler()
    for byte in b"\xf0\x9f":
        assert assembler.push(byte) == []
    assert assembler.flush() == [Character("\ufffd", b"\xf0\x9f", 0.0)]


def valid_beginning(data: bytes) -> bool:
    """Whether some valid text begins with these bytes, asked of Python's own decoder."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


@given(st.text(max_size=3), st.integers(0, 3))
def test_the_guard_allows_just_the_bytes_after_which_valid_text_is_possible(text: str, cut: int) -> None:
    data = text.encode()
    data = data[: max(0, len(data) - cut)]
    guard = Utf8Guard()
    for byte in data:
        assert guard.allowed()[byte]
        guard.push(byte)
    assert np.array_equal(guard.allowed(), [valid_beginning(data + bytes([byte])) for byte in range(256)])


def test_every_lead_byte_and_second_byte_is_judged_as_python_judges_it() -> None:
    for lead in range(256):
        if not Utf8Guard().allowed()[lead]:
            assert not valid_beginning(bytes([lead]))
            continue
        guard = Utf8Guard()
        guard.push(lead)
        expected = [valid_beginning(bytes([lead, byte])) for byte in range(256)]
        assert np.array_equal(guard.allowed(), expected), hex(lead)


def test_no_character_is_begun_that_does_not_fit() -> None:
    leads = {1: 0x41, 2: 0xC3, 3: 0xE2, 4: 0xF0}
    for room in range(1, 6):
        allowed = Utf8Guard().allowed(room)
        assert {size for size, lead in leads.items() if allowed[lead]} == {size for size in leads if size <= room}


@given(NEAR_UTF8, st.sampled_from("aé€😀").map(str.encode), st.integers(0, 4))
def test_a_character_that_the_text_before_leaves_open_may_be_completed(before: bytes, last: bytes, size: int) -> None:
    begun = last[: min(size, len(last) - 1)]
    guard = Utf8Guard(before + b" " + begun)
    assert guard.needed == (len(last) - len(begun) if begun else 0)
    for byte in last[len(begun) :]:
        assert guard.allowed()[byte]
        guard.push(byte)
    assert guard.needed == 0


@given(NEAR_UTF8)
def test_a_broken_beginning_leaves_nothing_open(before: bytes) -> None:
    guard = Utf8Guard(before + b"\xff")
    assert guard.needed == 0
