"""/v1: the models through an API in OpenAI's style, so that existing clients can talk to them; a token is a byte."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bdh.errors import HatcheryError

from ..limits import Limits
from ..registry import Entry, Registry
from . import forms
from .serving import Bodies, Gate, Given, Plain, Pulled, Refusal, refusal_of
from .writing import NOBODY, Order, Part, Told, chat_order, completion_order, probability, token, write

_OTHER_BYTES = "probabilities are given for the bytes that were written only: logprobs 0 (or true), top_logprobs 0"
_WORDS = {
    "prompt": f"must be a text, 1 to {forms.MAX_CHOICES} texts, or bytes as numbers from 0 to 255",
    "logprobs": _OTHER_BYTES,
    "top_logprobs": _OTHER_BYTES,
    "presence_penalty": "only 0 is possible here; frequency_penalty and repetition_penalty are known",
    "none_required": "is not offered here; leave it out",
    "extra_forbidden": "is not known here; leave it out",
    "missing": "is missing",
    "json_invalid": "the body is no JSON",
}
"""What is said of a field, or of a kind of error, in place of pydantic's words."""
_TRIED = ("str", "TextPart", "constrained-str")
"""Names of types in the place of what is wrong."""
_BODY_BYTES = 64_000
"""What a body may hold beside prompts, of which each byte may be escaped as six."""


def openai_api(registry: Registry, limits: Limits) -> FastAPI:
    """The app, to be mounted at /v1; the same models and limits as the page's."""
    gate, begun = Gate(limits), int(time.time())
    problems = {status: {"model": forms.ProblemReport} for status in (400, 404, 408, 413, 415, 429, 500, 503)}
    app = FastAPI(
        title="BDH Hatchery",
        summary="Byte-level models in OpenAI's style: a token is a byte.",
        version="1",
        docs_url=None,
        redoc_url=None,
        default_response_class=Plain,
    )
    app.add_middleware(Bodies, most_bytes=6 * limits.max_prompt_bytes + _BODY_BYTES)
    for kind in (RequestValidationError, HTTPException, HatcheryError, Refusal, Exception):
        app.add_exception_handler(kind, _refused)

    @app.get("/models", response_model=forms.ModelList, responses={500: problems[500]})
    async def models() -> Response:
        """All models that anybody may use."""
        entries = await run_in_threadpool(registry.entries, NOBODY)
        return Plain(forms.ModelList(data=[_card(entry, begun) for entry in entries]).model_dump())

    @app.get("/models/{id:path}", response_model=forms.ModelCard, responses={n: problems[n] for n in (404, 500)})
    async def one(id: str) -> Response:
        """What there is to know of a model."""
        entries = await run_in_threadpool(registry.entries, NOBODY)
        return Plain(_card(next((e for e in entries if e.id == id), None) or _unknown(id, entries), begun).model_dump())

    async def answer(request: Request, order: Order) -> Response:
        id = await run_in_threadpool(_known, registry, order.model)
        told = Told()
        made = (_Chat if order.chat else _Text)(order, told, id)
        parts = Pulled(write(registry, id, order, told), request, gate.threads)
        return Given(parts, gate, None if order.stream else made.whole, made)

    # No type: what reads descriptions takes it for the whole stream, or for each event.
    events = {"description": "Events whose data are chunks in JSON; the last is [DONE]."}
    streamed = {"text/event-stream": {"schema": events}}

    @app.post(
        "/completions",
        response_model=forms.Completion,
        responses={**problems, 200: {"content": streamed}},  # type: ignore[dict-item]
    )
    async def completions(asked: forms.CompletionRequest, request: Request) -> Response:
        """Go on from a prompt, byte by byte."""
        return await answer(request, completion_order(asked, limits))

    @app.post(
        "/chat/completions",
        response_model=forms.ChatCompletion,
        responses={**problems, 200: {"content": streamed}},  # type: ignore[dict-item]
    )
    async def chat_completions(asked: forms.ChatRequest, request: Request) -> Response:
        """Answer in a dialogue, which is heard anew with each request."""
        return await answer(request, chat_order(asked, limits))

    app.state.gate = gate  # who measures how busy it is finds it here
    return app


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        return _of_validation(error).response()
    if isinstance(error, HTTPException):
        words = {404: f"there is nothing at {request.url.path[:100]}", 405: f"{request.method} is not possible here"}
        response = Refusal(error.status_code, words.get(error.status_code, str(error.detail)[:200])).response()
        response.headers.update(error.headers or {})
        return response
    return refusal_of(error).response()


def _of_validation(error: RequestValidationError) -> Refusal:
    """The first thing that is wrong, in words, and how many more there are."""
    found = error.errors()
    # Where a text or a list may stand and a list was given, what is said of it as a text is beside the point.
    first = next((e for e in found if e["type"] != "string_type" or not isinstance(e.get("input"), list)), found[0])
    # Of a field that may be one thing or another, what each was tried as stands between its name and the place.
    place = [str(step)[:60] for step in first["loc"][1:] if step not in _TRIED and "[" not in str(step)]
    name = place[0] if place else None
    if name in _WORDS and first["type"] not in _WORDS:
        place = place[:1]  # what is said is of the whole field
    words = _WORDS.get(first["type"]) or _WORDS.get(name or "") or str(first["msg"])[:200]
    text = f"{'.'.join(place)}: {words}" if place and first["type"] != "json_invalid" else words
    if len(found) > 1 and len({entry["loc"][1] for entry in found if len(entry["loc"]) > 1}) > 1:
        text += f" (and {len(found) - 1} more)"
    return Refusal(400, text, param=None if first["type"] == "json_invalid" else name)


def _known(registry: Registry, id: str | None) -> str:
    chosen = registry.default() if id is None else id
    if not chosen and id is None:
        raise Refusal(503, "there is no model here yet; load one in the page's Models tab first", code="no_model")
    try:
        registry.config(chosen, NOBODY)
    except HatcheryError:
        _unknown(chosen, registry.entries(NOBODY))
    return chosen


def _unknown(id: str, entries: Sequence[Entry]) -> Entry:
    names = ", ".join(entry.id for entry in entries[:20])
    raise Refusal(
        404, f"there is no model {id[:80]!r} here; there are: {names or 'none'}", code="model_not_found", param="model"
    )


def _card(entry: Entry, created: int) -> forms.ModelCard:
    return forms.ModelCard(
        id=entry.id,
        created=created,
        owned_by=entry.source,
        kind=entry.kind,
        parameters=entry.parameters,
        state_bytes=entry.state_bytes,
    )


class _Shape:
    """What parts are made into: one body, or the chunks of a stream."""

    prefix, kind = "", ""

    def __init__(self, order: Order, told: Told, model: str) -> None:
        self.order, self.told, self.model = order, told, model
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self._offsets = [_Offsets() for _ in range(len(order.prompts) * order.each)]

    def usage(self) -> forms.Usage:
        """Bytes so far."""
        heard, written = self.told.heard, self.told.written
        return forms.Usage(prompt_tokens=heard, completion_tokens=written, total_tokens=heard + written)

    def head(self) -> dict[str, Any]:
        """What stands in every object."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"bdh-{self.told.weights[:16]}",
        }

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A piece of a stream."""
        usage = {"usage": None} if self.order.usage else {}
        return {**self.head(), "object": self.kind, "choices": choices, **usage}

    def opening(self) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""
        return iter(())

    def closing(self) -> Iterator[dict[str, Any]]:
        """What a stream ends with."""
        if self.order.usage:
            yield {**self.chunk([]), "usage": self.usage().model_dump()}

    def joined(self, parts: list[Part]) -> list[Part]:
        """The parts of each text in one."""
        texts = []
        for index in range(len(self._offsets)):
            own = [part for part in parts if part.index == index]
            data = tuple(pair for part in own for pair in part.bytes)
            texts.append(Part(index, "".join(part.text for part in own), data, own[-1].finish))
        return texts


class _Text(_Shape):
    prefix, kind = "cmpl", "text_completion"

    def choice(self, part: Part) -> forms.TextChoice:
        """A text, or what is new of one."""
        costs = self._costs(part) if self.order.costs else None
        return forms.TextChoice(text=part.text, index=part.index, logprobs=costs, finish_reason=part.finish)  # type: ignore[arg-type]

    def whole(self, parts: list[Part]) -> dict[str, Any]:
        """All texts in one body."""
        choices = [self.choice(part) for part in self.joined(parts)]
        return forms.Completion(**self.head(), choices=choices, usage=self.usage()).model_dump()

    def chunks(self, part: Part) -> Iterator[dict[str, Any]]:
        """A piece of a text."""
        yield self.chunk([self.choice(part).model_dump()])

    def _costs(self, part: Part) -> forms.TextLogprobs:
        offsets = self._offsets[part.index]
        return forms.TextLogprobs(
            tokens=[token(byte) for byte, _ in part.bytes],
            token_logprobs=[probability(bits) for _, bits in part.bytes],
            text_offset=[offsets.push(byte) for byte, _ in part.bytes],
        )


class _Chat(_Shape):
    prefix, kind = "chatcmpl", "chat.completion.chunk"

    def whole(self, parts: list[Part]) -> dict[str, Any]:
        """All answers in one body."""
        choices = [
            forms.ChatChoice(
                index=part.index,
                message=forms.Answer(content=part.text),
                logprobs=self._costs(part),
                finish_reason=part.finish,  # type: ignore[arg-type]
            )
            for part in self.joined(parts)
        ]
        return forms.ChatCompletion(**self.head(), choices=choices, usage=self.usage()).model_dump()

    def opening(self) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        for index in range(len(self._offsets)):
            yield self.chunk([self._delta(index, {"role": "assistant", "content": ""})])

    def chunks(self, part: Part) -> Iterator[dict[str, Any]]:
        """A piece of an answer, and its end."""
        if part.text or part.bytes:
            costs = self._costs(part)
            delta = self._delta(part.index, {"content": part.text})
            yield self.chunk([{**delta, "logprobs": costs.model_dump() if costs else None}])
        if part.finish:
            yield self.chunk([{**self._delta(part.index, {}), "finish_reason": part.finish}])

    def _delta(self, index: int, new: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": new, "logprobs": None, "finish_reason": None}

    def _costs(self, part: Part) -> forms.ChatLogprobs | None:
        if not self.order.costs:
            return None
        return forms.ChatLogprobs(
            content=[
                forms.ByteLogprob(token=token(byte), logprob=probability(bits) or 0.0, bytes=[byte])
                for byte, bits in part.bytes
            ]
        )


class _Offsets:
    """At which character of a text a byte stands."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def push(self, byte: int) -> int:
        """Where this byte is, and on to the next."""
        at = self._characters
        self._characters += len(self._decoder.decode(bytes([byte])))
        return at
