"""Texts of recipes, and how they become bytes on disk."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dataset_server
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh.errors import ConfigError, DataError
from train import generated, sources
from train.sources import CORPORA, Prepared, Text, prepare

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(path.name.removesuffix(".txt.xz") for path in CORPORA.glob("*.txt.xz"))


def text(source: Path | str, **fields: Any) -> Text:
    return Text(name="mine", source=str(source), **fields)


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows(*values: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def content(prepared: Prepared) -> bytes:
    data = prepared.path.read_bytes()
    assert prepared.size_bytes == len(data)
    assert prepared.sha256 == hashlib.sha256(data).hexdigest()
    return data


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "rows is 0; it must be a whole number from 1 to 4,096"),
        ({"rows": True}, "rows is True"),
        ({"rows": 2.0}, r"rows is 2\.0"),
        ({"max_bytes": -1}, "max_bytes is -1"),
        ({"source": 3}, "source is 3; it must be a text"),
        ({"column": "a\nb"}, "column is .* control characters"),
        ({"column": ""}, "column and split must not be empty"),
        ({"form": "chat"}, "form is 'chat'; it must be one of plain, tool-calling"),
        ({"form": "tool-calling", "source": "x.txt"}, "name a dataset, or a .jsonl file"),
        ({"source": "x", "dataset": "user/name"}, "a source or a dataset, not both"),
        ({"dataset": "name"}, "dataset is 'name'; it must be user/name"),
        ({"dataset": "./user/name"}, "it must be user/name"),
        ({"dataset": "../name"}, "it must be user/name"),
        ({"dataset": "user/name@"}, "it must be user/name"),
        ({"dataset": "user/name@a..b"}, "it must be user/name"),
        ({"config": "en"}, "belong to a dataset"),
        ({"fallback": "english"}, "belong to a dataset"),
        ({"dataset": "user/name", "validation": "train"}, "must not be the same"),
        ({"source": "a.txt", "validation": "b.txt", "test": "b.txt"}, "must not be the same"),
        ({"nonsense": 1}, "does not know 'nonsense'; it knows rows, source, dataset"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Text.parse("mine", fields)


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 101, "a/b"])
def test_a_name_that_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name is"):
        Text(name=name)


def test_a_number_stands_for_rows_of_the_corpus_of_that_name() -> None:
    assert Text.parse("english", 6) == Text(name="english", rows=6)


def test_a_path_stands_for_its_file_under_its_stem() -> None:
    assert Text.parse("/somewhere/my notes.txt", 2) == Text(name="my-notes", rows=2, source="/somewhere/my notes.txt")
    assert Text.parse("a/b.jsonl", {"column": "body"}) == Text(name="b", source="a/b.jsonl", column="body")


def test_what_is_neither_rows_nor_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be its rows, or a table"):
        Text.parse("english", "six")  # type: ignore[arg-type]


@given(
    st.fixed_dictionaries(
        {"rows": st.integers(1, 4096)},
        optional={
            "max_bytes": st.integers(0, 1 << 50),
            "dataset": st.sampled_from(("user/name", "user/name@v1", "a-b/c_d@refs/pr/1")),
            "column": st.sampled_from(("text", "a.b")),
            "separator": st.sampled_from(("", "\n", "\n\n", "<|>")),
            "validation": st.just("val"),
        },
    )
)
def test_the_fields_of_a_text_give_the_text_again(fields: dict[str, Any]) -> None:
    one = Text.parse("one", fields)
    assert Text.parse("one", one.fields()) == one
    assert one.fields().items() <= fields.items()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_corpus_is_prepared_whole_and_has_its_licence(name: str, tmp_path: Path) -> None:
    prepared = prepare(Text(name=name, rows=3), tmp_path)
    data = content(prepared)
    assert data == lzma.decompress((CORPORA / f"{name}.txt.xz").read_bytes())
    assert (prepared.documents, prepared.origin, prepared.text.rows) == (0, f"corpus {name}", 3)
    assert len(data) > 3_000_000
    assert b"\r" not in data
    assert data.decode()
    assert f"| `{name}.txt.xz` |" in (CORPORA / "README.md").read_text()


def test_four_corpora_are_shipped_at_about_a_megabyte_each() -> None:
    assert SHIPPED == ["chat", "english", "python", "spanish"]
    assert all((CORPORA / f"{name}.txt.xz").stat().st_size < 1_100_000 for name in SHIPPED)


@given(st.binary(min_size=1, max_size=3000), st.sampled_from((".txt", ".bin", ".xz", ".gz")), st.integers(0, 4000))
def test_the_bytes_of_a_file_stay_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str, max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("file")
    packed = {".xz": lzma.compress, ".gz": gzip.compress}.get(ending, bytes)(data)
    path = written(folder / f"mine{ending}", packed)
    prepared = prepare(text(path, max_bytes=max_bytes), folder / "data")
    assert content(prepared) == data[: max_bytes or None]
    assert prepared.origin == path.name


def test_what_is_prepared_is_found_again_and_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = text(written(tmp_path / "a.txt", "all of it"))
    first = prepare(one, tmp_path / "data")
    monkeypatch.setattr(sources, "_write", None)
    assert prepare(one, tmp_path / "data") == first


def test_a_file_that_changed_is_prepared_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one")
    first = prepare(text(path), tmp_path / "data")
    os.utime(written(path, "two"), ns=(0, path.stat().st_mtime_ns + 1))
    second = prepare(text(path), tmp_path / "data")
    assert (content(first), content(second)) == (b"one", b"two")


@pytest.mark.parametrize("harm", ["cut", "no description", "no json", "other json"])
def test_what_is_not_whole_is_prepared_again(tmp_path: Path, harm: str) -> None:
    one = text(written(tmp_path / "a.txt", "all of it"))
    prepared = prepare(one, tmp_path / "data")
    described = prepared.path.with_suffix(".json")
    if harm == "cut":
        prepared.path.write_bytes(b"all")
    elif harm == "no description":
        described.unlink()
    else:
        described.write_text("{" if harm == "no json" else json.dumps({"sha256": 1, "size_bytes": 9}))
    assert prepare(one, tmp_path / "data") == prepared
    assert content(prepared) == b"all of it"


def test_every_field_that_decides_the_bytes_gives_a_file_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows({"text": "a", "body": "b"}, {"text": "c", "body": "d"}))
    changes: list[dict[str, Any]] = [{}, {"column": "body"}, {"separator": "\n"}, {"max_bytes": 2}]
    prepared = [prepare(text(path, **change), tmp_path / "data") for change in changes]
    assert [content(each) for each in prepared] == [b"a\n\nc", b"b\n\nd", b"a\nc", b"a\n"]
    assert len({each.path for each in prepared}) == len(changes)


def test_a_folder_gives_its_text_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name, data in {
        "b.txt": b"B",
        "a/z.md": b"Z",
        "a/y.py": b"\xff not UTF-8",
        "a.txt": b"A",
        "empty.txt": b"",
        "picture.png": b"\x89PNG\0\1",
        ".hidden": b"no",
        ".git/config": b"no",
        "a/.cache/x.txt": b"no",
    }.items():
        written(folder / name, data)
    (folder / "link.txt").symlink_to(written(tmp_path / "outside.txt", "no"))
    (folder / "loop").symlink_to(folder)
    prepared = prepare(text(folder, separator="|"), tmp_path / "data")
    assert content(prepared) == b"\xff not UTF-8|Z|A|B"
    assert (prepared.documents, prepared.origin) == (4, "folder folder")
    written(folder / "c.txt", b"C")
    assert content(prepare(text(folder, separator="|"), tmp_path / "data")) == b"\xff not UTF-8|Z|A|B|C"


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    written(tmp_path / "folder" / "a.txt", "A")
    os.mkfifo(tmp_path / "folder" / "b.txt")
    assert content(prepare(text(tmp_path / "folder"), tmp_path / "data")) == b"A"


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_rows_of_a_file_give_the_text_of_a_column(tmp_path: Path, ending: str) -> None:
    data = rows({"m": {"say": "one"}, "a.b": "x"}, {"m": {"say": None}}, {"m": {"say": ""}}, {"m": {"say": "zwölf"}})
    packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending](data + b"\n")
    prepared = prepare(text(written(tmp_path / f"a.jsonl{ending}", packed), column="m.say"), tmp_path / "data")
    assert content(prepared) == "one\n\nzwölf".encode()
    assert prepared.documents == 2


def test_a_column_whose_name_has_a_dot_is_read_as_it_is_called(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows({"a.b": "dotted", "a": {"b": "nested"}}))
    assert content(prepare(text(path, column="a.b"), tmp_path / "data")) == b"dotted"


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (rows({"a": {"b": "x"}, "c": "y"}), {}, "there is no column 'text'; the columns are 'a.b', 'c'"),
        (rows({"a": {"b": "x"}}), {"column": "a.c"}, "there is no column 'a.c'; the columns are 'a.b'"),
        (rows({"text": ["x"]}), {}, "the column 'text' holds list, not text"),
        (rows({"text": "x"}) + b"{oops\n", {}, "line 2 of 'a.jsonl' is no JSON object"),
        (rows({"text": "x"}) + b"[" * 100_000, {}, "line 2 of 'a.jsonl' is no JSON object"),
        (b"[1]\n", {}, "line 1 of 'a.jsonl' is no JSON object"),
        (rows({"text": ""}), {}, "a.jsonl is empty"),
        (b"", {}, "a.jsonl is empty"),
        (rows({"text": "x"}), {"form": "tool-calling"}, "a row has the columns 'text'; the form tool-calling reads"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, data: bytes, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(text(written(tmp_path / "a.jsonl", data), **fields), tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.bin*"))


TOOLS = [{"name": "time", "parameters": {"city": {"type": "string"}}}]
CALL = {"name": "time", "arguments": {"city": "Oslo  N"}}
LINES = (
    'Tools: [{"name":"time","parameters":{"city":{"type":"string"}}}]\n'
    'User: What time is it in "Oslo N"?\nCall: {"name":"time","arguments":{"city":"Oslo  N"}}'
)


def test_rows_with_queries_tools_and_answers_become_dialogues(tmp_path: Path) -> None:
    asked = {"query": 'What time\nis it in "Oslo N"?', "tools": json.dumps(TOOLS, indent=2), "id": 1}
    wrapped = [{"type": "function", "function": TOOLS[0]}]
    data = rows(
        {**asked, "answers": json.dumps([CALL])},
        {**asked, "tools": wrapped, "answers": [CALL, CALL]},
        {**asked, "answers": "no JSON"},
        {**asked, "answers": json.dumps([{"say": "hi"}])},
    )
    prepared = prepare(text(written(tmp_path / "a.jsonl", data), form="tool-calling"), tmp_path / "data")
    assert content(prepared).decode() == f"{LINES}\n\n{LINES}\n{LINES.splitlines()[-1]}"
    assert (prepared.documents, prepared.skipped) == (2, 2)


def test_rows_with_a_system_and_a_chat_become_dialogues(tmp_path: Path) -> None:
    system = "SYSTEM: You may use these functions -\n" + json.dumps(TOOLS[0], indent=4) + '\n\n{"name": "two"}\n'
    chat = (
        'USER: What time is it in "Oslo N"?\n\n\nASSISTANT: Let me see. <functioncall> '
        '{"name": "time", "arguments": \'{"city": "Oslo  N"}\'} <|endoftext|>\n\n\nFUNCTION RESPONSE: {"time": "9:00"}'
        "\n\n\nASSISTANT: It is\n9:00. <|endoftext|>\n\n\n"
    )
    data = rows({"system": system, "chat": chat}, {"system": "SYSTEM: hi", "chat": "no speaker"})
    prepared = prepare(text(written(tmp_path / "a.jsonl", data), form="tool-calling"), tmp_path / "data")
    tools, user, call = LINES.split("\n")
    assert content(prepared).decode().split("\n") == [
        f'{tools[:-1]},{{"name":"two"}}]',
        user,
        "Bot: Let me see.",
        call,
        'Result: {"time": "9:00"}',
        "Bot: It is 9:00.",
    ]
    assert prepared.skipped == 1


def test_rows_that_are_all_broken_are_refused_with_their_number(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows(*[{"query": "?", "tools": "{", "answers": "["}] * 3))
    with pytest.raises(DataError, match=r"a.jsonl is empty: the contents of its 3 rows are broken"):
        prepare(text(path, form="tool-calling"), tmp_path / "data")


def test_what_is_named_to_validate_and_test_on_lies_behind_the_text(tmp_path: Path) -> None:
    path, other, last = (written(tmp_path / f"{name}.txt", name * 3) for name in "abc")
    whole = prepare(text(path, validation=str(other), test=str(last)), tmp_path / "data")
    assert (content(whole), whole.validation_bytes, whole.test_bytes) == (b"aaabbbccc", 3, 3)
    tested = prepare(text(path, test=str(other), max_bytes=2), tmp_path / "data")
    assert (content(tested), tested.validation_bytes, tested.test_bytes) == (b"aabb", 0, 2)
    validated = prepare(text(path, validation=str(other), max_bytes=2), tmp_path / "data")
    assert (content(validated), validated.validation_bytes, validated.test_bytes) == (b"aabb", 2, 0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x" * 4000, "is neither a shipped corpus"),
        ("~nobody/x.txt", "is neither a shipped corpus"),
        ("nowhere.txt", r"'nowhere.txt' is neither a shipped corpus \(chat, english, python, spanish\), nor a file"),
        ("generated:poems", r"nor generated \(generated:primitives, .*generated:invented-words\)"),
    ],
)
def test_a_source_that_is_not_there_is_named_with_what_there_is(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(text(source), tmp_path)


def test_a_damaged_or_misnamed_archive_is_refused(tmp_path: Path) -> None:
    packed = lzma.compress(b"x" * 1000)
    for name, data in {
        "a.xz": packed[:-20],
        "b.xz": b"plain",
        "c.gz": b"plain",
        "d.gz": gzip.compress(b"x" * 99)[:-9],
    }.items():
        with pytest.raises(DataError, match=f"'{name}' is damaged or not what its ending says"):
            prepare(text(written(tmp_path / name, data)), tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.bin*"))


def test_an_empty_file_and_a_folder_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        prepare(text(written(tmp_path / "empty.txt", "")), tmp_path / "data")
    written(tmp_path / "folder" / "x.bin", b"\0")
    with pytest.raises(DataError, match="folder folder is empty"):
        prepare(text(tmp_path / "folder"), tmp_path / "data")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no files to read"):
        prepare(text(tmp_path / "none"), tmp_path / "data")


@pytest.mark.parametrize("good_reads", [0, 1])
def test_a_disk_that_fails_while_a_folder_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_reads: int
) -> None:
    class Failing(io.BytesIO):
        left = good_reads

        def read(self, size: int | None = -1, /) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, "Input/output error")
            return b"x"

    path = written(tmp_path / "folder" / "a.txt", "x")
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *how, **more: Failing() if self == path else opened(self, *how, **more)
    )
    with pytest.raises(DataError, match=r"a\.txt' cannot be read: Input/output error"):
        prepare(text(tmp_path / "folder"), tmp_path / "data")


class Stopped(Exception):
    pass


@pytest.mark.parametrize("error", [Stopped(), BrokenPipeError(errno.EPIPE, "gone"), KeyboardInterrupt()])
def test_progress_that_raises_stops_the_work_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(sources, "_REPORT_BYTES", 100)
    path = written(tmp_path / "a.txt", b"x" * 1000)
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 300:
            raise error

    with pytest.raises(type(error)):
        prepare(text(path), tmp_path / "data", progress=progress)
    assert seen == [(100, 1000), (200, 1000), (300, 1000)]
    assert [entry.suffix for entry in (tmp_path / "data").iterdir()] == [".lock"]
    seen.clear()
    monkeypatch.setattr(sources, "_REPORT_S", 1000)
    prepared = prepare(text(path, max_bytes=150), tmp_path / "data", progress=progress)
    assert (seen, content(prepared)) == ([(100, 150), (150, 150)], b"x" * 150)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="no space is left; free some, set max_bytes"):
        prepare(text(written(tmp_path / "a.txt", "x")), tmp_path / "data")
    assert [entry.suffix for entry in (tmp_path / "data").iterdir()] == [".lock"]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match=r"cannot be written to .*; choose another folder"):
        prepare(text(path), path)


def test_many_who_prepare_the_same_text_write_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.txt", b"x" * 100_000)
    write, calls = sources._write, []
    monkeypatch.setattr(sources, "_write", lambda *given: (calls.append(1), write(*given)))
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(lambda _: prepare(text(path), tmp_path / "data"), range(8)))
    assert len(calls) == 1
    assert all(each == prepared[0] for each in prepared)


def test_what_is_generated_is_prepared_in_whole_blocks(tmp_path: Path) -> None:
    prepared = prepare(text("generated:systems", max_bytes=3000), tmp_path)
    assert content(prepared) == generated.generate("systems", 3000)
    assert 2700 < prepared.size_bytes <= 3000
    assert content(prepared).endswith(b"\n\n")


# Datasets of the Hub, read by the library itself from a server on this machine, in a process of its own because the
# address of the Hub is read when the library is imported.


def parquet(*values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(values)), buffer)
    return buffer.getvalue()


CONFIGS = b"""---
configs:
- config_name: verse
  data_files:
  - split: train
    path: verse/*.parquet
- config_name: prose
  data_files: prose/*.parquet
---
"""
DATASETS = {
    "user/lines": {
        "train.jsonl": rows(*({"text": f"line {i}", "n": i} for i in range(50))),
        "validation.jsonl": rows({"text": "valid", "n": 0}),
        "test.jsonl": rows({"text": "tested", "n": 0}),
    },
    "user/configs": {
        "README.md": CONFIGS,
        "verse/0.parquet": parquet({"m": {"say": "roses"}, "k": 1}, {"m": {"say": "violets"}, "k": 2}),
        "verse/1.parquet": parquet({"m": {"say": "sugar"}, "k": 3}),
        "prose/0.parquet": parquet({"text": "It was", "k": 1}),
    },
    "user/tools": {"train.jsonl": rows({"query": "?", "tools": json.dumps(TOOLS), "answers": json.dumps([CALL])})},
    "user/code": {"code.py": b"raise SystemExit(7)\n", "train.jsonl": rows({"text": "x"})},
    "user/nothing": {"data.weird": b"123"},
    "user/gated": {"train.jsonl": rows({"text": "secret"})},
    "user/broken": {"train.jsonl": rows({"text": "a"}) + b'{"text":\n'},
}
CASES: dict[str, dict[str, Any]] = {
    "whole": {"dataset": "user/lines", "separator": "\n", "validation": "validation", "test": "test"},
    "again": {"dataset": "user/lines", "separator": "\n", "validation": "validation", "test": "test", "offline": True},
    "stranger": {"dataset": "user/lines", "max_bytes": 11},
    "token": {"dataset": "user/lines", "max_bytes": 11, "token": "hf_mine"},
    "other token": {"dataset": "user/lines", "max_bytes": 11, "token": "hf_other", "offline": True},
    "revision": {"dataset": f"user/lines@{dataset_server.COMMIT}", "max_bytes": 6},
    "config": {"dataset": "user/configs", "config": "verse", "column": "m.say"},
    "tools": {"dataset": "user/tools", "form": "tool-calling"},
    "fallback": {"dataset": "user/gated", "fallback": "generated:tool-calling", "max_bytes": 2000},
    "offline": {"dataset": "user/lines", "offline": True},
    "no config": {"dataset": "user/configs"},
    "unknown config": {"dataset": "user/configs", "config": "drama"},
    "unknown split": {"dataset": "user/lines", "split": "dev"},
    "unknown column": {"dataset": "user/lines", "column": "body"},
    "no text": {"dataset": "user/lines", "column": "n"},
    "unknown revision": {"dataset": "user/lines@v9"},
    "unknown": {"dataset": "user/unknown"},
    "gated": {"dataset": "user/gated"},
    "code": {"dataset": "user/code"},
    "nothing": {"dataset": "user/nothing"},
    "broken": {"dataset": "user/broken"},
}
SCRIPT = """
import json, sys
from pathlib import Path
from bdh.errors import DataError
from train.sources import Text, prepare
results = {"imported": "datasets" in sys.modules}
for name, fields in json.load(sys.stdin).items():
    options = {key: fields.pop(key) for key in ("offline", "token") if key in fields}
    try:
        made = prepare(Text.parse("mine", fields), Path(sys.argv[1]), **options)
        results[name] = [made.path.read_bytes().decode(), made.path.name, made.documents, made.origin,
                         made.validation_bytes, made.test_bytes]
    except DataError as error:
        results[name] = str(error)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What came of every case, and the tokens that the server saw."""
    folder = tmp_path_factory.mktemp("hub")
    with dataset_server.serve(DATASETS, gated=("user/gated",)) as served:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder / "data")],
            input=json.dumps(CASES),
            env={**kept, "HF_ENDPOINT": served.endpoint, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        yield {**json.loads(ran.stdout.splitlines()[-1]), "tokens": served.tokens}


def test_a_dataset_is_streamed_with_the_splits_that_are_named(hub: dict[str, Any]) -> None:
    data, _, documents, origin, validation_bytes, test_bytes = hub["whole"]
    assert data == "\n".join(f"line {i}" for i in range(50)) + "valid" + "tested"
    assert (documents, validation_bytes, test_bytes) == (52, 5, 6)
    assert origin == f"user/lines, train, commit {dataset_server.COMMIT}"


def test_a_dataset_that_was_prepared_is_found_offline(hub: dict[str, Any]) -> None:
    assert hub["again"] == hub["whole"]


def test_what_a_token_gave_is_found_with_that_token_alone(hub: dict[str, Any]) -> None:
    assert hub["token"][0] == hub["stranger"][0] == "line 0\n\nlin"
    assert hub["token"][1] != hub["stranger"][1]
    assert "offline mode is on" in hub["other token"]
    assert set(hub["tokens"]) == {None, "Bearer hf_mine"}


def test_a_revision_a_configuration_and_a_nested_column_are_read(hub: dict[str, Any]) -> None:
    assert hub["revision"][0] == "line 0"
    assert hub["config"][0] == "roses\n\nviolets\n\nsugar"
    assert hub["tools"][0].splitlines()[0] == LINES.splitlines()[0]


def test_the_fallback_is_read_where_a_dataset_cannot_be_had(hub: dict[str, Any]) -> None:
    data, *_, origin, _, _ = hub["fallback"]
    assert origin == "generated:tool-calling"
    assert data == generated.generate("tool-calling", 2000).decode()


def test_the_library_is_imported_only_when_a_dataset_is_read(hub: dict[str, Any]) -> None:
    assert hub["imported"] is False


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("offline", "user/lines has not been prepared here, and offline mode is on"),
        ("no config", "user/configs has several configurations, name one as config: 'verse', 'prose'"),
        ("unknown config", "user/configs has no configuration 'drama'; it has 'verse', 'prose'"),
        ("unknown split", "user/lines has no split 'dev'; it has 'train', 'validation', 'test'"),
        ("unknown column", "there is no column 'body'; the columns are 'text', 'n'"),
        ("no text", "the column 'n' holds int, not text"),
        ("unknown revision", "user/lines@v9: there is no such revision"),
        ("unknown", "user/unknown was not found on the Hub: check the spelling, or give a token if it is private"),
        ("gated", "user/gated is gated: accept its terms on"),
        ("code", "user/code is read by code of its own, which is never run"),
        ("nothing", "user/nothing cannot be read (DataFilesNotFoundError"),
        ("broken", "user/broken cannot be read (ArrowInvalid"),
    ],
)
def test_a_dataset_that_cannot_be_read_says_why(hub: dict[str, Any], case: str, message: str) -> None:
    assert message in hub[case]


def test_a_hub_that_cannot_be_reached_is_named_and_the_fallback_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> str:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(sources, "_commit", unreachable)
    one = Text(name="mine", dataset="user/lines", rows=2)
    with pytest.raises(DataError, match="the Hub cannot be reached"):
        prepare(one, tmp_path, offline=False)
    path = written(tmp_path / "mine.txt", "instead")
    instead = Text(name="mine", dataset="user/lines", rows=2, validation="validation", fallback=str(path))
    prepared = prepare(instead, tmp_path / "data", offline=False)
    assert (content(prepared), prepared.text, prepared.validation_bytes) == (b"instead", instead, 0)


def test_a_machine_without_the_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_commit", lambda *_: dataset_server.COMMIT)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        prepare(Text(name="mine", dataset="user/lines"), tmp_path, offline=False)


def test_a_folder_here_is_never_taken_for_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "user" / "lines" / "train.jsonl", rows({"text": "from here"}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="also lies here; name that as source"):
        prepare(Text(name="mine", dataset="user/lines"), tmp_path / "data", offline=False)
