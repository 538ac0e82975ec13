"""Listeners that come and go: they hear to the end, stop, leave in the middle and come back as somebody new.

Whatever each heard must be what its seed gives alone, or the beginning of that. Memory, threads, open and temporary
files of the server are watched.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from .listening import CHAT, GENERATE, Heard, alone, client, limits, listen
from .report import Result
from .start import serving

_SENT_BYTES = 2_000
_KEPT_PART = 0.25
"""Of the time that listeners come and go, files are kept for so much: most of them go meanwhile."""
_SLACK_S = 90.0
"""The app looks for old files every few seconds."""


@dataclass
class Load:
    """One run of it."""

    url: str
    process: psutil.Process
    temporary: Path
    model: str
    bytes: int
    expected: dict[tuple[str, int], str]
    """What each listener hears alone, by what it asks for."""
    functions: dict[str, int]
    """The number of each endpoint, by which it is stopped."""
    end: float
    count: Counter[str] = field(default_factory=Counter)

    async def listener(self, server: httpx.AsyncClient, index: int) -> None:
        """Ask again and again until the time is over."""
        draw = random.Random(index)
        session = f"visit-{draw.getrandbits(64):016x}"
        while time.monotonic() < self.end:
            fate = draw.choice(("hears", "hears", "hears", "stops", "leaves", "reloads"))
            if fate == "reloads":  # and is somebody new, who sends a file along
                session = f"visit-{draw.getrandbits(64):016x}"
                sent = {"files": (f"{index}.txt", draw.randbytes(_SENT_BYTES))}
                (await server.post("upload", files=sent)).raise_for_status()
                self.count["files"] += 1
            what, heard = draw.choice((GENERATE, CHAT)), Heard()
            asking = asyncio.ensure_future(
                listen(server, self.model, index, self.bytes, session, what=what, heard=heard)
            )
            done, _ = await asyncio.wait(
                [asking], timeout=draw.uniform(0.1, 3) if fate in ("stops", "leaves") else None
            )
            if not done and fate == "stops" and heard.event_id:
                told = {"session_hash": session, "fn_index": self.functions[what], "event_id": heard.event_id}
                (await server.post("cancel", json=told)).raise_for_status()
                await asyncio.wait([asking], timeout=30)
            ended = asking.done()
            if not ended:
                asking.cancel()
                with suppress(asyncio.CancelledError):
                    await asking
            else:
                asking.result()
            self.judge(heard, what, index, fate)
            # What is left of one's own answer may still come, or be closing; Gradio hands it to the session's next.
            if not ended or (fate == "stops" and what == CHAT):
                session = f"visit-{draw.getrandbits(64):016x}"
            await asyncio.sleep(draw.uniform(0, 2))

    def judge(self, heard: Heard, what: str, index: int, fate: str) -> None:
        """Count what was heard.

        Raises:
            SystemExit: it is not what the seed gives alone, or less though nobody broke it off.
        """
        if fate in ("hears", "reloads") and not heard.whole:
            raise SystemExit(f"the answer to listener {index} broke off after {heard.text!r:.300}")
        alone_hears = self.expected[what, index]
        # An answer's spaces at its end are shown when more follows.
        right = heard.text == alone_hears if heard.whole else alone_hears.startswith(heard.text.rstrip("\ufffd"))
        if not right:
            raise SystemExit(f"listener {index} heard {heard.text!r:.300} of {what}; alone it is {alone_hears!r:.300}")
        self.count["answers" if heard.whole else f"left ({fate})"] += 1
        self.count["bytes"] += len(heard.text.encode())

    def row(self, begun: float) -> Result:
        """How things stand."""
        left = sum(count for name, count in self.count.items() if name.startswith("left"))
        return {
            "minute": round((time.monotonic() - begun) / 60, 1),
            "answers": self.count["answers"],
            "left": left,
            "bytes": self.count["bytes"],
            "memory_mb": round(self.process.memory_info().rss / 1e6),
            "threads": self.process.num_threads(),
            "open_files": self.process.num_fds(),
            "temporary_files": len(files_below(self.temporary)),
        }


def come_and_go(options: argparse.Namespace) -> list[Result]:
    """Listeners that come and go for some minutes; a row for each minute and one after they left."""
    listeners = max(options.listeners)
    expected = {
        (what, seed): alone(options.model, seed, options.bytes, what)
        for what in (GENERATE, CHAT)
        for seed in range(listeners)
    }
    keep_hours = options.minutes / 60 * _KEPT_PART
    with tempfile.TemporaryDirectory() as temporary:
        told = limits(listeners) | {
            "GRADIO_TEMP_DIR": temporary,
            "BDH_MAX_LIVE_STREAMS": str(max(64, listeners)),
            "BDH_SERVED_HOURS": f"{keep_hours:.6f}",
        }
        with serving(told) as (process, url):
            return asyncio.run(_run(url, psutil.Process(process), options, listeners, expected))


async def _run(
    url: str,
    process: psutil.Process,
    options: argparse.Namespace,
    listeners: int,
    expected: dict[tuple[str, int], str],
) -> list[Result]:
    rows: list[Result] = []
    told = process.environ()
    temporary, keep_s = Path(told["GRADIO_TEMP_DIR"]), float(told["BDH_SERVED_HOURS"]) * 3600
    async with client(url) as server:
        told = (await server.get(f"{url}/config")).raise_for_status().json()["dependencies"]
        functions = {one["api_name"]: one["id"] for one in told if one["api_name"] in (GENERATE, CHAT)}
        begun = time.monotonic()
        load = Load(
            url, process, temporary, options.model, options.bytes, expected, functions, begun + options.minutes * 60
        )
        tasks = [asyncio.create_task(load.listener(server, index)) for index in range(listeners)]
        waiting = set(tasks)
        while waiting:
            left_s = load.end - time.monotonic()
            pause = min(60, left_s) if left_s > 1 else None
            _, waiting = await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            rows.append(load.row(begun))
            if not options.json:
                print(rows[-1], file=sys.stderr)
        gone_s = await _gone(temporary, keep_s)
    left = {name: count for name, count in load.count.items() if name.startswith("left")}
    rows.append(load.row(begun) | left | {"files_sent": load.count["files"], "files_gone_after_s": round(gone_s, 1)})
    return rows


async def _gone(temporary: Path, keep_s: float) -> float:
    """Wait until no temporary file is left; seconds that it took.

    Raises:
        SystemExit: some stay longer than they may.
    """
    begun = time.monotonic()
    while files := files_below(temporary):
        if time.monotonic() - begun > keep_s + _SLACK_S:
            raise SystemExit(f"{len(files)} temporary files stay, such as {files[0]}, though {keep_s:.0f} s are over")
        await asyncio.sleep(1)
    return time.monotonic() - begun


def files_below(folder: Path) -> list[Path]:
    """All files; folders may go while they are looked through."""
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]
