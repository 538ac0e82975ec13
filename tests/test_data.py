"""Texts cut into what is trained, validated and tested on, and read as streams."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh.errors import ConfigError, DataError
from train.data import Splits, Streams, read_bytes, split
from train.sources import Prepared, Text, prepare


def prepared(folder: Path, data: bytes, validation: bytes = b"", test: bytes = b"") -> Prepared:
    """A prepared text, with what was named to validate and test on behind it."""
    path = folder / "text.bin"
    path.write_bytes(data + validation + test)
    size = len(data) + len(validation) + len(test)
    return Prepared(Text(name="mine", rows=2), path, "checksum", size, 0, 0, len(validation), len(test))


def counted(size: int) -> bytes:
    """Bytes of which any four in a row tell their place."""
    return np.arange((size + 3) // 4, dtype=">u4").tobytes()[:size]


@given(st.integers(1000, 5000), st.floats(0.001, 0.6), st.floats(0, 0.35))
def test_a_cut_text_is_its_parts_in_order_with_no_overlap(
    tmp_path_factory: pytest.TempPathFactory, size: int, validation: float, test: float
) -> None:
    data = counted(size)
    parts = split(
        prepared(tmp_path_factory.mktemp("cut"), data), validation=validation, test=test if test > 0.001 else 0
    )
    assert parts.train.tobytes() + parts.validation.tobytes() + parts.test.tobytes() == data
    assert len(parts.validation) == int(size * validation)
    assert len(parts.test) == int(size * (test if test > 0.001 else 0))
    assert (parts.name, parts.rows, parts.sha256) == ("mine", 2, "checksum")


@pytest.mark.parametrize("validation", [b"", b"named to validate"])
@pytest.mark.parametrize("test", [b"", b"named to test"])
def test_what_was_named_takes_the_place_of_the_cut(tmp_path: Path, validation: bytes, test: bytes) -> None:
    data = counted(1000)
    parts = split(prepared(tmp_path, data, validation, test), validation=0.1, test=0.2)
    end = 1000 - (0 if test else 200)
    start = end - (0 if validation else 100)
    assert parts.train.tobytes() == data[:start]
    assert parts.validation.tobytes() == (validation or data[start:end])
    assert parts.test.tobytes() == (test or data[end:])


def test_no_test_may_be_wanted_and_none_is_made(tmp_path: Path) -> None:
    assert split(prepared(tmp_path, counted(100)), validation=0.1, test=0).test.size == 0


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (0, 0, "validation is 0; it must be a fraction of the text, above 0 and below 1"),
        (1.0, 0, r"validation is 1\.0"),
        (float("nan"), 0, "validation is nan"),
        (0.1, -0.1, r"test is -0\.1; it must be a fraction of the text, 0 or above and below 1"),
    ],
)
def test_a_fraction_that_does_not_fit_is_named(tmp_path: Path, validation: float, test: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split(prepared(tmp_path, counted(100)), validation=validation, test=test)


@pytest.mark.parametrize(("size", "validation", "test"), [(9, 0.1, 0), (100, 0.6, 0.6), (15, 0.1, 0.05), (1, 0.5, 0)])
def test_a_text_of_which_a_part_is_left_without_bytes_is_refused(
    tmp_path: Path, size: int, validation: float, test: float
) -> None:
    with pytest.raises(DataError, match=f"mine has {size} bytes: .* use a longer text or other fractions"):
        split(prepared(tmp_path, counted(size)), validation=validation, test=test)


def test_a_file_that_lost_bytes_is_refused(tmp_path: Path) -> None:
    text = prepared(tmp_path, counted(100))
    text.path.write_bytes(counted(60))
    with pytest.raises(DataError, match=r"text\.bin has 60 bytes and had 100"):
        split(text, validation=0.1, test=0.1)


def test_a_text_goes_from_its_source_to_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(counted(1000))
    text = prepare(Text(name="mine", source=str(path)), tmp_path / "data")
    parts = split(text, validation=0.05, test=0.05)
    assert parts.sha256 == text.sha256
    assert parts.test.tobytes() == counted(1000)[-50:]


def test_parts_are_read_by_memory_map_and_cannot_be_changed(tmp_path: Path) -> None:
    path, size = tmp_path / "text.bin", 1 << 38
    with path.open("wb") as file:
        file.truncate(size)  # nothing, which takes no room on disk and would not fit into memory
    parts = split(Prepared(Text(name="mine"), path, "", size, 0), validation=0.01, test=0.01)
    streams = Streams([parts], [2], 16, seed=0, carried=False)
    assert streams.next()[0].shape == (2, 16)
    with pytest.raises(ValueError, match="read-only"):
        parts.train[0] = 1


def parts_of(*sizes: int) -> list[Splits]:
    """Texts in memory, each of bytes that tell their place."""
    cut = [np.frombuffer(counted(size), dtype=np.uint8) for size in sizes]
    none = np.empty(0, dtype=np.uint8)
    return [Splits(f"text{i}", 1, data, none, none, "") for i, data in enumerate(cut)]


def batches(streams: Streams, count: int) -> list[torch.Tensor]:
    return [torch.stack(streams.next()) for _ in range(count)]


@pytest.mark.parametrize("carried", [True, False])
def test_targets_are_the_bytes_after_and_come_from_the_rows_own_text(carried: bool) -> None:
    texts = parts_of(400, 900)
    streams = Streams(texts, [2, 1], 8, seed=1, carried=carried)
    for _ in range(100):
        ids, targets = streams.next()
        assert ids.shape == targets.shape == (3, 8)
        assert ids.dtype == targets.dtype == torch.int64
        assert torch.equal(ids[:, 1:], targets[:, :-1])
        for row, text in enumerate((0, 0, 1)):
            whole = texts[text].train.tobytes()
            # A row that walks on reads its text in a circle; one that is drawn afresh never reaches over the end.
            assert bytes([*ids[row].tolist(), targets[row, -1].item()]) in (whole + whole if carried else whole)


@given(st.integers(1, 40), st.integers(45, 200), st.integers(0, 2**32))
def test_carried_rows_read_their_text_in_a_circle_and_leave_nothing_out(length: int, size: int, seed: int) -> None:
    streams = Streams(parts_of(size), [2], length, seed)
    ids = torch.cat([streams.next()[0] for _ in range(3 * size // length + 1)], dim=1)
    circle = counted(size) * 6
    for row in ids:
        read = bytes(row.tolist())
        assert read in circle
        assert len(read) >= 3 * size


def test_rows_drawn_afresh_begin_anywhere_in_their_text_as_likely() -> None:
    streams = Streams(parts_of(256 * 4), [50], 8, seed=0, carried=False)
    drawn: list[int] = []
    for _ in range(400):
        streams.next()
        drawn += streams.state_dict()["places"]
    places = np.array(drawn)
    assert (places.min(), places.max()) == (0, 256 * 4 - 8 - 1)
    quarters = np.histogram(places, bins=4, range=(0, 256 * 4 - 8))[0] / len(places)
    assert np.abs(quarters - 0.25).max() < 0.02


@given(st.booleans(), st.integers(0, 6), st.integers(1, 6), st.integers(0, 2**32))
def test_streams_that_go_on_from_a_saved_state_give_the_same_batches(
    carried: bool, before: int, after: int, seed: int
) -> None:
    texts = parts_of(300, 77)
    whole = Streams(texts, [2, 3], 9, seed, carried=carried)
    batches(whole, before)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again = Streams(texts, [2, 3], 9, seed + 1, carried=carried)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(torch.stack(batches(whole, after)), torch.stack(batches(again, after)))


@given(st.booleans(), st.integers(1, 7), st.integers(0, 2**32))
def test_shards_together_are_the_whole_batch_and_share_their_state(carried: bool, shards: int, seed: int) -> None:
    texts = parts_of(300, 77)
    options: dict[str, Any] = {"rows": [4, 3], "length": 9, "seed": seed, "carried": carried}
    whole = Streams(texts, **options)
    parts = [Streams(texts, **options, shard=shard, shards=shards) for shard in range(shards)]
    for _ in range(3):
        expected, given_ = torch.stack(whole.next()), [torch.stack(part.next()) for part in parts]
        for shard, batch in enumerate(given_):
            assert torch.equal(batch, expected[:, shard::shards])
        assert all(part.state_dict() == whole.state_dict() for part in parts)
    # As many processes as there are now may go on with what another number of them left.
    whole.load_state_dict(parts[-1].state_dict())
    parts[0].load_state_dict(whole.state_dict())
    assert torch.equal(parts[0].next()[0], whole.next()[0][::shards])


def test_the_same_seed_begins_at_the_same_places_and_another_elsewhere() -> None:
    texts = parts_of(1000)
    first, same, other = (Streams(texts, [8], 9, seed).state_dict()["places"] for seed in (3, 3, 4))
    assert first == same != other
    assert len(set(first)) > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": 2, "shards": 2}, "shard 2 of 2 cannot read"),
        ({"shards": 3}, "from 2 rows; every process needs a row"),
        ({"length": 0}, "chunks of 0"),
    ],
)
def test_shards_without_rows_and_chunks_without_bytes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Streams(parts_of(100), [2], **{"length": 9, "seed": 0, **options})


def test_a_text_too_short_for_a_chunk_is_refused() -> None:
    with pytest.raises(DataError, match="a text of 10 bytes is too short for chunks of 9"):
        Streams(parts_of(10), [1], 9, seed=0)


@pytest.mark.parametrize("places", [[1], [1, 100], [-1, 1]])
def test_places_of_other_texts_are_refused(places: list[int]) -> None:
    streams = Streams(parts_of(100), [2], 9, seed=0)
    with pytest.raises(DataError, match="do not fit the 2 rows"):
        streams.load_state_dict({**streams.state_dict(), "places": places})


def test_bytes_of_a_corpus_and_of_a_file_are_read_into_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123456789")
    assert read_bytes(str(tmp_path / "a.txt")).tobytes() == b"0123456789"
    assert read_bytes("chat")[:5].tobytes() == b"User:"
    with pytest.raises(DataError, match="is a folder; name one file of it"):
        read_bytes(str(tmp_path))
