from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import MAIN, Hub
from huggingface_hub import constants
from zoo import fresh

from bdh import checkpoint, search
from bdh.cli import main
from bdh.errors import CheckpointError
from bdh.search import Found


@pytest.fixture
def stocked(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub with two BDH checkpoints, a private one, and something else's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, kind, downloads in (
        ("user/bird", "flat", 7),
        ("team/Early-Bird", "hebbian", 90),
        ("user/own", "flat", 1),
    ):
        folder = fresh(kind).save_pretrained(tmp_path / name, card=f"# {name}\n", provenance={"x": 1})
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        server.add(name, files, downloads=downloads, private=name == "user/own")
    server.add("user/bert", {"README.md": b"---\ntags: [bert]\n---\n"})
    return server


def test_a_search_finds_bdh_checkpoints_by_name_and_author_the_most_downloaded_first(stocked: Hub) -> None:
    bird = Found("user/bird", "flat", 4096, 7, "2026-11-20", False)
    early = Found("team/Early-Bird", "hebbian", 4096, 90, "2026-11-20", False)
    assert search.search() == [early, bird]
    assert search.search("BIRD", author="user") == [bird]
    assert search.search("bird", limit=1) == [early]
    assert search.search("nothing") == []


def test_private_checkpoints_are_found_with_a_token_alone(stocked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert [one.repo_id for one in search.search("own")] == []
    assert [(one.repo_id, one.private) for one in search.search("own", token=True)] == [("user/own", True)]
    assert {request.token for request in stocked.requests} == {None, "hf_reader"}


def test_what_a_checkpoint_is_is_read_without_its_weights_and_kept_nowhere(stocked: Hub, tmp_path: Path) -> None:
    seen = search.look("user/bird")
    model = fresh("flat")
    assert (seen.place, seen.commit, seen.config) == ("user/bird", MAIN, model.config)
    assert seen.parameters == model.parameter_count()
    assert seen.card == "\n# user/bird\n" and seen.license == ""
    assert seen.weight_bytes == len(stocked.repos["user/bird"].commits[MAIN]["model.safetensors"])
    assert stocked.weight_bytes() < 4096
    assert not (tmp_path / "cache").exists()


def test_a_long_card_is_read_from_its_beginning_alone(stocked: Hub) -> None:
    stocked.repos["user/bird"].commits[MAIN]["README.md"] = b"x" * 5_000_000
    assert len(search.look("user/bird").card) == 50_000
    stocked.repos["user/bird"].commits[MAIN]["config.json"] = b" " * (checkpoint.MAX_TEXT_BYTES + 5)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        search.look("user/bird")


def test_what_cannot_be_loaded_is_said_in_words(stocked: Hub) -> None:
    with pytest.raises(CheckpointError, match="was not found on the Hub"):
        search.look("user/own")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        search.look("user/bert")
    with pytest.raises(CheckpointError, match="up to 10 are allowed here"):
        search.look("user/bird", max_parameters=10)
    with pytest.raises(CheckpointError, match="is no Hub name"):
        search.look("../etc")


@pytest.mark.parametrize(
    ("text", "author", "limit", "words"),
    [
        ("x" * 101, "", 20, "at most 100 plain characters"),
        ("a\nb", "", 20, "plain characters"),
        ("", "a b", 20, "is no user or organisation"),
        ("", "a/b", 20, "is no user or organisation"),
        ("", "", 0, "allowed are 1 to 50"),
        ("", "", 51, "allowed are 1 to 50"),
    ],
)
def test_what_is_not_allowed_is_not_asked(server: Hub, text: str, author: str, limit: int, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        search.search(text, author=author, limit=limit)
    assert server.requests == []


def test_a_hub_that_does_not_answer_well_is_said_to(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 429
    with pytest.raises(CheckpointError, match="asks for patience"):
        search.search()
    server.status = 500
    with pytest.raises(CheckpointError, match="the Hub answers with error 500"):
        search.search()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the Hub cannot be reached"):
        search.search()


def test_the_command_line_searches(stocked: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "bird"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["team/Early-Bird", "hebbian", "4,096", "90", "2026-11-20"]
    assert lines[2].split()[:2] == ["user/bird", "flat"]
    assert main(["search", "--author", "user", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [one["repo_id"] for one in found] == ["user/bird"]
    assert main(["search", "nothing"]) == 0
    assert "nothing on the Hub fits" in capsys.readouterr().err
    assert main(["search", "--about", "user/bird"]) == 0
    assert capsys.readouterr().out.startswith("user/bird: flat, ")
