"""A file imports only from lower floors, read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (
    ("bdh.errors",),
    ("bdh.config", "bdh.device", "bdh.text"),
    ("bdh.sampling",),
    ("bdh.state",),
    ("bdh.ops",),
    ("bdh.card", "bdh.waiting"),
    ("bdh.checkpoint",),
    ("bdh.hub",),
    ("bdh.publish", "bdh.search"),
    ("bdh.models",),
    ("bdh.presets", "bdh.probe", "bdh.stream"),
    ("bdh.engine",),
    ("bdh.convert",),
    ("bdh.load",),
    ("bdh.merge", "bdh.hub_commands", "bdh.space", "bdh.transformers_export"),
    ("bdh.cli",),
    ("bdh.__main__",),
    ("bdh",),
    ("train",),
    ("lab",),
    ("ui",),
    ("app",),
)
"""From bottom to top; a package of one floor may import from itself, two units of one floor not from each other."""

HEIGHT = {unit: height for height, units in enumerate(FLOORS) for unit in units}
FILES = sorted(
    path.relative_to(ROOT)
    for pattern in ("app.py", "bdh/**/*.py", "train/**/*.py", "lab/**/*.py", "ui/**/*.py")
    for path in ROOT.glob(pattern)
)
HOMES = {
    "gradio": ("app.py", "ui/"),
    "pickle": ("bdh/convert.py",),
    "transformers": ("bdh/transformers_export/",),
    "triton": ("bdh/ops/",),
    "numba": ("bdh/ops/",),
}
"""Where a library may be imported; anywhere else it may not."""


def module_of(path: Path) -> str:
    """Dotted name of a file's module."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str | None:
    """The floor's unit that a module belongs to; None if it is none of ours."""
    top, _, rest = module.partition(".")
    if top == "bdh":
        inner = f"bdh.{rest.split('.')[0]}"
        return inner if inner in HEIGHT else "bdh" if not rest or not exists(inner) else inner
    return top if top in HEIGHT else None


def exists(module: str) -> bool:
    """Whether the dotted name is a file or a package of ours."""
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, those in functions and type checks included."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if exists(inner) else source


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    own = unit_of(module_of(path))
    assert own in HEIGHT, f"{path} stands on no floor: give it one in FLOORS"
    for module in imported(path):
        unit = unit_of(module)
        if unit is None or unit == own:
            continue
        assert unit in HEIGHT, f"{path} imports {module}, which stands on no floor"
        assert HEIGHT[unit] < HEIGHT[own], f"{path} imports {module}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_library_with_a_home_is_imported_only_there(path: Path) -> None:
    for module in imported(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or path.as_posix().startswith(homes), f"{path} imports {module}; only {homes} may"


def test_the_page_starts_without_torch_in_its_first_file() -> None:
    if (ROOT / "app.py").is_file():
        assert not any(module.split(".")[0] == "torch" for module in imported(Path("app.py")))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_torch_files_are_read_only_by_their_two_readers_and_never_as_code(path: Path) -> None:
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.serialization.load"):
            assert path.as_posix() in ("bdh/convert.py", "train/folder.py")
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert not any(alias.name == "load" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_compiled_or_loaded_by_the_parts_of_torch_whose_holes_are_not_mended(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    named = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not [name for name in named if (name + ".").startswith(("torch.jit.", "torch.export.", "torch.package."))]
