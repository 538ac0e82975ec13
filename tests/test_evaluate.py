"""What is measured of a model, against slow and plain computations of the same."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from hub_server import Hub, serve
from hypothesis import given
from hypothesis import strategies as st

import bdh
from bdh import Sampling, Stream
from bdh.errors import DataError
from bdh.models import Model
from bdh.stream import Written
from train import plots
from train.__main__ import main
from train.evaluate import (
    LastWord,
    Needle,
    NeedleGrid,
    Passage,
    against_position,
    bits_per_byte,
    carried_bits,
    cold_bits,
    last_word,
    long_range,
    names,
    needle_grid,
    read_passages,
    score,
)
from train.evaluate.hearing import hear, judge
from train.evaluate.last_word import dataset_file, passage
from train.evaluate.names import QUESTIONS, named, unseen
from train.evaluate.needle import trial
from train.evaluate.score import wilson_interval

PROSE = b"The cat sat on the mat, and the dog lay by the door. " * 400
KINDS = ("flat-damped", "hierarchical", "hebbian", "transformer", "mixture", "deep")

NEAR, MEAN_NEAR = 5e-4, 1e-6
"""How near the bits of one byte, and the mean of many, are: a mixture sums log probabilities along the stream."""


def random_bytes(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.uint8)


def prose(length: int) -> Any:
    return np.frombuffer(PROSE[:length], np.uint8)


def slow_bits(model: Model[Any], before: bytes, data: bytes) -> np.ndarray[Any, Any]:
    """What each byte of `data` costs behind `before`, in one stream."""
    stream = Stream(model)
    stream.feed(before)
    return stream.score(data)


def slow_greedy(model: Model[Any], before: bytes, count: int) -> bytes:
    stream = Stream(model)
    stream.feed(before)
    return bytes(written.byte for written in stream.generate(Sampling(temperature=0, max_bytes=count)))


def taught(rows: list[bytes], last: int = 1000) -> Model[Any]:
    """A small model that knows the last bytes of the rows, all of one length, by heart."""
    config = bdh.HebbianConfig(n_layer=2, n_head=2, n_embd=48, block_size=256, dropout=0.0)
    model = bdh.build(config, seed=0)
    ids = torch.tensor([list(row) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(80):
        logits = model(ids[:, :-1]).logits[:, -last:]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:][:, -last:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# Bits per byte


@pytest.mark.parametrize("name", KINDS)
def test_carried_bits_are_those_of_one_stream(name: str) -> None:
    model, text = zoo.model(name), random_bytes(1200)
    heard: list[tuple[int, int]] = []
    bits = carried_bits(model, text, progress=lambda done, total: heard.append((done, total)))
    expected = Stream(model).score(text.tobytes())[1:]
    assert bits.shape == (1199,)
    np.testing.assert_allclose(bits, expected, atol=NEAR)
    assert abs(score(bits).bits_per_byte - expected.mean()) < MEAN_NEAR
    assert abs(score(bits).bits_per_byte - bits_per_byte(model, text)) < MEAN_NEAR
    assert heard[-1] == (1199, 1199) and heard == sorted(heard)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("window", [1, 64, 100, 5000])
def test_cold_bits_are_those_of_a_new_stream_for_each_window(name: str, window: int) -> None:
    model, text = zoo.model(name), random_bytes(131 if window == 1 else 331)
    data = text.tobytes()
    expected = np.concatenate(
        [Stream(model).score(data[start : start + window + 1])[1:] for start in range(0, len(data) - 1, window)]
    )
    bits = cold_bits(model, text, window)
    np.testing.assert_allclose(bits, expected, atol=NEAR)
    assert abs(bits.mean() - expected.mean()) < MEAN_NEAR


def test_cold_memory_as_long_as_the_text_is_carried_memory() -> None:
    model, text = zoo.model("flat"), random_bytes(700)
    np.testing.assert_allclose(cold_bits(model, text, 699), carried_bits(model, text), atol=NEAR)


def test_a_score_has_mean_perplexity_and_standard_error() -> None:
    scored = score(np.array([1.0, 2.0, 3.0, 6.0]))
    assert scored.bytes == 4 and scored.bits_per_byte == 3.0 and scored.perplexity_per_byte == 8.0
    assert scored.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert score(np.array([2.5])).standard_error is None


def test_measuring_leaves_a_model_in_training_as_it_was() -> None:
    model = zoo.fresh("transformer").train()
    first = carried_bits(model, random_bytes(60))
    np.testing.assert_array_equal(first, carried_bits(model, random_bytes(60)))
    assert model.training and all(module.training for module in model.modules())


def test_a_model_that_predicts_nothing_finite_is_refused() -> None:
    model = zoo.fresh("flat")
    with torch.no_grad():
        model.get_parameter("lm_head").fill_(math.nan)
    with pytest.raises(DataError, match="not finite"):
        carried_bits(model, random_bytes(10))


# Position


@given(st.integers(1, 30_000))
def test_every_byte_lies_in_one_stretch(count: int) -> None:
    bits = np.random.default_rng(count).random(count)
    places = against_position(bits)
    assert places[0].start_bytes == 1 and places[-1].end_bytes == count + 1
    assert all(before.end_bytes == after.start_bytes for before, after in itertools.pairwise(places))
    assert all(place.bytes == place.end_bytes - place.start_bytes > 0 for place in places)
    assert sum(place.bytes * place.bits_per_byte for place in places) == pytest.approx(bits.sum())
    sizes = [place.bytes for place in places]
    assert len(sizes) == 1 or sizes[-1] >= sizes[-2] / 4


def test_stretches_end_at_round_positions() -> None:
    bits = np.arange(100_000, dtype=float)
    places = against_position(bits)
    assert [place.end_bytes for place in places[:8]] == [2, 5, 10, 20, 50, 100, 200, 500]
    assert [place.start_bytes for place in places[-3:]] == [10_000, 20_000, 50_000]
    # Byte i of the text stands at position i and costs i - 1 here.
    assert places[2].bits_per_byte == np.mean([4, 5, 6, 7, 8])


def test_the_long_past_is_compared_on_the_same_bytes() -> None:
    model, text = zoo.model("hebbian"), random_bytes(9300)
    carried = carried_bits(model, text)
    far = long_range(model, text, carried, near_bytes=500)
    assert far is not None
    data = text.tobytes()
    windows = range(9300 - 8192, 9300, 1024)
    near = [slow_bits(model, data[start - 500 : start], data[start : start + 1024]).mean() for start in windows]
    late = Stream(model).score(data)[-8192:]
    assert far.bytes == 8192 and far.far_bytes == 9300 and far.near_bytes == 500
    assert far.near_bits_per_byte == pytest.approx(np.mean(near), abs=1e-5)
    assert far.far_bits_per_byte == pytest.approx(late.mean(), abs=1e-5)
    assert far.ratio == pytest.approx(late.mean() / np.mean(near), abs=1e-5)
    assert far.holds == (far.ratio <= 1.01)
    spread = late.reshape(8, 1024).mean(1) - far.ratio * np.array(near)
    assert far.standard_error == pytest.approx(spread.std(ddof=1) / math.sqrt(8) / np.mean(near), rel=1e-2)


def test_a_text_too_short_for_a_long_past_says_nothing_of_it() -> None:
    model, text = zoo.model("hebbian"), random_bytes(9191)
    assert long_range(model, text, np.zeros(9190), near_bytes=500) is None


# Rows of any lengths


@pytest.mark.parametrize("name", KINDS)
def test_rows_heard_side_by_side_are_heard_as_if_alone(name: str) -> None:
    model = zoo.model(name)
    rows = [random_bytes(size, seed=size).tobytes() for size in (40, 7, 700, 7, 41, 1)]
    endings = [random_bytes(size, seed=100 + size).tobytes() for size in (3, 9, 0, 1, 2, 600)]
    heard = hear(model, rows)
    for turn in range(2):  # judging changes nothing
        judged = judge(model, heard, endings)
        for index, (row, ending) in enumerate(zip(rows, endings, strict=True)):
            np.testing.assert_allclose(judged[index].bits, slow_bits(model, row, ending), atol=NEAR)
            stream = Stream(model)
            stream.feed(row)
            likeliest = [int(stream.prediction().argmax())]
            for byte in ending[:20]:
                stream.feed(bytes([byte]))
                likeliest.append(int(stream.prediction().argmax()))
            assert judged[index].likeliest[:21].tolist() == likeliest, (turn, index)
            assert len(judged[index].likeliest) == len(ending) + 1
            greedy = slow_greedy(model, row, 5)
            assert judge(model, hear(model, [row]), [greedy])[0].is_greedy(greedy)


# The last word


@pytest.mark.parametrize(
    ("text", "context", "word"),
    [
        ("He opened the door", "He opened the ", "door"),
        ('  "Where is the well-known door?"  ', '"Where is the well-known ', "door"),
        ("It was a well-known", "It was a ", "well-known"),
        ("He said: don't!", "He said: ", "don't"),
        ("Abrió la canción…", "Abrió la ", "canción"),
        ("the first of (1984).", "the first of (", "1984"),
    ],
)
def test_a_passage_is_cut_before_its_last_word(text: str, context: str, word: str) -> None:
    assert passage(text, "here") == Passage(context.encode(), word.encode())


@pytest.mark.parametrize("text", ["door", "door.", "…", "", "'"])
def test_a_passage_of_one_word_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^line 3 must have a last word and something before it$"):
        passage(text, "line 3")


def test_passages_are_read_from_plain_lines_and_from_json_lines(tmp_path: Path) -> None:
    plain, lines = tmp_path / "plain.txt", tmp_path / "lines.jsonl"
    plain.write_text("He opened the door.\r\n\nShe closed the window\n", encoding="utf-8")
    lines.write_text('{"text": "He opened the door."}\n{"id": 2, "text": "She closed the window"}\n', encoding="utf-8")
    assert read_passages(plain) == read_passages(lines)
    assert read_passages(plain) == [Passage(b"He opened the ", b"door"), Passage(b"She closed the ", b"window")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no passages"),
        ("a.txt", b"He opened the door\nno\n", "line 2 of .* must have a last word"),
        ("a.txt", b"caf\xe9 au lait", "no UTF-8 text: byte 3"),
        ("a.jsonl", b"He opened the door\n", "line 1 of .* is no JSON"),
        ("a.txt", b'{"text": "He came in"}\n["x"]', "line 2 of .* must be an object with a text"),
        ("a.jsonl", b'{"text": 7}', "line 1 of .* must be an object with a text"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .* is no JSON"),
    ],
)
def test_a_file_that_holds_no_passages_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_passages(tmp_path / name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        huggingface_hub.close_session()
        yield served


def test_passages_come_from_a_file_on_the_hub_without_a_login(server: Hub) -> None:
    server.add("user/words", {"data/test.jsonl": b'{"text": "He opened the door"}\n'})
    address = "hf://datasets/user/words/data/test.jsonl"
    assert read_passages(dataset_file(address)) == [Passage(b"He opened the ", b"door")]
    assert {request.token for request in server.requests} == {None}
    asked = len(server.requests)
    assert dataset_file(address.replace("words/", "words@main/"), offline=True).name == "test.jsonl"
    assert len(server.requests) == asked


@pytest.mark.parametrize("address", ["user/words/none.txt", "user/none/a.txt", "user/words@v9/a.txt"])
def test_a_file_that_the_hub_does_not_have_is_an_error_of_one_line(server: Hub, address: str) -> None:
    server.add("user/words", {"a.txt": b"He opened the door"})
    with pytest.raises(DataError, match="cannot be had from the Hub") as caught:
        dataset_file(f"hf://datasets/{address}")
    assert "\n" not in str(caught.value)


def test_a_model_that_knows_the_text_guesses_the_last_words() -> None:
    rows = [b"He opened the door and", b"She wrote a long word.", b"They ate all the bread"]
    model = taught(rows)
    passages = [
        passage(text, "here") for text in ("He opened the door", "She wrote a long word", "They ate all the brea")
    ]
    result = last_word(model, passages)
    # Of "bread" the last letter is missing in the passage: the model goes on with it, which is not the word as asked.
    assert (result.passages, result.right) == (3, 2)
    assert result.accuracy == 2 / 3
    assert (result.low, result.high) == wilson_interval(2, 3)
    expected = [slow_bits(model, given.context, given.word).sum() for given in passages]
    assert result.bits_per_word == pytest.approx(np.mean(expected), abs=1e-4)
    assert last_word(model, passages[:2]).accuracy == 1.0


def test_passages_are_asked_as_far_as_the_bytes_go() -> None:
    passages = [Passage(b"x" * 50, b"y")] * 10
    assert last_word(zoo.model("hebbian"), passages, most_bytes=210).passages == 4
    assert last_word(zoo.model("hebbian"), passages, most_bytes=1).passages == 1
    assert last_word(zoo.model("hebbian"), passages, most_bytes=1).passages_given == 10


def test_wilsons_interval_is_the_published_one() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for right, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(right, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


# The needle


@given(st.integers(100, 900), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(0, 1000))
def test_a_haystack_has_its_length_and_hides_the_answer_once(length: int, depth: float, seed: int) -> None:
    text = prose(2000)
    asked = trial(text, length, depth, 8, (seed,))
    context, question = asked.context, asked.context[-len(" The secret word of Abab is") :]
    assert len(context) == length + len(question)
    assert question.startswith(b" The secret word of ") and question.endswith(b" is")
    assert context.count(question) == 2 and context.count(question + asked.endings[0] + b".") == 1
    assert len(set(asked.endings)) == 8 and {len(ending) for ending in asked.endings} == {7}
    assert not any(ending.strip() in context for ending in asked.endings[1:])
    place = context.index(question)
    hidden = len(question) + 8
    assert (place == 0) == (depth == 0.0)
    assert 0 <= place - round(depth * (length - hidden)) <= 64
    assert context[:place] + context[place + hidden : -len(question)] in PROSE


def test_the_needle_grid_is_what_single_streams_find() -> None:
    model, text = zoo.model("flat-damped"), prose(1500)
    grid = needle_grid(model, text, lengths_bytes=(150, 300), depths=(0.0, 1.0), trials=3, candidates=4, seed=5)
    assert (grid.candidates, grid.chance, grid.seed) == (4, 0.25, 5)
    assert [(cell.length_bytes, cell.depth) for cell in grid.cells] == [(150, 0), (150, 1), (300, 0), (300, 1)]
    for cell in grid.cells:
        found = written = 0
        advantage = []
        for number in range(3):
            asked = trial(text, cell.length_bytes, cell.depth, 4, (5, cell.length_bytes, number))
            costs = [slow_bits(model, asked.context, ending).sum() for ending in asked.endings]
            found += int(np.argmin(costs)) == 0
            written += slow_greedy(model, asked.context, 7) == asked.endings[0]
            advantage.append(np.mean(costs[1:]) - costs[0])
        assert (cell.trials, cell.found, cell.written) == (3, found, written)
        assert cell.advantage_bits == pytest.approx(np.mean(advantage), abs=1e-3)


def test_a_model_that_knows_the_answers_finds_every_needle() -> None:
    text = prose(500)
    trials = [trial(text, 110, depth, 8, (0, 110, 0)) for depth in (0.0, 1.0)]
    model = taught([asked.context + asked.endings[0] for asked in trials], last=7)
    grid = needle_grid(model, text, lengths_bytes=(110,), depths=(0.0, 1.0), trials=1)
    assert [(cell.found, cell.written) for cell in grid.cells] == [(1, 1), (1, 1)]
    assert all(cell.advantage_bits > 10 for cell in grid.cells)


def test_other_seeds_hide_other_words() -> None:
    text = prose(2000)
    asked = {trial(text, 200, depth, 2, (seed, 200, 0)).endings for depth in (0.0, 0.5) for seed in range(5)}
    assert len(asked) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths_bytes": (2001,)}, "2,001 bytes was asked for"),
        ({"lengths_bytes": (50,)}, "the least is 70 bytes"),
        ({"depths": (1.5,)}, "from 0"),
        ({"depths": ()}, "at least one"),
        ({"trials": 0}, "0 trials"),
        ({"candidates": 1}, "1 candidates"),
    ],
)
def test_a_grid_that_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        needle_grid(zoo.model("flat"), prose(2000), **({"lengths_bytes": (200,)} | options))


# Names


TRAINED = b"""User: Tell me what "dog" means.
Bot: The word "dog" means an animal; cats are others.

User: What does "prairie dog" mean?
Bot: "Prairie dog": a rodent.

"""


def dialogues(words: list[str]) -> bytes:
    return b"".join(f'User: What does "{word}" mean?\nBot: "{word.title()}" means so.\n\n'.encode() for word in words)


def test_unseen_words_stand_in_quotes_in_the_held_out_part_alone() -> None:
    cut = b'User: Give me a synonym.\nBot: You can also say "feline".\n\n'
    held_out = cut + dialogues(["dog", "cats", "prairie", "ox", "sea lion", "zebra"]) + b'User: Is "e.g." one?\n'
    found = unseen(TRAINED, held_out)
    assert found.words == ("cats", "feline", "zebra")
    assert found.turns[0] == b'User: What does "dog" mean?\nBot: "Dog" means so.\n'
    assert len(found.turns) == 6


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b' The word "zebra" means an animal', "zebra"),
        (b' "Zebra": an animal', "Zebra"),
        (b' "Zebra', ""),
        (b" It means an animal", None),
        (b' You can also say "zebra".', None),
        (b"", None),
    ],
)
def test_an_answer_names_the_word_that_its_form_quotes(answer: bytes, word: str | None) -> None:
    assert named(answer) == word


def test_names_are_counted_by_place_and_length_and_other_forms_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parrot(Stream):
        """Names words of up to 8 letters, longer ones only as the first of the stream; `okapi` it calls it."""

        def generate(self, options: Sampling | None = None) -> Iterator[Written]:
            assert options is not None and options.temperature == 0
            turns = self.recent.count(b"\nUser:")
            word = self.recent.rpartition(b"User:")[2].split(b'"')[1].decode()
            answer = f' The word "{word if len(word) < 9 or turns == 1 else word[:-1]}" means so.\n'
            for byte in (" It means so.\n" if word == "okapi" else answer).encode():
                yield Written(byte, 0.0, byte == 10)

    monkeypatch.setattr(sys.modules[names.__module__], "Stream", Parrot)
    unseen_words = ["zebra", "okapi", "giraffe", "rhinoceros", "antelopes"]
    result = names(zoo.model("flat-damped"), TRAINED + dialogues(["cow"]), dialogues(unseen_words + ["cow"] * 20))
    assert (result.words, result.words_given, result.trained_on) == (5, 5, None)
    start, after = result.asked
    assert (start.past_turns, start.asked, start.naming, start.right) == (0, 5, 4, 4)
    assert (after.past_turns, after.asked, after.naming, after.right) == (20, 5, 4, 2)
    assert [(one.letters, one.asked, one.naming, one.right) for one in after.lengths] == [
        ("up to 5", 2, 1, 1),
        ("6 to 8", 1, 1, 1),
        ("9 and more", 2, 2, 0),
    ]


def test_the_names_of_a_model_are_those_of_its_whole_answers() -> None:
    model = bdh.load("checkpoints/hatchling", device="cpu")
    held_out = dialogues(["giraffe"]) + dialogues(["cow"]) * 20
    result = names(model, TRAINED + dialogues(["cow"]), held_out)
    past = b'User: What does "cow" mean?\nBot: "Cow" means so.\n' * 20
    for asked, before in zip(result.asked, (b"", past), strict=True):
        stream = Stream(model)
        stream.feed(b"\n" + before + f"User: {QUESTIONS[0].format('giraffe')}\nBot:".encode())
        options = Sampling(temperature=0, stop=(b"\n",))
        word = named(bytes(written.byte for written in stream.generate(options)))
        assert (asked.naming, asked.right) == (int(word is not None), int((word or "").lower() == "giraffe"))


def test_dialogues_with_nothing_to_ask_about_are_refused() -> None:
    with pytest.raises(DataError, match="200 of 0 unseen words"):
        names(zoo.model("flat-damped"), TRAINED, TRAINED)
    with pytest.raises(DataError, match="0 turns about other words; 20 are needed"):
        names(zoo.model("flat-damped"), TRAINED, dialogues(["zebra"]))


# Plots


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_drawn_with_axes_that_say_their_units(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    positions = {name: against_position(rng.random(5000)) for name in ("english", "chat")}
    grid = NeedleGrid(8, 0.125, 0, tuple(Needle(n, d, 4, 1, 0, 0.5) for n in (250, 1000) for d in (0.0, 0.5, 1.0)))
    path = tmp_path / f"plot{suffix}"
    plots.draw(positions, {"english": grid}, path)
    if suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        return
    texts = {
        "".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    }
    expected = {"position in the stream, bytes", "bits per byte", "bytes of haystack", "depth of the needle, %"}
    assert expected | {"english", "chat", "25", "250", "1,000", "50"} <= texts


@pytest.mark.parametrize("name", ["plot.pdf", "plot"])
def test_a_plot_goes_to_png_or_svg_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"\.png or \.svg"):
        plots.draw({"a": against_position(np.ones(10))}, {}, tmp_path / name)


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        plots.draw({}, {}, tmp_path / "plot.png")


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provenance = {"texts": {"rhyme": {"sha256": "0" * 64, "trained_bytes": 5}}}
    return zoo.fresh("flat-damped").save_pretrained(tmp_path / "made", provenance=provenance)


@pytest.fixture
def rhyme(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_bytes(PROSE[:1500])
    return path


def test_the_command_measures_what_the_functions_do(
    folder: Path, rhyme: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passages = tmp_path / "passages.txt"
    passages.write_text("He opened the door\nShe closed the window\n")
    out, plot = tmp_path / "result.json", tmp_path / "plot.svg"
    arguments = ["evaluate", str(folder), "--data", str(rhyme), "--lambada", str(passages), "--bytes", "1400"]
    arguments += ["--window", "100", "--trials", "1", "--device", "cpu", "--json", str(out), "--plot", str(plot)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    result = json.loads(out.read_text())
    model, text = bdh.load(folder, device="cpu"), prose(1400)
    carried = carried_bits(model, text)
    measured = result["texts"][0]
    assert measured["bits"]["carried"] == asdict(score(carried))
    assert measured["bits"]["cold"] == asdict(score(cold_bits(model, text, 100)))
    assert measured["positions"] == [asdict(place) for place in against_position(carried)]
    assert measured["long_range"] is None
    grid = needle_grid(model, text, lengths_bytes=(250, 1000), trials=1)
    assert measured["needle"] == json.loads(json.dumps(asdict(grid)))
    assert LastWord(**result["lambada"]) == last_word(model, read_passages(passages), most_bytes=1400)
    assert measured["text"]["heard_bytes"] == 1400 and measured["text"]["text_bytes"] == 1500
    assert measured["text"]["trained_on"] is None
    assert f"{measured['bits']['cold']['bits_per_byte']:.4f}" in said
    assert f"{measured['positions'][-1]['bits_per_byte']:.4f}" in said
    assert "last word: 0 of 2 passages" in said
    assert "position in the stream, bytes" in plot.read_text()


def test_only_what_was_asked_for_is_measured_and_json_alone_goes_to_stdout(
    folder: Path, rhyme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(folder), "--data", str(rhyme), "--only", "bits", "--json", "-", "--quiet"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    measured = json.loads(printed.out)["texts"][0]
    assert printed.err == ""
    assert measured["bits"]["carried"]["bytes"] == 1499
    assert measured["positions"] is measured["needle"] is measured["long_range"] is None


def test_of_a_shipped_corpus_the_last_twentieth_is_heard_and_its_training_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "hatchling", "--data", "english", "--only", "bits", "--bytes", "200", "--json", "-"]
    assert main(arguments) == 0
    text = json.loads(capsys.readouterr().out)["texts"][0]["text"]
    assert text["start_bytes"] == text["text_bytes"] - 2 * int(0.025 * text["text_bytes"])
    assert text["trained_on"] is False
    assert main([*arguments, "--whole"]) == 0
    text = json.loads(capsys.readouterr().out)["texts"][0]["text"]
    assert (text["start_bytes"], text["heard_bytes"], text["trained_on"]) == (0, 200, True)


def test_names_are_asked_from_what_recipes_hold_out_of_the_shipped_dialogues(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["evaluate", "hatchling", "--names", "1", "--quiet", "--device", "cpu"]
    assert main([*arguments, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["texts"] == [] and result["lambada"] is None
    assert (result["names"]["words"], result["names"]["trained_on"]) == (1, False)
    assert [asked["asked"] for asked in result["names"]["asked"]] == [1, 1]
    assert main(arguments) == 0
    assert "after 20 other turns" in capsys.readouterr().out


def test_two_texts_of_one_name_are_told_apart(folder: Path, rhyme: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "rhyme.txt"
    other.parent.mkdir()
    other.write_bytes(PROSE[3:900])
    out = tmp_path / "out.json"
    both = ["--data", str(rhyme), "--data", str(other)]
    assert main(["evaluate", str(folder), *both, "--only", "bits", "--bytes", "50", "--json", str(out)]) == 0
    names = [result["text"]["name"] for result in json.loads(out.read_text())["texts"]]
    assert names == [str(rhyme), str(other)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure on"),
        (["--data", "no such file"], "neither a shipped corpus"),
        (["--data", "english", "--plot", "x.pdf"], ".png or .svg"),
        (["--data", "english", "--plot", "nowhere/x.png"], "no folder nowhere"),
        (["--data", "english", "--json", "nowhere/x.json"], "no folder nowhere"),
        (["--data", "english", "--only", "bits", "--plot", "x.png"], "--plot draws position and needle"),
        (["--data", "english", "--only", "lambada"], "--lambada FILE"),
        (["--lambada", "x", "--only", "bits"], "--only bits is measured on a text"),
        (["--data", "english", "--only", "names"], "--names N"),
        (["--names", "0"], "--names is 0"),
        (["--names", "--only", "bits"], "--only bits is measured on a text"),
        (["--lambada", "no such file"], "cannot be read: No such file"),
        (["--lambada", "hf://datasets/user"], "must have the form hf://datasets/user/name/path"),
        (["--data", "english", "--bytes", "1"], "--bytes is 1"),
        (["--data", "english", "--window", "0"], "--window is 0"),
        (["--data", "english", "--depths", "120"], "--depths are per cent"),
        (["--data", "english", "--trials", "0"], "0 trials"),
        (["--data", "english", "--lengths", "10"], "haystack of 10 bytes"),
        (["--data", "english", "--bytes", "100", "--only", "needle"], "100 bytes to hide needles in"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "hatchling", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: ") and message in printed.err


def test_a_checkpoint_that_is_none_gives_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nothing-here", "--data", "english"]) == 2
    assert "no shipped checkpoint" in capsys.readouterr().err
