"""The training loop: a generator of reports, so that whoever runs it can watch it and stop it."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from bdh import state as states
from bdh.config import config_from_dict, config_to_dict
from bdh.device import is_out_of_memory
from bdh.errors import ConfigError, DataError, TrainingError
from bdh.load import load
from bdh.models import Model, build
from bdh.models.observe import observing
from bdh.sampling import Sampling
from bdh.stream import Stream

from .data import Splits, Streams, split
from .evaluate import bits_per_byte
from .folder import Folder, TextSums
from .memory import Plan, plan, set_recompute
from .recipe import Phase, Recipe
from .shares import Workers, add_gradients, choose_count, cut
from .sources import Prepared, prepare
from .sparsity import Activity, Steering
from .strategy import choose_trained, plain_tensors

_EVALUATION_STREAMS = 8
_NATS = math.log(2)
_TELL_S = 10.0
"""After so many seconds there is a report, however few steps were taken."""
_WHOLE = ("NO", "MULTI_CPU", "MULTI_GPU")
"""Ways of accelerate's in which each process has the whole model, and clips and steps as one alone does."""
_SPLIT = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Ways in which it has a part, which a save would take for all."""
LOOK_EVERY = 20
"""Steps between two looks at how much is active, where nothing steers it."""


class _Pass(NamedTuple):
    """What came of some rows."""

    nats: float
    """Mean a byte, times the part of the batch that these rows are."""
    state: Any
    activity: Activity
    gradients: Sequence[Tensor | None]
    """Of what learns, where they were not added to it at once."""


@dataclass(frozen=True)
class Report:
    """What happened since the report before."""

    step: int
    steps: int
    phase: str
    heard_bytes: int
    """Trained on so far, in all phases."""
    bits_per_byte: float
    """Of the training chunks, mean since the last report; of a base before its first step, that of `validation`."""
    learning_rate: float
    gradient_norm: float
    """Before clipping, at the last step."""
    active: dict[str, float] = field(default_factory=dict)
    """Part of x_sparse and of y_sparse that is above 0, mean over layers, at the last look."""
    penalty_weight: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)
    """Bits per byte of each text's validation part; empty between validations."""
    best_step: int = 0
    """Where the mean of these was lowest in this phase."""
    sample: str = ""
    bytes_per_s: float = 0.0
    elapsed_s: float = 0.0
    remaining_s: float = 0.0
    stopped: str = ""
    """Why the run ends here, if it ends before its last step."""


class AdamW(torch.optim.AdamW):
    """AdamW as it is, without the guards that keep torch's compiler out of it: importing that takes a second."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Run:
    """A run and everything it needs to go on: weights, optimizer, carried state, places, generators."""

    def __init__(
        self, recipe: Recipe, folder: Path, *, accelerator: Accelerator | None = None, cache: Path | None = None
    ) -> None:
        """Prepare texts, weights and optimizer.

        Args:
            folder: everything that the run writes goes there.
            accelerator: device and processes; by default what is there.
            cache: where prepared texts are kept, by default in the run's folder.

        Raises:
            HatcheryError: the recipe asks for what there is not.
        """
        self.recipe = recipe
        self.accelerator = accelerator or Accelerator()
        if (way := self._way) in _SPLIT:
            raise ConfigError(
                f"accelerate is set to {way}, which splits a model among processes, and a run's saves need all of it; "
                "choose no distributed training, or MULTI_GPU or MULTI_CPU (accelerate config)"
            )
        self.folder = Folder(folder, writes=self.accelerator.is_main_process)
        self.parts = recipe.parts()
        cache = cache or folder / "texts"
        with self.accelerator.main_process_first():
            prepared: dict[Any, Prepared] = {}
            for text in [text for part in self.parts for text in recipe.sources(part)]:
                prepared[text] = prepared.get(text) or prepare(text, cache)
        self.splits: list[list[Splits]] = [
            [split(prepared[text], validation=recipe.validation, test=recipe.test) for text in recipe.sources(part)]
            for part in self.parts
        ]
        for part, splits in zip(self.parts, self.splits, strict=True):
            self._check(part, splits)
        self.model: Model[Any] = self._weights()
        choose_trained(self.model, recipe.trained, rank=recipe.lora_rank, alpha=recipe.lora_alpha, seed=recipe.seed)
        self.model.train()
        self._learning = learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = AdamW(
            [
                {"params": [p for p in learning if p.dim() >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in learning if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        self.model.to(self.accelerator.device)
        self._called: Any = self.model
        alone = self.accelerator.num_processes == 1 and self.accelerator.mixed_precision == "no"
        if alone and self._way in _WHOLE:
            # Nothing is to be done to the model, and to find that out takes half a second of imports.
            self._optimizer = self.accelerator.prepare(self.optimizer)
        else:
            self._called, self._optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self._fast = self._called
        if recipe.compile == "on" or (recipe.compile == "auto" and self.accelerator.device.type == "cuda"):
            self._fast = torch.compile(self._called)
        self._workers = self._share_threads()
        self.generator = torch.Generator().manual_seed(recipe.seed)
        torch.manual_seed(recipe.seed + self.accelerator.process_index)  # dropout draws from the global generator
        self.steering = Steering(recipe.activity, recipe.activity_steps) if recipe.activity else None
        self.step = 0
        self.elapsed_s = 0.0
        self.best: dict[str, float | int] = {}
        self.misses = 0
        self.plan: Plan | None = None
        self.enter(0)

    @property
    def _way(self) -> str:
        """How accelerate trains here, by its name for it."""
        return str(getattr(self.accelerator.distributed_type, "value", self.accelerator.distributed_type))

    def _weights(self) -> Model[Any]:
        recipe = self.recipe
        if not recipe.base:
            return build(recipe.config(), seed=recipe.seed)
        model = load(recipe.base, device="cpu")
        changed = {"kind": model.config.kind, **recipe.model}
        if changed["kind"] != model.config.kind:
            raise ConfigError(
                f"the base {recipe.base} is a {model.config.kind} model; model.kind says {changed['kind']}"
            )
        fresh = build(config_from_dict({**config_to_dict(model.config), **changed}), seed=recipe.seed)
        try:
            fresh.load_state_dict(model.state_dict())
        except RuntimeError as error:
            raise ConfigError(
                f"model changes the shape of the base's weights; change only dropout, decay and the like: "
                f"{str(error)[:300]}"
            ) from error
        return fresh

    def _share_threads(self) -> Workers | None:
        """Threads that share the rows of a batch, where that is faster and draws nothing from a common generator."""
        alone = self.accelerator.num_processes == 1 and self._fast is self.model
        rows = max(sum(one.rows for one in splits) for splits in self.splits)
        count = choose_count(torch.get_num_threads(), rows)
        config = self.model.config
        draws = any(getattr(one, "dropout", 0.0) for one in (config, *getattr(config, "members", ())))
        shared = alone and self.accelerator.device.type == "cpu" and not draws and count > 1
        return Workers(count) if shared else None

    def _check(self, part: Phase, splits: list[Splits]) -> None:
        rows = sum(one.rows for one in splits)
        if rows % self.accelerator.num_processes:
            raise ConfigError(
                f"{rows} rows cannot be shared evenly by {self.accelerator.num_processes} processes; "
                "let their number divide the rows of all texts together"
            )
        for one in splits:
            if len(one.validation) < 2 * _EVALUATION_STREAMS:
                raise DataError(
                    f"{one.name} keeps {len(one.validation)} bytes to validate on and must keep "
                    f"{2 * _EVALUATION_STREAMS}: use a longer text or a larger validation"
                )
            if len(one.train) <= part.chunk_bytes + 1:
                raise DataError(
                    f"{one.name} has {len(one.train)} bytes to train on, too few for chunks of {part.chunk_bytes}: "
                    "use a longer text or a smaller chunk_bytes"
                )

    def enter(self, index: int) -> None:
        """Begin a phase: its texts from places of its own, an empty memory, no best yet."""
        self.before = [*self.before[: index - 1], self.phase_step] if index else []
        self.phase = index
        part = self.parts[index]
        self.streams = Streams(
            self.splits[index],
            [one.rows for one in self.splits[index]],
            part.chunk_bytes,
            self.recipe.seed + index,
            carried=self.recipe.carried,
            shard=self.accelerator.process_index,
            shards=self.accelerator.num_processes,
        )
        self.state: Any = None
        self.phase_step = 0
        self.best, self.misses, self.plan = {}, 0, None

    @property
    def rows(self) -> int:
        """Rows of the batch, those of all processes."""
        return sum(one.rows for one in self.splits[self.phase])

    @property
    def heard_bytes(self) -> int:
        """Bytes trained on so far, in all phases."""
        return sum(
            taken * part.chunk_bytes * sum(one.rows for one in splits)
            for part, splits, taken in zip(self.parts, self.splits, [*self.before, self.phase_step], strict=False)
        )

    @property
    def place(self) -> int:
        """How far the phase's schedule is, in its steps: those taken, or what the clock says of the time there is."""
        part = self.parts[self.phase]
        if not self.recipe.minutes:
            return self.phase_step
        return min(part.steps, int(part.steps * self.elapsed_s / (60 * self.recipe.minutes)))

    @property
    def steps(self) -> int:
        """Steps of the whole run; where the clock bounds it, what they will be at the pace so far."""
        part = self.parts[self.phase]
        if not self.recipe.minutes:
            return self.recipe.total_steps
        return max(self.step, round(self.step * part.steps / self.place)) if self.place else part.steps

    @property
    def over(self) -> bool:
        """Whether there is no step left to take."""
        last = self.phase + 1 == len(self.parts)
        return last and (self.place >= self.parts[self.phase].steps or self.stale)

    @property
    def stale(self) -> bool:
        """Whether the phase has gone on for too long without a better validation."""
        return 0 < self.recipe.patience <= self.misses

    @property
    def _own_rows(self) -> int:
        return self.rows // self.accelerator.num_processes

    def begin(self) -> None:
        """Note in the folder what is begun, with what and where."""
        self.folder.begin(self.recipe, self._text_sums())

    def _text_sums(self) -> TextSums:
        return [[(one.name, one.sha256) for one in splits] for splits in self.splits]

    def save(self) -> None:
        """Write everything to the run's folder; a kill leaves the old file or the new one.

        Raises:
            TrainingError: the disk refuses; what stood there before is untouched.
        """
        carried = {} if self.state is None else states.named_tensors(self.state)
        gathered = {name: self._gathered(tensor) for name, tensor in carried.items()}
        self.folder.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "torch_generator": torch.get_rng_state(),
                "cuda_generator": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "streams": self.streams.state_dict(),
                "state": gathered,
                "step": self.step,
                "phase": self.phase,
                "phase_step": self.phase_step,
                "before": self.before,
                "elapsed_s": self.elapsed_s,
                "best": self.best,
                "misses": self.misses,
                "micro_rows": self.plan.micro_rows if self.plan else 0,
                "steering": vars(self.steering) if self.steering else {},
            },
            self.recipe,
            self._text_sums(),
        )

    def resume(self) -> None:
        """Go on from what `save` wrote.

        Raises:
            HatcheryError: nothing was saved, it is damaged, or the recipe or a text is another.
        """
        saved = self.folder.read(self.recipe, self._text_sums())
        self.enter(saved["phase"])
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch_generator"])
        if saved["cuda_generator"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda_generator"])
        self.streams.load_state_dict(saved["streams"])
        if saved["state"]:
            rank, count = self.accelerator.process_index, self.accelerator.num_processes
            template = self.model.empty_state(self._own_rows)
            self.state = states.from_named_tensors(
                template, {name: tensor[rank::count] for name, tensor in saved["state"].items()}
            )
        for name in ("step", "phase_step", "before", "elapsed_s", "best", "misses"):
            setattr(self, name, saved[name])
        if self.steering:
            vars(self.steering).update(saved["steering"])
        self._micro_before = int(saved["micro_rows"])
        self.folder.forget_after(self.step)

    asked_to_stop = False
    """Set it, from a signal or another thread, and `fit` ends after the step under way, with everything saved."""
    _micro_before = 0
    before: list[int] = []  # noqa: RUF012 - replaced, never changed
    """Steps taken in each phase before this one."""
    phase_step = 0

    def _gathered(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, in the order of the batch."""
        if self.accelerator.num_processes == 1:
            return tensor
        parts = self.accelerator.gather(tensor).view(self.accelerator.num_processes, *tensor.shape)
        return parts.transpose(0, 1).reshape(-1, *tensor.shape[1:])

    def is_asked_to_stop(self) -> bool:
        """Whether a signal, another thread or another process wants the run to end here."""
        if self.accelerator.num_processes == 1 and self.folder.asked_to_stop():
            self.asked_to_stop = True
        return self.asked_to_stop

    def agreed(self, elapsed_s: float) -> float:
        """The time that all processes go by: their clocks differ, and they must end at the same step."""
        if self.accelerator.num_processes == 1 or not self.recipe.minutes:
            return elapsed_s
        mine = torch.tensor(elapsed_s, dtype=torch.float32, device=self.accelerator.device)
        return float(self.accelerator.reduce(mine, "mean"))

    def look_at_base(self) -> Report:
        """A report on the base before its first step: what the run has to be better than."""
        validation = self.validate()
        if not self.steering:  # a base with more active would win over what it is to become
            self.weigh(validation)
        mean = sum(validation.values()) / len(validation)
        report = Report(0, self.steps, self.parts[0].name, 0, mean, 0.0, 0.0, validation=validation)
        report = dataclasses.replace(report, sample=self.sample())
        self.folder.note(report)
        return report

    def planned(self) -> Plan:
        """How many rows go through at once: what the run was begun with, if it still fits."""
        if self.plan is None:
            self.plan = plan(
                self.model,
                self._own_rows,
                self.parts[self.phase].chunk_bytes,
                micro_rows=self.recipe.micro_rows or self._micro_before,
                recompute=self.recipe.recompute,
                precision=getattr(torch, self.recipe.precision),
                sharers=self._workers.count if self._workers else 1,
            )
            set_recompute(self.model, self.plan.recompute)
        return self.plan

    def train_step(self) -> tuple[float, float, Activity]:
        """One optimizer step; mean bits per byte, norm of the gradient, and what was active.

        Where memory runs out, it is tried again with half the rows at once.

        Raises:
            TrainingError: the loss is not finite, or a single row does not fit.
        """
        part = self.parts[self.phase]
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(part, self.place)
        if self.recipe.carried:
            self._forget()
        self.planned()  # refuses what does not fit before it is read
        ids, targets = (tensor.to(self.accelerator.device) for tensor in self.streams.next())
        while True:
            try:
                nats, after, activity = self._gradients(ids, targets, self.planned().micro_rows)
                break
            except (MemoryError, RuntimeError) as error:
                micro = self.planned().micro_rows
                if not is_out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
                if micro == 1:
                    raise TrainingError(
                        "memory ran out on a single row; take a smaller chunk_bytes, recompute=on or a smaller model"
                    ) from error
            self.plan = dataclasses.replace(self.planned(), micro_rows=micro // 2)
            gc.collect()
            self._optimizer.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        clip = self.accelerator.clip_grad_norm_  # unscales what is to be clipped
        if self._way in _WHOLE:
            self.accelerator.unscale_gradients()
            clip = torch.nn.utils.clip_grad_norm_
        norm = float(clip(self.model.parameters(), self.recipe.clip))
        nats = float(self.accelerator.reduce(torch.tensor(nats, device=self.accelerator.device), "mean"))
        if not (math.isfinite(nats) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is not finite any more at step {self.step + 1}; go on from the last save with a lower "
                "learning_rate or clip, or precision=float32"
            )
        self._optimizer.step()
        torch.autograd.graph.increment_version(self._learning)  # a fused optimizer leaves no mark on what it changes
        self._optimizer.zero_grad(set_to_none=True)
        self.state = after if self.recipe.carried else None
        self.step += 1
        self.phase_step += 1
        return nats / _NATS, norm, activity

    def _gradients(self, ids: Tensor, targets: Tensor, micro: int) -> tuple[float, Any, Activity]:
        """Add up the gradients of all rows, `micro` at a time; mean nats, the states after, what was active."""
        looks = self.steering is not None or self.step % LOOK_EVERY == 0
        activity = Activity(press=self.steering is not None)
        rows, total, after = ids.shape[0], 0.0, []
        for start in range(0, rows, micro):
            here = range(start, min(start + micro, rows))
            if self._workers and len(here) >= self._workers.count:
                shared = partial(self._pass, ids, targets, looks, shares=True)
                passes = self._workers.map(shared, cut(here, self._workers.count))
                for one in passes:
                    add_gradients(self._learning, one.gradients)
            else:
                with self.accelerator.no_sync(self._called) if here.stop < rows else nullcontext():
                    passes = [self._pass(ids, targets, looks, here)]
            for one in passes:
                total += one.nats
                after.append(one.state)
                activity.add(one.activity)
        if self.steering is not None:
            if self.recipe.minutes:
                self.steering.taken = self.place
            self.steering.follow(activity.mean("x_sparse"))
        return total, after[0] if len(after) == 1 else states.join(after), activity

    def _pass(self, ids: Tensor, targets: Tensor, looks: bool, rows: range, *, shares: bool = False) -> _Pass:
        """Take some rows of the batch through the model and back; where it shares, gradients are not yet added up."""
        activity = Activity(press=self.steering is not None)
        before = None if self.state is None else states.select(self.state, rows)
        part, share = slice(rows.start, rows.stop), len(rows) / ids.shape[0]
        gradients: Sequence[Tensor | None] = ()
        with torch.enable_grad():
            loss, state = self._loss(ids[part], targets[part], before, activity if looks else None)
            nats = loss.item() * share
            if self.steering is not None:
                loss = loss + self.steering.weight * activity.penalty()
            if shares:
                gradients = torch.autograd.grad(loss * share, self._learning, allow_unused=True)
            else:
                self.accelerator.backward(loss * share)
        return _Pass(nats, states.detach(state), activity, gradients)

    def _loss(self, ids: Tensor, targets: Tensor, state: Any, activity: Activity | None) -> tuple[Tensor, Any]:
        """Mean nats a byte of one chunk, and the state after it."""
        with (
            self._precision(),
            observing(activity) if activity is not None else nullcontext(),
        ):
            called = self._fast if activity is None else self._called  # a compiled model cannot be observed
            output = called(ids, state, keep_state=self.recipe.carried)
        nats = F.cross_entropy(output.logits.float().flatten(0, 1), targets.flatten())
        return nats, output.state if self.recipe.carried else ()

    def _precision(self) -> torch.autocast:
        """The type that products have inside the block."""
        half = self.recipe.precision == "bfloat16"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=half)

    def _forget(self) -> None:
        """Let each row lose its memory by chance; every process draws for all rows and keeps its own."""
        lost = torch.rand(self.rows, generator=self.generator) < self.recipe.reset
        if self.state is None:
            return
        own = lost[self.accelerator.process_index :: self.accelerator.num_processes].to(self.accelerator.device)
        if own.any():
            fresh = iter(states.named_tensors(self.model.empty_state(self._own_rows)).values())
            self.state = states.map_tensors(
                lambda kept: torch.where(own.view(-1, *[1] * (kept.dim() - 1)), next(fresh), kept), self.state
            )

    def validate(self) -> dict[str, float]:
        """Bits per byte of each text's validation part, its first bytes as several streams."""
        with self._precision():
            return {
                one.name: bits_per_byte(
                    self.model, one.validation[: self.recipe.validation_bytes], streams=_EVALUATION_STREAMS
                )
                for one in self.splits[self.phase]
            }

    def sample(self) -> str:
        """What the model writes now, with a seed of its own so that samples can be compared."""
        if not self.recipe.sample_bytes:
            return ""
        self.model.eval()
        stream = Stream(self.model)
        stream.feed(self.recipe.prompt.encode() or b"\n")
        options = Sampling(temperature=0.7, seed=0, max_bytes=self.recipe.sample_bytes, valid_utf8=True)
        written = bytes(one.byte for one in stream.generate(options))
        self.model.train()
        return self.recipe.prompt.lstrip("\n") + written.decode("utf-8", errors="replace")

    def weigh(self, validation: dict[str, float]) -> bool:
        """Keep the weights as the best ones if the mean over the texts is lower than before; whether it is."""
        mean = sum(validation.values()) / len(validation)
        if self.best and mean >= self.best["bits_per_byte"]:
            self.misses += 1
            return False
        self.best, self.misses = {"step": self.step, "bits_per_byte": mean}, 0
        self.folder.save_best(self.model.config, plain_tensors(self.model), self.parts[self.phase].name)
        return True


def fit(run: Run, *, report_every: int = 20) -> Iterator[Report]:
    """Train to the recipe's last step. Stopping the generator between reports loses nothing that was saved.

    Raises:
        TrainingError: the run cannot go on; what it saved last is kept.
    """
    recipe = run.recipe
    started, begun, start_step = time.monotonic() - run.elapsed_s, time.monotonic(), run.step
    nats, count, told = 0.0, 0, time.monotonic()
    active: dict[str, float] = {}
    if recipe.base and not run.step:
        yield run.look_at_base()
    while True:
        if run.over:
            return
        part = run.parts[run.phase]
        if run.place >= part.steps or run.stale:
            run.enter(run.phase + 1)
            continue
        before = run.place
        bits, norm, activity = run.train_step()
        nats, count = nats + bits, count + 1
        run.elapsed_s = run.agreed(time.monotonic() - started)
        if activity.fractions:
            active = {name: activity.mean(name) for name in activity.fractions}
        over, asked = run.place == part.steps, run.is_asked_to_stop()
        validates = run.place // recipe.evaluate_every > before // recipe.evaluate_every or over
        due = run.step % report_every == 0 or time.monotonic() - told >= _TELL_S
        if not (validates or asked or due):
            continue
        validation = run.validate() if validates else {}
        if validation:
            run.weigh(validation)
        stopped = f"no better validation since step {run.best['step']}" if run.stale and not over else ""
        stopped = stopped or ("it was asked to" if asked else "")
        sample = run.sample() if validates else ""
        per_step = (time.monotonic() - begun) / (run.step - start_step)
        remaining_s = 60 * recipe.minutes - run.elapsed_s if recipe.minutes else (run.steps - run.step) * per_step
        report = Report(
            run.step,
            run.steps,
            part.name,
            run.heard_bytes,
            nats / count,
            recipe.rate(part, before),
            norm,
            active,
            run.steering.weight if run.steering else 0.0,
            validation,
            int(run.best.get("step", 0)),
            sample,
            run.rows * part.chunk_bytes / per_step,
            run.elapsed_s,
            max(0.0, remaining_s),
            stopped,
        )
        run.folder.note(report)
        if validates or asked:
            run.save()
        yield report
        nats, count, told = 0.0, 0, time.monotonic()
        if asked:
            return
