"""The Inspect tab as a person meets it: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

import pytest
from browsing import WAIT_MS
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.page


def test_a_text_is_read_walked_through_and_a_neuron_found(page: Page, url: str) -> None:
    page.goto(f"{url}/?tab=inspect&model=beta&prompt=a<b%20and%20c")
    expect(page.locator("#reading-text textarea")).to_have_value("a<b and c", timeout=WAIT_MS)
    expect(page.locator("#reading-layer input")).to_have_value("layer.1", timeout=WAIT_MS)
    page.locator("#reading-go").click()
    expect(page.locator("#reading-told")).to_contain_text("9 bytes", timeout=WAIT_MS)
    shown = page.locator("#reading-shown")
    expect(shown.locator(".written")).to_have_text("a<b and c")
    expect(shown.locator(".what")).to_contain_text("Byte 9 of 9: c")
    shown.get_by_label("One byte back").click()
    expect(shown.locator(".what")).to_contain_text("Byte 8 of 9: space")
    shown.locator(".written span").nth(1).click()
    expect(shown.locator(".what")).to_contain_text("Byte 2 of 9: <")
    neuron = shown.locator(".loudest button").first
    number = neuron.inner_text().removeprefix("neuron ")
    neuron.click()
    expect(page.locator("#reading-where")).to_contain_text(f"neuron {number} of layer.1.x_sparse", timeout=WAIT_MS)
    expect(page.locator("#reading-neuron input")).to_have_value(number)
    expect(page.locator("#reading-active")).to_contain_text("layer.0")
