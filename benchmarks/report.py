"""What was measured, on what, and how it is shown."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Result = dict[str, Any]


def machine(threads: int, device: torch.device | None = None) -> Result:
    """What a result was measured on, and how busy it was."""
    gpu = f"{torch.cuda.get_device_name(device)}, " if device is not None and device.type == "cuda" else ""
    return {
        "machine": f"{gpu}{threads} threads of {os.cpu_count()} cores, {cpu_name()}",
        "others_load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that one call takes, and what a GPU does for it."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    """Smallest to largest."""
    return f"{min(values):.4g} to {max(values):.4g}"


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(result: Result) -> str:
    """The result as a Markdown table with what it was measured on."""
    columns = list(result["rows"][0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in result["rows"]]
    rest = [f"{key}: {value}" for key, value in result.items() if key != "rows"]
    return "\n".join([*lines, "", *rest])
