"""Links in a real Chromium: what they fill in, what they say, and that they send nothing."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from browsing import WAIT_MS, write
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.page


def test_a_link_opens_a_tab_with_model_and_text_and_sends_nothing(page: Page, url: str) -> None:
    page.goto(f"{url}/?tab=write&model=beta&prompt=In%20the%20beginning,%20&temperature=0.5&seed=7")
    expect(page.locator("#write-prompt textarea")).to_have_value("In the beginning, ", timeout=WAIT_MS)
    expect(page.locator("#write-prompt textarea")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#write-model input")).to_have_value(re.compile("^beta"), timeout=WAIT_MS)
    expect(page.locator("#write-stop")).to_be_disabled()
    assert page.locator("#write-first").inner_text().strip() == ""  # nothing is written
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#chat-status")).to_contain_text("The memory is empty", timeout=WAIT_MS)
    assert page.locator("#chat-message textarea").input_value() == ""


def test_a_copied_link_opens_the_form_as_it_was(page: Page, url: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("tab", name="Write").click()
    write(page.locator("#write-prompt textarea"), 'a "b" & <c>\né')
    page.locator("#write-copy").click()
    expect(page.locator("#write-link")).to_contain_text("Link, copied", timeout=WAIT_MS)
    link = page.locator("#write-link textarea").input_value()
    assert link.startswith(f"{url}/?tab=write&model=alpha&prompt=a") and "temperature=0.8" in link
    assert page.evaluate("navigator.clipboard.readText()") == link
    page.goto(link)
    expect(page.locator("#write-prompt textarea")).to_have_value('a "b" & <c>\né', timeout=WAIT_MS)


def test_a_link_to_an_unknown_model_says_so_and_is_no_markup(page: Page, url: str) -> None:
    page.goto(f"{url}/?tab=chat&prompt=hello&model={quote('<img src=x onerror=hurt=1>' + 'y' * 300)}")
    told = page.locator("#link-told")
    expect(told).to_contain_text("there is no model '<img src=x", timeout=WAIT_MS)
    assert told.locator("img").count() == 0 and page.evaluate("window.hurt") is None
    expect(page.locator("#chat-message textarea")).to_have_value("hello", timeout=WAIT_MS)
    assert page.get_by_test_id("user").count() == 0
