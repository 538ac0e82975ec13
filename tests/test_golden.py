from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from bdh.config import ComposedConfig, FlatConfig, HebbianConfig, HierarchicalConfig
from bdh.models import Composed, Flat, Hebbian, Hierarchical, Model
from bdh.models.layer import Frequencies
from bdh.ops import rope

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
NAMES = (
    "flat_small",
    "flat_three_heads",
    "member_a",
    "member_b",
    "hierarchical_patch4",
    "hierarchical_ragged",
    "hierarchical_transformer",
    "hebbian_qkv",
    "composed_average",
)


@cache
def read(name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header metadata and tensors of a golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@cache
def model(name: str) -> Model[Any]:
    """The golden model, its weights under upstream's own names."""
    header, tensors = read(name)
    if name == "composed_average":
        members = [model(member) for member in json.loads(header["members"])]
        composed = Composed(ComposedConfig(method="average", members=tuple(m.config for m in members)))
        composed.members = torch.nn.ModuleList(members)
        with torch.no_grad():
            composed.combine_weight.copy_(torch.stack((tensors["combine_weight"], torch.tensor(0.0))))
        return composed.eval()
    fields = json.loads(header["config"])
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    built: Model[Any]
    if header["kind"] == "flat":
        built = Flat(FlatConfig(**fields))
    elif header["kind"] == "hierarchical":
        built = Hierarchical(HierarchicalConfig(**fields))
        tied = weights.pop("local_model.byte_embed.weight")
        assert torch.equal(tied, weights["patch_embedder.byte_embed.weight"])
    else:
        built = Hebbian(HebbianConfig(**fields))
        assert torch.equal(weights.pop("lm_head.weight"), weights["tok_emb.weight"])
        for layer in range(fields["n_layer"]):
            definition = weights.pop(f"blocks.{layer}.attn.rope.inv_freq")
            size = fields["n_embd"] // fields["n_head"]
            ours = rope.radian_increments(size, 10_000.0, torch.device("cpu")) / 2.0**64 * 2 * torch.pi
            torch.testing.assert_close(ours.float(), definition)
    built.load_state_dict(weights, strict=True)
    return built.eval()


def test_every_golden_file_is_compared() -> None:
    of_methods = {"mergekit"}  # compared in test_merge_weights
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == {*NAMES} | of_methods


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "autograd"])
def test_one_pass_gives_the_released_codes_logits(name: str, grad: bool) -> None:
    _, tensors = read(name)
    with torch.set_grad_enabled(grad):
        logits = model(name)(tensors["input_ids"][:, :-1]).logits
    torch.testing.assert_close(logits.detach(), tensors["logits"], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [1, 3, 7, 32])
@torch.no_grad()
def test_any_number_of_bytes_a_call_gives_the_released_codes_logits(name: str, parts: int) -> None:
    _, tensors = read(name)
    ids = tensors["input_ids"][:, :-1]
    listening = model(name)
    state, heard = listening.empty_state(ids.shape[0]), []
    for part in ids.split(parts, dim=1):
        heard.append(listening.step_(part, state, last_only=False).logits)
    torch.testing.assert_close(torch.cat(heard, 1), tensors["logits"], **TOLERANCE)
    assert state.position.tolist() == [ids.shape[1]] * ids.shape[0]


@pytest.mark.parametrize("name", [name for name in NAMES if "loss_next_byte" in read(name)[0]])
@torch.no_grad()
def test_the_loss_of_the_next_byte_is_the_released_codes(name: str) -> None:
    header, tensors = read(name)
    ids = tensors["input_ids"]
    logits = model(name)(ids[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(float(header["loss_next_byte"]), abs=1e-5)


@torch.no_grad()
def test_the_hebbian_sums_after_the_last_byte_are_the_released_codes() -> None:
    _, tensors = read("hebbian_qkv")
    state = model("hebbian_qkv")(tensors["input_ids"][:, :-1]).state
    for layer, memory in enumerate(state.memory):
        torch.testing.assert_close(memory, tensors[f"sigma.{layer}"], **TOLERANCE)


@pytest.mark.parametrize("name", ["flat_small", "flat_three_heads", "hierarchical_patch4", "hierarchical_ragged"])
def test_frequencies_made_from_the_configuration_are_the_released_codes_bit_for_bit(name: str) -> None:
    _, tensors = read(name)
    stored = {key: value for key, value in tensors.items() if key.endswith("attn.freqs")}
    assert stored
    for freqs in stored.values():
        assert torch.equal(Frequencies(freqs.shape[-1]).freqs, freqs)
