"""The hierarchical model: a global model over patches, a local one over the bytes of a patch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import state as states
from ..config import HierarchicalConfig
from ..ops import loops, step
from ..ops.debt import owing
from ..state import HierarchicalMemory, LayerMemory
from .attention import TransformerBlock
from .base import Model, advanced, init_weights
from .layer import BDHBlock


class PatchEmbedder(nn.Module):
    """The bytes of a patch, embedded and projected to the global width."""

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        self.byte_embed = nn.Embedding(config.vocab_size, config.local_n_embd)
        self.patch_proj = nn.Linear(config.patch_size * config.local_n_embd, config.global_n_embd, bias=False)
        self.ln = nn.LayerNorm(config.global_n_embd)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, patches, P) bytes to (B, patches, global D)."""
        return self.ln(self.patch_proj(self.byte_embed(patches).flatten(2)))


class Scale(nn.Module):
    """A stack of blocks, each with its own weights, and a norm behind it."""

    def __init__(self, config: HierarchicalConfig, scale: str) -> None:
        super().__init__()
        width: int = getattr(config, f"{scale}_n_embd")
        heads: int = getattr(config, f"{scale}_n_head")
        local = scale == "local"
        window = config.patch_size if local else config.max_seq_len // config.patch_size
        self.layers: Any = nn.ModuleList(
            BDHBlock(
                width,
                heads,
                getattr(config, f"{scale}_mlp_mult"),
                config.dropout,
                () if local else config.global_decay,
                place=f"{scale}.{index}.",
            )
            if config.use_bdh_attention
            else TransformerBlock(width, heads, window, config.dropout, place=f"{scale}.{index}.")
            for index in range(getattr(config, f"{scale}_n_layer"))
        )
        self.ln_out = nn.LayerNorm(width)

    def empty_memory(self, batch_size: int) -> tuple[LayerMemory, ...]:
        """One empty memory a layer."""
        return tuple(layer.empty_memory(batch_size) for layer in self.layers)

    def hear(
        self, x: Tensor, position: Tensor, memories: tuple[LayerMemory, ...] | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, tuple[LayerMemory, ...]]:
        """Hear (B, T, D) from `position` (B,) on; None for `memories` is empty ones."""
        written = []
        for index, layer in enumerate(self.layers):
            memory = None if memories is None else memories[index]
            x, memory = layer(x, position, memory, keep=keep, inplace=inplace)
            written.append(memory)
        return self.ln_out(x), tuple(written)


class LocalModel(Scale):
    """The local scale, with what it adds to the byte embeddings."""

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__(config, "local")
        self.global_proj = nn.Linear(config.global_n_embd, config.local_n_embd, bias=False)
        self.start_embed = nn.Parameter(torch.empty(1, 1, config.local_n_embd).normal_(std=0.02))
        self.pos_embed = nn.Embedding(config.patch_size, config.local_n_embd)


class Hierarchical(Model[HierarchicalConfig]):
    """A byte is predicted from its patch so far and from what the patches before it left behind."""

    kind = "hierarchical"

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__(config)
        self.patch_embedder = PatchEmbedder(config)
        self.global_model = Scale(config, "global")
        self.local_model = LocalModel(config)
        self.lm_head = nn.Linear(config.local_n_embd, config.vocab_size, bias=False)
        self.apply(init_weights)

    def single_bytes(self) -> str:
        """See `Model.single_bytes`; Transformer blocks have no loops of their own."""
        loop = self.config.use_bdh_attention and self.dtype == torch.float32 and loops.usable(self.device)
        return "compiled loops" if loop else "PyTorch"

    def chunk_bytes(self, inplace: bool) -> int:
        """See `Model.chunk_bytes`: as many patches as a flat model hears bytes."""
        return super().chunk_bytes(inplace) * self.config.patch_size

    def empty_state(self, batch_size: int = 1) -> HierarchicalMemory:
        """See `Model.empty_state`."""
        device = self.local_model.start_embed.device
        start = self.local_model.start_embed.detach().float().view(1, -1)
        return HierarchicalMemory(
            torch.zeros(batch_size, dtype=torch.int64, device=device),
            torch.zeros(batch_size, self.config.patch_size, dtype=torch.int64, device=device),
            start.new_empty(batch_size, start.shape[1]).copy_(start),
            self.global_model.empty_memory(batch_size),
            self.local_model.empty_memory(batch_size),
        )

    def read_out(self, hidden: Tensor) -> Tensor:
        """See `Model.read_out`."""
        said = step.product(hidden, self.lm_head.weight, rows=True)
        return self.lm_head(hidden) if said is None else said

    def _hear(
        self, ids: Tensor, state: HierarchicalMemory | None, *, keep: bool, inplace: bool
    ) -> tuple[Tensor, HierarchicalMemory]:
        if state is None:
            return self._hear_whole_patches(ids, self._start(ids.shape[0]), keep, inplace)
        if not inplace:
            # The first patch's context is a weight: an explicit empty memory must not cut it off from training.
            first = (state.position < self.config.patch_size)[:, None]
            start = self.local_model.start_embed[0].to(state.context.dtype)
            state = state._replace(context=torch.where(first, start, state.context))
        offsets = [position % self.config.patch_size for position in state.position.tolist()]
        if len(set(offsets)) == 1:
            return self._hear_aligned(ids, state, offsets[0], keep, inplace)
        return self._hear_ragged(ids, state, offsets, keep, inplace)

    def _start(self, batch_size: int) -> HierarchicalMemory:
        """An empty memory without its tensors of zeros, and with a start that training can reach."""
        start = self.local_model.start_embed
        nothing = torch.zeros(batch_size, dtype=torch.int64, device=start.device)
        patch = nothing[:, None].repeat(1, self.config.patch_size)
        return HierarchicalMemory(nothing, patch, start[0].float().repeat(batch_size, 1), (), ())

    def _hear_ragged(
        self, ids: Tensor, state: HierarchicalMemory, offsets: list[int], keep: bool, inplace: bool
    ) -> tuple[Tensor, HierarchicalMemory]:
        """Streams that stand at different places in their patches, heard place by place."""
        order: list[int] = []
        hidden, parts = [], []
        for offset in sorted(set(offsets)):
            streams = [index for index, other in enumerate(offsets) if other == offset]
            with owing(None):  # its memory is a copy that is put together with others
                part, after = self._hear_aligned(ids[streams], states.select(state, streams), offset, keep, inplace)
            order += streams
            hidden.append(part)
            parts.append(after)
        back = sorted(range(len(order)), key=order.__getitem__)
        if keep:
            joined = states.select(states.join(parts), back)
            if inplace:
                states.copy_(state, joined)
            else:
                state = joined
        return torch.cat(hidden)[back], state

    def _hear_aligned(
        self, ids: Tensor, state: HierarchicalMemory, offset: int, keep: bool, inplace: bool
    ) -> tuple[Tensor, HierarchicalMemory]:
        """Streams that all stand `offset` bytes into their patch: finish it, then go on patch by patch."""
        if offset == 0:
            return self._hear_whole_patches(ids, state, keep, inplace)
        room = self.config.patch_size - offset
        first, state = self._hear_inside(ids[:, :room], state, offset, inplace)
        if ids.shape[1] <= room:
            return first, state
        rest, state = self._hear_whole_patches(ids[:, room:], state, keep, inplace)
        return torch.cat((first, rest), dim=1), state

    def _hear_inside(
        self, ids: Tensor, state: HierarchicalMemory, offset: int, inplace: bool
    ) -> tuple[Tensor, HierarchicalMemory]:
        """Bytes of one patch, which may thereby be completed; `offset` bytes of it came before."""
        size, length = self.config.patch_size, ids.shape[1]
        # An open patch's memories are empty before its first byte: many bytes need not read them, one may.
        fresh = offset == 0 and not (inplace and length == 1 and state.local_layers)
        place = torch.full((1,), offset, dtype=torch.int64, device=ids.device)
        x = self._local_input(ids, state.context[:, None], offset)
        hidden, local = self.local_model.hear(
            x, place, None if fresh else state.local_layers, keep=True, inplace=inplace
        )
        patch = state.patch if inplace else state.patch.clone()
        patch[:, offset : offset + length] = ids
        heard = state._replace(
            position=advanced(state.position, length, len(state.position), inplace), patch=patch, local_layers=local
        )
        if fresh and state.local_layers and inplace:
            states.copy_(state.local_layers, local)
            heard = heard._replace(local_layers=state.local_layers)
        return hidden, heard if offset + length < size else self._close_patch(heard, inplace)

    def _close_patch(self, state: HierarchicalMemory, inplace: bool) -> HierarchicalMemory:
        """Let the global model hear the full patch, and open the next one."""
        size = self.config.patch_size
        x = self.patch_embedder(state.patch[:, None])
        hidden, layers = self.global_model.hear(
            x, _patches(state.position, size) - 1, state.global_layers or None, keep=True, inplace=inplace
        )
        context = self.local_model.global_proj(hidden[:, 0]).float()
        if inplace:
            context = state.context.copy_(context)
        local = states.map_tensors(Tensor.zero_ if inplace else torch.zeros_like, state.local_layers)
        patch = state.patch.zero_() if inplace else torch.zeros_like(state.patch)
        return HierarchicalMemory(state.position, patch, context, layers, local)

    def _hear_whole_patches(
        self, ids: Tensor, state: HierarchicalMemory, keep: bool, inplace: bool
    ) -> tuple[Tensor, HierarchicalMemory]:
        """Bytes that begin at a patch's first byte: all full patches at once, then the open one."""
        size = self.config.patch_size
        batch, length = ids.shape
        count, rest = divmod(length, size)
        hidden = []
        if count:
            patches = ids[:, : count * size].view(batch, count, size)
            # The last patch's context is for the bytes after it: unwanted if nothing comes after.
            heard = count if keep or rest else count - 1
            contexts = state.context[:, None]
            layers = state.global_layers
            if heard:
                x = self.patch_embedder(patches[:, :heard])
                said, layers = self.global_model.hear(
                    x, _patches(state.position, size), layers or None, keep=keep or bool(rest), inplace=inplace
                )
                contexts = torch.cat((contexts, self.local_model.global_proj(said)), dim=1)
            x = self._local_input(
                patches.reshape(batch * count, size), contexts[:, :count].reshape(batch * count, 1, -1), 0
            )
            start = torch.zeros(1, dtype=torch.int64, device=ids.device)
            out, _ = self.local_model.hear(x, start, None, keep=False, inplace=False)
            hidden.append(out.view(batch, count * size, -1))
            context = contexts[:, -1].float().clone()  # of its own, not a view that holds all of them
            if inplace and state.local_layers:
                context = state.context.copy_(context)
            state = HierarchicalMemory(
                advanced(state.position, count * size, batch, inplace), state.patch, context, layers, state.local_layers
            )
        if rest:
            last, state = self._hear_inside(ids[:, count * size :], state, 0, inplace)
            hidden.append(last)
        elif keep and not state.local_layers:
            state = state._replace(local_layers=self.local_model.empty_memory(batch))
        if keep and not state.global_layers:
            state = state._replace(global_layers=self.global_model.empty_memory(batch))
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1), state

    def _local_input(self, ids: Tensor, context: Tensor, offset: int) -> Tensor:
        """byte_embed(x) + context + pos_embed(place), (B, T, local D).

        Args:
            ids: (B, T) bytes of one patch each, `offset` bytes into it.
            context: (B, 1, local D).
        """
        embedded = self.patch_embedder.byte_embed(ids)
        places = self.local_model.pos_embed.weight[offset : offset + ids.shape[1]]
        return embedded + context.to(embedded.dtype) + places


def _patches(position: Tensor, size: int) -> Tensor:
    """Whole patches heard; divided on the CPU, because MPS divides large integers as floats."""
    return (position.cpu() // size).to(position.device)
