from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import zoo
from gradio_client import Client
from gradio_client.exceptions import AppError

from bdh.errors import HatcheryError
from ui.limits import Limits
from ui.models import Download, Shelf, build_models, details_markup, quiet, rate_text, row
from ui.owner import new_secret
from ui.registry import Entry, Registry, size_text

OWNER, STRANGER = "browser:somebody", "browser:a stranger"
CRAFTED = '"><img src=x onerror=hurt()>'


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    zoo.fresh("flat").save_pretrained(folder / "flat")
    zoo.fresh("hebbian").save_pretrained(folder / "hebbian")
    return folder


@pytest.fixture
def shelf(shipped: Path, tmp_path: Path) -> Shelf:
    return Shelf(Registry(shipped, tmp_path, Limits(), "cpu"))


def entry(**changes: Any) -> Entry:
    return Entry("one", "one", "flat", 1_600_000, 12_345_678, "shipped", False, 0, False)._replace(**changes)


def upload(shipped: Path) -> list[str]:
    return [str(shipped / "flat" / name) for name in ("model.safetensors", "config.json")]


def test_a_row_tells_what_a_model_is_and_where() -> None:
    assert row(entry()) == ["one", "flat", "1.6 M", "12.3 MB", "shipped", "on disk"]
    assert row(entry(loaded=True))[-1] == "loaded"
    assert row(entry(loaded=True, in_use=2))[-1] == "in use (2)"
    assert row(entry(source="uploaded", private=True))[-2] == "uploaded, only you see it"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (8_200, "8.2 kB"), (12_345_678, "12.3 MB"), (2e9, "2 GB")]
)
def test_a_size_is_read_in_the_unit_that_fits(count: int, text: str) -> None:
    assert size_text(count) == text


def test_details_are_escaped() -> None:
    markup = details_markup(CRAFTED, {CRAFTED: CRAFTED})
    assert "<img" not in markup
    assert markup.count("&lt;img") == 3


def test_a_card_fetches_nothing_and_obeys_no_markup() -> None:
    card = (
        "# A card\n![picture](https://a.example/b.png) ![][ref] <img src=x> <!-- --> </div> 3 < 4 <https://a.example>"
    )
    assert quiet(card) == (
        "# A card\n[picture](https://a.example/b.png) [][ref] <\u200bimg src=x> <\u200b!-- --> <\u200b/div> 3 < 4 "
        "<\u200bhttps://a.example>"
    )


def test_a_download_tells_how_far_it_is_and_how_fast() -> None:
    assert rate_text(5_000_000, 20_000_000, 2.0) == "5 MB of 20 MB · 2.5 MB/s"
    assert rate_text(500, 1_000, 0.1) == "500 bytes of 1 kB"
    assert rate_text(500, 0, 0.1) == "500 bytes"


def test_a_download_is_told_a_few_times_a_second_and_at_its_end() -> None:
    now, told = [0.0], []
    download = Download(lambda part, desc: told.append((part, desc)), clock=lambda: now[0])
    for done in range(1, 101):
        now[0] = done / 100
        download(done * 1_000_000, 100_000_000)
    assert len(told) <= 11
    assert told[-1] == (1.0, "100 MB of 100 MB · 100 MB/s")
    count = len(told)
    download(5, 0)
    assert len(told) == count


def test_what_there_is_to_choose_and_to_read(shelf: Shelf) -> None:
    assert shelf.ids(OWNER) == [cells[0] for cells in shelf.rows(OWNER)] == ["flat", "hebbian"]
    facts, card = shelf.look("hebbian", OWNER)
    assert "<dt>Kind</dt><dd>hebbian: linear attention" in facts
    assert card.lstrip().startswith("#") and "library_name" not in card


def test_without_a_model_a_newcomer_is_told_what_to_do(tmp_path: Path, shelf: Shelf) -> None:
    empty = Shelf(Registry(tmp_path / "none", tmp_path, Limits(), "cpu"))
    assert empty.look(None, OWNER) == ("", "There are no models yet. Load one from the Hub, or upload a file.")
    assert shelf.look("gone", OWNER) == ("", "Choose a model to read about it.")


def test_an_upload_is_seen_by_its_owner_alone(shelf: Shelf, shipped: Path) -> None:
    id = shelf.take(upload(shipped), OWNER)
    assert id in shelf.ids(OWNER) and id not in shelf.ids(STRANGER)
    assert shelf.look(id, STRANGER)[0] == ""
    assert shelf.rows(OWNER)[-1][-2].endswith("only you see it")


@pytest.mark.parametrize("paths", [None, []])
def test_adding_nothing_is_answered_in_words(shelf: Shelf, paths: list[str] | None) -> None:
    with pytest.raises(HatcheryError, match="choose files first"):
        shelf.take(paths, OWNER)


@pytest.mark.parametrize("source", ["", "   ", "https://huggingface.co/", None])
def test_loading_nothing_is_answered_in_words(shelf: Shelf, source: Any) -> None:
    with pytest.raises(HatcheryError, match="such as user/repo"):
        shelf.fetch(source, OWNER, None, lambda part, desc: None)


def from_hub(registry: Registry, shipped: Path, seen: list[str]) -> Callable[..., str]:
    """Stands in for the Hub: every source is one small checkpoint, told of in two steps."""

    def load_hub(source: str, owner: str, *, token: str | None = None, progress: Any = None) -> str:
        seen.append(source)
        if source != "user/repo":
            raise HatcheryError(f"there is no {source} on the Hub")
        progress(1, 2)
        progress(2, 2)
        return registry.load_files(upload(shipped), owner)

    return load_hub


def test_the_address_of_a_repository_is_as_good_as_its_name(
    shelf: Shelf, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(shelf.registry, "load_hub", from_hub(shelf.registry, shipped, seen))
    parts: list[float] = []
    shelf.fetch(" https://huggingface.co/user/repo/ ", OWNER, None, lambda part, desc: parts.append(part))
    assert seen == ["user/repo"]
    assert parts == [0.5, 1.0]


@contextmanager
def served(registry: Registry) -> Iterator[tuple[gr.Blocks, Client]]:
    with gr.Blocks(analytics_enabled=False) as page:
        owner = gr.BrowserState("")
        greeting = page.load(new_secret, owner, owner, api_visibility="private")
        plain = gr.Dropdown(choices=registry.choices(""))
        optional = gr.Dropdown(choices=[("none", ""), *registry.choices("")], value="")
        with gr.Tab("Models") as tab:
            build_models(registry, owner, registry.limits, [plain, optional], greeting, tab)
    _, url, _ = page.queue().launch(
        prevent_thread_lock=True, quiet=True, run_history=False, ssr_mode=False, show_error=False
    )
    try:
        yield page, Client(url, verbose=False, analytics_enabled=False)
    finally:
        page.close()


def test_load_is_the_only_endpoint_and_answers_with_what_was_loaded(
    shelf: Shelf, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf.registry, "load_hub", from_hub(shelf.registry, shipped, []))
    with served(shelf.registry) as (_, client):
        offered = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        assert list(offered) == ["/load"]
        assert [p["parameter_name"] for p in offered["/load"]["parameters"]] == ["source"]
        loaded = client.predict("user/repo", api_name="/load")
        with pytest.raises(AppError, match="there is no user/other on the Hub"):
            client.predict("user/other", api_name="/load")
    model = zoo.model("flat")
    assert loaded.pop("id").startswith("model-")
    assert loaded == {"kind": "flat", "parameters": model.parameter_count(), "state_bytes": model.state_bytes()}


def handler(page: gr.Blocks, name: str) -> Callable[..., Any]:
    """A handler of the page, as Gradio would call it."""
    (found,) = {fn.fn for fn in page.fns.values() if fn.name == name}
    assert found is not None
    return found


def test_the_page_keeps_every_list_up_to_date(shelf: Shelf, shipped: Path) -> None:
    registry, secret = shelf.registry, new_secret(None)
    request: Any = SimpleNamespace(session_hash="s")
    with served(registry) as (page, _):
        told, files, rows, chosen, facts, card, button, plain, optional = handler(page, "on_add")(
            request, upload(shipped), secret, "flat", "hebbian", ""
        )
        id = chosen.value
        assert id.startswith("model-") and id in told and files is None
        assert [cells[0] for cells in rows] == ["flat", "hebbian", id]
        assert f"<h3>{id}</h3>" in facts and card
        assert button.value == "Delete this upload" and button.interactive
        assert [value for _, value in plain.choices] == ["flat", "hebbian", id]
        assert [value for _, value in optional.choices] == ["", "flat", "hebbian", id]
        # What is chosen stays without being sent, so that a choice made meanwhile is not taken back.
        assert "value" not in plain._constructor_args[0] and "value" not in optional._constructor_args[0]

        told, rows, chosen, *_, button, plain, optional = handler(page, "on_unload")(request, secret, id, id, id)
        assert "deleted" in told
        assert [cells[0] for cells in rows] == ["flat", "hebbian"]
        assert (chosen.value, plain.value, optional.value) == ("flat", "flat", "")  # what was chosen is gone
        assert button.value == "Unload"


def test_a_model_in_use_is_not_unloaded_and_the_page_says_why(shelf: Shelf) -> None:
    request: Any = SimpleNamespace(session_hash="s")
    with served(shelf.registry) as (page, _), shelf.registry.lease("flat", OWNER):
        with pytest.raises(gr.Error, match="stays loaded"):
            handler(page, "on_unload")(request, None, "flat", None, "")
        assert [cells[-1] for cells in shelf.rows(OWNER)] == ["in use (1)", "on disk"]
    assert [cells[-1] for cells in shelf.rows(OWNER)] == ["loaded", "on disk"]


def test_a_row_that_is_not_the_visitors_own_cannot_be_selected(shelf: Shelf, shipped: Path) -> None:
    id = shelf.take(upload(shipped), OWNER)
    request: Any = SimpleNamespace(session_hash="s")
    with served(shelf.registry) as (page, _):
        select = handler(page, "on_select")
        assert select(request, SimpleNamespace(row_value=["hebbian", ""]), None).value == "hebbian"
        for picked in (["nobody"], [id], []):
            assert select(request, SimpleNamespace(row_value=picked), None) == gr.skip()
