"""The models that the page knows: from the Hub and its cache, with their names, their room and their bounds."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import zoo
from hub_server import MAIN, OTHER, Hub

import bdh
from bdh import checkpoint
from bdh.config import FlatConfig
from bdh.errors import HatcheryError
from ui import models as models_module
from ui import registry as registry_module
from ui.limits import Limits
from ui.models import Shelf
from ui.registry import Registry

OWNER, STRANGER = "browser:somebody", "browser:a stranger"
LARGER = FlatConfig(n_layer=1, n_embd=64, n_head=2, mlp_internal_dim_multiplier=64)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return checkpoint_files(tmp_path, "flat")


def checkpoint_files(tmp_path: Path, kind: str) -> dict[str, bytes]:
    folder = zoo.fresh(kind).save_pretrained(tmp_path / "made" / kind)
    return {name: (folder / name).read_bytes() for name in checkpoint.FILES if (folder / name).is_file()}


def make(tmp_path: Path, **limits: int) -> Registry:
    bounds = Limits(**limits)
    return Registry(tmp_path / "shipped", tmp_path / "data", bounds, "cpu", cache=tmp_path / "cache")


def listed(registry: Registry, owner: str = OWNER) -> dict[str, tuple[str, bool]]:
    return {entry.id: (entry.source, entry.loaded) for entry in registry.entries(owner)}


def test_what_an_earlier_run_loaded_is_listed_and_comes_back_without_the_hub(
    tmp_path: Path, server: Hub, files: dict[str, bytes]
) -> None:
    repo = server.add("user/one", {**files, **{f"small/{name}": data for name, data in files.items()}})
    repo.commits[OTHER], repo.refs["older"] = checkpoint_files(tmp_path, "hebbian"), OTHER
    first = make(tmp_path)
    repo.refs["feature/deep"] = MAIN
    for source in ("user/one", "user/one@main", "user/one:small", "user/one@older", "user/one@feature/deep"):
        first.load_hub(source, OWNER)
    server.status = 503
    again = make(tmp_path)
    assert listed(again) == {
        "user/one": ("Hub: user/one", False),
        "user/one:small": ("Hub: user/one:small", False),
        "user/one@feature/deep": ("Hub: user/one@feature/deep", False),
        "user/one@feature/deep:small": ("Hub: user/one@feature/deep:small", False),
        "user/one@older": ("Hub: user/one@older", False),
    }
    with again.lease("user/one@older", OWNER) as model:
        assert model.config.kind == "hebbian"
    assert again.card("user/one", OWNER) == first.card("user/one", OWNER)


def test_a_cache_full_of_other_things_lists_none_of_them(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, config in {
        "models--user--other": b'{"architectures": ["GPT2LMHeadModel"]}',
        "models--user--broken": b'{"format": "bdh-hatchery/1", "kind": "flat", "n_layer": "many"}',
        "models--user--torn": b"{",
        "models--..--escape": b"{}",
        "datasets--user--data": b"{}",
    }.items():
        folder = cache / name / "snapshots" / OTHER
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes(config)
        (folder / "model.safetensors").write_bytes(b"")
        (cache / name / "refs").mkdir()
        (cache / name / "refs" / "main").write_text(OTHER)
    (cache / "models--user--other" / "refs" / "bad").write_bytes(b"\xff\xfe")
    outside = zoo.fresh("flat").save_pretrained(tmp_path / "outside")
    for branch, text in {"up": "../../../../outside", "absolute": str(outside), "empty": ""}.items():
        (cache / "models--user--other" / "refs" / branch).write_text(text)
    assert listed(make(tmp_path)) == {}


def test_a_broken_checkpoint_in_the_cache_does_not_hide_the_one_beside_it(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--user--two" / "snapshots" / OTHER
    zoo.fresh("flat").save_pretrained(snapshot / "good")
    zoo.fresh("flat").save_pretrained(snapshot / "bad")
    (snapshot / "bad" / "config.json").write_text("{")
    (tmp_path / "cache" / "models--user--two" / "refs").mkdir()
    (tmp_path / "cache" / "models--user--two" / "refs" / "main").write_text(OTHER)
    assert list(listed(make(tmp_path))) == ["user/two:good"]
    assert listed(make(tmp_path, max_state_bytes=10)) == {}


def test_a_repository_is_one_entry_however_it_is_written(tmp_path: Path, server: Hub, files: dict[str, bytes]) -> None:
    server.add("user/one", files)
    registry = make(tmp_path)
    assert registry.load_hub("user/one", OWNER) == registry.load_hub(" user/one ", STRANGER) == "user/one"
    assert listed(registry) == {"user/one": ("Hub: user/one", True)}


def test_a_model_that_was_unloaded_is_in_memory_when_it_is_loaded_again(
    tmp_path: Path, server: Hub, files: dict[str, bytes]
) -> None:
    server.add("user/one", files)
    registry = make(tmp_path)
    registry.load_hub("user/one", OWNER)
    registry.unload("user/one", OWNER)
    assert listed(registry) == {"user/one": ("Hub: user/one", False)}
    registry.load_hub("user/one", OWNER)
    assert listed(registry) == {"user/one": ("Hub: user/one", True)}


def test_a_branch_that_moved_replaces_an_idle_model_and_stands_beside_one_in_use(
    tmp_path: Path, server: Hub, files: dict[str, bytes]
) -> None:
    repo = server.add("user/one", files)
    repo.commits[OTHER] = checkpoint_files(tmp_path, "hebbian")
    registry = make(tmp_path)
    id = registry.load_hub("user/one", OWNER)
    with registry.lease(id, OWNER) as old:
        repo.refs["main"] = OTHER
        newer = registry.load_hub("user/one", OWNER)
        assert newer == f"user/one@{OTHER[:7]}"
        with registry.lease(newer, OWNER) as new, registry.lease(id, OWNER) as same:
            assert new.config.kind == "hebbian" and same is old
    assert registry.load_hub("user/one", OWNER) == id
    with registry.lease(id, OWNER) as new:
        assert new.config.kind == "hebbian"


def test_a_private_model_is_its_owners_alone(tmp_path: Path, server: Hub, files: dict[str, bytes]) -> None:
    server.add("user/secret", files, private=True)
    registry = make(tmp_path)
    id = registry.load_hub("user/secret", OWNER, token="hf_reader")
    assert id in listed(registry) and id not in listed(registry, STRANGER)
    with pytest.raises(HatcheryError, match="was not found"):
        registry.load_hub("user/secret", STRANGER)


def test_nothing_is_locked_while_a_model_that_was_deleted_is_forgotten(tmp_path: Path) -> None:
    zoo.fresh("flat").save_pretrained(tmp_path / "mine")
    registry = make(tmp_path)
    id = registry.load_trained(tmp_path / "mine", "mine", OWNER)
    free = []

    def forget(gone: str) -> None:
        other = threading.Thread(target=lambda: free.append((gone, list(listed(registry)))), daemon=True)
        other.start()
        other.join(120)

    registry.forget = forget
    registry.unload(id, OWNER)
    assert free == [(id, [])], "another thread could not look at the list meanwhile"


def test_the_list_of_shared_models_is_bounded(
    tmp_path: Path, server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_MAX_SHARED", 2)
    for name in ("a", "b", "c"):
        server.add(f"user/{name}", files)
    zoo.fresh("flat").save_pretrained(tmp_path / "shipped" / "flat")
    registry = make(tmp_path)
    registry.load_hub("user/a", OWNER)
    with registry.lease("user/a", OWNER):
        registry.load_hub("user/b", OWNER)
        registry.load_hub("user/c", OWNER)
        assert list(listed(registry)) == ["flat", "user/a", "user/c"]
    assert list(listed(make(tmp_path))) == ["flat", "user/a", "user/b"]


def test_models_on_their_way_count_for_the_room_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        zoo.fresh("flat").save_pretrained(tmp_path / "shipped" / name)
    registry = make(tmp_path, max_models=1)
    begun, finish = threading.Event(), threading.Event()
    load = bdh.load

    def slow(*args: object, **options: object) -> object:
        begun.set()
        assert finish.wait(120)
        return load(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bdh, "load", slow)
    first = threading.Thread(target=registry.acquire, args=("one", OWNER))
    first.start()
    try:
        assert begun.wait(120)
        with pytest.raises(HatcheryError, match="room for 1 models"):
            registry.acquire("two", OWNER)
    finally:
        finish.set()
        first.join(120)
    assert {entry.id: entry.loaded for entry in registry.entries(OWNER)} == {"one": True, "two": False}


def test_a_download_is_stopped_by_its_owner_alone_and_goes_on_where_it_stopped(
    tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "_PROGRESS_S", 0.0)
    folder = bdh.build(LARGER, seed=0).save_pretrained(tmp_path / "larger")
    weights = {name: (folder / name).read_bytes() for name in checkpoint.FILES if (folder / name).is_file()}
    server.add("user/large", weights)
    size = len(weights["model.safetensors"])
    server.cut_after = [size // 2]  # then a connection is made anew, and there progress is told once more
    shelf = Shelf(make(tmp_path))

    def press_stop(part: float, desc: str) -> None:
        shelf.stop(STRANGER)
        shelf.stop(OWNER) if part > 0.4 else None

    with pytest.raises(HatcheryError, match=r"stopped after .* goes on from there"):
        shelf.fetch("user/large", OWNER, None, press_stop)
    assert listed(shelf.registry) == {}
    server.requests.clear()
    assert shelf.fetch("user/large", OWNER, None, lambda part, desc: shelf.stop(STRANGER)) == "user/large"
    assert 0 < server.weight_bytes() < 0.7 * size
