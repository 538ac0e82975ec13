"""The Inspect tab as a person meets it: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

import pytest
from browsing import WAIT_MS, choose
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.page


def test_a_text_is_read_walked_through_and_a_neuron_found(page: Page, url: str) -> None:
    page.goto(f"{url}/?tab=inspect&model=beta&prompt=a<b%20and%20c")
    expect(page.locator("#reading-text textarea")).to_have_value("a<b and c", timeout=WAIT_MS)
    expect(page.locator("#reading-layer input")).to_have_value("layer 2", timeout=WAIT_MS)
    page.locator("#reading-go").click()
    expect(page.locator("#reading-told")).to_contain_text("9 bytes", timeout=WAIT_MS)
    shown = page.locator("#reading-shown")
    expect(shown.locator(".written")).to_have_text("a<b and c")
    expect(shown.locator(".what")).to_contain_text("Byte 9 of 9: c")
    shown.get_by_label("One byte back").click()
    expect(shown.locator(".what")).to_contain_text("Byte 8 of 9: space")
    shown.locator(".written span").nth(1).click()
    expect(shown.locator(".what")).to_contain_text("Byte 2 of 9: <")
    shown.locator(".raster").focus()
    page.keyboard.press("ArrowRight")
    expect(shown.locator(".what")).to_contain_text("Byte 3 of 9: b")
    page.keyboard.press("ArrowDown")
    expect(shown.locator(".spot")).to_contain_text("line 1 of")
    pointed = shown.locator(".spot").inner_text().split(",")[0].removeprefix("neuron ")
    expect(page.locator("#reading-neuron input")).to_have_value(pointed, timeout=WAIT_MS)
    neuron = shown.locator(".loudest button").first
    number = neuron.inner_text().removeprefix("neuron ")
    neuron.click()
    expect(page.locator("#reading-where")).to_contain_text(
        f"beta, layer 2, x, head 1, neuron {number} fires", timeout=WAIT_MS
    )
    expect(page.locator("#reading-neuron input")).to_have_value(number)
    expect(page.locator("#reading-active")).to_contain_text("layer 1")
    choose(page, "#inspect-model", "alpha")
    expect(page.locator("#reading-told")).to_contain_text("alpha, layer 2, MLP · 9 bytes", timeout=WAIT_MS)
    expect(page.locator("#reading-where")).to_be_empty()
    expect(page.locator("#reading-go")).to_have_text("Read")


def test_a_concept_is_searched_and_silenced_and_the_network_of_the_weights_measured(page: Page, url: str) -> None:
    page.goto(f"{url}/?tab=inspect&model=beta")
    page.get_by_role("tab", name="Concept").click()
    page.locator("#concept-go").click()
    expect(page.locator("#concept-neurons")).to_contain_text("The best 24 of 256", timeout=WAIT_MS)
    expect(page.locator("#concept-go")).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator("#concept-plot canvas")).to_be_visible(timeout=WAIT_MS)
    page.locator("#concept-silence").click()
    expect(page.locator("#concept-costs")).to_contain_text("others as active", timeout=WAIT_MS)
    page.get_by_role("tab", name="Network").click()
    page.locator("#network-go").click()
    expect(page.locator("#network-said")).to_contain_text("32 neurons, 256 edges", timeout=WAIT_MS)
    expect(page.locator("#network-line")).to_contain_text("beta, head 1: neuron")
    expect(page.locator("#network-line")).to_contain_text("is excited by")
    choose(page, "#inspect-model", "alpha")
    expect(page.locator("#network-line")).to_be_hidden(timeout=WAIT_MS)
    expect(page.locator("#network-said")).not_to_contain_text("beta")
    page.get_by_role("tab", name="Concept").click()
    expect(page.locator("#concept-said")).to_contain_text("Nothing was searched in this model yet", timeout=WAIT_MS)
    expect(page.locator("#concept-plot")).to_be_hidden()
