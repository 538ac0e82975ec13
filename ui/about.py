"""Where this page runs and what that means: hardware, what is kept and lent, and the limits that hold here."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import psutil
import torch

from bdh.ops import loops

from .limits import Limits, hours_text
from .registry import size_text

CSS = """
#about table { width: 100%; table-layout: auto; }
#about td, #about th { overflow-wrap: anywhere; padding: 2px 8px; font-size: var(--text-sm); }
#about td:nth-child(2) { overflow-wrap: normal; }
#about code { font-size: var(--text-xs); }
@media (max-width: 500px) { #about td:nth-child(3), #about th:nth-child(3) { display: none; } }
"""
"""The looks, for the page's style sheet."""
_SWITCHED_ON = ("1", "true")
_IN_MEMORY = ("tmpfs", "ramfs", "overlay", "devtmpfs")
"""File systems that go with the container."""
_NONE_WITHIN = 1_000_000
"""From so many minutes or hours on a limit is none."""
_SHOWN = (
    ("max_prompt_bytes", "A message or prompt"),
    ("max_write_bytes", "Text written at once"),
    ("max_feed_bytes", "A text fed into a memory"),
    ("max_upload_bytes", "An uploaded file"),
    ("max_parameters", "A model"),
    ("max_at_once", "Answers written at the same time, for all visitors; as many again through /v1"),
    ("max_waiting", "Requests that wait"),
    ("max_live_streams", "Memories held at once, for all visitors"),
    ("max_waiting_each", "Requests of one visitor that wait or are answered"),
    ("max_connections_each", "Pages and requests of one visitor at the same time"),
    ("parked_hours", "A conversation is kept after its last message"),
    ("max_uploads_each", "Your uploaded models"),
    ("uploads_hours", "They are kept"),
    ("served_hours", "Files on their way to or from you are kept"),
    ("max_train_minutes", "A run may train"),
    ("max_train_bytes", "Text of a run"),
    ("max_train_parameters", "A model that is trained"),
    ("max_runs_at_once", "Runs that train at the same time, for all visitors"),
    ("max_runs_each", "Your runs that wait or train"),
    ("max_runs_kept", "Your runs that have ended"),
    ("max_merges_kept", "Your merged models"),
    ("runs_hours", "Runs and merged models are kept"),
    ("max_merge_bytes", "Memory for merging"),
)
"""Limits that a visitor can meet, and what each is of."""


@dataclass(frozen=True)
class Place:
    """What the page runs on."""

    kind: str
    """"home", "cpu-space", "gpu-space" or "zero-gpu"."""
    device: str
    """The GPU's name, or "" without one."""
    cores: int
    memory_bytes: int
    single_bytes: str
    """What hears single bytes of a model in float32."""
    lasting: bool = False
    """Whether the data folder lies on storage that was mounted for it, such as a Space's persistent storage."""


def find_place(environment: Mapping[str, str] | None = None, data: Path | None = None) -> Place:
    """What this process runs on; a Space says so in its environment.

    Args:
        data: the data folder.
    """
    env = os.environ if environment is None else environment
    lent = env.get("SPACES_ZERO_GPU", "").lower() in _SWITCHED_ON
    device = ""
    # On ZeroGPU there is none between calls, and to ask for one here would take it.
    if not lent and torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    elif not lent and torch.backends.mps.is_available():
        device = "Apple GPU"
    kind = "zero-gpu" if lent else "home" if "SPACE_ID" not in env else "gpu-space" if device else "cpu-space"
    if lent or device == "Apple GPU":
        by = "PyTorch"
    elif device:
        by = "kernels of the GPU where they agree with PyTorch, else PyTorch"
    else:
        by = "loops compiled for this CPU" if loops.allowed() else "PyTorch"
    return Place(kind, device, _cores(env), _memory_bytes(env), by, data is not None and _lasting(data))


def _lasting(folder: Path) -> bool:
    """Whether a folder lies on a disk other than the one that this code and all else of a container lies on."""
    path = str(folder.resolve())
    mounts = [one for one in psutil.disk_partitions(all=True) if Path(path).is_relative_to(one.mountpoint)]
    if not mounts:
        return False
    mount = max(reversed(mounts), key=lambda one: len(one.mountpoint))  # of one place, what was mounted last
    own = Path(__file__).resolve().is_relative_to(mount.mountpoint)
    return not own and mount.fstype not in _IN_MEMORY


def _cores(env: Mapping[str, str]) -> int:
    """Cores that the Space was given, or that this process may use."""
    given = env.get("CPU_CORES", "")
    if re.fullmatch(r"\d{1,4}(\.\d+)?", given, re.ASCII) and float(given) >= 1:
        return int(float(given))
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable is not None else os.cpu_count() or 1


def _memory_bytes(env: Mapping[str, str]) -> int:
    """Memory that the Space was given (such as 16Gi), or that the machine has."""
    match = re.fullmatch(r"(\d{1,6})\s*(Gi|G|GB|Mi|M|MB)?", env.get("MEMORY", ""), re.ASCII)
    if match is None:
        return int(psutil.virtual_memory().total)
    scale = {"G": 10**9, "M": 10**6}[match[2][0]] if match[2] and "i" not in match[2] else 2**20
    return int(match[1]) * (2**30 if match[2] == "Gi" else scale)


def told(place: Place, limits: Limits) -> str:
    """Where this runs and what that means, in Markdown."""
    many = f"{place.cores} CPU core{'s' if place.cores != 1 else ''}"
    machine = f"{many}, {size_text(place.memory_bytes)} of memory, {platform.system()} on {platform.machine()}"
    head, means = {
        "home": ("your own machine", _HOME),
        "cpu-space": ("a Space without a GPU", _CPU),
        "gpu-space": ("a Space with a GPU of its own", _GPU),
        "zero-gpu": ("a Space that is lent a GPU (ZeroGPU)", _LENT),
    }[place.kind]
    if place.kind == "home":
        head, means = ("a machine that others can reach", _OPEN) if limits.public else (head, means)
    else:
        means += _LASTING if place.lasting else _EMPTIED
    gpu = f", {_plain(place.device)}" if place.device else ""
    means = means.format(
        minutes=limits.max_train_minutes, hours=hours_text(limits.parked_hours), runs=_kept(limits.runs_hours)
    )
    by = place.single_bytes
    return f"This page runs on **{head}**: {machine}{gpu}. Single bytes are computed by {by}.\n\n{means}"


def _plain(name: str) -> str:
    """A device's name without what Markdown would obey."""
    return re.sub(r"[^\w .,()/+-]", "", name)[:80]


def _kept(hours: float) -> str:
    return "until they are deleted" if hours >= _NONE_WITHIN else f"for {hours_text(hours)}"


_HOME = (
    "- Nothing leaves it but what you fetch from the Hub or publish there.\n"
    "- Runs, merged models and uploads are kept in the data folder; memories put aside are kept for {hours}."
)
_OPEN = (
    "- You share it with other visitors; what you upload, train and merge is shown to you alone.\n"
    "- Runs and merged models are kept {runs}, memories put aside for {hours}. Download what you want to keep."
)
_CPU = (
    "- You share its cores with all visitors: writing is quick for small models, and training and merging are slow.\n"
)
_GPU = "- You share its GPU with all visitors.\n"
_LENT = (
    "- A GPU is lent for the length of one answer or one training run, out of your own daily minutes on the Hub "
    "(few without an account); sign in there to get more.\n"
    "- Each answer waits some seconds for its GPU. A run trains inside one call, {minutes} minutes at most, and ends "
    "when you close the page.\n"
)
_EMPTIED = (
    "- **Its disk is emptied at each restart**, and it restarts after sleeping or when its owner changes it. Until "
    "then runs and merged models are kept {runs}, memories put aside for {hours}, at most. Download or publish what "
    "you want to keep."
)
_LASTING = (
    "- What it keeps lies on storage that outlives a restart: runs and merged models {runs}, memories put aside for "
    "{hours}. Download or publish what you want to keep for longer."
)


def limit_rows(limits: Limits) -> list[list[str]]:
    """What a visitor may use here, and the variable of the environment that says so."""
    return [[what, _amount(name, getattr(limits, name)), f"BDH_{name.upper()}"] for name, what in _SHOWN]


def _amount(name: str, value: float) -> str:
    """A limit with its unit, which its name tells."""
    if name.endswith("_bytes"):
        return size_text(int(value))
    if name.endswith("parameters"):
        return f"{value:,} parameters"
    if name.endswith(("minutes", "hours")):
        return "no limit" if value >= _NONE_WITHIN else f"{value:,} minutes" if "minutes" in name else hours_text(value)
    return f"{value:,}"


def build_about(limits: Limits, data: Path) -> None:
    """Lay out what the page says of itself, folded away; a narrow screen leaves out the variables."""
    rows = "\n".join(f"| {what} | {amount} | `{variable}` |" for what, amount, variable in limit_rows(limits))
    with gr.Accordion("Where this runs", open=False, elem_id="about"):
        gr.Markdown(told(find_place(data=data), limits), elem_id="about-place")
        gr.Markdown(f"| Limits here | | set by |\n|---|---|---|\n{rows}", elem_id="about-limits")
