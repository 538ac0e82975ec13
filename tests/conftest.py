from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import huggingface_hub
import pytest
import torch
from hub_server import Hub, serve
from huggingface_hub import constants
from hypothesis import settings

from bdh import hub
from bdh.ops.step import warm_up

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.register_assert_rewrite("browsing")
_LONGEST = (
    "test_killed",
    "test_page_tabs",
    "test_job",
    "test_page_merge",
    "test_page_train",
    "test_page_chat",
    "test_page_inspect",
    "test_train",
    "test_gpu_step",
    "test_benchmarks",
)
"""Files of tests, which with -n are worked on each in one process: what its tests share is made once."""
_COMPILED = Path(__file__).parents[1] / "bdh" / "ops"


def pytest_configure(config: pytest.Config) -> None:
    """Compile the loops once, before several processes and copies of the project would each do so."""
    if hasattr(config, "workerinput") or any(_COMPILED.glob("__pycache__/step_kernels.byte-*.nbi")):
        return
    warm_up()


torch.set_num_threads(1)
settings.register_profile("default", deadline=None, max_examples=12, derandomize=True)
settings.load_profile("default")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes more than there are cores: the tests of the page and of runs wait most of the time."""
    return len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the real client talks to."""
    with serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub, "_PAUSE_S", 0.0)
        huggingface_hub.close_session()
        yield served


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an app that the tests of the page share."""
    import browsing  # noqa: PLC0415 - only the tests of the page need a browser

    with browsing.app(tmp_path_factory.mktemp("app")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium."""
    import browsing  # noqa: PLC0415 - only the tests of the page need a browser

    with browsing.chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh visitor; any error on the console fails the test."""
    import browsing  # noqa: PLC0415 - only the tests of the page need a browser

    with browsing.visitor(browser, url) as visited:
        yield visited
