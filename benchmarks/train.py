"""python -m benchmarks train [--upstream bdh.py] [--json]: one training step, ours and the released one, side by side.

Every variant runs in a process of its own, so that its peak memory is its own (a compiler's share included), and they
take turns, from the first step on: a GPU has room for one step at a time. Ours is `train.loop.Run`, as `python -m
train` steps it; theirs is the released model in the released loop, which does not clip. Both hear the same bytes from
the same weights, without damping, dropout or a carried state, so that they compute the same function; where the loss
of the first step differs, nothing is reported.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

import bdh
from train.__main__ import keep_freed_memory
from train.data import Streams, split
from train.loop import Run
from train.recipe import PRECISIONS, Recipe
from train.sources import prepare

from .report import Result, machine, report, spread
from .upstream import load_upstream

_SIZES = {
    "cpu": {"n_layer": 4, "n_embd": 128, "n_head": 4, "mult": 32, "rows": 8, "chunk_bytes": 256},
    "cuda": {"n_layer": 6, "n_embd": 256, "n_head": 4, "mult": 128, "rows": 32, "chunk_bytes": 512},
}
"""Of a step: on CUDA the released defaults, on a CPU about 1.6 M parameters."""
_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
"""How far two first losses may be from each other, in bits per byte."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks train", description=__doc__)
    for name in _SIZES["cpu"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--upstream", type=Path, help="the released bdh.py, to be timed beside")
    parser.add_argument("--device", choices=list(_SIZES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--recompute", choices=["on", "off"], default="off", help="of activations, by ours")
    parser.add_argument("--rounds", type=int, default=7, help="turns that each variant takes")
    parser.add_argument("--steps", type=int, default=3, help="steps timed in a turn, after one that is not")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    for name, size in _SIZES[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, size)
    precisions = options.precisions or (["bfloat16"] if options.device == "cuda" else list(PRECISIONS))
    rows = [row for precision in precisions for row in measure(options, precision)]
    sizes = ", ".join(f"{name} {getattr(options, name)}" for name in _SIZES["cpu"])
    step = f"{sizes}, recompute {options.recompute}"
    result: Result = {"rows": rows, "benchmark": "train", "step": step, **machine(options.threads)}
    if options.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    print(json.dumps(result, indent=2) if options.json else report(result))
    return 0


def measure(options: argparse.Namespace, precision: str) -> list[Result]:
    """A row for each variant: bytes a second, peak memory, and both against the released code in the same mode."""
    names = [(who, mode) for mode in options.modes for who in ("ours", "upstream") if options.upstream or who == "ours"]
    spawned = multiprocessing.get_context("spawn")
    turns: dict[tuple[str, str], list[Turn]] = {name: [] for name in names}
    firsts: dict[tuple[str, str], float] = {}
    with ExitStack() as stack:
        pipes: dict[tuple[str, str], Connection] = {}
        for who, mode in names:
            pipes[who, mode], theirs = spawned.Pipe()
            worker = spawned.Process(target=serve, args=(theirs, who, mode, precision, options), daemon=True)
            worker.start()
            theirs.close()  # so that a worker that dies is an end of file here
            stack.callback(worker.join)
            stack.callback(pipes[who, mode].close)
            firsts[who, mode] = ask(pipes[who, mode], (who, mode), 0)
        for _ in range(options.rounds):
            for name, pipe in pipes.items():
                turns[name].append(ask(pipe, name, options.steps))
    if max(firsts.values()) - min(firsts.values()) > _TOLERANCES[precision]:
        raise SystemExit(f"the variants do not compute the same function: bits per byte of the first step are {firsts}")
    return [row(options, precision, name, turns) | {"first_bits_per_byte": round(firsts[name], 5)} for name in names]


def ask(pipe: Connection, name: tuple[str, str], steps: int) -> Any:
    """What a worker answers when it is done."""
    try:
        pipe.send(steps)
        return pipe.recv()
    except (BrokenPipeError, ConnectionResetError, EOFError) as error:
        raise SystemExit(f"{' '.join(name)} ended early; what it said stands above") from error


def row(
    options: argparse.Namespace, precision: str, name: tuple[str, str], turns: dict[tuple[str, str], list[Turn]]
) -> Result:
    """What one variant's turns come to."""
    who, mode = name
    step_bytes = options.rows * options.chunk_bytes
    rates = [step_bytes / turn.step_s for turn in turns[name]]
    said: Result = {
        "precision": precision,
        "what": f"{who}, {mode}",
        "bytes_per_s": round(statistics.median(rates), 1),
        "spread": spread(rates),
        "peak_memory_mb": round(turns[name][-1].peak_bytes / 2**20),
    }
    if (released := turns.get(("upstream", mode))) is not None:
        pairs = zip(released, turns[name], strict=True)
        said["speed_to_upstream"] = round(statistics.median(theirs.step_s / own.step_s for theirs, own in pairs), 2)
        said["memory_to_upstream"] = round(turns[name][-1].peak_bytes / released[-1].peak_bytes, 2)
    return said


class Turn(NamedTuple):
    """What a worker tells of a turn."""

    step_s: float
    """Seconds a step, mean over the turn."""
    peak_bytes: int
    """The most memory that its process has held so far; on CUDA that of torch's tensors."""


def serve(pipe: Connection, who: str, mode: str, precision: str, options: argparse.Namespace) -> None:
    """Take a turn of as many steps as the pipe asks for, until it closes; asked for none, tell the bits of a step."""
    torch.set_num_threads(options.threads)
    cuda = options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            name="step",
            model={
                "kind": "flat",
                "n_layer": options.n_layer,
                "n_embd": options.n_embd,
                "n_head": options.n_head,
                "mlp_internal_dim_multiplier": options.mult,
                "dropout": 0.0,
            },
            texts={"english": options.rows},
            chunk_bytes=options.chunk_bytes,
            carried=False,
            precision=precision,
            compile="on" if mode == "compiled" else "off",
            micro_rows=options.rows,
            recompute=options.recompute,
        )
        if who == "ours":
            step = step_of_ours(recipe, Path(folder), options.device)
        else:
            step = step_of_upstream(recipe, Path(folder), options.device, options.upstream)
        while True:
            try:
                steps = pipe.recv()
            except EOFError:
                return
            answer = turn(step, steps, cuda) if steps else float(step())
            if cuda:
                torch.cuda.empty_cache()  # the next variant needs the room
            pipe.send(answer)


def turn(step: Callable[[], float | Tensor], steps: int, cuda: bool) -> Turn:
    """Take some steps, after one that is not timed."""
    step()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if cuda:
        torch.cuda.synchronize()
    taken = (time.perf_counter() - start) / steps
    return Turn(taken, torch.cuda.max_memory_allocated() if cuda else 1024 * getrusage(RUSAGE_SELF).ru_maxrss)


def step_of_ours(recipe: Recipe, folder: Path, device: str) -> Callable[[], float]:
    """A step of a run as the command line makes it; it returns bits per byte."""
    keep_freed_memory()
    run = Run(recipe, folder, accelerator=Accelerator(cpu=device == "cpu"))

    def step() -> float:
        bits, _, _ = run.train_step()
        if run.planned().micro_rows < run.rows:  # a run goes on so, but it is not what is compared
            raise SystemExit("memory ran out; take fewer --rows or --recompute on")
        return bits

    return step


def step_of_upstream(recipe: Recipe, folder: Path, device: str, path: Path) -> Callable[[], Tensor]:
    """A step of the released loop with the weights and bytes of `step_of_ours`; it returns bits per byte."""
    model = load_upstream(path, bdh.build(recipe.config(), seed=recipe.seed)).train().to(device)
    called = torch.compile(model) if recipe.compile == "on" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    (part,) = recipe.parts()
    (text,) = recipe.sources(part)
    texts = [split(prepare(text, folder), validation=recipe.validation, test=recipe.test)]
    streams = Streams(texts, [text.rows], recipe.chunk_bytes, recipe.seed, carried=False)

    def step() -> Tensor:
        ids, targets = (tensor.to(device).contiguous() for tensor in streams.next())
        with torch.autocast(device, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            _, loss = called(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach() / math.log(2)

    return step
