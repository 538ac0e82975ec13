from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from zoo import ZOO, assert_close, assert_same_state, fresh, model, text

from bdh import state as states
from bdh.device import pick_device
from bdh.errors import DataError
from bdh.models import Model
from bdh.models.layer import Frequencies

each = pytest.mark.parametrize("name", ZOO)

BFLOAT16_ERROR = 0.1
"""Root mean square error of bfloat16 logits, in deviations of the float32 ones: 8 bits through a few layers."""


def error(logits: Tensor, exact: Tensor) -> float:
    """Root mean square error in deviations."""
    assert bool(logits.isfinite().all())
    return float((logits.float() - exact).square().mean().sqrt() / exact.std())


def assert_types(state: Any) -> None:
    """Positions and bytes are int64, all else is float32."""
    for key, tensor in states.named_tensors(state).items():
        whole = key.split(".")[-1] in ("position", "patch")
        assert tensor.dtype == (torch.int64 if whole else torch.float32), key


def frequencies(of: Model[Any]) -> dict[str, Tensor]:
    return {key: value for key, value in of.state_dict().items() if key.endswith("freqs")}


@pytest.mark.parametrize("name", ["flat", "hierarchical", "mixture"])
@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "to", "to_and_back", "copied"])
def test_frequencies_stay_float32_bit_for_bit_whatever_the_weights_become(name: str, cast: str) -> None:
    changed = fresh(name)
    kept = {key: value.clone() for key, value in frequencies(changed).items()}
    assert kept
    if cast == "to":
        changed.to(torch.bfloat16)
    elif cast == "to_and_back":
        changed.bfloat16().float()
    elif cast == "copied":
        changed = copy.deepcopy(changed.bfloat16())
    else:
        getattr(changed, cast)()
    for key, value in frequencies(changed).items():
        assert value.dtype == torch.float32 and torch.equal(value, kept[key])
    assert any(isinstance(part, Frequencies) for part in changed.modules())
    wanted = {"double": torch.float64, "half": torch.float16, "to_and_back": torch.float32}.get(cast, torch.bfloat16)
    assert changed.dtype == wanted == next(changed.parameters()).dtype


@each
@torch.no_grad()
def test_with_bfloat16_weights_sums_and_positions_keep_their_types_and_logits_stay_close(name: str) -> None:
    small = fresh(name).bfloat16()
    ids = text(40, 2)
    exact = model(name)(ids).logits
    logits, state = small(ids)
    assert_types(state)
    assert_types(small.empty_state(2))
    assert error(logits, exact) < BFLOAT16_ERROR
    streamed = small.empty_state(2)
    heard = torch.cat([small.step_(ids[:, t : t + 1], streamed).logits for t in range(40)], 1)
    assert_types(streamed)
    assert error(heard, exact) < BFLOAT16_ERROR
    assert streamed.position.tolist() == [40, 40]
    assert small.state_bytes() == model(name).state_bytes()


@each
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "autograd"])
def test_under_autocast_sums_and_positions_keep_their_types_and_logits_stay_close(name: str, grad: bool) -> None:
    listening = fresh(name)
    ids = text(40, 2)
    exact = model(name)(ids).logits.detach()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        first, state = listening(ids[:, :17])
        assert_types(state)
        rest, state = listening(ids[:, 17:], state)
        assert_types(state)
        streamed = listening.empty_state(2)
        for t in range(40):
            listening.step_(ids[:, t : t + 1], streamed)
        assert_types(streamed)
    logits = torch.cat((first, rest), 1).float()
    assert error(logits.detach(), exact) < BFLOAT16_ERROR
    for key, tensor in states.named_tensors(streamed).items():
        if key.split(".")[-1] in ("position", "patch"):
            assert torch.equal(tensor, states.named_tensors(state)[key])
    if grad:
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        grads = [p.grad for p in listening.parameters() if p.grad is not None]
        assert grads and all(bool(g.isfinite().all()) and g.dtype == torch.float32 for g in grads)


@torch.no_grad()
def test_with_bfloat16_weights_sums_go_on_growing_where_a_sum_of_8_bits_would_stop() -> None:
    ids = torch.full((1, 4000), 97)
    exact, rounded = (hearing(ids).state.memory[0] for hearing in (model("hebbian"), fresh("hebbian").bfloat16()))
    assert float((rounded - exact).norm() / exact.norm()) < 0.02


def test_building_with_a_seed_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = fresh("deep", seed=1), fresh("deep", seed=1), fresh("deep", seed=2)
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(left, right) for left, right, _ in pairs)
    assert not all(torch.equal(left, right) for left, _, right in pairs)


@torch.no_grad()
def test_a_stream_heard_in_inference_mode_goes_on_outside_it() -> None:
    for name in ("flat", "hierarchical", "mixture"):
        listening = model(name)
        ids = text(20)
        with torch.inference_mode():
            state = listening(ids[:, :9]).state
        assert_close(listening(ids[:, 9:], state).logits, listening(ids).logits[:, 9:])


@pytest.mark.parametrize(("cuda", "mps", "first"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_a_device_is_picked_by_itself_from_the_fastest_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, first: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device().type == pick_device("auto").type == first
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "cuda:4096", "meta", "x" * 100_000])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(DataError, match=r"cpu|CUDA devices") as caught:
        pick_device(name)
    assert len(str(caught.value)) < 200


@each
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_cuda_hears_what_it_hears_on_the_cpu(name: str) -> None:
    hear_on("cuda", name)


@each
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")
def test_a_model_on_mps_hears_what_it_hears_on_the_cpu(name: str) -> None:
    hear_on("mps", name)


@torch.no_grad()
def hear_on(device: str, name: str) -> None:
    """Compare one pass and a stream of single bytes on `device` with one pass on the CPU."""
    moved = fresh(name).to(device)
    ids = text(40, 2)
    logits, state = model(name)(ids)
    there = moved(ids)
    assert there.logits.device.type == device == moved.device.type
    assert_close(there.logits.cpu(), logits, scale=20.0)
    assert_same_state(states.to_device(there.state, "cpu"), state, scale=20.0)
    streamed = moved.empty_state(2)
    heard = torch.cat([moved.step_(ids[:, t : t + 1].to(device), streamed).logits for t in range(40)], 1)
    assert_close(heard.cpu(), logits, scale=20.0)
    assert all(t.device.type == device for t in states.named_tensors(streamed).values())
