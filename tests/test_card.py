from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from zoo import fresh

from bdh import card, checkpoint
from bdh.errors import CheckpointError

TRAINED = {
    "recipe": {
        "name": "letters",
        "texts": {"english": 2, "tales": {"dataset": "roneneldan/TinyStories@main"}, "mine": {"source": "a/b.txt"}},
        "phases": [{"texts": {"more": {"dataset": "user/more"}}}],
    },
    "base": {"commit": f"user/parent@{'c' * 40}:sub", "weights_sha256": "0"},
    "held_out_bits_per_byte": {"english": 1.8322, "tales": 1.5},
}
MERGED = {
    "merge": {"method": "concat"},
    "parents": [{"source": "a", "commit": "user/b@1"}, {"source": "x", "commit": "user/a@2"}, {"source": "local"}],
}


def front(text: str) -> dict[str, Any]:
    """The front matter, which the Hub's own reader understands alike."""
    found = card.split(text)[0]
    assert ModelCard(text).data.license == found["license"]
    return found


def test_a_trained_checkpoints_card_says_what_is_known_of_it() -> None:
    told = front(card.completed("# Letters\n", "flat", TRAINED, language=["en"]))
    index = told.pop("model-index")
    assert told == {
        "library_name": "bdh-hatchery",
        "pipeline_tag": "text-generation",
        "license": "unknown",
        "language": ["en"],
        "tags": ["bdh", "byte-level", "flat"],
        "base_model": ["user/parent"],
        "base_model_relation": "finetune",
        "datasets": ["roneneldan/TinyStories", "user/more"],
    }
    read = ModelCard(card.completed("# Letters\n", "flat", TRAINED)).data
    assert index[0]["name"] == "letters" == read.model_name
    assert [(one.dataset_name, one.dataset_split, one.metric_type, one.metric_value) for one in read.eval_results] == [
        ("english", "held out", "bits_per_byte", 1.8322),
        ("tales", "held out", "bits_per_byte", 1.5),
    ]


def test_a_merge_names_the_parents_that_are_on_the_hub_and_no_others() -> None:
    told = front(card.completed("", "composed", MERGED))
    assert told["base_model"] == ["user/a", "user/b"] and told["base_model_relation"] == "merge"
    assert told["tags"] == ["bdh", "byte-level", "composed", "merge"]
    local = front(card.completed("", "flat", {"merge": {}, "parents": [{"source": "checkpoints/english"}]}))
    assert "base_model" not in local and "base_model_relation" not in local


@pytest.mark.parametrize(
    "name", ["checkpoints/base", "base/mine", "path/to", "runs", "a/b/c", "-a/b", "a/b@c", "a/..", 7]
)
def test_a_place_in_a_clone_is_no_repository(name: Any) -> None:
    assert not card.is_hub_id(name)
    assert "base_model" not in front(card.completed(f"---\nbase_model: {name}\n---\n", "flat", {}))


def test_what_another_card_says_is_kept_where_it_is_well_formed_and_left_out_where_not() -> None:
    before = """---
license: apache-2.0
language: [en, "<script>", klingon-language]
tags: [cats, "a\\nb", bdh]
base_model: them/cat
base_model_relation: adapter
datasets: [them/mice, "no id"]
extra_gated_prompt: Send money
model-index: nonsense
---
# Cat
"""
    text = card.completed(before, "flat", {})
    assert front(text) == {
        "library_name": "bdh-hatchery",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["cats", "bdh", "byte-level", "flat"],
        "base_model": ["them/cat"],
        "base_model_relation": "adapter",
        "datasets": ["them/mice"],
    }
    assert text.endswith("---\n\n# Cat\n")
    assert front(card.completed(before, "flat", {}, license="mit"))["license"] == "mit"


@pytest.mark.parametrize(
    "text",
    [
        "---\na: &a [x, x]\nb: *a\n---\nbody",
        "---\n- a list\n---\nbody",
        "---\n: : :\n  - [\n---\nbody",
        "---\nlicense: !!python/object/apply:os.system [id]\n---\nbody",
        f"---\nlicense: {'m' * 20_000}\n---\nbody",
        f"---\n{'[' * 3000}\n---\nbody",
        "---\nlicense: 2026-11-23\n---\nbody",
    ],
)
def test_a_front_matter_that_is_no_plain_mapping_is_dropped_and_never_run(text: str) -> None:
    assert card.split(text) == ({}, "body")
    assert front(card.completed(text, "flat", {}))["license"] == "unknown"


@given(st.text(), st.dictionaries(st.text(), st.one_of(st.floats(), st.text(), st.none()), max_size=4))
def test_to_complete_a_card_twice_changes_nothing_and_it_always_parses(body: str, bits: dict[str, Any]) -> None:
    provenance = {"held_out_bits_per_byte": bits, "recipe": {"name": body}, "merge": None, "parents": body}
    text = card.completed(body, "flat", provenance)
    assert card.completed(text, "flat", provenance) == text
    told, after = card.split(text)
    assert told["library_name"] == "bdh-hatchery" and set(told["tags"]) >= {"bdh", "byte-level", "flat", "merge"}
    assert card.split(body)[1].strip() == after.strip()


@given(st.text())
def test_words_from_elsewhere_stay_words_on_a_line(text: str) -> None:
    told = card.line(text)
    assert len(told) <= 100 and told.isprintable() and not set(told) & set("`*<>[]|#\\{}$&")
    assert card.code(text).count("`") == 2
    fence = card.fenced(text).split("\n")[0]
    assert set(fence) == {"`"} and fence not in text


@pytest.mark.parametrize("license", ["MIT license", "mit\nlicense: x", "", "x" * 60])
def test_a_licence_that_can_be_none_is_refused(license: str) -> None:
    with pytest.raises(CheckpointError, match="no name of the Hub's"):
        card.checked_license(license)


def test_a_merge_inherits_the_licence_that_all_parents_have_and_all_languages() -> None:
    one, two = "---\nlicense: mit\nlanguage: [en]\n---\n", "---\nlicense: mit\nlanguage: es\n---\n"
    assert yaml.safe_load(card.inherited([one, two]).strip("-\n")) == {"license": "mit", "language": ["en", "es"]}
    assert "license" not in card.inherited([one, "---\nlicense: gpl-3.0\n---\n"])
    assert card.inherited([one, ""]) == "---\nlanguage:\n- en\n---\n"
    assert card.inherited(["", ""]) == ""


def test_every_checkpoint_that_is_written_has_a_complete_front_matter(tmp_path: Path) -> None:
    folder = fresh("hierarchical").save_pretrained(tmp_path / "one", provenance=TRAINED)
    told = front(checkpoint.read_card(folder))
    assert told["tags"] == ["bdh", "byte-level", "hierarchical"] and told["base_model"] == ["user/parent"]
    assert told["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.8322


@pytest.mark.parametrize("name", sorted(path.name for path in (Path(__file__).parents[1] / "checkpoints").iterdir()))
def test_a_shipped_card_says_what_its_provenance_says(name: str) -> None:
    folder = Path(__file__).parents[1] / "checkpoints" / name
    text, provenance = checkpoint.read_card(folder), checkpoint.read_provenance(folder)
    assert card.completed(text, checkpoint.read_config(folder).kind, provenance) == text
    bits = {one.dataset_name: one.metric_value for one in ModelCard(text).data.eval_results}
    assert bits == provenance["held_out_bits_per_byte"]
    told = front(text)
    assert told["license"] == "mit" and told["language"] and "base_model" not in told
