"""A Space of one's own: what is put up, and that it is enough."""

from __future__ import annotations

import json
from pathlib import Path

import browsing
import pytest
from gradio_client import Client
from hub_server import OTHER, Hub
from huggingface_hub import SpaceCard
from zoo import fresh

from bdh import space
from bdh.cli import main
from bdh.errors import CheckpointError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    folder = fresh("flat").save_pretrained(tmp_path / "own")
    (folder / "diary.txt").write_text("hf_secret: not for the world")
    return folder


def test_the_files_that_are_put_up_start_the_page_by_themselves(tmp_path: Path, own: Path) -> None:
    home = tmp_path / "space"
    for put in space.planned("Mine", {"own": own}):
        (home / put.path).parent.mkdir(parents=True, exist_ok=True)
        data = put.source if isinstance(put.source, bytes) else put.source.read_bytes()
        (home / put.path).write_bytes(data)
    with browsing.started(home, SPACE_ID="user/hatchery", PYTHONPATH="", BDH_COMPILED="off") as address:
        client = Client(address, verbose=False)
        assert len(client.predict("Hello", model="own", max_bytes=5, seed=1, api_name="/generate").encode()) >= 5


def test_only_what_the_page_needs_is_put_up(own: Path) -> None:
    put = {one.path: one for one in space.planned("Mine", {"own": own}, hardware="zero-a10g")}
    tops = {path.split("/")[0] for path in put}
    assert tops == {"README.md", "app.py", "requirements.txt", "LICENSE", "bdh", "lab", "train", "ui", "checkpoints"}
    assert {"train/recipes/finetune.toml", "train/corpora/chat.txt.xz", "ui/page.py", "bdh/ops/rope.py"} <= put.keys()
    kept = ["README.md", "config.json", "model.safetensors", "provenance.json"]
    assert sorted(path for path in put if path.startswith("checkpoints/")) == [f"checkpoints/own/{n}" for n in kept]
    assert not any("__pycache__" in path or path.endswith(".pyc") for path in put)
    readme = put["README.md"].source
    assert isinstance(readme, bytes)
    fields = SpaceCard(readme.decode()).data.to_dict()
    usual = SpaceCard((ROOT / "README.md").read_text()).data.to_dict()
    assert fields["title"] == "Mine" and fields["suggested_hardware"] == "zero-a10g"
    for name in usual.keys() - {"title", "suggested_hardware", "short_description"}:
        assert fields[name] == usual[name]
    assert isinstance(fields["python_version"], str)


def test_a_locked_space_has_the_versions_of_the_lock(own: Path) -> None:
    put = {one.path: one for one in space.planned("Mine", {"own": own}, locked=True)}
    pins = put["requirements.txt"].source
    assert isinstance(pins, bytes)
    lines = pins.decode().splitlines()
    assert any(line.startswith("gradio==") for line in lines)
    assert all("==" in line and "--hash" not in line and not line.endswith("\\") for line in lines)


def test_it_is_private_and_never_written_over_without_being_told(
    server: Hub, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["space", "create", "me/hatchery", str(own)]
    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    size = (own / "model.safetensors").stat().st_size
    assert f"{size:>13,}  checkpoints/own/model.safetensors\n" in told and "nothing was sent" in told
    assert server.requests == []
    assert main([*command, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    made = server.repos["spaces/me/hatchery"]
    assert made.private and done["address"] == f"{server.endpoint}/spaces/me/hatchery"
    raw = made.commits[OTHER]
    sent = {path: data for path, data in raw.items() if path != ".gitattributes"}
    assert {path: len(data) for path, data in sent.items()} == done["files"]
    assert sent["app.py"] == (ROOT / "app.py").read_bytes()
    assert not any(b"hf_secret" in data for data in sent.values())
    assert main(command) == 2
    assert "write over its files with --update" in capsys.readouterr().err
    assert made.commits[OTHER] is raw
    assert main([*command, "--update", "--title", "Better"]) == 0
    assert b"title: Better" in made.commits[made.refs["main"]]["README.md"]


def test_what_cannot_be_put_up_is_explained_before_anything_is_made(
    server: Hub, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([], "no checkpoint was chosen"),
        ([str(tmp_path / "empty")], "does not exist"),
        ([str(own), "--hardware", "quantum"], "must be one of cpu-basic"),
    ):
        assert main(["space", "create", "me/hatchery", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert server.requests == []
    assert main(["space", "create", "me/../x", str(own)]) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert main(["space", "create", "me/hatchery", str(own)]) == 2
    assert "the Hub refuses the token" in capsys.readouterr().err
    assert main(["space", "create", "me/hatchery", str(own), "--update"]) == 2
    assert server.repos == {}
    monkeypatch.setenv("SPACE_ID", "user/space")
    with pytest.raises(CheckpointError, match="do it at home"):
        space.create("me/hatchery", [])
