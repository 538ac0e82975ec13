"""What SECURITY.md says is so: every test that it names is there, and every limit has the numbers that it states."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from ui.limits import Limits

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)
THREATS = (
    "files", "names", "ids", "sizes", "repositories", "inputs", "other people's runs", "states",
    "uploads", "path tricks", "prompts",
    "markup in model output", "log injection", "oversize requests", "slow readers", "queue flooding", "disk filling",
    "memory filling", "cpu burning", "session floods",
)  # fmt: skip


@cache
def held_in(name: str) -> set[str]:
    return set(re.findall(r"^def (\w+)\(", (ROOT / "tests" / name).read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_a_test_that_is_named_is_there(file: str, name: str) -> None:
    assert name in held_in(file)


@pytest.mark.parametrize("threat", THREATS)
def test_a_threat_has_a_row_with_a_test(threat: str) -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "::" in line]
    assert any(threat in row.split("|")[1].lower() for row in rows)


@pytest.mark.parametrize("field", dataclasses.fields(Limits), ids=lambda field: field.name)
def test_a_limit_is_as_it_is_stated(field: dataclasses.Field[int]) -> None:
    home, public = (getattr(Limits.from_environment(env), field.name) for env in ({}, {"BDH_PUBLIC": "true"}))
    told = [str(one).lower() if isinstance(one, bool) else f"{one:,}" for one in (home, public)]
    assert f"| `BDH_{field.name.upper()}` | {told[0]} | {told[1]} |" in TEXT
