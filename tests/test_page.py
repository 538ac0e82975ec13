"""The page as a person meets it: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bdh.config import FlatConfig, TransformerConfig
from bdh.models import Model, build

pytestmark = pytest.mark.page
ROOT = Path(__file__).parents[1]
FLAT = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app in a process of its own, started as a person starts it."""
    home = tmp_path_factory.mktemp("app")
    for name in ("app.py", "bdh", "ui"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, home / name)
    endless().save_pretrained(home / "checkpoints" / "alpha")
    build(FLAT, seed=1).save_pretrained(home / "checkpoints" / "beta")
    port = 20_000 + os.getpid() % 20_000
    environment = os.environ | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(home / "tmp"),
        "BDH_DATA": str(home / "data"),
        "OMP_NUM_THREADS": "1",
    }
    with (home / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=home, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(address, timeout=2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh visitor; any error on the console fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(WAIT_MS)
    page.goto(url)
    expect(page.locator("#chat-status")).to_contain_text("The memory is empty", timeout=WAIT_MS)
    yield page
    context.close()
    assert errors == []


def send(page: Page, text: str, answers: int) -> None:
    """Send a message and wait until it is answered."""
    page.locator("#chat-message textarea").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("bot")).to_have_count(answers, timeout=WAIT_MS)
    expect(page.locator("#chat-send")).to_be_visible(timeout=WAIT_MS)


def heard(page: Page) -> int:
    """Bytes heard, as the status line says."""
    found = re.search(r"([\d,]+) bytes heard", page.locator("#chat-status").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def set_length(page: Page, size: int) -> None:
    """Set the longest answer."""
    page.get_by_text("How it answers").click()
    page.get_by_label("number input for Longest answer, in bytes").fill(str(size))
    page.keyboard.press("Tab")


def set_length_again(page: Page, size: int) -> None:
    """Set the longest answer, when its place is open already."""
    page.get_by_label("number input for Longest answer, in bytes").fill(str(size))
    page.keyboard.press("Tab")


def endless() -> Model[Any]:
    """A model that never ends a line, whose bytes take a while."""
    model = build(TransformerConfig(n_layer=8, n_embd=64, n_head=4, block_size=256), seed=0)
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.zero_()
        model.ln_f.bias[0] = 1.0
        model.tok_emb.weight[:, 0] = 0.0
        model.tok_emb.weight[10, 0] = -100.0
    return model


def upload(page: Page, button: str, file: Path) -> None:
    """Choose a file behind an upload button."""
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files(file)


def test_a_conversation_is_answered_and_survives_a_reload(page: Page) -> None:
    set_length(page, 30)
    send(page, "hello", 1)
    first = heard(page)
    send(page, "again", 2)
    assert heard(page) > first > 0
    before = page.locator("#chat-log").inner_text()
    page.reload()
    expect(page.get_by_test_id("bot")).to_have_count(2, timeout=WAIT_MS)
    assert page.locator("#chat-log").inner_text() == before


def test_regenerate_and_undo_come_back_to_the_state_of_the_turn(page: Page) -> None:
    set_length(page, 30)
    send(page, "hello", 1)
    first = heard(page)
    send(page, "again", 2)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#chat-stop")).to_be_hidden(timeout=WAIT_MS)
    expect(page.get_by_test_id("bot")).to_have_count(2)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_test_id("bot")).to_have_count(1, timeout=WAIT_MS)
    expect(page.locator("#chat-message textarea")).to_have_value("again", timeout=WAIT_MS)
    assert heard(page) == first


def test_stop_stops_at_once_and_the_next_message_is_answered(page: Page, url: str) -> None:
    set_length(page, 2_000)
    page.locator("#chat-message textarea").fill("hello")
    page.keyboard.press("Enter")
    page.locator("#chat-stop").click(timeout=WAIT_MS)
    expect(page.locator("#chat-send")).to_be_visible(timeout=WAIT_MS)
    time.sleep(1.0)
    beside = page.context.new_page()
    beside.goto(url)
    expect(beside.get_by_test_id("bot")).to_have_count(1, timeout=WAIT_MS)
    assert heard(beside) < 2_000
    beside.close()
    set_length_again(page, 30)
    send(page, "go on", 2)


def test_another_visitor_sees_nothing_of_a_conversation(page: Page, browser: Browser, url: str) -> None:
    set_length(page, 30)
    send(page, "a secret", 1)
    stranger = browser.new_context().new_page()
    stranger.goto(url)
    expect(stranger.locator("#chat-status")).to_contain_text("The memory is empty", timeout=WAIT_MS)
    assert stranger.get_by_test_id("bot").count() == 0
    stranger.context.close()


def test_a_memory_is_saved_cleared_and_loaded(page: Page, tmp_path: Path) -> None:
    set_length(page, 30)
    send(page, "hello", 1)
    size = heard(page)
    page.locator("#memory > button").click()
    page.locator("#memory-save").click()
    with page.expect_download() as download:
        page.locator("#memory-file a").first.click(timeout=WAIT_MS)
    file = tmp_path / "memory.safetensors"
    download.value.save_as(file)
    page.locator("#chat-clear").click()
    expect(page.locator("#chat-status")).to_contain_text("The memory is empty", timeout=WAIT_MS)
    upload(page, "#memory-load", file)
    expect(page.locator("#chat-status")).to_contain_text("from a saved memory", timeout=WAIT_MS)
    assert heard(page) == size


def test_a_text_file_is_fed_into_the_memory(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("It was a dark and stormy night. " * 300)
    page.locator("#memory > button").click()
    upload(page, "#memory-feed", file)
    expect(page.locator("#chat-status")).to_contain_text("read a text of 9,600 bytes", timeout=WAIT_MS)
    assert heard(page) == 9_600


def test_a_wrong_file_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "memory.safetensors"
    file.write_bytes(b"no memory at all")
    page.locator("#memory > button").click()
    upload(page, "#memory-load", file)
    expect(page.get_by_test_id("toast-body")).to_contain_text("no saved memory", timeout=WAIT_MS)


def test_the_browser_keeps_nothing_readable_of_what_was_said(page: Page) -> None:
    set_length(page, 30)
    send(page, "a secret", 1)
    assert "a secret" not in page.evaluate("JSON.stringify(localStorage)")


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_a_narrow_window(page: Page, url: str, dark: bool) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{url}/?__theme={'dark' if dark else 'light'}")
    expect(page.locator("#chat-status")).to_be_visible(timeout=WAIT_MS)
    for tab in ("Chat", "Write", "Models"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
