from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

from ui import opened
from ui import page as pages
from ui.limits import Limits


def _made(page: gr.Blocks) -> tuple[SessionState, float]:
    """A session, and the fewest seconds of three times that one was made."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        session = SessionState(page)
        taken.append(time.perf_counter() - begun)
    return session, min(taken)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[gr.Blocks, Any, dict[str, Any]]:
    """The page, and what Gradio tells a session and a browser of it by itself."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(pages, "describe_once", lambda page: None)
        page = pages.build_page(Path(__file__).parents[1] / "checkpoints", tmp_path_factory.mktemp("data"), Limits())
    session, took = _made(page)
    config = page.get_config_file()
    patch.undo()
    pages.describe_once(page)
    return page, session, config | {"took": took}


def test_sessions_and_browsers_are_told_the_same_as_by_gradio_itself_many_times_sooner(built: Any) -> None:
    page, session, config = built
    took = config.pop("took")
    again, soonest = _made(page)
    assert soonest < took / 5
    assert again.config_values == session.config_values
    assert list(again.config_values) == list(session.config_values)
    assert page.get_config_file() == config
    assert isinstance(again.blocks_config, BlocksConfig)


def test_what_a_session_changes_no_other_session_sees(built: Any) -> None:
    page = built[0]
    box = next(block for block in page.blocks.values() if block.elem_id == "chat-message")
    first, second = SessionState(page), SessionState(page)
    first._update_value_in_config(box._id, "a word of my own")
    changed = gr.Textbox("mine", label="changed", render=False)
    first[box._id] = changed
    assert first[box._id] is changed
    assert second[box._id] is box
    assert second.config_values == SessionState(page).config_values
    assert "a word of my own" not in str(SessionState(page).config_values)


def test_where_gradio_has_changed_inside_the_page_is_described_as_gradio_does(
    built: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page, usual = built[0], built[0].default_config
    monkeypatch.setattr(opened, "_as", lambda kind, config: object())
    opened.describe_once(page)
    assert page.default_config is usual
    assert "more slowly" in caplog.text


def test_no_button_stands_on_the_page_that_was_made_by_mistake(built: Any) -> None:
    listened = {target for fn in built[0].fns.values() for target, _ in fn.targets}
    shown = [one for one in built[0].blocks.values() if isinstance(one, gr.Button)]
    assert [one.value for one in shown if one._id not in listened] == []
    assert "Run" not in {one.value for one in shown}  # Gradio's word for a button without words
