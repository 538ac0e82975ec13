from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from zoo import ZOO, fresh, text

from bdh import checkpoint
from bdh.config import ComposedConfig, config_from_dict, config_to_dict
from bdh.convert import convert, from_upstream, infer_config, read_file
from bdh.errors import CheckpointError, ConfigError
from bdh.models import build

GOLDEN = Path(__file__).parent / "golden"
FILES = (
    "flat_small",
    "flat_three_heads",
    "hebbian_qkv",
    "hierarchical_patch4",
    "hierarchical_ragged",
    "hierarchical_transformer",
    "member_a",
    "member_b",
)
CONFIG = {
    "n_layer": 3,
    "n_embd": 32,
    "dropout": 0.1,
    "n_head": 2,
    "mlp_internal_dim_multiplier": 8,
    "vocab_size": 256,
}


@dataclasses.dataclass
class Golden:
    kind: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    ids: Tensor
    logits: Tensor


def golden(name: str) -> Golden:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        metadata = file.metadata()
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    return Golden(
        metadata["kind"], json.loads(metadata.get("config", "{}")), weights, tensors["input_ids"], tensors["logits"]
    )


FLAT = golden("flat_small")


@torch.no_grad()
def assert_golden(model: Any, expected: Golden = FLAT, tolerance: float = 1e-4) -> None:
    logits = model(expected.ids[:, :-1]).logits
    assert not model.training
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits, expected.logits, atol=tolerance, rtol=0)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def renamed(names: dict[str, str], drop: tuple[str, ...] = ()) -> dict[str, Tensor]:
    return {names.get(name, name): value for name, value in FLAT.weights.items() if name not in drop}


def without_frequencies() -> dict[str, Tensor]:
    return renamed({}, drop=("attn.freqs",))


APPENDIX_E = {
    "embed.weight": "wte.weight",
    "encoder": "decoder_x",
    "encoder_v": "decoder_y",
    "decoder": "encoder",
    "lm_head": "readout",
}


@pytest.mark.parametrize("name", FILES)
def test_a_released_model_gives_its_own_logits(name: str) -> None:
    expected = golden(name)
    assert_golden(from_upstream(expected.kind, expected.config, expected.weights), expected)


def test_a_composed_average_weighs_its_first_member_by_the_sigmoid() -> None:
    with safe_open(GOLDEN / "composed_average.safetensors", framework="pt") as file:
        weight, ids, logits = (file.get_tensor(name) for name in ("combine_weight", "input_ids", "logits"))
    a, b = golden("member_a"), golden("member_b")
    weights = {f"model_a.{name}": value for name, value in a.weights.items()}
    weights |= {f"model_b._orig_mod.{name}": value for name, value in b.weights.items()}
    config = {"members": [a.config, b.config]}
    model = from_upstream("composed-average", config, weights | {"combine_weight": weight})
    assert_golden(model, Golden("", {}, {}, ids, logits))
    assert torch.softmax(model.combine_weight, 0)[0].item() == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_a_deep_composition_keeps_its_combiner() -> None:
    config = ComposedConfig(method="deep", members=(ZOO["flat"], ZOO["hebbian"]), n_embd=10)  # type: ignore[arg-type]
    ours = build(config, seed=3).eval()
    foreign = {
        name.replace("members.0.", "model_a.").replace("members.1.", "model_b."): value
        for name, value in ours.state_dict().items()
    }
    members = [{k: v for k, v in config_to_dict(member).items() if k != "kind"} for member in config.members]
    model = from_upstream("composed_deep", {"members": members}, foreign)
    assert model.config == config
    assert torch.equal(model(text(20)).logits, ours(text(20)).logits)


@pytest.mark.parametrize("name", ZOO)
def test_our_own_names_and_fields_are_read_for_every_kind(name: str) -> None:
    ours = fresh(name)
    fields = config_to_dict(ours.config)
    model = from_upstream(fields.pop("kind"), fields, ours.state_dict())
    assert model.config == ours.config
    assert torch.equal(model(text(30)).logits, ours(text(30)).logits)


@pytest.mark.parametrize(
    "weights",
    [
        {f"_orig_mod.{name}": value for name, value in FLAT.weights.items()},
        {f"module._orig_mod.{name}": value for name, value in FLAT.weights.items()},
        {f"model.{name}": value for name, value in FLAT.weights.items()},
        renamed(APPENDIX_E),
        renamed(APPENDIX_E, drop=("attn.freqs",)),
        renamed({"embed.weight": "embedding.weight"}),
        without_frequencies(),
        {name: value.double() for name, value in FLAT.weights.items()},
        FLAT.weights | {"lm_head": FLAT.weights["lm_head"].T},
        renamed({"lm_head": "readout.weight"}) | {"readout.weight": FLAT.weights["lm_head"].T},
        {
            **{f"backbone.{name}": FLAT.weights[name] for name in ("encoder", "encoder_v", "decoder", "embed.weight")},
            "lm_head.weight": FLAT.weights["lm_head"].T,
        },
    ],
    ids=[
        "compiled",
        "distributed and compiled",
        "inside a model",
        "Appendix E",
        "Appendix E without frequencies",
        "embedding",
        "no frequencies",
        "float64",
        "transposed head",
        "transposed read-out module",
        "transformers",
    ],
)
def test_every_naming_of_the_flat_model_gives_its_logits(weights: dict[str, Tensor]) -> None:
    assert_golden(from_upstream("flat", CONFIG, weights))


def test_the_name_decides_how_a_square_head_lies() -> None:
    width = {"n_layer": 1, "n_embd": 256, "n_head": 1, "mlp_internal_dim_multiplier": 1}
    ours = build(config_from_dict({"kind": "flat", **width}), seed=0).eval()
    bare = ours.state_dict()
    module = {name: value for name, value in bare.items() if name != "lm_head"} | {"lm_head.weight": bare["lm_head"].T}
    for weights in (bare, module):
        assert torch.equal(from_upstream("flat", width, weights).lm_head, bare["lm_head"])


def test_weights_in_bfloat16_are_read_exactly_and_their_rounded_frequencies_made_anew() -> None:
    rounded = {name: value.bfloat16() for name, value in FLAT.weights.items()}
    with pytest.warns(UserWarning, match=r"attn\.freqs was rounded to torch\.bfloat16"):
        model = from_upstream("flat", CONFIG, rounded)
    exact = {name: value.bfloat16().float() for name, value in FLAT.weights.items()}
    exact["attn.freqs"] = FLAT.weights["attn.freqs"]
    assert torch.equal(model.attn.freqs, FLAT.weights["attn.freqs"])
    assert torch.equal(model(FLAT.ids).logits, from_upstream("flat", CONFIG, exact)(FLAT.ids).logits)


def test_stored_frequencies_are_kept_bit_for_bit() -> None:
    halves = torch.cat([FLAT.weights["attn.freqs"].flatten()[:64]] * 2).view(1, 1, 1, 128)
    model = from_upstream("flat", CONFIG, FLAT.weights | {"attn.freqs": halves})
    assert torch.equal(model.attn.freqs, halves)


def test_rounded_frequencies_of_another_formula_are_refused() -> None:
    halves = torch.cat([FLAT.weights["attn.freqs"].flatten()[:64]] * 2).view(1, 1, 1, 128).bfloat16()
    with pytest.raises(CheckpointError, match=r"cannot be restored.*float32"):
        from_upstream("flat", CONFIG, FLAT.weights | {"attn.freqs": halves})


def test_transformers_names_of_fields_and_training_keys_are_understood() -> None:
    config = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "mlp_internal_dim_multiplier": 8,
        "model_type": "bdh",
        "sliding_window": None,
        "torch_dtype": "float32",
        "block_size": 512,
        "k_sparse_ratio": 0.0,
        "learning_rate": 1e-3,
    }
    assert_golden(from_upstream("flat", config, FLAT.weights))


def test_an_alibi_slope_becomes_the_damping_of_every_head() -> None:
    slope = 0.3
    model = from_upstream("flat", CONFIG | {"alibi_slope": slope}, FLAT.weights)
    assert model.config.decay == (math.exp(-slope),) * 2
    torch.testing.assert_close(
        model(FLAT.ids).logits, flat_with_alibi(FLAT.weights, FLAT.ids, 3, slope), atol=1e-4, rtol=0
    )


def flat_with_alibi(w: dict[str, Tensor], ids: Tensor, n_layer: int, slope: float) -> Tensor:
    """The flat model with each score lessened by its age, written out."""

    def norm(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    length = ids.shape[1]
    at = torch.arange(length)
    weight = (torch.exp(-slope * (at[:, None] - at[None]).double()).float()).tril(-1)
    angle = 2 * math.pi * ((at[:, None] * w["attn.freqs"].flatten().double()) % 1).float()
    x = norm(w["embed.weight"][ids])[:, None]
    for _ in range(n_layer):
        x_sparse = (x @ w["encoder"]).relu()
        turned = torch.stack((-x_sparse[..., 1::2], x_sparse[..., ::2]), -1).flatten(-2)
        q = x_sparse * angle.cos() + turned * angle.sin()
        y_sparse = (norm((q @ q.mT * weight) @ x) @ w["encoder_v"]).relu()
        gated = (x_sparse * y_sparse).transpose(1, 2).flatten(-2)[:, None]
        x = norm(x + norm(gated @ w["decoder"]))
    return x[:, 0] @ w["lm_head"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rho_decay": 0.9, "per_layer_encoders": True}, r"unknown keys.*rho_decay.*per_layer_encoders"),
        ({"k_sparse_ratio": 0.1}, r"k_sparse_ratio is 0\.1"),
        ({"sliding_window": 128}, r"sliding_window is 128"),
        ({"model": "bdh-prime"}, r"model is 'bdh-prime'"),
        ({"alibi_slope": -1.0}, r"alibi_slope is -1\.0"),
        ({"vocab_size": 512}, r"vocab_size is 512"),
        ({"num_hidden_layers": 4}, r"gives n_layer twice: 3 and 4"),
        ({"n_layer": torch.ones(3)}, r"n_layer is a Tensor"),
        ({"n_layer": 10**6}, r"n_layer is 1000000"),
    ],
)
def test_a_configuration_that_would_change_the_model_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_upstream("flat", CONFIG | config, FLAT.weights)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"kind is 'gpt'; it must be one of flat,"):
        from_upstream("gpt", {}, FLAT.weights)


def test_sizes_that_contradict_the_tensors_are_named() -> None:
    with pytest.raises(CheckpointError, match="n_embd is 64 in the configuration, but the tensors have 32"):
        from_upstream("flat", CONFIG | {"n_embd": 64}, FLAT.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_v": None}, r"lack 'encoder_v'"),
        ({"extra.weight": torch.zeros(2)}, r"hold 'extra\.weight'"),
        ({"decoder": torch.zeros(256, 31)}, r"'decoder' is \(256, 31\).*must be \(256, 32\)"),
        ({"embed.weight": torch.full((256, 32), torch.nan)}, r"embed\.weight.*not finite"),
        ({"decoder": torch.full((256, 32), torch.inf)}, r"decoder.*not finite"),
        ({"decoder": torch.zeros(1).expand(256, 32)}, r"decoder.*claims 32,768 bytes and stores 4"),
        ({"decoder": torch.zeros(1).expand(10**9)}, r"decoder.*claims 4,000,000,000 bytes and stores 4"),
        ({"decoder": torch.zeros(256, 32).to_sparse()}, r"decoder.*sparse"),
        ({"decoder": torch.zeros(256, 32, dtype=torch.complex64)}, r"decoder.*complex64"),
        ({"decoder": torch.zeros(256, 32, dtype=torch.int8)}, r"decoder.*int8"),
        ({"decoder": torch.zeros(256, 32, device="meta")}, r"decoder.*without storage"),
        ({"decoder": [1.0]}, r"decoder.*is a list"),
        ({"attn.freqs": torch.zeros(1, 1, 1, 64)}, r"attn\.freqs.*64 frequencies.*128"),
        ({"attn.freqs": torch.linspace(0, 0.4, 128).view(1, 1, 1, 128)}, r"attn\.freqs.*pairs"),
        ({"attn.freqs": torch.full((1, 1, 1, 128), 0.5)}, r"attn\.freqs.*half a turn"),
        ({"module.decoder": torch.zeros(256, 32)}, r"'decoder' twice"),
        ({"readout": torch.zeros(32, 256)}, r"'lm_head' twice"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    weights = {name: value for name, value in (FLAT.weights | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        from_upstream("flat", CONFIG, weights)


def test_many_names_for_one_storage_are_refused() -> None:
    expected = golden("hierarchical_patch4")
    block = torch.zeros(2_000_000)
    weights = {name: block[: value.numel()].view(value.shape) for name, value in expected.weights.items()}
    from_upstream(expected.kind, expected.config, weights)
    weights = {f"tensor.{index}": block for index in range(3)}
    with pytest.raises(CheckpointError, match="claim 24,000,000 bytes together and store 8,000,000"):
        from_upstream(expected.kind, expected.config, weights)


def test_tied_embeddings_must_be_equal_and_may_be_stored_once() -> None:
    for name, kept, tied in (
        ("hierarchical_patch4", "patch_embedder.byte_embed.weight", "local_model.byte_embed.weight"),
        ("hebbian_qkv", "tok_emb.weight", "lm_head.weight"),
    ):
        expected = golden(name)
        for absent in (kept, tied):
            once = {key: value for key, value in expected.weights.items() if key != absent}
            assert_golden(from_upstream(expected.kind, expected.config, once), expected)
        with pytest.raises(CheckpointError, match=f"'{tied}' differs from '{kept}'"):
            from_upstream(expected.kind, expected.config, expected.weights | {tied: expected.weights[tied] + 1e-3})


def test_hebbian_rotary_frequencies_must_be_the_usual_ones() -> None:
    expected = golden("hebbian_qkv")
    name = "blocks.1.attn.rope.inv_freq"
    near = expected.weights | {name: expected.weights[name] + 5e-7}
    assert_golden(from_upstream(expected.kind, expected.config, near), expected)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.rope\.inv_freq.*theta 10000"):
        from_upstream(expected.kind, expected.config, expected.weights | {name: expected.weights[name] * 1.01})


@pytest.mark.parametrize("name", FILES)
def test_shapes_tell_all_but_the_depth_of_the_flat_model_and_the_heads_of_attention(name: str) -> None:
    expected = golden(name)
    given: dict[str, int] = {}
    if expected.kind == "flat":
        with pytest.raises(CheckpointError, match=r"n_layer of this flat model.*--n-layer NUMBER"):
            infer_config(expected.weights)
        given = {"n_layer": expected.config["n_layer"]}
    if not expected.config.get("use_bdh_attention", True):
        with pytest.raises(CheckpointError, match="global_n_head of this hierarchical model"):
            infer_config(expected.weights)
        return
    fields = config_to_dict(infer_config(expected.weights, **given))
    free = {"dropout", "max_seq_len", "block_size"}
    assert {k: v for k, v in fields.items() if k in expected.config and k not in free} == {
        k: v for k, v in expected.config.items() if k not in free
    }


def test_heads_of_a_transformer_are_asked_for() -> None:
    ours = fresh("transformer")
    with pytest.raises(CheckpointError, match="--n-head NUMBER"):
        infer_config(ours.state_dict())
    with pytest.raises(CheckpointError, match="--block-size NUMBER"):
        infer_config(ours.state_dict(), n_head=2)
    assert infer_config(ours.state_dict(), n_head=2, block_size=20) == dataclasses.replace(ours.config, dropout=0.0)


@pytest.mark.parametrize("name", ["wild_model_config", "wild_config_key"])
def test_a_container_seen_in_public_gives_its_logits(name: str) -> None:
    assert_golden(read_file(GOLDEN / f"{name}.pt", allow_pickle=True))


def test_a_bare_state_dict_needs_its_depth() -> None:
    path = GOLDEN / "wild_compiled_bare.pt"
    with pytest.raises(CheckpointError, match="n_layer"):
        read_file(path, allow_pickle=True)
    model = read_file(path, allow_pickle=True, config={"n_layer": 3})
    assert_golden(model)
    assert model.origin.provenance == {"source": "wild_compiled_bare.pt", "layout": "a bare state dict"}


@pytest.mark.parametrize(
    "content",
    [
        {"model": FLAT.weights, "config": CONFIG, "step": 7},
        {"model": FLAT.weights, "config": CONFIG, "step": 7, "arch": "bdh"},
        {"model": FLAT.weights, "config": CONFIG, "iters": 9, "final_loss": 1.5},
        {
            "model_state_dict": FLAT.weights,
            "model_config": CONFIG,
            "train_config": {"batch_size": 8},
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
            "step": 1,
            "val_loss": torch.tensor(1.5),
        },
        {
            "cfg": CONFIG | {"model": "bdh", "dataset": "shakespeare", "grow_mult": 0, "alibi_slope": 0.0},
            "model_state": FLAT.weights,
            "optimizer_state": {},
            "state": None,
            "step": 3,
            "best_val": 1.2,
        },
        {"model_state_dict": FLAT.weights, "config": CONFIG, "heritage": {"a": ["x"]}, "merge_config": {"k": 2}},
        {
            "state_dict": {name: torch.nn.Parameter(value, False) for name, value in FLAT.weights.items()},
            "config": CONFIG,
        },
    ],
    ids=["model", "arch", "iters", "model_config", "cfg", "heritage", "parameters"],
)
def test_every_container_gives_its_logits(tmp_path: Path, content: dict[str, Any]) -> None:
    assert_golden(read_file(saved(tmp_path / "model.pt", content), allow_pickle=True))


def test_a_hierarchical_container_is_told_by_its_tensors(tmp_path: Path) -> None:
    expected = golden("hierarchical_ragged")
    path = saved(tmp_path / "model.pth", {"model": expected.weights, "config": expected.config})
    assert_golden(read_file(path, allow_pickle=True), expected)


def test_the_configuration_may_lie_beside_the_weights(tmp_path: Path) -> None:
    saved(tmp_path / "pytorch_model.bin", FLAT.weights)
    (tmp_path / "config.json").write_text(json.dumps({"model_config": CONFIG, "train_config": {"lr": 1}}))
    assert_golden(read_file(tmp_path, allow_pickle=True))
    save_file({name: value.contiguous() for name, value in FLAT.weights.items()}, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_golden(read_file(tmp_path))


def test_the_configuration_may_stand_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "flat.safetensors"
    save_file(FLAT.weights, path, {"config": json.dumps(CONFIG), "kind": "flat"})
    assert_golden(read_file(path))


def test_a_converted_model_is_a_checkpoint_with_its_origin(tmp_path: Path) -> None:
    out = convert(GOLDEN / "wild_config_key.pt", tmp_path / "ours", allow_pickle=True)
    assert out == tmp_path / "ours"
    assert_golden(read_file(out))
    provenance = checkpoint.read_provenance(out)
    assert provenance["source"] == "wild_config_key.pt"
    assert provenance["layout"] == "{model_state_dict, config, test_metrics}"
    assert len(provenance["sha256"]) == 64


def test_a_folder_of_ours_passes_through_unchanged(tmp_path: Path) -> None:
    ours = fresh("flat-damped")
    checkpoint.write(tmp_path / "a", ours.config, ours.state_dict(), card="# A card", provenance={"recipe": "x"})
    convert(tmp_path / "a", tmp_path / "b")
    for name in checkpoint.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bfloat16_weights_stay_so_when_converted(tmp_path: Path) -> None:
    weights = {name: value if "freqs" in name else value.bfloat16() for name, value in FLAT.weights.items()}
    path = saved(tmp_path / "model.pt", {"model": weights, "config": CONFIG})
    header = checkpoint.read_header(convert(path, tmp_path / "ours", allow_pickle=True) / "model.safetensors")
    assert {name: dtype for name, (dtype, _) in header.items()} == {
        name: "F32" if name == "attn.freqs" else "BF16" for name in FLAT.weights
    }


def test_a_read_model_does_not_depend_on_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {"model": FLAT.weights, "config": CONFIG})
    model = read_file(path, allow_pickle=True)
    with path.open("r+b") as file:
        file.truncate(100)
    assert_golden(model)


def test_a_pickle_is_opened_only_on_request() -> None:
    with pytest.raises(CheckpointError, match=r"only on request.*python -m bdh convert"):
        read_file(GOLDEN / "wild_config_key.pt")


@dataclasses.dataclass
class BDHConfig:
    n_layer: int = 3


def test_a_configuration_that_is_an_object_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {"model": FLAT.weights, "config": BDHConfig()})
    with pytest.raises(CheckpointError, match=r"BDHConfig.*dataclasses\.asdict\(config\)"):
        read_file(path, allow_pickle=True)


class Command:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.marker,)


def test_a_pickle_that_wants_code_runs_none_of_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = saved(tmp_path / "model.pt", {"model": FLAT.weights, "config": Command(str(marker))})
    with pytest.raises(CheckpointError, match=r"wants to run code.*mkdir"):
        read_file(path, allow_pickle=True)
    assert not marker.exists()


class Bomb:
    """Asks for a hundred gigabytes of zeros with a constructor that PyTorch's own list allows."""

    def __init__(self, constructor: Any, *arguments: Any) -> None:
        self.call = constructor, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("bomb", [Bomb(bytearray, 10**11), Bomb(torch.Tensor, 10**6, 10**5)], ids=["bytes", "tensor"])
def test_a_pickle_that_asks_for_memory_is_refused_before_it_is_read(tmp_path: Path, bomb: Bomb) -> None:
    path = saved(tmp_path / "model.pt", {"model": FLAT.weights, "config": CONFIG, "extra": bomb})
    with pytest.raises(CheckpointError, match="wants to run code"):
        read_file(path, allow_pickle=True)


def repacked(source: Path, target: Path, change: Any = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive written anew, its entries as `change(name, data)` gives them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            for name, data in (
                change(entry.filename, old.read(entry)) if change else [(entry.filename, old.read(entry))]
            ):
                new.writestr(name, data)
    return target


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = repacked(GOLDEN / "wild_config_key.pt", tmp_path / "m.pt", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed entries"):
        read_file(path, allow_pickle=True)


def test_an_archive_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    def twice(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, data)] * (2 if name.endswith("data.pkl") else 1)

    with pytest.warns(UserWarning, match="Duplicate name"):
        path = repacked(GOLDEN / "wild_config_key.pt", tmp_path / "m.pt", twice)
    with pytest.raises(CheckpointError, match="two entries of one name"):
        read_file(path, allow_pickle=True)


def test_an_archive_of_too_many_entries_is_refused(tmp_path: Path) -> None:
    def many(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return (
            [(name, data), *((f"m/{i}", b"") for i in range(20_001))] if name.endswith("data.pkl") else [(name, data)]
        )

    path = repacked(GOLDEN / "wild_config_key.pt", tmp_path / "m.pt", many)
    with pytest.raises(CheckpointError, match="entries; at most 20,000"):
        read_file(path, allow_pickle=True)


def test_an_archive_that_claims_an_endless_list_of_entries_is_refused_unread(tmp_path: Path) -> None:
    data = bytearray((GOLDEN / "wild_config_key.pt").read_bytes())
    data[-10:-6] = struct.pack("<I", 1 << 30)
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="too many entries"):
        read_file(tmp_path / "m.pt", allow_pickle=True)


def test_a_program_is_refused(tmp_path: Path) -> None:
    def program(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, data), ("m/constants.pkl", b"")] if name.endswith("data.pkl") else [(name, data)]

    path = repacked(GOLDEN / "wild_config_key.pt", tmp_path / "m.pt", program)
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_file(path, allow_pickle=True)


@pytest.mark.parametrize("size", [0, 3, 100, 80_000, -1])
def test_a_truncated_archive_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "m.pt").write_bytes((GOLDEN / "wild_config_key.pt").read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"damaged or cut off|not the archive"):
        read_file(tmp_path / "m.pt", allow_pickle=True)


def test_a_plain_pickle_of_old_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(CheckpointError, match="save it again"):
        read_file(tmp_path / "m.pt", allow_pickle=True)
    torch.save(FLAT.weights, tmp_path / "n.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not the archive"):
        read_file(tmp_path / "n.pt", allow_pickle=True)


def test_a_file_over_the_bound_is_refused_with_its_size() -> None:
    size = (GOLDEN / "wild_config_key.pt").stat().st_size
    with pytest.raises(CheckpointError, match=f"has {size:,} bytes; at most 1,000"):
        read_file(GOLDEN / "wild_config_key.pt", allow_pickle=True, max_bytes=1000)


def test_stride_zero_tensors_in_a_file_are_refused(tmp_path: Path) -> None:
    weights = FLAT.weights | {"encoder": torch.zeros(1).expand(2, 32, 128)}
    path = saved(tmp_path / "model.pt", {"model": weights, "config": CONFIG})
    with pytest.raises(CheckpointError, match=r"encoder.*claims 32,768 bytes and stores 4"):
        read_file(path, allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"step": 1}, "holds none of model_state_dict"),
        ({"model": FLAT.weights, "config": "n_layer=3"}, "'config' is a str"),
        ({"model": {"wte.weight": torch.zeros(2, 2)}, "config": CONFIG}, "no kind of model known here"),
        ({"model": {0: torch.zeros(2)}, "config": {"kind": "flat"}}, "a key that is a int"),
        ({"model": FLAT.weights | {"step": 3}, "config": CONFIG}, "step.*is a int"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_file(saved(tmp_path / "model.pt", content), allow_pickle=True)


class Shadowed:
    """A dictionary that comes with attributes in place of its methods."""

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), {"items": 3, "keys": 3, "get": 3}, None, iter(FLAT.weights.items())


def test_a_dictionary_with_shadowed_methods_is_read_as_what_it_holds(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {"model": Shadowed(), "config": CONFIG})
    assert_golden(read_file(path, allow_pickle=True))


def test_neurons_that_only_the_configuration_claims_cost_nothing() -> None:
    claim = {"n_layer": 1, "n_embd": 2, "n_head": 1, "mlp_internal_dim_multiplier": 65536}
    weights = {name: value for name, value in FLAT.weights.items() if name in ("encoder_v", "decoder")}
    with pytest.raises(CheckpointError, match=r"lack .*'encoder'.*'attn\.freqs'"):
        from_upstream("flat", claim, weights)
    with pytest.raises(CheckpointError, match=r"asks for [\d,]+ parameters"):
        from_upstream("flat", claim | {"n_embd": 16384}, weights)


def test_a_missing_file_and_a_strange_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file or folder .*nothing"):
        read_file(tmp_path / "nothing.pt", allow_pickle=True)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.onnx.*none of \.safetensors, \.pt"):
        read_file(tmp_path / "model.onnx")


def test_an_archive_with_a_name_that_is_no_text_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "named.pt"
    torch.save({"a": torch.zeros(2)}, path)
    data = bytearray(path.read_bytes())
    data[6:8], data[30] = (
        (1 << 11).to_bytes(2, "little"),
        0x80,
    )  # the first entry's name is said to be UTF-8, and is not
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"named.pt.? is damaged or cut off: .*can't decode byte 0x80"):
        read_file(path, allow_pickle=True)
