"""What the Train tab does without its components: forms, commands, limits, and what is shown of a run."""

from __future__ import annotations

import json
import shlex
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bdh import checkpoint
from bdh.config import ComposedConfig, FlatConfig, HierarchicalConfig, TransformerConfig
from bdh.errors import ConfigError, DataError, HatcheryError, TrainingError
from bdh.models import build
from bdh.presets import PRESETS
from train.job import FAILED, FINISHED, STOPPED, WAITING, Jobs
from train.recipe import load_recipe
from ui import curves, runs
from ui.limits import Limits
from ui.registry import Registry
from ui.runs import Trainer, duration
from ui.wishes import DATASET, FRESH, SHIPPED, STEPS, Wish, checked, command, fresh_fields

ME, OTHER = "browser:me", "browser:other"
FLAT = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
TEXT = "The cat sat on the mat, and said: «¡hola!». " * 200


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    made = trainer_at(tmp_path, Limits())
    yield made
    made.jobs.close()


def trainer_at(path: Path, limits: Limits) -> Trainer:
    build(FLAT, seed=0).save_pretrained(path / "checkpoints" / "beta")
    registry = Registry(path / "checkpoints", path / "data", limits, "cpu")
    return Trainer(
        registry, Jobs(path / "data" / "runs", at_once=0, most_each=limits.max_runs_each, watch=False), limits
    )


def done(trainer: Trainer, id: str, *, owner: str = ME) -> None:
    """Let a job have ended with a checkpoint, as its process would."""
    job = trainer.jobs.get(id, owner)
    trainer.jobs.stop(id, owner)
    measure = {
        "step": 3, "steps": 3, "phase": "", "heard_bytes": 6000, "bits_per_byte": 2.5, "validation": {"mine": 2.25},
        "best_step": 3, "sample": "Once <b>", "bytes_per_s": 1000.0, "elapsed_s": 6.0, "remaining_s": 0.0,
        "active": {"x_sparse": 0.25}, "stopped": "",
    }  # fmt: skip
    first = measure | {"step": 0, "validation": {"mine": 3.0}, "best_step": 0, "sample": ""}
    job.run.path.mkdir(exist_ok=True)
    (job.run.path / "metrics.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(measure) + "\n")
    told = {"held_out_bits_per_byte": {"mine": 2.0}, "base_held_out_bits_per_byte": {"mine": 2.5}}
    build(FLAT, seed=4).save_pretrained(job.run.path / "checkpoint", provenance=told)
    job.run.end(FINISHED)


def of(words: list[str], tmp_path: Path) -> Any:
    """The recipe of a command line, its text a file that is there."""
    assert words[0] == "finetune"
    return load_recipe(words[0], words[1:])


def test_a_form_becomes_a_command_that_is_the_recipe(trainer: Trainer, tmp_path: Path) -> None:
    wish = Wish(
        base="beta", pasted=TEXT, amount=5, trained="LoRA: a small addition to each matrix", activity_percent=10
    )
    told = trainer.shell(wish, [], ME)
    note, told = told.split("\n")
    assert note == "# mine.txt: your text as a file"
    words = shlex.split(told)
    assert words[:4] == ["python", "-m", "train", "finetune"]
    recipe = load_recipe(words[3], words[4:])
    assert (recipe.base, recipe.minutes, recipe.steps, recipe.name) == ("checkpoints/beta", 5.0, 600, "mine")
    assert recipe.texts == {"mine": {"rows": 8, "source": "mine.txt"}}
    assert (recipe.trained, recipe.lora_rank, recipe.activity) == ("lora", 8, 0.1)
    assert (recipe.validation, recipe.test, recipe.prompt) == (0.05, 0.05, "The cat sat on the mat, and said: ")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_fresh_model_of_every_preset_is_damped_where_it_can_be(preset: str, trainer: Trainer) -> None:
    words = shlex.split(
        trainer.shell(Wish(base=FRESH + preset, pasted=TEXT, budget=STEPS, amount=100), [], ME), comments=True
    )
    recipe = load_recipe(words[3], words[4:])
    config = recipe.config()
    assert recipe.base == "" and recipe.minutes == 0 and recipe.steps == 100
    assert config.kind == PRESETS[preset].kind
    decay = {"flat": "decay", "hierarchical": "global_decay"}.get(config.kind)
    if decay:
        rates = getattr(config, decay)
        assert list(rates) == sorted(rates) and 0.9 < rates[0] < rates[-1] < 1


def test_shipped_texts_share_the_rows_and_a_dataset_is_bounded(trainer: Trainer) -> None:
    wish = Wish(base="beta", data=SHIPPED, corpora=["english", "chat", "python"])
    words = shlex.split(trainer.shell(wish, [], ME))
    assert load_recipe(words[3], words[4:]).texts == {"chat": 3, "english": 3, "python": 2}
    wish = Wish(base="beta", data=DATASET, dataset=" user/name ", column="a.b", megabytes=2)
    words = shlex.split(trainer.shell(wish, [], ME))
    (text,) = load_recipe(words[3], words[4:]).texts.values()
    assert text == {
        "rows": 8, "dataset": "user/name", "config": "", "split": "train", "column": "a.b", "max_bytes": 2_000_000
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amount": 0}, "Budget is 0; allowed here is from 0.01 to 20 minutes"),
        ({"amount": 21}, "Budget is 21; allowed here is from 0.01 to 20 minutes"),
        ({"amount": None}, "Budget is empty"),
        ({"amount": float("nan")}, "Budget is nan"),
        ({"budget": STEPS, "amount": 0}, "Budget is 0; allowed here is from 1 to"),
        ({"budget": "years"}, "must be in minutes or steps"),
        ({"learning_rate": "fast"}, "Learning rate is 'fast'"),
        ({"learning_rate": 0}, "Learning rate is 0"),
        ({"trained": "nothing"}, "what learns is 'nothing'"),
        ({"trained": "the local part"}, "this one is flat: choose 'everything', 'the read-out'"),
        ({"held_out_percent": 90}, "Held out, % is 90"),
        ({"activity_percent": 101}, "Active neurons, % is 101"),
        ({"rows": 4096}, "Rows is 4096"),
        ({"chunk_bytes": 1_000_000}, "Chunk is"),
        ({"pasted": "hello there"}, "the text has 11 bytes; give at least 1,000"),
        ({"prompt": "\ud800"}, "prompt must be a text"),
        ({"prompt": "x" * 1001}, "at most 1,000 characters"),
        ({"corpora": ["../etc"]}, "the shipped texts are"),
        ({"pasted": "  "}, "paste a text or choose files first"),
        ({"pasted": "x" * 20_000_001}, "up to 20 MB are allowed here"),
        ({"base": ""}, "choose a model"),
        ({"base": "gone"}, "there is no model"),
        ({"base": FRESH + "flat-9m"}, "there is no preset"),
        ({"base": FRESH + "flat-50m"}, "up to 30,000,000 may be trained here"),
        ({"data": SHIPPED}, "choose at least one text"),
        ({"data": SHIPPED, "corpora": ["chat", "english"], "rows": 1}, "need 2 rows"),
        ({"data": DATASET}, "give the name of a dataset"),
        ({"data": DATASET, "dataset": "a/b", "megabytes": 21}, "allowed here are up to 20"),
    ],
)
def test_what_cannot_be_is_refused_in_words_and_leaves_nothing_behind(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trainer = trainer_at(tmp_path, Limits.from_environment({"SPACE_ID": "a/b"}))
    with pytest.raises(HatcheryError, match=message):
        trainer.start(Wish(**({"base": "beta", "pasted": TEXT} | changes)), [], ME)
    assert list(trainer.jobs.root.glob("*/")) == []


def test_a_composed_model_is_not_offered_and_not_trained(tmp_path: Path) -> None:
    config = ComposedConfig(method="mixture", members=(FLAT, FLAT))
    build(config).save_pretrained(tmp_path / "checkpoints" / "two")
    trainer = trainer_at(tmp_path, Limits())
    assert "two" not in [id for _, id in trainer.bases(ME)] and "beta" in [id for _, id in trainer.bases(ME)]
    with pytest.raises(ConfigError, match="train its members"):
        trainer.start(Wish(base="two", pasted=TEXT), [], ME)


def test_a_run_has_copies_of_its_base_and_its_texts_under_names_that_tell_nothing(
    trainer: Trainer, tmp_path: Path
) -> None:
    for name in ("english", "../evil one.md"):
        path = tmp_path / "uploads" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_text(TEXT)
    one = str(tmp_path / "uploads" / "english")
    other = str(tmp_path / "uploads" / "evil one.md")
    id = trainer.start(Wish(base="beta", pasted=" "), [one], ME)
    given = trainer.jobs.get(id, ME).given
    assert (given / "english.txt").read_text() == TEXT  # not the shipped text of that name
    assert checkpoint.read_config(given / "checkpoints" / "beta") == FLAT
    id = trainer.start(Wish(base="beta", pasted="First."), [one, other], ME)
    mine = trainer.jobs.get(id, ME).given / "mine"
    assert sorted(path.name for path in mine.iterdir()) == ["000-english", "001-evil-one.md", "pasted.txt"]
    assert trainer.wish_of(id, ME).pasted == f"{TEXT}\n\n{TEXT}\n\nFirst."
    assert json.loads((trainer.jobs.root / id / "job.json").read_text())["form"]["pasted"] == ""


def test_what_a_run_made_joins_its_owners_models_alone_under_one_name(trainer: Trainer) -> None:
    id = trainer.start(Wish(base="beta", pasted=TEXT, name="my cat!"), [], ME)
    with pytest.raises(DataError, match="no checkpoint yet"):
        trainer.adopt(id, ME)
    done(trainer, id)
    model = trainer.adopt(id, ME)
    assert trainer.adopt(id, ME) == model and model.startswith("my-cat-")
    assert [entry.source for entry in trainer.registry.entries(ME) if entry.private] == ["trained here"]
    assert [entry for entry in trainer.registry.entries(OTHER) if entry.private] == []
    with trainer.registry.lease(model, ME) as loaded:
        assert loaded.config == FLAT
        with pytest.raises(HatcheryError, match="being used in another tab"):
            trainer.jobs.delete(id, ME)
    again = trainer.start(Wish(base=model, pasted=TEXT), [], ME)
    assert (trainer.jobs.get(again, ME).given / "base" / "my-cat").is_dir()
    for deed in (trainer.adopt, trainer.zipped, trainer.jobs.delete, trainer.look, trainer.wish_of):
        with pytest.raises(TrainingError, match="no such run of yours"):
            deed(id, OTHER)
    trainer.jobs.delete(id, ME)
    assert model not in [entry.id for entry in trainer.registry.entries(ME)]


def test_a_checkpoint_trained_on_since_gets_another_name(trainer: Trainer) -> None:
    id = trainer.start(Wish(base="beta", pasted=TEXT), [], ME)
    done(trainer, id)
    before = trainer.adopt(id, ME)
    time.sleep(0.01)
    build(FLAT, seed=9).save_pretrained(trainer.made(id, ME))
    after = trainer.adopt(id, ME)
    assert after != before
    assert [entry.id for entry in trainer.registry.entries(ME) if entry.private] == [after]


def test_the_download_holds_the_checkpoint_and_nothing_else(trainer: Trainer, tmp_path: Path) -> None:
    id = trainer.start(Wish(base="beta", pasted=TEXT), [], ME)
    done(trainer, id)
    (trainer.made(id, ME) / "notes").write_text("secret")
    with zipfile.ZipFile(trainer.zipped(id, ME)) as file:
        file.extractall(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "mine").iterdir()) == sorted(checkpoint.FILES)
    assert checkpoint.read_config(tmp_path / "out" / "mine") == FLAT


def test_what_a_run_made_is_published_by_its_owner_alone(trainer: Trainer) -> None:
    id = trainer.start(Wish(base="beta", pasted=TEXT), [], ME)
    done(trainer, id)
    assert trainer.parted(ME, id) == (trainer.made(id, ME), "mine")
    with pytest.raises(TrainingError, match="no such run of yours"):
        trainer.parted(OTHER, id)


def test_what_is_shown_of_a_run_is_escaped_and_says_how_much_better_it_became(trainer: Trainer) -> None:
    id = trainer.start(Wish(base="beta", pasted=TEXT), [], ME)
    assert "About to start" in trainer.look(id, ME).status
    done(trainer, id)
    look = trainer.look(id, ME)
    assert "Done after step 3, 6 s of training" in look.status
    assert "mine: 2.000 bits a byte on text it never saw; its base has 2.500 (20.0% fewer)" in look.status
    assert look.samples == "── step 3 ──\nOnce <b>"
    trainer.jobs.get(id, ME).run.end("failed", "<img src=x onerror=alert(1)>")
    assert "<img" not in trainer.look(id, ME).status


def test_the_curves_hold_every_measure_and_mark_the_best_step() -> None:
    measures = [
        {"step": step, "bits_per_byte": 4 - step / 10, "validation": {"mine": 5 - step / 10} if step % 2 == 0 else {},
         "best_step": step // 2 * 2}
        for step in range(7)
    ]  # fmt: skip
    assert curves.chart(measures[:1]) is None
    points = curves.rows(measures)
    assert [point["step"] for point in points if point["text"] == "training text"] == [1, 2, 3, 4, 5, 6]
    assert [point["bits"] for point in points if point["text"] == "mine, held out"] == [5.0, 4.8, 4.6, 4.4]
    chart = curves.chart(measures)
    assert chart is not None
    told = json.dumps(chart.to_dict())
    assert "best at step 6" in told
    many = [{"step": step, "bits_per_byte": 1.0, "validation": {}, "best_step": 0} for step in range(1, 100_001)]
    assert len(curves.rows(many)) <= 1_300


def test_on_a_lent_gpu_the_run_is_done_in_the_call_and_leaves_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ON_ZERO_GPU", True)
    trainer = trainer_at(tmp_path, Limits())
    wish = Wish(base="beta", pasted=TEXT, amount=0.05, chunk_bytes=32, rows=2)
    id = trainer.start(wish, [], ME)
    trainer.jobs.advance()
    assert trainer.jobs.get(id, ME).state == WAITING
    runs.train_on_lent_gpu(str(trainer.jobs.root), id, wish.amount)
    job = trainer.jobs.get(id, ME)
    assert job.state == FINISHED and job.checkpoint is not None and "checkpoint:" in job.log()
    assert job.run.measures()[-1]["step"] > 0
    assert runs._lent_seconds("", id, 2.0) == 180


def test_a_run_on_a_lent_gpu_is_stopped_from_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ON_ZERO_GPU", True)
    trainer = trainer_at(tmp_path, Limits())
    id = trainer.start(Wish(base="beta", pasted=TEXT, amount=30, chunk_bytes=32, rows=2), [], ME)
    work = threading.Thread(target=runs.train_on_lent_gpu, args=(str(trainer.jobs.root), id, 30.0))
    work.start()
    deadline = time.monotonic() + 60
    while not any(one["step"] for one in trainer.jobs.get(id, ME).run.measures()):
        assert time.monotonic() < deadline and work.is_alive(), trainer.jobs.get(id, ME).log()
        time.sleep(0.05)
    trainer.jobs.stop(id, ME)
    work.join(60)
    job = trainer.jobs.get(id, ME)
    assert job.state == STOPPED and job.checkpoint is not None
    trainer.jobs.resume(id, ME)
    assert trainer.jobs.get(id, ME).state == WAITING
    trainer.jobs.give_back(id, "no GPU")
    assert trainer.jobs.get(id, ME).message == "no GPU"


def test_a_run_on_a_lent_gpu_that_cannot_begin_says_why_and_is_begun_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ON_ZERO_GPU", True)
    trainer = trainer_at(tmp_path, Limits())
    id = trainer.start(Wish(base="beta", pasted="x " * 600, chunk_bytes=2048), [], ME)
    runs.train_on_lent_gpu(str(trainer.jobs.root), id, 1.0)
    job = trainer.jobs.get(id, ME)
    assert job.state == FAILED and "too few for chunks of 2048" in job.message
    with pytest.raises(TrainingError, match="does not wait any more"):
        runs.train_on_lent_gpu(str(trainer.jobs.root), id, 1.0)


@pytest.mark.parametrize(
    ("environment", "minutes", "each"),
    [({}, 1_000_000, 8), ({"SPACE_ID": "a/b"}, 20, 1), ({"BDH_PUBLIC": "true"}, 20, 1),
     ({"SPACE_ID": "a/b", "BDH_MAX_TRAIN_MINUTES": "7"}, 7, 1), ({"SPACE_ID": "a/b", "SPACES_ZERO_GPU": "1"}, 3, 1)],
)  # fmt: skip
def test_where_strangers_come_runs_are_bounded_unless_the_environment_says_otherwise(
    environment: dict[str, str], minutes: int, each: int
) -> None:
    limits = Limits.from_environment(environment)
    assert (limits.max_train_minutes, limits.max_runs_each) == (minutes, each)
    assert limits.allow_pickle == (not limits.public)


def test_spans_of_time_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 89, 125, 660, 9000)] == ["0 s", "89 s", "2 min 5 s", "11 min", "2.5 h"]
    assert command(["finetune", "texts={a = 1}"]) == "python -m train finetune 'texts={a = 1}'"


def test_numbers_of_a_form_become_whole_where_they_must(trainer: Trainer) -> None:
    wish = checked(Wish(base="beta", rows=4.0, seed=3.0), Limits())
    assert (wish.rows, wish.seed, type(wish.rows)) == (4, 3, int)
    assert fresh_fields("hierarchical-tiny")["global_decay"][0] == pytest.approx(0.5 ** (1 / 8))
    assert isinstance(PRESETS["hierarchical-tiny"], HierarchicalConfig)
    assert "decay" not in fresh_fields("transformer-5m") and isinstance(PRESETS["transformer-5m"], TransformerConfig)
