"""python -m bdh export transformers: its options, and what it tells."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..models import Model
from .export import export

DESCRIPTION = """\
Write a folder that another library loads by itself. There is one such library: transformers, whose
AutoModelForCausalLM and AutoTokenizer take it with trust_remote_code=True. bdh.load takes it too. Models of every kind
can be written: flat, hebbian, transformer, hierarchical, and composed with their members."""
EXAMPLES = """\
examples:
  python -m bdh export transformers chat chat-transformers
  python -m bdh export transformers nestling nestling-transformers
  python -m bdh export transformers user/repo small --dtype bfloat16
  hf upload user/name chat-transformers
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What an export can be told on the command line, beside how the checkpoint is loaded."""
    parser.add_argument("library", metavar="LIBRARY", choices=("transformers",), help="transformers")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="see python -m bdh --help")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument(
        "--stop-at-newline",
        action=argparse.BooleanOptionalAction,
        help="generate stops where a line ends (default: for models that were trained to answer)",
    )


def run(options: argparse.Namespace, model: Model[Any]) -> int:
    """Write the folder; the exit status.

    Raises:
        CheckpointError: as `export`.
    """
    folder = export(model, options.out, stop_at_newline=options.stop_at_newline)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if options.json:
        print(json.dumps({"out": str(folder), "kind": model.config.kind, "files": files}))
    else:
        print(f"{folder}: {len(files)} files, {sum(files.values()):,} bytes")
    return 0
