"""What clients in OpenAI's style send and get: every field checked before anything is done; a token is a byte."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bdh.sampling import MAX_STOP_BYTES

from ..writing import MAX_SEED

MAX_CHOICES = 16
"""Texts that one request may have written."""
MAX_MESSAGES = 1_000
MAX_PARTS = 64
"""Of one message."""
_MAX_PARTS_IN_ALL = 1_000
_MAX_FIELDS = 100
"""Of one object; each that is unknown would be an error of its own."""
_MAX_STOPS = 15
"""Of the 16 that sampling takes, one ends an answer in a chat."""

Whole = Annotated[int, Field(ge=1)]
Stop = Annotated[str, Field(max_length=MAX_STOP_BYTES)]
NotOffered = Annotated[None, Field(description="Not offered here.")]
Ignored = Annotated[Any, Field(description="Changes nothing.")]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > _MAX_FIELDS:
            words = "an object has {count} fields; at most {most} are read"
            raise PydanticCustomError("too_many_fields", words, {"count": len(given), "most": _MAX_FIELDS})
        return given


class StreamOptions(_Form):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class _Request(_Form):
    model: str | None = Field(None, max_length=300, description="Id of a model; the page's first if left out.")
    temperature: float | None = Field(None, ge=0, le=10, description="0 always takes the likeliest byte.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=256, description="Choose among so many likeliest bytes; 0 is all.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(
        None, ge=0, le=10, description="Taken off a byte's logit for each time it was written of late."
    )
    repetition_decay: float | None = Field(None, ge=0, le=1, description="What is left of that, a byte later.")
    frequency_penalty: float | None = Field(
        None, ge=0, le=10, description="As repetition_penalty with a repetition_decay of 1."
    )
    presence_penalty: float | None = Field(None, ge=0, le=0, description="Not offered here: 0 or nothing.")
    stop: Stop | Annotated[list[Stop], Field(max_length=_MAX_STOPS, fail_fast=True)] | None = Field(
        None, description="Writing ends before these."
    )
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="The same seed gives the same text; -1 draws one.")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Texts to write; each has the next seed.")
    valid_utf8: bool | None = Field(None, description="Let only valid UTF-8 be written; true if left out.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: NotOffered = None
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None


class CompletionRequest(_Request):
    """A text to go on from."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
        | Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1, fail_fast=True)]
    ) = Field(description="A text, several texts, or bytes as numbers.")
    max_tokens: int | None = Field(None, ge=0, description="Bytes to write at most; 200 if left out.")
    echo: bool | None = Field(None, description="Give the prompt back before the text.")
    logprobs: int | None = Field(None, ge=0, le=0, description="0 gives the probability of each byte of the text.")
    best_of: NotOffered = None
    suffix: NotOffered = None


class TextPart(_Form):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Form):
    """A turn of a dialogue; each is heard in one line."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: Ignored = None
    refusal: NotOffered = None
    tool_calls: NotOffered = None
    function_call: NotOffered = None
    audio: NotOffered = None
    annotations: Ignored = None

    @property
    def text(self) -> str:
        """What was said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(_Form):
    """The only form of an answer."""

    type: Literal["text"]


class ChatRequest(_Request):
    """A dialogue to go on with."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_tokens: Whole | None = Field(None, description="Bytes to write at most; 400 if left out.")
    max_completion_tokens: Whole | None = Field(None, description="As max_tokens.")
    logprobs: bool | None = Field(None, description="Give the probability of each byte of the answer.")
    top_logprobs: int | None = Field(None, ge=0, le=0, description="Not offered here: 0 or nothing.")
    response_format: TextFormat | None = None
    tools: NotOffered = None
    tool_choice: NotOffered = None
    functions: NotOffered = None
    function_call: NotOffered = None
    parallel_tool_calls: NotOffered = None
    modalities: NotOffered = None
    audio: NotOffered = None
    reasoning_effort: NotOffered = None

    @field_validator("messages", mode="before")
    @classmethod
    def _few_parts(cls, given: Any) -> Any:
        if isinstance(given, list):
            contents = (message.get("content") for message in given if isinstance(message, dict))
            count = sum(len(content) for content in contents if isinstance(content, list))
            if count > _MAX_PARTS_IN_ALL:
                words = "{count} parts are too many; at most {most} are read in all, and {each} of one message"
                known = {"count": count, "most": _MAX_PARTS_IN_ALL, "each": MAX_PARTS}
                raise PydanticCustomError("too_many_parts", words, known)
        return given


class Usage(BaseModel):
    """Bytes heard and written; those of a stop string are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(BaseModel):
    """What each byte's probability was, as the model gave it, before temperature and cuts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: None = None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One text."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """Texts that go on from prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class ByteLogprob(BaseModel):
    """A byte and its probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class ChatLogprobs(BaseModel):
    """Those of an answer, as the model gave them, before temperature and cuts."""

    content: list[ByteLogprob]
    refusal: None = None


class Answer(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletion(BaseModel):
    """Answers to a dialogue."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: str
    parameters: int
    state_bytes: int


class ModelList(BaseModel):
    """All that can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Problem(BaseModel):
    """What went wrong, in words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ProblemReport(BaseModel):
    """The body of every response that is no success."""

    error: Problem
