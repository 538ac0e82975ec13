"""One byte more for several streams on a CUDA GPU, each with its own memory: only the neurons that fire are read.

`gpu_kernels` has the kernels. They are tried before they are trusted: where they cannot be compiled, or give something
else than the equations on a small model, plain operations are used.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from threading import Lock, RLock
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
    if not serves(device):
        let_go(weights.encoder_v)
        return None
    if not all(isinstance(t, nn.Parameter) and t.dtype == torch.float32 and t.is_contiguous() for t in own):
        return None
    if not data or any(t.device != device for t in own):
        return None
    if torch.is_autocast_enabled(device.type):
        return None
    damped = weights.decay is not None
    way = usable(device, width, neurons, weights.head.shape[1], damped)
    if way is None:
        return None
    if not all(t.shape == (1,) and t.dtype == torch.int64 and t.device == device for t in positions):
        return None
    places = [position.data_ptr() for position in positions]
    if len(set(places)) < len(places):  # a stream hears one byte at a time
        return None
    with torch.inference_mode(False), torch.no_grad():  # what is kept is written in any mode
        try:
            blocks = [debt.addressed(memory, damped=damped) for memory, debt in zip(memories, debts, strict=True)]
            if any(block.form != ((1, heads, neurons, width), device) for block in blocks):
                return None
            if _aligned(width) and any(address % 16 for block in blocks for address in block.addresses[1:]):
                return None
            if not 0 <= min(data) <= max(data) < len(weights.embedding):
                raise DataError(f"bytes must be from 0 to 255; given {min(data)} to {max(data)}")
            rows = [(byte, place, *block.addresses) for byte, place, block in zip(data, places, blocks, strict=True)]
            engine = _engine(weights, graphs=way == "graph")
            room = engine.room(weights, rows)
        except Exception as error:
            if not _ran_out(error):
                raise
            _warn(_SHORT)
            _engines.pop(id(weights.encoder_v), None)
            return None  # nobody has heard anything
        return engine.step(weights, rows, room)


def usable(device: torch.device, width: int, neurons: int, vocabulary: int, damped: bool) -> str | None:
    """How bytes are best heard on a device: as a recorded "graph", by "launches", or None where kernels cannot be used.

    What is compiled depends on no more than this of a model's shape, so this is tried.
    """
    if not loops.allowed() or torch.compiler.is_compiling() or width > _WIDEST or neurons % 2:
        return None
    # Programs differ by what is known of strides; beyond that, few neurons show what many would.
    shape = (device, width, neurons if neurons <= 1024 else 1024 + neurons % 128, vocabulary, damped)
    if shape not in _ways:
        with _trying:
            if shape not in _ways:
                try:
                    _ways[shape] = _tried(*shape)
                except Exception as error:
                    if not _ran_out(error):
                        raise
                    _warn(_SHORT)  # and tried again when there may be more
                    return None
    return _ways[shape]


_trying = RLock()
_ways: dict[tuple[torch.device, int, int, int, bool], str | None] = {}
"""What was found for a shape; it is looked up while another is tried."""
_warned: set[str] = set()
_SHORT = "the GPU's memory ran out: until some is free, bytes are heard several times slower"


def _warn(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        _logger.warning("%s", text)


def _ran_out(error: Exception) -> bool:
    """Whether memory ran out, which says nothing of the kernels; torch and Triton have other errors for it, too."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def _tried(device: torch.device, width: int, neurons: int, vocabulary: int, damped: bool) -> str | None:
    said: list[str] = []
    for way in ("graph", "graph", "launches"):  # what else a process does can spoil a recording once
        try:
            error = _error(device, width, neurons, vocabulary, damped, graphs=way == "graph")
            if error < _TOLERANCE:
                if way == "launches":
                    _warn(f"bytes are heard without CUDA graphs, more slowly: {said[-1]}")
                return way
            said.append(f"they are {error:.2g} from what they should be")
        except Exception as error:  # whatever ails it here, the plain operations do
            if _ran_out(error):
                raise
            said.append(repr(error)[:300])
    _warn(f"without compiled kernels, bytes are heard several times slower on this GPU: {said[-1]}")
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
    there = Weights(*(None if t is None else t.to(device, copy=True) for t in own))  # type: ignore[arg-type]
    starts, streams = (0, 1_000_003, 77), range(3)
    positions = [torch.tensor([start], device=device) for start in starts]
    memories = [torch.zeros(2, 1, 2, neurons, width, device=device).unbind(0) for _ in streams]
    exact = [[torch.zeros(2, neurons, width, dtype=torch.float64) for _ in range(2)] for _ in streams]
    debts = [Debt() for _ in streams]
    engine = Engine(there, graphs=graphs, forgiving=False)
    worst = torch.zeros(())
    for t in range(count):
        if t == 1:  # as an optimizer may, without a mark
            own.encoder_v.neg_()
            there.encoder_v.data.neg_()
        data = [(31 * t + 7 * stream) % vocabulary for stream in streams]
        rows = [
            (byte, position.data_ptr(), *debt.addressed(memory, damped=damped).addresses)
            for byte, position, debt, memory in zip(data, positions, debts, memories, strict=True)
        ]
        logits = engine.step(there, rows, engine.room(there, rows)).cpu()
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


class Room(NamedTuple):
    """All that hearing a byte takes, so that nothing can be lacking once a stream has begun to hear."""

    buckets: list[_Bucket]
    """For streams that take turns."""
    logits: Tensor


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

    def room(self, weights: Weights, rows: Sequence[tuple[int, ...]]) -> Room:
        """What `step` needs, made and tried for nobody where it was not."""
        device = weights.encoder.device
        with self._lock, _on(device):
            self._follow(device)
            counts = (min(_TOGETHER, len(rows) - first) for first in range(0, len(rows), _TOGETHER))
            buckets = [self._bucket(1 << (count - 1).bit_length(), weights, len(rows[0]) - 3) for count in counts]
            return Room(buckets, torch.empty(len(rows), self.vocabulary, device=device))

    def step(self, weights: Weights, rows: Sequence[tuple[int, ...]], room: Room) -> Tensor:
        """Logits (B, V) of streams, of each its byte and its addresses, as a row of the table has them."""
        device = weights.encoder.device
        with self._lock, _on(device):
            self._follow(device)
            version = 0 if weights.encoder_v.is_inference() else weights.encoder_v._version
            if version != self._version:
                self.rows.copy_(weights.encoder_v.mT)
                self._version = version
            for turn, bucket in enumerate(room.buckets):
                among = slice(turn * _TOGETHER, (turn + 1) * _TOGETHER)
                some = rows[among]
                nobody = [(0,) * len(some[0])] * (len(bucket.x) - len(some))
                bucket.table.copy_(torch.tensor([*some, *nobody]), non_blocking=True)
                if bucket.graph is None:
                    self._launch(weights, bucket)
                else:
                    bucket.graph.replay()
                room.logits[among].copy_(bucket.logits[: len(some)])
            return room.logits

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
            if weights.encoder.device.type == "cuda":
                self._launch(weights, bucket)  # compiled, and loaded, for nobody
                if self.graphs:
                    self._record(weights, bucket)
            self._buckets[streams, layers] = bucket
        return bucket

    def _record(self, weights: Weights, bucket: _Bucket) -> None:
        """Let the bucket have its launches as a graph, if that can be."""
        device = weights.encoder.device
        before, aside = torch.cuda.current_stream(device), None
        with _recording:
            try:
                torch.cuda.synchronize(device)
                graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
                # A stream of this device, and other threads may go on with what a recording must not do.
                with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                    self._launch(weights, bucket)
                bucket.graph = graph
            except Exception as error:
                if not self.forgiving or _ran_out(error):
                    raise
                _warn(f"bytes are heard without CUDA graphs, more slowly: {repr(error)[:300]}")
                self.graphs = False
            finally:
                torch.cuda.set_stream(before)  # a recording that fails may leave this thread on the other
                if bucket.graph is None and aside is not None:
                    with suppress(RuntimeError):  # one that is still recording cannot be waited for
                        before.wait_stream(aside)

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
                BLOCK_T=2 * blocks.parts, num_warps=8, **damped, **wide,
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


_recording = Lock()
"""Of all engines one records at a time: none may wait for the device, or begin, in the midst of another's recording."""
_making = Lock()
_engines: dict[int, tuple[weakref.ref[Tensor], tuple[int, ...], Engine]] = {}
"""By the identity of encoder_v, with the addresses of the weights that graphs were recorded with."""


def _engine(weights: Weights, *, graphs: bool) -> Engine:
    """The engine of a model, made again after its weights were moved."""
    mark = tuple(0 if t is None else t.data_ptr() for t in weights)
    key = id(weights.encoder_v)

    def known() -> Engine | None:
        kept = _engines.get(key)
        return kept[2] if kept is not None and kept[0]() is weights.encoder_v and kept[1] == mark else None

    engine = known()
    if engine is None:
        with _making:
            engine = known()
            if engine is None:
                _engines.pop(key, None)  # before there is another, which may need its room
                engine = Engine(weights, graphs=graphs)
                forget: Callable[[Any], Any] = lambda _: _engines.pop(key, None)  # noqa: E731
                _engines[key] = (weakref.ref(weights.encoder_v, forget), mark, engine)
    return engine


def let_go(encoder_v: Tensor) -> None:
    """Free what is kept for a model whose weights have left the device where it is kept."""
    kept = _engines.get(id(encoder_v))
    if kept is not None and kept[2].rows.device != encoder_v.device:
        _engines.pop(id(encoder_v), None)
