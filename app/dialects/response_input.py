"""Items of the Responses API, read: what a request sends, as messages.

A model's answer is one message of ours and several items of theirs (reasoning, a message, its calls), so neighbouring
items of an assistant are joined. Real clients do not keep to the published request schema: read here is what a text
model can use, whatever else an item holds. Pure functions over parsed JSON.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from app.dialects.events import Json
from app.dialects.response_items import CARRIED, CUSTOM_INPUT
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Message, ToolCall

TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
MEDIA = {"input_image": "an image", "input_file": "a file", "input_audio": "audio", "image_url": "an image"}
HOSTED = frozenset({
    "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction", "compaction_summary",
    "computer_call", "computer_call_output", "image_generation_call", "local_shell_call", "local_shell_call_output",
    "mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools", "shell_call", "shell_call_output",
    "tool_search_call", "tool_search_output", "web_search_call",
})  # fmt: skip
"""Items of tools that OpenAI runs itself. They are none of ours, so no answer of ours held one."""

T = TypeVar("T", bound=BaseModel)


class _Message(BaseModel):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Any]  # of parts, as all lists here: read one by one


class _Call(BaseModel):
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str


class _CustomCall(BaseModel):
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: str


class _Output(BaseModel):
    call_id: str = Field(min_length=1)
    output: str | list[Any]


class _Reasoning(BaseModel):
    summary: list[Any] = []
    content: list[Any] | None = None
    encrypted_content: str | None = None


class _Text(BaseModel):
    text: str


class _Refusal(BaseModel):
    refusal: str


def messages_of(items: Sequence[Json], param: str = "input") -> tuple[Message, ...]:
    """The messages that the items of a request say, references resolved (see `dereferenced`).

    Raises InvalidRequest, with the path of the item, for one that cannot be read or that a text model cannot take.
    """
    said: list[Message] = []
    for index, item in enumerate(items):
        where = f"{param}[{index}]"
        if _kind(item) == "file_search_call":  # of an answer of ours: what it found is in the answer that quotes it
            continue
        read = READERS.get(_kind(item))
        if read is None:
            raise _unreadable(item, where)
        piece = read(item, where)
        if said and _continues(said[-1], piece):
            said[-1] = _joined(said[-1], piece)
        else:
            said.append(piece)
    return tuple(message for message in said if not _unspoken(message))


def references(items: Iterable[Json]) -> frozenset[str]:
    """The ids of the items that a request names instead of sending them."""
    return frozenset(str(item.get("id")) for item in items if _kind(item) == "item_reference")


def dereferenced(items: Iterable[Json], found: Mapping[str, Json], param: str = "input") -> tuple[Json, ...]:
    """The items with those that were named put in. Raises InvalidRequest for one that was not found."""
    given = tuple(items)
    for index, item in enumerate(given):
        if _kind(item) == "item_reference" and str(item.get("id")) not in found:
            message = f"Item with id '{item.get('id')}' not found. Items of responses that were stored can be named."
            raise InvalidRequest(message, f"{param}[{index}].id")
    return tuple(found[str(item["id"])] if _kind(item) == "item_reference" else item for item in given)


def require_answered_calls(messages: Iterable[Message]) -> None:
    """Every tool result belongs to a call before it, and no call is left without one. Raises InvalidRequest."""
    known: set[str] = set()
    waiting: dict[str, None] = {}
    for message in messages:
        for call in message.tool_calls:
            known.add(call.id)
            waiting[call.id] = None
        if message.role == "tool":
            if message.tool_call_id not in known:
                called = f"No tool call found for function call output with call_id {message.tool_call_id}."
                raise InvalidRequest(called, "input")
            waiting.pop(message.tool_call_id, None)
    if waiting:
        raise InvalidRequest(f"No tool output found for function call {next(iter(waiting))}.", "input")


def read(model: type[T], given: Any, where: str) -> T:
    """A part of a request by its model. where: its path. Raises InvalidRequest with the path of what is wrong."""
    try:
        return model.model_validate(given)
    except ValidationError as exc:
        problem = exc.errors(include_url=False)[0]
        path = where + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"][:1])
        if problem["type"] == "missing":
            raise InvalidRequest(f"Missing required parameter: '{path}'.", path) from exc
        message = f"Invalid '{path}': {problem['msg']} (got {_shown(problem['input'])})."
        raise InvalidRequest(message, path) from exc


def _kind(item: Json) -> str:
    """The type of an item. Clients leave it out where the keys tell."""
    kind = item.get("type")
    if kind is not None:
        return kind if isinstance(kind, str) else repr(kind)
    return "item_reference" if "id" in item and "role" not in item else "message"


def _message(item: Json, where: str) -> Message:
    given = read(_Message, item, where)
    return Message(
        role="system" if given.role == "developer" else given.role, content=_text(given.content, f"{where}.content")
    )


def _call(item: Json, where: str) -> Message:
    given = read(_Call, item, where)
    return _calling(ToolCall(id=given.call_id, name=given.name, arguments=given.arguments))


def _custom_call(item: Json, where: str) -> Message:
    given = read(_CustomCall, item, where)
    arguments = json.dumps({CUSTOM_INPUT: given.input}, ensure_ascii=False)
    return _calling(ToolCall(id=given.call_id, name=given.name, arguments=arguments))


def _calling(call: ToolCall) -> Message:
    return Message(role="assistant", tool_calls=(call,))


def _output(item: Json, where: str) -> Message:
    given = read(_Output, item, where)
    return Message(role="tool", content=_text(given.output, f"{where}.output"), tool_call_id=given.call_id)


def _reasoning(item: Json, where: str) -> Message:
    """The content; else what `encrypted_content` carries; else the summary, which is what other models give."""
    given = read(_Reasoning, item, where)
    if given.content:
        text = "".join(read(_Text, part, f"{where}.content[{index}]").text for index, part in enumerate(given.content))
    elif given.encrypted_content is not None:
        text = _uncarried(given.encrypted_content, f"{where}.encrypted_content")
    else:
        text = "\n\n".join(
            read(_Text, part, f"{where}.summary[{index}]").text for index, part in enumerate(given.summary)
        )
    return Message(role="assistant", reasoning=text)


def _uncarried(carried: str, where: str) -> str:
    try:
        if not carried.startswith(CARRIED):
            raise ValueError(carried)
        return base64.b64decode(carried.removeprefix(CARRIED), validate=True).decode()
    except ValueError as exc:
        message = f"'{where}' was not written by this server, which cannot read it. Send the item without it."
        raise InvalidRequest(message, where) from exc


def _text(content: str | Sequence[Any], where: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise InvalidRequest(f"Invalid '{where}': a part is an object (got {_shown(part)}).", where)
    kind = part.get("type")
    if isinstance(kind, str) and kind in TEXT_PARTS:
        return read(_Text, part, where).text
    if kind == "refusal":
        return read(_Refusal, part, where).refusal
    if isinstance(kind, str) and kind in MEDIA:
        raise UnsupportedOption(f"'{where}' is {MEDIA[kind]}; the model reads text only.", where)
    readable = ", ".join(sorted(TEXT_PARTS))
    raise InvalidRequest(f"Invalid '{where}.type': {_shown(kind)} is none of {readable}, refusal.", f"{where}.type")


def _continues(last: Message, piece: Message) -> bool:
    """Whether an item belongs to the same answer as the item before it."""
    if last.role != "assistant" or piece.role != "assistant":
        return False
    return bool(piece.tool_calls) or not (last.content or last.tool_calls)


def _joined(last: Message, piece: Message) -> Message:
    return last.model_copy(
        update={
            "reasoning": last.reasoning + piece.reasoning,
            "content": last.content + piece.content,
            "tool_calls": last.tool_calls + piece.tool_calls,
        }
    )


def _unspoken(message: Message) -> bool:
    """Reasoning that came to nothing is no answer."""
    return message.role == "assistant" and not (message.content or message.tool_calls)


def _unreadable(item: Json, where: str) -> InvalidRequest:
    kind = item.get("type")
    if isinstance(kind, str) and kind in HOSTED:
        return UnsupportedOption(f"'{where}' is a {kind}: this server has no such tool of its own.", f"{where}.type")
    known = ", ".join(sorted({*READERS, "item_reference"}))
    return InvalidRequest(f"Invalid '{where}.type': {_shown(kind)} is none of {known}.", f"{where}.type")


def _shown(value: object) -> str:
    return repr(value)[:80]


READERS: Mapping[str, Callable[[Json, str], Message]] = MappingProxyType({
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _output,
    "reasoning": _reasoning,
})  # fmt: skip
