"""Requests of Anthropic's Messages API, translated for the engine. Pure functions over parsed JSON.

Field by field after https://platform.claude.com/docs/en/api/messages; beyond it we take `rag` and `server_tools`. A
field is handled, or kept with the turn because it cannot change the answer, or refused by its name: never accepted and
ignored.
`cache_control` is taken anywhere and dropped: it moves from turn to turn, and our prefix cache needs no marks.
"""

import json
from collections.abc import Container, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from app.arguments import value_of
from app.dialects.events import Json
from app.errors import ContextTooLong, InvalidRequest, MindFuError, Overloaded, Unavailable, UnsupportedOption
from app.messages import Generate, JsonFormat, Message, NamedTool, RagOptions, Sampling, Tool, ToolCall, ToolChoice
from app.tools.offer import ServerTools, beside

REFUSED = {
    "container": "code execution",
    "speed": "other speeds than the one that there is",
    "mcp_servers": "MCP servers called by the model's host",
}
KEPT = ("metadata", "service_tier", "inference_geo", "context_management", "betas", "cache_control", "diagnostics")
IGNORED_PARTS = frozenset({"cache_control", "citations", "title", "context", "caller", "signature"})
THINKING = frozenset({"thinking", "redacted_thinking"})
Number = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A part of a request. Fields that no model would read may come with it, others are refused."""

    model_config = ConfigDict(extra="allow", strict=True)

    def only_known(self, path: str) -> None:
        """Raises UnsupportedOption for a field that a model might have had to read. path: of this part."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in IGNORED_PARTS:
                raise UnsupportedOption(f"{path}.{name}: unknown field; it is not ignored.", f"{path}.{name}")


class TextBlock(Part):
    type: Literal["text"]
    text: str


class ToolUseBlock(Part):
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: Json


class ThinkingBlock(Part):
    type: Literal["thinking"]
    thinking: str


class RedactedBlock(Part):
    """Thoughts that only Anthropic can read: nothing of them is left for another model."""

    type: Literal["redacted_thinking"]
    data: str


class TextSource(Part):
    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class ContentSource(Part):
    type: Literal["content"]
    content: str | list[TextBlock]


class OtherSource(Part):
    type: str


def _by_type(*known: str) -> Discriminator:
    """One of several models by `type`, else the one tagged other. In brackets a tag is no part of an error's path."""

    def tag(given: Any) -> str:
        kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
        return f"[{kind}]" if kind in known else "[other]"

    return Discriminator(tag)


class DocumentBlock(Part):
    type: Literal["document"]
    source: Annotated[
        Annotated[TextSource, Tag("[text]")]
        | Annotated[ContentSource, Tag("[content]")]
        | Annotated[SkipJsonSchema[OtherSource], Tag("[other]")],
        _by_type("text", "content"),
    ]


class OtherBlock(Part):
    """What a text model cannot read: images, files, the calls of tools that Anthropic runs."""

    type: str


class ToolResultBlock(Part):
    type: Literal["tool_result"]
    tool_use_id: str
    content: "str | list[ResultBlock] | None" = None
    is_error: bool | None = None


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[DocumentBlock, Tag("[document]")]
    | Annotated[SkipJsonSchema[OtherBlock], Tag("[other]")],
    _by_type("text", "document"),
]
Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[DocumentBlock, Tag("[document]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[RedactedBlock, Tag("[redacted_thinking]")]
    | Annotated[SkipJsonSchema[OtherBlock], Tag("[other]")],
    _by_type("text", "document", "tool_use", "tool_result", "thinking", "redacted_thinking"),
]


class InputMessage(BaseModel):
    """A turn. `system` among them is what Claude's own clients send for instructions that came later."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=10_000)]
    id: str | None = None


class ToolDefinition(Part):
    """A function of the client's; with a type other than `custom`, a tool that Anthropic would run."""

    name: str | None = Field(None, min_length=1, max_length=256)
    type: str | None = None
    description: str | None = None
    input_schema: Json | None = None
    strict: bool | None = None


class ToolChoiceField(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingField(Part):
    """budget_tokens is kept: an open model thinks as long as it does."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)
    display: str | None = None


class OutputFormat(Part):
    type: Literal["json_schema"]
    schema_: Json = Field(alias="schema")


class OutputConfig(Part):
    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(BaseModel):
    """POST /v1/messages/count_tokens, and what it has in common with /v1/messages."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1, max_length=256)
    messages: list[InputMessage] = Field(min_length=1, max_length=100_000)
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=1024)] | None = None
    tool_choice: ToolChoiceField | None = None
    thinking: ThinkingField | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    server_tools: ServerTools | None = None

    def generate(self, request_id: str, tenant: str, model: str, served: Sequence[Tool] = ()) -> Generate:
        """For the engine. served: the server's tools that it may call. Raises InvalidRequest and UnsupportedOption,
        naming the field.
        """
        self._only_known()
        system = _system(self.system)
        form = self.output_format or (self.output_config.format if self.output_config else None)
        choice = self.tool_choice
        return Generate(
            request_id=request_id,
            tenant=tenant,
            model=model,
            messages=(*system, *internal(self.messages)),
            tools=beside(functions(self.tools or ()), served),
            tool_choice=_choice(choice),
            parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
            response_format=None if form is None else JsonFormat(json_schema=form.schema_),
            thinking=None if self.thinking is None else self.thinking.type != "disabled",
        )

    def kept(self) -> Json:
        """Fields that are kept with the turn, and the tools that only Anthropic could run."""
        extra = {name: value for name, value in (self.model_extra or {}).items() if name in KEPT and value is not None}
        for name in ("thinking", "output_config"):
            if (given := getattr(self, name)) is not None:
                extra[name] = given.model_dump(mode="json", exclude_none=True, by_alias=True)
        foreign = [tool.type for tool in self.tools or () if _is_foreign(tool)]
        return extra | ({"ignored_tools": foreign} if foreign else {})

    def _only_known(self) -> None:
        for name, value in (self.model_extra or {}).items():
            if value is None or name in KEPT or value == [] or (name, value) == ("speed", "standard"):
                continue
            if name in REFUSED:
                raise UnsupportedOption(f"{name}: {REFUSED[name]} are not supported; leave it out.", name)
            raise UnsupportedOption(f"{name}: unknown field (value {repr(value)[:60]}); it is not ignored.", name)


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, le=2**31 - 1)
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Field(max_length=4)] | None = None
    temperature: Annotated[Number, Field(ge=0.0, le=1.0)] | None = None
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    rag: bool | RagOptions | None = None

    def generate(self, request_id: str, tenant: str, model: str, served: Sequence[Tool] = ()) -> Generate:
        """For the engine. Every request has to name `max_tokens`, so clients name a large one: it yields to the
        window.
        """
        stops = tuple(self.stop_sequences or ())
        if not all(stops):
            message = "stop_sequences: holds an empty string, which would end every answer at once."
            raise InvalidRequest(message, "stop_sequences")
        given = self.model_dump(include={"temperature", "top_p", "top_k"}, exclude_none=True)
        asked = super().generate(request_id, tenant, model, served)
        return asked.model_copy(
            update={"max_tokens": self.max_tokens, "clip": True, "stop": stops, "sampling": Sampling(**given)}
        )


def internal(messages: Sequence[InputMessage]) -> tuple[Message, ...]:
    """The messages in our own type. A turn with results of tools becomes one message each, and one of the rest.

    Raises InvalidRequest for a result that no call before it asked for, and for content that is no text.
    """
    made: list[Message] = []
    asked: set[str] = set()
    for index, message in enumerate(messages):
        made += _turn(message, f"messages.{index}.content", asked)
        asked.update(call.id for call in made[-1].tool_calls)
    return tuple(made)


def _turn(message: InputMessage, path: str, asked: Container[str]) -> list[Message]:
    """What a turn says, results of tools first. asked: ids of the calls before it."""
    content = message.content
    blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
    results, texts, thoughts, calls = list[Message](), list[str](), list[str](), list[ToolCall]()
    for number, block in enumerate(blocks):
        place = f"{path}.{number}"
        _check(block, message.role, place, asked)
        if isinstance(block, ToolResultBlock):
            results.append(_result(block, place))
        elif isinstance(block, ToolUseBlock):
            arguments = json.dumps(block.input, ensure_ascii=False)
            calls.append(ToolCall(id=block.id, name=block.name, arguments=arguments))
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif not isinstance(block, RedactedBlock):
            texts.append(_text(block, place))
    if results and not (texts or calls or thoughts):
        return results
    said, reasoning = "\n\n".join(texts), "\n\n".join(thoughts)
    return [*results, Message(role=message.role, content=said, reasoning=reasoning, tool_calls=tuple(calls))]


def _check(block: Block, role: str, place: str, asked: Container[str]) -> None:
    """That a block belongs in a message of its role, and a result answers a call."""
    if not isinstance(block, OtherBlock):
        block.only_known(place)
    if isinstance(block, ToolResultBlock) and (role != "user" or block.tool_use_id not in asked):
        text = f"{place}: tool_result of '{block.tool_use_id[:80]}' answers no tool_use before it."
        raise InvalidRequest(text, f"{place}.tool_use_id")
    if isinstance(block, ToolUseBlock | ThinkingBlock | RedactedBlock) and role != "assistant":
        raise InvalidRequest(f"{place}: {block.type} belongs in an assistant's message.", place)


def external(messages: Sequence[Message]) -> tuple[list[Json], str]:
    """Our messages as Anthropic has them, and the system prompt. `internal` makes the same of them again."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    told: list[Json] = []
    for message in messages:
        if message.role == "system":
            continue
        if message.role == "tool":
            block = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
            if told and told[-1]["role"] == "user" and told[-1]["content"][-1]["type"] == "tool_result":
                told[-1]["content"].append(block)
            else:
                told.append({"role": "user", "content": [block]})
        else:
            told.append({"role": message.role, "content": blocks_of(message)})
    return told, system


def blocks_of(message: Message) -> list[Json]:
    """A message's content: thoughts, text, calls."""
    blocks: list[Json] = []
    if message.reasoning:
        blocks.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_of(call)}
        for call in message.tool_calls
    ]
    return blocks


def arguments_of(call: ToolCall) -> Json:
    """A call's arguments, an object; those that were cut short are shown as they are."""
    try:
        found = value_of(call.arguments or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"invalid_arguments": call.arguments}


def functions(tools: Sequence[ToolDefinition]) -> tuple[Tool, ...]:
    """The functions that the client runs. Tools that only Anthropic could run are left out, and kept with the turn."""
    made: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        if _is_foreign(tool):
            continue
        path = f"tools.{index}"
        if tool.name is None or tool.input_schema is None:
            missing = "name" if tool.name is None else "input_schema"
            raise InvalidRequest(f"{path}.{missing}: Field required", f"{path}.{missing}")
        if tool.name in made:
            raise InvalidRequest(f"{path}.name: '{tool.name}' is there twice.", f"{path}.name")
        made[tool.name] = Tool(
            name=tool.name, description=tool.description or "", parameters=tool.input_schema, strict=bool(tool.strict)
        )
    return tuple(made.values())


def error(exc: MindFuError, request_id: str) -> Json:
    """Anthropic's error object."""
    kinds = {
        401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
        429: "rate_limit_error", 503: "overloaded_error",
    }  # fmt: skip
    kind = "invalid_request_error" if exc.status < 500 else "api_error"
    kind = "overloaded_error" if isinstance(exc, Overloaded) else kinds.get(exc.status, kind)
    message = str(exc)
    if isinstance(exc, ContextTooLong):
        message = f"prompt is too long: {exc.prompt_tokens} tokens > {exc.window} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def status(exc: MindFuError) -> int:
    """The HTTP status that Anthropic's clients expect: 529 where we are overloaded."""
    return 529 if isinstance(exc, Overloaded | Unavailable) else exc.status


def _system(given: str | list[TextBlock] | None) -> tuple[Message, ...]:
    if not given:
        return ()
    if isinstance(given, list):
        for index, block in enumerate(given):
            block.only_known(f"system.{index}")
    text = given if isinstance(given, str) else "\n\n".join(block.text for block in given)
    return (Message(role="system", content=text),)


def _choice(given: ToolChoiceField | None) -> ToolChoice:
    if given is None or given.type == "auto":
        return "auto"
    if given.type == "tool":
        if not given.name:
            raise InvalidRequest("tool_choice.name: Field required", "tool_choice.name")
        return NamedTool(name=given.name)
    return "required" if given.type == "any" else "none"


def _is_foreign(tool: ToolDefinition) -> bool:
    return tool.type not in (None, "custom")


def _result(block: ToolResultBlock, path: str) -> Message:
    content = block.content or ""
    if not isinstance(content, str):
        content = "\n".join(_text(part, f"{path}.content.{number}") for number, part in enumerate(content))
    if block.is_error:
        content = f"Error: {content}"
    return Message(role="tool", content=content, tool_call_id=block.tool_use_id)


def _text(block: TextBlock | DocumentBlock | OtherBlock, path: str) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, DocumentBlock):
        source = block.source
        if isinstance(source, TextSource):
            return source.data
        if isinstance(source, ContentSource):
            parts = source.content
            return parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
    kind = f"{block.type} of a {block.source.type} source" if isinstance(block, DocumentBlock) else block.type
    raise UnsupportedOption(f"{path}: type '{kind}' cannot be read, this model reads text only.", path)
