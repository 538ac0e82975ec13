"""What visitors keep on the disk and in memory ends somewhere, and the oldest of it goes first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bdh.config import FlatConfig
from bdh.errors import CheckpointError, ConfigError, HatcheryError, TrainingError
from bdh.models import build
from bdh.sampling import Sampling
from train.child import needed
from train.job import Jobs
from ui import page as pages
from ui.chat import answer
from ui.fetched import make_room
from ui.limits import Limits, hours_text
from ui.registry import Registry
from ui.sessions import Sessions

FLAT = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)


def make(tmp_path: Path, **limits: Any) -> tuple[Registry, Sessions]:
    build(FLAT, seed=1).save_pretrained(tmp_path / "checkpoints" / "one")
    (tmp_path / "data").mkdir()
    bounds = Limits(**limits)
    registry = Registry(tmp_path / "checkpoints", tmp_path / "data", bounds, "cpu")
    return registry, Sessions(registry, tmp_path / "data", bounds)


def test_of_too_many_conversations_the_one_idle_longest_is_forgotten(tmp_path: Path) -> None:
    _, sessions = make(tmp_path, max_conversations=2)
    for owner in ("a", "b"):
        with sessions.use(owner, "one") as conversation:
            list(answer(conversation, "hello", Sampling(max_bytes=2)))
    with sessions.use("a", "one"), sessions.use("c", "one"):
        assert sessions.peek("b", "one") is None and sessions.peek("a", "one") is not None
        with pytest.raises(HatcheryError, match="too many conversations"), sessions.use("d", "one"):
            pass
    assert sessions.live_count() == 2


def test_what_was_said_long_ago_stays_in_the_memory_alone(tmp_path: Path) -> None:
    _, sessions = make(tmp_path, max_said_bytes=400)
    with sessions.use("a", "one") as conversation:
        for index in range(20):
            list(answer(conversation, f"message {index} of many", Sampling(max_bytes=10)))
            assert sum(turn.size_bytes for turn in conversation.turns) < 600
        assert conversation.live.position_bytes > 600 and "remembered" in conversation.base_text
        assert 1 < len(conversation.turns) < 10


def test_one_visitor_uploads_so_many_models(tmp_path: Path) -> None:
    registry, _ = make(tmp_path, max_uploads_each=2)
    files = [str(tmp_path / "checkpoints" / "one" / name) for name in ("config.json", "model.safetensors")]
    ids = [registry.load_files(files, "a") for _ in range(2)]
    with pytest.raises(CheckpointError, match="you have 2 uploaded models"):
        registry.load_files(files, "a")
    registry.load_files(files, "b")
    registry.unload(ids[0], "a")
    registry.load_files(files, "a")


def test_runs_take_no_more_of_the_disk_than_stated(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "runs", at_once=0, watch=False, most_bytes=10_000)
    with jobs.draft("a") as (_, given):
        (given / "mine.txt").write_bytes(bytes(10_001))
    with pytest.raises(TrainingError, match="the runs of all visitors take"), jobs.draft("b"):
        pass


def fetched(cache: Path, name: str, when: float, size: int = 1000) -> Path:
    repo = cache / f"models--user--{name}"
    (repo / "snapshots" / "a").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "x").write_bytes(bytes(size))
    os.utime(repo / "snapshots" / "a", (when, when))
    return repo


def test_models_from_the_hub_make_room_unless_they_are_used(tmp_path: Path) -> None:
    size = 50_000  # folders take some bytes, too
    old, used, young = (fetched(tmp_path, name, when, size) for name, when in (("c", 1), ("b", 2), ("a", 3)))
    (tmp_path / "datasets--user--d").mkdir()
    assert make_room(tmp_path, 4 * size, lambda repo: False) == []
    assert make_room(tmp_path, 2 * size + 40_000, lambda repo: repo == used) == [old]
    assert make_room(tmp_path, size + 40_000, lambda repo: repo == used) == [young]
    with pytest.raises(CheckpointError, match="no room for more models"):
        make_room(tmp_path, size // 2, lambda repo: True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datasets--user--d", "models--user--b"]


def test_what_a_stranger_trains_knows_no_secret_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = (
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OAUTH_CLIENT_SECRET", "MY_API_KEY", "DB_PASSWORD", "DATABASE_URL",
        "GITHUB_PAT", "SLACK_WEBHOOK", "SSH_AUTH_SOCK", "PGPASSFILE", "TORCH_UPLOAD_TOKEN", "PATH_OF_THE_VAULT",
    )  # fmt: skip
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub")
    told = pages._of_runs(Limits(public=True))
    assert "secret" not in told.values() and told["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    assert (told["PATH"], told["HF_ENDPOINT"]) == (os.environ["PATH"], "http://hub")
    assert pages._of_runs(Limits())["HF_TOKEN"] == "secret"  # at home it is its owner's run


def test_what_a_stranger_trains_is_told_of_devices_compilers_caches_and_the_proxy_and_of_no_secret_among_them() -> None:
    told = {
        "ROCM_PATH": "/opt/rocm", "MIOPEN_USER_DB_PATH": "/m", "GPU_DEVICE_ORDINAL": "1", "HIP_VISIBLE_DEVICES": "0",
        "CC": "clang", "CXX": "clang++", "CPATH": "/i", "C_INCLUDE_PATH": "/j", "LIBRARY_PATH": "/l", "INCLUDE": "i",
        "LIB": "l", "ProgramFiles": "C:\\P", "ProgramFiles(x86)": "C:\\Q", "ProgramW6432": "C:\\P",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "MPLCONFIGDIR": "/c", "MPLBACKEND": "agg", "HUGGINGFACE_HUB_CACHE": "/h",
        "ACCELERATE_USE_CPU": "true", "HTTPS_PROXY": "http://user:password@proxy:3128",
    }  # fmt: skip
    kept_back = (
        "ROCM_TOKEN", "MIOPEN_SECRET", "ACCELERATE_API_KEY", "ACCELERATE_PASSWD", "CUDA_REGISTRY_AUTH", "CCACHE_SECRET",
        "LIBRARY", "INCLUDES", "MPL_TOKEN", "HUGGINGFACE_HUB_TOKEN", "CUBLAS_PASSPHRASE", "GPU_DEVICE_ORDINAL_2",
        "PROGRAMFILES_LOGIN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY_PASSWORD",
    )  # fmt: skip
    assert needed(told | dict.fromkeys(kept_back, "secret")) == told


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("BDH_SERVED_HOURS", "soon", "BDH_SERVED_HOURS is 'soon'; it must be a number of hours, such as 2 or 0.5"),
        ("BDH_SERVED_HOURS", "0.5e3", "a number of hours"),
        ("BDH_SERVED_HOURS", "nan", "a number of hours"),
        ("BDH_SERVED_HOURS", "-1", "a number of hours"),
        ("BDH_SERVED_HOURS", "0.0", "served_hours is 0.0; it must be a number above 0"),
        ("BDH_MAX_MODELS", "1.5", "BDH_MAX_MODELS is '1.5'; it must be a whole number"),
        ("BDH_MAX_MODELS", "0", "max_models is 0; it must be at least 1"),
        ("BDH_MCP", "maybe", "BDH_MCP is 'maybe'; it must be true or false"),
    ],
)
def test_a_limit_that_is_none_is_refused_in_words(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Limits.from_environment({name: text})


def test_hours_may_be_parts_of_one_and_are_said_as_a_person_says_them() -> None:
    assert Limits.from_environment({"BDH_SERVED_HOURS": "0.05", "BDH_RUNS_HOURS": ".5"}).served_hours == 0.05
    told = [hours_text(hours) for hours in (48, 1, 2.5, 0.05, 0.002, 1_000)]
    assert told == ["48 hours", "1 hour", "2.5 hours", "3 minutes", "7.2 seconds", "1,000 hours"]
