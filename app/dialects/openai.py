"""The OpenAI dialect: chat completions, completions, embeddings, models and errors, to and from MindFu's own messages.

Pure functions over parsed JSON. Field by field after https://platform.openai.com/docs/api-reference; beyond it we take
`top_k`, `min_p`, `repeat_penalty` and `rag`. A field is handled, or accepted and recorded because it cannot change the
answer (RECORDED), or refused by its name: never accepted and ignored.
"""

import base64
import re
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from app.answer import Choice
from app.dialects.events import Event, Json
from app.errors import InvalidRequest, MindFuError, UnsupportedOption
from app.messages import Delta, Done, Generate, Message, Passage, RagOptions, Sampling, Strict, ToolCall, Usage

RECORDED = frozenset({
    "client_metadata", "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
})  # fmt: skip
"""Accepted and kept with the turn: none of these changes what a model of ours answers."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
"""Options that are not supported, with the values that ask for nothing, which are accepted. null always is."""

CITATION = re.compile(r"\[(\d{1,3})\]")


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    name: str
    arguments: str


class RequestToolCall(BaseModel):
    """A call that the assistant made earlier. Some clients add an `index`: ignored, the order says it."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """A message as clients send it. Absent and null content are the same. What an answer of ours held is ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[RequestToolCall] | None = None
    tool_call_id: str | None = None
    function_call: None = None  # OpenAI's older tool call; it and audio are refused, as the model would not see them
    audio: None = None

    def internal(self) -> Message:
        """The same in MindFu's own type; `developer` is OpenAI's newer word for `system`."""
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=_text(self.content),
            name=self.name,
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
        )


class StreamOptions(BaseModel):
    include_usage: bool = False


Number = Annotated[float, Field(allow_inf_nan=False)]
Stop = str | Annotated[list[str], Field(max_length=4)] | None


class GenerationRequest(BaseModel):
    """What chat completions and completions have in common."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: Annotated[Number, Field(ge=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0.0, le=10.0)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = None
    max_tokens: int | None = Field(None, ge=1)

    @field_validator("stream_options")
    @classmethod
    def stream_options_need_stream(cls, given: StreamOptions | None, fields: ValidationInfo) -> StreamOptions | None:
        if given is not None and not fields.data.get("stream"):
            message = "only allowed when 'stream' is true"
            raise ValueError(message)
        return given

    def recorded(self) -> Json:
        """The fields that we accept without acting on them. Raises UnsupportedOption for one that we must refuse."""
        extra = self.model_extra or {}
        for name, value in extra.items():
            if name not in RECORDED and value is not None and not _asks_for_nothing(name, value):
                raise UnsupportedOption(_refusal(name, value), name)
        return {name: value for name, value in extra.items() if name in RECORDED and value is not None}

    def sampling(self) -> Sampling:
        """The given values over our neutral defaults. Seeds of any sign fold into what llama.cpp takes."""
        given = self.model_dump(include=set(Sampling.model_fields), exclude_none=True)
        if "seed" in given:
            given["seed"] %= 2**32 - 1
        return Sampling(**given)

    def stops(self) -> tuple[str, ...]:
        """Empty strings stop nothing, and are refused."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(stops):
            raise InvalidRequest("'stop' holds an empty string, which would end every answer at once.", "stop")
        return stops


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    rag: bool | RagOptions | None = None

    def generate(self, request_id: str, tenant: str, model: str) -> Generate:
        """For the engine. `max_completion_tokens` is the newer name and wins."""
        return Generate(
            request_id=request_id,
            tenant=tenant,
            model=model,
            messages=tuple(message.internal() for message in self.messages),
            sampling=self.sampling(),
            stop=self.stops(),
            max_tokens=self.max_completion_tokens or self.max_tokens,
        )


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: one text to continue."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    def generate(self, request_id: str, tenant: str, model: str) -> Generate:
        """For the engine. OpenAI's default of 16 tokens is kept."""
        return Generate(
            request_id=request_id,
            tenant=tenant,
            model=model,
            prompt=self.prompt if isinstance(self.prompt, str) else self.prompt[0],
            sampling=self.sampling(),
            stop=self.stops(),
            max_tokens=self.max_tokens or 16,
        )


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=256)
    input: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    def texts(self, model: str, dimension: int) -> list[str]:
        """The texts to embed. Token ids of a foreign tokenizer, and other dimensions than the model's, are refused."""
        if self.dimensions not in (None, dimension):
            message = f"'{model}' makes {dimension} dimensions and cannot make {self.dimensions}."
            raise UnsupportedOption(message, "dimensions")
        texts = [self.input] if isinstance(self.input, str) else self.input
        if any(not isinstance(text, str) for text in texts):
            raise UnsupportedOption(
                f"Token ids belong to another model's tokenizer; '{model}' needs text "
                "(in LangChain: check_embedding_ctx_length=False).",
                "input",
            )
        if not all(texts):
            raise InvalidRequest("'input' holds an empty string: there is nothing to embed.", "input")
        return [str(text) for text in texts]


class ChatRenderer:
    """One answer as a chat completion, whole or as chunks. One id and one `created` for all chunks."""

    object_whole, object_chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(
        self, request: GenerationRequest, generate: Generate, sources: Sequence[Passage] = (), base_url: str = ""
    ) -> None:
        self.head = {"id": f"{self.prefix}-{generate.request_id}", "created": int(time.time()), "model": generate.model}
        self.sources, self.base_url = tuple(sources), base_url
        self.include_usage = request.stream_options is not None and request.stream_options.include_usage

    def opening(self) -> Iterable[Event]:
        """The role."""
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, delta: Delta) -> Iterable[Event]:
        """Its text."""
        yield self._chunk({"content": delta.text})

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:
        """The finish reason with citations and sources, then the usage if asked for."""
        last = {"annotations": annotations(choices[0].text, self.sources, self.base_url)} if self.sources else {}
        yield self._chunk(last, done.finish_reason, sources=sources(self.sources))
        yield from self._end(done)

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The answer of a request that did not stream."""
        message = {
            "role": "assistant",
            "content": choices[0].text,
            "refusal": None,
            "annotations": annotations(choices[0].text, self.sources, self.base_url),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.finish_reason}
        return self.head | {
            "object": self.object_whole,
            "choices": [choice],
            "usage": usage(done.usage),
            "sources": sources(self.sources),
        }

    def error(self, exc: MindFuError) -> Iterable[Event]:
        """The error object, and no [DONE]."""
        yield Event(error(exc))

    def _chunk(self, delta: Json, finish_reason: str | None = None, **more: Any) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return Event(self.head | {"object": self.object_chunk, "choices": [choice]} | more)

    def _end(self, done: Done) -> Iterable[Event]:
        if self.include_usage:
            yield Event(self.head | {"object": self.object_chunk, "choices": [], "usage": usage(done.usage)})
        yield Event("[DONE]")


class CompletionRenderer(ChatRenderer):
    """The same for the older completions, whose chunks look like the whole."""

    object_whole = object_chunk = "text_completion"
    prefix = "cmpl"

    def opening(self) -> Iterable[Event]:
        """Nothing: there is no role to tell."""
        return ()

    def piece(self, delta: Delta) -> Iterable[Event]:
        """Its text."""
        yield Event(self._completion(delta.text, None))

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:  # noqa: ARG002 - one signature
        """The finish reason, then the usage if asked for."""
        yield Event(self._completion("", done.finish_reason))
        yield from self._end(done)

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The answer of a request that did not stream."""
        return self._completion(choices[0].text, done.finish_reason) | {"usage": usage(done.usage)}

    def _completion(self, text: str, finish_reason: str | None) -> Json:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return self.head | {"object": self.object_chunk, "choices": [choice]}


def usage(counted: Usage) -> Json:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
    }


def sources(passages: Sequence[Passage]) -> list[Json]:
    """What the model was given, in the order of the citation marks: the first is [1]."""
    return [passage.model_dump(mode="json") for passage in passages]


def annotations(text: str, passages: Sequence[Passage], base_url: str) -> list[Json]:
    """The citation marks in an answer, as url_citation, the one kind that chat completions have (file_citation belongs
    to the Responses API). Indices: characters of the answer. Marks of no source are dropped.
    """
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": mark.start(),
                "end_index": mark.end(),
                "title": passages[int(mark[1]) - 1].title,
                "url": f"{base_url}v1/documents/{passages[int(mark[1]) - 1].document_id}",
            },
        }
        for mark in CITATION.finditer(text)
        if 1 <= int(mark[1]) <= len(passages)
    ]


def embeddings(vectors: np.ndarray, model: str, tokens: int, encoding: Literal["float", "base64"]) -> Json:
    """The embeddings answer. vectors: float32 (texts, dimension); base64 holds them little-endian."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist(),
        }
        for index, row in enumerate(rows)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def error(exc: MindFuError) -> Json:
    """OpenAI's error object, all four keys."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        exc.status, "invalid_request_error" if exc.status < 500 else "server_error"
    )
    return {"error": {"message": str(exc), "type": kind, "param": exc.param, "code": exc.code}}


def _text(content: str | list[TextPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def _asks_for_nothing(name: str, value: object) -> bool:
    return any(value == neutral and type(value) is type(neutral) for neutral in NEUTRAL.get(name, ()))  # 0 is not False


def _refusal(name: str, value: object) -> str:
    if name in NEUTRAL:
        allowed = " or ".join(repr(neutral) for neutral in NEUTRAL[name])
        return f"'{name}' is not supported by this version; leave it out, or send {allowed}."
    shown = repr(value)
    return f"Unknown parameter '{name}' (value {shown[:60]}). It might change the answer, so it is not ignored."
