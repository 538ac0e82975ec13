"""Measure how well a checkpoint predicts, remembers and finds.

Texts are shipped corpora by name, or files. Of a shipped corpus only the last 5 % is heard, which shipped checkpoints
never trained on; of a file everything is. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint
from bdh.cli import Meter, add_loading, guarded, model_of
from bdh.errors import DataError
from bdh.models import Model

from .. import plots
from ..data import Bytes, held_out_start, read_bytes
from ..sources import is_shipped
from .hearing import Progress, carried_bits, cold_bits
from .last_word import LastWord, dataset_file, last_word, read_passages
from .names import Names, names
from .needle import LENGTHS_BYTES, check_grid, needle_grid
from .position import against_position, long_range
from .report import Evaluation, Text, TextResult, report
from .score import cold_and_carried

MEASURES = ("bits", "position", "needle", "lambada", "names")
_NAMES = 200
_DIALOGUES = "chat"

_EXAMPLES = """\
measures:
  bits      bits and perplexity per byte, with a memory emptied every --window bytes and with one carried through
  position  bits per byte against position in one stream, and whether a long past does harm
  needle    whether a word told somewhere in a text is found at its end
  lambada   whether the last words of passages are guessed (--lambada FILE)
  names     whether a chat model asked about a word it never saw asked about answers with that word (--names)

examples:
  python -m train evaluate english --data english
  python -m train evaluate user/repo --data book.txt --only position --bytes 1000000 --plot position.svg
  python -m train evaluate english --lambada lambada_test.jsonl --json -
  python -m train evaluate chat --names 50
"""


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train evaluate",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a shipped name, folder, file or user/repo; see python -m bdh --help")
    add("--data", metavar="TEXT", action="append", default=[], help="a shipped corpus or a file; may be repeated")
    add("--whole", action="store_true", help="hear all of a shipped corpus, not only its last 5 %%")
    add("--only", choices=MEASURES, action="append", help="measure this alone; may be repeated (default: all)")
    add(
        "--bytes",
        metavar="N",
        type=int,
        default=100_000,
        help="hear at most so many of each text, and of LAMBADA's passages (default: 100,000)",
    )
    add("--window", metavar="N", type=int, default=256, help="bytes after which cold memory is emptied (default: 256)")
    add(
        "--lambada",
        metavar="FILE",
        help='passages to guess the last words of: JSON lines of {"text": …}, or plain lines; '
        "hf://datasets/user/name/path is a file on the Hub",
    )
    add(
        "--names",
        metavar="N",
        type=int,
        nargs="?",
        const=_NAMES,
        help=f"ask a chat model about so many words that the shipped dialogues train no one on (default: {_NAMES})",
    )
    add(
        "--lengths",
        metavar="N,N",
        type=_numbers(int),
        help="bytes of a haystack (default: of 250,1000,4000 those that the text has)",
    )
    add(
        "--depths",
        metavar="P,P",
        type=_numbers(float),
        default=(0.0, 25.0, 50.0, 75.0, 100.0),
        help="where needles lie, in per cent; 100 is right before the question (default: 0,25,50,75,100)",
    )
    add("--trials", metavar="N", type=int, default=4, help="needles at each length and depth (default: 4)")
    add("--candidates", metavar="N", type=int, default=8, help="words to choose from (default: 8)")
    add("--seed", metavar="N", type=int, default=0, help="of haystacks, and of what is hidden or asked (default: 0)")
    add("--json", metavar="FILE", help="write the results as JSON; - is stdout, instead of the tables")
    add("--plot", metavar="FILE", type=Path, help="draw bits per byte against position, and needles: .png or .svg")
    add("--quiet", action="store_true", help="show no progress")
    add_loading(parser)
    return parser


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Reads numbers with commas between them."""

    def numbers(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    return numbers


def _run(options: argparse.Namespace) -> int:
    measures = tuple(options.only or MEASURES)
    _check(options, measures)
    texts = [_text(source, options) for source in options.data]
    if "needle" in measures:
        for text, data in texts:
            _check_needles(text, data, options)
    twice = {name for name, count in Counter(text.name for text, _ in texts).items() if count > 1}
    texts = [(replace(text, name=text.source if text.name in twice else text.name), data) for text, data in texts]
    passages = []
    if options.lambada is not None and "lambada" in measures:
        file = options.lambada
        if file.startswith("hf://"):
            file = dataset_file(file, login=options.login, offline=options.offline)
        passages = read_passages(file)
    model = model_of(options)
    started = time.monotonic()
    results = [_measure(model, text, data, measures, options) for text, data in texts]
    lambada: LastWord | None = None
    if passages:
        with _progress("last words", options) as progress:
            lambada = last_word(model, passages, most_bytes=options.bytes, progress=progress)
    asked = _names(model, options) if options.names is not None and "names" in measures else None
    evaluation = Evaluation(
        checkpoint=options.checkpoint,
        kind=model.config.kind,
        parameters=model.parameter_count(),
        state_bytes=model.state_bytes(),
        weights=checkpoint.weights_checksum(model.state_dict()),
        device=str(model.device),
        dtype=options.dtype,
        torch=torch.__version__,
        texts=tuple(results),
        lambada=lambada,
        names=asked,
        elapsed_s=round(time.monotonic() - started, 3),
    )
    _show(evaluation, options)
    return 0


def _check(options: argparse.Namespace, measures: Sequence[str]) -> None:
    """Refuse at once what would fail after minutes of measuring."""
    asked = options.only or ()
    if not options.data and not options.lambada and options.names is None:
        raise DataError("there is nothing to measure on; give --data TEXT, --lambada FILE, --names or several of them")
    if not options.data and (of_texts := [name for name in asked if name not in ("lambada", "names")]):
        raise DataError(f"--only {of_texts[0]} is measured on a text; give --data TEXT")
    if not options.lambada and "lambada" in asked:
        raise DataError("--only lambada needs passages; give --lambada FILE")
    if options.names is None and "names" in asked:
        raise DataError("--only names asks about words; say how many with --names N")
    for name, least in (("bytes", 2), ("window", 1), ("seed", 0), ("names", 1)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise DataError(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    if not all(0 <= depth <= 100 for depth in options.depths):
        raise DataError("--depths are per cent; each must be from 0 (the start) to 100 (right before the question)")
    if options.plot is not None:
        plots.check_file(options.plot)
        if not options.data or not {"position", "needle"} & set(measures):
            raise DataError("--plot draws position and needle, and neither is measured here; measure one on --data")
    for path in (options.plot, None if options.json in (None, "-") else Path(options.json)):
        if path is not None and not path.parent.is_dir():
            raise DataError(f"{str(path)[:200]} cannot be written: there is no folder {str(path.parent)[:200]}")


def _text(source: str, options: argparse.Namespace) -> tuple[Text, Bytes]:
    shipped = is_shipped(source)
    data = read_bytes(source)
    start = held_out_start(len(data)) if shipped and not options.whole else 0
    heard = data[start:][: options.bytes]
    if len(heard) < 2:
        raise DataError(f"{source[:200]} has {len(heard)} bytes to hear; at least 2 are needed")
    text = Text(
        source=source,
        name=Path(source).stem,
        sha256=hashlib.sha256(data.tobytes()).hexdigest(),
        text_bytes=len(data),
        start_bytes=start,
        heard_bytes=len(heard),
        trained_on=None,
    )
    return text, heard


def _lengths(data: Bytes, options: argparse.Namespace) -> tuple[int, ...]:
    return options.lengths or tuple(length for length in LENGTHS_BYTES if length <= len(data))


def _check_needles(text: Text, data: Bytes, options: argparse.Namespace) -> None:
    lengths = _lengths(data, options)
    if not lengths and options.only:
        raise DataError(
            f"{text.source[:200]} has {len(data):,} bytes to hide needles in; {LENGTHS_BYTES[0]} are needed"
        )
    check_grid(data, lengths, [depth / 100 for depth in options.depths], options.trials, options.candidates)


def _names(model: Model[Any], options: argparse.Namespace) -> Names:
    data = read_bytes(_DIALOGUES)
    start = held_out_start(len(data))
    with _progress("names,", options) as progress:
        asked = names(
            model,
            data[:start].tobytes(),
            data[start:].tobytes(),
            words=options.names,
            seed=options.seed,
            progress=progress,
        )
    return replace(asked, trained_on=trained_on(model, hashlib.sha256(data.tobytes()).hexdigest(), start))


def trained_on(model: Model[Any], sha256: str, start_bytes: int) -> bool | None:
    """Whether the checkpoint's provenance says that it trained on what a text has from there on."""
    texts = model.origin.provenance.get("texts") if model.origin else None
    for entry in texts.values() if isinstance(texts, dict) else ():
        if isinstance(entry, dict) and entry.get("sha256") == sha256:
            trained = entry.get("trained_bytes")
            return trained > start_bytes if isinstance(trained, int) else None
    return None


def _measure(
    model: Model[Any], text: Text, data: Bytes, measures: Sequence[str], options: argparse.Namespace
) -> TextResult:
    text = replace(text, trained_on=trained_on(model, text.sha256, text.start_bytes))
    result = TextResult(text, None, None, None, None)
    if {"bits", "position"} & set(measures):
        with _progress(f"{text.name}: one stream,", options) as progress:
            carried = carried_bits(model, data, progress=progress)
    if "bits" in measures:
        with _progress(f"{text.name}: cold,", options) as progress:
            cold = cold_bits(model, data, options.window, progress=progress)
        result = replace(result, bits=cold_and_carried(cold, carried, options.window))
    if "position" in measures:
        with _progress(f"{text.name}: the end again,", options) as progress:
            far = long_range(model, data, carried, progress=progress)
        result = replace(result, positions=tuple(against_position(carried)), long_range=far)
    if "needle" in measures and (lengths := _lengths(data, options)):
        with _progress(f"{text.name}: needles,", options) as progress:
            grid = needle_grid(
                model,
                data,
                lengths_bytes=lengths,
                depths=[depth / 100 for depth in options.depths],
                trials=options.trials,
                candidates=options.candidates,
                seed=options.seed,
                progress=progress,
            )
        result = replace(result, needle=grid)
    elif "needle" in measures and not options.quiet:
        print(f"{text.name} is too short for needles: {LENGTHS_BYTES[0]} bytes are needed", file=sys.stderr)
    return result


@contextmanager
def _progress(what: str, options: argparse.Namespace) -> Iterator[Progress]:
    """A line that says how far a measure is, wiped at its end."""
    meter = Meter(what, quiet=options.quiet)
    try:
        yield meter
    finally:
        meter.end()


def _show(evaluation: Evaluation, options: argparse.Namespace) -> None:
    text = json.dumps(asdict(evaluation), ensure_ascii=False, allow_nan=False, indent=1)
    print(text if options.json == "-" else report(evaluation))
    if options.json not in (None, "-"):
        written = Path(f"{options.json}.new")
        written.write_text(text + "\n", encoding="utf-8")
        os.replace(written, options.json)
    if options.plot is not None:
        positions = {result.text.name: result.positions for result in evaluation.texts if result.positions}
        needles = {result.text.name: result.needle for result in evaluation.texts if result.needle}
        plots.draw(positions, needles, options.plot)
        if not options.quiet:
            print(f"drawn: {options.plot}", file=sys.stderr)
