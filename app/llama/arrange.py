"""Messages rearranged for chat templates that do not take them as they are. Pure.

Templates differ in what they refuse (two turns of one role, a system prompt, several calls at once) and in whether they
know tools at all. Those that do not are told of tools in Hermes' words, which most models have seen.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence

from app.arguments import value_of
from app.messages import Message, Tool, ToolCall

SHORT_ID = re.compile("[A-Za-z0-9]{9}")
Arrangement = Callable[[Sequence[Message]], tuple[Message, ...]]


def merged(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Neighbouring messages of one role become one, for templates that insist on turns."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1].role == message.role and message.role != "tool":
            turns[-1] = _joined(turns[-1], message)
        else:
            turns.append(message)
    return tuple(turns)


def lowered(messages: Sequence[Message]) -> tuple[Message, ...]:
    """As merged, and a system message further down speaks as the user, for templates that take it in front only."""
    return merged(
        [
            message.model_copy(update={"role": "user"}) if place and message.role == "system" else message
            for place, message in enumerate(merged(messages))
        ]
    )


def folded(messages: Sequence[Message]) -> tuple[Message, ...]:
    """As lowered, and a leading system prompt goes into the user message behind it, for templates without that role."""
    turns = lowered(messages)
    if len(turns) > 1 and turns[0].role == "system" and turns[1].role == "user":
        return (_joined(turns[0], turns[1]).model_copy(update={"role": "user"}), *turns[2:])
    return turns


ARRANGEMENTS: tuple[Arrangement, ...] = (tuple, merged, lowered, folded)
"""In the order in which they are tried."""


def one_call_each(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Every call in a message of its own, with its result behind it, for templates that take one call at once."""
    results = {message.tool_call_id: message for message in messages if message.role == "tool"}
    arranged: list[Message] = []
    split: set[str | None] = set()
    for message in messages:
        if len(message.tool_calls) > 1:
            for place, call in enumerate(message.tool_calls):
                said = {} if place == 0 else {"content": "", "reasoning": ""}
                arranged.append(message.model_copy(update={"tool_calls": (call,), **said}))
                if call.id in results:
                    arranged.append(results[call.id])
                split.add(call.id)
        elif message.role != "tool" or message.tool_call_id not in split:
            arranged.append(message)
    return tuple(arranged)


def short_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Ids of calls as nine letters and digits, which Mistral's templates insist on; the same for the same id."""
    return tuple(
        message.model_copy(
            update={
                "tool_calls": tuple(call.model_copy(update={"id": _short(call.id)}) for call in message.tool_calls),
                "tool_call_id": message.tool_call_id and _short(message.tool_call_id),
            }
        )
        if message.tool_calls or message.tool_call_id
        else message
        for message in messages
    )


def object_arguments(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Calls that some model cut short as calls of one argument, for templates that write arguments one by one."""
    return tuple(
        message.model_copy(update={"tool_calls": tuple(map(_of_object, message.tool_calls))})
        if message.tool_calls
        else message
        for message in messages
    )


def told(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """Tools in the system prompt, calls and their results in the text, for templates that know none of them."""
    spoken: list[Message] = []
    for place, message in enumerate(messages):
        if place and message.role == "tool" == messages[place - 1].role:
            content = f"{spoken[-1].content}\n{_spoken(message).content}"  # the results of one turn stay together
            spoken[-1] = spoken[-1].model_copy(update={"content": content})
        else:
            spoken.append(_spoken(message))
    if not tools:
        return tuple(spoken)
    offered = "\n".join(json.dumps(described(tool), ensure_ascii=False) for tool in tools)
    manual = (
        f"# Tools\n\nYou may call these functions:\n<tools>\n{offered}\n</tools>\nTo call one, write a JSON object "
        "with its name and its arguments between these tags:\n<tool_call>\n"
        '{"name": <name>, "arguments": <object>}\n</tool_call>'
    )
    if spoken and spoken[0].role == "system":
        content = "\n\n".join(filter(None, (spoken[0].content, manual)))
        return (spoken[0].model_copy(update={"content": content}), *spoken[1:])
    return (Message(role="system", content=manual), *spoken)


def described(tool: Tool) -> dict[str, object]:
    """A tool as OpenAI's API and all templates have it."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _spoken(message: Message) -> Message:
    if message.role == "tool":
        result = f"<tool_response>\n{message.content}\n</tool_response>"
        return Message(role="user", content=result)
    if not message.tool_calls:
        return message
    calls = "\n".join(f"<tool_call>\n{_written(call)}\n</tool_call>" for call in message.tool_calls)
    content = "\n".join(filter(None, (message.content, calls)))
    return message.model_copy(update={"content": content, "tool_calls": ()})


def _written(call: ToolCall) -> str:
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'


def _of_object(call: ToolCall) -> ToolCall:
    try:
        whole = isinstance(value_of(call.arguments or "{}"), dict)
    except ValueError:
        whole = False
    arguments = call.arguments or "{}" if whole else json.dumps({"arguments": call.arguments}, ensure_ascii=False)
    return call.model_copy(update={"arguments": arguments})


def _short(call_id: str) -> str:
    if SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:9]


def _joined(first: Message, second: Message) -> Message:
    fields = {
        "content": "\n\n".join(filter(None, (first.content, second.content))),
        "reasoning": "\n\n".join(filter(None, (first.reasoning, second.reasoning))),
        "tool_calls": first.tool_calls + second.tool_calls,
    }
    return first.model_copy(update=fields)
