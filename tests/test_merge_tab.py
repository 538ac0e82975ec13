"""What the Merge tab does without its components: plans, merging, what is kept, measured, coloured and healed."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bdh
from bdh import checkpoint
from bdh.config import ComposedConfig, FlatConfig
from bdh.errors import DataError, HatcheryError, MergeError
from bdh.merge import Recipe, make_plan, merge
from bdh.merge.recipe import CALIBRATION_BYTES
from bdh.models import build, state_bytes
from bdh.sampling import Sampling
from train.evaluate import streams_bits
from train.job import Jobs
from ui import kept, lineage
from ui.beside import write_beside
from ui.kept import AVERAGE, BASELINE, HEALED, MERGED, MIXTURE, OWN, PARENT, Report, Row
from ui.limits import Limits
from ui.merge import Workshop
from ui.merges import Kept, Merger, Wanted, shipped_text
from ui.registry import Registry
from ui.runs import Trainer

ME, OTHER = "browser:me", "browser:other"
FLAT = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
WIDE = FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8)
TEXT = np.frombuffer(b"The cat sat on the mat, and said: hello! " * 30, np.uint8)
BOTH = Wanted(parents=("alpha", "beta"))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    made = shop_at(tmp_path, Limits())
    yield made
    made.trainer.jobs.close()


def shop_at(path: Path, limits: Limits) -> Workshop:
    for seed, (name, config) in enumerate({"alpha": FLAT, "beta": FLAT, "wide": WIDE}.items()):
        build(config, seed=seed).save_pretrained(path / "checkpoints" / name)
    registry = Registry(path / "checkpoints", path / "data", limits, "cpu")
    jobs = Jobs(path / "data" / "runs", at_once=0, watch=False)
    return Workshop(registry, Merger(registry, path / "data", limits), Trainer(registry, jobs, limits), limits)


def merged(shop: Workshop, wanted: Wanted = BOTH, owner: str = ME) -> Any:
    return shop.merger.merge(wanted, owner, lambda done, total, note: None)


def test_what_fits_is_said_with_its_plan_and_its_command(shop: Workshop) -> None:
    found = shop.merger.preview(Wanted(parents=("alpha", "wide"), weights="1, 0.5", name="both"), ME)
    assert found.fits
    assert found.line.startswith("These 2 can be merged by concat: 17.4 k parameters, 69.6 kB on disk")
    assert "alpha: flat, 1 layers, width 16, 2 heads of 32 neurons" in found.plan
    assert found.command == "python -m bdh merge alpha wide --weights=1,0.5 --out both"


def test_what_does_not_fit_is_said_with_what_differs_and_the_methods_that_take_it(shop: Workshop) -> None:
    found = shop.merger.preview(Wanted(parents=("alpha", "wide"), method="average"), ME)
    assert not found.fits and found.plan == ""
    assert "parents differ in mlp_internal_dim_multiplier (4 and 8)" in found.line
    methods = found.line.partition("these methods work: ")[2]
    assert methods == "concat, mixture, average-logits, deep."
    assert shop.merger.preview(Wanted(parents=("alpha",)), ME).line == "Choose two models or more."


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(parents=("alpha", "beta"), weights="1, much"), "the weights are '1, much'"),
        (Wanted(parents=("alpha", "beta"), weights="1"), "2 parents need as many weights"),
        (Wanted(parents=("alpha", "beta"), neurons=3.5), "Neurons a head is 3.5; it must be a whole number"),
        (Wanted(parents=("alpha", "beta"), method="slerp", t=None), "t is empty; give a number"),
        (Wanted(parents=("alpha", "beta"), method="ties"), "choose the base that these models were cloned from"),
        (Wanted(parents=("alpha", "nobody")), "there is no model 'nobody' here"),
        (Wanted(parents=("alpha", "beta"), method="magic"), "method is 'magic'; it must be one of"),
        (Wanted(parents=("alpha",)), "choose two models or more"),
        (Wanted(parents=("alpha", "alpha")), "a model is chosen more than once; choose each once"),
        (Wanted(parents=("alpha", "beta", "alpha"), method="average"), "a model is chosen more than once"),
    ],
)
def test_what_cannot_be_is_refused_in_words(shop: Workshop, wanted: Wanted, message: str) -> None:
    with pytest.raises(HatcheryError, match=message.replace("(", r"\(")):
        merged(shop, wanted)
    assert message.partition("(")[0].lower() in shop.merger.preview(wanted, ME).line.lower()
    assert shop.merger.of(ME) == []


def test_what_can_only_be_looked_at_in_memory_is_refused_before_it_is_loaded(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdh.merge.parents.load", None)
    foreign = tmp_path / "foreign"
    build(FLAT, seed=7).save_pretrained(foreign)
    id = shop.registry.load_trained(foreign, "foreign", ME)
    (foreign / "config.json").write_text('{"n_layer": 1}')
    found = shop.merger.preview(Wanted(parents=("alpha", id)), ME)
    assert found.line.startswith("Not yet: the weights of foreign are in another project's form; convert them")
    referring = tmp_path / "referring"
    build(ComposedConfig(method="mixture", members=(FLAT, FLAT))).save_pretrained(referring)
    fields = json.loads((referring / "config.json").read_text())
    fields["sources"] = ["a/b@" + "0" * 40, "a/c@" + "1" * 40]
    (referring / "config.json").write_text(json.dumps(fields))
    id = shop.registry.load_trained(referring, "referring", ME)
    found = shop.merger.preview(Wanted(parents=("alpha", id)), ME)
    assert found.line == "Not yet: referring only refers to its members on the Hub; choose these members instead."


def test_a_merge_has_the_bytes_that_the_command_makes_and_names_no_folder_of_the_page(shop: Workshop) -> None:
    told: list[str] = []
    made = shop.merger.merge(BOTH, ME, lambda done, total, note: told.append(note))
    folders = [str(shop.registry.folder(name, ME)) for name in ("alpha", "beta")]
    expected = merge(make_plan(Recipe(parents=tuple(folders)))).tensors
    tensors = bdh.load(made.checkpoint).state_dict()
    assert all((tensors[name] == tensor).all() for name, tensor in expected.items())
    assert told[0] == "reading alpha" and told[-1] == "merged"
    again = merged(shop, Wanted(parents=(shop.merger.model_id(made, ME), "alpha"), name="again"))
    lineage_told = checkpoint.read_provenance(again.checkpoint)["parents"]
    assert [(one["name"], one["source"]) for one in lineage_told] == [
        ("alpha-beta", "alpha-beta"),
        ("alpha", "checkpoints/alpha"),
    ]


def test_a_merge_is_found_again_after_a_restart_by_its_owner_alone(shop: Workshop, tmp_path: Path) -> None:
    id = shop.merger.model_id(merged(shop), ME)
    again = shop_at(tmp_path, Limits())
    assert id not in [entry.id for entry in again.registry.entries(OTHER)]
    assert [(entry.id, entry.source) for entry in again.registry.entries(ME) if entry.private] == [(id, "merged here")]
    (found,) = again.merger.of(ME)
    assert (found.title, found.method, found.names) == ("alpha-beta", "concat", ("alpha", "beta"))
    assert again.choices(OTHER) == []
    for deed in (again.subject, again.model, again.zipped, again.delete):
        with pytest.raises(MergeError, match="there is no such merged model of yours"):
            deed(found.id, OTHER)
    with again.registry.lease(id, ME) as model:
        assert model.config.n_neuron == 64
    again.trainer.jobs.close()


def test_what_is_deleted_is_gone_and_what_is_used_stays(shop: Workshop) -> None:
    made = merged(shop)
    id = shop.merger.model_id(made, ME)
    with shop.registry.lease(id, ME), pytest.raises(HatcheryError, match="is being used in another tab"):
        shop.delete(made.id, ME)
    assert shop.delete(made.id, ME) == "alpha-beta was deleted."
    assert not made.path.exists() and shop.choices(ME) == []
    assert id not in [entry.id for entry in shop.registry.entries(ME)]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_merges_kept": 1}, "you have 1 merged models, which is all that is kept here"),
        ({"max_merge_bytes": 1000}, "merging takes .* of memory, and 1 kB can be had here"),
        ({"max_merges_bytes": 30_000}, "there is no room on the disk"),
        ({"max_parameters": 8_000}, "parameters"),
    ],
)
def test_a_page_for_many_bounds_what_is_merged(tmp_path: Path, limits: dict[str, int], message: str) -> None:
    shop = shop_at(tmp_path, Limits(**limits))
    with pytest.raises(HatcheryError, match=message):
        merged(shop, Wanted(parents=("alpha", "beta"), name="first"))
        merged(shop, Wanted(parents=("alpha", "beta"), name="second"))
    shop.trainer.jobs.close()


def test_a_merge_whose_memory_is_too_large_is_refused_before_it_is_made(tmp_path: Path) -> None:
    # One stream's memory of alpha takes half of what that of both joined takes.
    shop = shop_at(tmp_path, Limits(max_state_bytes=state_bytes(FLAT)))
    found = shop.merger.preview(BOTH, ME)
    assert not found.fits and "a memory of this model takes" in found.line
    assert found.line.endswith("these methods work: average, slerp.")
    with pytest.raises(HatcheryError, match="a memory of this model takes"):
        merged(shop)
    assert list((tmp_path / "data" / "merges").iterdir()) == []
    shop.trainer.jobs.close()


def test_a_merge_that_cannot_be_listed_is_shown_and_can_be_deleted(tmp_path: Path) -> None:
    before = shop_at(tmp_path, Limits())
    made = merged(before)
    before.trainer.jobs.close()
    shop = shop_at(tmp_path, Limits(max_state_bytes=state_bytes(FLAT)))
    assert [subject for _, subject in shop.choices(ME)] == [made.id]
    assert [entry.id for entry in shop.registry.entries(ME) if entry.private] == []
    with pytest.raises(HatcheryError, match="a memory of this model takes"):
        shop.model(made.id, ME)
    assert shop.delete(made.id, ME) == "alpha-beta was deleted."
    assert shop.choices(ME) == [] and not made.path.exists()
    shop.trainer.jobs.close()


def grow_old(made: Kept) -> None:
    past = time.time() - 3 * 3600
    os.utime(made.path / "merge.json", (past, past))


def test_old_merges_are_deleted_where_runs_are(tmp_path: Path) -> None:
    shop = shop_at(tmp_path, Limits(runs_hours=2))
    made = merged(shop)
    assert shop.merger.of(ME) == [made]
    grow_old(made)
    assert shop.merger.of(ME) == [] and not made.path.exists()
    shop.trainer.jobs.close()


@pytest.mark.parametrize("when", ["the page starts", "another owner merges", "another owner looks"])
def test_merges_of_owners_who_never_return_are_deleted_too(tmp_path: Path, when: str) -> None:
    shop = shop_at(tmp_path, Limits(runs_hours=2))
    made = merged(shop)
    grow_old(made)
    if when == "the page starts":
        shop_at(tmp_path, Limits(runs_hours=2)).trainer.jobs.close()
    elif when == "another owner merges":
        merged(shop, owner=OTHER)
    else:
        assert shop.merger.of(OTHER) == []
    assert not made.path.exists()
    shop.trainer.jobs.close()


def test_what_a_killed_merge_left_is_swept_at_the_start_and_before_the_next(shop: Workshop, tmp_path: Path) -> None:
    left = tmp_path / "data" / "merges" / "0123456789abcdef.new"
    (left / "checkpoint").mkdir(parents=True)
    merged(shop)
    assert not left.exists()
    (left / "checkpoint").mkdir(parents=True)
    shop_at(tmp_path, Limits()).trainer.jobs.close()
    assert not left.exists()


def test_what_the_disk_does_not_let_go_is_not_said_to_be_deleted(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = merged(shop)

    def refuse(old: Path, new: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(MergeError, match="alpha-beta could not be deleted: Permission denied; try again later"):
        shop.delete(made.id, ME)
    assert made.path.is_dir() and len(shop.choices(ME)) == 1


def measured(shop: Workshop, made: Any, **changes: Any) -> Report:
    given: list[Report] = []
    kept.measure(
        shop.merger,
        made,
        shop.subjects(made, ME),
        {OWN: TEXT},
        changes.get("baselines", (AVERAGE, MIXTURE)),
        ME,
        changes.get("tell", lambda part, note: None),
        given.append,
    )
    return given[-1]


def test_every_model_is_measured_on_the_same_bytes_and_the_last_report_stays(shop: Workshop) -> None:
    made = merged(shop)
    report = measured(shop, made)
    assert [(row.name, row.kind) for row in report.rows] == [
        ("alpha", PARENT), ("beta", PARENT), (MIXTURE, BASELINE), (AVERAGE, BASELINE), ("alpha-beta", MERGED)
    ]  # fmt: skip
    expected = streams_bits(bdh.load(shop.registry.folder("alpha", ME)), TEXT, kept.STREAMS).mean()
    assert report.rows[0].bits[OWN] == pytest.approx(expected, abs=1e-9)
    best = min(row.bits[OWN] for row in report.rows if row.kind == PARENT)
    assert report.rows[-1].ratio == pytest.approx(report.rows[-1].bits[OWN] / best, abs=1e-9)
    assert report.parents == ("alpha", "beta") and sum(report.shares[OWN]) == pytest.approx(1)
    assert kept.last_report(made) == report
    assert f"Measured on {len(TEXT):,} bytes" in kept.table(report)
    assert kept.chart(report) is not None


def test_parents_of_other_shapes_have_no_weight_average_and_gone_ones_are_named(shop: Workshop) -> None:
    made = merged(shop, Wanted(parents=("alpha", "wide")))
    report = measured(shop, made)
    assert AVERAGE not in [row.name for row in report.rows]
    (note,) = report.notes
    assert note.startswith("There is no weight average: parents differ in mlp_internal_dim_multiplier (4 and 8)")
    first = merged(shop, Wanted(parents=("alpha", "beta"), name="first"))
    second = merged(shop, Wanted(parents=(shop.merger.model_id(first, ME), "alpha"), name="second"))
    shop.delete(first.id, ME)
    report = measured(shop, second, baselines=())
    assert [row.name for row in report.rows] == ["alpha", "second"]
    assert report.notes == ("first is not here any more.",)


def test_models_called_as_the_baselines_leave_these_their_rows(shop: Workshop) -> None:
    parent = merged(shop, Wanted(parents=("alpha", "beta"), name="mixture"))
    made = merged(shop, Wanted(parents=(shop.merger.model_id(parent, ME), "wide"), name="mixture"))
    job = shop.trainer.jobs.get(shop.heal(made.id, 2, ["english"], "everything", ME), ME)
    shop.trainer.jobs.stop(job.id, ME)
    build(WIDE, seed=4).save_pretrained(job.run.path / "checkpoint")
    report = measured(shop, made, baselines=(MIXTURE,))
    rows = [(row.name, row.kind) for row in report.rows]
    assert rows == [
        ("mixture (2)", PARENT), ("wide", PARENT), (MIXTURE, BASELINE), ("mixture (3)", MERGED),
        ("mixture-healed", HEALED),
    ]  # fmt: skip
    assert report.parents == ("mixture (2)", "wide") and report.notes == ()
    best = min(row.bits[OWN] for row in report.rows[:2])
    assert report.rows[0].ratio == pytest.approx(report.rows[0].bits[OWN] / best, abs=1e-9)


def test_the_average_of_a_report_waits_for_no_merge_and_takes_no_more_memory(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = merged(shop)
    expected = merge(make_plan(Recipe(parents=folders_of(shop), method="average"))).tensors
    tensors = shop.merger.average(("alpha", "beta"), ME).state_dict()
    assert all((tensors[name] == tensor).all() for name, tensor in expected.items())
    with shop.merger._alone():
        notes = measured(shop, made).notes
    assert notes == ("There is no weight average: another merge is under way; try again in a few seconds.",)
    monkeypatch.setattr(shop.merger, "limits", Limits(max_merge_bytes=1000))
    (note,) = measured(shop, made).notes
    assert note.startswith("There is no weight average: merging takes")


def folders_of(shop: Workshop) -> tuple[str, ...]:
    return tuple(str(shop.registry.folder(name, ME)) for name in ("alpha", "beta"))


def test_a_mixture_costs_what_the_composed_model_costs(shop: Workshop) -> None:
    parts = [bdh.load(shop.registry.folder(name, ME)) for name in ("alpha", "beta")]
    composed = build(ComposedConfig(method="mixture", members=(FLAT, FLAT), share_rate=0.005)).eval()
    for place, part in enumerate(parts):
        composed.members[place].load_state_dict(part.state_dict())
    costs = [streams_bits(part, TEXT, 4) for part in parts]
    # A stream's first byte teaches nobody anything, in the composed model as here.
    assert np.abs(kept.mixture_bits(costs, 0.005) - streams_bits(composed, TEXT, 4)).max() < 1e-4


def test_texts_are_pieces_from_all_over_what_no_recipe_trains_on() -> None:
    (name, data), *_ = kept.texts_of(["english"], b"", 1024).items()
    held_out = shipped_text("english")[1]
    assert name == "english" and len(data) == 1024
    assert all(data[start : start + 256].tobytes() in held_out for start in range(0, 1024, 256))
    assert kept.texts_of([], b"x" * 500, 300)[OWN].tobytes() == b"x" * 300
    with pytest.raises(DataError, match="your text has 3 bytes"):
        kept.texts_of([], b"abc", 300)
    with pytest.raises(DataError, match="choose at least one text"):
        kept.texts_of([], b" ", 300)


def test_a_verdict_follows_the_stated_thresholds() -> None:
    row = Row("x", MERGED, {}, 1.0, 1.19, 1.1, 1.3)
    verdicts = [row.verdict, Row("x", MERGED, {}, 1, 1.2, 1, 2).verdict, Row("x", MERGED, {}, 1, 1.5, 1, 2).verdict]
    assert verdicts == ["kept", "partly kept", "not kept"]


def test_names_are_escaped_wherever_they_are_shown() -> None:
    crafted = '"><img src=x onerror=hurt()>'
    row = Row(crafted, PARENT, {crafted: 1.0}, 1.0, 1.0, 1.0, 1.0)
    report = Report((row,), {crafted: crafted}, 10, (crafted,), {crafted: (1.0,)}, 10, (crafted,))
    shown = kept.table(report) + kept.shares_markup(report) + lineage.legend([crafted])
    shown += lineage.tinted(lineage.carried_by(b"<b>", np.ones((3, 1), np.float32)), [crafted])
    assert "<img" not in shown and "<b>&" not in shown and "&lt;b&gt;" in shown


def test_a_character_has_the_colour_of_the_parent_that_carried_most_of_its_bytes() -> None:
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.52, 0.48]], np.float32)
    first, second, third = lineage.carried_by("aéb".encode(), shares)
    assert (first.parent, first.faint) == (0, False)
    assert (second.parent, second.shares) == (1, pytest.approx((0.3, 0.7)))
    assert (third.parent, third.faint) == (0, True)
    markup = lineage.tinted([first, second, third], ["x", "y"])
    assert markup == (
        '<span class="p0" title="x 90% · y 10%">a</span><span class="p1" title="x 30% · y 70%">é</span>'
        '<span class="p0 faint" title="x 52% · y 48%">b</span>'
    )


@pytest.mark.parametrize(("method", "coloured"), [("concat", True), ("mixture", True), ("average", False)])
def test_a_merged_model_writes_beside_its_parents_and_shows_whose_neurons_wrote(
    shop: Workshop, method: str, coloured: bool
) -> None:
    made = merged(shop, Wanted(parents=("alpha", "beta"), method=method))
    subjects = [shop.model(made.id, ME), *(one for one in shop.subjects(made, ME) if one.kind == PARENT)]
    options = Sampling(max_bytes=20, seed=1)
    *_, voices = write_beside(shop.registry, subjects, made.names, kept.heritage_of(made), b"Once", options, ME)
    assert [(voice.subject.name, voice.place) for voice in voices] == [("alpha-beta", None), ("alpha", 0), ("beta", 1)]
    assert all(len(voice.written) == 20 for voice in voices)
    assert ('class="p0' in voices[0].markup or 'class="p1' in voices[0].markup) == coloured
    assert "class=" not in voices[1].markup.replace('class="prompt"', "")


def test_healing_is_a_run_on_the_texts_and_its_result_stands_beside_the_merge(shop: Workshop) -> None:
    made = merged(shop)
    id = shop.heal(made.id, 2, ["english", "spanish"], "everything", ME)
    job = shop.trainer.jobs.get(id, ME)
    assert job.title == "alpha-beta-healed"
    assert {"base=base/alpha-beta", "minutes=2.0", "learning_rate=0.001"} <= set(job.arguments)
    assert shop.healings(made, ME)[0].id == id and len(shop.choices(ME)) == 1
    shop.trainer.jobs.stop(id, ME)
    build(WIDE, seed=4).save_pretrained(job.run.path / "checkpoint")
    labels = dict(shop.choices(ME))
    assert labels["alpha-beta-healed · healed from it"] == f"{made.id}+{id}"
    assert [one.kind for one in shop.subjects(made, ME)] == ["parent", "parent", "merged", "healed"]
    with zipfile.ZipFile(shop.zipped(f"{made.id}+{id}", ME)) as file:
        assert "alpha-beta-healed/model.safetensors" in file.namelist()
    with pytest.raises(MergeError, match="was deleted"):
        shop.subject(f"{made.id}+{'0' * 16}", ME)


def test_parents_say_what_they_were_trained_on(shop: Workshop, tmp_path: Path) -> None:
    assert shop.merger.texts(["alpha"], ME) == ["chat", "english", "python", "spanish"]
    told = {"texts": {"spanish": {"trained_bytes": 5}, "mine": {}}}
    build(FLAT, seed=7).save_pretrained(tmp_path / "told", provenance=told)
    id = shop.registry.load_trained(tmp_path / "told", "told", ME)
    assert shop.merger.texts([id, "alpha"], ME) == ["spanish"]


@pytest.mark.parametrize("texts", [5, [["english"]], ["english"], {"english": 1, "nothing shipped": []}, None])
def test_foreign_provenance_may_say_anything_of_its_texts(shop: Workshop, tmp_path: Path, texts: Any) -> None:
    build(FLAT, seed=7).save_pretrained(tmp_path / "told", provenance={"texts": texts})
    id = shop.registry.load_trained(tmp_path / "told", "told", ME)
    named = ["english"] if isinstance(texts, dict) else ["chat", "english", "python", "spanish"]
    assert shop.merger.texts([id], ME) == named
    made = merged(shop, Wanted(parents=(id, "alpha"), neurons=32))
    assert checkpoint.read_config(made.checkpoint).n_neuron == 32


def test_neurons_are_cut_by_activity_on_what_the_parents_were_trained_on(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted(parents=("alpha", "beta"), neurons=32)
    note = "# calibration.txt: 8,192 bytes, in equal parts of what the parents were trained on"
    assert shop.merger.preview(wanted, ME).command.startswith(note)
    heard: list[bytes] = []

    def spied(plan: Any, *, text: bytes, progress: Any) -> Any:
        heard.append(text)
        return merge(plan, text=text, progress=progress)

    monkeypatch.setattr("ui.merges.merge", spied)
    made = merged(shop, wanted)
    (text,) = heard
    every = [shipped_text(name)[0][:2048] for name in ("chat", "english", "python", "spanish")]
    assert text == b"".join(every) and len(text) == CALIBRATION_BYTES
    assert checkpoint.read_config(made.checkpoint).n_neuron == 32
