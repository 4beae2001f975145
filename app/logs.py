"""Logs of other programs, as sessions: what was said, by whom, when. Pure functions over text that was read already.

    Mistral Vibe    a folder with meta.json, and messages.jsonl or (since 3.0) generations of chunks
    OpenAI          JSON Lines, {"messages": [...], "tools": [...]}; our own export for training is that, too
    ShareGPT        {"conversations": [{"from", "value"}, ...]}, in JSON Lines or in a list
    MindFu          our own export as JSON: whole conversations with their branches and feedback

What cannot be read raises Unreadable with the reason; what a text model cannot read of a message (an image) is left
out and counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, ValidationError

from app.dialects.events import Json
from app.messages import Message, Role, Strict, Tool, ToolCall
from app.turns import Conversation

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
TIMES = ("created_at", "timestamp", "create_time", "date")  # where lines say when they were said, if they do


class Unreadable(Exception):
    """Why something is no session. The message is for the person who imports it."""


class Session(Strict):
    """One conversation from elsewhere. key: what it is known by, so that it is imported once.

    bad: answers that nobody should learn from, by their index in messages; left_out: what was, and how often.
    """

    format: str
    key: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    model: str | None = None
    client: str | None = None
    began: datetime | None = None
    ended: datetime | None = None
    bad: frozenset[int] = frozenset()
    left_out: dict[str, int] = Field(default_factory=dict)


def vibe(meta: str, lines: Iterable[str]) -> Session:
    """A session folder of Mistral Vibe. lines: of messages.jsonl, or the messages of `vibe_messages` as JSON."""
    about = _object(_json(meta, "meta.json"), "meta.json")
    raw = [_object(_json(line, f"line {number}"), f"line {number}") for number, line in enumerate(lines, 1) if line]
    config = about.get("config") if isinstance(about.get("config"), dict) else {}
    kept = [message for message in raw if message.get("context_boundary") is None]
    prompt = about.get("system_prompt")
    if isinstance(prompt, dict) and not any(message.get("role") == "system" for message in kept):
        kept.insert(0, prompt)
    session = _chat("vibe", kept, about.get("tools_available"))
    model = config.get("model_name") or config.get("active_model") if isinstance(config, dict) else None
    return session.model_copy(
        update={
            "key": str(about.get("session_id") or session.key),
            "model": model if isinstance(model, str) else None,
            "client": "mistral-vibe",
            "began": _time(about.get("start_time")),
            "ended": _time(about.get("end_time")),
        }
    )


def vibe_generation(current: str) -> str:
    """The path of the manifest that counts, of a session since Vibe 3.0. current: the file CURRENT."""
    named = _json(current, "CURRENT")
    generation = named.get("generation") if isinstance(named, dict) else named
    if not isinstance(generation, str | int) or not str(generation).isdigit():
        raise Unreadable("CURRENT names no generation")
    return f"generations/{generation}/manifest.json"


def vibe_chunks(manifest: str) -> tuple[str, ...]:
    """The paths of the chunks that hold a session's messages."""
    checkpoint = _object(_json(manifest, "manifest.json"), "manifest.json").get("checkpoint")
    chunks = checkpoint.get("chunks") if isinstance(checkpoint, dict) else None
    if not isinstance(chunks, list) or not all(isinstance(chunk, str) and chunk.isalnum() for chunk in chunks):
        raise Unreadable("manifest.json names no chunks")
    return tuple(f"chunks/{chunk}.json" for chunk in chunks)


def vibe_messages(chunk: str) -> list[str]:
    """The messages of a chunk, each as JSON."""
    entries = _json(chunk, "a chunk")
    if not isinstance(entries, list):
        raise Unreadable("a chunk is no list")
    return [json.dumps(entry["message"]) for entry in entries if isinstance(entry, dict) and "message" in entry]


def record(raw: object) -> Session | Conversation:
    """A line of JSON Lines, or an item of a list: whatever it is."""
    given = _object(raw, "it")
    if isinstance(given.get("turns"), list) and "messages" not in given:
        try:
            return Conversation.model_validate_json(json.dumps(given))
        except ValidationError as error:
            raise Unreadable(f"it looks like an export of MindFu, but {_first(error)}") from error
    if isinstance(given.get("metadata"), dict) and "session_id" in given["metadata"] and "messages" in given:
        return vibe(json.dumps(given["metadata"]), map(json.dumps, _list(given["messages"])))
    if "messages" in given:
        session = _chat("openai", _list(given["messages"]), given.get("tools"))
    elif "conversations" in given:
        said = [_shared(one) for one in _list(given["conversations"])]
        prompt = [{"role": "system", "content": given["system"]}] if isinstance(given.get("system"), str) else []
        session = _chat("sharegpt", [*prompt, *said], given.get("tools"))
    else:
        raise Unreadable('it has neither "messages" nor "conversations" nor "turns"')
    model = given.get("model")
    times = (_time(given[name]) for name in TIMES if name in given)
    return session.model_copy(
        update={"model": model if isinstance(model, str) else None, "began": next(filter(None, times), None)}
    )


def answers(session: Session) -> Iterator[int]:
    """The indexes of the messages that are answers: of an assistant, after something was asked."""
    asked = False
    for index, message in enumerate(session.messages):
        asked = asked or message.role in {"user", "tool"}
        if asked and message.role == "assistant":
            yield index


def _chat(form: str, raw: Sequence[object], tools: object) -> Session:
    left_out: Counter[str] = Counter()
    messages: list[Message] = []
    bad = set()
    for number, given in enumerate(raw):
        message = _message(_object(given, f"message {number}"), number, messages, left_out)
        if isinstance(given, dict) and given.get("weight") == 0:
            bad.add(len(messages))
        messages.append(message)
    if not any(message.role == "assistant" for message in messages):
        raise Unreadable("it holds no answer")
    if not any(message.role == "user" for message in messages):
        raise Unreadable("it holds no question")
    told = "".join(message.model_dump_json(exclude_defaults=True) for message in messages)
    return Session(
        format=form,
        key=hashlib.sha256(told.encode()).hexdigest(),
        messages=tuple(messages),
        tools=_tools(tools, left_out),
        bad=frozenset(bad),
        left_out=dict(+left_out),
    )


def _message(given: Json, number: int, before: Sequence[Message], left_out: Counter[str]) -> Message:
    role = ROLES.get(str(given.get("role", "assistant")))
    if role is None:
        raise Unreadable(f"message {number} is of the role {str(given['role'])[:40]!r}")
    parts = given.get("content")
    content = _text(parts, number, left_out)
    for kind in ("images", "audio"):
        left_out[kind] += len(given[kind]) if isinstance(given.get(kind), list) else bool(given.get(kind))
    calls = [*_calls(given, number), *_called_in(parts, number)] if role == "assistant" else []
    answered = given.get("tool_call_id") if role == "tool" else None
    if role == "tool" and not isinstance(answered, str):  # older forms have no ids
        asked = next((message for message in reversed(before) if message.tool_calls), None)
        if asked is None:
            raise Unreadable(f"message {number} is a tool's result that nobody asked for")
        answered = asked.tool_calls[-1].id
    name, reasoning = given.get("name"), given.get("reasoning_content") or given.get("reasoning")
    try:
        return Message(
            role=role,
            content=content,
            reasoning=_text(reasoning, number, left_out) if role == "assistant" and reasoning else "",
            name=name if isinstance(name, str) else None,
            tool_calls=tuple(calls),
            tool_call_id=answered,
        )
    except ValidationError as error:  # half a surrogate pair, for one
        raise Unreadable(f"message {number}: {_first(error)}") from error


def _text(content: object, number: int, left_out: Counter[str]) -> str:
    """The text of a content: text, or parts of which some are."""
    if content is None:
        return ""
    if isinstance(content, str):
        return _whole(content, number)
    if not isinstance(content, list):
        raise Unreadable(f"the content of message {number} is neither text nor parts")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            texts.append(_whole(text, number))
        elif kind not in {"tool_call", "tool_use", "thinking"}:
            left_out[str(kind)[:40]] += 1
    return "\n".join(texts)


def _calls(given: Json, number: int) -> Iterator[ToolCall]:
    listed = given.get("tool_calls")
    older = given.get("function_call")
    calls = [*(listed if isinstance(listed, list) else ()), *([{"function": older}] if older else ())]
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unreadable(f"message {number} calls a tool without a name")
        yield _call(call.get("id"), function["name"], function.get("arguments"), f"call_{number}_{index}")


def _called_in(parts: object, number: int) -> Iterator[ToolCall]:
    """Calls that are parts of a content."""
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        if isinstance(part, dict) and part.get("type") == "tool_call" and isinstance(part.get("name"), str):
            written = part.get("arguments")
            raw = written.get("raw", written.get("value")) if isinstance(written, dict) else written
            yield _call(part.get("id"), part["name"], raw, f"call_{number}_{index}")


def _call(id_: object, name: str, arguments: object, otherwise: str) -> ToolCall:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return ToolCall(id=id_ if isinstance(id_, str) and id_ else otherwise, name=name, arguments=text)


def _shared(given: object) -> Json:
    """A message of ShareGPT's in OpenAI's form."""
    message = _object(given, "a message")
    said, value = str(message.get("from", message.get("role"))), message.get("value", message.get("content"))
    if said == "function_call":
        call = _object(_json(value, "a function call") if isinstance(value, str) else value, "a function call")
        return {"role": said, "function_call": call}
    return {"role": said, "content": value} | ({"weight": message["weight"]} if "weight" in message else {})


def _tools(given: object, left_out: Counter[str]) -> tuple[Tool, ...]:
    """The functions that were offered."""
    if isinstance(given, str):  # ShareGPT's sets keep JSON text in JSON
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    tools: dict[str, Tool] = {}
    for one in given if isinstance(given, list) else ():
        function = one.get("function", one) if isinstance(one, dict) else {}
        try:
            known = {name: function[name] for name in ("name", "description", "parameters") if function.get(name)}
            tool = Tool.model_validate(known)
            tools[tool.name] = tool
        except (ValidationError, TypeError, AttributeError):
            left_out["tool definitions"] += 1
    return tuple(tools.values())


def _time(given: object) -> datetime | None:
    """A time as logs write it: ISO 8601, or seconds or milliseconds since 1970. Without a zone it is in UTC."""
    try:
        if isinstance(given, int | float) and not isinstance(given, bool):
            return datetime.fromtimestamp(given / 1000 if given > 1e11 else given, UTC)
        if isinstance(given, str):
            found = datetime.fromisoformat(given)
            return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _json(text: object, what: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{what} is no JSON: {error}") from error


def _object(given: object, what: str) -> Json:
    if not isinstance(given, dict):
        raise Unreadable(f"{what} is no JSON object")
    return given


def _list(given: object) -> list[Any]:
    if not isinstance(given, list):
        raise Unreadable("its messages are no list")
    return given


def _whole(text: str, number: int) -> str:
    """The text. Raises Unreadable for half a surrogate pair, which JSON can hold and no database."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable(f"message {number} holds half of a surrogate pair") from error
    return text


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
