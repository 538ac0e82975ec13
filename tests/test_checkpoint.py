"""Checkpoints: what is written is read, whole or not at all."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from zoo import FLAT, HEBBIAN, ZOO, fresh, model, text

import bdh
from bdh import checkpoint
from bdh.device import pick_device
from bdh.errors import CheckpointError, DataError
from bdh.models.base import expected_shapes


def assert_same_weights(left: bdh.Model[Any], right: bdh.Model[Any]) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert left.config == right.config and ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder = bdh.save(model(name), tmp_path / "kept", provenance={"recipe": name})
    loaded = bdh.load(folder, device="cpu")
    assert_same_weights(loaded, model(name))
    assert type(loaded) is type(model(name)) and not loaded.training
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model(name).parameters()]
    assert torch.equal(loaded(text(20)).logits, model(name)(text(20)).logits)
    assert loaded.origin == bdh.Origin(str(folder), folder=folder, provenance={"recipe": name})


@pytest.mark.parametrize("name", ["flat", "hierarchical", "deep"])
def test_bfloat16_keeps_the_frequencies_and_reads_back_as_either_type(name: str, tmp_path: Path) -> None:
    folder = fresh(name).save_pretrained(tmp_path / "short", dtype=torch.bfloat16)
    header = checkpoint.read_header(folder / "model.safetensors")
    assert {dtype for key, (dtype, _) in header.items() if not key.endswith("attn.freqs")} == {"BF16"}
    assert {dtype for key, (dtype, _) in header.items() if key.endswith("attn.freqs")} == {"F32"}
    short, long = bdh.load(folder, device="cpu", dtype=torch.bfloat16), bdh.load(folder, device="cpu")
    assert short.dtype == torch.bfloat16 and long.dtype == torch.float32
    for key, tensor in fresh(name).state_dict().items():
        rounded = tensor if key.endswith("attn.freqs") else tensor.bfloat16()
        assert torch.equal(short.state_dict()[key], rounded)
        assert torch.equal(long.state_dict()[key], rounded.float())
    assert short(text(8)).logits.isfinite().all()
    assert checkpoint.weights_checksum(short.state_dict()) == checkpoint.weights_checksum(long.state_dict())


def test_the_folder_is_what_other_tools_expect(tmp_path: Path) -> None:
    folder = fresh("flat").save_pretrained(tmp_path / "kept", card="# Mine\n", provenance={"data": "abc"})
    assert sorted(os.listdir(folder)) == sorted(checkpoint.FILES)
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 1 and config["kind"] == "flat" and config["n_embd"] == 16
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: bdh-hatchery\npipeline_tag: text-generation\nlicense: unknown\n")
    assert card.endswith("---\n\n# Mine\n")
    assert checkpoint.read_card(folder) == card
    assert json.loads((folder / "provenance.json").read_text()) == {"data": "abc"} == checkpoint.read_provenance(folder)
    modes = {(folder / name).stat().st_mode for name in checkpoint.FILES}
    assert len(modes) == 1
    fresh("flat").save_pretrained(folder, card="---\nlicense: apache-2.0\n---\nTheirs\n")
    theirs = checkpoint.read_card(folder)
    assert "\nlicense: apache-2.0\n" in theirs and theirs.endswith("---\n\nTheirs\n")


def test_a_loaded_model_does_not_depend_on_the_file(tmp_path: Path) -> None:
    folder = fresh("flat").save_pretrained(tmp_path / "kept")
    loaded = bdh.load(folder, device="cpu")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(0)
    assert_same_weights(loaded, fresh("flat"))


def test_a_class_builds_its_own_kind_and_the_base_builds_any(tmp_path: Path) -> None:
    folder = fresh("hebbian").save_pretrained(tmp_path / "kept")
    assert isinstance(bdh.Model.from_pretrained(folder, device="cpu"), bdh.Hebbian)
    assert isinstance(bdh.Hebbian.from_pretrained(str(folder), device="cpu"), bdh.Hebbian)
    with pytest.raises(CheckpointError, match=r"is a hebbian model and no flat one; use Hebbian\.from_pretrained"):
        bdh.Flat.from_pretrained(folder, device="cpu")


def test_a_subfolder_and_a_file_of_a_checkpoint_lead_to_it(tmp_path: Path) -> None:
    folder = fresh("flat").save_pretrained(tmp_path / "kept")
    assert_same_weights(bdh.Model.from_pretrained(tmp_path, subfolder="kept", device="cpu"), fresh("flat"))
    assert_same_weights(bdh.load(folder / "model.safetensors", device="cpu"), fresh("flat"))
    with pytest.raises(CheckpointError, match="plain names"):
        bdh.Model.from_pretrained(folder, subfolder="../kept")
    with pytest.raises(CheckpointError, match="has no revision"):
        bdh.Model.from_pretrained(folder, revision="main")
    with pytest.raises(CheckpointError, match=r"a checkpoint is a folder, and bdh\.load takes files too"):
        bdh.Model.from_pretrained(folder / "model.safetensors")


def test_foreign_weights_in_a_folder_are_converted(tmp_path: Path) -> None:
    theirs = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "vocab_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    named = {f"_orig_mod.{name}": tensor for name, tensor in fresh("flat").state_dict().items()}
    save_file(named, tmp_path / "weights.safetensors")
    for source in (tmp_path, tmp_path / "weights.safetensors"):
        loaded = bdh.load(source, device="cpu")
        assert_same_weights(loaded, fresh("flat"))
        assert loaded.origin is not None and loaded.origin.folder == tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match="numbers; at most 100 parameters"):
        bdh.load(tmp_path, device="cpu", max_parameters=100)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        bdh.load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="does not exist"):
        bdh.Model.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        bdh.load(tmp_path)
    folder = fresh("flat").save_pretrained(tmp_path / "kept")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        bdh.load(folder)
    assert checkpoint.read_provenance(tmp_path) == {} and checkpoint.read_card(tmp_path) == ""


def test_only_checkpoints_are_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no checkpoint; choose a new or empty folder"):
        fresh("flat").save_pretrained(other)
    file = tmp_path / "file"
    file.write_text("a file")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        fresh("flat").save_pretrained(file)
    kept = fresh("flat").save_pretrained(tmp_path / "kept")
    (kept / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"also holds 'notes\.txt'"):
        fresh("hebbian").save_pretrained(kept)
    assert (other / "thesis.tex").read_text() == "years of work" and file.read_text() == "a file"
    assert checkpoint.read_config(kept) == FLAT
    empty = tmp_path / "empty"
    empty.mkdir()
    fresh("flat").save_pretrained(empty)
    fresh("hebbian").save_pretrained(empty)
    assert checkpoint.read_config(empty) == HEBBIAN


def test_a_link_to_a_checkpoint_is_followed(tmp_path: Path) -> None:
    kept = fresh("flat").save_pretrained(tmp_path / "kept")
    link = tmp_path / "link"
    link.symlink_to(kept, target_is_directory=True)
    fresh("hebbian").save_pretrained(link)
    assert link.is_symlink() and checkpoint.read_config(kept) == HEBBIAN == checkpoint.read_config(link)


def test_ruined_weights_do_not_replace_good_ones(tmp_path: Path) -> None:
    kept = fresh("flat").save_pretrained(tmp_path / "kept")
    ruined = fresh("flat")
    with torch.no_grad():
        ruined.encoder[0, 0, 0] = torch.inf
    with pytest.raises(CheckpointError, match="encoder in the model holds values that are not finite"):
        ruined.save_pretrained(kept)
    with pytest.raises(CheckpointError, match="provenance must be JSON values"):
        fresh("flat").save_pretrained(kept, provenance={"loss": float("nan")})
    with pytest.raises(CheckpointError, match=r"README\.md would be above"):
        fresh("flat").save_pretrained(kept, card="x" * (1 << 20))
    assert_same_weights(bdh.load(kept, device="cpu"), fresh("flat"))
    assert os.listdir(tmp_path) == ["kept"]


class Killed(BaseException):
    """The end of a process, as far as one can be had inside a test."""


_OS_CALLS: list[tuple[Any, str]] = [
    (os, "mkdir"),
    (os, "rename"),
    (os, "open"),
    (os, "fsync"),
    (os, "chmod"),
    (os, "listdir"),
    (os, "rmdir"),
    (os, "unlink"),
    (io, "open"),
    (builtins, "open"),
    (shutil, "rmtree"),
    (checkpoint, "save_file"),
]


def killed_at(call: int, action: Callable[[], object]) -> bool:
    """Run `action` in a process that dies at its `call`-th system call; whether it lived to the end."""
    count = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count >= call:  # the dead do not clean up either
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for module, name in _OS_CALLS:
            patch.setattr(module, name, dying(getattr(module, name)))
        try:
            action()
        except Killed:
            return False
    return True


def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    old, new = fresh("flat"), fresh("flat", seed=1)
    sums = [checkpoint.weights_checksum(kind.state_dict()) for kind in (old, new)]
    found = []
    call = 0
    while True:
        call += 1
        folder = tmp_path / str(call) / "kept"
        old.save_pretrained(folder, provenance={"which": sums[0]})
        lived = killed_at(call, lambda: new.save_pretrained(folder, provenance={"which": sums[1]}))  # noqa: B023
        loaded = bdh.load(folder, device="cpu")
        assert loaded.origin is not None
        found.append(checkpoint.weights_checksum(loaded.state_dict()))
        assert loaded.origin.provenance == {"which": found[-1]}
        assert sorted(os.listdir(folder)) == sorted(checkpoint.FILES)
        # Whatever was left behind does not hinder the next one, nor does it stay for ever.
        checkpoint._STALE_S, patience = -1.0, checkpoint._STALE_S
        new.save_pretrained(folder, provenance={"which": sums[1]})
        checkpoint._STALE_S = patience
        assert os.listdir(folder.parent) == ["kept"]
        assert_same_weights(bdh.load(folder, device="cpu"), new)
        if lived:
            break
    assert call > 20 and found == sorted(found, key=sums.index) and set(found) == set(sums)


def test_a_kill_during_the_first_write_leaves_a_checkpoint_or_nothing(tmp_path: Path) -> None:
    call, lived = 0, False
    while not lived:
        call += 1
        folder = tmp_path / str(call) / "kept"
        lived = killed_at(call, lambda: fresh("flat").save_pretrained(folder))  # noqa: B023
        if folder.exists():
            assert_same_weights(bdh.load(folder, device="cpu"), fresh("flat"))
    assert folder.exists() and call > 15


@pytest.mark.parametrize("call", ["rename", "fsync", "mkdir"])
def test_a_disk_that_refuses_leaves_the_old_checkpoint(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fresh("flat").save_pretrained(tmp_path / "kept")
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: Any, **__: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(CheckpointError, match=r"could not be written \(no space left\); what stood there before"):
            fresh("hebbian").save_pretrained(folder)
    assert_same_weights(bdh.load(folder, device="cpu"), fresh("flat"))
    assert os.listdir(tmp_path) == ["kept"]


def test_readers_and_two_writers_of_one_folder_see_whole_checkpoints(tmp_path: Path) -> None:
    kinds = {"flat": fresh("flat"), "hebbian": fresh("hebbian")}
    folder = tmp_path / "kept"
    kinds["flat"].save_pretrained(folder, provenance={"kind": "flat"})
    stop, failures = threading.Event(), []

    def write(kind: str) -> None:
        while not stop.is_set():
            try:
                kinds[kind].save_pretrained(folder, provenance={"kind": kind})
            except Exception as error:
                failures.append(error)

    writers = [threading.Thread(target=write, args=(kind,)) for kind in kinds]
    for writer in writers:
        writer.start()
    try:
        seen = set()
        for _ in range(60):
            config, tensors, provenance = checkpoint.read(folder, expected_shapes)
            assert provenance == {"kind": config.kind}
            expected = kinds[config.kind].state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
            seen.add(config.kind)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert seen == set(kinds) and not failures
    assert os.listdir(tmp_path) == ["kept"]


def test_a_writer_that_is_truly_killed_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = """
import sys, itertools, torch
from bdh import build, FlatConfig
models = [build(FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8), seed=s) for s in (0, 1)]
for step in itertools.count():
    models[step % 2].save_pretrained(sys.argv[1], provenance={"seed": step % 2})
    print(step, flush=True)
"""
    folder = tmp_path / "kept"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    loaded = bdh.load(folder, device="cpu")
    assert loaded.origin is not None
    assert_same_weights(loaded, bdh.build(loaded.config, seed=loaded.origin.provenance["seed"]))


@given(st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_checksum_knows_names_shapes_and_values_but_not_types_or_order(seed: int, random: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(3, 4, generator=generator).bfloat16() for name in "abc"}
    checksum = checkpoint.weights_checksum(tensors)
    names = list(tensors)
    random.shuffle(names)
    assert checkpoint.weights_checksum({name: tensors[name].float() for name in names}) == checksum
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed["b"].view(torch.int16)[random.randrange(3), random.randrange(4)] ^= 1
    for other in (
        changed,
        {**tensors, "a": tensors["a"].view(4, 3)},
        {"x" if name == "a" else name: tensor for name, tensor in tensors.items()},
        {"a": tensors["b"], "b": tensors["a"], "c": tensors["c"]},
    ):
        assert checkpoint.weights_checksum(other) != checksum


def test_the_device_is_picked_by_name_or_by_what_is_there() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device(None).type == pick_device("auto").type == best
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("tpu", "cuda:99", "meta", "", "cpu:x"):
        with pytest.raises(DataError, match="device is"):
            pick_device(name)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_number_that_is_not_finite_is_refused_however_it_is_written(tmp_path: Path, number: str) -> None:
    folder = fresh("flat").save_pretrained(tmp_path / "kept")
    (folder / "provenance.json").write_text(f'{{"heritage": {number}}}')
    with pytest.raises(CheckpointError, match="not readable JSON"):
        bdh.load(folder, device="cpu")
