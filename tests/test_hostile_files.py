"""Files that are damaged or made to deceive are refused with a reason, and before they cost anything."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from zoo import fresh, model

import bdh
from bdh import checkpoint
from bdh.errors import CheckpointError, HatcheryError

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fresh("flat").save_pretrained(tmp_path / "kept")


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        bdh.load(path, device="cpu")
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def reconfigure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def file_of(header: Any, data_bytes: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def test_a_truncated_file_is_refused_with_its_size(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"is {length:,} bytes" in refused(folder)
    path.write_bytes(whole + b"\0")
    assert f"is {len(whole) + 1:,} bytes, but its header describes {len(whole):,}" in refused(folder)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": TENSOR, "b": {**TENSOR, "data_offsets": [4, 12]}}, "gap or overlap"),
        ({"a": TENSOR, "b": TENSOR}, "gap or overlap"),
        ({"a": {**TENSOR, "data_offsets": [8, 16]}}, "gap or overlap"),
        ({"a": {**TENSOR, "data_offsets": [0, 9]}}, "does not take bytes"),
        ({"a": {**TENSOR, "data_offsets": [8, 0]}}, "does not take bytes"),
        ({"a": {**TENSOR, "data_offsets": [-8, 0]}}, "two whole numbers"),
        ({"a": {**TENSOR, "data_offsets": [0, 8, 8]}}, "two whole numbers"),
        ({"a": {**TENSOR, "data_offsets": "08"}}, "two whole numbers"),
        ({"a": {**TENSOR, "shape": [2**62, 2**62]}}, "does not take bytes"),
        ({"a": {**TENSOR, "shape": [2**64]}}, "at most 8 whole numbers"),
        ({"a": {**TENSOR, "shape": [-2]}}, "at most 8 whole numbers"),
        ({"a": {**TENSOR, "shape": [True, 2]}}, "at most 8 whole numbers"),
        ({"a": {**TENSOR, "shape": [1] * 9 + [2]}}, "at most 8 whole numbers"),
        ({"a": {**TENSOR, "shape": 2}}, "at most 8 whole numbers"),
        ({"a": {**TENSOR, "dtype": "F31"}}, "is of type 'F31'"),
        ({"a": {**TENSOR, "dtype": ["F32"]}}, "is of type"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "must have dtype, shape and data_offsets"),
        ({"a": {**TENSOR, "more": 1}}, "and nothing else"),
        ({"a": [1]}, "must have dtype"),
        ({"a": {**TENSOR, "shape": [3], "data_offsets": [0, 12]}}, "but its header describes"),
        ({"../../etc/passwd": TENSOR}, "names a tensor '../../etc/passwd'"),
        ({"/a": TENSOR}, "names a tensor"),
        ({"a\x00b": TENSOR}, "names a tensor"),
        ({"a\\b": TENSOR}, "names a tensor"),
        ({"": TENSOR}, "names a tensor"),
        ({"a" * 1000: TENSOR}, "names a tensor"),
        ([TENSOR], "holds a list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 5000, "nested too deeply"),
        (b"\xff\xfe{}", "not readable JSON"),
        (b'{"a":1,"a":2}', "a key stands twice"),
        (b'{"a":' + b"9" * 5000 + b"}", "not readable JSON|must have dtype"),
        (b"nonsense", "not readable JSON"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(header))
    with pytest.raises(CheckpointError, match=reason) as caught:
        checkpoint.read_tensors(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 17, 16, 1, 0])
def test_an_oversized_header_is_refused_before_it_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + bytes(16))
    with pytest.raises(CheckpointError):
        checkpoint.read_header(path)
    with path.open("wb") as file:  # a file of 200 MB that takes no room
        file.write((10**8).to_bytes(8, "little"))
        file.truncate(2 * 10**8)
    with pytest.raises(CheckpointError, match="claims a header of 100,000,000 bytes; at most 2,097,152"):
        checkpoint.read_header(path)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_make_the_header_reader_fail_otherwise(text: bytes, file_bytes: int) -> None:
    try:
        checkpoint.header_length(text, file_bytes, "x")
        checkpoint.parse_header(text, file_bytes, "x")
    except CheckpointError as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON)
def test_no_value_in_a_header_makes_its_reader_fail_otherwise(key: str, value: Any) -> None:
    text = json.dumps({"a": {**TENSOR, key: value}}).encode()
    try:
        header = checkpoint.parse_header(text, 8 + len(text) + 8, "x")
    except CheckpointError:
        return
    (dtype, shape), item = header["a"], {"F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8}
    assert math.prod(shape) * item.get(dtype, 1) <= 8


@given(st.sampled_from(["format", *checkpoint.config_to_dict(model("mixture").config)]), JSON)
def test_no_value_in_a_configuration_makes_its_reader_fail_otherwise(key: str, value: Any) -> None:
    fields = {"format": 1, **checkpoint.config_to_dict(model("mixture").config), key: value}
    try:
        checkpoint.config_from_fields(fields, "x")
    except CheckpointError as error:
        assert len(str(error)) < 1000


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in fresh("flat").state_dict().items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_tensors_must_be_those_of_the_configuration_both_ways(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("encoder_v"))
    assert "lacks encoder_v (1 missing)" in refused(folder)
    rewrite(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert "holds 'extra' (1 unknown)" in refused(folder)
    rewrite(folder, lambda tensors: tensors.update(decoder=torch.zeros(16, 64)))
    assert "decoder in" in refused(folder) and "is (16, 64); its configuration asks for (64, 16)" in refused(folder)
    rewrite(folder, lambda tensors: tensors.update(decoder=torch.zeros(64, 16, dtype=torch.int32)))
    assert "is of type I32; it must be F32 or F16 or BF16 or F64" in refused(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, dtype: torch.dtype, folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head"] = tensors["lm_head"].to(dtype)
        tensors["lm_head"][3, 5] = value

    rewrite(folder, spoil)
    assert "lm_head in" in refused(folder) and "not finite" in refused(folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: f.flatten()[:1].fill_(0.1), "pairs of equal frequencies"),
        (lambda f: f.flatten()[:2].fill_(0.5), "pairs of equal frequencies"),
        (lambda f: f.flatten()[:2].fill_(math.nan), "not finite"),
    ],
)
def test_frequencies_that_no_rotation_has_are_refused(
    spoil: Callable[[torch.Tensor], object], reason: str, folder: Path
) -> None:
    rewrite(folder, lambda tensors: spoil(tensors["attn.freqs"]))
    assert reason in refused(folder)
    rewrite(folder, lambda tensors: tensors.update({"attn.freqs": tensors["attn.freqs"].bfloat16()}))
    assert "attn.freqs in" in refused(folder) and "is of type BF16; it must be F32" in refused(folder)


def test_a_configuration_that_asks_for_a_trillion_neurons_is_refused_at_once(folder: Path) -> None:
    started = time.monotonic()
    reconfigure(folder, mlp_internal_dim_multiplier=10**12)
    assert "mlp_internal_dim_multiplier is 1000000000000; it must be from 1 to 65536" in refused(folder)
    reconfigure(folder, mlp_internal_dim_multiplier=65536, n_embd=16384)
    assert "parameters; at most 4,000,000,000 are allowed" in refused(folder)
    layers = {**checkpoint.config_to_dict(model("hierarchical").config), "global_n_layer": 256, "local_n_layer": 256}
    (folder / "config.json").write_text(json.dumps({"format": 1, "kind": "composed", "members": [layers] * 16}))
    assert "asks for 8,192 layers; at most 1,024 are loaded" in refused(folder)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not readable JSON"),
        (b"[]", "holds a list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"format":1,"kind":"flat","n_layer":' + b"[" * 500 + b"]" * 500 + b"}", "n_layer"),
        (b'{"format":1,"kind":"flat","n_layer":1,"n_layer":2}', "a key stands twice"),
        (b'{"format":1,"kind":"flat","dropout":NaN}', "NaN is no number"),
        (b'{"format":1,"kind":"flat","dropout":-Infinity}', "is no number"),
        (b'{"format":1,"kind":"flat","n_layer":' + b"9" * 10_000 + b"}", ""),
        (b'{"format":1,"kind":"flat","surprise":1}', "does not know 'surprise'"),
        (b'{"format":1,"kind":"wings"}', "kind is 'wings'"),
        (b'{"format":1,"kind":["flat"]}', "kind is"),
        (b'{"format":2,"kind":"flat"}', "is of format 2; this version reads format 1"),
        (b'{"format":true,"kind":"flat"}', "is of format True"),
        (b'{"format":1,"kind":"flat"}\xff', "not readable JSON"),
        (b" " * (1 << 20) + b"{}", "above 1,048,576 bytes"),
    ],
)
def test_a_configuration_made_to_deceive_is_refused(content: bytes, reason: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert reason in refused(folder)


def test_other_texts_of_a_folder_are_bounded_too(folder: Path) -> None:
    (folder / "provenance.json").write_bytes(b"[" * 100_000)
    assert "nested too deeply" in refused(folder)
    with (folder / "README.md").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(CheckpointError, match="above 1,048,576 bytes"):
        checkpoint.read_card(folder)


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_links_out_of_a_folder_are_not_followed(name: str, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    read = {"README.md": checkpoint.read_card, "provenance.json": checkpoint.read_provenance}.get(name, refused)
    if read is refused:
        assert "leads out of its folder" in refused(folder)
    else:
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            read(folder)


def test_links_into_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--user--bird" / "snapshots" / ("a" * 40) / "sub"
    blobs = tmp_path / "models--user--bird" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in checkpoint.FILES:
        os.rename(folder / name, blobs / name)
        (snapshot / name).symlink_to(f"../../../blobs/{name}")
    assert bdh.load(snapshot, device="cpu").config == model("flat").config


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are Unix")
def test_what_is_no_regular_file_is_not_opened(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)  # opening it would wait for ever
        with pytest.raises(CheckpointError, match="is no regular file"):
            checkpoint.read_header(folder / name) if name == "model.safetensors" else checkpoint.read_config(folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(CheckpointError, match="is no regular file"):
            checkpoint.read_header(folder / name) if name == "model.safetensors" else checkpoint.read_config(folder)


def test_a_pickle_in_a_folder_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"model": Bomb()}, tmp_path / "pytorch_model.bin")
    assert "It holds 'pytorch_model.bin'" in refused(tmp_path)
    with pytest.raises(HatcheryError):
        bdh.load(tmp_path / "pytorch_model.bin", allow_pickle=True)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_of_several_weights_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(save({"x": torch.zeros(2)}))
    assert "holds 2 safetensors files; name one" in refused(tmp_path)
