"""Joining by neurons and heads: identities by value, what is refused, and checkpoints that say how they were made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hub_server import MAIN, Hub
from huggingface_hub import constants
from torch import Tensor
from zoo import FLAT, FLAT_DAMPED, HEBBIAN, HIERARCHICAL, HIERARCHICAL_DAMPED, TRANSFORMER, fresh, louder, model, text

import bdh
from bdh import checkpoint, cli
from bdh.config import ComposedConfig, Config, FlatConfig
from bdh.errors import CheckpointError, ConfigError, MergeError
from bdh.merge import METHODS, Recipe, make_plan, merge, read_recipe, write
from bdh.merge.axes import groups
from bdh.merge.join import concatenate, concatenate_heads, heritage, join_config
from bdh.merge.parents import model_of
from bdh.models import Model, build, layer
from bdh.ops import step

JOINED = {
    "flat": FLAT,
    "flat-damped": FLAT_DAMPED,
    "hierarchical": HIERARCHICAL,
    "hierarchical-damped": HIERARCHICAL_DAMPED,
}
IDS = text(97)
WIDER = dataclasses.replace(FLAT, mlp_internal_dim_multiplier=6)


def loud(config: Config, seed: int) -> Model[Any]:
    return louder(build(config, seed=seed)).eval()


def joined(parents: list[Model[Any]], *, heads: bool = False, weights: list[float] | None = None) -> Model[Any]:
    configs = [parent.config for parent in parents]
    join = concatenate_heads if heads else concatenate
    tensors = join([parent.state_dict() for parent in parents], configs, weights or [1.0] * len(parents))
    return model_of(join_config(configs, heads=heads), tensors)


def heard(listener: Model[Any], ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return listener(ids).logits


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms add 1e-5 to a variance, so that of twice a small input they give not quite the same; here they add 0.

    Compiled loops have norms of their own, and are done without.
    """
    monkeypatch.setattr(step, "usable", lambda *_: False)
    monkeypatch.setattr(layer, "norm", lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-30))


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("heads", [False, True], ids=["neurons", "heads"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", sorted(JOINED))
def test_a_model_merged_with_itself_is_itself(kind: str, count: int, heads: bool) -> None:
    near(heard(joined([fresh(kind)] * count, heads=heads)), heard(model(kind)))


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("heads", [False, True], ids=["neurons", "heads"])
@pytest.mark.parametrize("kind", sorted(JOINED))
def test_a_parent_whose_neurons_are_all_zero_adds_nothing(kind: str, heads: bool) -> None:
    silent = fresh(kind)
    with torch.no_grad():
        for group in groups(silent.config):
            for name in group.names[:3]:
                silent.get_parameter(name).zero_()
    near(heard(joined([fresh(kind), silent, silent], heads=heads)), heard(model(kind)))


@pytest.mark.parametrize("heads", [False, True], ids=["neurons", "heads"])
@pytest.mark.parametrize("kind", sorted(JOINED))
def test_the_order_of_parents_does_not_matter(kind: str, heads: bool) -> None:
    parents = [loud(JOINED[kind], seed) for seed in (1, 2, 3)]
    one = heard(joined(parents, heads=heads, weights=[1.0, 2.0, 3.0]))
    other = heard(joined(parents[::-1], heads=heads, weights=[3.0, 2.0, 1.0]))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", sorted(JOINED))
def test_joining_heads_and_joining_neurons_compute_nothing_alike_but_for_equal_parents(kind: str) -> None:
    parents = [loud(JOINED[kind], seed) for seed in (1, 2)]
    by_neurons, by_heads = joined(parents), joined(parents, heads=True)
    assert by_neurons.parameter_count() == by_heads.parameter_count()
    assert not torch.allclose(heard(by_neurons), heard(by_heads), atol=1e-3)


@pytest.mark.usefixtures("exact_norms")
def test_parents_may_differ_in_neurons_and_each_neuron_keeps_its_head_and_its_frequency() -> None:
    first, second = loud(FLAT, 1), loud(WIDER, 2)
    both = joined([first, second])
    assert both.config.n_neuron == first.config.n_neuron + second.config.n_neuron
    cut = first.config.n_neuron
    for name in ("encoder", "encoder_v"):
        assert torch.equal(getattr(both, name)[:, :, :cut], getattr(first, name))
        assert torch.equal(getattr(both, name)[:, :, cut:], getattr(second, name))
    decoder = both.decoder.view(FLAT.n_head, -1, FLAT.n_embd)
    assert torch.equal(decoder[:, :cut].flatten(0, 1), first.decoder)
    assert torch.equal(decoder[:, cut:].flatten(0, 1), second.decoder)
    assert torch.equal(both.attn.freqs[..., :cut], first.attn.freqs)
    assert torch.equal(both.attn.freqs[..., cut:], second.attn.freqs)
    near(heard(joined([first, second, first, second])), heard(both))


def test_what_has_no_neurons_is_averaged_with_the_weights() -> None:
    first, second = loud(FLAT, 1), loud(WIDER, 2)
    both = joined([first, second], weights=[3.0, 1.0])
    torch.testing.assert_close(both.embed.weight, 0.75 * first.embed.weight + 0.25 * second.embed.weight)
    torch.testing.assert_close(both.lm_head, 0.75 * first.lm_head + 0.25 * second.lm_head)


def test_joined_heads_keep_their_damping() -> None:
    undamped = dataclasses.replace(FLAT_DAMPED, decay=())
    both = join_config([FLAT_DAMPED, undamped], heads=True)
    assert isinstance(both, FlatConfig)
    assert both.decay == (0.8, 0.97, 1.0, 1.0, 1.0, 1.0)
    assert both.n_head == 6 and both.n_neuron == FLAT_DAMPED.n_neuron


def test_heritage_counts_the_neurons_of_each_head_by_parent() -> None:
    assert heritage([FLAT, WIDER], heads=False) == {"": [[[0, 32], [1, 48]], [[0, 32], [1, 48]]]}
    assert heritage([FLAT, FLAT], heads=True) == {"": [[[0, 32]], [[0, 32]], [[1, 32]], [[1, 32]]]}


@pytest.mark.parametrize(
    ("configs", "heads", "named"),
    [
        ([FLAT, HIERARCHICAL], False, "mixture"),
        ([FLAT, FLAT_DAMPED], False, "n_embd"),
        ([FLAT, dataclasses.replace(FLAT, n_layer=3)], False, "n_layer"),
        ([FLAT_DAMPED, dataclasses.replace(FLAT_DAMPED, decay=())], False, "decay"),
        ([FLAT, WIDER], True, "32, 48 neurons a head"),
        ([TRANSFORMER, TRANSFORMER], False, "no neurons of the BDH kind"),
        ([HEBBIAN, HEBBIAN], True, "no neurons of the BDH kind"),
    ],
)
def test_parents_that_cannot_be_joined_are_refused_with_what_differs(
    configs: list[Config], heads: bool, named: str
) -> None:
    with pytest.raises(MergeError, match=named):
        join_config(configs, heads=heads)


def test_heads_of_other_frequencies_are_refused() -> None:
    other = fresh("flat")
    other.attn.freqs.mul_(0.5)
    with pytest.raises(MergeError, match="join the neurons"):
        joined([fresh("flat"), other], heads=True)


# Recipe, plan, checkpoint


@pytest.fixture
def parents(tmp_path: Path) -> list[str]:
    """Three flat checkpoints and their base."""
    base = louder(build(FLAT, seed=0))
    found = []
    for index, name in enumerate(("base", "one", "two", "three")):
        clone = build(FLAT, seed=0)
        clone.load_state_dict(base.state_dict())
        if index:
            with torch.no_grad():
                for parameter in clone.parameters():
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        found.append(str(clone.save_pretrained(tmp_path / name)))
    return found


def recipe(parents: list[str], method: str, **options: Any) -> Recipe:
    """A recipe with what the method needs."""
    chosen = parents[1:3] if method == "slerp" else parents[1:]
    if "base" in METHODS[method].options:
        options.setdefault("base", parents[0])
    return Recipe(parents=tuple(chosen), method=method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_checkpoint_that_loads_and_says_how_it_was_made(
    method: str, parents: list[str], tmp_path: Path
) -> None:
    wanted = recipe(parents, method)
    plan = make_plan(wanted)
    merged = merge(plan)
    out = write(merged, tmp_path / "out")
    loaded = bdh.load(out, device="cpu")
    assert loaded.config == plan.config
    assert loaded.parameter_count() == plan.parameter_count()
    torch.testing.assert_close(heard(loaded), heard(merged.model()), atol=1e-4, rtol=1e-4)
    told = json.loads((out / "provenance.json").read_text())
    sums = [parent["weights_sha256"] for parent in told["parents"]]
    assert sums == [bdh.load(parent, device="cpu").checksum() for parent in wanted.parents]
    assert told["merge"]["method"] == method
    card = (out / "README.md").read_text()
    assert f"`{method}`" in card and str(tmp_path) not in card + json.dumps(told)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_recipe_gives_the_same_bytes(method: str, parents: list[str], tmp_path: Path) -> None:
    made = [write(merge(make_plan(recipe(parents, method, seed=3))), tmp_path / name / "out") for name in "ab"]
    for file in ("model.safetensors", "config.json", "README.md", "provenance.json"):
        assert (made[0] / file).read_bytes() == (made[1] / file).read_bytes()


def test_parents_in_bfloat16_are_joined_without_touching_their_neurons(parents: list[str], tmp_path: Path) -> None:
    stored = [
        str(bdh.load(parent, device="cpu").save_pretrained(tmp_path / f"b{index}", dtype=torch.bfloat16))
        for index, parent in enumerate(parents[1:])
    ]
    merged = merge(make_plan(Recipe(parents=tuple(stored))))
    assert merged.tensors["encoder"].dtype == torch.bfloat16
    first = bdh.load(stored[0], device="cpu", dtype=torch.bfloat16)
    assert torch.equal(merged.tensors["encoder"][:, :, : FLAT.n_neuron], first.encoder)
    mixed = merge(
        make_plan(
            Recipe(parents=(stored[0], parents[2]), neurons=32, text="held"),
        ),
        text=b"some text " * 9,
    )
    one, two = bdh.load(stored[0], device="cpu"), bdh.load(parents[2], device="cpu")
    # The widest type decides, whichever parent has it, and nothing is rounded on the way.
    torch.testing.assert_close(mixed.tensors["lm_head"], (one.lm_head + two.lm_head) / 2, atol=1e-7, rtol=0)
    assert {tensor.dtype for tensor in mixed.tensors.values()} == {torch.float32}
    assert mixed.config.n_neuron == 32 and sum(n for _, n in mixed.heritage[""][0]) == 32  # type: ignore[union-attr]


def test_a_mixture_predicts_as_its_members_and_their_average_in_logits_is_weighed(parents: list[str]) -> None:
    members = [bdh.load(parent, device="cpu") for parent in parents[1:]]
    mixed = merge(make_plan(recipe(parents, "mixture", share_rate=0.0))).model()
    first = torch.stack([heard(one)[:, :1].softmax(-1) for one in members])
    # The first byte tells nothing of who is better: all have the same weight.
    torch.testing.assert_close(heard(mixed)[:, :1].softmax(-1), first.mean(0), atol=1e-5, rtol=1e-4)
    averaged = merge(make_plan(recipe(parents, "average-logits", weights=(1.0, 0.0, 3.0)))).model()
    expected = 0.25 * heard(members[0]) + 0.75 * heard(members[2])
    torch.testing.assert_close(heard(averaged), expected, atol=1e-4, rtol=1e-4)


def test_parents_of_any_kind_and_size_mix(tmp_path: Path) -> None:
    kinds = ("flat", "hierarchical", "hebbian", "transformer")
    sources = tuple(str(fresh(kind).save_pretrained(tmp_path / kind)) for kind in kinds)
    mixed = merge(make_plan(Recipe(parents=sources, method="mixture")))
    assert [member.kind for member in mixed.config.members] == list(kinds)  # type: ignore[union-attr]
    assert heard(mixed.model()).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"method": "sum"}, "method is 'sum'"),
        ({"weights": (1.0,)}, "3 parents need as many weights"),
        ({"weights": (0.0, 0.0, 0.0)}, "weights are all 0"),
        ({"weights": (1.0, -1.0, 1.0)}, "a weight is -1.0"),
        ({"weights": (1.0, float("nan"), 1.0)}, "a weight is nan"),
        ({"method": "slerp"}, "slerp takes 2 to 2"),
        ({"method": "ties"}, "needs the base"),
        ({"base": "x"}, "uses no base"),
        ({"method": "mixture", "weights": (1.0, 1.0, 1.0)}, "takes no weights"),
        ({"method": "mixture", "align": True}, "aligns nothing"),
        ({"method": "average", "neurons": 4}, "only concat is pruned"),
        ({"neurons": 5, "by": "random"}, "must be even"),
        ({"neurons": 4}, "a text is needed"),
        ({"by_reference": True}, "by reference"),
        ({"method": "mixture", "by_reference": True, "dtype": "bfloat16"}, "leave one of them out"),
        ({"density": 0.0}, "density is 0.0"),
        ({"seed": 0.5}, "seed is 0.5; it must be a whole number"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"align": 1}, "align is 1; it must be true or false"),
    ],
)
def test_a_recipe_is_refused_with_what_is_allowed(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(MergeError, match=named):
        Recipe(**({"parents": ("a", "b", "c")} | fields))


def test_a_recipe_in_toml_is_read_and_what_it_does_not_know_is_named(tmp_path: Path) -> None:
    path = tmp_path / "merge.toml"
    path.write_text('parents = ["a", "b"]\nmethod = "ties"\nbase = "c"\nweights = [1, 2.5]\n')
    assert read_recipe(path, {"density": 0.2}) == Recipe(
        parents=("a", "b"), method="ties", base="c", weights=(1, 2.5), density=0.2
    )
    path.write_text('parents = ["a", "b"]\nmode = "ties"\n')
    with pytest.raises(MergeError, match="does not know 'mode'"):
        read_recipe(path)
    path.write_text("parents = [")
    with pytest.raises(MergeError, match="is no TOML"):
        read_recipe(path)


def test_a_plan_is_made_without_the_weights_and_a_damaged_parent_is_then_found(
    parents: list[str], tmp_path: Path
) -> None:
    weights = Path(parents[1]) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"  # not a number, in the last tensor
    weights.write_bytes(bytes(data))
    plan = make_plan(Recipe(parents=tuple(parents[1:3])))
    assert plan.averaged() == ("embed.weight", "lm_head")
    assert "64 neurons" in plan.lines()[-2]
    with pytest.raises(CheckpointError, match="not finite"):
        merge(plan)
    assert not (tmp_path / "out").exists()


def test_the_command_shows_the_plan_and_writes_what_the_recipe_says(
    parents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    assert cli.main(["merge", *parents[1:3], "--weights", "1,3", "--dry-run"]) == 0
    assert "averaged: embed.weight, lm_head" in capsys.readouterr().out
    assert not out.exists()
    assert cli.main(["merge", *parents[1:3], "--weights", "1,3", "--out", str(out)]) == 0
    assert "written" in capsys.readouterr().out
    one, two = (bdh.load(parent, device="cpu") for parent in parents[1:3])
    both = bdh.load(out, device="cpu")
    torch.testing.assert_close(both.lm_head, 0.25 * one.lm_head + 0.75 * two.lm_head)
    toml = (out / "README.md").read_text().partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "merge.toml"
    path.write_text(toml)
    again = tmp_path / "again"
    assert cli.main(["merge", *parents[1:3], "--recipe", str(path), "--out", str(again), "--json"]) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert cli.main(["merge", parents[1], str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_mixture_stored_by_reference_holds_no_weights_and_loads_its_members_from_their_commits(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for index, name in enumerate(("user/bird", "user/fish")):
        folder = loud(FLAT, index).save_pretrained(tmp_path / name)
        server.add(name, {file.name: file.read_bytes() for file in folder.iterdir()})
    wanted = Recipe(parents=("user/bird", "user/fish"), method="mixture", by_reference=True)
    merged = merge(make_plan(wanted))
    out = write(merged, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["sources"] == [f"user/bird@{MAIN}", f"user/fish@{MAIN}"]
    assert (out / "model.safetensors").stat().st_size < 100
    assert "base_model:\n- user/bird\n- user/fish\nbase_model_relation: merge" in (out / "README.md").read_text()
    loaded = bdh.load(out, device="cpu")
    assert loaded.config == merged.config  # type: ignore[attr-defined]
    torch.testing.assert_close(heard(loaded), heard(merged.model()))
    again = bdh.load(bdh.save(loaded, tmp_path / "whole"), device="cpu", offline=True)
    torch.testing.assert_close(heard(again), heard(loaded))


def test_parents_on_the_hub_are_downloaded_only_for_a_merge_whose_plan_stands(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    wider = dataclasses.replace(FLAT, n_embd=2 * FLAT.n_embd)
    for name, config, seed in (("user/bird", FLAT, 0), ("user/fish", FLAT, 1), ("user/wide", wider, 2)):
        folder = loud(config, seed).save_pretrained(tmp_path / name)
        server.add(name, {file.name: file.read_bytes() for file in folder.iterdir()})
    with pytest.raises(MergeError):
        make_plan(Recipe(parents=("user/bird", "user/wide"), method="average"))
    plan = make_plan(Recipe(parents=(f"user/bird@{MAIN}", "user/fish"), method="average"))
    size = (tmp_path / "user/bird/model.safetensors").stat().st_size
    assert 0 < server.weight_bytes() < size / 4  # the headers alone
    merged = merge(plan)
    assert server.weight_bytes() > size
    told = [parent["commit"] for parent in merged.provenance()["parents"]]
    assert told == [f"user/bird@{MAIN}", f"user/fish@{MAIN}"]
    again = make_plan(Recipe(parents=("user/fish", "user/fish"), method="average"), offline=True)
    assert [parent.revision for parent in again.parents] == [MAIN, MAIN]  # known by their branch from now on
    here = make_plan(Recipe(parents=(str(tmp_path / "user/bird"), str(tmp_path / "user/fish")), method="average"))
    ours, theirs = merged.tensors, merge(here).tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_that_refers_to_another_kind_or_to_a_path_is_refused(server: Hub, tmp_path: Path) -> None:
    folder = fresh("hebbian").save_pretrained(tmp_path / "hebbian")
    server.add("user/bird", {file.name: file.read_bytes() for file in folder.iterdir()})
    config = ComposedConfig(method="mixture", members=(FLAT, FLAT), sources=(f"user/bird@{MAIN}",) * 2)
    checkpoint.write(tmp_path / "liar", config, {})
    with pytest.raises(CheckpointError, match="is a hebbian model and no flat one"):
        bdh.load(tmp_path / "liar", device="cpu")
    assert server.weight_bytes() == 0
    for source in ("../other", "user/bird", "user/bird@main", "/etc/passwd", 3):
        with pytest.raises(ConfigError, match="a source is"):
            ComposedConfig(method="mixture", members=(FLAT, FLAT), sources=(source,) * 2)  # type: ignore[arg-type]


def test_a_member_in_a_subfolder_is_referred_to_there_and_foreign_weights_are_not(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = loud(FLAT, 0).save_pretrained(tmp_path / "bird")
    server.add("user/birds", {f"small/{file.name}": file.read_bytes() for file in folder.iterdir()})
    wanted = Recipe(parents=("user/birds:small",) * 2, method="mixture", by_reference=True)
    out = write(merge(make_plan(wanted)), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["sources"] == [f"user/birds@{MAIN}:small"] * 2
    near(heard(bdh.load(out, device="cpu")), heard(loud(FLAT, 0)).log_softmax(-1))
    foreign = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "vocab_size": 256}
    files = {
        "config.json": json.dumps(foreign).encode(),
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
    }
    server.add("user/foreign", files)
    with pytest.raises(MergeError, match="no checkpoint of this project's format"):
        make_plan(Recipe(parents=("user/birds:small", "user/foreign"), method="mixture", by_reference=True))


def test_what_was_heard_of_a_text_is_told_by_its_checksum_and_an_empty_one_is_refused(
    parents: list[str], tmp_path: Path
) -> None:
    text = tmp_path / "heard.txt"
    text.write_bytes(b"a text to be heard " * 600)
    told = merge(make_plan(recipe(parents, "concat", neurons=32, text=str(text)))).provenance()
    first = text.read_bytes()[:8192]
    assert told["text"] == {"heard_bytes": 8192, "sha256": hashlib.sha256(first).hexdigest()}
    text.write_bytes(b"")
    with pytest.raises(MergeError, match="is empty"):
        merge(make_plan(recipe(parents, "concat", align=True, text=str(text))))


def test_parents_that_are_not_on_the_hub_are_not_referred_to(parents: list[str]) -> None:
    with pytest.raises(MergeError, match="one is not on the Hub"):
        make_plan(recipe(parents, "mixture", by_reference=True))
