from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pytest
import torch
import zoo
from gradio_client import Client
from gradio_client.exceptions import AppError
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bdh.errors import DataError, HatcheryError
from bdh.models import Model
from bdh.sampling import Sampling
from bdh.stream import Stream
from ui import tint
from ui.limits import Limits
from ui.registry import Registry
from ui.write import (
    SHOWN_PROMPT_CHARACTERS,
    Author,
    Piece,
    build_write,
    prompt_bytes,
    sampling,
    side_by_side,
    stop_strings,
)

OWNER = "browser:somebody"
CRAFTED = '<img src=x onerror="window.hurt=1"> & \'</span><script>${1}{{2}}'


class Seen(HTMLParser):
    """What a browser makes of markup: its text, its elements and their attributes."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.elements, self.open = "", list[tuple[str, dict[str, str | None]]](), 0
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open += 1

    def handle_endtag(self, tag: str) -> None:
        self.open -= 1

    def handle_data(self, data: str) -> None:
        self.text += data


def glyphs_of(data: bytes, bits: float = 1.0) -> list[tint.Glyph]:
    glyphs = tint.Glyphs()
    return [glyph for byte in data for glyph in glyphs.push(byte, bits)] + glyphs.flush()


def form(**changes: Any) -> dict[str, Any]:
    """What the tab's form holds at first."""
    return {
        "max_bytes": 200,
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 0.0,
        "repetition_decay": 0.98,
        "seed": -1,
        "stop": "",
        "valid_utf8": True,
    } | changes


class Heard(NamedTuple):
    position: Tensor


class Parrot(Model[Any]):
    """Says one text over and over, whatever it hears; it counts only how much it has heard."""

    def __init__(self, text: str = CRAFTED, after: int = 1) -> None:
        super().__init__(zoo.FLAT)
        self.text, self.after = text.encode(), after
        self.scale = torch.nn.Parameter(torch.tensor(50.0))

    def empty_state(self, batch_size: int = 1) -> Heard:
        return Heard(torch.zeros(batch_size, dtype=torch.int64))

    def state_bytes(self, batch_size: int = 1) -> int:
        return 8 * batch_size

    def _hear(self, ids: Tensor, state: Heard, *, keep: bool, inplace: bool) -> tuple[Tensor, Heard]:
        length = ids.shape[1]
        at = (state.position[:, None] + torch.arange(1, length + 1) - self.after) % len(self.text)
        said = torch.tensor(list(self.text))[at]
        return torch.nn.functional.one_hot(said, 256).float(), Heard(state.position + length)

    def read_out(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale


class Cage:
    """A registry of one parrot."""

    def __init__(self, model: Model[Any]) -> None:
        self.model, self.in_use = model, 0

    @contextmanager
    def lease(self, id: str, owner: str) -> Iterator[Model[Any]]:
        self.in_use += 1
        try:
            yield self.model
        finally:
            self.in_use -= 1

    @contextmanager
    def reserve(self, state_bytes: int) -> Iterator[None]:
        yield

    def title(self, id: str, owner: str) -> str:
        return "<b>parrot</b>"

    def choices(self, owner: str) -> list[tuple[str, str]]:
        return [("parrot", "parrot")]

    def default(self) -> str:
        return "parrot"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("flat", "hebbian"):
        zoo.fresh(name).save_pretrained(folder / name)
    return folder


@pytest.fixture
def registry(shipped: Path, tmp_path: Path) -> Registry:
    return Registry(shipped, tmp_path, Limits(), "cpu")


def last(author: Author, models: list[str], prompt: bytes, options: Sampling, **more: Any) -> list[Piece]:
    return list(author.pieces(models, OWNER, prompt, options, **more))[-1]


@given(st.binary(max_size=60), st.floats(0, 20))
def test_markup_shows_every_byte_once_and_holds_nothing_but_plain_elements(data: bytes, bits: float) -> None:
    glyphs = glyphs_of(data, bits)
    assert b"".join(glyph.raw for glyph in glyphs) == data
    assert [len(glyph.bits) for glyph in glyphs] == [len(glyph.raw) for glyph in glyphs]
    seen = Seen(tint.tinted(glyphs))
    assert seen.text == "".join(glyph.badge or glyph.text for glyph in glyphs)
    assert {tag for tag, _ in seen.elements} <= {"span"} and seen.open == 0
    assert all(set(attributes) == {"class", "title"} for _, attributes in seen.elements)


def test_text_that_looks_like_markup_stays_text() -> None:
    for bits in (0.1, 3.0, 12.0):
        seen = Seen(tint.tinted(glyphs_of(CRAFTED.encode(), bits)))
        assert seen.text == CRAFTED
        assert {tag for tag, _ in seen.elements} == {"span"}
    assert Seen(tint.plain(glyphs_of(CRAFTED.encode()))).elements == []


def test_bytes_that_are_no_text_and_characters_that_cannot_be_seen_become_badges() -> None:
    badges = [glyph.badge for glyph in glyphs_of(b"a\xff\xe2\x82\x00\n \t" + "\u202e\u00e9\ufffd".encode())]
    assert badges == ["", "FF", "E2 82", "00", "", "", "", "U+202E", "", ""]


def test_spaces_and_line_breaks_are_kept() -> None:
    assert Seen(tint.tinted(glyphs_of(b"a  b\n\n\tc"))).text == "a  b\n\n\tc"


def test_a_tooltip_tells_character_bytes_and_bits() -> None:
    glyphs = tint.Glyphs()
    (letter,) = [*glyphs.push(0xC3, 2.0), *glyphs.push(0xA9, 0.5)]
    assert letter.tooltip == "é · C3 A9 · 2.50 bits (2.00 + 0.50)"
    assert glyphs_of(b"\n", 0.25)[0].tooltip == "line break · 0A · 0.25 bits"
    assert glyphs_of(b"\xff", 9.0)[0].tooltip == "not shown · FF · 9.00 bits"


def test_a_level_begins_at_its_bound() -> None:
    levels = [tint.Glyph("a", b"a", (bits,)).level for bits in (0.0, 0.49, 0.5, 1.0, 2.0, 3.99, 4.0, 7.99, 8.0, 30.0)]
    assert levels == [0, 0, 1, 2, 3, 3, 4, 4, 5, 5]
    assert len(tint.LEVEL_NAMES) == len(tint.LIGHT) == len(tint.DARK) == len(tint.BOUNDS_BITS) + 1


def test_neighbours_of_one_colour_share_an_element() -> None:
    markup = tint.tinted([*glyphs_of(b"abc", 0.1), *glyphs_of(b"de", 5.0)])
    assert [attributes["class"] for _, attributes in Seen(markup).elements] == ["s0", "s4"]


@given(st.lists(st.binary(max_size=8), max_size=8))
def test_markup_only_grows_at_its_end_however_the_bytes_arrive(pieces: list[bytes]) -> None:
    ink, before = tint.Ink("<b>prompt</b>"), ""
    for piece in pieces:
        ink.write((byte, 1.0) for byte in piece)
        assert ink.markup.startswith(before)
        before = ink.markup
    ink.finish()
    whole = "".join(glyph.badge or glyph.text for glyph in glyphs_of(b"".join(pieces)))
    assert ink.markup.startswith(before) and Seen(ink.markup).text == "prompt" + whole


def drawn(updates: list[dict[str, Any]]) -> list[str]:
    """What a browser has on its pages after the updates that reached it."""
    pages: list[str] = []
    for update in updates:
        needed = update["first"] + len(update["pages"])
        pages += [""] * (needed - len(pages))
        pages[update["first"] : needed] = update["pages"]
    return pages


def test_updates_stay_small_and_add_up_to_the_whole() -> None:
    ink, updates = tint.Ink("prompt", 6), []
    line = b"a line of some sixty bytes, so that pages end at line breaks\n"
    for _ in range(100):
        ink.write((byte, 1.0) for byte in line)
        updates.append(ink.latest())
    assert drawn(updates) == drawn(updates[::3] + updates[-1:]) == ink.pages == ink.whole()["pages"]
    assert len(ink.pages) > 8
    assert max(sum(map(len, update["pages"])) for update in updates) < len(ink.markup) / 3
    assert all(Seen(page).text.endswith("\n") for page in ink.pages[:-1])
    assert Seen(ink.markup).text == "prompt" + (line * 100).decode()


def test_a_page_without_line_breaks_ends_all_the_same() -> None:
    ink = tint.Ink()
    ink.write((byte, 1.0) for byte in b"x" * 9 * tint.PAGE_CHARACTERS)
    assert [len(Seen(page).text) for page in ink.pages] == [8 * tint.PAGE_CHARACTERS, tint.PAGE_CHARACTERS]


def test_what_goes_beyond_the_tinted_characters_is_plain() -> None:
    ink = tint.Ink()
    ink.write((byte, 1.0) for byte in b"x" * tint.TINTED_CHARACTERS)
    tinted = ink.markup
    ink.write([(byte, 1.0) for byte in b"<i>\xff"])
    ink.finish()
    assert ink.markup == tinted + "&lt;i&gt;\N{REPLACEMENT CHARACTER}"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(pair: tint.Pair) -> float:
    dark, light = sorted((luminance(pair.ground), luminance(pair.text)))
    return (light + 0.05) / (dark + 0.05)


def test_every_text_stands_out_and_grounds_differ_in_lightness_alone() -> None:
    assert min(contrast(pair) for pair in (*tint.LIGHT, *tint.DARK, *tint.PROMPT)) >= 4.5
    for pairs, direction in ((tint.LIGHT, -1), (tint.DARK, 1)):
        steps = [luminance(pair.ground) + 0.05 for pair in pairs]
        ratios = [(after / before) ** direction for before, after in itertools.pairwise(steps)]
        assert min(ratios) >= 1.1


def test_stop_strings_are_lines_with_escapes_or_a_list_as_it_is() -> None:
    assert stop_strings("\\nUser:\n\n  \n.\\\\n") == (b"\nUser:", b".\\n")
    assert stop_strings(["\\n", "", "é"]) == (b"\\n", "é".encode())
    with pytest.raises(DataError, match="a list of texts"):
        stop_strings([3])  # type: ignore[list-item]


def test_a_missing_or_negative_seed_is_drawn_anew_and_any_other_kept() -> None:
    drawn = {sampling(Limits(), **form(seed=seed)).seed for seed in (None, -1, -1, -5)}
    assert len(drawn) == 4 and min(drawn) >= 0
    assert sampling(Limits(), **form(seed=7.0)).seed == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_bytes": 0}, "allowed are 1 to 50"),
        ({"max_bytes": 51}, "allowed are 1 to 50"),
        ({"max_bytes": 2.5}, "whole number"),
        ({"max_bytes": float("nan")}, "whole number"),
        ({"max_bytes": float("inf")}, "whole number"),
        ({"seed": 2**60}, "at most"),
        ({"seed": "1"}, "whole number"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["x" * 257]}, "256 bytes"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_in_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        sampling(Limits(max_write_bytes=50), **form(**{"max_bytes": 50} | changes))


def test_a_prompt_is_bounded_and_an_empty_one_is_a_line_break() -> None:
    limits = Limits(max_prompt_bytes=4)
    assert prompt_bytes("", limits) == b"\n"
    assert prompt_bytes("éé", limits) == "éé".encode()
    with pytest.raises(DataError, match="5 bytes; at most 4"):
        prompt_bytes("ééa", limits)


def test_two_runs_take_turns_and_the_longer_one_goes_on_alone() -> None:
    assert list(side_by_side([iter("abcd"), iter("12")])) == ["a", "1", "b", "2", "c", "d"]


def test_what_is_side_by_side_is_made_at_the_same_time_and_rests_while_it_is_looked_at() -> None:
    met, looked_at = threading.Barrier(2, timeout=60), threading.Event()

    def run(name: str) -> Iterator[str]:
        for _ in range(3):
            met.wait()
            assert not looked_at.is_set()
            yield name

    seen = []
    for item in side_by_side([run("a"), run("b")]):
        looked_at.set()
        time.sleep(0.01)
        seen.append(item)
        looked_at.clear()
    assert seen == ["a", "b"] * 3


def test_a_run_that_fails_closes_the_others() -> None:
    closed = []

    def fails() -> Iterator[str]:
        yield "a"
        raise DataError("no more")

    def goes_on() -> Iterator[str]:
        try:
            while True:
                yield "b"
        finally:
            closed.append("b")

    seen = []
    with pytest.raises(DataError, match="no more"):
        seen.extend(side_by_side([fails(), goes_on()]))
    assert closed == ["b"]


def test_closing_the_turns_closes_every_run() -> None:
    closed = []

    def run(name: str) -> Iterator[str]:
        try:
            while True:
                yield name
        finally:
            closed.append(name)

    turns = side_by_side([run("a"), run("b")])
    assert [next(turns), next(turns)] == ["a", "b"]
    turns.close()  # type: ignore[attr-defined]
    assert closed == ["a", "b"]


def test_two_models_side_by_side_write_what_each_writes_alone(registry: Registry) -> None:
    author, options = Author(registry, Limits()), Sampling(max_bytes=60, seed=5)
    both = last(author, ["flat", "hebbian"], b"In the beginning, ", options)
    alone = [last(author, [id], b"In the beginning, ", options)[0] for id in ("flat", "hebbian")]
    texts = [Seen(piece.ink.markup).text for piece in both]
    assert texts == [Seen(piece.ink.markup).text for piece in alone]
    assert texts[0] != texts[1]
    assert [piece.bits for piece in both] == pytest.approx([piece.bits for piece in alone])
    assert [piece.written for piece in both] == [60, 60]


def test_the_bits_shown_are_what_a_fresh_stream_pays_for_the_same_bytes(registry: Registry) -> None:
    prompt, options = b"In the beginning, ", Sampling(max_bytes=40, seed=3)
    (piece,) = last(Author(registry, Limits()), ["flat"], prompt, options, score=True)
    with registry.lease("flat", OWNER) as model:
        stream = Stream(model)
        stream.feed(prompt)
        written = bytes(part.byte for part in stream.generate(options))
        costs = Stream(model).score(prompt + written)
    assert piece.prompt_bits == pytest.approx(costs[: len(prompt)].sum(), abs=1e-3)
    assert piece.bits_per_byte == pytest.approx(costs[len(prompt) :].mean(), abs=1e-3)
    assert f"{piece.bits_per_byte:.2f} bits a byte" in piece.summary()


def test_colouring_the_prompt_changes_nothing_of_what_is_written(registry: Registry) -> None:
    author, options = Author(registry, Limits()), Sampling(max_bytes=30, seed=3)
    tinted, muted = (
        last(author, ["flat"], b"Once upon", options, score=score)[0].ink.markup for score in (True, False)
    )
    assert Seen(tinted).text == Seen(muted).text
    assert tinted != muted
    assert Seen(muted).elements[0] == ("span", {"class": "prompt"})


def test_of_a_long_prompt_the_end_is_shown() -> None:
    author = Author(Cage(Parrot()), Limits())  # type: ignore[arg-type]
    prompt = b"a" * 3000 + b"z"
    for score in (False, True):
        text = Seen(last(author, ["parrot"], prompt, Sampling(max_bytes=1), score=score)[0].ink.markup).text
        assert text == "…" + "a" * (SHOWN_PROMPT_CHARACTERS - 1) + "z<"


def test_a_stop_string_ends_the_text_and_is_not_shown() -> None:
    author = Author(Cage(Parrot("once.\nUser: no", after=3)), Limits())  # type: ignore[arg-type]
    (piece,) = last(author, ["parrot"], b"abc", Sampling(temperature=0, stop=(b"\nUser:",)))
    assert Seen(piece.ink.markup).text == "abconce."
    assert piece.stopped and "ended at a stop string" in piece.summary()


def test_models_are_given_back_when_writing_is_dropped(registry: Registry) -> None:
    pieces = Author(registry, Limits()).pieces(["flat", "hebbian"], OWNER, b"a", Sampling(max_bytes=None))
    for _ in range(4):
        next(pieces)
    assert [entry.in_use for entry in registry.entries(OWNER)] == [1, 1]
    pieces.close()
    assert [entry.in_use for entry in registry.entries(OWNER)] == [0, 0]


def test_memories_that_are_too_large_are_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "limits", Limits(max_state_bytes=100))
    with pytest.raises(HatcheryError, match="choose a smaller model"):
        last(Author(registry, registry.limits), ["flat"], b"a", Sampling(max_bytes=1))
    assert [entry.in_use for entry in registry.entries(OWNER)] == [0, 0]


def test_a_title_is_escaped_in_the_summary() -> None:
    (piece,) = last(Author(Cage(Parrot()), Limits()), ["parrot"], b"a", Sampling(max_bytes=1))  # type: ignore[arg-type]
    assert "&lt;b&gt;parrot&lt;/b&gt;" in piece.summary()


@contextmanager
def served(registry: Any, limits: Limits) -> Iterator[Client]:
    with gr.Blocks(analytics_enabled=False) as page:
        build_write(registry, gr.BrowserState(""), limits)
    _, url, _ = page.queue().launch(
        prevent_thread_lock=True, quiet=True, run_history=False, ssr_mode=False, show_error=False
    )
    try:
        yield Client(url, verbose=False, analytics_enabled=False)
    finally:
        page.close()


@pytest.fixture(scope="module")
def shelf(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(shipped, tmp_path_factory.mktemp("data"), Limits(), "cpu")


@pytest.fixture(scope="module")
def client(shelf: Registry) -> Iterator[Client]:
    with served(shelf, Limits(max_write_bytes=20_000)) as client:
        yield client


def test_only_generate_is_offered_with_names_types_and_defaults(client: Client) -> None:
    offered = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(offered) == ["/generate"]
    parameters = {p["parameter_name"]: p["parameter_default"] for p in offered["/generate"]["parameters"]}
    assert parameters == form() | {"prompt": None, "model": ""}
    types = {p["parameter_name"]: p["python_type"]["type"] for p in offered["/generate"]["parameters"]}
    assert types["prompt"] == "str" and types["max_bytes"] == "int" and types["stop"] == "list[str] | str"
    assert offered["/generate"]["returns"][0]["python_type"]["type"] == "str"
    assert inspect.getdoc(Author.generate) is not None
    assert offered["/generate"]["description"].startswith("Continue a prompt")


def test_the_same_seed_gives_the_same_text_as_the_stream_itself(client: Client, shelf: Registry) -> None:
    job = client.submit("In the beginning, ", seed=11, max_bytes=80, api_name="/generate")
    text = job.result()
    assert client.predict("In the beginning, ", seed=11, max_bytes=80, model="flat", api_name="/generate") == text
    assert client.predict("In the beginning, ", seed=12, max_bytes=80, api_name="/generate") != text
    with shelf.lease("flat", OWNER) as model:
        stream = Stream(model)
        stream.feed(b"In the beginning, ")
        written = bytes(part.byte for part in stream.generate(Sampling(max_bytes=80, seed=11, valid_utf8=True)))
    assert text == written.decode()
    outputs = job.outputs()
    assert all(after.startswith(before) for before, after in itertools.pairwise(outputs))


def test_a_stop_string_ends_a_request(client: Client) -> None:
    whole = client.predict("a", temperature=0, max_bytes=60, api_name="/generate")
    stop = whole[20:22]
    assert client.predict("a", temperature=0, max_bytes=60, stop=[stop], api_name="/generate") == whole.split(stop)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nobody"}, "there is no model"),
        ({"max_bytes": 20_001}, "allowed are 1 to 20,000"),
        ({"temperature": 11}, "temperature"),
    ],
)
def test_a_request_that_cannot_be_met_is_answered_in_words(client: Client, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AppError, match=words):
        client.predict("a", api_name="/generate", **changes)


def test_a_request_that_is_stopped_ends_at_once_and_gives_its_model_back(client: Client, shelf: Registry) -> None:
    job = client.submit("a", max_bytes=20_000, api_name="/generate")
    deadline = time.monotonic() + 60
    while not any(job.outputs()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [entry.in_use for entry in shelf.entries(OWNER)] == [1, 0]
    assert job.cancel()
    deadline = time.monotonic() + 120
    while any(entry.in_use for entry in shelf.entries(OWNER)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [entry.in_use for entry in shelf.entries(OWNER)] == [0, 0]
    assert 1 <= len(job.outputs()[-1].encode()) < 20_000


def test_a_page_without_models_says_what_to_do(tmp_path: Path) -> None:
    with (
        served(Registry(tmp_path / "none", tmp_path, Limits(), "cpu"), Limits()) as client,
        pytest.raises(AppError, match="load one in the Models tab"),
    ):
        client.predict("a", api_name="/generate")
