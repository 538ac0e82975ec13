"""python -m benchmarks serve [--listeners 1 8 32 128] [--minutes M] [--json]: the page's server under many listeners.

All listeners ask at the same moment through HTTP, each for its own bytes; the app that steps them together is timed
beside one that serves one at a time. With --minutes, listeners come and go for so long, stop, leave and reload; what
each heard is held against what it hears alone, and memory and files are watched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time

from .listening import Heard, alone, client, limits, listen
from .load import come_and_go
from .report import Result, machine, report
from .start import serving


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


async def crowd(url: str, model: str, listeners: int, count: int) -> tuple[list[Heard], float]:
    """What each of so many listeners gets who ask at the same moment, by seed; and seconds until the last is done."""
    async with client(url) as server:
        await asyncio.gather(
            *(listen(server, model, seed, 1) for seed in range(listeners))
        )  # all have been here before
        begun = time.perf_counter()
        heard = await asyncio.gather(*(listen(server, model, seed, count) for seed in range(listeners)))
        return heard, time.perf_counter() - begun
