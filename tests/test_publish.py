from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_server import MAIN, OTHER, Hub
from huggingface_hub.utils import _http
from zoo import FLAT, fresh

import bdh
from bdh import card, checkpoint, publish
from bdh.cli import main
from bdh.config import FlatConfig
from bdh.convert import convert
from bdh.errors import CheckpointError, HatcheryError
from bdh.merge import Recipe, make_plan, merge, write
from bdh.models import build

SENT = [*checkpoint.FILES, ".gitattributes"]
WRITER: dict[str, Any] = {"token": "hf_writer"}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits no seconds before it tries again."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provenance = {"held_out_bits_per_byte": {"rhyme": 2.5}}
    return fresh("flat").save_pretrained(tmp_path / "my rhymes", provenance=provenance)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint of a few megabytes."""
    config = FlatConfig(n_layer=1, n_embd=64, n_head=2, mlp_internal_dim_multiplier=64)
    return build(config, seed=0).save_pretrained(tmp_path / "large")


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    yield


def test_publishing_tells_how_far_it_is_and_sends_the_completed_card(server: Hub, large: Path) -> None:
    told: list[tuple[int, int]] = []
    server.slow_s = 0.01
    address = publish.upload(
        large, "me/one", license="cc-by-4.0", progress=lambda done, total: told.append((done, total)), **WRITER
    )
    assert address == f"{server.endpoint}/me/one/commit/{OTHER}"
    files = server.repos["me/one"].commits[OTHER]
    assert sorted(files) == sorted(SENT)
    assert "license: cc-by-4.0" in files["README.md"].decode()
    assert "license: unknown" in (large / "README.md").read_text()
    assert files["model.safetensors"] == (large / "model.safetensors").read_bytes()
    total = publish.pack(large, license="cc-by-4.0").size_bytes
    done = [one for one, _ in told]
    assert done == sorted(done) and len(set(done)) > 2 and told[-1] == (total, total)
    assert total == sum(map(len, files.values())) - len(files[".gitattributes"])


def made(how: str, place: Path) -> Path:
    """A checkpoint as it comes from training, merging or converting."""
    if how == "merged":
        parents = [fresh("flat").save_pretrained(place / name) for name in ("one", "two")]
        recipe = Recipe(parents=tuple(map(str, parents)), method="concat")
        return write(merge(make_plan(recipe)), place / "merged")
    if how == "converted":
        torch.save(fresh("flat").state_dict(), place / "theirs.pt")
        return convert(place / "theirs.pt", place / "ours", config={"n_layer": FLAT.n_layer}, allow_pickle=True)
    return fresh(how).save_pretrained(place / how)


@pytest.mark.parametrize("how", ["hierarchical", "hebbian", "transformer", "mixture", "deep", "merged", "converted"])
def test_whatever_was_made_comes_back_from_the_hub_bit_for_bit_with_a_whole_card(
    server: Hub, tmp_path: Path, how: str
) -> None:
    folder = made(how, tmp_path)
    publish.upload(folder, "me/one", **WRITER)
    files = server.repos["me/one"].commits[OTHER]
    assert set(files) <= set(SENT) and files["config.json"] == (folder / "config.json").read_bytes()
    front = card.split(files["README.md"].decode())[0]
    kind = {"mixture": "composed", "deep": "composed", "merged": "flat", "converted": "flat"}.get(how, how)
    assert {"bdh", kind} <= set(front["tags"]) and ("merge" in front["tags"]) == (how == "merged")
    assert (front["library_name"], front["pipeline_tag"], front["license"]) == (
        "bdh-hatchery", "text-generation", "unknown"
    )  # fmt: skip
    ours = bdh.load(folder, device="cpu")
    theirs = bdh.load("me/one", device="cpu", token="hf_writer", cache_dir=tmp_path / "cache")
    assert theirs.config == ours.config
    expected = ours.state_dict()
    assert theirs.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in theirs.state_dict().items())


def test_what_is_there_is_never_replaced_without_saying_so(server: Hub, folder: Path) -> None:
    server.add("me/one", {"model.safetensors": b"theirs", "diary.txt": b"dear", ".gitattributes": b""})
    before = dict(server.repos["me/one"].commits[MAIN])
    with pytest.raises(CheckpointError) as error:
        publish.upload(folder, "me/one", **WRITER)
    assert "me/one is there already: 2 files, last changed on 20 Nov 2026, public: everybody" in str(error.value)
    assert "1 of them with other names would stay. Choose another name" in str(error.value)
    assert server.repos["me/one"].refs == {"main": MAIN} and server.repos["me/one"].commits == {MAIN: before}
    publish.upload(folder, "me/one", replace=True, **WRITER)
    after = server.repos["me/one"].commits[OTHER]
    assert after["diary.txt"] == b"dear" and after["model.safetensors"] != b"theirs"


def test_an_empty_repository_is_filled_and_a_branch_leaves_the_main_one_alone(server: Hub, folder: Path) -> None:
    server.add("me/empty", {".gitattributes": b""}, private=True, readers=("hf_writer",))
    publish.upload(folder, "me/empty", **WRITER)
    publish.upload(folder, "me/empty", revision="draft", license="mit", **WRITER)
    repo = server.repos["me/empty"]
    assert repo.refs["main"] == OTHER and "license: unknown" in repo.commits[OTHER]["README.md"].decode()
    assert "license: mit" in repo.commits[repo.refs["draft"]]["README.md"].decode()
    with pytest.raises(CheckpointError, match="me/empty is there already"):
        publish.upload(folder, "me/empty", revision="draft", **WRITER)


def test_an_empty_public_repository_is_not_filled_by_who_publishes_privately(
    server: Hub, folder: Path, login: None, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = server.add("me/empty", {".gitattributes": b""})
    before = dict(repo.commits)
    with pytest.raises(CheckpointError, match=r"is there already: empty, .*public: everybody will see") as error:
        publish.upload(folder, "me/empty", **WRITER)
    assert "say that it may be public (private, --public)" in str(error.value)
    with pytest.raises(CheckpointError, match=r"is there already: empty, .*public"):
        publish.upload(folder, "me/empty", revision="draft", **WRITER)  # a branch is seen as the rest
    assert main(["push", str(folder), "me/empty"]) == 2
    assert main(["push", str(folder), "me/empty", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["would"] == "refuse"
    assert main(["push", str(folder), "me/empty", "--dry-run", "--public"]) == 0
    assert capsys.readouterr().out.startswith("me/empty: is there, public and empty; it would be filled")
    assert repo.commits == before
    assert main(["push", str(folder), "me/empty", "--public"]) == 0
    assert "model.safetensors" in repo.commits[OTHER]


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(server: Hub, folder: Path) -> None:
    repo = server.add("me/one", {"README.md": b"old"})

    def meddle(done: int, total: int) -> None:
        repo.commits["d" * 40], repo.refs["main"] = {"README.md": b"new"}, "d" * 40

    server.slow_s = 0.3
    with pytest.raises(CheckpointError, match="changed by somebody else meanwhile"):
        publish.upload(folder, "me/one", replace=True, progress=meddle, **WRITER)
    assert repo.commits[repo.refs["main"]] == {"README.md": b"new"}


def test_what_changed_since_it_was_looked_at_is_left_alone_and_published_to_after_another_look(
    server: Hub, folder: Path
) -> None:
    repo = server.add("me/one", {"README.md": b"old"}, private=True, readers=("hf_writer",))
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    seen = publish.look("me/one", **WRITER)
    repo.commits["d" * 40], repo.refs["main"] = {"README.md": b"new"}, "d" * 40
    with pytest.raises(
        CheckpointError, match="me/one was changed by somebody else meanwhile, and nothing was put there"
    ):
        publish.upload(folder, "me/one", replace=True, seen=seen, **WRITER)
    seen = publish.look("me/one", **WRITER)
    repo.private = False
    with pytest.raises(CheckpointError, match="changed by somebody else meanwhile"):
        publish.upload(folder, "me/one", private=False, replace=True, seen=seen, **WRITER)
    assert repo.commits["d" * 40] == {"README.md": b"new"} and repo.refs == {"main": "d" * 40}
    assert server.taken_bytes == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    publish.upload(folder, "me/one", replace=True, seen=publish.look("me/one", **WRITER), **WRITER)
    assert repo.commits[OTHER]["model.safetensors"] == kept["model.safetensors"]


@pytest.mark.parametrize(("change", "there"), [("filled", False), ("public", True), ("public", False)])
def test_a_repository_that_is_filled_or_made_public_while_weights_are_sent_gets_none_of_them(
    server: Hub, large: Path, change: str, there: bool
) -> None:
    if there:
        server.add("me/one", {".gitattributes": b""}, private=True, readers=("hf_writer",))
    server.slow_s = 0.01

    def meddle(done: int, total: int) -> None:
        repo = server.repos["me/one"]
        if not done or "c" * 40 in repo.commits or not repo.private:
            return
        if change == "public":
            repo.private = False
        else:
            repo.commits["c" * 40], repo.refs["main"] = {"diary.txt": b"dear"}, "c" * 40

    with pytest.raises(CheckpointError, match="me/one was changed by somebody else meanwhile"):
        publish.upload(large, "me/one", progress=meddle, **WRITER)
    assert not any("model.safetensors" in files for one in server.repos.values() for files in one.commits.values())
    assert ("me/one" in server.repos) == (there or change == "filled")  # an empty one that it made is taken away
    publish.upload(large, "me/one", private=not there or change != "public", replace=change == "filled", **WRITER)
    repo = server.repos["me/one"]
    assert repo.commits[repo.refs["main"]]["model.safetensors"] == (large / "model.safetensors").read_bytes()


@pytest.mark.parametrize("change", ["filled", "public"])
def test_what_was_filled_or_made_public_right_after_it_was_made_gets_nothing(
    server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    made = publish._made

    def make(*given: Any) -> str:
        name = made(*given)
        repo = server.repos[name]
        if change == "public":
            repo.private = False
        else:
            repo.commits["c" * 40], repo.refs["main"] = {"diary.txt": b"dear"}, "c" * 40
        return name

    monkeypatch.setattr(publish, "_made", make)
    with pytest.raises(CheckpointError, match="me/one was changed by somebody else meanwhile"):
        publish.upload(folder, "me/one", **WRITER)
    assert server.taken_bytes == 0 and ("me/one" in server.repos) == (change == "filled")


@pytest.mark.parametrize("change", ["begun", "public"])
def test_a_branch_that_somebody_else_began_or_lets_others_see_gets_nothing(
    server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    repo = server.add("me/one", {"README.md": b"old"}, private=True, readers=("hf_writer",))
    create = publish.HfApi.create_branch

    def meddle(*given: Any, **named: Any) -> None:
        if change == "begun":
            repo.commits["d" * 40], repo.refs["draft"] = {"README.md": b"theirs"}, "d" * 40
        create(*given, **named)
        if change == "public":
            repo.private = False

    monkeypatch.setattr(publish.HfApi, "create_branch", meddle)
    with pytest.raises(CheckpointError, match="was changed by somebody else meanwhile"):
        publish.upload(folder, "me/one", revision="draft", **WRITER)
    assert server.taken_bytes == 0
    assert repo.commits[repo.refs["draft"]] == {"README.md": b"theirs" if change == "begun" else b"old"}


@pytest.mark.parametrize(
    ("part", "answer", "words"),
    [
        ("/lfs/", (500, "", ""), "the Hub answers with error 500; try again later"),
        ("/lfs/", (503, "", ""), "the Hub answers with error 503; try again later"),
        ("/info/lfs", (429, "", ""), "asks for patience after too many requests"),
        ("/info/lfs", (403, "", "Private repository storage limit reached, please upgrade"), "has no more room"),
        ("/commit/", (403, "", "Forbidden"), "may not write there"),
        ("/preupload/", (401, "", "Invalid credentials in Authorization header"), "refuses the token"),
        ("/validate-yaml", (502, "", ""), "does not answer as the Hub does|error 502"),
        ("/lfs/", (413, "", ""), "takes no file as large as this"),
        ("/commit/", (402, "", ""), "asks this account for payment"),
    ],
)
def test_a_failure_is_said_in_words_leaves_no_empty_repository_and_is_made_good_by_another_call(
    server: Hub, folder: Path, part: str, answer: tuple[int, str, str], words: str
) -> None:
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.failures = {part: [answer]}
    with pytest.raises(CheckpointError, match=words):
        publish.upload(folder, "me/one", **WRITER)
    assert "me/one" not in server.repos
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    server.failures = {}
    publish.upload(folder, "me/one", **WRITER)
    assert sorted(server.repos["me/one"].commits[OTHER]) == sorted(SENT)


def test_a_repository_that_cannot_be_taken_away_again_is_said_to_be_left(server: Hub, folder: Path) -> None:
    server.failures = {"/lfs/": [(500, "", "")], "/repos/delete": [(403, "", "not yours to delete")]}
    with pytest.raises(CheckpointError, match="An empty repository me/one was left on the Hub; publishing there again"):
        publish.upload(folder, "me/one", **WRITER)
    server.failures = {}
    publish.upload(folder, "me/one", **WRITER)
    assert server.repos["me/one"].refs["main"] == OTHER


def test_a_connection_that_is_cut_is_tried_again_and_then_given_up_in_words(server: Hub, large: Path) -> None:
    server.cut_uploads = [100_000]
    publish.upload(large, "me/one", **WRITER)
    server.cut_uploads = [100_000] * 20
    (large / "model.safetensors").write_bytes((large / "model.safetensors").read_bytes())
    build(FlatConfig(n_layer=1, n_embd=64, n_head=2, mlp_internal_dim_multiplier=32), seed=3).save_pretrained(large)
    with pytest.raises(CheckpointError, match="connection to the Hub was cut"):
        publish.upload(large, "me/two", **WRITER)
    assert list(server.repos) == ["me/one"]


def test_an_upload_is_stopped_by_its_progress_and_what_arrived_is_not_sent_twice(server: Hub, large: Path) -> None:
    server.slow_s = 0.02

    def stop(done: int, total: int) -> None:
        if done > 200_000:
            raise HatcheryError("enough")

    with pytest.raises(HatcheryError, match="enough"):
        publish.upload(large, "me/one", progress=stop, **WRITER)
    assert server.repos == {} and server.taken_bytes < (large / "model.safetensors").stat().st_size
    server.slow_s = 0.0
    publish.upload(large, "me/one", **WRITER)
    sent = server.taken_bytes
    publish.upload(large, "me/again", **WRITER)
    assert server.taken_bytes == sent


def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(
    server: Hub, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "SILENCE_S", 0.3)
    server.slow_s = 1.5
    with pytest.raises(CheckpointError, match="has not answered for"):
        publish.upload(large, "me/one", **WRITER)


def test_whose_names_may_be_written_to(server: Hub, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="may not write there"):
        publish.upload(folder, "them/one", **WRITER)
    server.add("visitor/old", {"README.md": b"x"}, private=True, readers=("hf_writer",))
    with pytest.raises(CheckpointError, match=r"visitor/old is there already, and this login or sign-in may not look"):
        publish.upload(folder, "visitor/old", token="hf_visitor")
    publish.upload(folder, "visitor/new", token="hf_visitor")
    with pytest.raises(CheckpointError, match="refuses the token"):
        publish.upload(folder, "me/one", token="hf_nobody")
    assert sorted(server.repos) == ["visitor/new", "visitor/old"]


def test_nothing_that_is_told_or_logged_holds_the_token(
    server: Hub, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.failures = {"/lfs/": [(500, "", "")]}
    with pytest.raises(CheckpointError) as error:
        publish.upload(folder, "me/one", **WRITER)
    out = capsys.readouterr()
    assert "hf_writer" not in f"{error.value} {caplog.text} {out.out} {out.err}"


def test_a_folder_that_is_no_whole_checkpoint_is_not_begun_with(server: Hub, folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(CheckpointError):
        publish.upload(folder, "me/one", **WRITER)
    os.remove(folder / "model.safetensors")
    os.symlink("/etc/hostname", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        publish.upload(folder, "me/one", **WRITER)
    assert server.requests == []


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("my rhymes", "me/bdh-my-rhymes"),
        ("bdh-chat", "me/bdh-chat"),
        ("../..", "me/bdh-model"),
        ("a--b..git", "me/bdh-a-b"),
        ("日本", "me/bdh-model"),
        ("x" * 300, "me/bdh-" + "x" * 80),
    ],
)
def test_a_name_is_suggested_that_the_hub_takes(title: str, name: str) -> None:
    assert publish.suggested("me", title) == name
    assert card.is_hub_id(name)
    assert publish.suggested("", title) == ""


def test_python_and_the_command_line_publish_under_the_logins_name(
    server: Hub, folder: Path, login: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bdh.push(folder) == f"{server.endpoint}/me/bdh-my-rhymes/commit/{OTHER}"
    assert main(["push", str(folder), "me/two", "--public", "--license", "mit", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["repo_id"] == "me/two" and told["commit_url"].endswith(OTHER)
    assert not server.repos["me/two"].private and server.repos["me/bdh-my-rhymes"].private
    assert main(["push", str(folder), "me/two"]) == 2
    assert "me/two is there already: 4 files" in capsys.readouterr().err
    assert main(["push", str(folder), "me/two", "--replace", "--license", "gpl-3.0"]) == 0


def test_a_dry_run_shows_what_would_be_sent_and_changes_nothing(
    server: Hub, folder: Path, login: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("me/bdh-my-rhymes: would be made, private\n  config.json")
    assert "value: 2.5" in out
    server.add("me/full", {"x": b"y"}, private=True, readers=("hf_writer",))
    assert main(["push", str(folder), "me/full", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["would"], told["holds"], told["private"]) == ("refuse", ["x"], True)
    assert told["files"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert all(request.method != "POST" for request in server.requests)


def test_without_a_login_it_is_said_how_to_get_one(
    server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["push", str(folder), "me/one"]) == 2
    assert "run hf auth login" in capsys.readouterr().err
    assert main(["push", str(folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("<your name>/bdh-my-rhymes: would be made, private")
