"""Composed models: several members hear the same bytes, and one front makes one prediction of theirs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import VOCAB_SIZE, ComposedConfig
from ..state import MembersMemory, MixtureMemory
from .base import Model, init_weights
from .observe import observe, within


class Composed(Model[ComposedConfig]):
    """Members of any kinds and sizes behind a front that averages, mixes or combines.

    `average`: softmax(combine_weight) on the members' logits.
    `mixture`: p = Σ_k w_k p_k, with w_k ∝ the probability that member k gave to the bytes so far.
    `deep`: output_proj(combiner(concatenated last hidden states)), the members frozen.
    """

    kind = "composed"

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        self.members: Any = nn.ModuleList(Model.KINDS[m.kind](m) for m in config.members)
        if config.method == "average":
            self.combine_weight = nn.Parameter(torch.zeros(len(self.members)))
        if config.method == "deep":
            self.members.requires_grad_(False)
            self.combiner = nn.Linear(sum(hidden_width(m) for m in config.members), config.n_embd)
            self.output_proj = nn.Linear(config.n_embd, VOCAB_SIZE)
            self.combiner.apply(init_weights)
            self.output_proj.apply(init_weights)

    def train(self, mode: bool = True) -> Composed:
        """See `nn.Module.train`; frozen members stay as they are used."""
        super().train(mode)
        if self.config.method == "deep":
            self.members.eval()
        return self

    def chunk_bytes(self, inplace: bool) -> int:
        """See `Model.chunk_bytes`."""
        return max(member.chunk_bytes(inplace) for member in self.members)

    def products_per_byte(self) -> int:
        """See `Model.products_per_byte`."""
        return sum(member.products_per_byte() for member in self.members)

    def empty_state(self, batch_size: int = 1) -> MembersMemory | MixtureMemory:
        """See `Model.empty_state`. A mixture trusts all members alike, and none predicts the first byte."""
        members = tuple(member.empty_state(batch_size) for member in self.members)
        if self.config.method != "mixture":
            return MembersMemory(members)
        count, device = len(members), members[0].position.device
        return MixtureMemory(
            members,
            torch.full((batch_size, count), -math.log(count), device=device),
            torch.full((batch_size, count, VOCAB_SIZE), -math.log(VOCAB_SIZE), device=device),
        )

    def _hear(
        self, ids: Tensor, state: MembersMemory | MixtureMemory | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, Any]:
        hidden, memories = [], []
        for index, member in enumerate(self.members):
            before = None if state is None else state.members[index]
            with within(f"member.{index}."):
                said, memory = member.listen_hidden(ids, before, keep=keep, inplace=inplace)
            hidden.append(said)
            memories.append(memory)
        if self.config.method == "deep":
            return torch.cat(hidden, dim=-1), MembersMemory(tuple(memories))
        logits = torch.stack([member.read_out(h).float() for member, h in zip(self.members, hidden, strict=True)], 1)
        if self.config.method == "average":
            weights = torch.softmax(self.combine_weight.float(), 0)
            return (weights[:, None, None] * logits).sum(1), MembersMemory(tuple(memories))
        if state is None:
            state = self.empty_state(ids.shape[0])
        assert isinstance(state, MixtureMemory)
        mixed, log_weights, predictions = self._mix(ids, logits.log_softmax(-1), state)
        if inplace:
            log_weights, predictions = state.log_weights.copy_(log_weights), state.predictions.copy_(predictions)
        return mixed, MixtureMemory(tuple(memories), log_weights, predictions)

    def _mix(self, ids: Tensor, predicted: Tensor, state: MixtureMemory) -> tuple[Tensor, Tensor, Tensor]:
        """One byte after another: w ← w · p(byte), normalised; then w ← (1 - α) w + α / K, after each byte.

        The log weights after each byte, (B, K, T), can be observed as `log_weights`.

        Args:
            ids: (B, T).
            predicted: each member's log probabilities for the byte after each, (B, K, T, V).

        Returns:
            Log probabilities of the mixture (B, T, V), log weights (B, K) and last predictions (B, K, V).
        """
        before = torch.cat((state.predictions[:, :, None], predicted[:, :, :-1]), dim=2)
        heard = before.gather(-1, ids[:, None, :, None].expand(-1, len(self.members), -1, 1)).squeeze(-1)
        share = self.config.share_rate
        if share == 0:
            history = (state.log_weights[..., None] + heard.cumsum(-1)).log_softmax(1)
        else:
            weights, steps = state.log_weights, []
            shared = weights.new_full((), math.log(share / len(self.members)))
            for t in range(ids.shape[1]):
                weights = (weights + heard[:, :, t]).log_softmax(-1)
                weights = torch.logaddexp(weights + math.log1p(-share), shared)
                steps.append(weights)
            history = torch.stack(steps, 2)
        observe("log_weights", history)
        mixed = torch.logsumexp(history[..., None] + predicted, dim=1)
        weights = history[..., -1].clone()
        return mixed, weights, predicted[:, :, -1].clone()

    def read_out(self, hidden: Tensor) -> Tensor:
        """See `Model.read_out`; averages and mixtures are predictions already."""
        return self.output_proj(self.combiner(hidden)) if self.config.method == "deep" else hidden


def hidden_width(config: Any) -> int:
    """Width of the hidden states that a member's read-out takes."""
    return config.local_n_embd if config.kind == "hierarchical" else config.n_embd
