"""The messages of chat completions, to and from MindFu's own. Pure functions, each the other's inverse.

Beyond OpenAI's own an assistant's message may hold `reasoning_content`, as the answers of reasoning models do.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from app.dialects.events import Json
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Message, ToolCall

HARMLESS = frozenset({
    "annotations", "cache_control", "id", "index", "object", "prompt_cache_breakpoint", "provider_specific_fields",
    "reasoning_details", "sources", "status", "timestamp",
})  # fmt: skip
"""What messages and their parts come with and no model would read: parts of answers, marks of other servers' caches."""

OF_ASSISTANTS = ("tool_calls", "function_call", "refusal", "reasoning_content", "reasoning", "audio")


class Exact(BaseModel):
    """A part of a request of known fields only. 1 is not true, and "1" is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Lenient(BaseModel):
    """A part of a request that may come with HARMLESS fields, and with null for what it does not have."""

    model_config = ConfigDict(extra="allow", strict=True)

    def only_known(self, path: str) -> None:
        """Raises UnsupportedOption for a field that a model might have had to read. path: of this part."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in HARMLESS:
                raise UnsupportedOption(f"Unknown field '{path}.{name}'; it is not ignored.", f"{path}.{name}")


class TextPart(Lenient):
    type: Literal["text"]
    text: str


class RefusalPart(Lenient):
    type: Literal["refusal"]
    refusal: str


class OtherPart(Lenient):
    """What a text model cannot read: images, audio, files."""

    type: str


class FunctionCall(Exact):
    name: str = Field(min_length=1)
    arguments: str


class RequestToolCall(Lenient):
    """A call that the assistant made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


def by_type(given: Any) -> str:
    """The tag of one of several models that differ by `type`. In brackets it is no part of an error's path."""
    return f"[{given.get('type') if isinstance(given, dict) else getattr(given, 'type', None)}]"


Part = Annotated[
    Annotated[TextPart, Tag("[text]")]
    | Annotated[RefusalPart, Tag("[refusal]")]
    | Annotated[SkipJsonSchema[OtherPart], Tag("[other]")],
    Discriminator(lambda given: kind if (kind := by_type(given)) in {"[text]", "[refusal]"} else "[other]"),
]
Content = Annotated[
    Annotated[str, Tag("[text]")] | Annotated[list[Part], Field(max_length=10_000), Tag("[parts]")],
    Discriminator(lambda given: "[parts]" if isinstance(given, list) else "[text]"),
]


class ChatMessage(Lenient):
    """A message as clients send it. Absent and null are the same."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[RequestToolCall] | None = Field(None, max_length=1024)
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None  # OpenAI's older tool call
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, as other servers call it
    audio: Json | None = None


def internal(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The messages in our own type. `developer` is OpenAI's newer word for `system`.

    Calls and results of the older form have no ids, and get some. Raises InvalidRequest for a field that its role
    does not have, for a tool's result that no call before it asked for, and for content that is no text.
    """
    made: list[Message] = []
    asked: set[str] = set()  # ids of calls
    older: dict[str, str] = {}  # the id of the latest call in the older form, by the function's name
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        _check(message, path)
        answers = older.get(message.name or "") if message.role == "function" else message.tool_call_id
        if message.role in {"tool", "function"} and answers not in asked:
            param = f"{path}.{'tool_call_id' if message.role == 'tool' else 'name'}"
            raise InvalidRequest(f"'{param}' answers no call that an assistant made before it.", param)
        calls = _calls(message, path, f"call_{index}")
        asked.update(call.id for call in calls)
        if message.function_call:
            older[message.function_call.name] = calls[-1].id
        made.append(_message(message, path, calls, answers))
    return tuple(made)


def external(message: Message) -> Json:
    """A message of ours as chat completions have it. `internal` makes the same of it again."""
    calls = tool_calls(message.tool_calls)
    told: Json = {"role": message.role, "content": None if calls and not message.content else message.content}
    optional = {
        "reasoning_content": message.reasoning or None,
        "name": message.name,
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
    }
    return told | {name: value for name, value in optional.items() if value is not None}


def tool_calls(calls: Iterable[ToolCall]) -> list[Json]:
    """Calls as chat completions have them: `arguments` is always text."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def _check(message: ChatMessage, path: str) -> None:
    """That a message has what its role needs, and nothing of another role's."""
    message.only_known(path)
    role = message.role
    if message.audio is not None:
        raise UnsupportedOption(f"'{path}.audio': this model reads text only.", f"{path}.audio")
    foreign: tuple[str, ...] = () if role == "assistant" else OF_ASSISTANTS
    if role != "tool":
        foreign += ("tool_call_id",)
    for name in foreign:
        if getattr(message, name) is not None:
            raise InvalidRequest(f"'{path}.{name}' does not belong in a message of role '{role}'.", f"{path}.{name}")
    needed = {"tool": "tool_call_id", "function": "name", "assistant": "role"}.get(role, "content")
    if getattr(message, needed) is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.{needed}'.", f"{path}.{needed}")


def _calls(message: ChatMessage, path: str, older_id: str) -> tuple[ToolCall, ...]:
    calls = []
    for number, call in enumerate(message.tool_calls or ()):
        call.only_known(f"{path}.tool_calls[{number}]")
        calls.append(ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments))
    if message.function_call:
        calls.append(ToolCall(id=older_id, **message.function_call.model_dump()))
    return tuple(calls)


def _message(message: ChatMessage, path: str, calls: tuple[ToolCall, ...], answers: str | None) -> Message:
    role: Any = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    return Message(
        role=role,
        content=_text(message.content, f"{path}.content") or message.refusal or "",
        reasoning=message.reasoning_content or message.reasoning or "",
        name=message.name,
        tool_calls=calls,
        tool_call_id=answers,
    )


def _text(content: str | list[Part] | None, path: str) -> str:
    if not isinstance(content, list):
        return content or ""
    return "".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: Part, path: str) -> str:
    if isinstance(part, OtherPart):
        raise UnsupportedOption(f"'{path}' is of type '{part.type}', and this model reads text only.", path)
    part.only_known(path)
    return part.text if isinstance(part, TextPart) else part.refusal
