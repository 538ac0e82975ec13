"""Whose request it is."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from bdh.errors import HatcheryError
from ui import owner
from ui.owner import greet, identify, new_secret


def session(name: str | None) -> Any:
    return SimpleNamespace(session_hash=name)


def test_a_browser_is_known_by_the_secret_it_keeps() -> None:
    secret = greet(session("a"), "")
    assert greet(session("b"), secret) == secret
    assert identify(secret, session("c")) == f"browser:{secret}"


@pytest.mark.parametrize("kept", [None, "", "short", "x" * 65, "a b" * 12, 5])
def test_a_secret_that_is_none_is_replaced(kept: Any) -> None:
    assert new_secret(kept) != kept and len(new_secret(kept)) >= 32


def test_what_a_page_asks_before_it_is_greeted_belongs_to_its_browser() -> None:
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(identify("", session("early"))))
    asking.start()
    time.sleep(0.05)
    secret = greet(session("early"), None)
    asking.join(120)
    assert found == [f"browser:{secret}"]


def test_a_client_that_is_no_page_is_known_by_its_session_at_once() -> None:
    begun = time.monotonic()
    assert identify(None, session("client")) == "session:client"
    assert time.monotonic() - begun < 1
    with pytest.raises(gr.Error, match="session_hash"):
        identify(None, session(None))


def test_what_goes_wrong_is_told_as_text_whatever_it_quotes() -> None:
    with pytest.raises(gr.Error) as caught, owner.reported():
        raise HatcheryError("'<img src=x onerror=alert(1)>'\n & more")
    assert caught.value.message == "'&lt;img src=x onerror=alert(1)&gt;'\\n &amp; more"


def test_a_page_that_is_never_greeted_is_known_by_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_GREETING_S", 0.01)
    assert identify("", session("never")) == "session:never"


def test_the_sessions_kept_in_mind_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_MOST_GREETED", 3)
    monkeypatch.setattr(owner, "_GREETING_S", 0.0)
    for index in range(5):
        greet(session(f"many-{index}"), None)
    assert len(owner._greeted) == 3
    assert identify("", session("many-0")) == "session:many-0"
