"""The Train tab as a person meets it: a real Chromium on the real app, which trains tiny models in real processes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from browsing import WAIT_MS, choose, say, settle, upload, write
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.page

LONG_MS = 240_000
"""A training process takes seconds to start, and others use the machine."""
TEXT = "Ana y Luis van al mercado. Compran pan, queso y vino. " * 400


def ask(page: Page, minutes: str, text: str = TEXT) -> None:
    page.get_by_role("tab", name="Train").click()
    choose(page, "#train-base", "beta")
    write(page.locator("#train-pasted textarea"), text)
    settle(page, "Budget", minutes)


def test_a_specialist_is_trained_on_a_pasted_text_and_talked_to_and_taken_along(page: Page, tmp_path: Path) -> None:
    ask(page, "0.05")
    expect(page.locator("#runs-nothing")).to_contain_text("No runs yet")
    page.get_by_text("The same from a shell").click()
    told = page.locator("#train-shell textarea")
    expect(told).to_have_value(re.compile(r"train finetune .*base=checkpoints/beta .*minutes=0\.05 "), timeout=WAIT_MS)
    page.locator("#train-start").click()
    expect(page.locator("#runs-status")).to_contain_text("Done", timeout=LONG_MS)
    expect(page.locator("#runs-status")).to_contain_text("bits a byte on text it never saw; its base has")
    expect(page.locator("#runs-plot .marks")).to_be_visible(timeout=WAIT_MS)
    assert page.locator("#runs-plot .vega-embed").bounding_box()["width"] > 700  # type: ignore[index]
    assert "── step" in page.locator("#runs-samples textarea").input_value()
    page.locator("#runs-download").click()
    with page.expect_download(timeout=WAIT_MS) as started:
        page.locator("#runs-file a[download]").first.click()
    started.value.save_as(tmp_path / "mine.zip")
    with zipfile.ZipFile(tmp_path / "mine.zip") as file:
        names = ["README.md", "config.json", "model.safetensors", "provenance.json"]
        assert sorted(file.namelist()) == [f"mine/{name}" for name in names]
    page.locator("#runs-chat").click()
    expect(page.locator("#chat-message textarea")).to_be_visible(timeout=WAIT_MS)
    assert page.locator("#chat-model input").input_value().startswith("mine · flat")
    say(page, "hola")
    expect(page.locator("#chat-status")).to_contain_text("bytes heard", timeout=WAIT_MS)


def test_a_run_outlives_a_reload_is_its_owners_alone_and_stopped_keeps_its_best_and_goes_on(
    page: Page, browser: Browser, url: str
) -> None:
    status = page.locator("#runs-status")
    ask(page, "30")
    page.locator("#train-start").click()
    expect(page.locator("#runs-status progress")).to_be_visible(timeout=LONG_MS)
    page.reload()
    page.get_by_role("tab", name="Train").click()
    expect(status).to_contain_text("Training: step", timeout=LONG_MS)

    stranger = browser.new_context().new_page()
    stranger.goto(url)
    stranger.get_by_role("tab", name="Train").click()
    expect(stranger.locator("#runs-nothing")).to_be_visible(timeout=WAIT_MS)
    expect(stranger.locator("#runs-stop")).to_be_hidden()
    stranger.context.close()

    page.locator("#runs-stop").click()
    expect(status).to_contain_text("Stopped after step", timeout=LONG_MS)
    expect(page.locator("#runs-write")).to_be_visible()
    page.locator("#runs-resume").click()
    expect(page.locator("#runs-stop")).to_be_visible(timeout=WAIT_MS)
    expect(status).to_contain_text("Training: step", timeout=LONG_MS)
    page.locator("#runs-stop").click()
    expect(page.locator("#runs-delete")).to_be_visible(timeout=LONG_MS)
    page.locator("#runs-again").click()
    expect(page.locator("#train-pasted textarea")).to_have_value(TEXT, timeout=WAIT_MS)
    page.locator("#runs-delete").click()
    page.locator("#runs-delete").click()
    expect(page.locator("#runs-stop")).to_be_hidden(timeout=WAIT_MS)


def test_what_is_missing_is_said_in_words_and_an_estimate_says_what_a_run_takes(page: Page, tmp_path: Path) -> None:
    ask(page, "1", text="")
    page.locator("#train-start").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("paste a text or choose files first", timeout=WAIT_MS)
    (tmp_path / "letters.txt").write_text(TEXT)
    upload(page, "#train-files button", tmp_path / "letters.txt")
    expect(page.locator("#train-files")).to_contain_text("letters", timeout=WAIT_MS)
    page.locator("#train-estimate").click()
    expect(page.locator("#train-told")).to_contain_text("of memory beside the weights", timeout=LONG_MS)
    expect(page.locator("#train-told")).to_contain_text("in which it hears")
