"""python -m benchmarks decode|prefill|constant [CHECKPOINT or PRESET] [--json]; … train|serve|start|ppmd [--json]."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bdh
from bdh import state as states
from bdh.models import Model
from bdh.ops import step
from bdh.ops.debt import Debt, owing
from bdh.presets import PRESETS
from train.data import read_bytes

from . import ppmd, serve, start, train
from .gpt2 import Peer
from .report import Result, machine, report, spread
from .sparse import thin_out, x_active
from .upstream import load_upstream

_STEPS = 100
"""Bytes that one measure of a step is the mean of."""
_APART = {"train": train.main, "serve": serve.main, "start": start.main, "ppmd": ppmd.main}


def main() -> int:
    apart = _APART.get("".join(sys.argv[1:2]))
    if apart is not None:
        return apart(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=["decode", "prefill", "constant"])
    parser.add_argument("model", nargs="?", default="checkpoints/hatchling", help="checkpoint or preset")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 100_000])
    parser.add_argument("--positions", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--active", type=float, help="let this part of a flat preset's neurons fire, such as 0.05")
    parser.add_argument("--upstream", type=Path, help="the released bdh.py, to be timed beside (flat models)")
    parser.add_argument("--gpt2", action="store_true", help="time a GPT-2 of the same size beside (transformers)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        model = bdh.build(PRESETS[options.model], seed=0) if options.model in PRESETS else bdh.load(options.model)
    except bdh.HatcheryError as error:
        parser.error(str(error))
    model.eval()
    if options.active:
        thin_out(model, options.active, text(256))
    result = {"decode": decode, "prefill": prefill, "constant": constant}[options.what](model, options)
    result |= {
        "benchmark": options.what,
        "model": options.model,
        "parameters": model.parameter_count(),
        "x_active": round(x_active(model, text(512)), 3) if model.kind == "flat" else None,
        **machine(options.threads),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result, indent=2) if options.json else report(result))
    return 0


@torch.no_grad()
def decode(model: Model[Any], options: argparse.Namespace) -> Result:
    """Bytes a second of the recurrent step against plain operations and against hearing the whole context again."""
    upstream = load_upstream(options.upstream, model).eval() if options.upstream else None
    most = max(options.contexts) + _STEPS + 1
    layers = getattr(model.config, "n_layer", 6)
    gpt2 = Peer(model.parameter_count(), layers, most) if options.gpt2 else None
    rows = []
    for context in options.contexts:
        ids = text(context + 1)
        heard = model(ids[:, :context], last_only=True)
        state = heard.state
        whole = partial(model, ids[:, :context], last_only=True, keep_state=False)
        released = partial(upstream, ids[:, :context]) if upstream is not None and context <= 2048 else None
        timed: dict[str, list[float]] = {"recompute": [], "step": [], "plain": [], "upstream": [], "gpt2": []}
        for _ in range(options.rounds if context <= 10_000 else 1):
            timed["recompute"].append(seconds(whole))
            timed["step"].append(step_seconds(model, state, ids))
            with plain():
                timed["plain"].append(step_seconds(model, state, ids))
            if gpt2 is not None:
                timed["gpt2"].append(gpt2.step_seconds(context, ids, _STEPS))
            if released is not None:
                timed["upstream"].append(seconds(released))
        one = statistics.median(timed["step"])
        row: Result = {
            "context_bytes": context,
            "step_bytes_per_s": round(1 / one, 1),
            "step_spread": spread([1 / t for t in timed["step"]]),
            "plain_step_bytes_per_s": round(1 / statistics.median(timed["plain"]), 1),
            "ratio_to_plain_step": round(statistics.median(timed["plain"]) / one, 1),
            "recompute_bytes_per_s": round(1 / statistics.median(timed["recompute"]), 4),
            "ratio_to_recompute": round(statistics.median(timed["recompute"]) / one, 1),
        }
        if timed["upstream"]:
            row["upstream_bytes_per_s"] = round(1 / statistics.median(timed["upstream"]), 3)
            row["ratio_to_upstream"] = round(statistics.median(timed["upstream"]) / one, 1)
        if gpt2 is not None:
            row["gpt2_bytes_per_s"] = round(1 / statistics.median(timed["gpt2"]), 1)
            row["ratio_to_gpt2"] = round(statistics.median(timed["gpt2"]) / one, 1)
            row["gpt2_cache_mb"] = round(gpt2.cache_mb(context), 1)
        if released is not None:
            difference = released()[0][0, -1] - heard.logits[0, -1]
            row["largest_difference_to_upstream"] = difference.abs().max().item()
        # Byte by byte over the last bytes, against the pass that heard them in chunks.
        stepped = model(ids[:, : context - 7], last_only=True)
        for byte in ids[:, context - 7 : context].split(1, dim=1):
            stepped = model.step_(byte, stepped.state)
        row["largest_difference"] = (heard.logits - stepped.logits).abs().max().item()
        rows.append(row)
    beside = {} if gpt2 is None else {"gpt2_parameters": gpt2.parameters}
    return {"rows": rows, "state_mb": round(states.state_bytes(model.empty_state(1)) / 1e6, 1), **beside}


@torch.no_grad()
def prefill(model: Model[Any], options: argparse.Namespace) -> Result:
    """Bytes a second when text is heard in chunks against byte by byte, and the memory it takes."""
    rows = []
    for context in options.contexts:
        ids = text(context)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chunked = [
            seconds(partial(model, ids, last_only=True)) for _ in range(options.rounds if context < 10_000 else 1)
        ]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        single = step_seconds(model, model(ids[:, :64]).state, ids)
        rate = context / statistics.median(chunked)
        rows.append(
            {
                "context_bytes": context,
                "prefill_bytes_per_s": round(rate, 1),
                "spread": spread([context / t for t in chunked]),
                "step_bytes_per_s": round(1 / single, 1),
                "ratio": round(rate * single, 1),
                "peak_memory_grew_mb": round((after - before) / 1024),
            }
        )
    return {"rows": rows}


@torch.no_grad()
def constant(model: Model[Any], options: argparse.Namespace) -> Result:
    """What a byte costs at early and late positions of one stream that really heard all bytes before."""
    state, rows, begun = model.empty_state(1), [], time.monotonic()
    kept: list[tuple[int, Any]] = []
    for position in sorted(options.positions):
        while (here := int(state.position[0])) < position:
            piece = text(min(8192, position - here), here)
            state = model.step_(piece, state).state
            if not options.json:
                rate = (here + piece.shape[1]) / (time.monotonic() - begun)
                print(f"\rheard {here + piece.shape[1]:,} bytes, {rate:,.0f} bytes/s", end="", file=sys.stderr)
        kept.append((position, states.clone(state)))
    times: dict[int, list[float]] = {position: [] for position, _ in kept}
    for _ in range(options.rounds):
        for position, at in kept:
            times[position].append(step_seconds(model, at, text(200), 200))
    for position, at in kept:
        rows.append(
            {
                "position_bytes": position,
                "ms_per_byte": round(statistics.median(times[position]) * 1000, 3),
                "spread": spread([t * 1000 for t in times[position]]),
                "state_mb": round(states.state_bytes(at) / 1e6, 1),
            }
        )
    ratio = statistics.median(late / early for early, late in zip(times[kept[0][0]], times[kept[-1][0]], strict=True))
    return {"rows": rows, "last_to_first": round(ratio, 3)}


def text(length: int, start: int = 0) -> torch.Tensor:
    """`length` bytes of the chat corpus from `start` on, in a circle, (1, length)."""
    data = read_bytes("chat")
    return torch.from_numpy(np.take(data, np.arange(start, start + length), mode="wrap").astype(np.int64))[None]


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def step_seconds(model: Model[Any], state: Any, ids: torch.Tensor, repeats: int = _STEPS) -> float:
    """Seconds a byte of the in-place step, over the last bytes of `ids`; the state given is left alone."""
    own, debt = model.empty_state(1), Debt()  # laid out as a stream has it
    states.copy_(own, state)
    state = own
    heard = [ids[:, index % ids.shape[1], None] for index in range(-repeats, 0)]

    def step_one(byte: torch.Tensor) -> None:  # as a stream does
        if model.step_byte_(int(byte), state) is None:
            model.step_(byte, state)

    with owing(debt):
        step_one(heard[0])
        total = seconds(lambda: [step_one(byte) for byte in heard])
    return total / repeats


@contextmanager
def plain() -> Iterator[None]:
    """Let single bytes be heard by plain operations."""
    usable = step.usable
    step.usable = lambda *_: False
    try:
        yield
    finally:
        step.usable = usable


if __name__ == "__main__":
    sys.exit(main())
