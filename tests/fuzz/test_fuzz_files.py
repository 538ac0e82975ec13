"""Whatever lies in a stranger's file, it is read or refused in words, in time, and nothing else is touched."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guided
import pytest
import torch
from hostile import JUNK, NASTY, NUMBERS, TEXTS, cases, everything, mutated, only_refuses
from hypothesis import given
from hypothesis import strategies as st
from zoo import ZOO, fresh, model

import bdh
from bdh import checkpoint, convert
from bdh.config import config_to_dict
from bdh.stream import Stream
from ui.limits import Limits
from ui.registry import Registry

ROOT = Path(__file__).parents[2]
SMALL = 100_000
"""Parameters that a fuzzed checkpoint may ask for."""
KINDS = ("flat", "hierarchical", "hebbian", "transformer", "mixture")
CONFIGS = {kind: {"format": 1, **config_to_dict(ZOO[kind])} for kind in KINDS}
KEYS = sorted({key for fields in CONFIGS.values() for key in fields})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@st.composite
def configs(draw: st.DrawFn) -> dict[Any, Any]:
    """A configuration with some values that are none."""
    fields = dict(CONFIGS[draw(st.sampled_from(KINDS))])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*fields, *KEYS]) | TEXTS)
        match draw(st.integers(0, 3)):
            case 0:
                fields.pop(key, None)
            case 1:
                fields[key] = draw(st.sampled_from(NUMBERS))
            case 2 if "members" in fields and isinstance(fields["members"], list):
                fields["members"] = [{**one, key: draw(JUNK)} for one in fields["members"] if isinstance(one, dict)]
            case _:
                fields[key] = draw(JUNK)
    return fields


@cases(250)
@given(configs())
def test_no_configuration_does_more_than_be_refused(fields: dict[Any, Any]) -> None:
    data = json.dumps(fields).encode()
    parsed = only_refuses(lambda: checkpoint.parse_json(data, "config.json"))
    if parsed is not None:
        config = only_refuses(lambda: checkpoint.config_from_fields(parsed, "config.json"))
        if config is not None:
            only_refuses(lambda: bdh.models.base.expected_shapes(config, SMALL))


@cases(200)
@given(st.sampled_from(KINDS).flatmap(lambda kind: mutated(json.dumps(CONFIGS[kind]).encode())))
def test_no_bytes_of_a_configuration_do_more_than_be_refused(data: bytes) -> None:
    parsed = only_refuses(lambda: checkpoint.parse_json(data, "config.json"))
    if parsed is not None:
        only_refuses(lambda: checkpoint.config_from_fields(parsed, "config.json"))


ENTRY = st.fixed_dictionaries({"dtype": JUNK | st.just("F32"), "shape": JUNK, "data_offsets": JUNK})
HEADERS = st.dictionaries(TEXTS | st.just("__metadata__"), ENTRY | JUNK, max_size=4)


@cases(200)
@given(HEADERS.map(lambda fields: json.dumps(fields).encode()) | st.binary(max_size=300), st.integers(0, 2**40))
def test_no_header_does_more_than_be_refused(text: bytes, size: int) -> None:
    only_refuses(lambda: checkpoint.header_length(text, size, "x"))
    only_refuses(lambda: checkpoint.parse_header(text, size, "x"))


@pytest.fixture(scope="module")
def good(place: Path) -> dict[str, bytes]:
    """The files of a good checkpoint, a memory and a file of torch's."""
    folder = fresh("flat").save_pretrained(place / "good")
    stream = Stream(model("flat"))
    stream.feed(b"hello")
    stream.save(place / "memory.safetensors")
    torch.save(fresh("flat").state_dict(), place / "good.pt")
    found = {name: (folder / name).read_bytes() for name in checkpoint.FILES if (folder / name).is_file()}
    found |= {name: (place / name).read_bytes() for name in ("memory.safetensors", "good.pt")}
    return found


@pytest.fixture(scope="module")
def outside(place: Path) -> Iterator[Path]:
    """A file that no checkpoint may lead to; all beside the fuzzed folder is as it was."""
    secret = place / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text('{"format": 1, "kind": "flat"}')
    before = everything(secret.parent)
    yield secret
    assert everything(secret.parent) == before


@cases(200)
@given(st.data())
def test_no_folder_does_more_than_be_refused(place: Path, good: dict[str, bytes], outside: Path, data: Any) -> None:
    folder = emptied(place / "folder")
    names = st.sampled_from([*checkpoint.FILES, "a.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
    changed = {}
    for name in data.draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        how = data.draw(st.integers(0, 6))
        changed[name] = how
        base = good.get(name, good["model.safetensors"])
        if how <= 2:
            (folder / name).write_bytes(data.draw(mutated(base)))
        elif how == 3:
            (folder / name).write_bytes(data.draw(st.binary(max_size=100)))
        elif how == 4:
            (folder / name).symlink_to(data.draw(st.sampled_from([outside, "/dev/zero", folder, name, "/etc/passwd"])))
        elif how == 5:
            os.mkfifo(folder / name)
        else:
            (folder / name).mkdir()
    for name in checkpoint.FILES:
        if name not in changed and name in good and data.draw(st.booleans()):
            (folder / name).write_bytes(good[name])
    before = sorted(os.listdir(folder))
    for read in (
        lambda: bdh.load(folder, device="cpu", max_parameters=SMALL),
        lambda: checkpoint.read_card(folder),
        lambda: checkpoint.read_provenance(folder),
    ):
        only_refuses(read)
    assert sorted(os.listdir(folder)) == before


def emptied(folder: Path) -> Path:
    """The folder, with nothing in it."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return folder


@cases(200)
@given(st.data())
def test_no_memory_does_more_than_be_refused(place: Path, good: dict[str, bytes], data: Any) -> None:
    path = place / "fuzzed-memory.safetensors"
    path.write_bytes(data.draw(mutated(good["memory.safetensors"])))
    stream = Stream(model("flat"))
    stream.feed(b"before")
    heard = stream.position_bytes
    if only_refuses(lambda: stream.load(path)) is None and stream.position_bytes == heard:
        stream.feed(b"it still hears")
    else:
        only_refuses(lambda: stream.feed(b"it hears"))


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def archives(exploded: Path) -> dict[str, bytes]:
    """Files that a reader of torch's files must not trust."""

    def zipped(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", how) as file:
            for name, content in entries.items():
                file.writestr(name, content)
        return target.getvalue()

    target = io.BytesIO()
    torch.save({"a": torch.zeros(1).expand(10**9)}, target)
    saved = io.BytesIO()
    torch.save({"model": _Bomb(exploded)}, saved)
    return {
        "pickle": pickle.dumps(_Bomb(exploded)),
        "torch": saved.getvalue(),
        "stretched": target.getvalue(),
        "deflated": zipped(
            {"archive/data.pkl": pickle.dumps({}), "archive/data/0": bytes(10**8)}, zipfile.ZIP_DEFLATED
        ),
        "climbing": zipped({"../../x/data.pkl": pickle.dumps({}), "/etc/x": b""}),
        "many": zipped({f"archive/data/{index}": b"" for index in range(20_000)}),
        "nested": zipped({"archive/data.pkl": b"(" * 100_000 + b"."}),
        "empty": zipped({}),
    }


def test_archives_and_pickles_made_to_deceive_are_refused_in_little_memory(place: Path) -> None:
    """In a process that may take no more memory than reading an honest file does, and a little."""
    folder = place / "archives"
    folder.mkdir()
    for name, content in archives(place / "exploded").items():
        (folder / f"{name}.pt").write_bytes(content)
    script = f"""
import resource, sys
from pathlib import Path
from bdh import convert
from bdh.errors import HatcheryError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
for path in sorted(Path({str(folder)!r}).iterdir()):
    try:
        convert.read_file(path, allow_pickle=True)
    except HatcheryError as error:
        assert str(error).isprintable() and len(str(error)) < 2000
    else:
        raise SystemExit(f"{{path.name}} was read")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (place / "exploded").exists()


@cases(200)
@given(st.data())
def test_no_foreign_file_does_more_than_be_refused(place: Path, good: dict[str, bytes], data: Any) -> None:
    ending = data.draw(st.sampled_from([".pt", ".bin", ".safetensors"]))
    base = good["model.safetensors" if ending == ".safetensors" else "good.pt"]
    path = place / f"foreign{ending}"
    path.write_bytes(data.draw(mutated(base)))
    only_refuses(lambda: convert.read_file(path, allow_pickle=data.draw(st.booleans())))


def test_what_the_guided_search_begins_with_is_taken_by_its_readers_and_rubbish_is_not() -> None:
    for name, (read, beginnings) in guided.seeds().items():
        assert beginnings and [guided.refused(read, one) for one in beginnings] == [""] * len(beginnings), name
        assert name == "card" or guided.refused(read, b"\x80rubbish\xff{"), name


@pytest.fixture(scope="module")
def registry(place: Path) -> Registry:
    (place / "data").mkdir()
    return Registry(place / "none", place / "data", Limits(max_uploads_each=10**6, max_parameters=SMALL), "cpu")


@cases(120)
@given(st.data())
def test_no_upload_does_more_than_be_refused(
    place: Path, good: dict[str, bytes], outside: Path, registry: Registry, data: Any
) -> None:
    """Names as Gradio lets them through: no slashes, and nothing that leads elsewhere."""
    folder = emptied(place / "uploaded")
    endings = st.sampled_from([".safetensors", ".json", ".md", ".pt", ".SAFETENSORS", ".exe", "", ".json.safetensors"])
    stems = st.sampled_from([*NASTY, "model", "config", "README", "provenance", "-rf", "CON"]) | st.text(max_size=30)
    paths = []
    for _ in range(data.draw(st.integers(0, 3))):
        stem, ending = data.draw(stems), data.draw(endings)
        name = "".join(c for c in stem if c.isprintable() and c != "/")[:40].strip(".") + ending
        key = {".json": "config.json", ".pt": "good.pt", ".md": "README.md"}.get(ending, "model.safetensors")
        path = folder / (name or "x")
        path.write_bytes(good[key] if data.draw(st.booleans()) else data.draw(mutated(good[key])))
        paths.append(str(path))
    id = only_refuses(lambda: registry.load_files(paths, "browser:me"))
    if id is not None:
        assert id.isprintable() and len(id) < 100
        registry.card(id, "browser:me")
        registry.unload(id, "browser:me")
    assert not any((place / "data" / "uploads").rglob("*"))
    assert {path.name for path in (place / "data").iterdir()} <= {"uploads"}


def test_the_public_bound_of_a_shape_is_checked_before_memory_is_taken() -> None:
    limit = Limits.from_environment({"BDH_PUBLIC": "1"}).max_parameters
    config = bdh.FlatConfig(n_layer=1, n_embd=4096, n_head=1, mlp_internal_dim_multiplier=65536)
    with pytest.raises(bdh.HatcheryError, match="parameters"):
        bdh.models.base.expected_shapes(config, limit)
