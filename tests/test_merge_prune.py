"""Models cut to fewer neurons."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import FLAT, FLAT_DAMPED, HIERARCHICAL, assert_close, fresh, text

from bdh.config import Config
from bdh.errors import MergeError
from bdh.merge.axes import groups
from bdh.merge.prune import _chosen, allowed_neurons, pruned
from bdh.models import skeleton

HEARD = bytes(text(300, seed=3)[0].tolist())
BDH = ("flat", "flat-damped", "hierarchical", "hierarchical-damped")


def logits(config: Config, tensors: dict[str, Tensor]) -> Tensor:
    model = skeleton(config)
    model.load_state_dict(tensors, assign=True)
    with torch.no_grad():
        return model.eval()(text(50)).logits


def silenced(name: str, seed: int = 0) -> tuple[Config, dict[str, Tensor], dict[str, Tensor]]:
    """A model in which half of the pairs of each group never fire, and those that do."""
    model = fresh(name)
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    awake = {}
    for group in groups(model.config):
        order = torch.randperm(group.n_neuron // 2, generator=generator)
        half = allowed_neurons(group)[len(allowed_neurons(group)) // 2 - 1] // 2
        awake[group.prefix] = order[:half].sort().values
        for pair in order[half:].tolist():
            tensors[group.encoders[0]][:, :, 2 * pair : 2 * pair + 2] = 0
    return model.config, tensors, awake


@pytest.mark.parametrize("by", ["random", "activity"])
@pytest.mark.parametrize("name", BDH)
def test_what_stays_of_a_group_are_whole_pairs_in_their_order(name: str, by: Any) -> None:
    model = fresh(name)
    tensors = model.state_dict()
    config, cut, kept = pruned(tensors, model.config, fraction=0.5, by=by, text=HEARD)
    assert logits(config, cut).isfinite().all()
    for old, new in zip(groups(model.config), groups(config), strict=True):
        assert new.n_neuron == old.n_neuron // 2
        pairs = kept[old.prefix]
        assert pairs.shape == (old.n_head, new.n_neuron // 2)
        assert torch.equal(pairs, pairs[:1].sort().values.expand_as(pairs))
        for place, pair in enumerate(pairs[0].tolist()):
            for neuron in (0, 1):
                to, of = 2 * place + neuron, 2 * pair + neuron
                for encoder in old.encoders:
                    assert torch.equal(cut[encoder][:, :, to], tensors[encoder][:, :, of])
                assert torch.equal(new.by_head(cut[new.decoder])[:, to], old.by_head(tensors[old.decoder])[:, of])
                assert cut[new.frequencies][0, 0, 0, to] == tensors[old.frequencies][0, 0, 0, of]


@pytest.mark.parametrize("name", BDH)
def test_pruning_by_activity_cuts_what_never_fires_and_no_logit_changes(name: str) -> None:
    config, tensors, awake = silenced(name)
    smaller, cut, kept = pruned(tensors, config, fraction=0.5, by="activity", text=HEARD)
    for prefix, pairs in awake.items():
        assert all(set(pairs.tolist()) == set(own.tolist()) for own in kept[prefix])
    assert_close(logits(smaller, cut), logits(config, tensors), scale=10)


def test_heads_keep_pairs_of_their_own_where_frequencies_allow() -> None:
    model = fresh("flat")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    once = tensors["attn.freqs"].flatten()[:16]
    tensors["attn.freqs"] = torch.cat((once, once)).view(1, 1, 1, -1)
    tensors["encoder"][0, :, :16] = 0
    tensors["encoder"][1, :, 16:] = 0
    config, cut, kept = pruned(tensors, model.config, 16, by="activity", text=HEARD)
    assert kept[""].tolist() == [list(range(8, 16)), list(range(8))]
    assert torch.equal(cut["attn.freqs"].flatten(), once)
    assert_close(logits(config, cut), logits(model.config, tensors), scale=10)


@pytest.mark.parametrize("by", ["random", "activity"])
@pytest.mark.parametrize("name", BDH)
def test_a_model_joined_with_itself_and_pruned_to_half_is_itself(name: str, by: Any) -> None:
    model = fresh(name)
    config, tensors = model.config, dict(model.state_dict())
    fields = ("mlp_internal_dim_multiplier",) if config.kind == "flat" else ("global_mlp_mult", "local_mlp_mult")
    doubled = dataclasses.replace(config, **{field: 2 * getattr(config, field) for field in fields})
    for group in groups(config):
        for encoder in group.encoders:
            tensors[encoder] = tensors[encoder].repeat(1, 1, 2)
        tensors[group.decoder] = group.by_head(tensors[group.decoder]).repeat(1, 2, 1).flatten(0, 1)
        tensors[group.frequencies] = tensors[group.frequencies].repeat(1, 1, 1, 2)
    smaller, cut, kept = pruned(tensors, doubled, fraction=0.5, by=by, text=HEARD)
    assert smaller == config
    for group in groups(config):
        places = kept[group.prefix] % (group.n_neuron // 2)
        assert torch.equal(places.sort(dim=1).values, torch.arange(group.n_neuron // 2).expand_as(places))
    assert_close(logits(smaller, cut), logits(config, dict(model.state_dict())), scale=10)


def test_frequencies_that_cannot_all_stay_or_stay_twice_are_chosen_by_what_their_pairs_are_worth() -> None:
    frequencies = torch.tensor([0.5, 0.25, 0.5, 0.25, 0.125])
    worth = torch.tensor([[9.0, 1.0, 8.0, 2.0, 1.5], [7.0, 3.0, 9.0, 1.0, 0.5]])
    kept = {size: _chosen(worth, frequencies, size).tolist() for size in range(1, 6)}
    assert kept == {
        1: [[0], [2]],
        2: [[0, 3], [2, 1]],
        3: [[0, 3, 4], [2, 1, 4]],
        4: [[0, 2, 3, 4], [2, 0, 1, 4]],
        5: [[0, 1, 2, 3, 4], [2, 3, 0, 1, 4]],
    }


def test_random_pruning_is_told_by_its_seed() -> None:
    model = fresh("flat")
    first, again, other = (pruned(model.state_dict(), model.config, 16, seed=seed)[2][""] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_pruned_to_its_own_size_is_itself() -> None:
    model = fresh("hierarchical")
    config, cut, _ = pruned(model.state_dict(), model.config, fraction=1.0)
    assert config == model.config
    assert all(torch.equal(cut[name], tensor) for name, tensor in model.state_dict().items())


def test_one_scale_of_a_hierarchical_model_is_pruned_alone() -> None:
    model = fresh("hierarchical")
    config, cut, _ = pruned(model.state_dict(), model.config, {"global": 16})
    assert config == dataclasses.replace(HIERARCHICAL, global_mlp_mult=2)
    assert torch.equal(cut["local_model.layers.0.encoder"], model.local_model.layers[0].encoder)
    assert logits(config, cut).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "flat",
            {"neurons": 20},
            "20 neurons a head cannot stay; with width 16 and 2 heads .* multiples of 8 up to 32",
        ),
        ("flat", {"neurons": 40}, "multiples of 8 up to 32"),
        ("flat", {"neurons": 0}, "multiples of 8 up to 32"),
        ("flat-damped", {"neurons": 6}, "multiples of 4 up to 16"),
        ("flat", {"neurons": {"global": 8}}, "one scale"),
        ("flat", {}, "neurons or as fraction"),
        ("flat", {"neurons": 8, "fraction": 0.5}, "neurons or as fraction"),
        ("flat", {"fraction": 0.0}, "above 0"),
        ("flat", {"neurons": 8, "by": "magnitude"}, "random or activity"),
        ("flat", {"neurons": 8, "by": "activity"}, "needs a text"),
        ("hierarchical", {"neurons": 8}, "scales global, local"),
        ("hierarchical", {"neurons": {"middle": 8}}, "scales global, local"),
        ("hierarchical", {"neurons": {"local": 7}}, "of the local scale; with width 12 and 2 heads"),
        ("transformer", {"fraction": 0.5}, "no neurons of the BDH kind"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_what_can(name: str, options: dict[str, Any], said: str) -> None:
    model = fresh(name)
    with pytest.raises(MergeError, match=said):
        pruned(model.state_dict(), model.config, **options)


@pytest.mark.parametrize("config", [FLAT, FLAT_DAMPED, HIERARCHICAL])
def test_every_allowed_size_is_one(config: Config) -> None:
    for group in groups(config):
        sizes = allowed_neurons(group)
        assert sizes[-1] == group.n_neuron
        possible = [n for n in range(2, group.n_neuron + 1, 2) if n * group.n_head % group.n_embd == 0]
        assert list(sizes) == possible
