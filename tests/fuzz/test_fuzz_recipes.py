"""Whatever a recipe, an override or a form says, it is taken or refused in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hostile import JUNK, NASTY, TEXTS, cases, mutated, only_refuses
from hypothesis import given
from hypothesis import strategies as st

from bdh import hub
from bdh.merge import recipe as merging
from bdh.sampling import Sampling
from train import recipe as training
from ui.limits import Limits
from ui.merges import _number, _weights
from ui.wishes import SHIPPED_TEXTS, Wish, arguments, checked, run_name, text_fields
from ui.write import sampling, stop_strings

RECIPES = sorted(training.RECIPES.glob("*.toml"))
KEYS = st.sampled_from([field.name for field in dataclasses.fields(training.Recipe)])
MERGES = b"""
parents = ["checkpoints/english", "user/repo"]
method = "ties"
base = "checkpoints/base"
weights = [1.0, 0.5]
density = 0.3
name = "both"
"""
LIMITS = Limits.from_environment({"BDH_PUBLIC": "1"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@cases(300)
@given(st.sampled_from(RECIPES).flatmap(lambda path: mutated(path.read_bytes())))
def test_no_bytes_of_a_recipe_do_more_than_be_refused(place: Path, data: bytes) -> None:
    path = place / "recipe.toml"
    path.write_bytes(data)
    only_refuses(lambda: training.load_recipe(str(path), []))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a = " + "[" * 100_000, "a." * 50_000 + "b = 1", "a = 1" + "0" * 100_000]
)
def test_a_recipe_nested_too_deeply_is_refused(place: Path, text: str) -> None:
    path = place / "deep.toml"
    path.write_text(text)
    assert only_refuses(lambda: training.load_recipe(str(path), [])) is None
    assert only_refuses(lambda: merging.read_recipe(path)) is None
    only_refuses(lambda: training.load_recipe("finetune", [f"prompt={text}", text]))


VALUES = (
    JUNK.filter(lambda value: value is not None).map(str)
    | TEXTS
    | st.sampled_from(["[1, 2]", "{a = 1}", "{x = {source = 1}}", "[[1]]", '"x"', "'''", "1e999", "[" * 500, "a = 1"])
)


@cases(300)
@given(
    st.sampled_from([path.stem for path in RECIPES]) | TEXTS,
    st.lists(
        st.tuples(KEYS | TEXTS | KEYS.map(lambda key: f"{key}.x.y"), st.sampled_from(["=", "", "=="]), VALUES),
        max_size=4,
    ),
)
def test_no_overrides_do_more_than_be_refused(source: str, pairs: list[tuple[str, str, str]]) -> None:
    only_refuses(lambda: training.load_recipe(source, ["".join(pair) for pair in pairs]))


@cases(300)
@given(st.dictionaries(KEYS, JUNK, max_size=4))
def test_no_fields_of_a_recipe_do_more_than_be_refused(fields: dict[str, Any]) -> None:
    known = training.read_fields("finetune", [])
    only_refuses(lambda: training.recipe_from_fields({**known, **fields}, "x"))


@cases(300)
@given(mutated(MERGES) | st.binary(max_size=100))
def test_no_bytes_of_a_merge_recipe_do_more_than_be_refused(place: Path, data: bytes) -> None:
    path = place / "merge.toml"
    path.write_bytes(data)
    only_refuses(lambda: merging.read_recipe(path))


@cases(300)
@given(st.dictionaries(st.sampled_from([one.name for one in dataclasses.fields(merging.Recipe)]), JUNK, max_size=4))
def test_no_fields_of_a_merge_recipe_do_more_than_be_refused(fields: dict[str, Any]) -> None:
    only_refuses(lambda: merging.recipe_from_fields({"parents": ["a", "b"], **fields}))


@cases(300)
@given(TEXTS | st.text(alphabet="ab/@:.-_~\\ \n\0é", max_size=40))
def test_no_name_of_a_repository_leads_to_this_machine(text: str) -> None:
    source = only_refuses(lambda: hub.parse_source(text, local=False))
    if source is not None:
        assert source.path is None and source.repo_id and ".." not in source.subfolder.split("/")


def wish_with(changes: dict[str, Any]) -> None:
    wish = only_refuses(lambda: checked(dataclasses.replace(Wish(base="beta", pasted="x"), **changes), LIMITS))
    if wish is None:
        return
    texts = only_refuses(lambda: text_fields(wish, "mine.txt", LIMITS))
    if texts is not None:
        words = only_refuses(lambda: arguments(wish, "base/beta", texts, kind="flat"))
        if words is not None:
            only_refuses(lambda: training.load_recipe(words[0], words[1:]))


@cases(400)
@given(
    st.dictionaries(st.sampled_from([one.name for one in dataclasses.fields(Wish)]), JUNK, max_size=3),
    st.sampled_from(["My own text", "Shipped texts", "A dataset on the Hub"]),
    st.lists(st.sampled_from(SHIPPED_TEXTS), max_size=3),
)
def test_no_form_of_a_run_does_more_than_be_refused(changes: dict[str, Any], data: str, corpora: list[str]) -> None:
    wish_with({"data": data, "corpora": corpora, "dataset": "user/name", **changes})


SAMPLING = {
    "max_bytes": 10, "temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 0.0,
    "repetition_decay": 0.9, "seed": 1, "stop": "", "valid_utf8": True,
}  # fmt: skip


@cases(400)
@given(st.dictionaries(st.sampled_from([*SAMPLING]), JUNK, max_size=3))
def test_no_options_of_writing_do_more_than_be_refused(changes: dict[str, Any]) -> None:
    given_options = SAMPLING | changes
    options = only_refuses(lambda: sampling(LIMITS, **given_options))
    assert options is None or isinstance(options, Sampling)


@cases(300)
@given(st.sampled_from(["t", "width", "seed", "neurons"]), JUNK, TEXTS)
def test_no_numbers_of_a_merge_do_more_than_be_refused(name: str, value: Any, text: str) -> None:
    only_refuses(lambda: _number(name, value))
    only_refuses(lambda: _weights(text))
    only_refuses(lambda: stop_strings(text))


@cases(300)
@given(TEXTS | st.text(max_size=100))
def test_a_name_made_of_what_was_written_is_a_plain_one(text: str) -> None:
    name = run_name(text, "otherwise")
    assert 0 < len(name) <= 60 and name.isascii() and name.isprintable() and "/" not in name and name[0] not in ".-"
    assert name not in NASTY[:12]
