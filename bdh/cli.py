"""The command line: generate, chat, score, info, convert, merge, push, search, export, space.

What a model writes goes to stdout, all else to stderr. Exit status: 0, 2 for bad input, 130 for Ctrl-C, 141 when
the reader of the output went away.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import secrets
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from . import checkpoint, space
from . import hub_commands as hubs
from .config import config_to_dict
from .convert import convert
from .device import is_out_of_memory
from .errors import CheckpointError, DataError, HatcheryError
from .load import load
from .merge import command as merge
from .models import Model
from .presets import describe
from .sampling import Sampling
from .stream import Stream
from .text import Utf8Assembler
from .transformers_export import command as transformers_export

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"
"""The folder of the checkpoints that come with the repository."""
DEFAULT_CHECKPOINT = "chat"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PIECE_BYTES = 1 << 16
_INTERRUPTED, _NO_READER = 130, 141

_DESCRIPTION = """\
Run Baby Dragon Hatchling (BDH) models: byte-level language models whose memory never grows.

CHECKPOINT is the name of a shipped checkpoint, a folder, a .safetensors file, or a place on the Hugging Face
Hub: user/repo, user/repo@revision or user/repo:subfolder."""
_EXAMPLES = """\
examples:
  python -m bdh chat
  python -m bdh generate english --prompt "Once upon a time" --temperature 0.7 --seed 1
  python -m bdh score user/repo book.txt --json
  python -m bdh info --presets
  python -m bdh convert old.pt new-folder --n-layer 6
  python -m bdh merge english spanish --out both
  python -m bdh push both user/both
  python -m bdh search english
  python -m bdh export transformers chat chat-transformers
  python -m bdh space create user/name chat --dry-run
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: options.run(options))


def guarded(command: Callable[[], int]) -> int:
    """The exit status of a command, or of what stopped it, with one line on stderr for what a person can meet."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        try:
            status = command()
            sys.stdout.flush()
            return status
        except HatcheryError as error:
            _say(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            _say("")
            return _INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more on its way out: let that go nowhere.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _NO_READER
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            _say("error: the memory of this machine does not suffice; choose a smaller model, or --dtype bfloat16")
            return 2
        except OSError as error:
            if error.filename is None:
                raise
            _say(f"error: {str(error.filename)[:200]}: {error.strerror}")
            return 2


# Options


def _parser() -> argparse.ArgumentParser:
    parser = _command(argparse.ArgumentParser, "python -m bdh", _DESCRIPTION, _EXAMPLES)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    generate = _command(
        commands.add_parser,
        "generate",
        "Continue a prompt. Bytes are written as they come, a character at a time.",
        "examples:\n"
        '  python -m bdh generate --prompt "Once upon a time" --max-bytes 500\n'
        "  cat book.txt | python -m bdh generate user/repo --temperature 0 --json\n"
        "  python -m bdh generate --prompt A --save-memory a.safetensors\n"
        "  python -m bdh generate --prompt B --memory a.safetensors --save-memory\n",
        run=_generate,
    )
    _add_checkpoint(generate)
    generate.add_argument("--prompt", metavar="TEXT", help="text to go on from (default: standard input)")
    _add_sampling(generate, max_bytes=200)
    generate.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help=r"stop when this has been written, and leave it out; \n, \t and \xHH are understood; may be repeated",
    )
    generate.add_argument("--valid-utf8", action="store_true", help="let only valid UTF-8 be written")
    _add_memory(generate)
    _add_json(generate, "write one JSON object when done, instead of the text")

    chat = _command(
        commands.add_parser,
        "chat",
        'Talk to a model trained on lines of "User: …" and "Bot: …". Ctrl-C stops an answer, Ctrl-D ends.\n'
        "Commands: /clear, /save FILE, /load FILE, /quit.",
        "examples:\n  python -m bdh chat\n  python -m bdh chat english --memory friend.safetensors --save-memory\n",
        run=_chat,
    )
    _add_checkpoint(chat)
    _add_sampling(chat, max_bytes=500)
    _add_memory(chat)

    score = _command(
        commands.add_parser,
        "score",
        "Bits per byte of a file read as one stream; lower is better, 8 is knowing nothing.",
        "examples:\n  python -m bdh score english book.txt\n  python -m bdh score user/repo - --json < book.txt\n",
        run=_score,
    )
    score.add_argument("checkpoint", metavar="CHECKPOINT", help="see python -m bdh --help")
    score.add_argument("file", metavar="FILE", help="the file to read; - is standard input")
    add_loading(score)
    _add_json(score)

    info = _command(
        commands.add_parser,
        "info",
        "What a checkpoint is: kind, parameters, state, configuration, origin, checksum.",
        "examples:\n  python -m bdh info user/repo@v1 --json\n  python -m bdh info --presets\n",
        run=_info,
    )
    _add_checkpoint(info)
    info.add_argument("--presets", action="store_true", help="list the presets that new models are made from")
    _add_json(info)

    conversion = _command(
        commands.add_parser,
        "convert",
        "Turn a foreign or older checkpoint into a folder of this project. Of .pt files, only tensors and plain\n"
        "values are read; code in them is never run.",
        "examples:\n"
        "  python -m bdh convert ckpt_best.pt my-model\n"
        "  python -m bdh convert bare_state_dict.pt my-model --n-layer 6\n",
        run=_convert,
    )
    conversion.add_argument("source", metavar="SRC", help="a .pt, .pth, .bin or .safetensors file, or a folder")
    conversion.add_argument("out", metavar="OUT", help="the folder to write")
    conversion.add_argument("--config", metavar="FILE", type=Path, help="a JSON file with the model's configuration")
    for name in ("n_layer", "n_head", "block_size", "max_seq_len"):
        flag = f"--{name.replace('_', '-')}"
        conversion.add_argument(flag, metavar="N", type=int, help=f"{name}, where neither file nor shapes tell it")
    _add_json(conversion)

    merging = _command(commands.add_parser, "merge", merge.DESCRIPTION, merge.EXAMPLES, run=_merge)
    merge.add_options(merging)

    hubs.add_push(_command(commands.add_parser, "push", hubs.PUSH, hubs.PUSH_EXAMPLES, run=_push))
    hubs.add_search(_command(commands.add_parser, "search", hubs.SEARCH, hubs.SEARCH_EXAMPLES, run=hubs.find))
    exporting = _command(
        commands.add_parser, "export", transformers_export.DESCRIPTION, transformers_export.EXAMPLES, run=_export
    )
    transformers_export.add_options(exporting)
    add_loading(exporting)
    _add_json(exporting)

    spaces = _command(commands.add_parser, "space", space.DESCRIPTION, space.EXAMPLES, run=_space)
    space.add_options(spaces)
    return parser


def _command(
    make: Callable[..., argparse.ArgumentParser],
    name: str,
    description: str,
    examples: str,
    run: Callable[[argparse.Namespace], int] | None = None,
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    extra = {"help": description.split(". ")[0].split(".\n")[0].removesuffix(".")} if run else {}
    parser = make(name, description=description, epilog=examples, formatter_class=raw, **extra)
    if run:
        parser.set_defaults(run=run)
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        default=DEFAULT_CHECKPOINT,
        help=f"see python -m bdh --help (default: {DEFAULT_CHECKPOINT})",
    )
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Options that say how a checkpoint is loaded, as `model_of` reads them."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="type of the weights (default: float32)")
    parser.add_argument("--login", action="store_true", help="read the Hub with this machine's login")
    parser.add_argument("--offline", action="store_true", help="take Hub checkpoints from the cache only")


def _add_sampling(parser: argparse.ArgumentParser, max_bytes: int) -> None:
    usual = Sampling()
    add = parser.add_argument
    add(
        "--max-bytes",
        metavar="N",
        type=_bytes_or_none,
        default=max_bytes,
        help=f"bytes to write at most, or none for no limit (default: {max_bytes})",
    )
    add(
        "--temperature",
        metavar="X",
        type=float,
        default=usual.temperature,
        help=f"0 always takes the likeliest byte, up to 10 (default: {usual.temperature})",
    )
    add("--top-k", metavar="N", type=int, default=usual.top_k, help="choose among the N likeliest bytes; 0 is all")
    add("--top-p", metavar="X", type=float, default=usual.top_p, help="… that together reach this probability")
    add("--min-p", metavar="X", type=float, default=usual.min_p, help="… at least this part as likely as the likeliest")
    add(
        "--repetition-penalty",
        metavar="X",
        type=float,
        default=usual.repetition_penalty,
        help="taken off a byte's logit for each time it was written of late, 0 to 10 (default: 0)",
    )
    add(
        "--repetition-decay",
        metavar="X",
        type=float,
        default=usual.repetition_decay,
        help=f"what is left of that memory a byte later, 0 to 1 (default: {usual.repetition_decay})",
    )
    add("--seed", metavar="N", type=int, help="the same seed writes the same bytes")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", metavar="FILE", type=Path, help="begin with the memory in FILE")
    parser.add_argument(
        "--save-memory",
        metavar="FILE",
        type=Path,
        nargs="?",
        const=Path(),
        help="save the memory at the end, on Ctrl-C too; without FILE to that of --memory",
    )


def _add_json(parser: argparse.ArgumentParser, text: str = "write one JSON object") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _bytes_or_none(text: str) -> int | None:
    if text != "none" and not re.fullmatch(r"\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is neither a whole number nor none")
    return None if text == "none" else int(text)


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(
        max_bytes=options.max_bytes,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        repetition_decay=options.repetition_decay,
        seed=options.seed,
    )


def _unescaped(text: str) -> bytes:
    r"""The bytes of a stop string in which \n, \t, \xHH and \\ may stand."""
    known = {b"n": b"\n", b"t": b"\t", b"\\": b"\\"}
    return re.sub(
        rb"\\(n|t|\\|x[0-9a-fA-F]{2})",
        lambda match: known.get(match[1]) or bytes.fromhex(match[1][1:].decode()),
        os.fsencode(text),
    )


# Commands


def _generate(options: argparse.Namespace) -> int:
    sampling = replace(
        _sampling(options),
        seed=secrets.randbits(63) if options.seed is None else options.seed,
        stop=tuple(_unescaped(stop) for stop in options.stop),
        valid_utf8=options.valid_utf8,
    )
    stream = _stream(options)
    prompt = sys.stdin.buffer.read() if options.prompt is None else os.fsencode(options.prompt)
    if not prompt and options.memory is None:
        prompt = b"\n"  # a model needs something to go on
    with _Interrupt() as interrupt, _saving(stream, options):
        for _ in stream.feeding(prompt):
            if interrupt.asked:
                break
        show = None if options.json else _show
        started = time.monotonic()
        answer = _write(stream, sampling, interrupt, show) if not interrupt.asked else _Answer("interrupted")
        elapsed_s = time.monotonic() - started
        if options.json:
            _print_json(
                text=answer.data.decode("utf-8", "replace"),
                base64=base64.b64encode(answer.data).decode(),
                bytes=len(answer.data),
                surprise_bits=answer.surprise_bits,
                ended_by=answer.ended_by,
                seed=sampling.seed,
                position_bytes=stream.position_bytes,
                elapsed_s=elapsed_s,
            )
        elif sys.stdout.isatty() or interrupt.asked:
            _show(b"\n")
    return _INTERRUPTED if interrupt.asked else 0


def _chat(options: argparse.Namespace) -> int:
    sampling = replace(_sampling(options), stop=(b"\n",), valid_utf8=True)
    stream = _stream(options)
    with _saving(stream, options):
        while True:
            try:
                line = _ask()
            except KeyboardInterrupt:
                _say("\n(Ctrl-D or /quit ends)")
                continue
            if line is None or line == "/quit":
                return 0
            try:
                if line.startswith("/"):
                    _command_in_chat(stream, line)
                elif line:
                    _answer(stream, line, sampling)
            except HatcheryError as error:
                _say(f"error: {error}")


def _ask() -> str | None:
    """A line from the person, or None at the end."""
    if sys.stdin.isatty():
        sys.stderr.write("User: ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(stream: Stream, line: str, sampling: Sampling) -> None:
    fresh_line = "" if stream.recent[-1:] in (b"", b"\n") else "\n"
    with _Interrupt() as interrupt:
        for _ in stream.feeding(os.fsencode(f"{fresh_line}User: {line}\nBot:")):
            if interrupt.asked:
                return
        _show(b"Bot:")
        _write(stream, sampling, interrupt, _show)
        _show(b"\n")


def _command_in_chat(stream: Stream, line: str) -> None:
    command, _, argument = line.partition(" ")
    if command == "/clear":
        stream.clear()
        _say("(cleared)")
    elif command == "/save" and argument:
        stream.save(argument.strip())
        _say(f"(saved {argument.strip()})")
    elif command == "/load" and argument:
        stream.load(argument.strip())
        _say(f"(loaded {argument.strip()}: {stream.position_bytes:,} bytes heard)")
    else:
        _say("commands: /clear, /save FILE, /load FILE, /quit")


def _score(options: argparse.Namespace) -> int:
    stream = _stream(options)
    meter = Meter("read")
    bits, done, started = 0.0, 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(_Interrupt())
        file = sys.stdin.buffer if options.file == "-" else stack.enter_context(open(options.file, "rb"))
        total = 0 if options.file == "-" else os.fstat(file.fileno()).st_size
        # Pieces as long as they take a moment, so that Ctrl-C is heard and progress seen.
        while not interrupt.asked and (piece := file.read(1024 if done == 0 else 4096)):
            bits += float(stream.score(piece).sum())
            done += len(piece)
            meter(done, total, f"{bits / done:.4f} bits/byte")
    meter.end()
    if not done:
        raise DataError(f"{options.file[:200]} is empty; there is nothing to score")
    elapsed_s = time.monotonic() - started
    if options.json:
        _print_json(
            bits_per_byte=bits / done,
            bits=bits,
            bytes=done,
            complete=not interrupt.asked,
            elapsed_s=elapsed_s,
            checkpoint=options.checkpoint,
            weights=stream.model.checksum(),
            file=options.file,
        )
    else:
        part = " (stopped before the end)" if interrupt.asked else ""
        print(f"{bits / done:.4f} bits per byte over {done:,} bytes{part}, {done / elapsed_s:,.0f} bytes/s")
    return _INTERRUPTED if interrupt.asked else 0


def _info(options: argparse.Namespace) -> int:
    if options.presets:
        presets = describe()
        if options.json:
            _print_json(presets=[preset._asdict() for preset in presets])
        else:
            print(f"{'preset':<20} {'parameters':>12}  state of a stream")
            for preset in presets:
                print(f"{preset.name:<20} {preset.parameters:>12,}  {preset.state_bytes:>13,} bytes")
        return 0
    model = model_of(options)
    origin = model.origin or checkpoint.Origin(options.checkpoint)
    facts = {
        "source": origin.source,
        "repo_id": origin.repo_id,
        "revision": origin.revision,
        "kind": model.config.kind,
        "parameters": model.parameter_count(),
        "state_bytes": model.state_bytes(),
        "weights": model.checksum(),
        "single_bytes_by": model.single_bytes(),
        "config": config_to_dict(model.config),
        "provenance": origin.provenance,
    }
    if options.json:
        _print_json(**facts)
    else:
        for name, value in facts.items():
            for inner, text in value.items() if isinstance(value, dict) else [("", value)]:
                if text is not None:
                    label = f"{name}.{inner}".rstrip(".")
                    print(f"{label:<36} {text:,}" if type(text) is int else f"{label:<36} {text}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    config = {}
    if options.config:
        config = checkpoint.parse_json(options.config.read_bytes(), str(options.config))
    for name in ("n_layer", "n_head", "block_size", "max_seq_len"):
        if getattr(options, name) is not None:
            config[name] = getattr(options, name)
    # To name a file here is to ask for it to be opened.
    out = convert(Path(options.source), Path(options.out), config=config or None, allow_pickle=True)
    model: Model[Any] = load(out, device="cpu")
    weights = model.checksum()
    if options.json:
        _print_json(out=str(out), kind=model.config.kind, parameters=model.parameter_count(), weights=weights)
    else:
        print(f"{out}: a {model.config.kind} model of {model.parameter_count():,} parameters, weights {weights[:12]}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    meter = Meter("downloaded", quiet=options.json)
    try:
        return merge.run(options, resolved, meter)
    finally:
        meter.end()


def _push(options: argparse.Namespace) -> int:
    meter = Meter("sent", quiet=options.json)
    try:
        return hubs.push(options, resolved, meter)
    finally:
        meter.end()


def _export(options: argparse.Namespace) -> int:
    return transformers_export.run(options, model_of(options))


def _space(options: argparse.Namespace) -> int:
    meter = Meter("downloaded", quiet=options.json)
    try:
        return space.run(options, resolved, SHIPPED, meter)
    finally:
        meter.end()


# What commands share


def model_of(options: argparse.Namespace) -> Model[Any]:
    """The checkpoint that the options name."""
    source = resolved(options.checkpoint)
    meter = Meter("downloaded", quiet=getattr(options, "quiet", False))
    try:
        return load(
            source,
            device=options.device,
            dtype=_DTYPES[options.dtype],
            token=True if options.login else None,
            offline=True if options.offline else None,
            progress=meter,
        )
    finally:
        meter.end()


def resolved(source: str) -> str:
    """The folder of a shipped checkpoint for its name; anything else as it is."""
    if os.path.lexists(source) or not re.fullmatch(r"[\w.-]+", source):
        return source
    if (SHIPPED / source).is_dir():
        return str(SHIPPED / source)
    shipped = ", ".join(sorted(folder.name for folder in SHIPPED.glob("*/"))) or "none"
    raise CheckpointError(
        f"{source[:100]!r} is no path here and no shipped checkpoint (there is: {shipped}); on the Hub it is user/repo"
    )


def _stream(options: argparse.Namespace) -> Stream:
    """A stream on the checkpoint, with the memory that was asked for."""
    if getattr(options, "save_memory", None) == Path() and options.memory is None:
        raise DataError("--save-memory without a file saves to that of --memory, which is not given; name a file")
    stream = Stream(model_of(options))
    if getattr(options, "memory", None) is not None:
        stream.load(options.memory)
    return stream


@contextlib.contextmanager
def _saving(stream: Stream, options: argparse.Namespace) -> Iterator[None]:
    """Save the memory at the end, if that was asked for, also when nobody reads the output any more."""
    try:
        yield
    finally:
        if options.save_memory is not None:
            stream.save(options.memory if options.save_memory == Path() else options.save_memory)


class _Interrupt:
    """Ctrl-C asks for a stop between two bytes, where the memory is whole; a second one does not wait."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupt:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class _Answer:
    """What was written."""

    ended_by: str
    """`stop`, `max_bytes` or `interrupted`."""
    data: bytes = b""
    surprise_bits: float = 0.0


def _write(stream: Stream, sampling: Sampling, interrupt: _Interrupt, show: Callable[[bytes], None] | None) -> _Answer:
    """Let the stream write until it ends or is interrupted; whole characters are shown as they come."""
    answer = _Answer("max_bytes")
    assembler, data = Utf8Assembler(), bytearray()
    for written in stream.generate(sampling):
        if written.is_stop:
            answer.ended_by = "stop"
            continue
        data.append(written.byte)
        answer.surprise_bits += written.surprise_bits
        for character in assembler.push(written.byte):
            if show is not None:
                show(character.raw)
        if interrupt.asked:
            answer.ended_by = "interrupted"
            break
    for character in assembler.flush():
        if show is not None:
            show(character.raw)
    answer.data = bytes(data)
    return answer


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json(**fields: object) -> None:
    print(json.dumps(fields, ensure_ascii=False))


class Meter:
    """A line on the terminal that says how far something is; silent where there is no terminal."""

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        self._verb = verb
        self._started = self._shown = time.monotonic()
        self._live = sys.stderr.isatty() and not quiet
        self._dirty = False

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show so many bytes done, of `total` if it is not 0."""
        now = time.monotonic()
        if not self._live or (now - self._shown < 0.2 and done != total):
            return
        self._shown, self._dirty = now, True
        rate = done / max(now - self._started, 1e-9)
        left = f", {(total - done) / max(rate, 1e-9):,.0f} s left" if total > done else ""
        of = f" of {total:,}" if total else ""
        sys.stderr.write(f"\r\033[K{self._verb} {done:,}{of} bytes, {rate:,.0f} bytes/s{left}  {note}")
        sys.stderr.flush()

    def end(self) -> None:
        """Wipe the line."""
        if self._dirty:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._dirty = False
