"""A real Chromium on the real app, for the tests of the page; the fixtures themselves are in conftest."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from bdh.config import FlatConfig, TransformerConfig
from bdh.models import Model, build

ROOT = Path(__file__).parents[1]
FLAT = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 60_000
expect.set_options(timeout=WAIT_MS)
LEFT = ("AbortError", "errored out")
"""In what the console says of requests that a page still waited for when it was left or loaded again."""


@contextmanager
def app(home: Path, **environment: str) -> Iterator[str]:
    """The app in a process of its own, on a model that never ends a line and another; its address."""
    settle_in(home)
    with started(home, **environment) as address:
        yield address


def settle_in(home: Path) -> None:
    """Put the app and its checkpoints into a folder."""
    for name in ("app.py", "bdh", "lab", "train", "ui"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, home / name)
    endless().save_pretrained(home / "checkpoints" / "alpha")
    build(FLAT, seed=1).save_pretrained(home / "checkpoints" / "beta")


@contextmanager
def started(home: Path, *, leave_runs: bool = False, within: Sequence[str] = (), **environment: str) -> Iterator[str]:
    """The app of a folder, started as a person starts it; its address. At the end it is killed without warning.

    `within` is a command that runs the command after it.
    """
    kept = home / "port"  # a browser keeps what it keeps by address
    if not kept.exists():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            kept.write_text(str(free.getsockname()[1]))
    port = kept.read_text()
    told = {
        "GRADIO_SERVER_PORT": port,
        "GRADIO_TEMP_DIR": str(home / "tmp"),
        "BDH_DATA": str(home / "data"),
        "HF_HUB_CACHE": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
        "BDH_COMPILED": "off",  # seconds of each start; the loops have tests of their own
    }
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*within, sys.executable, "app.py"], cwd=home, env=os.environ | told | environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(address, timeout=2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.kill()
        process.wait(10)
        for note in home.glob("data/runs/*/job.json"):  # what the page trained would go on
            pid = json.loads(note.read_text())["pid"]
            if not leave_runs and pid and psutil.pid_exists(pid):
                psutil.Process(pid).kill()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's Chromium, or the one that CHROMIUM names."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def visitor(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh visitor; any error on the console is an error here."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(WAIT_MS)
    page.goto(url)
    expect(page.locator("#chat-status")).to_contain_text("The memory is empty", timeout=WAIT_MS)
    yield page
    found = [error for error in errors if not any(left in error for left in LEFT)]
    context.close()
    assert found == []


def say(page: Page, text: str) -> None:
    """Send a message in the chat; a key pressed while the last answer is still being closed is pressed again."""
    box = page.locator("#chat-message textarea")
    box.fill(text)
    for _ in range(10):
        box.press("Enter")
        with suppress(AssertionError):
            expect(box).to_have_value("", timeout=WAIT_MS // 10)
            return
    raise AssertionError(f"{text!r} was not sent")


def write(field: Locator, text: str) -> None:
    """Fill a field that may have come into sight just now: Gradio may set its first value after it is shown."""
    for _ in range(20):
        field.fill(text)
        field.page.wait_for_timeout(300)
        if field.input_value() == text:
            return
    raise AssertionError(f"the field says {field.input_value()!r}, whatever is written into it")


def settle(page: Page, label: str, value: str) -> None:
    """Fill a number and leave it; one that was just unfolded may still be set to what it was."""
    number = page.get_by_label(label, exact=True)
    for _ in range(20):
        number.fill(value)
        page.keyboard.press("Tab")
        page.wait_for_timeout(250)
        if number.input_value() == value:
            return
    raise AssertionError(f"{label} does not take {value}")


def choose(page: Page, dropdown: str, option: str) -> None:
    """Choose an option of a dropdown by the beginning of its name; its list may just be renewed."""
    box = page.locator(f"{dropdown} input")
    for _ in range(20):
        box.click()
        page.get_by_role("option", name=option).click()
        page.wait_for_timeout(500)
        if box.input_value().startswith(option):
            return
    raise AssertionError(f"{dropdown} does not take {option}")


def upload(page: Page, button: str, files: Path | list[Path]) -> None:
    """Choose files behind an upload button."""
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files(files)


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
