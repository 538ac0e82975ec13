"""What the page says of where it runs, for each place that it can run on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch

from ui import about
from ui.about import Place, build_about, find_place, limit_rows, told
from ui.limits import Limits

SPACE = {"SPACE_ID": "user/hatchery", "CPU_CORES": "2", "MEMORY": "16Gi"}
LENT = {**SPACE, "SPACES_ZERO_GPU": "true"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Example <GPU> 24")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("BDH_COMPILED", raising=False)


@pytest.mark.usefixtures("no_gpu")
def test_at_home_everything_stays_there_and_is_kept() -> None:
    place = find_place({})
    assert (place.kind, place.device, place.single_bytes) == ("home", "", "loops compiled for this CPU")
    assert place.cores >= 1 and place.memory_bytes > 2**28
    text = told(place, Limits.from_environment({}))
    assert "your own machine" in text and "kept in the data folder" in text and "emptied" not in text
    opened = told(place, Limits.from_environment({"GRADIO_SERVER_NAME": "0.0.0.0"}))
    assert "a machine that others can reach" in opened and "48 hours" in opened


@pytest.mark.usefixtures("no_gpu")
def test_on_a_cpu_space_it_says_what_is_slow_and_what_is_not_kept() -> None:
    place = find_place(SPACE)
    assert place == Place("cpu-space", "", 2, 16 * 2**30, "loops compiled for this CPU")
    text = told(place, Limits.from_environment(SPACE))
    assert "a Space without a GPU" in text and "2 CPU cores, 17.2 GB of memory" in text
    assert "training and merging are slow" in text and "disk is emptied at each restart" in text and "48 hours" in text


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_space_it_names_the_device_without_its_markup() -> None:
    place = find_place(SPACE)
    assert (place.kind, place.device) == ("gpu-space", "Example <GPU> 24")
    assert place.single_bytes == "kernels of the GPU where they agree with PyTorch, else PyTorch"
    text = told(place, Limits.from_environment(SPACE))
    assert "a Space with a GPU of its own" in text and "Example GPU 24" in text and "disk is emptied" in text


def test_on_zero_gpu_it_says_what_is_lent_and_for_how_long_and_asks_for_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def touched(*_: Any) -> bool:
        raise AssertionError("the GPU was asked for outside a call")

    monkeypatch.setattr(torch.cuda, "is_available", touched)
    place = find_place(LENT)
    assert place == Place("zero-gpu", "", 2, 16 * 2**30, "PyTorch")
    text = told(place, Limits.from_environment(LENT))
    assert "is lent a GPU (ZeroGPU)" in text and "3 minutes at most" in text and "disk is emptied" in text


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("mounts", "lasting"),
    [
        ([("/", "overlay")], False),
        ([("/", "overlay"), ("/keep", "tmpfs")], False),
        ([("/", "overlay"), ("/keep", "fuse")], True),
        ([("/", "overlay"), ("/kee", "ext4"), ("/keep/other", "ext4")], False),
        ([("/", "overlay"), ("/keep", "ext4"), ("/keep", "tmpfs")], False),
        ([], False),
    ],
)
def test_a_space_says_whether_what_it_keeps_outlives_a_restart(
    mounts: list[tuple[str, str]], lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(about.psutil, "disk_partitions", lambda all: found)
    for env in (SPACE, LENT):
        text = told(find_place(env, Path("/keep/hatchery")), Limits.from_environment(env))
        assert ("outlives a restart" in text) == lasting and ("disk is emptied" in text) != lasting
        assert "runs and merged models" in text and "for 48 hours" in text and "for 24 hours" in text
    assert not find_place(SPACE, Path(about.__file__).parent / "data").lasting  # beside the code it goes with it


@pytest.mark.parametrize(
    ("given", "cores", "memory"),
    [
        ({"CPU_CORES": "8", "MEMORY": "32Gi"}, 8, 32 * 2**30),
        ({"CPU_CORES": "3.5", "MEMORY": "500M"}, 3, 500 * 10**6),
        ({"MEMORY": "2GB"}, None, 2 * 10**9),
        ({"CPU_CORES": "<b>", "MEMORY": "plenty"}, None, None),
        ({"CPU_CORES": "0", "MEMORY": ""}, None, None),
    ],
)
def test_cores_and_memory_are_those_of_the_space_or_else_of_the_machine(
    given: dict[str, str], cores: int | None, memory: int | None
) -> None:
    place, machine = find_place(given), find_place({})
    assert place.cores == (cores or machine.cores)
    assert place.memory_bytes == (memory or machine.memory_bytes)


def test_the_limits_shown_are_those_that_hold() -> None:
    known = Limits.from_environment({**SPACE, "BDH_MAX_PROMPT_BYTES": "1234", "BDH_MAX_AT_ONCE": "7"})
    shown = {variable: amount for _, amount, variable in limit_rows(known)}
    assert shown["BDH_MAX_PROMPT_BYTES"] == "1.23 kB" and shown["BDH_MAX_AT_ONCE"] == "7"
    assert shown["BDH_MAX_TRAIN_MINUTES"] == "20 minutes" and shown["BDH_RUNS_HOURS"] == "48 hours"
    assert shown["BDH_MAX_TRAIN_PARAMETERS"] == "30,000,000 parameters"
    short = Limits.from_environment({**SPACE, "BDH_SERVED_HOURS": "0.05"})
    assert {variable: amount for _, amount, variable in limit_rows(short)}["BDH_SERVED_HOURS"] == "3 minutes"
    at_home = {variable: amount for _, amount, variable in limit_rows(Limits())}
    assert at_home["BDH_MAX_TRAIN_MINUTES"] == at_home["BDH_RUNS_HOURS"] == "no limit"


def test_it_stands_in_the_page_folded_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "find_place", lambda data: Place("cpu-space", "", 2, 16 * 2**30, "PyTorch"))
    with gr.Blocks() as page:
        build_about(Limits(), Path("data"))
    blocks = {block.elem_id: block for block in page.blocks.values() if block.elem_id}
    assert blocks["about"].open is False and "a Space without a GPU" in blocks["about-place"].value
    assert "`BDH_MAX_PARAMETERS`" in blocks["about-limits"].value
