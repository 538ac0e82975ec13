"""python -m benchmarks start [--rounds N] [--json]: seconds until the page is served and until `import bdh` is done."""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

import psutil

from .report import Result, machine, report, spread

_ROOT = Path(__file__).parents[1]
_LONGEST_S = 300


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    imported, served, held = [], [], []
    for _ in range(options.rounds):
        imported.append(_import_seconds())
        seconds, megabytes = _serve()
        served.append(seconds)
        held.append(megabytes)
    rows: list[Result] = [
        {"what": what, "seconds": round(statistics.median(times), 2), "spread": spread(times)}
        for what, times in (("import bdh", imported), ("page served", served))
    ]
    rows[-1]["memory_mb"] = round(statistics.median(held))
    result = {"rows": rows, "benchmark": "start", **machine(os.cpu_count() or 1)}
    print(json.dumps(result, indent=2) if options.json else report(result))
    return 0


def _import_seconds() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import bdh"], cwd=_ROOT, check=True)
    return time.perf_counter() - begun


def _serve() -> tuple[float, float]:
    """Start the app on the shipped checkpoints: seconds until it answers, and the memory that it then holds, in MB."""
    begun = time.perf_counter()
    with serving({}) as (process, _):
        return time.perf_counter() - begun, psutil.Process(process).memory_info().rss / 1e6


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """The app of the shipped checkpoints, answering: its process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as data:
        told = {"GRADIO_SERVER_PORT": str(port), "BDH_DATA": data, "GRADIO_ANALYTICS_ENABLED": "False"} | environment
        begun = time.perf_counter()
        app = subprocess.Popen([sys.executable, "app.py"], cwd=_ROOT, env=os.environ | told, stdout=subprocess.DEVNULL)
        try:
            while not _answers(url):
                if app.poll() is not None:
                    raise SystemExit("the app ended before it answered")
                if time.perf_counter() - begun > _LONGEST_S:
                    raise SystemExit(f"the app did not answer in {_LONGEST_S} seconds")
                time.sleep(0.02)
            yield app.pid, url
        finally:
            app.terminate()
            app.wait()


def _answers(url: str) -> bool:
    with suppress(URLError, ConnectionError), urllib.request.urlopen(f"{url}/") as page:
        page.read()
        return True
    return False
