"""The chat as a person meets it: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from browsing import WAIT_MS, say, settle, upload
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.page


def send(page: Page, text: str, answers: int) -> None:
    """Send a message and wait until it is answered."""
    before = known = heard(page)
    say(page, text)
    expect(page.get_by_test_id("bot")).to_have_count(answers, timeout=WAIT_MS)
    # The button may not have changed yet when the box is emptied.
    while (now := heard(page)) != before or now == known:
        before = now
        page.wait_for_timeout(500)
        expect(page.locator("#chat-send")).to_be_visible(timeout=WAIT_MS)


def heard(page: Page) -> int:
    """Bytes heard, as the status line says."""
    found = re.search(r"([\d,]+) bytes heard", page.locator("#chat-status").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def expect_heard(page: Page, size: int) -> None:
    """Wait until the status line says so many bytes."""
    expect(page.locator("#chat-status")).to_contain_text(re.compile(rf"\b{size:,} bytes heard"), timeout=WAIT_MS)


def set_length(page: Page, size: int) -> None:
    """Set the longest answer, where that is open or not."""
    length = page.get_by_label("number input for Longest answer, in bytes")
    if not length.is_visible():
        page.get_by_text("How it answers").click()
    settle(page, "number input for Longest answer, in bytes", str(size))


def test_a_conversation_survives_a_reload_and_is_seen_by_nobody_else_nor_in_what_the_browser_keeps(
    page: Page, browser: Browser, url: str
) -> None:
    set_length(page, 30)
    send(page, "a secret", 1)
    first = heard(page)
    send(page, "again", 2)
    assert heard(page) > first > 0
    before = page.locator("#chat-log").inner_text()
    assert "a secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    expect(page.get_by_test_id("bot")).to_have_count(2, timeout=WAIT_MS)
    assert page.locator("#chat-log").inner_text() == before
    stranger = browser.new_context().new_page()
    stranger.goto(url)
    expect(stranger.locator("#chat-status")).to_contain_text("The memory is empty", timeout=WAIT_MS)
    assert stranger.get_by_test_id("bot").count() == 0
    stranger.context.close()


def test_retry_undo_and_edit_come_back_to_the_state_of_the_turn(page: Page) -> None:
    set_length(page, 30)
    send(page, "hello", 1)
    first = heard(page)
    send(page, "again", 2)
    answer = page.get_by_test_id("bot").last.inner_text()
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_test_id("bot").last).not_to_have_text(answer, timeout=WAIT_MS)
    expect(page.locator("#chat-send")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_test_id("bot")).to_have_count(2)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_test_id("bot")).to_have_count(1, timeout=WAIT_MS)
    expect(page.locator("#chat-message textarea")).to_have_value("again", timeout=WAIT_MS)
    expect_heard(page, first)
    send(page, "again", 2)
    page.get_by_role("button", name="Edit").first.click()
    page.locator("#chat-log textarea").fill("good morning")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_test_id("user")).to_have_text(["good morning"], timeout=WAIT_MS)
    expect(page.get_by_test_id("bot")).to_have_count(1, timeout=WAIT_MS)
    expect(page.locator("#chat-send")).to_be_visible(timeout=WAIT_MS)
    # A line break before a later message; "User: good morning", a line break, "Bot:"; and 30 bytes of answer.
    expect_heard(page, 1 + len("User: good morning\nBot:") + 30)


def test_stop_stops_at_once_what_is_typed_meanwhile_stays_and_the_next_message_is_answered(
    page: Page, url: str
) -> None:
    set_length(page, 2_000)
    say(page, "hello")
    expect(page.locator("#chat-stop")).to_be_visible(timeout=WAIT_MS)
    page.locator("#chat-message textarea").fill("and then")
    written = page.get_by_test_id("bot").inner_text()
    expect(page.get_by_test_id("bot")).not_to_have_text(written, timeout=WAIT_MS)
    page.locator("#chat-stop").click(timeout=WAIT_MS)
    expect(page.locator("#chat-send")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#chat-message textarea")).to_have_value("and then")
    time.sleep(1.0)
    beside = page.context.new_page()
    beside.goto(url)
    expect(beside.get_by_test_id("bot")).to_have_count(1, timeout=WAIT_MS)
    assert heard(beside) < 2_000
    beside.close()
    set_length(page, 30)
    send(page, "go on", 2)


def test_a_text_is_fed_and_a_memory_saved_cleared_and_loaded_and_a_wrong_one_changes_nothing(
    page: Page, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text("It was a dark and stormy night. " * 300)
    page.locator("#memory > button").click()
    upload(page, "#memory-feed", tmp_path / "book.txt")
    expect(page.locator("#chat-status")).to_contain_text("read a text of 9,600 bytes", timeout=WAIT_MS)
    expect_heard(page, 9_600)
    set_length(page, 30)
    send(page, "hello", 1)
    size = heard(page)
    page.locator("#memory-save").click()
    with page.expect_download() as download:
        page.locator("#memory-file a").first.click(timeout=WAIT_MS)
    file = tmp_path / "memory.safetensors"
    download.value.save_as(file)
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no memory at all")
    upload(page, "#memory-load", wrong)
    expect(page.get_by_test_id("toast-body")).to_contain_text("no saved memory", timeout=WAIT_MS)
    expect(page.locator("#chat-log").get_by_text("Error")).to_be_hidden(timeout=WAIT_MS)
    expect(page.get_by_test_id("user")).to_have_text(["hello"])
    page.locator("#chat-clear").click()
    expect(page.locator("#chat-status")).to_contain_text("The memory is empty", timeout=WAIT_MS)
    upload(page, "#memory-load", file)
    expect(page.locator("#chat-status")).to_contain_text("from a saved memory", timeout=WAIT_MS)
    expect_heard(page, size)


def test_what_looks_like_markup_is_shown_as_it_was_typed_and_comes_back_so_for_editing(page: Page) -> None:
    typed = 'if a<b and <i>x</i> & <img src=x onerror="hurt()"> &lt; </div> **bold**'
    set_length(page, 30)
    send(page, typed, 1)
    shown = page.get_by_test_id("user").first
    assert shown.inner_text().replace("\u200b", "") == typed
    assert shown.locator("img, i, b, strong").count() == 0
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#chat-message textarea")).to_have_value(typed, timeout=WAIT_MS)
