"""The training loop: a generator of reports, so that whoever runs it can watch it and stop it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bdh import state as states
from bdh.errors import ConfigError, DataError
from bdh.models import Model, build

from .data import Split, Streams, load_split
from .evaluate import bits_per_byte
from .recipe import Recipe

_EVALUATION_BYTES = 16_384
_EVALUATION_STREAMS = 8
_MAY_CHANGE = ("name", "description", "steps", "decay_steps", "evaluate_every")


@dataclass(frozen=True)
class Report:
    """What happened since the report before."""

    step: int
    steps: int
    bits_per_byte: float
    """Of the training chunks, mean since the last report."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Bits per byte of each held-out text; empty between evaluations."""
    bytes_per_s: float = 0.0
    elapsed_s: float = 0.0
    remaining_s: float = 0.0


class Run:
    """A run and everything it needs to go on: weights, optimizer, carried state, places, generators."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.splits: list[Split] = [load_split(text, recipe.held_out) for text in recipe.texts]
        names = [split.name for split in self.splits]
        if len(set(names)) < len(names):
            raise DataError(
                f"the texts {', '.join(names)} need names that differ, so that their scores can be told apart"
            )
        for split in self.splits:
            if len(split.held_out) < 2 * _EVALUATION_STREAMS:
                raise DataError(
                    f"{split.name} keeps {len(split.held_out)} bytes to evaluate on and must keep "
                    f"{2 * _EVALUATION_STREAMS}: use a longer text or a larger held_out"
                )
        self.streams = Streams(self.splits, list(recipe.texts.values()), recipe.chunk_bytes, recipe.seed)
        self.model: Model[Any] = build(recipe.config(), seed=recipe.seed)
        decayed = [p for p in self.model.parameters() if p.dim() >= 2]
        plain = [p for p in self.model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(recipe.seed)
        torch.manual_seed(recipe.seed)  # dropout draws from the global generator
        self.state: Any = None
        self.step = 0
        self.elapsed_s = 0.0

    def save(self) -> None:
        """Write everything to the run's folder; a kill leaves the old file or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / "run.pt.new"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "torch_generator": torch.get_rng_state(),
                "streams": self.streams.state_dict(),
                "state": None if self.state is None else states.named_tensors(self.state),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
                "recipe": json.dumps(asdict(self.recipe)),
            },
            written,
        )
        os.replace(written, self.folder / "run.pt")

    def resume(self) -> None:
        """Go on from what `save` wrote."""
        saved = torch.load(self.folder / "run.pt", weights_only=True)
        before = json.loads(saved["recipe"])
        for name, value in json.loads(json.dumps(asdict(self.recipe))).items():
            # A longer run is the same run; so is one that is looked at more often, or called otherwise.
            if name not in _MAY_CHANGE and before.get(name) != value:
                raise ConfigError(
                    f"{name} was {before.get(name)!r:.100} in the run at {self.folder} and is {value!r:.100} now; "
                    "resume with the same recipe, or start a new run in another folder"
                )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch_generator"])
        self.streams.load_state_dict(saved["streams"])
        if saved["state"] is not None:
            template = self.model.empty_state(sum(self.recipe.texts.values()))
            self.state = states.from_named_tensors(template, saved["state"])
        self.step, self.elapsed_s = saved["step"], saved["elapsed_s"]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean nats a byte of one chunk, carrying the state on."""
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16):
            output = self.model(ids, self.state)
        self.state = states.detach(output.state)
        return F.cross_entropy(output.logits.float().flatten(0, 1), targets.flatten())

    def forget(self) -> None:
        """Let each row lose its memory by chance."""
        if self.state is None:
            return
        rows = int(sum(self.recipe.texts.values()))
        lost = torch.rand(rows, generator=self.generator) < self.recipe.reset
        if lost.any():
            empty = self.model.empty_state(rows)
            self.state = states.from_named_tensors(
                empty,
                {
                    name: torch.where(lost.view(-1, *[1] * (kept.dim() - 1)), fresh, kept)
                    for (name, kept), fresh in zip(
                        states.named_tensors(self.state).items(), states.named_tensors(empty).values(), strict=True
                    )
                },
            )

    def evaluate(self, limit: int = _EVALUATION_BYTES) -> dict[str, float]:
        """Bits per byte of each held-out text, its first `limit` bytes as several streams."""
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16):
            return {
                split.name: bits_per_byte(self.model, split.held_out[:limit], streams=_EVALUATION_STREAMS)
                for split in self.splits
            }


def fit(run: Run, *, report_every: int = 20) -> Iterator[Report]:
    """Train to the recipe's last step. Stopping the generator between reports loses nothing that was saved."""
    recipe, model = run.recipe, run.model
    model.train()
    started, start_step = time.monotonic() - run.elapsed_s, run.step
    begun = time.monotonic()
    nats, count = 0.0, 0
    while run.step < recipe.steps:
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.rate(run.step)
        run.forget()
        loss = run.loss(*run.streams.next())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.elapsed_s = time.monotonic() - started
        nats, count = nats + loss.item(), count + 1
        evaluate = run.step % recipe.evaluate_every == 0 or run.step == recipe.steps
        if run.step % report_every == 0 or evaluate:
            held_out = run.evaluate() if evaluate else {}
            if evaluate:
                run.save()
            per_step = (time.monotonic() - begun) / (run.step - start_step)
            yield Report(
                run.step,
                recipe.steps,
                nats / count / 0.6931471805599453,
                held_out,
                sum(recipe.texts.values()) * recipe.chunk_bytes / per_step,
                run.elapsed_s,
                (recipe.steps - run.step) * per_step,
            )
            nats, count = 0.0, 0
