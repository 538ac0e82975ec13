"""python -m benchmarks decode|prefill|constant [CHECKPOINT or PRESET] [--json]; … train|serve|start|ppmd [--json].

`decode --streams 1 2 4` times streams that are stepped together instead of contexts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bdh
from bdh import state as states
from bdh.device import pick_device
from bdh.models import Model
from bdh.ops import gpu_step, step
from bdh.ops.debt import Debt, owing
from bdh.presets import PRESETS
from train.data import read_bytes

from . import ppmd, serve, start, train
from .gpt2 import Peer
from .report import Result, machine, report, seconds, spread
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
    parser.add_argument("--streams", type=int, nargs="+", help="time so many streams together")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
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
        model = (
            bdh.build(PRESETS[options.model], seed=0)
            if options.model in PRESETS
            else bdh.load(options.model, device="cpu")
        )
        device = pick_device(options.device)
    except bdh.HatcheryError as error:
        parser.error(str(error))
    model.eval()
    if options.active:
        thin_out(model, options.active, text(256))
    model.to(device)
    what = "together" if options.what == "decode" and options.streams else options.what
    ways = {"decode": decode, "together": together, "prefill": prefill, "constant": constant}
    result = ways[what](model, options)
    result |= {
        "benchmark": what,
        "model": options.model,
        "parameters": model.parameter_count(),
        "x_active": round(x_active(model, text(512)), 3) if model.kind == "flat" else None,
        **machine(options.threads, device),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result, indent=2) if options.json else report(result))
    return 0


@torch.no_grad()
def decode(model: Model[Any], options: argparse.Namespace) -> Result:
    """Bytes a second of the recurrent step against plain operations and against hearing the whole context again."""
    upstream = load_upstream(options.upstream, model).eval().to(model.device) if options.upstream else None
    most = max(options.contexts) + _STEPS + 1
    layers = getattr(model.config, "n_layer", 6)
    gpt2 = Peer(model.parameter_count(), layers, most, model.device) if options.gpt2 else None
    rows = []
    for context in options.contexts:
        ids = text(context + 1)
        heard = model(ids[:, :context], last_only=True)
        state = heard.state
        whole = partial(model, ids[:, :context], last_only=True, keep_state=False)
        released = (
            partial(upstream, ids[:, :context].to(model.device)) if upstream is not None and context <= 2048 else None
        )
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
def together(model: Model[Any], options: argparse.Namespace) -> Result:
    """Bytes a second of streams that go on from different places, stepped together and one after another."""
    rows, context, repeats = [], min(options.contexts), 50
    for count in options.streams:
        held = [(model.empty_state(1), Debt()) for _ in range(count)]
        for index, (state, _) in enumerate(held):
            states.copy_(state, model(text(context, 97 * index), last_only=True).state)
        heard = torch.cat([text(repeats, context + 97 * index) for index in range(count)]).T.tolist()
        timed: dict[str, list[float]] = {"together": [], "apart": []}
        for _ in range(options.rounds):
            for name, hear in (("together", hear_together), ("apart", hear_apart)):
                hear(model, held, heard[:1])
                timed[name].append(seconds(partial(hear, model, held, heard)) / repeats / count)
        one = statistics.median(timed["together"])
        rows.append(
            {
                "streams": count,
                "bytes_per_s": round(1 / one, 1),
                "spread": spread([1 / t for t in timed["together"]]),
                "bytes_per_s_of_each": round(1 / one / count, 1),
                "ratio_to_one_after_another": round(statistics.median(timed["apart"]) / one, 1),
            }
        )
    return {"rows": rows, "context_bytes": context}


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


def step_seconds(model: Model[Any], state: Any, ids: torch.Tensor, repeats: int = _STEPS) -> float:
    """Seconds a byte of the in-place step, over the last bytes of `ids`; the state given is left alone."""
    own, debt = model.empty_state(1), Debt()  # laid out as a stream has it
    states.copy_(own, state)
    heard = [int(ids[0, index % ids.shape[1]]) for index in range(-repeats, 0)]
    step_one(model, heard[0], own, debt)
    return seconds(lambda: [step_one(model, byte, own, debt) for byte in heard]) / repeats


def hear_together(model: Model[Any], held: list[tuple[Any, Debt]], heard: list[list[int]]) -> None:
    """Byte after byte of several streams, stepped together where that can be; logits are fetched each time."""
    states_, debts = ([*parts] for parts in zip(*held, strict=True))
    for data in heard:
        said = model.step_streams_(data, states_, debts)
        if said is None:
            hear_apart(model, held, [data])
        else:
            said.cpu()


def hear_apart(model: Model[Any], held: list[tuple[Any, Debt]], heard: list[list[int]]) -> None:
    """Byte after byte of several streams, one stream after another."""
    for data in heard:
        for byte, (state, debt) in zip(data, held, strict=True):
            step_one(model, byte, state, debt)


def step_one(model: Model[Any], byte: int, state: Any, debt: Debt) -> None:
    """One byte, heard as a stream does."""
    with owing(debt):
        if model.step_byte_(byte, state) is None:
            model.step_(torch.tensor([[byte]], dtype=torch.uint8), state).logits.cpu()


@contextmanager
def plain() -> Iterator[None]:
    """Let single bytes be heard by plain operations."""
    usable, on_gpu = step.usable, gpu_step.usable
    step.usable = gpu_step.usable = lambda *_: None
    try:
        yield
    finally:
        step.usable, gpu_step.usable = usable, on_gpu


if __name__ == "__main__":
    sys.exit(main())
