"""The tree in the README names what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREE = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree\n\n```\n")[1].split("```")[0]


def sections() -> Iterator[tuple[Path, str]]:
    """Folders, each with its line and the lines that stand below it."""
    lines, inside = TREE.splitlines(), dict[int, Path]()
    for number, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        if found := re.match(r"\s*(\w+)/", line):
            inside = {above: folder for above, folder in inside.items() if above < depth}
            inside[depth] = inside[max(inside)] / found[1] if inside else ROOT / found[1]
            below = lines[number + 1 :]
            end = next((i for i, one in enumerate(below) if len(one) - len(one.lstrip()) <= depth), len(below))
            yield inside[depth], "\n".join([line, *below[:end]])


@pytest.mark.parametrize(("folder", "told"), [pytest.param(*one, id=one[0].name) for one in sections()])
def test_every_file_is_named_in_the_line_of_its_folder_or_below(folder: Path, told: str) -> None:
    assert folder.is_dir()
    if folder.relative_to(ROOT).parts[0] == "tests":
        return
    stems = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}
    if folder.name == "transformers_export":
        stems = {stem for stem in stems if not stem.endswith("_bdh") and "_bdh_" not in stem}
    assert {stem for stem in stems if not re.search(rf"\b{stem}\b", told)} == set()


def test_every_folder_of_the_page_the_experiments_training_and_models_is_in_the_tree() -> None:
    there = {path.parent for top in ("ui", "lab", "train", "bdh") for path in (ROOT / top).rglob("*.py")}
    assert there - {folder for folder, _ in sections()} == set()
