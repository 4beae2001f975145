"""Tools, which of them may be called, and the form of the answer, as chat completions ask for them. Pure functions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from app.dialects.events import Json
from app.dialects.openai_messages import Exact, by_type
from app.errors import InvalidRequest
from app.messages import JsonFormat, JsonSchema, NamedTool, Tool, ToolChoice
from app.tools.offer import beside

NAME = r"^[A-Za-z0-9_.:/-]{1,128}$"


class FunctionDefinition(Exact):
    """What may be called. parameters: a JSON Schema; absent: the function takes none."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FunctionTool(Exact):
    type: Literal["function"]
    function: FunctionDefinition
    cache_control: Any = None  # a mark of other servers' caches


class NamedFunction(Exact):
    name: str


class FunctionChoice(Exact):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Exact):
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1)


class AllowedToolsChoice(Exact):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind(given: Any) -> str:
    if isinstance(given, str):
        return "[word]"
    return "[allowed]" if isinstance(given, dict) and given.get("type") == "allowed_tools" else "[named]"


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[FunctionChoice, Tag("[named]")]
    | Annotated[AllowedToolsChoice, Tag("[allowed]")],
    Discriminator(_kind),
]
OlderChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag("[word]")] | Annotated[NamedFunction, Tag("[named]")],
    Discriminator(lambda given: "[word]" if isinstance(given, str) else "[named]"),
]


class TextFormat(Exact):
    type: Literal["text"]


class JsonObjectFormat(Exact):
    type: Literal["json_object"]


class SchemaDefinition(Exact):
    """The schema is always held to, strict or not. name: of no use here, as no model reads it."""

    name: str
    description: str | None = None
    json_schema: JsonSchema | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(Exact):
    type: Literal["json_schema"]
    json_schema: SchemaDefinition


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("[text]")]
    | Annotated[JsonObjectFormat, Tag("[json_object]")]
    | Annotated[SchemaFormat, Tag("[json_schema]")],
    Discriminator(by_type),
]


class Offer(NamedTuple):
    """What the model may call."""

    tools: tuple[Tool, ...]
    choice: ToolChoice


def offered(
    definitions: Iterable[FunctionDefinition],
    choice: Choice | OlderChoice | None,
    *,
    param: str,
    served: Sequence[Tool] = (),
) -> Offer:
    """The tools and the choice among them. Of allowed tools the others are not offered at all. served: the server's.

    Raises InvalidRequest for a schema that is no object's, two functions of one name, and a choice of what is not
    there. param: the choice's field.
    """
    tools = beside([_tool(definition) for definition in definitions], served)
    names = Counter(tool.name for tool in tools)
    if names and names.most_common(1)[0][1] > 1:
        raise InvalidRequest(f"Two tools are called '{names.most_common(1)[0][0]}'.", "tools")
    if choice == "required" and not tools:
        raise InvalidRequest(f"'{param}' is 'required', and there are no tools.", param)
    if choice is None or isinstance(choice, str):
        return Offer(tools, choice or "auto")
    if isinstance(choice, AllowedToolsChoice):
        wanted = [tool.function.name for tool in choice.allowed_tools.tools]
    else:
        wanted = [choice.function.name if isinstance(choice, FunctionChoice) else choice.name]
    if unknown := next((name for name in wanted if name not in names), None):
        raise InvalidRequest(f"'{param}' names '{unknown}', which is not among the tools.", param)
    if isinstance(choice, AllowedToolsChoice):
        return Offer(tuple(tool for tool in tools if tool.name in wanted), choice.allowed_tools.mode)
    return Offer(tools, NamedTool(name=wanted[0]))


def answer_format(wanted: ResponseFormat | None) -> JsonFormat | None:
    """What the answer must be; None: text. The format's description becomes the schema's, if that has none."""
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    if isinstance(wanted, JsonObjectFormat) or wanted.json_schema.json_schema is None:
        return JsonFormat()
    described = {"description": wanted.json_schema.description} if wanted.json_schema.description else {}
    return JsonFormat(json_schema=described | wanted.json_schema.json_schema)


def external(tool: Tool) -> Json:
    """A tool of ours as chat completions have it. `offered` makes the same of it again."""
    function = tool.model_dump(mode="json", exclude_defaults=True)
    return {"type": "function", "function": function}


def _tool(definition: FunctionDefinition) -> Tool:
    parameters = definition.parameters or {}
    if parameters.get("type", "object") != "object":
        raise InvalidRequest(f"The parameters of '{definition.name}' must be the schema of an object.", "tools")
    return Tool(
        name=definition.name,
        description=definition.description or "",
        parameters=parameters,
        strict=bool(definition.strict),
    )
