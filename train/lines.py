"""The lines of a dataset: OpenAI's format for fine-tuning, parsed and checked, and written again.

    {"messages": […], "tools": […], "metadata": {"id": …}}      a conversation; `weight` 0 or 1 on assistants' messages
    {"prompt": […], "chosen": {…}, "rejected": {…}, …}          a preference: two answers to one request

A weight that is not given is 1, as it is to OpenAI. What this does not judge: whether a line is worth learning from
(train/quality.py).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import JsonValue, TypeAdapter, ValidationError

from app.dialects.openai_messages import ChatMessage, external, internal
from app.dialects.openai_tools import FunctionTool, offered
from app.errors import InvalidRequest
from app.messages import Message, Tool

MESSAGES = TypeAdapter(list[ChatMessage])
TOOLS = TypeAdapter(list[FunctionTool])

Json = dict[str, Any]
Metadata = Mapping[str, JsonValue]


class Line(NamedTuple):
    """A conversation to learn from. weights: of each message; 0 for all that are not learnt."""

    messages: tuple[Message, ...]
    weights: tuple[int, ...]
    tools: tuple[Tool, ...] = ()
    metadata: Metadata = MappingProxyType({})

    @property
    def id(self) -> str:
        """What names it across runs: its conversation, else its content."""
        return str(self.metadata.get("id") or fingerprint(self.messages))


class Preference(NamedTuple):
    """Two answers to one request, of which people like one better."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[Tool, ...] = ()
    metadata: Metadata = MappingProxyType({})

    @property
    def id(self) -> str:
        """As of a Line: preferences of a conversation share its id."""
        return str(self.metadata.get("id") or fingerprint(self.prompt))


def parse(text: str) -> Line:
    """A line of a conversation. Raises InvalidRequest with what is wrong."""
    told = _object(text, "messages")
    given = told["messages"]
    weights = tuple(_weight(message, index) for index, message in enumerate(given))
    return Line(_messages(given, "messages"), weights, _tools(told), _metadata(told))


def parse_preference(text: str) -> Preference:
    """A line of a preference. Raises InvalidRequest with what is wrong."""
    told = _object(text, "prompt", "chosen", "rejected")
    chosen, rejected = (_answer(told, name) for name in ("chosen", "rejected"))
    return Preference(_messages(told["prompt"], "prompt"), chosen, rejected, _tools(told), _metadata(told))


def dump(line: Line) -> str:
    """The line as JSON text, without a line break. `parse` makes the same of it again."""
    messages = [
        external(message) | ({"weight": weight} if message.role == "assistant" else {})
        for message, weight in zip(line.messages, line.weights, strict=True)
    ]
    return _dump({"messages": messages}, line.tools, line.metadata)


def dump_preference(pair: Preference) -> str:
    """Likewise of a preference."""
    prompt = [external(message) for message in pair.prompt]
    told = {"prompt": prompt, "chosen": external(pair.chosen), "rejected": external(pair.rejected)}
    return _dump(told, pair.tools, pair.metadata)


def read(path: Path) -> Iterator[Line]:
    """The lines of a file that a stage wrote. Raises InvalidRequest with the file's name and the line's number."""
    for number, text in enumerate(texts(path), start=1):
        try:
            yield parse(text)
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}, line {number}: {error}", error.param) from error


def read_preferences(path: Path) -> Iterator[Preference]:
    """Likewise of preferences; a file that is not there has none."""
    if path.exists():
        yield from map(parse_preference, texts(path))


def texts(path: Path) -> Iterator[str]:
    """The lines of a file that are not empty."""
    with path.open(encoding="utf-8") as file:  # by "\n" alone: JSON text may hold U+2028
        yield from (text for text in file if text.strip())


def save(path: Path, told: Iterable[str]) -> int:
    """Write texts as lines, all or nothing. Returns how many."""
    part, count = path.with_name(f".{path.name}"), 0
    with part.open("w", encoding="utf-8") as file:
        for text in told:
            file.write(text + "\n")
            count += 1
    part.replace(path)
    return count


def fingerprint(messages: Sequence[Message]) -> str:
    """A hash of what was said, ids of calls left out."""
    said = [[m.role, m.content, [[call.name, call.arguments] for call in m.tool_calls]] for m in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _object(text: str, *needed: str) -> Json:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The line is no JSON ({error}).") from error
    if not isinstance(told, dict):
        raise InvalidRequest("The line is no JSON object.")
    for name in needed:
        if not told.get(name):
            raise InvalidRequest(f"The line has no '{name}'.", name)
    for name in ("messages", "prompt"):
        if name in needed and not (isinstance(told[name], list) and all(isinstance(one, dict) for one in told[name])):
            raise InvalidRequest(f"'{name}' is no list of messages.", name)
    return told


def _answer(told: Json, name: str) -> Message:
    """One of the two answers, which has to fit behind the prompt. May come as a list of one, as TRL has it."""
    given = told[name][0] if isinstance(told[name], list) and len(told[name]) == 1 else told[name]
    if not isinstance(given, dict):
        raise InvalidRequest(f"'{name}' is no message.", name)
    answer = _messages([*told["prompt"], given], name)[-1]
    if answer.role != "assistant":
        raise InvalidRequest(f"'{name}' is a message of role '{answer.role}', not 'assistant'.", name)
    return answer


def _weight(message: Json, index: int) -> int:
    weight = message.get("weight")
    if message.get("role") != "assistant":
        return 0
    if weight not in (None, 0, 1) or isinstance(weight, bool):
        raise InvalidRequest(f"'messages[{index}].weight' is {weight!r}, it must be 0 or 1.", "messages")
    return 1 if weight is None else int(weight)


def _messages(given: Sequence[Json], name: str) -> tuple[Message, ...]:
    try:
        return internal(MESSAGES.validate_python([{k: v for k, v in m.items() if k != "weight"} for m in given]))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("["))
        raise InvalidRequest(f"'{name}.{place}': {first['msg']}.", name) from error


def _tools(told: Json) -> tuple[Tool, ...]:
    try:
        given = TOOLS.validate_python(told.get("tools") or [])
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"'tools': {first['msg']}.", "tools") from error
    return offered((tool.function for tool in given), None, param="tools").tools


def _metadata(told: Json) -> Metadata:
    metadata = told.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidRequest("'metadata' is no object.", "metadata")
    return metadata


def _dump(told: Json, tools: Sequence[Tool], metadata: Metadata) -> str:
    if tools:
        told["tools"] = [
            {"type": "function", "function": {k: v for k, v in tool.model_dump(exclude={"strict"}).items() if v}}
            for tool in tools
        ]
    if metadata:
        told["metadata"] = dict(metadata)
    return json.dumps(told, ensure_ascii=False)
