"""The tabs beside the chat as a person meets them: a real Chromium on the real app, on tiny random models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import FLAT, WAIT_MS, app, choose, say, settle, upload, write
from hub_server import OTHER, Hub, serve
from playwright.sync_api import Browser, Page, expect

from bdh.models import build

pytestmark = pytest.mark.page
CARD = "# Bird\n\nIt sings. ![spy](http://localhost:1/spy.png) <img src=x onerror=hurt()>\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with one checkpoint."""
    with serve() as served:
        folder = build(FLAT, seed=3).save_pretrained(tmp_path_factory.mktemp("bird") / "bird", card=CARD)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        served.add("user/bird", files, downloads=12)
        yield served


@pytest.fixture(scope="module")
def url(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app at home, with a login."""
    told = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_writer"}
    with app(tmp_path_factory.mktemp("app"), **told) as address:
        yield address


def open_models(page: Page) -> None:
    open_tab(page, "Models")
    expect(page.locator("#models-table")).to_contain_text("beta", timeout=WAIT_MS)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_a_seed_writes_its_text_again_and_two_models_write_side_by_side_in_shades_of_surprise(page: Page) -> None:
    open_tab(page, "Write")
    write(page.locator("#write-prompt textarea"), "In the beginning, ")
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
    choose(page, "#write-other", "beta")
    write(page.locator("#write-prompt textarea"), "And he said: ")
    settle(page, "Bytes to write", "40")
    page.get_by_label("Colour the prompt too").check()
    page.locator("#write-go").click()
    for side in ("first", "second"):
        expect(page.locator(f"#write-{side}-summary")).to_contain_text("40 bytes", timeout=WAIT_MS)
        expect(page.locator(f"#write-{side}-summary")).to_contain_text("bits a byte", timeout=WAIT_MS)
        shades = page.locator(f"#write-{side} [class]").evaluate_all("all => new Set(all.map(e => e.className)).size")
        assert shades > 1


def test_writing_is_stopped_and_begun_again_and_a_number_that_is_not_allowed_answered_in_words(page: Page) -> None:
    open_tab(page, "Write")
    write(page.locator("#write-prompt textarea"), "Once ")
    page.get_by_text("How it writes").click()
    settle(page, "Bytes to write", "100000")
    page.locator("#write-go").click()
    expect(page.locator("#write-first-summary")).to_contain_text("bytes", timeout=WAIT_MS)
    page.locator("#write-stop").click()
    expect(page.locator("#write-go")).to_be_enabled(timeout=WAIT_MS)
    settle(page, "Bytes to write", "20")
    page.locator("#write-go").click()
    expect(page.locator("#write-first-summary")).to_contain_text("20 bytes", timeout=WAIT_MS)
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


def test_a_folder_is_added_with_what_belongs_to_a_checkpoint_and_a_name_that_is_none_refused(
    page: Page, tmp_path: Path
) -> None:
    folder = build(FLAT, seed=6).save_pretrained(tmp_path / "whole")
    (folder / "notes.txt").write_text("something else")
    open_tab(page, "Models")
    upload(page, "#models-folder", folder)
    expect(page.locator("#models-told")).to_contain_text("It can be chosen in every tab", timeout=WAIT_MS)
    expect(page.locator("#models-table")).to_contain_text("only you see it", timeout=WAIT_MS)
    page.get_by_role("button", name="Delete this upload").click()
    expect(page.locator("#models-told")).to_contain_text("was deleted", timeout=WAIT_MS)
    write(page.locator("#models-source input"), "no name at all")
    page.locator("#models-load").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("user/repo", timeout=WAIT_MS)
    expect(page.locator("#models-stop")).to_be_hidden(timeout=WAIT_MS)


def test_nothing_is_wider_than_a_narrow_window(browser: Browser, url: str) -> None:
    page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    for theme in ("light", "dark"):
        page.goto(f"{url}/?__theme={theme}")
        expect(page.locator("#chat-status")).to_be_visible(timeout=WAIT_MS)
        for tab in ("Chat", "Write", "Train", "Merge", "Inspect", "Models"):
            open_tab(page, tab)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, (theme, tab)
    page.context.close()


def test_a_search_shows_what_there_is_and_a_click_tells_about_it_and_fills_the_box(page: Page, hub: Hub) -> None:
    open_models(page)
    page.get_by_role("button", name="Search the Hub").click()
    write(page.locator("#hub-text input"), "nothing like it")
    page.locator("#hub-go").click()
    expect(page.locator("#hub-told")).to_contain_text("Nothing on the Hub fits", timeout=WAIT_MS)
    write(page.locator("#hub-text input"), "bird")
    page.locator("#hub-text input").press("Enter")
    expect(page.locator("#hub-told")).to_contain_text("1 found", timeout=WAIT_MS)
    page.locator("#hub-table span").get_by_text("user/bird").click()
    expect(page.locator("#hub-facts")).to_contain_text("45.7 kB", timeout=WAIT_MS)
    expect(page.locator("#hub-card")).to_contain_text("It sings.")
    assert page.locator("#hub-card img").count() == 0
    expect(page.locator("#models-source input")).to_have_value("user/bird")
    hub.status = 500
    page.locator("#hub-go").click()
    expect(page.locator("#hub-told")).to_contain_text("the Hub answers with error 500", timeout=WAIT_MS)
    hub.status = None
    page.locator("#models-load").click()
    expect(page.locator("#models-told")).to_contain_text("Loaded user/bird", timeout=WAIT_MS)


def test_a_checkpoint_is_published_under_the_suggested_name_and_replaced_only_by_a_second_press(
    page: Page, hub: Hub
) -> None:
    open_models(page)
    page.get_by_role("button", name="Publish it on the Hub").last.click()
    expect(page.locator("#models-who")).to_contain_text("It will be published as me", timeout=WAIT_MS)
    expect(page.locator("#models-repo input")).to_have_value("me/bdh-alpha", timeout=WAIT_MS)
    hub.failures = {"/lfs/": [(403, "", "Private repository storage limit reached")]}
    page.locator("#models-push").click()
    expect(page.locator("#models-pushed")).to_contain_text("It was not published", timeout=WAIT_MS)
    expect(page.locator("#models-pushed")).to_contain_text("the Hub has no more room for this account")
    assert "me/bdh-alpha" not in hub.repos
    hub.failures = {}
    page.locator("#models-push").click()
    expect(page.locator("#models-pushed")).to_contain_text("Published: me/bdh-alpha", timeout=WAIT_MS)
    link = page.locator("#models-pushed a").get_attribute("href")
    assert link == f"{hub.endpoint}/me/bdh-alpha"
    repo = hub.repos["me/bdh-alpha"]
    assert repo.private and repo.refs["main"] == OTHER

    page.locator("#models-push").click()
    expect(page.locator("#models-pushed")).to_contain_text("me/bdh-alpha is there already: 4 files", timeout=WAIT_MS)
    expect(page.locator("#models-push")).to_have_text("Replace what is there")
    assert repo.refs["main"] == OTHER
    write(page.locator("#models-license input"), "mit")
    page.locator("#models-license input").press("Enter")
    page.locator("#models-push").click()
    expect(page.locator("#models-pushed")).to_contain_text("Published: me/bdh-alpha", timeout=WAIT_MS)
    assert "license: mit" in repo.commits[repo.refs["main"]]["README.md"].decode()


def test_publishing_is_stopped_and_done_again_and_an_empty_public_repository_filled_by_a_second_press_alone(
    page: Page, hub: Hub
) -> None:
    open_models(page)
    page.get_by_role("button", name="Publish it on the Hub").last.click()
    expect(page.locator("#models-repo input")).to_have_value("me/bdh-alpha", timeout=WAIT_MS)
    write(page.locator("#models-repo input"), "me/stopped")
    hub.slow_s, hub.uploads = 3.0, {}
    hub.repos.pop("me/bdh-alpha", None)
    page.locator("#models-push").click()
    expect(page.locator("#models-progress")).to_contain_text(re.compile("of .* kB|of .* MB"), timeout=WAIT_MS)
    page.locator("#models-push-stop").click()
    expect(page.locator("#models-pushed")).to_contain_text("Stopped.", timeout=WAIT_MS)
    expect(page.locator("#models-push")).to_be_enabled()
    page.wait_for_timeout(1_000)
    expect(page.locator("#models-pushed")).to_contain_text("Stopped.")
    hub.slow_s = 0.0
    page.locator("#models-push").click()
    expect(page.locator("#models-pushed")).to_contain_text("Published: me/stopped", timeout=WAIT_MS)

    repo = hub.add("me/empty", {".gitattributes": b""})
    write(page.locator("#models-repo input"), "me/empty")
    page.locator("#models-push").click()
    expect(page.locator("#models-pushed")).to_contain_text("public: everybody will see what is sent", timeout=WAIT_MS)
    expect(page.locator("#models-push")).to_have_text("Fill it as it is")
    assert len(repo.commits) == 1
    page.locator("#models-push").click()
    expect(page.locator("#models-pushed")).to_contain_text("Published: me/empty", timeout=WAIT_MS)


def test_claims_say_what_was_measured_and_with_which_command(page: Page) -> None:
    open_tab(page, "Inspect")
    open_tab(page, "Claims")
    expect(page.locator("#claims-overview")).to_contain_text("Unlimited context", timeout=WAIT_MS)
    expect(page.locator("#claim-report")).to_contain_text("what it remembers is a state of constant size")
    choose(page, "#claims-choice", "Sparse neurons")
    expect(page.locator("#claim-report")).to_contain_text("python -m lab sparsity hatchling", timeout=WAIT_MS)
    expect(page.locator("#claim-drawings img")).to_have_count(3, timeout=WAIT_MS)
    choose(page, "#inspect-model", "beta")
    expect(page.locator("#claim-command")).to_contain_text("python -m lab sparsity beta", timeout=WAIT_MS)
