"""What of a model learns, and what a checkpoint of it holds."""

from __future__ import annotations

import pytest
import torch
from zoo import fresh, model

from bdh.errors import ConfigError
from bdh.models.observe import observing
from bdh.ops import loops
from train.memory import kept_bytes, plan, recomputes, set_recompute
from train.sparsity import Activity
from train.strategy import choose_trained, plain_tensors

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def trained_a_step(kind: str, trained: str) -> tuple[torch.nn.Module, set[str]]:
    """A model after one step, and the names of the plain weights that changed."""
    tuned = fresh(kind)
    before = {name: tensor.clone() for name, tensor in plain_tensors(tuned).items()}
    choose_trained(tuned, trained, rank=2, alpha=4.0)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the first step of LoRA moves only one of its two factors
        tuned(IDS).logits.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = plain_tensors(tuned)
    assert after.keys() == before.keys()
    return tuned, {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_lora_changes_encoders_and_decoders_alone(kind: str) -> None:
    _, changed = trained_a_step(kind, "lora")
    assert changed and {name.split(".")[-1] for name in changed} == {"encoder", "encoder_v", "decoder"}


@pytest.mark.parametrize(
    ("trained", "prefixes"),
    [("local", ("local_model.",)), ("global", ("global_model.", "patch_embedder.")), ("head", ("lm_head",))],
)
def test_a_part_learns_alone(trained: str, prefixes: tuple[str, ...]) -> None:
    _, changed = trained_a_step("hierarchical", trained)
    assert changed and all(name.startswith(prefixes) for name in changed)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("flat", {"embed.weight", "lm_head"}),
        ("hierarchical", {"patch_embedder.byte_embed.weight", "lm_head.weight"}),
        ("transformer", {"tok_emb.weight"}),
    ],
)
def test_the_ends_are_the_embedding_and_the_read_out(kind: str, names: set[str]) -> None:
    assert trained_a_step(kind, "ends")[1] == names


def test_low_rank_additions_are_plain_weights_in_a_checkpoint() -> None:
    tuned, _ = trained_a_step("flat", "lora")
    plain = fresh("flat")
    plain.load_state_dict(plain_tensors(tuned))
    torch.testing.assert_close(plain(IDS).logits, tuned(IDS).logits, atol=1e-6, rtol=1e-5)


def test_before_its_first_step_lora_changes_nothing() -> None:
    tuned = fresh("flat")
    choose_trained(tuned, "lora", rank=3)
    assert torch.equal(tuned(IDS).logits, model("flat")(IDS).logits)


@pytest.mark.parametrize(
    ("kind", "trained", "message"),
    [
        ("flat", "local", "no part of its own called local"),
        ("flat", "global", "choose full, lora, head or ends"),
        ("transformer", "lora", "no encoder"),
    ],
)
def test_a_part_that_a_model_lacks_is_refused(kind: str, trained: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_trained(fresh(kind), trained)


def test_a_rank_above_a_matrix_is_refused() -> None:
    with pytest.raises(ConfigError, match="lora_rank is 1000"):
        choose_trained(fresh("flat"), "lora", rank=1000)


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_recomputing_keeps_less_and_gives_the_same_gradients(kind: str) -> None:
    gradients = []
    for recompute in (False, True):
        tuned = fresh(kind)
        set_recompute(tuned, recompute)
        assert recomputes(tuned) is recompute
        tuned(IDS, tuned.empty_state(2)).logits.float().square().mean().backward()
        gradients.append({name: p.grad for name, p in tuned.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    tuned = fresh(kind)
    kept = [kept_bytes(tuned, 64, recompute=again, precision=torch.float32) for again in (False, True)]
    assert kept[1] < 0.7 * kept[0]
    assert not recomputes(tuned)


@pytest.mark.parametrize("press", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_recomputing_while_activity_is_looked_at_gives_the_same_gradients(
    press: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "usable", lambda device: compiled)
    found = []
    for recompute in (False, True):
        tuned, activity = fresh("flat"), Activity(press=press)
        set_recompute(tuned, recompute)
        with observing(activity):
            loss = tuned(IDS, tuned.empty_state(2)).logits.float().square().mean()
        (loss + activity.penalty() if press else loss).backward()
        found.append((activity.mean("x_sparse"), [p.grad for p in tuned.parameters()]))
    assert found[0][0] == found[1][0] > 0
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_rows_go_through_at_once_as_far_as_memory_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = fresh("flat")
    options = {"micro_rows": 0, "recompute": "off", "precision": torch.float32}
    row = kept_bytes(tuned, 64, recompute=False, precision=torch.float32)
    wide = plan(tuned, 8, 64, **options)
    assert (wide.micro_rows, wide.recompute, wide.bytes_a_row) == (8, False, row)
    fixed = wide.step_bytes - 8 * row
    monkeypatch.setattr("train.memory.free_bytes", lambda device: int((fixed + 3.5 * row) / 0.7))
    assert plan(tuned, 8, 64, **options).micro_rows == 3
    assert plan(tuned, 8, 64, **{**options, "micro_rows": 2}).micro_rows == 2
    monkeypatch.setattr("train.memory.free_bytes", lambda device: int((fixed + 0.9 * row) / 0.7))
    tight = plan(tuned, 8, 64, **{**options, "recompute": "auto"})
    assert tight.recompute and tight.micro_rows >= 1
