from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import huggingface_hub
import pytest
import torch
from hub_server import Hub, serve
from huggingface_hub import constants
from hypothesis import settings

from bdh import hub

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.register_assert_rewrite("browsing")
torch.set_num_threads(1)
settings.register_profile("default", deadline=None, max_examples=12, derandomize=True)
settings.load_profile("default")


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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an app of the module's own."""
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
