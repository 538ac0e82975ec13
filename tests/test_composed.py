"""What the fronts of composed models promise besides the laws."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from zoo import FLAT, FLAT_DAMPED, HEBBIAN, HIERARCHICAL, TRANSFORMER, ZOO, assert_close, fresh, louder, model, text

from bdh.config import ComposedConfig, MemberConfig, TransformerConfig
from bdh.models import Composed, build

ALL = (FLAT, FLAT_DAMPED, HIERARCHICAL, HEBBIAN, TRANSFORMER)
SMALL = TransformerConfig(n_layer=1, n_head=1, n_embd=4, block_size=4)


def mixture(members: tuple[MemberConfig, ...], share_rate: float = 0.0) -> Composed:
    """A mixture whose members have opinions."""
    built = louder(build(ComposedConfig(method="mixture", members=members, share_rate=share_rate), seed=0)).eval()
    assert isinstance(built, Composed)
    return built


def believers(heights: dict[str, float], share_rate: float) -> Composed:
    """A mixture with one member for each letter, which always expects it, by so many nats over the rest."""
    built = mixture((SMALL,) * len(heights), share_rate)
    with torch.no_grad():
        for member, (letter, height) in zip(built.members, heights.items(), strict=True):
            member.tok_emb.weight.zero_()
            member.tok_emb.weight[ord(letter), 0] = height
            member.ln_f.weight.zero_()
            member.ln_f.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    return built


def as_ids(words: str) -> Tensor:
    return torch.tensor([list(words.encode())])


def code_length(logits: Tensor, ids: Tensor) -> float:
    """Nats of every byte but the first, which nobody predicts."""
    return float(F.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum"))


def reference_weights(predicted: list[list[float]], share_rate: float) -> list[float]:
    """Fixed share as it is written down: multiply by what each member gave, normalise, share out a part."""
    count = len(predicted[0])
    weights = [1 / count] * count
    for given_ in predicted:
        weights = [w * p for w, p in zip(weights, given_, strict=True)]
        total = sum(weights)
        weights = [(1 - share_rate) * w / total + share_rate / count for w in weights]
    return weights


@settings(max_examples=15)
@given(st.lists(st.sampled_from(range(5)), min_size=2, max_size=4), st.binary(min_size=2, max_size=60))
@torch.no_grad()
def test_a_mixture_costs_at_most_ln_k_nats_more_than_its_best_member(which: list[int], heard: bytes) -> None:
    built = mixture(tuple(ALL[index] for index in which))
    ids = torch.tensor([list(heard)])
    best = min(code_length(member(ids).logits, ids) for member in built.members)
    total = code_length(built(ids).logits, ids)
    assert total <= best + math.log(len(which)) + 1e-4
    state, streamed = built.empty_state(), 0.0
    for before, after in pairwise(heard):
        logits = built.step_(torch.tensor([[before]]), state).logits
        streamed -= float(logits.double().log_softmax(-1)[0, 0, after])
    assert streamed <= best + math.log(len(which)) + 1e-4


@torch.no_grad()
def test_the_bound_is_tight_when_one_member_knows_and_the_others_are_sure_of_something_else() -> None:
    built = believers({"a": 20.0, "b": 20.0, "c": 20.0}, 0.0)
    ids = as_ids("a" * 40)
    best = min(code_length(member(ids).logits, ids) for member in built.members)
    assert code_length(built(ids).logits, ids) == pytest.approx(best + math.log(3), abs=1e-3)


@pytest.mark.parametrize("share_rate", [0.0, 0.01, 0.5])
@torch.no_grad()
def test_a_mixtures_weights_and_predictions_are_those_of_the_written_recursion(share_rate: float) -> None:
    built = mixture((FLAT, HEBBIAN, TRANSFORMER), share_rate)
    ids = text(30)
    opinions = torch.stack([m(ids).logits[0].double().softmax(-1) for m in built.members], 1)
    logits, state = built(ids)
    for place in (0, 1, 2, 17, 29):
        # Before the first byte all members are alike: 1 / 256.
        predicted = [[1 / 256] * 3] + [opinions[t, :, ids[0, t + 1]].tolist() for t in range(place)]
        weights = torch.tensor(reference_weights(predicted, share_rate), dtype=torch.float64)
        expected = (weights[:, None] * opinions[place]).sum(0)
        torch.testing.assert_close(logits[0, place].double().exp(), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(state.log_weights[0].double().exp(), weights, atol=1e-6, rtol=1e-4)
    assert_close(state.predictions[0].double().exp().float(), opinions[-1].float())
    assert float(state.log_weights.exp().sum()) == pytest.approx(1.0, abs=1e-6)


@torch.no_grad()
def test_a_mixtures_logits_are_log_probabilities() -> None:
    for name in ("mixture", "mixture-shared"):
        totals = model(name)(text(20, 2)).logits.logsumexp(-1)
        torch.testing.assert_close(totals, torch.zeros_like(totals), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_mixture_begins_by_trusting_all_members_alike() -> None:
    state = model("mixture-shared").empty_state(2)
    torch.testing.assert_close(state.log_weights.exp(), torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(state.predictions.exp(), torch.full((2, 3, 256), 1 / 256))


@torch.no_grad()
def test_sharing_follows_a_change_of_domain_and_plain_bayes_is_slow_to() -> None:
    ids = as_ids("a" * 80 + "b" * 80 + "a" * 80)
    heights = {"a": 6.0, "b": 6.0}
    plain, shared = (believers(heights, rate) for rate in (0.0, 0.01))
    cost = {rate: code_length(built(ids).logits, ids) for rate, built in ((0.0, plain), (0.01, shared))}
    best = min(code_length(member(ids).logits, ids) for member in plain.members)
    switching = 239 * math.log1p(255 * math.exp(-6.0))  # what one who knew the changes would pay
    assert cost[0.0] <= best + math.log(2) + 1e-3
    assert cost[0.01] < cost[0.0] / 3
    # Two switches, each paid once by the rate, and the rate paid on every other byte.
    assert cost[0.01] <= switching + math.log(2) - 2 * math.log(0.005) - 237 * math.log1p(-0.005) + 1e-3
    trust = {built: built(ids[:, :100]).state.log_weights.exp()[0, 1].item() for built in (plain, shared)}
    assert trust[shared] > 0.98 and trust[plain] < 0.01


@torch.no_grad()
def test_a_mixtures_weights_survive_a_member_that_is_wrong_for_very_long() -> None:
    for rate in (0.0, 0.01):
        built = believers({"a": 60.0, "b": 60.0}, rate)
        logits, state = built(as_ids("a" * 3000))
        assert bool(logits.isfinite().all() and state.log_weights.isfinite().all())
        assert float(state.log_weights.exp()[0, 0]) == pytest.approx(1.0, abs=0.01)


@torch.no_grad()
def test_an_average_of_equal_weights_is_the_mean_of_its_members_logits() -> None:
    built = louder(build(ComposedConfig(method="average", members=ALL), seed=0)).eval()
    assert isinstance(built, Composed)
    built.combine_weight.zero_()
    ids = text(25, 2)
    mean = torch.stack([member(ids).logits for member in built.members]).mean(0)
    assert_close(built(ids).logits, mean)
    built.combine_weight[2] = 50.0
    assert_close(built(ids).logits, built.members[2](ids).logits)


def test_an_average_learns_its_weights() -> None:
    built = fresh("average")
    assert isinstance(built, Composed)
    built(text(10)).logits.square().sum().backward()
    assert built.combine_weight.grad is not None and bool(built.combine_weight.grad.all())


def test_a_deep_combination_is_its_combiner_on_the_members_last_hidden_states() -> None:
    built = fresh("deep")
    assert isinstance(built, Composed)
    ids = text(25, 2)
    hidden = torch.cat([m.listen_hidden(ids, None, keep=False, inplace=False)[0] for m in built.members], -1)
    assert hidden.shape[-1] == 16 + 8 + 16
    expected = built.output_proj(built.combiner(hidden))
    assert_close(built(ids).logits.detach(), expected.detach())


def test_training_a_deep_combination_moves_its_front_and_none_of_its_frozen_members() -> None:
    built = fresh("deep").train()
    assert isinstance(built, Composed)
    before = {key: value.clone() for key, value in built.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=0.1)
    built(text(20, 2)).logits.square().sum().backward()
    assert all(p.grad is None for p in built.members.parameters())
    optimizer.step()
    moved = {key for key, value in built.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"combiner.weight", "combiner.bias", "output_proj.weight", "output_proj.bias"}


@pytest.mark.parametrize("name", ["average", "mixture", "mixture-shared", "deep"])
def test_members_of_different_kinds_and_sizes_keep_their_own_memories(name: str) -> None:
    built = model(name)
    state = built(text(13, 2)).state
    assert state.position.tolist() == [13, 13]
    for member, memory in zip(built.members, state.members, strict=True):
        own = member(text(13, 2)).state
        assert type(memory) is type(own)
        assert memory.position.tolist() == [13, 13]
    kinds = [member.config.kind for member in built.members]
    assert kinds == [member.kind for member in ZOO[name].members]


def test_training_a_deep_model_leaves_its_members_as_they_are_used() -> None:
    deep = fresh("deep").train()
    assert deep.training
    assert not any(member.training for member in deep.members)
    assert deep.combiner.training
