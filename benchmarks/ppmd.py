"""python -m benchmarks ppmd [--json]: what a compressor of the same text needs for what checkpoints are measured on.

PPMd, order 16, 256 MB (`pip install pyppmd`): the bytes that the held-out part of each shipped corpus adds to what was
trained and validated on, as bits per byte.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from train.data import split
from train.export import held_out_bytes
from train.recipe import load_recipe
from train.sources import is_shipped, prepare

from .report import Result, machine, report

_ORDER, _MEMORY = 16, 256 << 20


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ppmd", description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        pyppmd = importlib.import_module("pyppmd")
    except ImportError:
        parser.error("pyppmd is not installed; pip install pyppmd")
    recipe = load_recipe("base", [])
    rows: list[Result] = []
    with tempfile.TemporaryDirectory() as cache:
        for text in recipe.sources(recipe.parts()[0]):
            if not is_shipped(text.source or text.name):
                continue
            one = split(prepare(text, Path(cache)), validation=recipe.validation, test=recipe.test)
            known, held_out = one.train.tobytes() + one.validation.tobytes(), held_out_bytes(one).tobytes()
            bits = 8 * (_size(pyppmd, known + held_out) - _size(pyppmd, known)) / len(held_out)
            rows.append({"text": one.name, "bytes": len(held_out), "bits_per_byte": round(bits, 3)})
    result = {"rows": rows, "benchmark": "ppmd", **machine(1)}
    print(json.dumps(result, indent=2) if options.json else report(result))
    return 0


def _size(pyppmd: Any, data: bytes) -> int:
    encoder = pyppmd.Ppmd7Encoder(_ORDER, _MEMORY)
    return len(encoder.encode(data)) + len(encoder.flush())
