"""Bytes that strangers send, changed by what they reach in our readers: for hours where hypothesis has minutes.

    pip install atheris
    python tests/fuzz/guided.py header -max_total_time=600

Takes libFuzzer's options after the name of a reader. What breaks one is written to the folder that it is called from.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
if __name__ == "__main__":
    import atheris

    watched: contextlib.AbstractContextManager[object] = atheris.instrument_imports(include=["bdh", "train"])
else:
    watched = contextlib.nullcontext()
with watched:
    import torch
    from hostile import told
    from zoo import ZOO, fresh, model

    from bdh import card, checkpoint, convert
    from bdh.config import config_to_dict
    from bdh.errors import HatcheryError
    from bdh.merge.recipe import read_recipe
    from bdh.models import base
    from bdh.stream import Stream
    from train import recipe as training

PLACE = Path(tempfile.mkdtemp(prefix="guided-"))
atexit.register(shutil.rmtree, PLACE, ignore_errors=True)
SMALL = 100_000
"""Parameters that a configuration may ask for."""
MERGE = b"""
parents = ["checkpoints/english", "user/repo"]
method = "ties"
base = "checkpoints/base"
weights = [1.0, 0.5]
name = "both"
"""


def saved(data: bytes, name: str) -> Path:
    """The bytes as a file."""
    path = PLACE / name
    path.write_bytes(data)
    return path


def config(data: bytes) -> None:
    """A configuration, as far as the shapes that it asks for."""
    told_fields = checkpoint.parse_json(data, "config.json")
    base.expected_shapes(checkpoint.config_from_fields(told_fields, "config.json"), SMALL)


def header(data: bytes) -> None:
    """What a file of weights begins with."""
    checkpoint.read_header(saved(data, "model.safetensors"))


def memory(data: bytes) -> None:
    """A saved memory, and what is heard after it."""
    stream = Stream(model("flat"))
    stream.load(saved(data, "memory.safetensors"))
    stream.feed(b"it hears")


def archive(data: bytes) -> None:
    """A file of torch's, its entries as they come."""
    convert.read_file(saved(data, "archive.pt"), config={"n_layer": ZOO["flat"].n_layer}, allow_pickle=True)


def pickled(data: bytes) -> None:
    """The program in a file of torch's, in an archive that is right."""
    target = io.BytesIO()
    with zipfile.ZipFile(PLACE / "good.pt") as good, zipfile.ZipFile(target, "w") as file:
        for name in good.namelist():
            file.writestr(name, data if name.endswith("data.pkl") else good.read(name))
    archive(target.getvalue())


def front_matter(data: bytes) -> None:
    """A card's front matter, read and completed."""
    text = data.decode("utf-8", errors="replace")
    card.split(card.completed(text, "flat", {}))


def recipe(data: bytes) -> None:
    """What is to be trained."""
    training.load_recipe(str(saved(data, "recipe.toml")), [])


def merge_recipe(data: bytes) -> None:
    """What is to be merged."""
    read_recipe(saved(data, "merge.toml"))


def seeds() -> dict[str, tuple[Callable[[bytes], None], list[bytes]]]:
    """Every reader by name, with bytes that it takes."""
    weights = fresh("flat").save_pretrained(PLACE / "good") / "model.safetensors"
    stream = Stream(model("flat"))
    stream.feed(b"hello")
    stream.save(PLACE / "good.safetensors")
    torch.save(fresh("flat").state_dict(), PLACE / "good.pt")
    with zipfile.ZipFile(PLACE / "good.pt") as file:
        program = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    kinds = [json.dumps({"format": 1, **config_to_dict(one)}).encode() for one in ZOO.values()]
    return {
        "config": (config, kinds),
        "header": (header, [weights.read_bytes()]),
        "memory": (memory, [(PLACE / "good.safetensors").read_bytes()]),
        "archive": (archive, [(PLACE / "good.pt").read_bytes()]),
        "pickled": (pickled, [program]),
        "card": (front_matter, [(weights.parent / "README.md").read_bytes()]),
        "recipe": (recipe, [(training.RECIPES / f"{one}.toml").read_bytes() for one in ("base", "finetune")]),
        "merge": (merge_recipe, [MERGE]),
    }


def refused(read: Callable[[bytes], None], data: bytes) -> str:
    """What is said of the bytes; empty if they were taken. Anything but words ends the search."""
    try:
        read(data)
    except HatcheryError as error:
        return told(error)
    return ""


def main() -> None:
    """Search until something breaks, or libFuzzer's options say that it is enough."""
    readers = seeds()
    if len(sys.argv) < 2 or sys.argv[1] not in readers:
        raise SystemExit(f"name a reader, one of {', '.join(readers)}")
    read, beginnings = readers[sys.argv[1]]
    corpus = PLACE / "corpus"
    corpus.mkdir()
    for number, beginning in enumerate(beginnings):
        (corpus / str(number)).write_bytes(beginning)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], lambda data: refused(read, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
