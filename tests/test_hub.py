"""The Hub through its real client, against a local server that speaks its protocol."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import MAIN, OTHER, Hub
from huggingface_hub import constants
from safetensors.torch import save
from zoo import FLAT, fresh

import bdh
from bdh import checkpoint, hub, publish
from bdh.config import FlatConfig
from bdh.errors import CheckpointError, HatcheryError
from train.sources import Text, prepare

LARGER = FlatConfig(n_layer=1, n_embd=64, n_head=2, mlp_internal_dim_multiplier=64)
"""About a megabyte, so that a connection can be cut in its middle."""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = fresh("flat").save_pretrained(tmp_path / "made", provenance={"recipe": "test"})
    return {name: (folder / name).read_bytes() for name in checkpoint.FILES}


@pytest.fixture
def larger(tmp_path: Path) -> dict[str, bytes]:
    folder = bdh.build(LARGER, seed=0).save_pretrained(tmp_path / "larger")
    return {name: (folder / name).read_bytes() for name in checkpoint.FILES}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def assert_is_flat(model: bdh.Model[Any]) -> None:
    expected = fresh("flat").state_dict()
    assert model.config == FLAT
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def error(source: str, cache: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        bdh.load(source, cache_dir=cache, device="cpu", **options)
    return str(caught.value)


def test_a_public_checkpoint_is_found_and_pinned_to_its_commit(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/bird", files)
    seen: list[tuple[int, int]] = []
    model = bdh.load(
        "user/bird", cache_dir=cache, device="cpu", progress=lambda done, total: seen.append((done, total))
    )
    assert_is_flat(model)
    size = len(files["model.safetensors"])
    assert seen[0] == (0, size) and seen[-1] == (size, size) and seen == sorted(seen)
    assert model.origin is not None
    assert (model.origin.repo_id, model.origin.revision) == ("user/bird", MAIN)
    assert model.origin.provenance == {"recipe": "test"}
    assert checkpoint.read_card(model.origin.folder or "").startswith("---\nlibrary_name: bdh-hatchery")
    downloads = [r for r in server.requests if "/resolve/" in r.path]
    assert downloads and all(f"/resolve/{MAIN}/" in r.path for r in downloads)


def test_from_pretrained_reads_the_hub_as_load_does(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/bird", files)
    assert_is_flat(bdh.Model.from_pretrained("user/bird", cache_dir=cache, device="cpu"))
    assert_is_flat(bdh.Flat.from_pretrained("user/bird", revision="main", cache_dir=cache, device="cpu"))


def test_another_kind_is_refused_before_its_weights_are_downloaded(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/bird", files)
    with pytest.raises(CheckpointError, match=r"is a flat model and no hebbian one; use Flat\.from_pretrained"):
        bdh.Hebbian.from_pretrained("user/bird", cache_dir=cache, device="cpu")
    assert server.weight_bytes() == 0


def test_a_second_load_downloads_nothing_but_asks_again(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/bird", files)
    bdh.load("user/bird", cache_dir=cache, device="cpu")
    server.requests.clear()
    assert_is_flat(bdh.load("user/bird", cache_dir=cache, device="cpu"))
    assert sum(request.body_bytes for request in server.requests) == 0
    assert [r.path.rsplit("/", 1)[-1] for r in server.requests if r.method == "HEAD"] == [
        "config.json",
        "model.safetensors",
    ]


def test_revisions_and_subfolders_lead_to_other_files(server: Hub, files: Any, larger: Any, cache: Path) -> None:
    repo = server.add("user/bird", {f"small/deep/{name}": data for name, data in files.items()})
    repo.commits[OTHER] = dict(larger)
    repo.refs["v1"] = OTHER
    assert_is_flat(bdh.load("user/bird:small/deep", cache_dir=cache, device="cpu"))
    tagged = bdh.load("user/bird@v1", cache_dir=cache, device="cpu")
    assert tagged.config == LARGER and tagged.origin is not None and tagged.origin.revision == OTHER
    assert_is_flat(bdh.load(f"user/bird@{MAIN}:small/deep", cache_dir=cache, device="cpu"))
    apart = bdh.Model.from_pretrained("user/bird", revision="main", subfolder="small/deep", cache_dir=cache)
    assert apart.config == FLAT


def test_a_moved_branch_brings_the_new_files(server: Hub, files: Any, larger: Any, cache: Path) -> None:
    repo = server.add("user/bird", files)
    bdh.load("user/bird", cache_dir=cache, device="cpu")
    repo.commits[OTHER] = dict(larger)
    repo.refs["main"] = OTHER
    assert bdh.load("user/bird", cache_dir=cache, device="cpu").config == LARGER
    assert bdh.load("user/bird", cache_dir=cache, device="cpu", offline=True).config == LARGER


def test_a_missing_repository_is_said_to_be_missing_or_private(server: Hub, cache: Path) -> None:
    text = error("user/nothing", cache)
    assert "'user/nothing' was not found on the Hub" in text and "give a token if it is private" in text


def test_a_private_repository_opens_with_a_token_alone(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/secret", files, private=True)
    assert "give a token if it is private" in error("user/secret", cache)
    assert "this token may not read it" in error("user/secret", cache, token="hf_stranger")
    assert_is_flat(bdh.load("user/secret", cache_dir=cache, device="cpu", token="hf_reader"))
    # What one token brought into the cache is not shown to those without it.
    assert "was not found" in error("user/secret", cache)
    assert "was not found" in error("user/secret", cache, offline=False)


def test_a_gated_repository_says_where_to_accept_its_terms(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/gate", files, gated=True)
    for token in (None, "hf_stranger"):
        text = error("user/gate", cache, token=token)
        assert "is gated" in text and f"{server.endpoint}/user/gate" in text
    assert_is_flat(bdh.load("user/gate", cache_dir=cache, device="cpu", token="hf_reader"))
    assert "is gated" in error("user/gate", cache)


def test_the_token_of_this_machine_is_used_only_when_asked_for(
    server: Hub, files: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    server.add("user/secret", files, private=True)
    error("user/secret", cache)
    error("user/secret", cache, token="")
    assert {request.token for request in server.requests} == {None}
    assert_is_flat(bdh.load("user/secret", cache_dir=cache, device="cpu", token=True))


@pytest.mark.parametrize("token", ["hf_a b", "hf_a\n", "hf_é", "x" * 2000])
def test_a_token_that_is_none_is_refused_and_not_repeated(server: Hub, files: Any, cache: Path, token: str) -> None:
    server.add("user/bird", files)
    text = error("user/bird", cache, token=token)
    assert "characters that no token has" in text and token not in text
    assert server.requests == []


def test_a_server_that_is_not_the_hub_is_recognised(server: Hub, cache: Path) -> None:
    server.status = 200
    assert "does not answer as the Hub does" in error("user/bird", cache)


def test_the_content_network_never_sees_a_token(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/secret", files, private=True)
    bdh.load("user/secret", cache_dir=cache, device="cpu", token="hf_reader")
    assert {r.token for r in server.requests if r.path.startswith("/cdn/")} == {None}
    assert {r.token for r in server.requests if not r.path.startswith("/cdn/")} == {"hf_reader"}


def test_a_wrong_revision_is_named(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/bird", files)
    assert "'user/bird' has no revision 'v9'" in error("user/bird@v9", cache)


def test_a_repository_without_weights_says_what_it_holds(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/empty", {"README.md": b"nothing"})
    assert "holds no model.safetensors" in error("user/empty", cache)
    server.add("user/pickled", {"pytorch_model.bin": b"\x80\x02"})
    assert "It holds 'pytorch_model.bin': download that file" in error("user/pickled", cache)
    assert "holds no model.safetensors" in error("user/empty:deeper", cache)


def test_an_offline_load_takes_what_the_cache_has(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/bird", files)
    assert "is not in the cache" in error("user/bird", cache, offline=True)
    bdh.load("user/bird", cache_dir=cache, device="cpu")
    server.requests.clear()
    model = bdh.load("user/bird", cache_dir=cache, device="cpu", offline=True)
    assert_is_flat(model)
    assert model.origin is not None and model.origin.revision == MAIN
    assert_is_flat(bdh.load(f"user/bird@{MAIN}", cache_dir=cache, device="cpu", offline=True))
    assert "is not in the cache" in error("user/bird@v1", cache, offline=True)
    assert server.requests == []


@pytest.mark.parametrize("failure", ["nobody listens", "error 503"])
def test_an_unreachable_hub_falls_back_to_the_cache_unless_told_not_to(
    server: Hub, files: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    server.add("user/bird", files)
    bdh.load("user/bird", cache_dir=cache, device="cpu")
    if failure == "nobody listens":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        server.status = 503
    assert_is_flat(bdh.load("user/bird", cache_dir=cache, device="cpu"))
    assert "the Hub cannot be reached, and it is not in the cache" in error("user/other", cache)
    text = error("user/bird", cache, offline=False)
    assert "cannot be reached" in text if failure == "nobody listens" else "answers with error 503" in text


def test_offline_mode_of_the_environment_is_obeyed(
    server: Hub, files: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("user/bird", files)
    bdh.load("user/bird", cache_dir=cache, device="cpu")
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_is_flat(bdh.load("user/bird", cache_dir=cache, device="cpu"))
    assert "offline mode is on" in error("user/other", cache)
    assert "HF_HUB_OFFLINE" in error("user/bird", cache, offline=False)
    assert server.requests == []


def test_a_download_cut_in_the_middle_goes_on_by_itself(server: Hub, larger: Any, cache: Path) -> None:
    server.add("user/bird", larger)
    size = len(larger["model.safetensors"])
    server.cut_after = [300_000, 200_000]
    assert bdh.load("user/bird", cache_dir=cache, device="cpu").config == LARGER
    # A header of under 4 KiB is read first; beyond it not one byte is sent twice.
    assert size <= server.weight_bytes() <= size + 4096


def test_a_download_that_failed_is_resumed_by_the_next_call(server: Hub, larger: Any, cache: Path) -> None:
    server.add("user/bird", larger)
    size = len(larger["model.safetensors"])
    server.cut_after = [300_000, 0, 0, 0]
    text = error("user/bird", cache)
    assert f"the connection was cut after 300,000 of {size:,} bytes; try again" in text
    server.requests.clear()
    seen: list[int] = []
    model = bdh.load("user/bird", cache_dir=cache, device="cpu", progress=lambda done, total: seen.append(done))
    assert model.config == LARGER
    assert seen[0] == 300_000
    rest = [r for r in server.requests if r.range == f"bytes=300000-{size - 1}" and r.path.startswith("/cdn/")]
    assert [r.body_bytes for r in rest] == [size - 300_000]
    assert server.weight_bytes() <= size - 300_000 + 4096
    assert not list(cache.rglob("*.incomplete"))


def test_a_download_stopped_by_its_progress_is_resumed_too(server: Hub, larger: Any, cache: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 300_000:
            raise Stopped

    server.add("user/bird", larger)
    with pytest.raises(Stopped):
        bdh.load("user/bird", cache_dir=cache, device="cpu", progress=stop)
    server.requests.clear()
    assert bdh.load("user/bird", cache_dir=cache, device="cpu").config == LARGER
    assert server.weight_bytes() <= len(larger["model.safetensors"]) - 300_000 + 4096


def test_a_server_without_ranges_is_read_from_the_start(server: Hub, larger: Any, cache: Path) -> None:
    server.add("user/bird", larger)
    server.ignore_range = True
    server.cut_after = [1 << 30, 1 << 30, 300_000]
    assert bdh.load("user/bird", cache_dir=cache, device="cpu").config == LARGER


def test_damaged_bytes_are_noticed_and_not_kept(server: Hub, larger: Any, cache: Path) -> None:
    server.add("user/bird", larger)

    def corrupt(done: int, total: int) -> None:
        server.corrupt = True

    assert "was damaged on its way" in error("user/bird", cache, progress=corrupt)
    server.corrupt = False
    assert not list(cache.rglob("*.incomplete"))
    assert bdh.load("user/bird", cache_dir=cache, device="cpu").config == LARGER


def test_a_full_disk_is_seen_before_the_download(
    server: Hub, larger: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("user/bird", larger)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100_000))
    text = error("user/bird", cache)
    assert "no space left" in text and f"{len(larger['model.safetensors']):,} bytes more, and 100,000 are free" in text
    assert server.weight_bytes() <= 4096


def test_a_disk_that_fills_during_the_download_gets_its_room_back(
    server: Hub, larger: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("user/bird", larger)

    def full(done: int, total: int) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")

    assert "no space left for the download" in error("user/bird", cache, progress=full)
    assert not list(cache.rglob("*.incomplete"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_truly_full_disk_is_reported(server: Hub, larger: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(cache)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        server.add("user/bird", larger)
        assert "no space left" in error("user/bird", cache)
        usage = shutil.disk_usage(cache)
        monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
        assert "no space left for the download" in error("user/bird", cache)
        assert not list(cache.rglob("*.incomplete"))
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_weights_that_do_not_fit_are_refused_before_they_are_downloaded(server: Hub, larger: Any, cache: Path) -> None:
    config = json.loads(larger["config.json"]) | {"n_embd": 32, "mlp_internal_dim_multiplier": 128}
    server.add("user/bird", larger | {"config.json": json.dumps(config).encode()})
    assert "its configuration asks for" in error("user/bird", cache)
    assert server.weight_bytes() <= 4096


def test_a_configuration_that_asks_for_too_much_is_refused_before_anything_is_downloaded(
    server: Hub, larger: Any, cache: Path
) -> None:
    config = json.loads(larger["config.json"]) | {"n_embd": 16384, "mlp_internal_dim_multiplier": 65536}
    server.add("user/bird", larger | {"config.json": json.dumps(config).encode()})
    assert "52,776,566,521,856 parameters; at most 4,000,000,000" in error("user/bird", cache)
    assert server.weight_bytes() == 0


def test_sizes_are_bounded_by_what_the_caller_allows(server: Hub, larger: Any, cache: Path) -> None:
    server.add("user/bird", larger)
    assert "at most 1,000 are allowed" in error("user/bird", cache, max_parameters=1000)
    with pytest.raises(CheckpointError, match="at most 100,000 are downloaded"):
        hub.fetch("user/bird", cache_dir=cache, max_bytes=100_000)
    server.add("user/fat", larger | {"config.json": b" " * (checkpoint.MAX_TEXT_BYTES + 1)})
    assert "at most 1,048,576 are read" in error("user/fat", cache)
    assert server.weight_bytes() == 0


def test_foreign_safetensors_are_converted(server: Hub, cache: Path) -> None:
    model = fresh("flat")
    theirs = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "vocab_size": 256}
    weights = save({f"module.{name}": tensor for name, tensor in model.state_dict().items()})
    server.add("user/theirs", {"config.json": json.dumps(theirs).encode(), "weights.safetensors": weights})
    loaded = bdh.load("user/theirs", cache_dir=cache, device="cpu")
    ids = torch.arange(32)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.origin is not None and loaded.origin.repo_id == "user/theirs"
    with pytest.raises(CheckpointError, match="another project's"):
        bdh.Model.from_pretrained("user/theirs", cache_dir=cache)


def test_two_threads_that_want_the_same_weights_download_them_once(server: Hub, larger: Any, cache: Path) -> None:
    server.add("user/bird", larger)
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(lambda _: bdh.load("user/bird", cache_dir=cache, device="cpu"), range(3)))
    assert [model.config for model in models] == [LARGER] * 3
    full = [r for r in server.requests if r.path.startswith("/cdn/") and r.body_bytes > 4096]
    assert len(full) == 1


def test_the_endpoint_of_the_environment_is_used_by_a_new_process(server: Hub, files: Any, cache: Path) -> None:
    server.add("user/bird", files)
    code = """
import sys, bdh
print(bdh.load("user/bird", cache_dir=sys.argv[1], device="cpu").origin.revision)
assert "sympy" not in sys.modules, "laying out a model without storage made torch import its compiler: seconds"
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)], capture_output=True, text=True, env={**os.environ}, check=True
    )
    assert done.stdout.strip() == MAIN


def test_publishing_sends_the_four_files_of_a_checkpoint(server: Hub, cache: Path) -> None:
    model = fresh("flat")
    url = model.push_to_hub("me/mine", token="hf_writer", provenance={"recipe": "mine"})
    assert url == f"{server.endpoint}/me/mine/commit/{OTHER}"
    repo = server.repos["me/mine"]
    assert repo.private
    assert sorted(repo.commits[OTHER]) == sorted([*checkpoint.FILES, ".gitattributes"])
    assert_is_flat(bdh.load("me/mine", cache_dir=cache, device="cpu", token="hf_writer"))


def test_saving_can_publish_and_leaves_strange_files_behind(server: Hub, tmp_path: Path) -> None:
    folder = fresh("flat").save_pretrained(tmp_path / "mine", push_to_hub=True, token="hf_writer", private=False)
    assert not server.repos["me/mine"].private
    (folder / "diary.txt").write_text("not for the world")
    publish.upload(folder, "me/again", token="hf_writer", revision="draft")
    assert sorted(server.repos["me/again"].commits[OTHER]) == sorted([*checkpoint.FILES, ".gitattributes"])
    assert server.repos["me/again"].refs == {"main": MAIN, "draft": OTHER}


def test_publishing_without_the_right_to_is_explained(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = fresh("flat")
    with pytest.raises(CheckpointError, match="the Hub refuses the token"):
        model.push_to_hub("me/mine", token="hf_reader")
    with pytest.raises(CheckpointError, match="is no name on the Hub"):
        model.push_to_hub("me/../mine", token="hf_writer")
    monkeypatch.setenv("SPACE_ID", "owner/space")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    for token in (None, True):
        with pytest.raises(CheckpointError, match="needs the token of the one who publishes"):
            model.push_to_hub("me/mine", token=token)
    assert "me/mine" not in server.repos


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("user/repo", ("user/repo", None, "")),
        ("user/repo@v1.0", ("user/repo", "v1.0", "")),
        ("user/repo@refs/pr/3", ("user/repo", "refs/pr/3", "")),
        ("user/repo:a/b c", ("user/repo", None, "a/b c")),
        (" user/repo@main:a ", ("user/repo", "main", "a")),
    ],
)
def test_a_source_is_read_in_its_parts(text: str, parts: tuple[str, str | None, str]) -> None:
    source = hub.parse_source(text)
    assert (source.repo_id, source.revision, source.subfolder) == parts and source.path is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "repo",
        "a/b/c",
        "../x",
        "user/..",
        "user/repo@../../main",
        "user/repo@main:../x",
        "user/repo:/etc",
        "user/repo:a/../../b",
        "user/repo:a//b",
        "user/repo:.hidden",
        "user/repo:a\\b",
        "user\\repo",
        "user/re\x00po",
        "user/re\npo",
        "user/repo@",
        "user/repo@a//b",
        "user/repo@/a",
        "user/repo@main.lock",
        "user/-repo",
        "user/" + "r" * 100,
        "x" * 5000,
        "https://example.org/user/repo",
    ],
)
def test_tricks_with_paths_are_no_source(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where none of these lies
    with pytest.raises(CheckpointError):
        hub.parse_source(text)


def test_a_path_wins_over_the_hub_unless_a_stranger_typed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "repo").mkdir(parents=True)
    assert hub.parse_source("user/repo").path == Path("user/repo")
    assert hub.parse_source("user/repo", local=False).repo_id == "user/repo"
    with pytest.raises(CheckpointError, match="must be user/repo"):
        hub.parse_source(str(tmp_path), local=False)


@pytest.mark.parametrize("address", ["http://{}@127.0.0.1:9", "socks9://{}@127.0.0.1:9", "http://{}@a b"])
def test_what_a_proxy_spoils_is_said_without_the_login_that_it_asks_for(
    address: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, address.format("me:hunter2"))
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(hub, "_PAUSE_S", 0.0)
    huggingface_hub.close_session()  # the next one reads the environment
    try:
        said = error("user/model", cache)
        with pytest.raises(HatcheryError) as caught:
            prepare(Text(name="mine", dataset="user/lines"), tmp_path, offline=False)
    finally:
        huggingface_hub.close_session()
    for text in (said, str(caught.value)):
        assert re.search("cannot be reached|cannot be read|Unknown scheme", text) and "hunter2" not in text
