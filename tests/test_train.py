"""Recipes, the loop and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import bdh
from bdh import checkpoint
from bdh.config import FlatConfig
from bdh.errors import ConfigError, DataError, TrainingError
from bdh.merge import Recipe as MergeRecipe
from bdh.merge import make_plan, merge, write
from bdh.models import build
from train.__main__ import main
from train.compare import contenders
from train.export import export
from train.folder import METRICS, STATE, Folder
from train.loop import AdamW, Report, Run, fit
from train.recipe import Recipe, list_recipes, load_recipe, read_fields, recipe_from_fields
from train.sources import Text

ROOT = Path(__file__).parents[1]
MODEL = {"kind": "flat", "n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "dropout": 0.1}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("The cat sat on the mat. " * 200)
    return path


def fields(text: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": MODEL,
        "texts": {"rhyme": {"rows": 2, "source": str(text)}},
        "chunk_bytes": 32,
        "steps": 12,
        "warmup_steps": 2,
        "decay_steps": 4,
        "evaluate_every": 6,
        "reset": 0.2,
        "sample_bytes": 0,
    } | changes


def recipe(text: Path, **changes: Any) -> Recipe:
    return Recipe(**fields(text, **changes))


def toml(path: Path, values: dict[str, Any]) -> Path:
    """A recipe as a file; JSON's plain values are TOML's."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for name, table in values.items():
        if isinstance(table, dict):
            for inner, value in table.items():
                if isinstance(value, dict):
                    plain += [f"[{name}.{inner}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
            flat = {k: v for k, v in table.items() if not isinstance(v, dict)}
            plain += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in flat.items())] if flat else []
    path.write_text("\n".join(plain))
    return path


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same(run: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in run.items():
        assert torch.equal(tensor, other[name]), name


RECIPES = [
    recipe
    for name in list_recipes()
    for fields in [read_fields(name, [])]
    for recipe in (contenders(fields, name).values() if "models" in fields else [recipe_from_fields(fields, name)])
]


@pytest.mark.parametrize("shipped", RECIPES, ids=lambda recipe: recipe.name)
def test_every_shipped_recipe_is_whole(shipped: Recipe) -> None:
    assert shipped.description.endswith(".")
    if not shipped.base:
        assert shipped.config().kind in ("flat", "hierarchical", "transformer")


ROWS = {
    "plain": {
        "text": "One line after another, and some more of them.\n",
        "content": "def add(a, b):\n    return a + b\n",
    },
    "tool-calling": {
        "query": "Where can I find live giveaways?",
        "tools": json.dumps(
            [{"name": "giveaways", "description": "Live giveaways.", "parameters": {"type": {"type": "str"}}}]
        ),
        "answers": json.dumps([{"name": "giveaways", "arguments": {"type": "game"}}]),
    },
}
"""Rows as the recipes' datasets have them, by form."""
SMALL = {
    "flat": {"n_layer": 1, "n_embd": 16, "n_head": 4, "mlp_internal_dim_multiplier": 4},
    "hierarchical": {
        "global_n_layer": 1, "global_n_embd": 16, "global_mlp_mult": 4,
        "local_n_layer": 1, "local_n_embd": 16, "local_mlp_mult": 4,
    },
    "transformer": {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": 32},
}  # fmt: skip


def shrunk(texts: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The texts of a recipe on a few bytes of their own format."""
    small = {}
    for name, value in texts.items():
        text = Text.parse(name, value)
        if text.dataset:
            path = tmp_path / f"{name}.jsonl"
            path.write_text((json.dumps(ROWS[text.form]) + "\n") * 400)
            small[name] = {"rows": 1, "source": str(path), "column": text.column, "form": text.form}
        elif text.source == "mine.txt":
            path = tmp_path / "mine.txt"
            path.write_text("A text of one's own. " * 500)
            small[name] = {"rows": 1, "source": str(path)}
        else:
            small[name] = text.fields() | {"rows": 1, "max_bytes": 20_000}
    return small


@pytest.mark.parametrize("shipped", RECIPES, ids=lambda recipe: recipe.name)
def test_every_shipped_recipe_starts_on_a_few_bytes_of_its_own_format(shipped: Recipe, tmp_path: Path) -> None:
    phases = tuple(
        phase | {"steps": 2, "chunk_bytes": 64, "texts": shrunk(phase["texts"], tmp_path)} for phase in shipped.phases
    )
    model = shipped.model | (SMALL[shipped.model["kind"]] if "kind" in shipped.model else {})
    base = shipped.base
    if base and not Path(base).is_dir():  # one's own, which the recipe can only give an example of
        base = str(build(FlatConfig(**SMALL["flat"])).save_pretrained(tmp_path / "base"))
    small = dataclasses.replace(
        shipped, base=base, model=model, texts=shrunk(shipped.texts, tmp_path), phases=phases, steps=2, chunk_bytes=64,
        evaluate_every=2, sample_bytes=8, validation_bytes=256,
    )  # fmt: skip
    reports = list(fit(Run(small, tmp_path / "run"), report_every=1))
    assert [report.step for report in reports if report.step] == list(range(1, 2 * max(1, len(phases)) + 1))
    assert all(0 < report.bits_per_byte < 20 for report in reports)
    assert reports[-1].validation.keys() == small.parts()[-1].texts.keys()
    assert reports[-1].sample


CASES: list[dict[str, Any]] = [
    {},
    {"carried": False},
    {"micro_rows": 1},
    {"recompute": "on"},
    {"trained": "lora", "lora_rank": 2},
    {"activity": 0.2, "activity_steps": 5},
    {"precision": "float32", "schedule": "cosine"},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda case: ",".join(case) or "plain")
def test_a_run_that_is_resumed_is_the_run(text: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = Run(recipe(text, **changes), tmp_path / "whole")
    reports = list(fit(whole, report_every=1))
    first = Run(recipe(text, **changes), tmp_path / "parts")
    before: list[Report] = []
    for report in fit(first, report_every=1):
        before.append(report)
        if report.step == 8:  # two steps beyond the save, which are taken again
            break
    second = Run(recipe(text, **changes), tmp_path / "parts")
    second.resume()
    assert second.step == 6
    after = list(fit(second, report_every=1))
    assert_same(weights(whole), weights(second))
    assert [r.bits_per_byte for r in before[:6] + after] == [r.bits_per_byte for r in reports]
    assert [measure["step"] for measure in second.folder.measures()] == list(range(1, 13))


def test_phases_follow_each_other_and_a_run_resumed_in_the_second_is_the_run(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("abcdefgh" * 500)
    phases = [
        {"name": "first", "steps": 6},
        {"name": "second", "steps": 12, "texts": {"other": {"rows": 3, "source": str(other)}}, "chunk_bytes": 16},
    ]
    whole = Run(recipe(text, phases=phases), tmp_path / "whole")
    reports = list(fit(whole, report_every=1))
    assert [report.phase for report in reports] == ["first"] * 6 + ["second"] * 12
    assert reports[5].validation.keys() == {"rhyme"} and reports[-1].validation.keys() == {"other"}
    assert (tmp_path / "whole" / "best" / "first" / "model.safetensors").is_file()
    assert (tmp_path / "whole" / "best" / "second" / "model.safetensors").is_file()
    first = Run(recipe(text, phases=phases), tmp_path / "parts")
    for report in fit(first, report_every=1):
        if report.step == 13:
            break
    second = Run(recipe(text, phases=phases), tmp_path / "parts")
    second.resume()
    assert (second.step, second.phase, second.phase_step) == (12, 1, 6)
    list(fit(second))
    assert_same(weights(whole), weights(second))


def test_gradients_added_up_row_by_row_are_those_of_the_batch(text: Path, tmp_path: Path) -> None:
    model = {**MODEL, "dropout": 0.0}
    found = []
    for micro in (4, 1, 3):
        texts = {"rhyme": {"rows": 4, "source": str(text)}}
        run = Run(recipe(text, model=model, texts=texts, micro_rows=micro, precision="float32"), tmp_path / str(micro))
        list(fit(run))
        found.append(weights(run))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-4)


def test_our_adamw_takes_the_steps_of_torchs_with_decay_and_warm_up(text: Path, tmp_path: Path) -> None:
    run = Run(recipe(text, weight_decay=0.3, learning_rate=0.02, precision="float32"), tmp_path)
    groups = [
        {**group, "params": [one.detach().clone().requires_grad_() for one in group["params"]], "fused": False}
        for group in run.optimizer.param_groups
    ]
    assert type(run.optimizer) is AdamW and {group["weight_decay"] for group in groups} == {0.0, 0.3}
    twin = torch.optim.AdamW(groups, foreach=False)
    step, rates = run.optimizer.step, []

    def both(*given: Any, **named: Any) -> Any:
        rates.append(run.optimizer.param_groups[0]["lr"])
        for ours, theirs in zip(run.optimizer.param_groups, twin.param_groups, strict=True):
            theirs["lr"] = ours["lr"]
            for mine, other in zip(ours["params"], theirs["params"], strict=True):
                other.grad = None if mine.grad is None else mine.grad.clone()
        twin.step()
        return step(*given, **named)

    run.optimizer.step = both  # type: ignore[method-assign]
    list(fit(run))
    assert len(rates) == 12 and rates[0] < rates[1] == max(rates) == 0.02 and rates[-1] < rates[-4]
    for ours, theirs in zip(run.optimizer.param_groups, twin.param_groups, strict=True):
        for mine, other in zip(ours["params"], theirs["params"], strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)
            for name, value in twin.state[other].items():
                torch.testing.assert_close(run.optimizer.state[mine][name], value, atol=1e-7, rtol=1e-5)


class Spied(Accelerator):
    """Tells what is left to accelerate, in a way of training that it calls as is said here."""

    way = "NO"

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[tuple[type, ...]] = []
        self.clipped = 0

    @property
    def distributed_type(self) -> Any:
        return self.way

    def prepare(self, *given: Any, **named: Any) -> Any:
        self.prepared.append(tuple(type(one) for one in given))
        return super().prepare(*given, **named)

    def clip_grad_norm_(self, *given: Any, **named: Any) -> Any:
        self.clipped += 1
        return super().clip_grad_norm_(*given, **named)


@pytest.mark.parametrize("way", ["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU"])
def test_shortcuts_past_accelerate_are_taken_where_each_process_has_the_whole_model_and_learn_the_same(
    way: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(recipe(text, precision="float32"), tmp_path / "usual")
    list(fit(whole))
    spied = Spied()
    monkeypatch.setattr(Spied, "way", way)
    run = Run(recipe(text, precision="float32"), tmp_path / "spied", accelerator=spied)
    list(fit(run))
    short = way != "MULTI_NPU"
    assert spied.clipped == (0 if short else 12)
    assert spied.prepared == ([(AdamW,)] if short else [(type(run.model), AdamW)])
    assert_same(weights(whole), weights(run))


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_way_of_training_that_splits_the_model_is_refused_before_anything_is_written(
    way: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied()
    monkeypatch.setattr(Spied, "way", way)
    with pytest.raises(ConfigError, match=f"accelerate is set to {way}, which splits a model"):
        Run(recipe(text), tmp_path / "run", accelerator=spied)
    assert not (tmp_path / "run").exists()


def test_training_learns_a_text_that_repeats(text: Path, tmp_path: Path) -> None:
    run = Run(recipe(text, steps=150, evaluate_every=150, learning_rate=0.01, sample_bytes=40), tmp_path / "run")
    reports = list(fit(run))
    assert reports[-1].validation["rhyme"] < 1.0 < reports[0].bits_per_byte
    assert 0 < len(reports[-1].sample) <= 40
    assert set(reports[0].active) == {"x_sparse", "y_sparse"}


def test_activity_is_steered_to_its_target(text: Path, tmp_path: Path) -> None:
    changes = {"steps": 200, "evaluate_every": 200, "learning_rate": 0.01, "activity": 0.1, "activity_steps": 60}
    reports = list(fit(Run(recipe(text, **changes), tmp_path / "run")))
    assert reports[0].active["x_sparse"] > 0.25
    assert 0.05 < reports[-1].active["x_sparse"] < 0.16


def test_without_a_better_validation_the_run_stops_and_its_best_weights_are_exported(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(recipe(text, steps=60, evaluate_every=5, patience=2), tmp_path / "run")
    told = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def validate() -> dict[str, float]:
        kept[run.step] = weights(run)
        return {"rhyme": next(told)}

    monkeypatch.setattr(run, "validate", validate)
    reports = list(fit(run))
    assert reports[-1].step == 20 and "since step 10" in reports[-1].stopped
    best = bdh.load(tmp_path / "run" / "best", device="cpu").state_dict()
    assert_same(kept[10], best)
    again = Run(run.recipe, tmp_path / "run")
    again.resume()
    assert list(fit(again)) == []


def test_a_loss_that_is_not_finite_ends_the_run_and_what_was_saved_goes_on(text: Path, tmp_path: Path) -> None:
    run = Run(recipe(text), tmp_path / "run")
    reports: Iterator[Report] = fit(run, report_every=1)
    for report in reports:
        if report.step == 6:
            break
    with torch.no_grad():
        run.model.lm_head.fill_(float("nan"))  # type: ignore[operator, union-attr]
    with pytest.raises(TrainingError, match="not finite any more at step 7"):
        next(reports)
    again = Run(recipe(text), tmp_path / "run")
    again.resume()
    assert list(fit(again))[-1].step == 12


def test_where_memory_runs_out_fewer_rows_go_through_at_once(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"rhyme": {"rows": 8, "source": str(text)}}
    run = Run(recipe(text, texts=texts, steps=2), tmp_path / "run")
    loss, sizes = run._loss, []

    def tight(ids: torch.Tensor, *rest: Any) -> Any:
        sizes.append(ids.shape[0])
        if ids.shape[0] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return loss(ids, *rest)

    monkeypatch.setattr(run, "_loss", tight)
    assert [report.step for report in fit(run, report_every=1)] == [1, 2]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]


def test_a_full_disk_ends_the_run_in_words_and_keeps_what_was_saved(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(recipe(text), tmp_path / "run")
    reports = fit(run, report_every=6)
    next(reports)
    kept = (tmp_path / "run" / STATE).read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"could not be saved .*No space left"):
        next(reports)
    assert (tmp_path / "run" / STATE).read_bytes() == kept
    assert sorted(path.name for path in (tmp_path / "run").glob("*.new")) == []


def test_a_run_killed_at_any_moment_goes_on_to_the_same_weights(text: Path, tmp_path: Path) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text, steps=40, evaluate_every=4))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(*more: str) -> list[str]:
        return [sys.executable, "-m", "train", str(path), "--out", str(tmp_path / "killed"), *more]

    process = subprocess.Popen(command(), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / STATE).is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command("--resume"), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    whole = Run(recipe(text, steps=40, evaluate_every=4), tmp_path / "whole")
    list(fit(whole))
    killed = torch.load(tmp_path / "killed" / STATE, weights_only=True)
    assert killed["step"] == 40
    assert_same(weights(whole), killed["model"])
    assert [m["step"] for m in whole.folder.measures()] == [
        json.loads(line)["step"] for line in (tmp_path / "killed" / METRICS).read_text().splitlines()
    ]


def test_two_processes_give_what_one_gives(text: Path, tmp_path: Path) -> None:
    values = fields(text, model={**MODEL, "dropout": 0.0}, precision="float32", texts={})
    values["texts"] = {"rhyme": {"rows": 4, "source": str(text)}}
    path = toml(tmp_path / "tiny.toml", values)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    port = 21_000 + os.getpid() % 10_000
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port), "--module"]
    run = subprocess.run(
        [*launch, "train", str(path), "--out", str(tmp_path / "two")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    one = Run(Recipe(**values), tmp_path / "one")
    reports = list(fit(one))
    two = torch.load(tmp_path / "two" / STATE, weights_only=True)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(two["model"][name], tensor, atol=1e-4, rtol=1e-3)
    for name, tensor in bdh.state.named_tensors(one.state).items():
        torch.testing.assert_close(two["state"][name], tensor, atol=1e-3, rtol=1e-2)
    measures = [json.loads(line) for line in (tmp_path / "two" / METRICS).read_text().splitlines()]
    assert [m["bits_per_byte"] for m in measures] == pytest.approx([r.bits_per_byte for r in reports], abs=1e-4)


def test_resuming_with_another_recipe_or_text_is_refused(text: Path, tmp_path: Path) -> None:
    list(fit(Run(recipe(text), tmp_path / "run")))
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.002"):
        Run(recipe(text, learning_rate=0.5), tmp_path / "run").resume()
    text.write_text("The dog sat on the mat. " * 200)
    with pytest.raises(ConfigError, match="rhyme is not what the run"):
        Run(recipe(text), tmp_path / "run").resume()


def test_a_damaged_save_is_refused_in_words(text: Path, tmp_path: Path) -> None:
    list(fit(Run(recipe(text), tmp_path / "run")))
    state = tmp_path / "run" / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(bdh.CheckpointError, match="is damaged"):
        Run(recipe(text), tmp_path / "run").resume()


def test_the_command_trains_and_writes_a_checkpoint_that_loads(text: Path, tmp_path: Path) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text, steps=4, evaluate_every=2))
    assert main([str(path), "--out", str(tmp_path / "run"), "decay_steps=2"]) == 0
    model = bdh.load(tmp_path / "run" / "checkpoint")
    assert model.origin is not None
    assert model.origin.provenance["bytes_heard"] == 4 * 32 * 2
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    assert "license: unknown" in card and "## Learning curve" in card and "| 4 | 256 | " in card
    assert f"{model.origin.provenance['held_out_bits_per_byte']['rhyme']:.3f}" in card
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["decay_steps"] == 2
    assert main([str(path), "--out", str(tmp_path / "run")]) == 2


def test_a_run_begun_anew_in_the_folder_of_another_has_its_own_measures_alone(text: Path, tmp_path: Path) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text))
    command = [str(path), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 0
    assert main([*command, "--overwrite", "steps=6", "evaluate_every=3"]) == 0
    lines = (tmp_path / "run" / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]


def test_the_recipe_on_a_card_is_the_recipe(text: Path, tmp_path: Path) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text, steps=2, evaluate_every=2))
    assert main([str(path), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    (tmp_path / "again.toml").write_text(card.split("```toml\n")[1].split("```")[0])
    assert load_recipe(str(tmp_path / "again.toml"), []) == load_recipe(str(path), [])


def test_a_base_is_gone_on_from_and_its_shape_cannot_be_changed(text: Path, tmp_path: Path) -> None:
    base = bdh.build(bdh.FlatConfig(**{k: v for k, v in MODEL.items() if k != "kind"}), seed=7)
    base.save_pretrained(tmp_path / "base")
    changes = {"base": str(tmp_path / "base"), "model": {"dropout": 0.3}}
    run = Run(recipe(text, **changes), tmp_path / "run")
    assert run.model.config.dropout == 0.3
    assert_same(weights(run), base.state_dict())
    with pytest.raises(ConfigError, match="changes the shape"):
        Run(recipe(text, **(changes | {"model": {"n_embd": 32}})), tmp_path / "other")
    with pytest.raises(ConfigError, match="is a flat model"):
        Run(recipe(text, **(changes | {"model": {"kind": "hierarchical"}})), tmp_path / "other")


def test_a_merged_model_that_is_trained_on_keeps_its_lineage(text: Path, tmp_path: Path) -> None:
    small = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=2)
    parents = tuple(str(build(small, seed=i).save_pretrained(tmp_path / f"parent{i}")) for i in range(2))
    merged = merge(make_plan(MergeRecipe(parents=parents)))
    base = write(merged, tmp_path / "merged")
    run = Run(recipe(text, base=str(base), model={}, steps=2), tmp_path / "run")
    list(fit(run))
    folder = export(run, tmp_path / "healed")
    told = checkpoint.read_provenance(folder)
    assert told["heritage"] == merged.heritage == {"": [[[0, 16], [1, 16]], [[0, 16], [1, 16]]]}
    assert [parent["weights_sha256"] for parent in told["parents"]] == list(merged.checksums)
    assert "- **merged from**: `parent0`, `parent1` by `concat`, before" in checkpoint.read_card(folder)
    assert told["recipe"]["base"] == "merged" and str(tmp_path) not in checkpoint.read_card(folder).replace(
        str(text), ""
    )


def test_a_deep_composition_learns_its_combiner_and_leaves_its_members_alone(text: Path, tmp_path: Path) -> None:
    small = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=2)
    parents = tuple(str(build(small, seed=i).save_pretrained(tmp_path / f"parent{i}")) for i in range(2))
    base = write(merge(make_plan(MergeRecipe(parents=parents, method="deep", width=8))), tmp_path / "merged")
    run = Run(recipe(text, base=str(base), model={}, learning_rate=1e-2), tmp_path / "run")
    first, *rest = fit(run)
    assert rest[-1].validation["rhyme"] < first.bits_per_byte - 0.5
    before, after = bdh.load(base, device="cpu").state_dict(), run.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"combiner.weight", "combiner.bias", "output_proj.weight", "output_proj.bias"}


def test_a_run_from_a_base_begins_with_what_the_base_scores_and_the_card_says_both(text: Path, tmp_path: Path) -> None:
    base = bdh.build(bdh.FlatConfig(**{key: value for key, value in MODEL.items() if key != "kind"}), seed=3)
    base.save_pretrained(tmp_path / "base")
    run = Run(recipe(text, base=str(tmp_path / "base"), model={}, learning_rate=1e-2), tmp_path / "run")
    first, *rest = fit(run)
    assert first.step == 0 and first.best_step == 0
    assert first.validation == {"rhyme": pytest.approx(first.bits_per_byte)}
    assert rest[-1].validation["rhyme"] < first.bits_per_byte - 0.1
    folder = export(run, tmp_path / "made")
    told = checkpoint.read_provenance(folder)
    before, after = told["base_held_out_bits_per_byte"]["rhyme"], told["held_out_bits_per_byte"]["rhyme"]
    assert after < before
    assert f"| rhyme | {before:.3f} | {after:.3f} |" in checkpoint.read_card(folder)


def test_minutes_bound_a_run_by_the_clock_and_its_schedule_with_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("train.loop.time.monotonic", lambda: now[0])
    run = Run(recipe(text, minutes=1, steps=100, warmup_steps=0, decay_steps=50, evaluate_every=25), tmp_path / "run")
    step = run.train_step

    def ten_seconds() -> Any:
        now[0] += 10
        return step()

    monkeypatch.setattr(run, "train_step", ten_seconds)
    reports = list(fit(run, report_every=1))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    rates = [report.learning_rate / 2e-3 for report in reports]
    assert rates == pytest.approx([1, 1, 1, 1, 0.68, 0.34])  # after 0, 16, 33, 50, 66 and 83 of 100 steps
    assert [report.remaining_s for report in reports] == [50, 40, 30, 20, 10, 0]
    assert {report.steps for report in reports} == {6}
    assert [bool(report.validation) for report in reports] == [False, True, True, False, True, True]


def test_a_run_that_another_process_asks_to_stop_ends_after_the_step_under_way(text: Path, tmp_path: Path) -> None:
    run = Run(recipe(text), tmp_path / "run")
    seen = []
    for report in fit(run, report_every=1):
        seen.append(report.step)
        if report.step == 3:
            Folder(tmp_path / "run").ask_to_stop()
    assert seen == [1, 2, 3, 4] and run.asked_to_stop
    run.folder.end("stopped")
    assert not run.folder.asked_to_stop()


def test_minutes_and_phases_do_not_go_together(text: Path) -> None:
    with pytest.raises(ConfigError, match="bounded by their steps"):
        recipe(text, minutes=1, phases=({"name": "one"},))


def test_a_run_leaves_behind_how_it_ended(text: Path, tmp_path: Path) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text))
    arguments = [str(path), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(arguments) == 0
    assert Folder(tmp_path / "run").ended() == ("finished", "")
    assert main([*arguments, "--resume", "learning_rate=0.5"]) == 2
    run = Run(recipe(text), tmp_path / "other")
    run.folder.end("failed", "the disk is full")
    assert run.folder.ended() == ("failed", "the disk is full")
    run.folder.go_on()
    assert run.folder.ended() == ("", "")


def test_a_dry_run_says_what_it_takes_and_leaves_nothing_to_resume(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text))
    assert main([str(path), "--out", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["heard_bytes"] == 12 * 32 * 2
    assert found["parameters"] == bdh.build(load_recipe(str(path), []).config()).parameter_count()
    assert found["micro_rows"] == 2 and found["seconds"] > 0 and found["memory_bytes"] > 0
    assert not (tmp_path / "run" / STATE).exists()


def test_reports_are_lines_of_json_on_request(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text))
    assert main([str(path), "--out", str(tmp_path / "run"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines[:-1]] == [6, 12]
    assert lines[-1] == {"checkpoint": str(tmp_path / "run" / "checkpoint")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=5.5", "steps is 5.5"),
        ("learning_rate=x", "learning_rate is 'x'"),
        ("nonsense=1", "does not know 'nonsense'"),
        ("warmup_steps=-1", "warmup_steps is -1"),
        ("texts=3", "texts of"),
        ("schedule=linear", "stable-decay or cosine"),
        ("trained=half", "trained is 'half'"),
        ("carried=1", "carried is 1"),
        ("name=../up", "name is"),
        ("steps", "no key=value pair"),
        ("steps.more=1", "steps is no table"),
        ("phases=[{steps=3, colour=1}]", "a phase does not know 'colour'"),
        ('phases=[{name="../up"}]', "a phase is called"),
    ],
)
def test_a_value_that_does_not_fit_is_named(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hatchling", override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "message"), [(300, "bytes to validate on and must keep 16"), (900, "too few for chunks of 5000")]
)
def test_a_text_too_short_is_refused_before_training(size: int, message: str, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("x" * size)
    with pytest.raises(DataError, match=message):
        Run(recipe(text, chunk_bytes=5000), tmp_path / "run")


def test_ctrl_c_ends_a_run_after_the_step_under_way_and_the_command_it_prints_goes_on(
    text: Path, tmp_path: Path
) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text, evaluate_every=100_000))
    command = [sys.executable, "-m", "train", str(path), "steps=4000", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("step 40/") for line in lines)
    process.send_signal(signal.SIGINT)
    last = list(lines)[-1]
    assert process.wait() == 130
    step = torch.load(tmp_path / "run" / STATE, weights_only=True)["step"]
    assert last.startswith(f"stopped after step {step}; go on with: python -m train {path} steps=4000")
    arguments = shlex.split(last.split("go on with: python -m train ")[1])
    again = Run(load_recipe(arguments[0], [arguments[1]]), tmp_path / "run")
    again.resume()
    assert again.step == step >= 40 and arguments[-1] == "--resume"


def test_an_impossible_folder_is_refused_in_words(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text))
    assert main([str(path), "--out", str(text)]) == 2
    assert "choose another" in capsys.readouterr().err


def test_resuming_where_there_is_no_run_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = toml(tmp_path / "tiny.toml", fields(text))
    assert main([str(path), "--out", str(tmp_path / "none"), "--resume"]) == 2
    assert "holds no run to go on with" in capsys.readouterr().err
