"""The tabs beside the chat as a person meets them: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import FLAT, WAIT_MS, choose, say, settle, upload
from playwright.sync_api import Browser, Page, expect

from bdh.models import build

pytestmark = pytest.mark.page


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_the_same_seed_writes_the_same_text_again_and_another_seed_another(page: Page) -> None:
    open_tab(page, "Write")
    page.locator("#write-prompt textarea").fill("In the beginning, ")
    page.get_by_text("How it writes").click()
    settle(page, "Bytes to write", "60")
    texts = []
    for seed in ("7", "8", "7"):
        settle(page, "Seed", seed)
        page.locator("#write-go").click()
        expect(page.locator("#write-note")).to_contain_text(f"Seed {seed}", timeout=WAIT_MS)
        expect(page.locator("#write-go")).to_be_enabled(timeout=WAIT_MS)
        expect(page.locator("#write-first-summary")).to_contain_text("60 bytes", timeout=WAIT_MS)
        texts.append(page.locator("#write-first").inner_text())
    assert texts[0] == texts[2] != texts[1]


def test_two_models_write_side_by_side_in_shades_of_surprise(page: Page) -> None:
    open_tab(page, "Write")
    choose(page, "#write-other", "beta")
    page.locator("#write-prompt textarea").fill("And he said: ")
    page.get_by_text("How it writes").click()
    settle(page, "Bytes to write", "40")
    page.get_by_label("Colour the prompt too").check()
    page.locator("#write-go").click()
    for side in ("first", "second"):
        expect(page.locator(f"#write-{side}-summary")).to_contain_text("40 bytes", timeout=WAIT_MS)
        expect(page.locator(f"#write-{side}-summary")).to_contain_text("bits a byte", timeout=WAIT_MS)
        shades = page.locator(f"#write-{side} [class]").evaluate_all("all => new Set(all.map(e => e.className)).size")
        assert shades > 1


def test_writing_is_stopped_and_can_be_begun_again(page: Page) -> None:
    open_tab(page, "Write")
    page.locator("#write-prompt textarea").fill("Once ")
    page.get_by_text("How it writes").click()
    settle(page, "Bytes to write", "100000")
    page.locator("#write-go").click()
    expect(page.locator("#write-first-summary")).to_contain_text("bytes", timeout=WAIT_MS)
    page.locator("#write-stop").click()
    expect(page.locator("#write-go")).to_be_enabled(timeout=WAIT_MS)
    settle(page, "Bytes to write", "20")
    page.locator("#write-go").click()
    expect(page.locator("#write-first-summary")).to_contain_text("20 bytes", timeout=WAIT_MS)


def test_a_number_that_is_not_allowed_is_answered_in_words(page: Page) -> None:
    open_tab(page, "Write")
    page.locator("#write-prompt textarea").fill("Once ")
    page.get_by_text("How it writes").click()
    settle(page, "Bytes to write", "0")
    page.locator("#write-go").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("allowed are 1 to 100,000", timeout=WAIT_MS)
    expect(page.locator("#write-go")).to_be_enabled(timeout=WAIT_MS)


def test_an_uploaded_model_is_added_chosen_everywhere_and_deleted_and_nobody_else_sees_it(
    page: Page, browser: Browser, url: str, tmp_path: Path
) -> None:
    folder = build(FLAT, seed=5).save_pretrained(tmp_path / "mine")
    open_tab(page, "Models")
    upload(page, "#models-files button", [folder / "model.safetensors", folder / "config.json"])
    expect(page.locator("#models-files")).to_contain_text("config .json", timeout=WAIT_MS)
    page.locator("#models-add").click()
    expect(page.locator("#models-told")).to_contain_text("It can be chosen in every tab", timeout=WAIT_MS)
    expect(page.locator("#models-table")).to_contain_text("only you see it", timeout=WAIT_MS)
    expect(page.locator("#models-details")).to_contain_text("uploaded")

    stranger = browser.new_context().new_page()
    stranger.goto(url)
    open_tab(stranger, "Models")
    expect(stranger.locator("#models-table")).to_contain_text("beta", timeout=WAIT_MS)
    assert "only you see it" not in stranger.locator("#models-table").inner_text()
    stranger.context.close()

    open_tab(page, "Chat")
    choose(page, "#chat-model", "model")
    say(page, "hello")
    expect(page.locator("#chat-status")).to_contain_text("bytes heard", timeout=WAIT_MS)
    expect(page.locator("#chat-send")).to_be_visible(timeout=WAIT_MS)

    open_tab(page, "Models")
    page.get_by_role("button", name="Delete this upload").click()
    expect(page.locator("#models-told")).to_contain_text("was deleted", timeout=WAIT_MS)
    expect(page.locator("#models-table")).not_to_contain_text("only you see it", timeout=WAIT_MS)


def test_a_folder_is_added_with_what_belongs_to_a_checkpoint(page: Page, tmp_path: Path) -> None:
    folder = build(FLAT, seed=6).save_pretrained(tmp_path / "whole")
    (folder / "notes.txt").write_text("something else")
    open_tab(page, "Models")
    upload(page, "#models-folder", folder)
    expect(page.locator("#models-told")).to_contain_text("It can be chosen in every tab", timeout=WAIT_MS)
    expect(page.locator("#models-table")).to_contain_text("only you see it", timeout=WAIT_MS)
    page.get_by_role("button", name="Delete this upload").click()
    expect(page.locator("#models-told")).to_contain_text("was deleted", timeout=WAIT_MS)


def test_a_name_that_is_none_is_refused_in_words_and_the_stop_button_goes_away_again(page: Page) -> None:
    open_tab(page, "Models")
    page.locator("#models-source input").fill("no name at all")
    page.locator("#models-load").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("user/repo", timeout=WAIT_MS)
    expect(page.locator("#models-stop")).to_be_hidden(timeout=WAIT_MS)


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_a_narrow_window(page: Page, url: str, dark: bool) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{url}/?__theme={'dark' if dark else 'light'}")
    expect(page.locator("#chat-status")).to_be_visible(timeout=WAIT_MS)
    for tab in ("Chat", "Write", "Merge", "Models"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
