"""What a request in OpenAI's style has written: checked, heard and written as the page does it."""

from __future__ import annotations

import codecs
import dataclasses
import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from bdh.errors import DataError
from bdh.models import Model
from bdh.sampling import Sampling
from bdh.stream import Stream, Written

from ..dialogue import END, transcript
from ..limits import Limits
from ..registry import Registry
from ..write import prompt_bytes, sampling, scored
from ..writing import batched, hear_and_write
from .forms import MAX_CHOICES, ChatRequest, CompletionRequest

NOBODY = ""
"""The owner of requests that come with no session: they may use what everybody may."""


@dataclass(frozen=True)
class Order:
    """What is to be written."""

    chat: bool
    model: str | None
    prompts: tuple[bytes, ...]
    options: Sampling
    """With a seed, drawn if none was given."""
    each: int = 1
    """Texts for each prompt."""
    echo: bool = False
    costs: bool = False
    """What each byte cost is asked for."""
    stream: bool = False
    usage: bool = False
    """It is asked for at the end of a stream."""


@dataclass(frozen=True)
class Part:
    """What is new of one text."""

    index: int
    text: str = ""
    bytes: tuple[tuple[int, float | None], ...] = ()
    """Bytes and their surprise in bits; None for one that nothing predicts. Those of a stop string are left out."""
    finish: str | None = None


@dataclass
class Told:
    """What is known of an order once its model is there; counts grow."""

    model: str = ""
    weights: str = ""
    heard: int = 0
    written: int = 0


def completion_order(asked: CompletionRequest, limits: Limits) -> Order:
    """The order of a text to go on from.

    Raises:
        DataError: what is asked for is not allowed.
    """
    prompt = asked.prompt
    if isinstance(prompt, str):
        prompts: list[str | bytes] = [prompt]
    elif isinstance(prompt[0], int):
        prompts = [bytes(prompt)]
    else:
        prompts = list(prompt)
    data = [_prompt(one, limits) for one in prompts]
    echo, count = bool(asked.echo), asked.max_tokens
    if count is None:
        count = _usual(200, asked, len(data), limits)
    if count == 0 and not echo:
        raise DataError("max_tokens is 0; it must be at least 1, or echo be true")
    return _order(asked, limits, data, count, echo=echo, costs=asked.logprobs is not None)


def chat_order(asked: ChatRequest, limits: Limits) -> Order:
    """The order of an answer in a dialogue.

    Raises:
        DataError: what is asked for is not allowed.
    """
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise DataError("give max_tokens or max_completion_tokens, not both")
    count = asked.max_tokens or asked.max_completion_tokens or _usual(400, asked, 1, limits)
    roles = {"developer": "system"}
    heard = transcript((roles.get(one.role, one.role), one.text) for one in asked.messages)
    data = [_prompt(heard, limits)]
    order = _order(asked, limits, data, count, costs=bool(asked.logprobs), chat=True, temperature=0.3, top_p=0.95)
    stop = (*order.options.stop, *(() if END in order.options.stop else (END,)))
    return dataclasses.replace(order, options=dataclasses.replace(order.options, stop=stop))


def _usual(count: int, asked: CompletionRequest | ChatRequest, prompts: int, limits: Limits) -> int:
    """Bytes of each text where none are asked for: no more than may be written in all."""
    return max(1, min(count, limits.max_write_bytes // (prompts * (asked.n or 1))))


def _prompt(prompt: str | bytes, limits: Limits) -> bytes:
    if isinstance(prompt, str):
        return prompt_bytes(prompt, limits)
    if len(prompt) > limits.max_prompt_bytes:
        raise DataError(f"the prompt has {len(prompt):,} bytes; at most {limits.max_prompt_bytes:,} are allowed")
    return prompt


def _order(
    asked: CompletionRequest | ChatRequest,
    limits: Limits,
    prompts: list[bytes],
    count: int,
    *,
    chat: bool = False,
    echo: bool = False,
    costs: bool = False,
    temperature: float = 0.8,
    top_p: float = 1.0,
) -> Order:
    each = asked.n or 1
    if len(prompts) * each > MAX_CHOICES:
        raise DataError(f"{len(prompts)} prompts with n={each} are too many texts; at most {MAX_CHOICES} are allowed")
    if (size := sum(map(len, prompts))) > limits.max_prompt_bytes:
        raise DataError(f"the prompts have {size:,} bytes; at most {limits.max_prompt_bytes:,} are allowed")
    if (size := len(prompts) * each * count) > limits.max_write_bytes:
        raise DataError(
            f"max_tokens asks for {size:,} bytes in {len(prompts) * each} texts; at most "
            f"{limits.max_write_bytes:,} are allowed together"
        )
    if asked.frequency_penalty and (asked.repetition_penalty or asked.repetition_decay is not None):
        raise DataError("give frequency_penalty, or repetition_penalty with repetition_decay, not both")
    if asked.stream_options is not None and not asked.stream:
        raise DataError("stream_options is for streams; set stream to true, or leave it out")
    options = sampling(
        limits,
        max_bytes=max(count, 1),
        temperature=temperature if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or 0,
        top_p=top_p if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=asked.frequency_penalty or asked.repetition_penalty or 0.0,
        repetition_decay=1.0 if asked.frequency_penalty else _or(asked.repetition_decay, 0.98),
        seed=asked.seed,
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        valid_utf8=_or(asked.valid_utf8, True),
    )
    return Order(
        chat,
        asked.model,
        tuple(prompts),
        dataclasses.replace(options, max_bytes=count),
        each,
        echo,
        costs,
        bool(asked.stream),
        bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _or(value: Any, usual: Any) -> Any:
    return usual if value is None else value


def write(registry: Registry, id: str, order: Order, told: Told) -> Generator[list[Part], None, None]:
    """What is new of the texts, one text after another; empty lists while a prompt is heard.

    The model is kept in memory and room for its memory reserved until this ends or is closed.

    Raises:
        HatcheryError: the model cannot be had, or there is no room for its memory.
    """
    memories = 2 if order.each > 1 else 1  # what a prompt left behind is kept for the texts that follow
    with registry.lease(id, NOBODY) as model, registry.reserve(memories * model.state_bytes()):
        told.model, told.weights = id, model.checksum()
        for place, prompt in enumerate(order.prompts):
            yield from _write_all(model, prompt, place * order.each, order, told)


def _write_all(
    model: Model[Any], prompt: bytes, first: int, order: Order, told: Told
) -> Generator[list[Part], None, None]:
    """The texts of one prompt, which is heard once."""
    stream, costs = Stream(model), list[float]()
    told.heard += len(prompt)
    to_hear = prompt
    if order.echo and order.costs:
        with closing(batched(scored(stream, prompt))) as batches:
            for batch in batches:
                costs += [bits for part in batch for bits in part]
                yield []
        to_hear = b""
    elif order.each > 1:
        for _ in hear_and_write(stream, prompt, None):
            yield []
        to_hear = b""
    before = stream.snapshot() if order.each > 1 else None
    for number in range(order.each):
        if before is not None and number:
            stream.restore(before)
        text = _Text(first + number, order)
        if order.echo:
            yield [text.echo(prompt, costs)]
        if order.options.max_bytes:
            options = dataclasses.replace(order.options, seed=(order.options.seed or 0) + number)
            with closing(hear_and_write(stream, to_hear, options)) as heard:  # type: ignore[type-var]
                for some in heard:
                    new = text.take([part for part in some if isinstance(part, Written)])
                    told.written += len(new.bytes)
                    yield [new] if new.bytes else []
        yield [text.end()]


@dataclass
class _Text:
    """One text as it comes out of its bytes."""

    index: int
    order: Order
    stopped: bool = False
    _blank: str = ""
    """In a chat: white space that is given out only if something follows it."""
    _begun: bool = False
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def echo(self, prompt: bytes, costs: list[float]) -> Part:
        """The prompt; nothing predicts its first byte."""
        bits = [None, *costs[1:]] if costs else []
        return Part(self.index, prompt.decode("utf-8", "replace"), tuple(zip(prompt, bits, strict=False)))

    def take(self, batch: list[Written]) -> Part:
        """What bytes add to the text."""
        self.stopped = self.stopped or any(part.is_stop for part in batch)
        shown = [part for part in batch if not part.is_stop]
        text = self._decoder.decode(bytes(part.byte for part in shown))
        return Part(self.index, self._trimmed(text), tuple((part.byte, part.surprise_bits) for part in shown))

    def end(self) -> Part:
        """The last of it."""
        return Part(
            self.index,
            self._trimmed(self._decoder.decode(b"", final=True)),
            finish="stop" if self.stopped else "length",
        )

    def _trimmed(self, text: str) -> str:
        if not self.order.chat:
            return text
        text = self._blank + text
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown


def probability(bits: float | None) -> float | None:
    """The natural logarithm of the probability of a byte that cost so many bits."""
    return None if bits is None else -bits * math.log(2)


def token(byte: int) -> str:
    """A byte as a token: the character that it is, or how OpenAI writes a part of one."""
    return chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"
