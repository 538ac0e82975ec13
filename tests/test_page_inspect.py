"""The Inspect tab as a person meets it: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from browsing import FLAT, WAIT_MS, choose, write
from playwright.sync_api import Browser, Page, expect

from bdh.models import build
from ui.inspect import build_inspect
from ui.inspect.concept import Finder
from ui.inspect.firing import Firings
from ui.inspect.network import Mapper
from ui.inspect.reading import Inspector
from ui.limits import Limits
from ui.registry import Registry
from ui.steps import in_steps

pytestmark = pytest.mark.page


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Set when the test is over, for work that would not end by itself."""
    event = threading.Event()
    yield event
    event.set()


@contextmanager
def inspect_alone(browser: Browser, folder: Path) -> Iterator[Page]:
    """The tab in this process, where it can be patched, on the checkpoints of a folder."""
    registry = Registry(folder / "checkpoints", folder / "data", Limits(), "cpu")
    with gr.Blocks() as demo:
        build_inspect(registry, gr.BrowserState("a" * 32), Limits())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False, server_port=port)[1]
    page = browser.new_page()
    try:
        page.goto(url)
        yield page
    finally:
        page.close()
        demo.close()


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
    page.locator("#reading-take").click()
    expect(page.locator("#reading-files")).to_contain_text("beta-firings", timeout=WAIT_MS)
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
    expect(page.locator("#concept-costs")).to_contain_text("others near in activity", timeout=WAIT_MS)
    page.locator("#concept-take").click()
    expect(page.locator("#concept-files")).to_contain_text("beta-concept-silenced", timeout=WAIT_MS)
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


def test_every_view_is_seen_and_reached_by_keyboard_on_a_narrow_screen(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{url}/?tab=inspect&model=beta")
    views = page.locator("#inspect-views > .tab-wrapper").get_by_role("tab")
    names = ["Reading", "Memory", "Concept", "Network", "Baseline", "Features", "Claims"]
    expect(views).to_have_text(names, timeout=WAIT_MS)
    places = [views.nth(index).bounding_box() for index in range(len(names))]
    assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24 for box in places)
    views.first.focus()
    for name in names[1:]:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_stop_in_a_reading_leaves_what_was_read_and_no_line_of_a_search(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    def endless(*_given: Any) -> Iterator[tuple[str, Firings]]:
        while not ended.wait(0.1):
            yield "searching all texts", Firings("neuron 1", "byte", ("so far",), 6, 6, 0, (), ())

    monkeypatch.setattr(Inspector, "find", endless)
    build(FLAT, seed=1).save_pretrained(tmp_path / "checkpoints" / "beta")
    with inspect_alone(browser, tmp_path) as page:
        write(page.locator("#reading-text textarea"), "a text")
        page.locator("#reading-go").click()
        expect(page.locator("#reading-told")).to_contain_text("6 bytes")
        page.locator("#reading-shown .loudest button").first.click()
        expect(page.locator("#reading-seeking")).to_contain_text("searching all texts")
        page.locator("#reading-stop").click()
        expect(page.locator("#reading-seeking")).to_be_empty()
        expect(page.locator("#reading-progress")).to_have_text("Stopped.")
        expect(page.locator("#reading-told")).to_contain_text("6 bytes")
        expect(page.locator("#reading-where")).to_contain_text("6 bytes of so far")
        expect(page.locator("#reading-stop")).to_be_disabled()


def test_stop_stops_what_was_begun_right_after_it(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    def work(tell: Any, _give: Any) -> None:
        while not ended.wait(0.1):
            tell(0.5, "searching")

    def endless(*_given: Any) -> Iterator[Any]:
        return in_steps(work)

    monkeypatch.setattr(Finder, "find", endless)
    monkeypatch.setattr(Mapper, "measure", endless)
    build(FLAT, seed=1).save_pretrained(tmp_path / "checkpoints" / "beta")
    with inspect_alone(browser, tmp_path) as page:
        for view in ("Concept", "Network"):
            page.get_by_role("tab", name=view).click()
            go, stop = (page.locator(f"#{view.lower()}-{name}") for name in ("go", "stop"))
            go.click()
            expect(page.locator(f"#{view.lower()}-progress")).to_contain_text("searching", timeout=WAIT_MS)
            stop.click()
            go.click()
            page.wait_for_timeout(1_500)  # the last word of Stop comes after 0.6 s, whatever was begun meanwhile
            expect(stop).to_be_enabled(timeout=5_000)
            expect(go).to_be_disabled()
            stop.click()
            expect(stop).to_be_disabled(timeout=WAIT_MS)
            expect(go).to_be_enabled()
