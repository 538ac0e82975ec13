from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import gradio.oauth
import pytest
from hub_server import OTHER, Hub
from zoo import fresh

from bdh import publish
from bdh.errors import CheckpointError, HatcheryError
from bdh.search import Found, Seen
from ui.browse import facts
from ui.browse import row as found_row
from ui.limits import Limits
from ui.models import Shelf
from ui.page import build_page
from ui.publish import Asked, Published, pace, sending, signs_in, token_of, who
from ui.registry import Registry

HOME, PUBLIC = Limits(), Limits(public=True)
VISITOR: Any = SimpleNamespace(token="hf_visitor")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fresh("flat").save_pretrained(tmp_path / "mine")


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login or secret of the machine, which is its owner's."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")


def sent(folder: Path, repo: str, token: str | None, limits: Limits = HOME, **options: Any) -> Any:
    options = {"private": True, "license": "unknown"} | options
    return list(sending(lambda: (folder, "mine"), repo, token, limits, **options))[-1]


def test_the_machines_login_is_for_its_owner_at_home_alone(login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_of(None, HOME) == "hf_writer"
    assert token_of(None, PUBLIC) is None
    assert token_of(VISITOR, HOME) == token_of(VISITOR, PUBLIC) == "hf_visitor"
    monkeypatch.setenv("SPACE_ID", "owner/space")
    assert token_of(None, HOME) is None


def test_who_would_publish_is_said_before(server: Hub, login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert who("hf_writer", HOME) == (
        "me",
        "It will be published as **me**. Nobody else sees the token, and it is not kept here.",
    )
    assert who("hf_visitor", PUBLIC)[0] == "visitor"
    assert "refuses the token" in who("hf_old", HOME)[1]
    assert "run `hf auth login` first" in who(None, HOME)[1]
    assert "this page has no sign-in" in who(None, PUBLIC)[1]
    for name, value in {"SYSTEM": "spaces", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPACE_ID", "owner/space")
    assert "sign in with Hugging Face at the top" in who(None, PUBLIC)[1]


def test_a_visitor_publishes_under_their_own_name_and_token(server: Hub, folder: Path, login: None) -> None:
    assert sent(folder, " https://huggingface.co/visitor/mine ", "hf_visitor", PUBLIC) == Published(
        "visitor/mine", f"{server.endpoint}/visitor/mine/commit/{OTHER}"
    )
    assert server.repos["visitor/mine"].private
    assert {request.token for request in server.requests if not request.path.startswith("/lfs/")} == {"hf_visitor"}
    with pytest.raises(CheckpointError, match="needs your own account"):
        sent(folder, "me/mine", None, PUBLIC)
    assert list(server.repos) == ["visitor/mine"]


def test_what_is_there_is_replaced_by_a_second_press_on_what_was_shown_alone(server: Hub, folder: Path) -> None:
    repo = server.add("me/mine", {"README.md": b"old"})
    asked = sent(folder, "me/mine", "hf_writer")
    assert isinstance(asked, Asked) and asked.words.startswith("me/mine is there already: 1 file")
    repo.commits["e" * 40], repo.refs["main"] = {"README.md": b"newer"}, "e" * 40
    again = sent(folder, "me/mine", "hf_writer", agreed=asked.mark)
    assert isinstance(again, Asked) and again.mark != asked.mark
    assert isinstance(sent(folder, "me/mine", "hf_writer", agreed=again.mark), Published)


def test_what_changes_between_the_look_that_is_agreed_to_and_the_upload_is_asked_about_again(
    server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = server.add("me/mine", {"README.md": b"old"})
    asked, look = sent(folder, "me/mine", "hf_writer"), publish.look

    def meddled(*given: Any, **named: Any) -> Any:
        there = look(*given, **named)
        repo.commits["e" * 40], repo.refs["main"] = {"README.md": b"newer"}, "e" * 40
        return there

    with monkeypatch.context() as patch:
        patch.setattr(publish, "look", meddled)
        with pytest.raises(CheckpointError, match="was changed by somebody else meanwhile, and nothing was put there"):
            sent(folder, "me/mine", "hf_writer", agreed=asked.mark)
    assert repo.commits[repo.refs["main"]] == {"README.md": b"newer"} and server.taken_bytes == 0
    again = sent(folder, "me/mine", "hf_writer", agreed=asked.mark)
    assert isinstance(again, Asked) and again.mark != asked.mark
    assert isinstance(sent(folder, "me/mine", "hf_writer", agreed=again.mark), Published)


@pytest.mark.parametrize("private", [True, False])
def test_an_empty_repository_that_others_see_than_was_ticked_is_filled_by_a_second_press_alone(
    server: Hub, folder: Path, private: bool
) -> None:
    repo = server.add("me/mine", {".gitattributes": b""}, private=not private, readers=("hf_writer",))
    before = dict(repo.commits)
    asked = sent(folder, "me/mine", "hf_writer", private=private)
    assert isinstance(asked, Asked) and asked.deed == "Fill it as it is"
    seen = "public: everybody will see what is sent" if private else "private"
    assert asked.words.startswith("me/mine is there already: empty, ") and asked.words.endswith(seen)
    assert repo.commits == before
    repo.private = private  # it became as was ticked: nothing is left to ask
    assert isinstance(sent(folder, "me/mine", "hf_writer", private=private, agreed=asked.mark), Published)
    assert "model.safetensors" in repo.commits[OTHER]


def test_what_was_agreed_to_of_a_private_repository_is_asked_again_when_it_became_public(
    server: Hub, folder: Path
) -> None:
    repo = server.add("me/mine", {"README.md": b"old"}, private=True, readers=("hf_writer",))
    asked = sent(folder, "me/mine", "hf_writer")
    repo.private = False
    again = sent(folder, "me/mine", "hf_writer", agreed=asked.mark)
    assert isinstance(again, Asked) and "public: everybody will see what is sent" in again.words
    assert isinstance(sent(folder, "me/mine", "hf_writer", agreed=again.mark), Published)


@pytest.mark.parametrize("repo", ["", "mine", "a/b/c", "checkpoints/base", "../x", "a b/c", None])
def test_a_repository_that_is_none_is_refused_in_words(server: Hub, folder: Path, repo: Any) -> None:
    with pytest.raises(HatcheryError, match="give it as user/name"):
        sent(folder, repo, "hf_writer")
    assert server.requests == []


def test_an_upload_tells_its_rate_and_how_long_it_will_take() -> None:
    assert pace(5_000_000, 20_000_000, 2.0) == "5 MB of 20 MB · 2.5 MB/s · 6 s left"
    assert pace(20_000_000, 20_000_000, 4.0) == "20 MB of 20 MB · 5 MB/s · the Hub is putting it in its place"
    assert pace(0, 1_000, 9.0) == "0 bytes of 1 kB"


def test_a_page_signs_in_only_where_a_space_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not signs_in()
    told = {"SYSTEM": "spaces", "SPACE_ID": "a/b", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "secret"}
    for name, value in told.items():
        assert not signs_in()
        monkeypatch.setenv(name, value)
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setattr(gradio.oauth, name, "set")  # it read the environment when it was imported
    page = build_page(tmp_path / "none", tmp_path / "data", PUBLIC, "cpu")
    assert [block.elem_id for block in page.blocks.values() if isinstance(block, gr.LoginButton)] == ["sign-in"]


def test_a_private_checkpoint_is_loaded_with_the_login_where_a_stranger_finds_none(
    server: Hub, folder: Path, tmp_path: Path
) -> None:
    server.add("user/own", {path.name: path.read_bytes() for path in folder.iterdir()}, private=True)
    shelf = Shelf(Registry(tmp_path / "none", tmp_path, HOME, "cpu", cache=tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="was not found on the Hub"):
        shelf.fetch("user/own", "browser:me", None, lambda part, desc: None)
    id = shelf.fetch("user/own", "browser:me", None, lambda part, desc: None, login="hf_reader")
    assert shelf.ids("browser:me") == [id] and shelf.ids("browser:another") == []
    assert shelf.parted("browser:me", id)[1] == "own"
    with pytest.raises(HatcheryError):
        shelf.parted("browser:another", id)


def test_a_result_is_shown_with_what_is_known_of_it() -> None:

    assert found_row(Found("a/b", "", 0, 1234, "", True)) == ["a/b (private)", "–", "–", "1,234", ""]
    seen = Seen("a/b", "c" * 40, None, 11_264, 45_700, "", "# <b>")
    assert "another project&#x27;s form" in facts(seen) and "not stated" in facts(seen)
