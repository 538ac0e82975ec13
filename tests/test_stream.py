from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from zoo import ZOO, assert_equal_state, fresh, model

from bdh.checkpoint import weights_checksum
from bdh.config import FlatConfig
from bdh.errors import DataError, StateError
from bdh.models import build
from bdh.sampling import Sampling
from bdh.stream import Stream

KINDS = ("flat", "hierarchical", "hierarchical-transformer", "hebbian", "transformer", "average", "mixture", "deep")
PROMPT = b"The quick brown fox"


def heard(name: str = "flat", data: bytes = PROMPT) -> Stream:
    stream = Stream(model(name))
    stream.feed(data)
    return stream


def written(stream: Stream, **options: Any) -> bytes:
    return bytes(item.byte for item in stream.generate(Sampling(**({"seed": 1, "max_bytes": 30} | options))))


def assert_same(stream: Stream, other: Stream) -> None:
    assert (stream.position_bytes, stream.recent) == (other.position_bytes, other.recent)
    assert_equal_state(stream._state, other._state)
    if stream.position_bytes:
        assert np.array_equal(stream.prediction(), other.prediction())


class Scripted(torch.nn.Module):
    """A model that writes a given text, whatever it hears, so that stops can be tried on any text."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.text = text
        self.config = model("flat").config

    def empty_state(self, batch_size: int = 1) -> Any:
        return model("flat").empty_state(batch_size)

    def step_byte_(self, byte: int, state: Any) -> None:
        return None

    def products_per_byte(self) -> int:
        return 1

    def step_(self, ids: Tensor, state: Any, *, last_only: bool = True) -> Any:
        at = int(state.position[0]) + ids.shape[1] - 1
        state.position.add_(ids.shape[1])
        logits = torch.full((1, 1, 256), -50.0)
        logits[0, 0, self.text[at % len(self.text)]] = 50.0
        return model("flat").forward(ids[:, :1])._replace(logits=logits, state=state)


def scripted(text: bytes) -> Stream:
    """A stream that has heard one byte and goes on with `text`."""
    stream = Stream(Scripted(text))  # type: ignore[arg-type]
    stream.feed(b"?")
    return stream


@pytest.mark.parametrize("name", KINDS)
def test_greedy_writing_is_determined_and_is_the_likeliest_byte_of_each_forward_pass(name: str) -> None:
    first = written(heard(name), temperature=0.0, seed=None)
    assert first == written(heard(name), temperature=0.0, seed=None)
    text = PROMPT
    for byte in first[:5]:
        logits = model(name)(torch.tensor([list(text)])).logits[0, -1]
        assert logits[byte] >= logits.max() - 1e-4
        text += bytes([byte])


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_writes_the_same_bytes(name: str) -> None:
    assert written(heard(name)) == written(heard(name))
    assert written(heard(name)) != written(heard(name), seed=2)


@given(st.lists(st.integers(0, 40), max_size=4))
def test_what_is_written_does_not_depend_on_how_the_prompt_was_fed(cuts: list[int]) -> None:
    data = bytes(range(65, 105))
    stream = Stream(model("hierarchical"))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 40], strict=True):
        stream.feed(data[start:end])
    assert stream.position_bytes == 40
    assert written(stream, temperature=0.0) == written(heard("hierarchical", data), temperature=0.0)


def test_surprise_is_what_the_model_itself_gave_before_any_cut() -> None:
    stream = heard()
    for item in stream.fork().generate(Sampling(max_bytes=10, seed=0, temperature=2.0, top_k=20)):
        logits = torch.from_numpy(stream.prediction())
        assert item.surprise_bits == pytest.approx(-logits.log_softmax(0)[item.byte].item() / math.log(2))
        stream.feed(bytes([item.byte]))


def test_a_byte_limit_is_kept() -> None:
    for limit in (0, 1, 17):
        stream = heard()
        assert len(written(stream, max_bytes=limit)) == limit
        assert stream.position_bytes == len(PROMPT) + limit


def test_without_a_limit_writing_goes_on() -> None:
    generator = heard().generate(Sampling(max_bytes=None, seed=0))
    assert len([next(generator) for _ in range(300)]) == 300


def test_a_stream_that_heard_nothing_has_nothing_to_say() -> None:
    stream = Stream(model("flat"))
    with pytest.raises(DataError, match="heard nothing"):
        next(stream.generate())
    stream.feed(b"")
    with pytest.raises(DataError, match="heard nothing"):
        stream.prediction()


def test_a_prediction_that_is_not_finite_is_said_to_be_so() -> None:
    broken = fresh("flat")
    with torch.no_grad():
        broken.lm_head[0, 0] = math.nan
    stream = Stream(broken)
    stream.feed(b"a")
    with pytest.raises(DataError, match="not finite"):
        next(stream.generate())


def stopped(text: bytes, stops: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """What is shown of a text, and the stop string that ends it: the first that is complete, the longest of two."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, b""


@given(
    st.text("ab", min_size=1, max_size=20).map(str.encode),
    st.lists(st.text("ab", min_size=1, max_size=5).map(str.encode), max_size=3).map(tuple),
)
def test_writing_ends_with_the_first_stop_string_wherever_it_lies(text: bytes, stops: tuple[bytes, ...]) -> None:
    shown, stop = stopped(text, stops)
    stream = scripted(text)
    items = list(stream.generate(Sampling(max_bytes=len(text), temperature=0.0, stop=stops)))
    assert bytes(item.byte for item in items if not item.is_stop) == shown
    assert bytes(item.byte for item in items if item.is_stop) == stop
    assert stream.position_bytes == 1 + len(items)


@given(
    st.text("ab", min_size=1, max_size=16).map(str.encode),
    st.lists(st.text("ab", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=3).map(tuple),
)
def test_no_byte_that_could_begin_a_stop_string_is_given_out_early(text: bytes, stops: tuple[bytes, ...]) -> None:
    stream = scripted(text)
    out = b""
    for item in stream.generate(Sampling(max_bytes=len(text), temperature=0.0, stop=stops)):
        if not item.is_stop:
            out += bytes([item.byte])
        heard_bytes = text[: stream.position_bytes - 1]
        held = heard_bytes[len(out) :]
        if len(heard_bytes) < len(text) and not stopped(heard_bytes, stops)[1]:
            # Whatever comes next, no stop string can reach back into what was given out.
            assert not any(stop.startswith(heard_bytes[-n:]) for stop in stops for n in range(len(held) + 1, len(stop)))


@pytest.mark.parametrize("name", KINDS)
def test_a_generator_dropped_midway_leaves_a_stream_that_heard_what_was_given_out(name: str) -> None:
    stream = heard(name)
    generator = stream.generate(Sampling(max_bytes=50, seed=3))
    given_out = bytes(next(generator).byte for _ in range(11))
    generator.close()
    assert stream.position_bytes == len(PROMPT) + 11
    assert stream.recent == PROMPT + given_out
    other = heard(name)
    for byte in given_out:
        other.feed(bytes([byte]))
    assert_same(stream, other)


def test_feeding_can_be_dropped_between_pieces() -> None:
    data = bytes(range(256)) * 10
    stream = Stream(model("flat"))
    feeding = stream.feeding(data)
    assert next(feeding) == stream.position_bytes == 256
    feeding.close()
    assert stream.recent == data[:256]
    stream.feed(data[256:])
    assert stream.position_bytes == len(data)


def test_progress_is_told_to_the_last_byte() -> None:
    seen: list[tuple[int, int]] = []
    Stream(model("flat")).feed(bytes(600), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)]


@given(st.integers(0, 2**32), st.sampled_from([b"a", b"caf\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xf0"]))
def test_with_the_guard_a_random_model_writes_valid_text_to_the_last_byte(seed: int, prompt: bytes) -> None:
    stream = heard(random.Random(seed).choice(KINDS), prompt)
    limit = 3 + seed % 9
    out = written(stream, seed=seed, max_bytes=limit, valid_utf8=True, temperature=3.0)
    assert len(out) == limit
    assert (prompt + out).decode().encode() == prompt + out


@pytest.mark.parametrize("name", ZOO)
def test_a_snapshot_brings_back_the_moment_it_was_taken(name: str) -> None:
    stream = heard(name)
    snapshot = stream.snapshot()
    first = written(stream)
    after = stream.snapshot()
    assert snapshot.size_bytes == stream.state_bytes
    stream.restore(snapshot)
    assert_same(stream, heard(name))
    assert written(stream) == first
    stream.clear()
    stream.restore(after)
    assert (stream.position_bytes, stream.recent) == (len(PROMPT) + 30, PROMPT + first)


@pytest.mark.parametrize("name", ZOO)
def test_a_fork_goes_its_own_way(name: str) -> None:
    stream = heard(name)
    fork = stream.fork()
    fork.feed(b" jumps over")
    assert_same(stream, heard(name))
    stream.feed(b" sleeps")
    assert_same(fork, heard_in_two(name, PROMPT, b" jumps over"))


def heard_in_two(name: str, first: bytes, second: bytes) -> Stream:
    stream = heard(name, first)
    stream.feed(second)
    return stream


@pytest.mark.parametrize("name", ZOO)
def test_a_cleared_stream_is_a_new_one(name: str) -> None:
    stream = heard(name)
    stream.clear()
    assert_same(stream, Stream(model(name)))
    with pytest.raises(DataError, match="heard nothing"):
        stream.prediction()
    stream.feed(PROMPT)
    assert_same(stream, heard(name))


def test_the_last_256_bytes_are_known() -> None:
    stream = heard(data=bytes(range(256)) * 2)
    stream.feed(b"xyz")
    assert stream.recent == bytes(range(3, 256)) + b"xyz"


def test_the_memory_does_not_grow() -> None:
    stream = heard()
    size = stream.state_bytes
    stream.feed(bytes(5000))
    assert stream.state_bytes == size == model("flat").state_bytes()


@pytest.mark.parametrize("name", ZOO)
def test_a_saved_memory_goes_on_with_identical_bytes(tmp_path: Path, name: str) -> None:
    stream = heard(name)
    stream.save(tmp_path / "memory.safetensors")
    loaded = Stream(model(name))
    loaded.load(tmp_path / "memory.safetensors")
    assert_same(loaded, stream)
    assert written(loaded) == written(stream)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.safetensors"]


def test_an_empty_memory_is_saved_and_loaded_too(tmp_path: Path) -> None:
    Stream(model("flat")).save(tmp_path / "memory")
    stream = heard()
    stream.load(tmp_path / "memory")
    assert_same(stream, Stream(model("flat")))


def test_a_memory_of_another_model_is_refused_with_both_checksums(tmp_path: Path) -> None:
    other = fresh("flat")
    with torch.no_grad():
        other.lm_head[0, 0] += 1
    stream = Stream(other)
    stream.feed(b"abc")
    stream.save(tmp_path / "memory")
    theirs, mine = (weights_checksum(m.state_dict())[:12] for m in (other, model("flat")))
    assert_refused(tmp_path / "memory", f"flat model with weights {theirs}; this model's are {mine}")


def assert_refused(path: Path, message: str, name: str = "flat") -> None:
    """The file is refused with the message, and the stream stays as it was."""
    stream = heard(name)
    with pytest.raises(StateError, match=message):
        stream.load(path)
    assert_same(stream, heard(name))


def tampered(path: Path, change: dict[str, Any], name: str = "flat", metadata: dict[str, str] | None = None) -> Path:
    """A saved memory with some of its tensors changed, or left out if None."""
    heard(name).save(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata() | (metadata or {})
        tensors = {key: file.get_tensor(key) for key in file.keys()} | change  # noqa: SIM118 - it is no dict
    save_file({key: value for key, value in tensors.items() if value is not None}, path, header)
    return path


def test_a_truncated_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    heard().save(path)
    data = path.read_bytes()
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert_refused(path, "no saved memory")


def test_what_is_no_memory_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent", "there is no file")
    assert_refused(tmp_path, "no saved memory")
    save_file({"a": torch.zeros(2)}, tmp_path / "weights")
    assert_refused(tmp_path / "weights", "but no saved memory")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(heard().state_bytes + 1_000_001)
    assert_refused(tmp_path / "large", "larger than this model's memory of")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state.memory.0": torch.full((1, 2, 32, 16), math.nan)}, "damaged"),
        ({"state.memory.1": torch.full((1, 2, 32, 16), math.inf)}, "damaged"),
        ({"logits": torch.full((256,), math.nan)}, "damaged"),
        ({"logits": torch.zeros(255)}, "damaged"),
        ({"logits": None}, "damaged"),
        ({"recent": torch.zeros(257, dtype=torch.uint8)}, "damaged"),
        ({"recent": torch.zeros(3)}, "damaged"),
        ({"state.position": torch.tensor([-1])}, "damaged"),
        ({"state.position": torch.tensor([5])}, "damaged"),
        ({"state.memory.0": torch.zeros(1, 2, 32, 8)}, r"state\.memory\.0|memory\.0.*needs \(1, 2, 32, 16\)"),
        ({"state.memory.0": torch.zeros(1, 2, 32, 16, dtype=torch.float64)}, "float64"),
        ({"state.memory.0": None}, "lacks 'memory.0'"),
        ({"state.memory.9": torch.zeros(1)}, "holds 'memory.9'"),
    ],
)
def test_a_tampered_memory_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert_refused(tampered(tmp_path / "memory", change), message)


def test_members_that_heard_different_lengths_and_patches_that_hold_no_bytes_are_refused(tmp_path: Path) -> None:
    assert_refused(
        tampered(tmp_path / "a", {"state.members.1.position": torch.tensor([3])}, "mixture"), "damaged", "mixture"
    )
    patch = {"state.patch": torch.full((1, 4), 256)}
    assert_refused(tampered(tmp_path / "b", patch, "hierarchical"), "damaged", "hierarchical")


def test_a_memory_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="could not be written to"):
        heard().save(tmp_path / "absent" / "memory")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StateError, match="could not be written to"):
        heard().save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_what_the_forward_pass_gave_each_byte(name: str) -> None:
    ids = torch.tensor([list(PROMPT)])
    with torch.no_grad():
        predicted = model(name)(ids).logits[0, :-1].double().log_softmax(-1)
    expected = [8.0, *(-predicted[torch.arange(len(PROMPT) - 1), ids[0, 1:]] / math.log(2)).tolist()]
    stream = Stream(model(name))
    np.testing.assert_allclose(stream.score(PROMPT), expected, atol=1e-4)
    assert_same_position(stream, heard(name))


def assert_same_position(stream: Stream, other: Stream) -> None:
    assert (stream.position_bytes, stream.recent) == (other.position_bytes, other.recent)
    np.testing.assert_allclose(stream.prediction(), other.prediction(), atol=1e-4)


@given(st.lists(st.integers(0, 60), max_size=4), st.sampled_from(KINDS))
def test_scores_do_not_depend_on_how_the_bytes_were_split(cuts: list[int], name: str) -> None:
    data = bytes(random.Random(0).choices(range(256), k=60))
    whole = Stream(model(name)).score(data)
    stream = Stream(model(name))
    parts = [stream.score(data[a:b]) for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_scores_of_a_long_text_are_taken_in_pieces() -> None:
    data = bytes(random.Random(0).choices(b"abc", k=2100))
    costs = Stream(model("hebbian")).score(data)
    assert costs.shape == (2100,)
    stream = Stream(model("hebbian"))
    stream.feed(data[:1500])
    np.testing.assert_allclose(stream.score(data[1500:]), costs[1500:], atol=1e-3)


def test_a_memory_of_the_same_weights_under_another_damping_is_refused(tmp_path: Path) -> None:
    plain = build(FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), seed=1)
    damped = build(FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, decay=(0.9, 0.9)), seed=1)
    stream = Stream(plain)
    stream.feed(b"abc")
    stream.save(tmp_path / "memory")
    with pytest.raises(StateError, match="another configuration"):
        Stream(damped).load(tmp_path / "memory")


def test_the_checksum_of_a_model_follows_its_weights() -> None:
    changing = fresh("flat")
    first = changing.checksum()
    assert first == weights_checksum(changing.state_dict()) == changing.checksum()
    with torch.no_grad():
        changing.encoder.mul_(2.0)  # type: ignore[operator, union-attr]
    assert changing.checksum() == weights_checksum(changing.state_dict()) != first
    changing.load_state_dict(model("flat").state_dict())
    assert changing.checksum() == first
