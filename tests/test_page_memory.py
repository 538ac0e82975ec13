"""The views Memory and Baseline as a person meets them: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

import re

import pytest
from browsing import WAIT_MS, write
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.page


def test_a_memory_is_looked_into_byte_by_byte_and_held_against_another_and_a_transformer(page: Page, url: str) -> None:
    page.goto(f"{url}/?tab=inspect&model=alpha")
    views = page.locator("#inspect-views")
    views.get_by_role("tab", name="Memory", exact=True).click()
    expect(page.locator("#memory-none")).to_contain_text("has no Hebbian memory", timeout=WAIT_MS)
    page.locator("#inspect-model input").click()
    page.get_by_role("option", name="beta").click()
    expect(page.locator("#memory-layer input")).to_have_value("layer 2 of 2", timeout=WAIT_MS)
    write(page.locator("#memory-text textarea"), "a<b and c")
    page.locator("#memory-go").click()
    expect(page.locator("#memory-line")).to_contain_text("beta, layer 2 of 2, head 1 · 9 bytes heard", timeout=WAIT_MS)
    expect(page.locator("#memory-picture img")).to_be_visible()
    expect(page.locator("#memory-strip .here")).to_have_text("c")
    page.locator("#memory-strip span").nth(1).click()
    expect(page.locator("#memory-strip .here")).to_have_text("<", timeout=WAIT_MS)
    page.locator("#memory-strip [role=group][tabindex]").focus()
    page.keyboard.press("End")
    expect(page.locator("#memory-strip .here")).to_have_text("c")
    expect(page.locator("#memory-at input[type=number]")).to_have_value("9", timeout=WAIT_MS)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#memory-at input[type=number]")).to_have_value("2", timeout=WAIT_MS)
    expect(page.locator("#memory-strip .here")).to_have_text("<")
    found = page.locator("#memory-found")
    found.get_by_role("tab", name="Written and read").click()
    expect(page.locator("#memory-exchange")).to_contain_text(re.compile("byte 1 a .*What was read", re.DOTALL))
    found.get_by_role("tab", name="Synapses").click()
    expect(page.locator("#memory-synapses")).to_contain_text("byte 2 <")
    found.get_by_role("tab", name="Two memories").click()
    write(page.locator("#memory-other textarea"), "a<b and c")
    page.locator("#memory-compare").click()
    expect(page.locator("#memory-both")).to_contain_text("Cosine 1.000", timeout=WAIT_MS)
    page.locator("#memory-take").click()
    expect(page.locator("#memory-files")).to_contain_text("beta-two-memories", timeout=WAIT_MS)

    views.get_by_role("tab", name="Baseline", exact=True).click()
    write(page.locator("#baseline-text textarea"), "a cat, a hat")
    page.locator("#baseline-go").click()
    expect(page.locator("#baseline-facts")).to_contain_text("12 bytes", timeout=WAIT_MS)
    expect(page.locator("#baseline-zeros")).to_contain_text("alpha")
    page.locator("#baseline-found").get_by_role("tab", name="Attention").click()
    expect(page.locator("#baseline-maps img")).to_have_count(2, timeout=WAIT_MS)
    page.locator("#baseline-take").click()
    expect(page.locator("#baseline-files")).to_contain_text("attention", timeout=WAIT_MS)
