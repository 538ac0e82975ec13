"""The view Features as a person meets it, in a real Chromium on the real app."""

from __future__ import annotations

import pytest
from browsing import WAIT_MS, choose
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.page


def test_a_report_is_read_feature_by_feature_and_taken_along(page: Page) -> None:
    page.get_by_role("tab", name="Inspect").click()
    page.get_by_role("tab", name="Features").click()
    expect(page.locator("#features-missing")).to_contain_text("There is no report on alpha yet")
    expect(page.locator("#features-told")).to_contain_text("Is composing worth it")
    choose(page, "#features-kind", "the standard autoencoder")
    expect(page.locator("#features-examples")).to_contain_text("of the standard autoencoder", timeout=WAIT_MS)
    before = page.locator("#features-examples").inner_text()
    page.locator("#features-feature input").click()
    page.get_by_role("option").nth(3).click()
    expect(page.locator("#features-examples")).not_to_contain_text(before, timeout=WAIT_MS)
    expect(page.locator("#features-examples mark").first).to_be_visible()
    page.get_by_role("button", name="What features attend to").click()
    page.locator("#features-attention td").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    field = page.locator("#features-attention tr").nth(1).locator("td").nth(1)
    expect(field).to_be_focused()
    expect(page.locator("#features-attention .field-said")).to_have_text(field.get_attribute("aria-label") or "?")
    page.locator("#features-numbers button").first.click()
    expect(page.locator("#features-numbers table").nth(2)).to_contain_text("arithmetic", timeout=WAIT_MS)
