"""One byte more for several streams on a CUDA GPU, each with its own memory: only the neurons that fire are read.

`gpu_kernels` has the kernels. They are tried before they are trusted: where they cannot be compiled, or give something
else than the equations on a small model, plain operations are used.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DataError
from . import loops, rope
from .debt import Debt

_logger = logging.getLogger(__name__)

_TOGETHER = 256
"""Streams that are stepped at once; more take turns."""
_IN_TURN, _TURNS = 8, 8
"""Streams that a program which holds a tile of weights takes in turn, until so many programs hold the same."""
_WIDEST = 2048
"""Of wider models a tile holds too few neurons to be worth a program."""
_TOLERANCE = 1e-4
"""How far the kernels may be from the equations when they are tried, of the largest number."""
_DEVICES = ("cuda",)


class Weights(NamedTuple):
    """What a flat model computes with."""

    embedding: Tensor
    """(V, D)."""
    encoder: Tensor
    """(H, D, N), and `encoder_v`."""
    encoder_v: Tensor
    decoder: Tensor
    """(H·N, D)."""
    head: Tensor
    """(D, V)."""
    increments: Tensor
    """(N / 2,), as in `rope.cos_sin`."""
    decay: Tensor | None
    """λ, (H,), or None."""


class Blocks(NamedTuple):
    """How much a program takes at once: powers of two, which change no function, only the order of sums."""

    neurons: int
    """Of which the encoder is held whole."""
    tiles: int
    """Of so many neurons, for a program that reads rows of neurons that fire."""
    rows: int
    """Pairs of them, at once."""
    parts: int
    """Of a sum, at once."""


def blocks_for(width: int) -> Blocks:
    """Blocks that fit into the registers of a program, for a power of two at least the model's width."""
    wide = max(1, width // 256)
    return Blocks(neurons=min(64, 16384 // width), tiles=4 * wide, rows=max(2, 16 // wide), parts=max(2, 8192 // width))


def serves(device: torch.device) -> bool:
    """Whether the kernels are for such a device, if they can be used at all."""
    return device.type in _DEVICES


def step(
    weights: Weights,
    data: Sequence[int],
    positions: Sequence[Tensor],
    memories: Sequence[Sequence[Tensor]],
    debts: Sequence[Debt],
) -> Tensor | None:
    """All that a byte does to each of several streams: memories are overwritten and positions grow.

    Args:
        positions: (1,) each.
        memories: of each stream and layer (1, H, N, D).
        debts: who keeps what the memories of each stream are owed.

    Returns:
        Logits (B, V), float32; None where that is not for the kernels.

    Raises:
        DataError: no bytes.
    """
    device, (heads, width, neurons) = weights.encoder.device, weights.encoder.shape
    own = weights[:5]
    if not all(isinstance(t, nn.Parameter) and t.dtype == torch.float32 and t.is_contiguous() for t in own):
        return None
    if not data or any(t.device != device for t in own):
        return None
    if not serves(device) or torch.is_autocast_enabled(device.type):
        return None
    damped = weights.decay is not None
    way = usable(device, width, neurons, weights.head.shape[1], damped)
    if way is None:
        return None
    blocks = [debt.addressed(memory, damped=damped) for memory, debt in zip(memories, debts, strict=True)]
    if any(block.form != ((1, heads, neurons, width), device) for block in blocks):
        return None
    if _aligned(width) and any(address % 16 for block in blocks for address in block.addresses[1:]):
        return None
    if not all(t.shape == (1,) and t.dtype == torch.int64 and t.device == device for t in positions):
        return None
    places = [position.data_ptr() for position in positions]
    if len(set(places)) < len(places):  # a stream hears one byte at a time
        return None
    if not 0 <= min(data) <= max(data) < len(weights.embedding):
        raise DataError(f"bytes must be from 0 to 255; given {min(data)} to {max(data)}")
    rows = [(byte, place, *block.addresses) for byte, place, block in zip(data, places, blocks, strict=True)]
    with torch.inference_mode(False), torch.no_grad():  # what is kept is written in any mode
        return _engine(weights, graphs=way == "graph").step(weights, rows)


def usable(device: torch.device, width: int, neurons: int, vocabulary: int, damped: bool) -> str | None:
    """How bytes are best heard on a device: as a recorded "graph", by "launches", or None where kernels cannot be used.

    What is compiled depends on no more than this of a model's shape, so this is tried.
    """
    if not loops.allowed() or torch.compiler.is_compiling() or width > _WIDEST or neurons % 2:
        return None
    with _trying:
        # Programs differ by what is known of strides; beyond that, few neurons show what many would.
        return _tried(device, width, neurons if neurons <= 1024 else 1024 + neurons % 128, vocabulary, damped)


_trying = RLock()


@lru_cache(maxsize=64)
def _tried(device: torch.device, width: int, neurons: int, vocabulary: int, damped: bool) -> str | None:
    said: list[str] = []
    for way in ("graph", "launches"):
        try:
            error = _error(device, width, neurons, vocabulary, damped, graphs=way == "graph")
            if error < _TOLERANCE:
                if said:
                    _logger.warning("bytes are heard without CUDA graphs, more slowly: %s", said[0])
                return way
            said.append(f"they are {error:.2g} from what they should be")
        except Exception as error:  # whatever ails it here, the plain operations do
            said.append(repr(error)[:300])
    _logger.warning("without compiled kernels, bytes are heard several times slower on this GPU: %s", said[-1])
    return None


@torch.no_grad()
def _error(
    device: torch.device, width: int, neurons: int, vocabulary: int, damped: bool, *, graphs: bool, count: int = 4
) -> float:
    """How far the kernels are from the equations: three streams, two layers and heads, some bytes."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    # One head keeps so little that what it is owed is paid every few bytes.
    decay = torch.tensor([0.9, 2.0**-16]) if damped else None
    own = Weights(
        drawn(vocabulary, width), drawn(2, width, neurons) / width**0.5, drawn(2, width, neurons) / width**0.5,
        drawn(2 * neurons, width), drawn(width, vocabulary) / width**0.5, rope.increments(rope.frequencies(neurons)),
        decay,
    )  # fmt: skip
    there = Weights(*(None if t is None else t.to(device) for t in own))  # type: ignore[arg-type]
    starts, streams = (0, 1_000_003, 77), range(3)
    positions = [torch.tensor([start], device=device) for start in starts]
    memories = [torch.zeros(2, 1, 2, neurons, width, device=device).unbind(0) for _ in streams]
    exact = [[torch.zeros(2, neurons, width, dtype=torch.float64) for _ in range(2)] for _ in streams]
    debts = [Debt() for _ in streams]
    engine = Engine(there, graphs=graphs, forgiving=False)
    worst = torch.zeros(())
    for t in range(count):
        data = [(31 * t + 7 * stream) % vocabulary for stream in streams]
        rows = [
            (byte, position.data_ptr(), *debt.addressed(memory, damped=damped).addresses)
            for byte, position, debt, memory in zip(data, positions, debts, memories, strict=True)
        ]
        logits = engine.step(there, rows).cpu()
        for stream in streams:
            right = equations(own, data[stream], starts[stream] + t, exact[stream])
            worst = torch.maximum(worst, (logits[stream] - right).abs().max() / right.abs().max())
    for stream in streams:
        debts[stream].settle()
        for kept, right in zip(memories[stream], exact[stream], strict=True):
            worst = torch.maximum(worst, (kept[0].cpu() - right).abs().max() / right.abs().max())
        if int(positions[stream]) != starts[stream] + count:
            return float("inf")
    return float(worst.nan_to_num(float("inf"), float("inf")))


def equations(weights: Weights, byte: int, position: int, memories: list[Tensor]) -> Tensor:
    """What a byte should do, in float64 on the CPU: logits (V,), and `memories`, (H, N, D) each, are replaced."""
    embedding, encoder, encoder_v, decoder, head = (t.detach().cpu().double() for t in weights[:5])
    cos, sin = (t[0, 0].double() for t in rope.cos_sin(torch.tensor([position]), 1, weights.increments.cpu()))
    decay = 1 if weights.decay is None else weights.decay.cpu().double()[:, None, None]

    def norm(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    x = norm(embedding[byte])
    for layer, memory in enumerate(memories):
        x_sparse = (x @ encoder).relu()
        pairs = torch.view_as_complex(x_sparse.view(len(encoder), -1, 2)) * torch.complex(cos, sin)
        rotated = torch.view_as_real(pairs).flatten(1)[:, :, None]
        read = (rotated * memory).sum(1)
        memories[layer] = memory * decay + rotated * x
        y_sparse = (norm(read)[:, None] @ encoder_v)[:, 0].relu()
        x = norm(x + norm((x_sparse * y_sparse).view(-1) @ decoder))
    return x @ head


class _Bucket:
    """Where so many streams are stepped together, and what was recorded of that."""

    def __init__(self, streams: int, engine: Engine, layers: int, device: torch.device) -> None:
        heads, neurons, width = engine.rows.shape
        pairs_per_tile = engine.blocks.neurons // 2

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.table = torch.zeros(streams, 3 + layers, dtype=torch.int64, device=device)
        self.x = empty(streams, width)
        self.active, self.turned = empty(streams, heads, neurons), empty(streams, heads, neurons)
        self.pairs = empty(streams, heads, engine.tiles * pairs_per_tile, dtype=torch.int32)
        self.counts = empty(streams, heads, engine.tiles, dtype=torch.int32)
        self.reads, self.parts = (empty(streams, heads, engine.programs, width) for _ in range(2))
        self.logits = empty(streams, engine.vocabulary)
        self.graph: torch.cuda.CUDAGraph | None = None


class Engine:
    """The kernels for one model's shape, with the places where they leave what the next ones take."""

    def __init__(self, weights: Weights, *, graphs: bool, forgiving: bool = True, blocks: Blocks | None = None) -> None:
        """Take places; a `forgiving` engine launches kernels one by one if they cannot be recorded."""
        self.kernels: Any = importlib.import_module(".gpu_kernels", __package__)
        if self.kernels.interpreted and weights.encoder.device.type == "cuda":
            raise RuntimeError("Triton was told to interpret kernels")
        self.graphs, self.forgiving = graphs, forgiving
        heads, width, neurons = weights.encoder.shape
        self.vocabulary = weights.head.shape[1]
        self.block_width = max(16, 1 << (width - 1).bit_length())
        self.blocks = blocks or blocks_for(self.block_width)
        self.tiles = -(-neurons // self.blocks.neurons)
        self.programs = -(-self.tiles // self.blocks.tiles)
        self.rows = torch.empty(heads, neurons, width, device=weights.encoder.device)
        """Encoder_v, a row a neuron."""
        self._version = -1
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self._lock = RLock()
        self._stream: Any = None

    def step(self, weights: Weights, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits (B, V) of streams, of each its byte and its addresses, as a row of the table has them."""
        device = weights.encoder.device
        with self._lock, _on(device):
            self._follow(device)
            version = 0 if weights.encoder_v.is_inference() else weights.encoder_v._version
            if version != self._version:
                self.rows.copy_(weights.encoder_v.mT)
                self._version = version
            said = []
            for first in range(0, len(rows), _TOGETHER):
                some = rows[first : first + _TOGETHER]
                bucket = self._bucket(1 << (len(some) - 1).bit_length(), weights, len(some[0]) - 3)
                nobody = [(0,) * len(some[0])] * (len(bucket.x) - len(some))
                bucket.table.copy_(torch.tensor([*some, *nobody]), non_blocking=True)
                if bucket.graph is None:
                    self._launch(weights, bucket)
                else:
                    bucket.graph.replay()
                said.append(bucket.logits[: len(some)].clone())
            return said[0] if len(said) == 1 else torch.cat(said)

    def _follow(self, device: torch.device) -> None:
        """Let what another CUDA stream does with the same places be done before."""
        if device.type == "cuda":
            now = torch.cuda.current_stream(device)
            if self._stream is not None and self._stream != now:
                now.wait_stream(self._stream)
            self._stream = now

    def _bucket(self, streams: int, weights: Weights, layers: int) -> _Bucket:
        bucket = self._buckets.get((streams, layers))
        if bucket is None:
            bucket = _Bucket(streams, self, layers, weights.encoder.device)
            if self.graphs and weights.encoder.device.type == "cuda":
                self._launch(weights, bucket)  # compiled, and loaded, for nobody
                torch.cuda.synchronize(weights.encoder.device)
                graph = torch.cuda.CUDAGraph()
                try:
                    # A stream of this device, and other threads may go on with what a recording must not do.
                    aside = torch.cuda.Stream(weights.encoder.device)
                    with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                        self._launch(weights, bucket)
                    bucket.graph = graph
                except Exception as error:
                    if not self.forgiving:
                        raise
                    _logger.warning("bytes are heard without CUDA graphs, more slowly: %s", repr(error)[:300])
                    self.graphs = False
            self._buckets[streams, layers] = bucket
        return bucket

    def _launch(self, weights: Weights, bucket: _Bucket) -> None:
        """A byte of each stream of the bucket's table, from the embedding to the logits."""
        kernels, own, blocks = self.kernels, bucket, self.blocks
        (streams, columns), (heads, neurons, width) = own.table.shape, self.rows.shape
        decay = own.x if weights.decay is None else weights.decay
        wide: dict[str, Any] = {"D": width, "BLOCK_D": self.block_width, "enable_fp_fusion": True}
        damped = {"DAMPED": weights.decay is not None}
        listed = {"BLOCK_P": blocks.neurons // 2, "TILES": blocks.tiles, "BLOCK_K": blocks.rows}
        counts = (columns, heads, self.tiles, neurons)
        taken = (self.programs, heads, streams)
        turns = max(1, min(_TURNS, streams // _IN_TURN))
        kernels.refresh[(self.tiles, heads)](
            weights.encoder_v, self.rows, neurons, **wide | {"BLOCK_D": 16, "BLOCK_N": blocks.neurons}
        )
        kernels.embed[(streams,)](own.table, weights.embedding, own.x, columns, **wide)
        for layer in range(columns - 3):
            kernels.fire[(self.tiles, heads, turns)](
                own.table, own.x, weights.encoder, weights.increments, own.active, own.turned, own.pairs, own.counts,
                streams, *counts, BLOCK_N=blocks.neurons, num_warps=8, **wide,
            )  # fmt: skip
            kernels.recall[taken](
                own.table, own.x, decay, own.turned, own.pairs, own.counts, own.reads, layer, *counts,
                ALIGNED=_aligned(width), num_warps=8, **damped, **listed, **wide,
            )  # fmt: skip
            kernels.gate[taken](
                own.table, own.reads, self.rows, weights.decoder, own.active, own.pairs, own.counts, own.parts, layer,
                *counts, BLOCK_T=blocks.parts, num_warps=8, **damped, **listed, **wide,
            )  # fmt: skip
            kernels.add[(streams,)](
                own.table, own.x, own.parts, decay, layer, columns, heads, heads * self.programs,
                BLOCK_H=1 << (heads - 1).bit_length(), BLOCK_T=2 * blocks.parts, num_warps=8, **damped, **wide,
            )  # fmt: skip
        tile = min(32, blocks.neurons)
        kernels.read_out[(-(-self.vocabulary // tile), turns)](
            own.table, own.x, weights.head, own.logits, streams, columns, self.vocabulary, BLOCK_V=tile, **wide
        )


def _aligned(width: int) -> bool:
    """Whether rows of this width lie at multiples of 16 bytes, which are read at once, if the first does."""
    return width % 4 == 0


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


_engines: dict[int, tuple[weakref.ref[Tensor], tuple[int, ...], Engine]] = {}
"""By the identity of encoder_v, with the addresses of the weights that graphs were recorded with."""


def _engine(weights: Weights, *, graphs: bool) -> Engine:
    """The engine of a model, made again after its weights were moved."""
    mark = tuple(0 if t is None else t.data_ptr() for t in weights)
    key = id(weights.encoder_v)
    with _trying:
        kept = _engines.get(key)
        if kept is None or kept[0]() is not weights.encoder_v or kept[1] != mark:
            forget: Callable[[Any], Any] = lambda _: _engines.pop(key, None)  # noqa: E731
            kept = (weakref.ref(weights.encoder_v, forget), mark, Engine(weights, graphs=graphs))
            _engines[key] = kept
        return kept[2]
