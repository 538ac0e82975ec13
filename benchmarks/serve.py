"""python -m benchmarks serve [--listeners 1 8 32 128] [--minutes M] [--json]: the page's server under many listeners.

All listeners ask at the same moment through HTTP, each for its own bytes; the app that steps them together is timed
beside one that serves one at a time. With --minutes, listeners come and go for so long, and memory is watched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

import bdh
from bdh.sampling import Sampling

from .report import Result, machine, report
from .start import serving

_PROMPT = 'User: What does "river" mean?\nBot:'
_PATIENCE_S = 600


@dataclass
class Heard:
    """What one listener got: its text, and when each update came, in seconds after it asked."""

    text: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        """Seconds to the first byte."""
        return self.times[0]

    @property
    def worst_gap_s(self) -> float:
        """The longest wait between two updates."""
        return max((later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)), default=0.0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks serve", description=__doc__)
    parser.add_argument("model", nargs="?", default="chat", help="a shipped checkpoint")
    parser.add_argument("--listeners", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--bytes", type=int, default=100, help="that each listener asks for")
    parser.add_argument("--minutes", type=float, help="let listeners come and go for so long, and watch memory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = come_and_go(options) if options.minutes else together_and_in_turn(options)
    result = {"rows": rows, "benchmark": "serve", "model": options.model, **machine(os.cpu_count() or 1)}
    print(json.dumps(result, indent=2) if options.json else report(result))
    return 0


def together_and_in_turn(options: argparse.Namespace) -> list[Result]:
    """Each number of listeners by both servers, and whether everybody got the bytes of their own seed."""
    expected = [alone(options.model, seed, options.bytes) for seed in range(max(options.listeners))]
    rows: list[Result] = []
    for at_once in (max(options.listeners), 1):
        with serving(limits(at_once)) as (_, url):
            asyncio.run(crowd(url, options.model, 2, options.bytes))  # the model is in memory
            for listeners in options.listeners:
                heard, took = asyncio.run(crowd(url, options.model, listeners, options.bytes))
                if [one.text for one in heard] != expected[:listeners]:
                    raise SystemExit("a listener got other bytes than its seed gives alone")
                rows.append(
                    {
                        "served": "together" if at_once > 1 else "one at a time",
                        "listeners": listeners,
                        "bytes_per_s": round(listeners * options.bytes / took, 1),
                        "first_byte_s": round(statistics.median(one.first_s for one in heard), 2),
                        "worst_first_byte_s": round(max(one.first_s for one in heard), 2),
                        "worst_gap_s": round(max(one.worst_gap_s for one in heard), 2),
                    }
                )
    return rows


def come_and_go(options: argparse.Namespace) -> list[Result]:
    """Listeners that ask again and again, and leave in the middle of every third answer; memory by the minute."""
    listeners = max(options.listeners)
    with serving(limits(listeners)) as (process, url):
        return asyncio.run(_come_and_go(url, psutil.Process(process), options, listeners))


async def _come_and_go(url: str, process: psutil.Process, options: argparse.Namespace, listeners: int) -> list[Result]:
    end, count, rows = time.monotonic() + options.minutes * 60, [0, 0], []
    async with client(url) as server:

        async def listener(index: int) -> None:
            draw = random.Random(index)
            while time.monotonic() < end:
                asking = listen(server, options.model, index, options.bytes, session=f"visit-{draw.random()}")
                leaves_after_s = draw.uniform(0.1, 2) if draw.random() < 1 / 3 else None
                with suppress(asyncio.TimeoutError):
                    heard = await asyncio.wait_for(asking, leaves_after_s)
                    count[0] += 1
                    count[1] += len(heard.text.encode())
                await asyncio.sleep(draw.uniform(0, 2))

        tasks = [asyncio.create_task(listener(index)) for index in range(listeners)]
        begun = time.monotonic()
        waiting = set(tasks)
        while waiting:
            pause = min(60, max(1, end - time.monotonic()))
            _, waiting = await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            rows.append(
                {
                    "minute": round((time.monotonic() - begun) / 60, 1),
                    "answers": count[0],
                    "bytes": count[1],
                    "memory_mb": round(process.memory_info().rss / 1e6),
                    "threads": process.num_threads(),
                    "open_files": process.num_fds(),
                }
            )
            if not options.json:
                print(rows[-1], file=sys.stderr)
    return rows


async def crowd(url: str, model: str, listeners: int, count: int) -> tuple[list[Heard], float]:
    """What each of so many listeners gets who ask at the same moment, by seed; and seconds until the last is done."""
    async with client(url) as server:
        await asyncio.gather(
            *(listen(server, model, seed, 1) for seed in range(listeners))
        )  # all have been here before
        begun = time.perf_counter()
        heard = await asyncio.gather(*(listen(server, model, seed, count) for seed in range(listeners)))
        return heard, time.perf_counter() - begun


async def listen(server: httpx.AsyncClient, model: str, seed: int, count: int, session: str = "") -> Heard:
    """Ask for so many bytes, and read the stream of the text so far to its end."""
    heard, begun = Heard(), time.perf_counter()
    values = [_PROMPT, model, count, 0.8, 0, 1.0, 0.0, 0.0, 0.98, seed, "", True]
    asked = await server.post("call/generate", json={"data": values, "session_hash": session or f"listener-{seed}"})
    asked.raise_for_status()
    event = ""
    async with server.stream("GET", f"call/generate/{asked.json()['event_id']}") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event:"):
                event = line.removeprefix("event:").strip()
            elif line.startswith("data:") and event in ("generating", "complete"):
                text = json.loads(line.removeprefix("data:"))[0]
                if text != heard.text:
                    heard.text = text
                    heard.times.append(time.perf_counter() - begun)
            elif line.startswith("data:") and event == "error":
                raise SystemExit(f"the server says: {line[:300]}")
    return heard


def client(url: str) -> httpx.AsyncClient:
    """A client that opens as many connections as it is asked for."""
    most = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=f"{url}/gradio_api/", timeout=_PATIENCE_S, limits=most)


def alone(model: str, seed: int, count: int) -> str:
    """What a listener gets who is alone."""
    stream = bdh.Stream(_model(model))
    stream.feed(_PROMPT.encode())
    written = stream.generate(Sampling(max_bytes=count, seed=seed, valid_utf8=True))
    return bytes(one.byte for one in written).decode()


_models: dict[str, bdh.models.Model] = {}


def _model(name: str) -> bdh.models.Model:
    if name not in _models:
        _models[name] = bdh.load(Path(__file__).parents[1] / "checkpoints" / name)
    return _models[name]


def limits(at_once: int) -> dict[str, str]:
    """The environment of an app that serves so many at once and lets all others wait."""
    return {"BDH_MAX_AT_ONCE": str(at_once), "BDH_MAX_LIVE_STREAMS": "256", "BDH_MAX_WAITING": "1000"}
