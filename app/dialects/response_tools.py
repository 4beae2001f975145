"""The tools of a Responses request: functions and custom tools, which the client runs, and which may be called.

A custom tool takes free text; to the model it is a function of one argument. `file_search` is run here: before every
answer, what is on its vector stores is searched. Other kinds of tools that OpenAI runs itself, and bundles of tools
(`namespace`), are left out: clients offer them always. Pure functions over parsed JSON.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from app.dialects.events import Json
from app.dialects.openai_files import RankingOptions, require_known_ranking
from app.dialects.openai_filters import Filter, check
from app.dialects.response_input import read
from app.dialects.response_items import CUSTOM_INPUT
from app.errors import InvalidRequest
from app.messages import JsonSchema, NamedTool, Strict, Tool, ToolChoice

NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")  # as in chat completions
CUSTOM_PARAMETERS: JsonSchema = {
    "type": "object",
    "properties": {CUSTOM_INPUT: {"type": "string"}},
    "required": [CUSTOM_INPUT],
    "additionalProperties": False,
}


class TextInput(Strict):
    """A custom tool that takes any text."""

    type: Literal["text"]


class GrammarInput(Strict):
    """A custom tool whose text follows a grammar. The model is told it; the text is not held to it."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class Function(BaseModel):
    """A function. strict: what is absent is false, because true is a promise."""

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None

    def internal(self) -> Tool:
        """In MindFu's own type."""
        parameters = {} if self.parameters is None else self.parameters
        return Tool(name=self.name, description=self.description or "", parameters=parameters, strict=bool(self.strict))

    def echo(self) -> Json:
        """As the response repeats it."""
        return self.model_dump() | {"strict": bool(self.strict)}


class Custom(BaseModel):
    """A tool whose input is text."""

    type: Literal["custom"]
    name: str
    description: str | None = None
    format: TextInput | GrammarInput | None = None

    def internal(self) -> Tool:
        """In MindFu's own type."""
        told = self.description or ""
        if isinstance(self.format, GrammarInput):
            told = f"{told}\n\nThe input must follow this {self.format.syntax} grammar:\n{self.format.definition}"
        return Tool(name=self.name, description=told.strip(), parameters=CUSTOM_PARAMETERS)

    def echo(self) -> Json:
        """As the response repeats it."""
        return self.model_dump(exclude_none=True)


class FileSearch(Strict):
    """Vector stores to search. max_num_results: None as the settings say."""

    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1, max_length=16)
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: Filter | None = None
    ranking_options: RankingOptions | None = None

    def echo(self) -> Json:
        """As the response repeats it."""
        return self.model_dump(exclude_none=True)


def searched(tools: Iterable[Json], choice: str | Json | None) -> FileSearch | None:
    """The file search that is asked for. Raises InvalidRequest for one that cannot be read, and for a second one."""
    found: FileSearch | None = None
    for index, tool in enumerate(tools):
        if tool.get("type") != "file_search":
            continue
        where = f"tools[{index}]"
        if found is not None:
            raise InvalidRequest(f"'{where}' is a second file_search; name all vector stores in one.", where)
        found = read(FileSearch, tool, where)
        require_known_ranking(found.ranking_options)
        if found.filters is not None:
            check(found.filters)
    return found if found is None or _allows_search(choice) else None


def _allows_search(choice: str | Json | None) -> bool:
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        listed = choice.get("tools")
        return isinstance(listed, list) and {"type": "file_search"} in listed
    return choice != "none"


def offered(tools: Iterable[Json]) -> tuple[Function | Custom, ...]:
    """The tools that the client runs. Raises InvalidRequest for one that cannot be read."""
    found: dict[str, Function | Custom] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not is_clients(tool):
            continue
        given = read(Custom, tool, where) if tool.get("type") == "custom" else read(Function, tool, where)
        if not NAME.fullmatch(given.name):
            shown = repr(given.name)[:80]
            refusal = f"Invalid '{where}.name': {shown} is not 1 to 128 of A-Z, a-z, 0-9, _.:/-."
            raise InvalidRequest(refusal, f"{where}.name")
        if isinstance(given, Function) and (given.parameters or {}).get("type", "object") != "object":
            raise InvalidRequest(f"'{where}.parameters' must be the schema of an object.", f"{where}.parameters")
        if given.name in found:
            raise InvalidRequest(f"Invalid '{where}.name': there are two tools '{given.name}'.", f"{where}.name")
        found[given.name] = given
    return tuple(found.values())


def is_clients(tool: Json) -> bool:
    """Whether it is one that the client runs by itself."""
    return tool.get("type", "function") in ("function", "custom")


def is_left_out(tool: Json) -> bool:
    """Whether nobody runs it."""
    return not is_clients(tool) and tool.get("type") != "file_search"


def chosen(
    choice: str | Json | None, tools: Sequence[Tool], *, searches: bool = False
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that the model is shown, and what it may call. Raises InvalidRequest for a choice that is not there.

    searches: files are searched before the answer, whatever is chosen but `none`.
    """
    if searches and (choice == {"type": "file_search"} or (choice == "required" and not tools)):
        return tuple(tools), "auto"
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = _names(choice, frozenset(tool.name for tool in tools))
        tools = tuple(tool for tool in tools if tool.name in allowed)
        choice = choice.get("mode", "auto")
    match choice:
        case None | "auto":
            return tuple(tools), "auto"
        case "none":
            return tuple(tools), "none"
        case "required":
            if not tools:
                raise InvalidRequest("'tool_choice' requires a call, but 'tools' offers no function.", "tool_choice")
            return tuple(tools), "required"
        case {"type": "function" | "custom", "name": str(name)}:
            if name not in {tool.name for tool in tools}:
                raise InvalidRequest(f"'tool_choice' names '{name[:80]}', which is not in 'tools'.", "tool_choice")
            return tuple(tools), NamedTool(name=name)
    shown = repr(choice)[:80]
    message = (
        f"Invalid 'tool_choice': {shown} is none of none, auto, required, a function, a custom tool, allowed_tools."
    )
    raise InvalidRequest(message, "tool_choice")


def _names(choice: Json, known: frozenset[str]) -> frozenset[str]:
    """The allowed tools, as far as the client runs them."""
    listed = choice.get("tools")
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise InvalidRequest("'tool_choice.tools' must be a list of tools.", "tool_choice.tools")
    names = frozenset(str(tool.get("name")) for tool in listed if is_clients(tool))
    if unknown := next((name for name in sorted(names) if name not in known), None):
        raise InvalidRequest(f"'tool_choice' names '{unknown[:80]}', which is not in 'tools'.", "tool_choice")
    return names
