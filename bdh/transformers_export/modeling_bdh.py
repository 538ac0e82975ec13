"""Baby Dragon Hatchling (BDH) for the transformers library: bytes in, bytes out, a memory that never grows.

A byte is heard in the same time and memory however many came before: what is handed from call to call as
`past_key_values` is not a cache of keys and values but one sum of outer products a head and layer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_bdh import BdhConfig, BdhFlatConfig, BdhHebbianConfig

Recall: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""`hebbian_attention` for a chunk: query, key, value and memory to reads and memory."""

_TURN = 2.0**64
_CHUNK, _CHUNK_GRAD = 128, 512
"""Bytes heard at once, without gradients and with them: scores cost its square."""


class BdhMemory:
    """What a model remembers of each stream of a batch; its size does not depend on how much was heard.

    It is handed to the model as `past_key_values`. Without gradients the model writes into it, as into any cache; to
    come back to a moment, keep a `copy.deepcopy`.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, n_layer: int, batch_size: int, device: torch.device | str = "cpu") -> None:
        self.position = torch.zeros(batch_size, dtype=torch.int64, device=device)
        """(B,) bytes heard, without padding."""
        self.layers: list[Tensor | None] = [None] * n_layer
        """A sum for each layer, (B, H, N, D) float32; None before anything was heard."""
        self.length = 0
        """Positions of the batch that were given, padding included."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions that were given so far, padding included."""
        return self.length

    def get_max_cache_shape(self, layer_idx: int = 0) -> None:
        """There is no longest text."""

    def get_max_length(self) -> int:
        """There is no longest text."""
        return -1

    def _map(self, function: Any) -> None:
        self.position = function(self.position)
        self.layers = [None if layer is None else function(layer) for layer in self.layers]

    def detach_(self) -> None:
        """Cut the memory off from the autograd graph: truncated backpropagation through time."""
        self._map(Tensor.detach)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each beam the memory of the one that it goes on from."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given streams."""
        self._map(lambda tensor: tensor[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each stream so many times."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forget everything."""
        self.position = torch.zeros_like(self.position)
        self.layers = [None] * len(self.layers)
        self.length = 0

    def crop(self, *_: Any) -> None:
        """A sum cannot be taken apart."""
        raise ValueError("a Hebbian memory cannot forget its last bytes; keep a copy.deepcopy from before them")


def norm(x: Tensor) -> Tensor:
    """Layer normalisation without learned scale or shift, over the last axis."""
    return F.layer_norm(x, x.shape[-1:])


def counted(heard: Tensor | None, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many bytes of a chunk are heard before each of its positions, (B or 1, T), and in all, (B or 1,)."""
    if heard is None:
        return torch.arange(length, device=device)[None], torch.full((1,), length, device=device)
    upto = heard.long().cumsum(1)
    return upto - heard.long(), upto[:, -1]


def cos_sin(position: Tensor, increments: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each pair's phase, (B, 1, T, N / 2).

    A phase is a 64-bit fixed-point fraction of a turn, which wraps by itself: it is exact at any position.

    Args:
        position: (B, T) int64.
        increments: (N / 2,) int64, in units of 2^-64 turns a byte.
    """
    turns = (position[:, None, :, None] * increments).to(torch.float32) / _TURN
    return (turns * (2 * math.pi)).cos(), (turns * (2 * math.pi)).sin()


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (2i, 2i + 1) of the last axis by its phase."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + N / 2) of the last axis by its phase."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def hebbian_attention(query: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """See `_hebbian_attention`; sums are float32 under any autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return _hebbian_attention(query, *arguments, **options)


def _hebbian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Tensor | None,
    *,
    decay: Tensor | None,
    heard: Tensor | None,
    write: bool,
    inplace: bool,
) -> tuple[Tensor, Tensor | None]:
    """read_t = q_t · S_t;  S_(t+1) = λ S_t + k_tᵀ ⊗ v_t at each byte that is heard, S_(t+1) = S_t at padding.

    Reading comes before writing: a byte does not see itself. All is computed in float32.

    Args:
        query, key: (B, H, T, N).
        value: (B, H or 1, T, D).
        memory: S, (B, H, N, D) float32; None is an empty one.
        decay: λ, (H,), or None for 1.
        heard: (B, T), False at padding; None is all True.
        write: whether S after the chunk is wanted, and `inplace` whether it may be written over S.

    Returns:
        The reads (B, H, T, D), and S after the chunk.
    """
    dtype = value.dtype
    query, key, value = query.float(), key.float(), value.float()
    length = key.shape[2]
    before, total = counted(heard, length, key.device)
    if heard is not None:
        key = key * heard[:, None, :, None]
    read = None
    if length > 1:
        scores = (query @ key.mT).tril(-1)
        if decay is not None:
            age = (before[:, :, None] - before[:, None, :] - 1).clamp(min=0)
            scores = scores * decay[:, None, None] ** age[:, None]
        read = scores @ value
    if memory is not None:
        recalled = query @ memory
        if decay is not None:
            recalled = recalled * (decay[:, None] ** before[:, None])[..., None]
        read = recalled if read is None else read + recalled
    if read is None:
        read = torch.zeros_like(value).expand(*query.shape[:3], -1)
    if not write:
        return read.to(dtype), None
    if decay is not None:
        left = (total[:, None] - before - 1).clamp(min=0)
        value = value * (decay[:, None] ** left[:, None])[..., None]
    written = key.mT @ value
    if memory is not None:
        kept = 1.0 if decay is None else (decay ** total[:, None])[..., None, None]
        written = memory.mul_(kept).add_(written) if inplace else memory * kept + written
    return read.to(dtype), written


class Frequencies(nn.Module):
    """Turns a byte of each neuron of a head: stored with the weights, and float32 whatever these are."""

    freqs: Tensor

    def __init__(self, n_neuron: int) -> None:
        super().__init__()
        self.register_buffer("freqs", self.released(n_neuron).view(1, 1, 1, n_neuron))

    @staticmethod
    def released(n_neuron: int) -> Tensor:
        """65536^(-2⌊j/2⌋/n) / 2π, computed in float32 as in the released code."""
        pairs = (torch.arange(0, n_neuron, 1, dtype=torch.float32) / 2).floor() * 2
        return 1.0 / (65536.0 ** (pairs / n_neuron)) / (2 * math.pi)

    def _apply(self, fn: Any, recurse: bool = True) -> Frequencies:
        kept = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype != kept.dtype:
            self.freqs = kept.to(self.freqs.device)
        return self

    def increments(self) -> Tensor:
        """Fixed-point turns of each pair, (N / 2,) int64: exact, because a float32 times a power of two is."""
        return (self.freqs.float().reshape(-1)[::2] * _TURN).to(torch.int64)


class BdhPreTrainedModel(PreTrainedModel, GenerationMixin):
    """What both kinds share: bytes are heard a chunk at a time, and the memory goes from chunk to chunk."""

    config_class: type[BdhConfig] = BdhConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _is_stateful = True
    _skip_keys_device_placement = "past_key_values"
    _no_split_modules = ["HebbianBlock"]  # noqa: RUF012

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The memory is made by `forward`."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Frequencies):
            with torch.no_grad():
                module.freqs.copy_(module.released(module.freqs.numel()).view_as(module.freqs))
        for name, parameter in module.named_parameters(recurse=False):
            if name == "eta":
                nn.init.constant_(parameter, 0.1)
            else:
                nn.init.normal_(parameter, std=0.02)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: BdhMemory | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What has not been heard yet of all that was given.

        After a memory, either all bytes are given or only the new ones; then the mask is as long as all together.
        """
        told: dict[str, Any] = {"past_key_values": past_key_values, "use_cache": kwargs.get("use_cache")}
        told |= {name: kwargs[name] for name in ("logits_to_keep", "output_hidden_states") if name in kwargs}
        if past_key_values is None and inputs_embeds is not None:
            return told | {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        if past_key_values is not None:
            heard, given = past_key_values.get_seq_length(), input_ids.shape[1]
            if "next_sequence_length" in kwargs:  # from transformers 5 on
                fresh = given if kwargs["next_sequence_length"] is None else kwargs["next_sequence_length"]
            else:
                fresh = (given if attention_mask is None else attention_mask.shape[1]) - heard
            if not 0 < fresh <= given:
                raise ValueError(
                    f"the memory has heard {heard} positions, and {given} were given in all: give input_ids from the "
                    "beginning, or an attention_mask for the old and the new ones together"
                )
            input_ids = input_ids[:, -fresh:]
        return told | {"input_ids": input_ids, "attention_mask": attention_mask}

    @staticmethod
    def _reorder_cache(past_key_values: BdhMemory, beam_idx: Tensor) -> BdhMemory:
        past_key_values.reorder_cache(beam_idx)
        return past_key_values

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: BdhMemory | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Hear bytes and predict the byte after each.

        Args:
            input_ids: (B, T) bytes.
            attention_mask: (B, T), or longer, of which the last T count; 0 is padding, anywhere, which is not heard.
            past_key_values: the memory before these bytes.
            labels: (B, T), -100 where there is no loss; the byte after position t is `labels[:, t + 1]`.
            logits_to_keep: for so many last positions; 0 is all.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if past_key_values is not None and not isinstance(past_key_values, BdhMemory):
            raise ValueError(f"past_key_values is a {type(past_key_values).__name__}; a BDH model remembers in its own")
        embedded = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = embedded.shape[:2]
        heard = None
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
                raise ValueError(
                    f"attention_mask is {tuple(attention_mask.shape)}; it must be ({batch}, {length}) or longer"
                )
            heard = attention_mask[:, -length:].to(embedded.device).bool()
            heard = None if bool(heard.all()) else heard
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        memory = BdhMemory(self.config.n_layer, batch, embedded.device) if past_key_values is None else past_key_values
        if memory.position.shape[0] != batch:
            raise ValueError(f"{batch} streams were given with the memory of {memory.position.shape[0]}")
        if not use_cache:
            memory = copy.copy(memory)
            memory.layers = list(memory.layers)
        size = _CHUNK_GRAD if torch.is_grad_enabled() else _CHUNK
        said = []
        for start in range(0, length, size):
            part = None if heard is None else heard[:, start : start + size]
            last = start + size >= length
            write = use_cache or not last
            # What was given to be read alone must not be written into.
            inplace = not torch.is_grad_enabled() and (use_cache or start > 0)
            given = self._hear(embedded[:, start : start + size], part, memory, write=write, inplace=inplace)
            said.append(given if states else given[-1:])
        hidden = said[0] if len(said) == 1 else [torch.cat(parts, dim=1) for parts in zip(*said, strict=True)]
        logits = self._read_out(hidden[-1][:, -logits_to_keep:] if logits_to_keep else hidden[-1])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=memory if use_cache else None,
            hidden_states=tuple(hidden) if states else None,
        )
        return output if return_dict is not False else output.to_tuple()

    def _hear(self, x: Tensor, heard: Tensor | None, memory: BdhMemory, *, write: bool, inplace: bool) -> list[Tensor]:
        """Hear a chunk; what each layer is given, and last what is read out."""
        before, total = counted(heard, x.shape[1], x.device)
        phases = cos_sin(memory.position[:, None] + before, self._increments(x.device))
        recall = partial(hebbian_attention, decay=self._decay(x.device), heard=heard, write=write, inplace=inplace)
        hidden = [self._begin(x)]
        for index, kept in enumerate(memory.layers):
            x, memory.layers[index] = self._layer(index, hidden[-1], phases, kept, recall)
            hidden.append(x)
        hidden[-1] = self._end(hidden[-1])
        memory.position = memory.position + total
        memory.length += x.shape[1]
        return hidden

    def _decay(self, device: torch.device) -> Tensor | None:
        return torch.tensor(self.config.decay, device=device) if self.config.decay else None

    def _begin(self, x: Tensor) -> Tensor:
        return x

    def _end(self, x: Tensor) -> Tensor:
        return x


class BdhFlatForCausalLM(BdhPreTrainedModel):
    """BDH as released: one layer of weights applied `n_layer` times, a Hebbian memory for each time.

    x_sparse = relu(x · encoder);  y_sparse = relu(LN(recall(rope(x_sparse), x)) · encoder_v)
    x' = LN(x + LN((x_sparse · y_sparse) · decoder))
    """

    config_class = BdhFlatConfig

    def __init__(self, config: BdhFlatConfig) -> None:
        super().__init__(config)
        heads, width, neurons = config.n_head, config.n_embd, config.n_neuron
        self.embed = nn.Embedding(config.vocab_size, width)
        self.encoder = nn.Parameter(torch.empty(heads, width, neurons))
        self.encoder_v = nn.Parameter(torch.empty(heads, width, neurons))
        self.decoder = nn.Parameter(torch.empty(heads * neurons, width))
        self.lm_head = nn.Parameter(torch.empty(width, config.vocab_size))
        self.attn = Frequencies(neurons)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The bytes' embedding."""
        return self.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the bytes' embedding."""
        self.embed = value

    def get_output_embeddings(self) -> None:
        """`lm_head` is a matrix, no layer."""

    def _increments(self, device: torch.device) -> Tensor:
        return self.attn.increments()

    def _begin(self, x: Tensor) -> Tensor:
        return norm(x)

    def _layer(
        self,
        index: int,
        x: Tensor,
        phases: tuple[Tensor, Tensor],
        memory: Tensor | None,
        recall: Recall,
    ) -> tuple[Tensor, Tensor | None]:
        x_sparse = F.relu(x[:, None] @ self.encoder)
        rotated = rotate_pairs(x_sparse, *phases)
        read, memory = recall(rotated, rotated, x[:, None], memory)
        y_sparse = F.relu(norm(read) @ self.encoder_v)
        gated = F.dropout(x_sparse * y_sparse, self.config.dropout, self.training)
        out = gated.transpose(1, 2).flatten(2) @ self.decoder
        return norm(x + norm(out)), memory

    def _read_out(self, hidden: Tensor) -> Tensor:
        return hidden @ self.lm_head


class HebbianAttention(nn.Module):
    """out_t = q_t · σ_t;  σ_(t+1) = λ σ_t + η k_tᵀ ⊗ v_t, with q and k rotated, then cut at zero."""

    def __init__(self, config: BdhConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.eta = nn.Parameter(torch.full((1,), 0.1))
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        phases: tuple[Tensor, Tensor],
        memory: Tensor | None,
        recall: Recall,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to (B, T, D), with the memory (B, H, D / H, D / H) before and after."""
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        query, key = (F.relu(rotate_halves(t, *phases)) for t in (query, key))
        read, memory = recall(query, self.eta * key, value, memory)
        return self.drop(self.proj(read.transpose(1, 2).reshape(batch, length, width))), memory


class HebbianBlock(nn.Module):
    """x + attention(LN x), then x + W2 relu(W1 LN x)."""

    def __init__(self, config: BdhConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.attn = HebbianAttention(config)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * width, width, bias=False),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        """As `HebbianAttention.forward`."""
        attended, memory = self.attn(norm(x), *arguments)
        x = x + attended
        return x + self.mlp(norm(x)), memory


class BdhHebbianForCausalLM(BdhPreTrainedModel):
    """A stack of blocks between an embedding and the same embedding read backwards."""

    config_class = BdhHebbianConfig

    def __init__(self, config: BdhHebbianConfig) -> None:
        super().__init__(config)
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(HebbianBlock(config) for _ in range(config.n_layer))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The bytes' embedding."""
        return self.tok_emb

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the bytes' embedding."""
        self.tok_emb = value

    def get_output_embeddings(self) -> None:
        """The embedding, read backwards."""

    def _increments(self, device: torch.device) -> Tensor:
        size = self.config.n_neuron
        radians = 1.0 / (10_000.0 ** (torch.arange(0, size, 2, dtype=torch.float64) / size))
        return (radians / (2 * math.pi) * _TURN).to(torch.int64).to(device)

    def _layer(
        self,
        index: int,
        x: Tensor,
        phases: tuple[Tensor, Tensor],
        memory: Tensor | None,
        recall: Recall,
    ) -> tuple[Tensor, Tensor | None]:
        return self.blocks[index](x, phases, memory, recall)

    def _end(self, x: Tensor) -> Tensor:
        return norm(x)

    def _read_out(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.tok_emb.weight)
