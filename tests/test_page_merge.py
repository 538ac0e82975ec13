"""The Merge tab as a person meets it: a real Chromium on the real app, which merges tiny models."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import FLAT, WAIT_MS, settle, settle_in, started, visitor
from playwright.sync_api import Browser, Page, expect

from bdh.models import build

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with two models that can be merged."""
    home = tmp_path_factory.mktemp("merge")
    settle_in(home)
    build(FLAT, seed=2).save_pretrained(home / "checkpoints" / "gamma")
    with started(home) as address:
        yield address


LONG_MS = 240_000
"""A training process takes seconds to start, and others use the machine."""


def merge(page: Page) -> None:
    page.get_by_role("tab", name="Merge").click()
    for name in ("beta", "gamma"):
        if page.locator("#merge-parents").get_by_text(f"{name} · flat").count() == 0:
            page.locator("#merge-parents input").click()
            page.get_by_role("option", name=name).click()
    page.keyboard.press("Escape")
    if (alpha := page.locator("#merge-parents .token", has_text="alpha")).count():
        alpha.locator(".token-remove").click()
    expect(page.locator("#merge-line")).to_contain_text("These 2 can be merged by concat", timeout=WAIT_MS)
    page.locator("#merge-go").click()
    expect(page.locator("#merge-told")).to_contain_text("Merged into", timeout=WAIT_MS)


def test_models_are_merged_measured_read_and_taken_along_and_found_again_by_their_owner_alone(
    page: Page, browser: Browser, url: str, tmp_path: Path
) -> None:
    page.get_by_role("tab", name="Merge").click()
    expect(page.locator("#merge-line")).to_contain_text("Not yet: a transformer", timeout=WAIT_MS)
    expect(page.locator("#merge-line")).to_contain_text("these methods work: mixture")
    expect(page.locator("#merge-go")).to_be_disabled()
    merge(page)

    settle(page, "Bytes of each", "512")
    page.locator("#merge-measure").click()
    expect(page.locator("#merge-table")).to_contain_text("Measured on 512 bytes", timeout=LONG_MS)
    expect(page.locator("#merge-measure")).to_be_enabled(timeout=LONG_MS)
    expect(page.locator("#merge-table tr.merged")).to_contain_text(re.compile("kept"))
    expect(page.locator("#merge-plot .marks")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#merge-shares .bar")).to_have_count(4)

    page.get_by_role("tab", name="Side by side").click()
    settle(page, "Bytes to write", "30")
    page.locator("#merge-speak").click()
    expect(page.locator("#merge-speak")).to_be_enabled(timeout=LONG_MS)
    expect(page.locator("#merge-summary-0")).to_contain_text("carried by", timeout=WAIT_MS)
    assert page.locator("#merge-paper-0 [class^=p0], #merge-paper-0 [class^=p1]").count() > 0
    expect(page.locator("#merge-summary-2")).to_contain_text("30 bytes")

    page.locator("#merge-download").click()
    with page.expect_download(timeout=WAIT_MS) as download:
        page.locator("#merge-file a[download]").first.click()
    download.value.save_as(tmp_path / "merged.zip")
    with zipfile.ZipFile(tmp_path / "merged.zip") as file:
        assert "provenance.json" in [name.rpartition("/")[2] for name in file.namelist()]

    with visitor(browser, url) as stranger:
        stranger.get_by_role("tab", name="Merge").click()
        expect(stranger.locator("#merge-nothing")).to_be_visible(timeout=WAIT_MS)
        expect(stranger.locator("#merge-made")).to_be_hidden()

    page.reload()
    page.get_by_role("tab", name="Merge").click()
    expect(page.locator("#merge-table")).to_contain_text("Measured on 512 bytes", timeout=WAIT_MS)
    page.locator("#merge-write").click()
    expect(page.locator("#write-model input")).to_have_value(re.compile("-.* · flat"), timeout=WAIT_MS)


def test_a_merge_is_healed_as_a_run_and_deleted(page: Page) -> None:
    merge(page)
    page.get_by_role("tab", name="Heal").click()
    settle(page, "Minutes", "0.05")
    page.locator("#merge-heal").click()
    expect(page.locator("#merge-heal-told")).to_contain_text("is on its way", timeout=WAIT_MS)
    page.locator("#merge-watch").click()
    expect(page.locator("#runs-status")).to_contain_text("bits a byte on text it never saw", timeout=LONG_MS)
    page.get_by_role("tab", name="Merge").click()
    page.locator("#merge-chosen input").click()
    page.get_by_role("option", name=re.compile("healed from it")).click()
    expect(page.locator("#merge-delete")).to_have_text("Delete this run", timeout=WAIT_MS)
    page.locator("#merge-delete").click()
    expect(page.locator("#merge-delete")).to_have_class(re.compile("sure"))
    page.wait_for_timeout(5500)  # not pressed again: nothing is deleted, and it has to be pressed twice again
    expect(page.locator("#merge-delete")).not_to_have_class(re.compile("sure"))
    for _ in range(2):
        page.locator("#merge-delete").click()
    expect(page.locator("#merge-told")).to_contain_text("healed was deleted", timeout=WAIT_MS)
    for _ in range(2):
        page.locator("#merge-delete").click()
    expect(page.locator("#merge-nothing")).to_be_visible(timeout=WAIT_MS)
