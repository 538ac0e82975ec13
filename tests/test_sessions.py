"""Conversations: whose they are, how many are live, and the way back to any turn."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

import bdh
from bdh.config import FlatConfig, HierarchicalConfig
from bdh.errors import HatcheryError, StateError
from bdh.models import build
from bdh.sampling import Sampling
from bdh.stream import Stream
from ui import sessions as sessions_module
from ui.chat import Chat, answer, status
from ui.limits import Limits
from ui.registry import Registry
from ui.sessions import Conversation, Sessions

FLAT = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
HIERARCHICAL = HierarchicalConfig(
    patch_size=4,
    max_seq_len=64,
    global_n_layer=1,
    global_n_embd=16,
    global_n_head=2,
    global_mlp_mult=4,
    local_n_layer=1,
    local_n_embd=16,
    local_n_head=2,
    local_mlp_mult=4,
)
OPTIONS = Sampling(temperature=1.0, max_bytes=20, seed=3, valid_utf8=True)
ANNA, BERT = "browser:anna", "browser:bert"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    build(FLAT, seed=1).save_pretrained(folder / "one")
    build(HIERARCHICAL, seed=2).save_pretrained(folder / "two")
    return folder


def make(shipped: Path, **limits: int) -> tuple[Registry, Sessions]:
    bounds = Limits(**limits)
    registry = Registry(shipped, shipped.parent / "data", bounds, "cpu")
    return registry, Sessions(registry, shipped.parent / "data", bounds)


def say(conversation: Conversation, text: str) -> str:
    list(answer(conversation, text, OPTIONS))
    return conversation.turns[-1].answer


def memory(conversation: Conversation) -> torch.Tensor:
    tensors = bdh.state.named_tensors(conversation.live.snapshot().state)
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


@pytest.mark.parametrize("model", ["one", "two"])
def test_regenerating_meets_the_state_that_the_first_answer_met(shipped: Path, model: str) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, model) as conversation:
        say(conversation, "first")
        before = memory(conversation)
        answer_first, after = say(conversation, "second"), memory(conversation)
        conversation.rewind(1)
        assert torch.equal(memory(conversation), before)
        assert say(conversation, "second") == answer_first
        assert torch.equal(memory(conversation), after)


@pytest.mark.parametrize("model", ["one", "two"])
def test_a_turn_whose_snapshot_is_gone_is_reached_by_hearing_again(
    shipped: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_SNAPSHOT_BYTES", 1)
    _, sessions = make(shipped)
    with sessions.use(ANNA, model) as conversation:
        say(conversation, "first")
        before = memory(conversation)
        for text in ("second", "third", "fourth"):
            say(conversation, text)
        assert [turn.before is None for turn in conversation.turns] == [True, True, True, False]
        conversation.rewind(1)
        assert conversation.unheard
        conversation.catch_up()
        torch.testing.assert_close(memory(conversation), before, atol=1e-4, rtol=1e-4)
        assert [turn.message for turn in conversation.turns] == ["first"]


def test_an_answer_that_is_stopped_leaves_a_turn_that_matches_the_stream(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as conversation:
        stream = answer(conversation, "hello", Sampling(max_bytes=None, seed=0, temperature=5.0))
        for progress in stream:
            if progress.written_bytes > 2:
                break
        stream.close()
        turn = conversation.turns[0]
        heard = turn.heard + turn.written
        assert conversation.live.position_bytes == len(heard)
        assert conversation.live.recent == heard[-256:]


def test_a_later_turn_costs_only_its_own_bytes(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as conversation:
        say(conversation, "a long first message " * 20)
        position = conversation.live.position_bytes
        say(conversation, "b")
        turn = conversation.turns[-1]
        assert turn.heard.lstrip(b"\n") == b"User: b\nBot:"
        assert conversation.live.position_bytes - position == len(turn.heard + turn.written)


def test_owners_have_conversations_of_their_own(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna, sessions.use(BERT, "one") as bert:
        say(anna, "a secret")
        assert bert.live.position_bytes == 0
    assert sessions.peek(BERT, "one").turns == []
    assert sessions.peek("browser:eve", "one") is None


def test_one_conversation_is_not_used_twice_at_once(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one"), pytest.raises(HatcheryError, match="still busy"), sessions.use(ANNA, "one"):
        pass
    with sessions.use(ANNA, "one") as conversation:
        assert conversation.live.position_bytes == 0


@pytest.mark.parametrize("model", ["one", "two"])
def test_the_stream_idle_longest_is_put_aside_and_comes_back_the_same(shipped: Path, model: str) -> None:
    registry, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, model) as anna:
        say(anna, "remember")
        kept, position = memory(anna), anna.live.position_bytes
    with sessions.use(BERT, model):
        assert sessions.live_count() == 1
        assert sessions.peek(ANNA, model).stream is None
    with sessions.use(ANNA, model) as anna:
        assert torch.equal(memory(anna), kept)
        assert anna.live.position_bytes == position
        anna.rewind(0)
        assert anna.live.position_bytes == 0
    assert {entry.id: entry.in_use for entry in registry.entries(ANNA)}[model] == 1


def test_a_loaded_memory_survives_being_put_aside_and_is_where_undoing_ends(shipped: Path) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        anna.live.feed(b"a book")
        anna.rebase("read a text of 6 bytes")
        say(anna, "hello")
    with sessions.use(BERT, "one"):
        pass
    with sessions.use(ANNA, "one") as anna:
        anna.rewind(0)
        assert anna.live.position_bytes == 6
        assert anna.live.recent == b"a book"


def test_when_every_stream_is_busy_another_is_refused(shipped: Path) -> None:
    registry, sessions = make(shipped, max_live_streams=1)
    with (
        sessions.use(ANNA, "one"),
        pytest.raises(HatcheryError, match="room for 1 conversations"),
        sessions.use(BERT, "one"),
    ):
        pass
    assert {entry.id: entry.in_use for entry in registry.entries(ANNA)}["one"] == 1


def test_a_model_that_is_being_used_is_not_unloaded_and_an_idle_stream_does_not_hold_it(shipped: Path) -> None:
    registry, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
        kept = memory(anna)
        with pytest.raises(HatcheryError, match="stays loaded"):
            registry.unload("one", BERT)
    assert "was unloaded" in registry.unload("one", BERT)
    assert not next(entry for entry in registry.entries(BERT) if entry.id == "one").loaded
    with sessions.use(ANNA, "one") as anna:
        assert torch.equal(memory(anna), kept)


def test_an_unused_model_makes_room_for_another(shipped: Path) -> None:
    registry, sessions = make(shipped, max_models=1)
    with sessions.use(ANNA, "one"):
        pass
    with registry.lease("two", ANNA):
        assert [entry.loaded for entry in registry.entries(ANNA)] == [False, True]
        with pytest.raises(HatcheryError, match="room for 1 models, and all are in use"):
            registry.acquire("one", BERT)


def test_what_was_put_aside_is_kept_where_only_the_app_reads_it(shipped: Path) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
    with sessions.use(BERT, "one"):
        folder = shipped.parent / "data" / "parked"
        assert folder.stat().st_mode & 0o777 == 0o700
        note, file = sorted(folder.iterdir())
        assert "anna" not in note.name + file.name + note.read_text()


def test_a_memory_put_aside_that_cannot_be_read_is_heard_again(shipped: Path) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "remember")
        kept = memory(anna)
    with sessions.use(BERT, "one"):
        (file,) = (shipped.parent / "data" / "parked").glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:100])
    with sessions.use(ANNA, "one") as anna:
        anna.catch_up()
        torch.testing.assert_close(memory(anna), kept, atol=1e-4, rtol=1e-4)
        assert [turn.message for turn in anna.turns] == ["remember"]


def test_a_conversation_is_found_again_after_a_restart_by_its_owner_alone(shipped: Path) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
        kept = memory(anna)
    with sessions.use(BERT, "one") as bert:  # Anna's is put aside
        say(bert, "and I")
        heard, spoken = memory(bert), bert.turns[0].answer
    sessions.note_idle()  # Bert's is not, and is heard again
    with sessions.use("session:api", "two") as passing:
        say(passing, "nobody")
    sessions.note_idle()
    _, after = make(shipped)
    assert after.peek("browser:other", "one") is None and after.peek(ANNA, "two") is None
    assert after.peek("session:api", "two") is None
    assert "put aside" in status(after.peek(ANNA, "one"))
    with after.use(ANNA, "one") as anna:
        assert anna.unheard == b"" and torch.equal(memory(anna), kept)
        assert [turn.message for turn in anna.turns] == ["hello"]
    with after.use(BERT, "one") as bert:
        bert.catch_up()
        torch.testing.assert_close(memory(bert), heard, atol=1e-4, rtol=1e-4)
        assert bert.turns[0].answer == spoken


def test_what_was_read_before_a_restart_is_remembered_and_can_be_come_back_to(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        anna.live.feed(b"a book")
        anna.rebase("read a text of 6 bytes")
        kept = memory(anna)
        say(anna, "hello")
    sessions.note_idle()
    _, after = make(shipped)
    with after.use(ANNA, "one") as anna:
        anna.rewind(0)
        assert torch.equal(memory(anna), kept) and anna.base_text == "read a text of 6 bytes"


def test_a_conversation_that_was_begun_anew_leaves_nothing_for_a_restart(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
    sessions.note_idle()
    with sessions.use(ANNA, "one") as anna:
        anna.clear()
    sessions.note_idle()
    assert list((shipped.parent / "data" / "parked").iterdir()) == []


def test_the_note_of_a_moment_before_loses_only_what_came_after(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "first")
    with sessions.use(ANNA, "one") as anna:
        say(anna, "second")
    # The kill comes here, before anybody was idle.
    _, after = make(shipped)
    with after.use(ANNA, "one") as anna:
        anna.catch_up()
        assert [turn.message for turn in anna.turns] == ["first"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"turns": [["a"]], "base_text": "", "parked_bytes": null}', "{}"])
def test_a_damaged_note_is_a_conversation_that_begins_anew(shipped: Path, damage: str) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
    sessions.note_idle()
    (note,) = (shipped.parent / "data" / "parked").glob("*.json")
    note.write_text(damage)
    _, after = make(shipped)
    with after.use(ANNA, "one") as anna:
        assert anna.live.position_bytes == 0 and not anna.turns


def test_conversations_beyond_what_is_remembered_are_forgotten_the_one_idle_longest_first(shipped: Path) -> None:
    _, sessions = make(shipped, max_conversations=2)
    for owner in (ANNA, BERT, "browser:carl"):
        with sessions.use(owner, "one") as own:
            say(own, "hello")
    sessions.note_idle()
    assert sessions.peek(ANNA, "one") is None and sessions.peek(BERT, "one") is not None
    busy = sessions.use(BERT, "one"), sessions.use("browser:carl", "one")
    with busy[0], busy[1], pytest.raises(HatcheryError, match="too many conversations"), sessions.use(ANNA, "one"):
        pass


def test_conversations_of_an_earlier_process_are_deleted_after_their_time(shipped: Path) -> None:
    _, sessions = make(shipped)
    for owner in (ANNA, BERT):
        with sessions.use(owner, "one") as own:
            say(own, owner)
    sessions.park_idle("one")
    _, after = make(shipped, parked_hours=2)
    folder = shipped.parent / "data" / "parked"
    assert len(list(folder.iterdir())) == 4
    (old,) = (path for path in folder.glob("*.json") if "anna" in path.read_text())
    os.utime(old, (time.time() - 8_000,) * 2)
    after.sweep()
    assert len(list(folder.iterdir())) == 2
    assert after.peek(ANNA, "one") is None and after.peek(BERT, "one") is not None


def test_a_model_that_can_never_fit_puts_nobody_aside(shipped: Path) -> None:
    small = FLAT.n_layer * FLAT.n_head * FLAT.n_neuron * FLAT.n_embd * 4 + 8
    _, sessions = make(shipped, max_state_bytes=3 * small)
    with sessions.use(ANNA, "one") as anna:
        assert anna.live.state_bytes == small
    huge = FlatConfig(n_layer=8, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
    build(huge, seed=3).save_pretrained(shipped / "three")
    _, sessions = make(shipped, max_state_bytes=3 * small)
    with sessions.use(ANNA, "one"):
        pass
    with pytest.raises(HatcheryError, match=r"at most .* are allowed here"), sessions.use(ANNA, "three"):
        pass
    assert sessions.peek(ANNA, "one").stream is not None


def test_an_unknown_model_leaves_no_conversation_behind(shipped: Path) -> None:
    _, sessions = make(shipped)
    with pytest.raises(HatcheryError, match="no model"), sessions.use(ANNA, "nobody"):
        pass
    assert sessions.peek(ANNA, "nobody") is None


def test_a_reading_that_is_broken_off_is_where_the_next_turn_begins(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
        anna.turns.clear()
        anna.base_text, anna.base_due = "read from a text", True
        reading = anna.live.feeding(b"x" * 1_000)
        next(reading)
        reading.close()
        half = anna.live.position_bytes
    with sessions.use(ANNA, "one") as anna:
        say(anna, "and now?")
        anna.rewind(0)
        assert anna.live.position_bytes == half


def test_hearing_again_can_be_broken_off_and_goes_on_where_it_was(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_SNAPSHOT_BYTES", 1)
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "a first message " * 60)
        kept, position = memory(anna), anna.live.position_bytes
        say(anna, "second")
        say(anna, "third")
        anna.rewind(1)
        hearing = anna.catching_up()
        left = next(hearing)
        hearing.close()
        assert 0 < left == len(anna.unheard)
        assert anna.live.position_bytes == position - left
    with sessions.use(ANNA, "one") as anna:
        anna.catch_up()
        torch.testing.assert_close(memory(anna), kept, atol=1e-4, rtol=1e-4)
        said = say(anna, "second")
    assert [turn.message for turn in anna.turns] == ["a first message " * 60, "second"]
    assert anna.turns[1].heard.endswith(b"User: second\nBot:") and said


def test_a_stream_put_aside_before_it_caught_up_hears_everything_again(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_SNAPSHOT_BYTES", 1)
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "first")
        kept = memory(anna)
        say(anna, "second")
        say(anna, "third")
        anna.rewind(1)
    with sessions.use(BERT, "one"):
        pass
    with sessions.use(ANNA, "one") as anna:
        anna.catch_up()
        torch.testing.assert_close(memory(anna), kept, atol=1e-4, rtol=1e-4)


def slow_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let a stream be written for as long as one likes: set when that begins, and to be set for it to end."""
    writing, finish = threading.Event(), threading.Event()
    save = Stream.save

    def slow(stream: Stream, path: Path) -> None:
        writing.set()
        assert finish.wait(120)
        save(stream, path)

    monkeypatch.setattr(Stream, "save", slow)
    return writing, finish


def test_others_go_on_while_a_stream_is_written_to_a_slow_disk(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sessions = make(shipped, max_live_streams=2)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
    writing, finish = slow_disk(monkeypatch)
    with sessions.use(BERT, "one") as bert:

        def crowd() -> None:
            with sessions.use("browser:carol", "one"):
                pass

        third = threading.Thread(target=crowd)
        third.start()
        assert writing.wait(120)
        assert say(bert, "not kept waiting") == bert.turns[-1].answer
        assert sessions.peek(ANNA, "one") is not None
        finish.set()
        third.join(120)
        assert not third.is_alive()
    assert sessions.peek(ANNA, "one").stream is None


def test_one_who_is_being_put_aside_waits_for_it_though_others_want_to_put_it_aside_too(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
    writing, finish = slow_disk(monkeypatch)
    said: list[str] = []

    def come() -> None:
        try:
            with sessions.use(ANNA, "one") as anna:
                said.append(anna.turns[0].message)
        except HatcheryError as error:
            said.append(str(error))

    first, again = threading.Thread(target=sessions.park_idle, args=("one",)), threading.Thread(target=come)
    first.start()
    assert writing.wait(120)
    sessions.park_idle("one")
    again.start()
    again.join(0.3)
    assert said == []
    finish.set()
    first.join(120)
    again.join(120)
    assert said == ["hello"]


def test_where_the_disk_refuses_nothing_is_put_aside_or_lost(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
        kept = memory(anna)

    def full(stream: Stream, path: Path) -> None:
        raise StateError("no space left")

    monkeypatch.setattr(Stream, "save", full)
    with pytest.raises(HatcheryError, match="room for 1 conversations"), sessions.use(BERT, "one"):
        pass
    with sessions.use(ANNA, "one") as anna:
        assert torch.equal(memory(anna), kept)


def test_what_has_been_idle_for_too_long_is_forgotten_when_the_page_is_used_next(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, sessions = make(shipped, parked_hours=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
    now = time.monotonic()
    monkeypatch.setattr(sessions_module.time, "monotonic", lambda: now + 7_200)
    with sessions.use(BERT, "two"):
        pass
    assert sessions.peek(ANNA, "one") is None
    assert {entry.id: entry.in_use for entry in registry.entries(ANNA)} == {"one": 0, "two": 1}


def test_a_stream_torn_in_the_middle_of_a_byte_is_heard_again_and_holds_no_place(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
        kept = memory(anna)

        def full(*_: object, **__: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(anna.live.model, "step_", full)
            anna.live.feed(b"lost")
        assert anna.live.torn
    with sessions.use(BERT, "one"):
        assert sessions.peek(ANNA, "one").stream is None
    with sessions.use(ANNA, "one") as anna:
        anna.catch_up()
        torch.testing.assert_close(memory(anna), kept, atol=1e-4, rtol=1e-4)
    assert {entry.id: entry.in_use for entry in registry.entries(ANNA)}["one"] == 1


def test_a_reading_that_ends_in_the_middle_of_a_byte_leaves_an_empty_memory_that_works(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        anna.base_text, anna.base_due = "read from a text", True

        def full(*_: object, **__: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(anna.live.model, "step_", full)
            anna.live.feed(b"a book")
    with sessions.use(ANNA, "one") as anna:
        assert (anna.live.position_bytes, anna.base_text) == (0, "")
        assert say(anna, "hello") == anna.turns[0].answer


def test_a_visitor_whose_stream_is_being_put_aside_waits_and_gets_it_back(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one") as anna:
        say(anna, "hello")
        kept = memory(anna)
    writing = threading.Event()
    save = Stream.save

    def slow(stream: Stream, path: Path) -> None:
        writing.set()
        time.sleep(0.3)
        save(stream, path)

    monkeypatch.setattr(Stream, "save", slow)
    crowd = threading.Thread(target=sessions.park_idle, args=("one",))
    crowd.start()
    assert writing.wait(120)
    with sessions.use(ANNA, "one") as anna:
        assert torch.equal(memory(anna), kept)
    crowd.join(120)


def test_an_error_while_a_memory_is_brought_back_leaves_it_on_disk(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        anna.live.feed(b"a book")
        anna.rebase("read a text of 6 bytes")
        say(anna, "hello")
        kept = memory(anna)
    sessions.park_idle("one")

    def full(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Stream, "load", full)
        with sessions.use(ANNA, "one"):
            pass
    with sessions.use(ANNA, "one") as anna:
        assert torch.equal(memory(anna), kept)
        anna.rewind(0)
        assert anna.live.recent == b"a book"
    assert {entry.id: entry.in_use for entry in registry.entries(ANNA)}["one"] == 1


def test_what_is_refused_at_once_leaves_no_conversation_behind(shipped: Path) -> None:
    _, sessions = make(shipped, max_live_streams=1)
    with sessions.use(ANNA, "one"):
        with pytest.raises(HatcheryError, match="room for 1"), sessions.use(BERT, "one"):
            pass
        assert sessions.peek(BERT, "one") is None


def test_conversations_with_a_model_that_is_gone_for_good_are_forgotten(shipped: Path) -> None:
    registry, sessions = make(shipped)
    files = [str(shipped / "one" / name) for name in ("model.safetensors", "config.json")]
    id = registry.load_files(files, ANNA)
    with sessions.use(ANNA, id) as anna:
        say(anna, "hello")
    assert "deleted" in registry.unload(id, ANNA)
    assert sessions.peek(ANNA, id) is None
    assert list((shipped.parent / "data" / "parked").iterdir()) == []


def test_what_was_read_is_not_called_empty_when_it_was_put_aside(shipped: Path) -> None:
    _, sessions = make(shipped)
    with sessions.use(ANNA, "one") as anna:
        anna.live.feed(b"a book")
        anna.rebase("read a text of 6 bytes")
    sessions.park_idle("one")
    assert "put aside" in status(sessions.peek(ANNA, "one"))


def test_stopping_a_retry_while_the_conversation_is_heard_again_leaves_it_as_it_was(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, sessions = make(shipped)
    chat = Chat(registry, sessions, Limits())
    with sessions.use(ANNA, "one") as anna:
        say(anna, "a first message " * 60)
        say(anna, "second")
        kept, turns = memory(anna), list(anna.turns)
    sessions.park_idle("one")
    with sessions.use(ANNA, "one") as anna:
        updates = chat._again(anna, 1, "second", OPTIONS)
        next(updates)
        updates.close()
        assert anna.turns == turns and anna.unheard
        anna.catch_up()
        torch.testing.assert_close(memory(anna), kept, atol=1e-4, rtol=1e-4)
