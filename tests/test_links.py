"""What links ask for, as far as it can be done, and what is said of the rest."""

from __future__ import annotations

import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st

from ui.limits import Limits
from ui.links import TABS, Link, read_link
from ui.registry import Registry

LIMITS = Limits(max_prompt_bytes=100)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("models")
    zoo.fresh("flat").save_pretrained(folder / "checkpoints" / "flat")
    return Registry(folder / "checkpoints", folder, LIMITS, "cpu")


def test_a_link_gives_tab_model_text_temperature_and_seed(registry: Registry) -> None:
    query = {"tab": "write", "model": "flat", "prompt": "Anfang: é\n", "temperature": "0.5", "seed": "7", "other": "x"}
    assert read_link(query, "", registry, LIMITS) == Link("write", "flat", "Anfang: é\n", 0.5, 7)
    assert read_link({}, "", registry, LIMITS) == Link()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model", "nobody" * 100, "there is no model"),
        ("tab", "elsewhere" * 100, "there are chat, write, train, merge, inspect, models"),
        ("prompt", "é" * 51, "102 bytes; at most 100"),
        ("temperature", "nan", "from 0 to 2"),
        ("temperature", "hot", "from 0 to 2"),
        ("seed", "-1", "whole number"),
        ("seed", "9" * 16, "whole number"),
        ("seed", "٣", "whole number"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_rest_is_done(
    registry: Registry, name: str, value: str, words: str
) -> None:
    link = read_link({"tab": "write", "prompt": "a"} | {name: value}, "", registry, LIMITS)
    (problem,) = link.problems
    assert words in problem and len(problem) <= 200
    assert getattr(link, name) is None
    assert name == "prompt" or link.prompt == "a"


@given(st.dictionaries(st.sampled_from(["tab", "model", "prompt", "temperature", "seed"]), st.text(max_size=200)))
def test_whatever_a_link_says_the_page_opens(registry: Registry, query: dict[str, str]) -> None:
    link = read_link(query, "", registry, LIMITS)
    assert link.tab in (None, *TABS) and link.model in (None, "flat")
    assert link.temperature is None or 0 <= link.temperature <= 2
    assert all(len(problem) <= 200 for problem in link.problems)
