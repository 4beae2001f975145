"""The Responses dialect of OpenAI: what a request asks for, and what of it is told again with the answer.

Field by field after https://platform.openai.com/docs/api-reference/responses; beyond it we take the sampling fields of
our chat completions, `rag` and `server_tools`. A field is handled, or kept with the turn because it cannot change the
answer, or refused by its name. Tools that OpenAI runs itself are the exception: clients offer them always, so they are
left out, and kept. Pure functions over parsed JSON.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from app.dialects.events import Json
from app.dialects.openai_requests import MOST_TOKENS, at_most
from app.dialects.response_input import dereferenced, messages_of, references, require_answered_calls
from app.dialects.response_tools import FileSearch, chosen, is_left_out, offered, searched
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Generate, JsonFormat, JsonSchema, Message, RagOptions, Sampling, Strict, Tool
from app.tools.offer import ServerTools, beside

RECORDED = frozenset({
    "client_metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
    "service_tier", "user",
})  # fmt: skip
KEPT = RECORDED | {"max_tool_calls", "metadata", "reasoning", "text", "truncation"}
"""Accepted and kept with the turn. What RECORDED names changes nothing that a model of ours answers."""

REFUSED = {
    "background": "Answers are made while the client waits; leave it out, or send false.",
    "context_management": "Conversations are not compacted here; leave it out.",
    "moderation": "There is no moderation model here; leave it out.",
    "prompt": "Prompt templates are not kept here; send their text as 'instructions' or 'input'.",
}
"""Options that are not supported, and what to do instead. null, false and empty ask for nothing, and are accepted."""

NOTHING: Mapping[str, Json] = MappingProxyType({})
Number = Annotated[float, Field(allow_inf_nan=False)]
Include = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class Format(Strict):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, min_length=1, max_length=64)
    description: str | None = None
    json_schema: JsonSchema | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def whole(self) -> Self:
        complete = self.name is not None and self.json_schema is not None
        if complete != (self.type == "json_schema"):
            message = "'name' and 'schema' belong to the type json_schema, and it needs both"
            raise ValueError(message)
        return self


class Text(Strict):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None  # kept only: our models have no such control


class Reasoning(BaseModel):
    """effort: `none` switches reasoning off, all else on. The others are kept only: see docs/api.md."""

    model_config = ConfigDict(extra="allow", strict=True)

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None

    @property
    def thinking(self) -> bool | None:
        """As the engine takes it."""
        return None if self.effort is None else self.effort != "none"


class StreamOptions(Strict):
    include_obfuscation: bool | None = None  # padding against eavesdroppers: none is ever added


class Named(BaseModel):
    id: str


class InputRequest(BaseModel):
    """What makes a prompt: the body of POST /v1/responses/input_tokens, and a part of that of POST /v1/responses."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = Field(None, min_length=1, max_length=256)
    input: str | list[Any] | None = None  # of items: see `items`
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | Named | None = None
    tools: list[Json] | None = Field(None, fail_fast=True)
    tool_choice: Literal["none", "auto", "required"] | Json | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    server_tools: ServerTools | None = None

    @property
    def conversation_id(self) -> str | None:
        """The conversation that is continued at its latest turn."""
        return self.conversation.id if isinstance(self.conversation, Named) else self.conversation

    def require_known(self) -> None:
        """Raises UnsupportedOption for a field that we must refuse."""
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value not in (None, False, [], {}):
                raise UnsupportedOption(f"'{name}' is not supported. {REFUSED[name]}", name)
            if name not in RECORDED and name not in REFUSED and value is not None:
                shown = repr(value)[:60]
                message = f"Unknown parameter: '{name}' ({shown}). It might change the answer, so it is not ignored."
                raise UnsupportedOption(message, name)

    def items(self) -> list[Json]:
        """The input as items. Raises InvalidRequest for one that is no object."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        for index, item in enumerate(self.input or ()):
            if not isinstance(item, dict):
                where = f"input[{index}]"
                raise InvalidRequest(f"Invalid '{where}': an item is an object (got {repr(item)[:80]}).", where)
        return self.input or []

    @property
    def file_search(self) -> FileSearch | None:
        """The file search that is asked for. Raises InvalidRequest for one that cannot be read."""
        return searched(self.tools or (), self.tool_choice)

    def references(self) -> frozenset[str]:
        """The ids of the items that the input names."""
        return references(self.items())

    def messages(self, history: Sequence[Message], found: Mapping[str, Json]) -> tuple[Message, ...]:
        """The prompt's messages. history: what is continued; found: the items that the input names.

        Raises InvalidRequest where there is nothing to answer, or where calls and their outputs do not fit.
        """
        said = (*history, *messages_of(dereferenced(self.items(), found)))
        if not said:
            raise InvalidRequest("Missing required parameter: 'input'.", "input")
        require_answered_calls(said)
        instructions = (Message(role="system", content=self.instructions),) if self.instructions else ()
        return (*instructions, *said)

    def generate(
        self,
        request_id: str,
        tenant: str,
        model: str,
        history: Sequence[Message] = (),
        found: Mapping[str, Json] = NOTHING,
        served: Sequence[Tool] = (),
    ) -> Generate:
        """For the engine; see `messages`. served: the server's tools that it may call."""
        functions = beside([tool.internal() for tool in offered(self.tools or ())], served)
        tools, choice = chosen(self.tool_choice, functions, searches=self.file_search is not None)
        return Generate(
            request_id=request_id,
            tenant=tenant,
            model=model,
            messages=self.messages(history, found),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=_response_format(self.text.format if self.text else None),
            thinking=self.reasoning.thinking if self.reasoning else None,
        )


class ResponsesRequest(InputRequest):
    """POST /v1/responses."""

    model: str = Field(min_length=1, max_length=256)
    store: bool | None = None
    include: list[Include] | None = Field(None, fail_fast=True)
    max_output_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_tool_calls: int | None = Field(None, ge=1)  # of the server's tools
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], at_most(16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    user: str | None = None
    safety_identifier: str | None = Field(None, max_length=64)
    prompt_cache_key: str | None = None
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: Annotated[Number, Field(ge=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0.0, le=10.0)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    rag: bool | RagOptions | None = None

    @field_validator("stream_options")
    @classmethod
    def stream_options_need_stream(cls, given: StreamOptions | None, fields: ValidationInfo) -> StreamOptions | None:
        if given is not None and not fields.data.get("stream"):
            message = "only allowed when 'stream' is true"
            raise ValueError(message)
        return given

    @property
    def stored(self) -> bool:
        """Whether the response can be asked for by its id."""
        return self.store is not False

    def tells_results(self) -> bool:
        """Whether what a file search found is to come with its item."""
        return "file_search_call.results" in (self.include or ())

    def carries_reasoning(self) -> bool:
        """Whether reasoning is to come as `encrypted_content` too."""
        return "reasoning.encrypted_content" in (self.include or ())

    def kept(self, echo: Json) -> Json:
        """What is only kept with the turn. For `response` and `instructed` see `app.responses`."""
        given = self.model_dump(mode="json", by_alias=True, include=set(KEPT), exclude_none=True)
        left_out = [tool for tool in self.tools or () if is_left_out(tool)]
        kept = {"tools_left_out": left_out, "instructed": bool(self.instructions)}
        told = {"response": echo} if self.stored else {"store": False}
        return given | {name: value for name, value in kept.items() if value} | told

    def sampling(self) -> Sampling:
        """The given values over our neutral defaults. Seeds of any sign fold into what llama.cpp takes."""
        given = self.model_dump(include=set(Sampling.model_fields), exclude_none=True)
        if "seed" in given:
            given["seed"] %= 2**32 - 1
        return Sampling(**given)

    def generate(
        self,
        request_id: str,
        tenant: str,
        model: str,
        history: Sequence[Message] = (),
        found: Mapping[str, Json] = NOTHING,
        served: Sequence[Tool] = (),
    ) -> Generate:
        """For the engine; see `InputRequest.generate`."""
        prompt = super().generate(request_id, tenant, model, history, found, served)
        told = self.top_logprobs or "message.output_text.logprobs" in (self.include or ())
        return prompt.model_copy(
            update={
                "sampling": self.sampling(),
                "max_tokens": self.max_output_tokens,
                "logprobs": (self.top_logprobs or 0) if told else None,
            }
        )

    def echo(self, created_at: int, dropped: int = 0) -> Json:
        """What the response object says from the beginning: when, and the request with defaults filled in.

        created_at: Unix seconds; dropped: messages that `truncation` took out of the prompt.
        """
        sampling, search = self.sampling(), self.file_search
        form = self.text.format if self.text and self.text.format else Format(type="text")
        text: Json = {"format": form.model_dump(by_alias=True, exclude_none=True)}
        if self.text and self.text.verbosity:
            text["verbosity"] = self.text.verbosity
        echoed: Json = {
            "created_at": created_at,
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {
                "effort": self.reasoning.effort if self.reasoning else None,
                "summary": self.reasoning.summary if self.reasoning else None,
            },
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.stored,
            "temperature": sampling.temperature,
            "text": text,
            "tool_choice": self.tool_choice or "auto",
            "tools": [*(tool.echo() for tool in offered(self.tools or ())), *([search.echo()] if search else [])],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": self.truncation or "disabled",
        }
        optional = {"user": self.user, "dropped_messages": dropped or None}
        return echoed | {name: value for name, value in optional.items() if value is not None}


def _response_format(form: Format | None) -> JsonFormat | None:
    """What the answer must be; None: text. The format's description becomes the schema's, if that has none."""
    if form is None or form.type == "text":
        return None
    described = {"description": form.description} if form.description else {}
    return JsonFormat(json_schema=None if form.json_schema is None else described | form.json_schema)
