from __future__ import annotations

import pytest
import torch
from zoo import ZOO, assert_equal_state, model, text

from bdh import state as states
from bdh.errors import StateError

each = pytest.mark.parametrize("name", ZOO)


@each
def test_a_memory_survives_its_named_tensors(name: str) -> None:
    listening = model(name)
    state = states.detach(listening(text(9, 2)).state)
    again = states.from_named_tensors(listening.empty_state(2), states.named_tensors(state))
    assert type(again) is type(state)
    assert_equal_state(again, state)


@each
def test_names_are_dotted_paths_and_every_tensor_has_streams_first(name: str) -> None:
    named = states.named_tensors(model(name).empty_state(3))
    assert all(tensor.shape[0] == 3 for tensor in named.values())
    assert all(key and key == key.strip(".") and ".." not in key for key in named)
    assert any(key.endswith("position") for key in named)


def test_a_memorys_names_do_not_change() -> None:
    names = {name: list(states.named_tensors(model(name).empty_state())) for name in ("flat", "mixture", "transformer")}
    assert names == {
        "flat": ["position", "memory.0", "memory.1"],
        "mixture": [
            "members.0.position",
            "members.0.memory.0",
            "members.0.memory.1",
            "members.1.position",
            "members.1.patch",
            "members.1.context",
            "members.1.global_layers.0",
            "members.1.global_layers.1",
            "members.1.local_layers.0",
            "members.1.local_layers.1",
            "log_weights",
            "predictions",
        ],
        "transformer": ["position", "layers.0.keys", "layers.0.values", "layers.1.keys", "layers.1.values"],
    }


@each
def test_joining_what_was_selected_gives_the_batch_back(name: str) -> None:
    state = states.detach(model(name)(text(9, 3)).state)
    alone = [states.select(state, [stream]) for stream in range(3)]
    assert_equal_state(states.join(alone), state)
    assert_equal_state(states.join([alone[2], alone[0]]), states.select(state, [2, 0]))
    assert_equal_state(states.select(state, [0, 0, 1]), states.join([alone[0], alone[0], alone[1]]))
    assert_equal_state(states.join([state]), state)


@each
def test_a_clone_and_a_selection_share_no_memory_with_their_source(name: str) -> None:
    listening = model(name)
    state = states.detach(listening(text(9, 2)).state)
    copies = [states.clone(state), states.select(state, [0, 1]), states.join([state])]
    kept = states.clone(copies[0])
    listening.step_(text(6, 2, seed=1), state)
    for copy in copies:
        assert_equal_state(copy, kept)
    states.copy_(state, copies[0])
    assert_equal_state(state, kept)


@each
def test_mapping_keeps_the_type_and_order_of_a_memory(name: str) -> None:
    state = model(name).empty_state(2)
    doubled = states.map_tensors(lambda tensor: tensor + tensor, state)
    assert type(doubled) is type(state)
    before, after = states.named_tensors(state), states.named_tensors(doubled)
    assert list(before) == list(after)
    assert all(torch.equal(after[key], 2 * tensor) for key, tensor in before.items())


@each
def test_state_bytes_is_what_the_tensors_take(name: str) -> None:
    state = model(name).empty_state(2)
    taken = sum(t.numel() * {torch.int64: 8, torch.float32: 4}[t.dtype] for t in states.named_tensors(state).values())
    assert states.state_bytes(state) == taken == model(name).state_bytes(2)


@each
def test_moving_a_memory_keeps_its_values(name: str) -> None:
    state = states.detach(model(name)(text(5, 2)).state)
    assert_equal_state(states.to_device(state, "cpu"), state)
    shapes = {key: (t.shape, t.dtype) for key, t in states.named_tensors(state).items()}
    moved = states.named_tensors(states.to_device(state, "meta"))
    assert {key: (t.shape, t.dtype) for key, t in moved.items()} == shapes
    assert all(t.device.type == "meta" for t in moved.values())


def test_setting_apart_copies_only_what_is_shared() -> None:
    state = model("flat").empty_state()
    other = state._replace(position=torch.tensor([7]))
    parted = states.apart(other, state)
    assert_equal_state(parted, other)
    assert parted.position is other.position
    assert all(new.data_ptr() != old.data_ptr() for new, old in zip(parted.memory, state.memory, strict=True))


@each
def test_a_memory_of_another_shape_type_or_set_of_names_is_refused_by_name(name: str) -> None:
    template = model(name).empty_state()
    good = states.named_tensors(template)
    first = next(iter(good))
    last = list(good)[-1]
    with pytest.raises(StateError, match=f"lacks '{last}'"):
        states.from_named_tensors(template, {key: value for key, value in good.items() if key != last})
    with pytest.raises(StateError, match="holds 'extra"):
        states.from_named_tensors(template, {**good, "extra": torch.zeros(1)})
    with pytest.raises(StateError, match=f"'{first}' of the saved memory is .* torch.int32; .* needs .* torch.int64"):
        states.from_named_tensors(template, {**good, first: good[first].int()})
    with pytest.raises(StateError, match=f"'{last}' of the saved memory is"):
        states.from_named_tensors(template, {**good, last: torch.zeros(*good[last].shape, 1)})
    with pytest.raises(StateError, match="lacks") as caught:
        states.from_named_tensors(template, {})
    assert len(str(caught.value)) < 200
    with pytest.raises(StateError) as caught:
        states.from_named_tensors(template, {**good, "x" * 100_000: torch.zeros(1)})
    assert len(str(caught.value)) < 200


def test_the_memory_of_another_model_is_refused() -> None:
    flat, hebbian = model("flat").empty_state(), model("hebbian").empty_state()
    with pytest.raises(StateError, match="this model needs"):
        states.from_named_tensors(flat, states.named_tensors(hebbian))
    with pytest.raises(StateError, match="lacks"):
        states.from_named_tensors(flat, states.named_tensors(model("transformer").empty_state()))
