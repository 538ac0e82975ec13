"""Symmetries of the flat model change no logit, and are found back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import FLAT, ZOO, assert_close, fresh, louder, text

from bdh.config import FlatConfig
from bdh.errors import MergeError
from bdh.merge import align
from bdh.merge.axes import groups
from bdh.models import Model, build, skeleton
from bdh.models.observe import observing

CALIBRATION = bytes(text(700, seed=3)[0].tolist())
FLAT_MODELS = ("flat", "flat-damped", "doubled")


def flat(name: str, seed: int = 0) -> Model[Any]:
    if name != "doubled":
        return fresh(name, seed)
    model = louder(build(FlatConfig(n_layer=2, n_embd=16, n_head=4, mlp_internal_dim_multiplier=8), seed=seed)).eval()
    # Each frequency twice, as in a merge of two models.
    once = model.attn.freqs.flatten()[::4]
    model.attn.freqs = torch.cat((once, once)).repeat_interleave(2).view(1, 1, 1, -1)
    return model


def with_tensors(model: Model[Any], tensors: dict[str, Tensor]) -> Model[Any]:
    other = skeleton(model.config)
    other.load_state_dict(tensors, assign=True)
    return other.eval()


def random_rotation(width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(width, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat((ones, torch.eye(width, dtype=torch.float64)[:, 1:]), 1)).Q[:, 1:]
    turn = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=generator, dtype=torch.float64)).Q
    return basis @ turn @ basis.mT + 1 / width


def random_pairs(model: Model[Any], seed: int = 0) -> Tensor:
    """For each head another order, among pairs of equal frequency."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = model.attn.freqs.flatten()[::2]
    orders = torch.arange(len(frequencies)).repeat(model.config.n_head, 1)
    for order in orders:
        for one in frequencies.unique():
            where = (frequencies == one).nonzero()[:, 0]
            order[where] = where[torch.randperm(len(where), generator=generator)]
    return orders


def assert_same_function(model: Model[Any], tensors: dict[str, Tensor]) -> None:
    ids = text(150, batch=2)
    with torch.no_grad():
        assert_close(with_tensors(model, tensors)(ids).logits, model(ids).logits, scale=10)


def assert_same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        torch.testing.assert_close(actual[name], tensor, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", FLAT_MODELS)
def test_a_rotation_that_fixes_the_all_ones_vector_changes_no_logit(name: str) -> None:
    model = flat(name)
    turned = align.rotated(model.state_dict(), model.config, random_rotation(model.config.n_embd))
    assert not torch.allclose(turned["embed.weight"], model.embed.weight, atol=0.01)
    assert_same_function(model, turned)


@pytest.mark.parametrize("name", FLAT_MODELS)
def test_neuron_pairs_that_change_places_alike_in_all_heads_change_no_logit(name: str) -> None:
    model = flat(name)
    order = torch.randperm(model.config.n_neuron // 2, generator=torch.Generator().manual_seed(2))
    moved = align.permuted_pairs(model.state_dict(), model.config, order)
    assert torch.equal(moved["attn.freqs"].flatten()[::2], model.attn.freqs.flatten()[::2][order])
    assert not torch.equal(moved["encoder"], model.encoder)
    assert_same_function(model, moved)


def test_neuron_pairs_of_equal_frequency_change_places_in_each_head_apart() -> None:
    model = flat("doubled")
    orders = random_pairs(model)
    assert not torch.equal(orders[0], orders[1])
    moved = align.permuted_pairs(model.state_dict(), model.config, orders)
    assert torch.equal(moved["attn.freqs"], model.attn.freqs)
    assert torch.equal(moved["encoder"][1][:, ::2], model.encoder[1][:, ::2][:, orders[1]])
    assert_same_function(model, moved)


@pytest.mark.parametrize("decay", [(), (0.9, 0.99, 0.9)])
def test_heads_of_equal_damping_change_places_and_no_logit_changes(decay: tuple[float, ...]) -> None:
    model = louder(
        build(FlatConfig(n_layer=2, n_embd=12, n_head=3, mlp_internal_dim_multiplier=4, decay=decay), seed=0)
    )
    moved = align.permuted_heads(model.eval().state_dict(), model.config, torch.tensor([2, 1, 0]))
    assert torch.equal(moved["encoder_v"][0], model.encoder_v[2])
    assert_same_function(model, moved)


def test_what_is_no_symmetry_is_refused() -> None:
    model = flat("flat-damped")
    tensors, config = model.state_dict(), model.config
    turn = random_rotation(12)
    for wrong, said in (
        (random_rotation(10), "width 12"),
        (2 * turn, "not orthogonal"),
        (torch.full_like(turn, torch.nan), "not orthogonal"),
        (torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q, "all-ones"),
    ):
        with pytest.raises(MergeError, match=said):
            align.rotated(tensors, config, wrong)
    orders = torch.arange(8).repeat(3, 1)
    orders[1] = orders[1].flip(0)
    for wrong, said in (
        (orders, "other frequencies"),
        (torch.zeros(8, dtype=torch.int64), "no permutation"),
        (torch.arange(7), "no permutation"),
        (torch.arange(8).repeat(2, 1), "2 heads"),
    ):
        with pytest.raises(MergeError, match=said):
            align.permuted_pairs(tensors, config, wrong)
    with pytest.raises(MergeError, match=r"damping 0\.97 cannot take the place of head 0 with 0\.8"):
        align.permuted_heads(tensors, config, torch.tensor([1, 0, 2]))


@pytest.mark.parametrize("name", ["hierarchical", "hebbian", "mixture"])
def test_models_whose_norms_do_not_commute_with_a_rotation_are_refused(name: str) -> None:
    with pytest.raises(MergeError, match="cannot be aligned"):
        align.aligned(fresh("flat"), fresh(name))
    with pytest.raises(MergeError, match="cannot be aligned"):
        align.rotated({}, ZOO[name], torch.eye(16))


def test_models_of_two_widths_are_refused() -> None:
    with pytest.raises(MergeError, match="16 and 12 wide"):
        align.find_rotation(fresh("flat"), fresh("flat-damped"))


@pytest.mark.parametrize("heard", [None, CALIBRATION])
@pytest.mark.parametrize("name", FLAT_MODELS)
def test_a_random_symmetry_is_found_back(name: str, heard: bytes | None) -> None:
    model = flat(name)
    tensors = align.rotated(model.state_dict(), model.config, random_rotation(model.config.n_embd, seed=4))
    tensors = align.permuted_pairs(tensors, model.config, random_pairs(model, seed=5))
    if not model.config.decay:
        tensors = align.permuted_heads(tensors, model.config, torch.arange(model.config.n_head).roll(1))
    everywhere = torch.randperm(model.config.n_neuron // 2, generator=torch.Generator().manual_seed(6))
    tensors = align.permuted_pairs(tensors, model.config, everywhere)
    found, report = align.aligned(model, with_tensors(model, tensors), heard)
    assert_same_tensors(found, model.state_dict())
    sources = ["embeddings", "read-outs"] + (["residuals"] if heard else [])
    assert list(report.before) == list(report.after) == sources
    assert all(value == pytest.approx(1, abs=1e-4) for value in report.after.values())
    assert all(value < 0.7 for value in report.before.values())
    assert report.calibration_bytes == len(heard or b"")
    assert report.heads_moved == (0 if model.config.decay else model.config.n_head)
    assert report.pairs_moved


def test_aligning_a_stranger_brings_it_nearer_and_keeps_its_function() -> None:
    reference, stranger = flat("doubled", seed=0), flat("doubled", seed=1)
    found, report = align.aligned(reference, stranger, CALIBRATION)
    assert_same_function(stranger, found)
    assert all(report.after[name] > report.before[name] + 0.05 for name in report.after), report


def test_the_rotation_found_does_not_depend_on_how_the_other_was_rotated_before() -> None:
    reference, stranger = flat("flat", seed=0), flat("flat", seed=1)
    turned = align.rotated(stranger.state_dict(), stranger.config, random_rotation(16, seed=7))
    straight, _ = align.aligned(reference, stranger, CALIBRATION)
    again, _ = align.aligned(reference, with_tensors(stranger, turned), CALIBRATION)
    assert_same_tensors(again, straight)


def test_models_of_other_sizes_or_frequencies_are_rotated_and_not_matched() -> None:
    reference = flat("flat")
    larger = louder(build(FlatConfig(n_layer=3, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8), seed=1)).eval()
    found, report = align.aligned(reference, larger, CALIBRATION)
    assert report.heads_moved is report.pairs_moved is None
    assert_same_function(larger, found)
    other = flat("flat", seed=1)
    other.attn.freqs = other.attn.freqs * 0.5
    assert align.aligned(reference, other)[1].pairs_moved is None
    with pytest.raises(MergeError, match="other frequencies"):
        align.match_pairs(reference.state_dict(), other.state_dict(), reference.config)


def test_residuals_are_seen_layer_by_layer_and_the_last_is_what_is_read_out() -> None:
    model, seen = flat("flat"), []
    with torch.no_grad(), observing(lambda name, x: seen.append(x) if name == "residual" else None):
        logits = model(text(20)).logits
    assert len(seen) == FLAT.n_layer
    assert torch.equal(model.read_out(seen[-1]), logits)


def test_the_groups_of_a_flat_model_hold_all_that_is_rotated_but_the_byte_tables() -> None:
    model = flat("flat")
    (group,) = groups(model.config)
    turned = align.rotated(model.state_dict(), model.config, random_rotation(16))
    changed = {name for name, tensor in turned.items() if not torch.equal(tensor, model.state_dict()[name])}
    assert changed == {*group.names, "embed.weight", "lm_head"} - {group.frequencies}


def test_pairs_of_one_frequency_that_are_too_many_are_not_matched_and_not_waited_for() -> None:
    config = FlatConfig(n_layer=1, n_embd=16, n_head=1, mlp_internal_dim_multiplier=64)
    parents = [louder(build(config, seed=seed)).eval() for seed in (0, 1)]
    for parent in parents:
        parent.attn.freqs.fill_(0.25)  # type: ignore[union-attr, operator]
    tensors = [parent.state_dict() for parent in parents]
    with pytest.raises(MergeError, match="512 neuron pairs of a head have one frequency; at most 64"):
        align.match_pairs(*tensors, config)
    _, found = align.aligned(*parents)
    assert found.heads_moved is None and found.pairs_moved is None
