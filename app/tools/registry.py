"""Tools as the model is told of them, made from plain functions.

    @reads                                                   # looks and changes nothing
    def get_weather(location: Annotated[str, Field(description="A city.")]) -> dict[str, Any]:
        '''Tell the weather at a place.'''

    tool = from_function(get_weather)
    await tool.run('{"location": "Bern"}', context)

The name is the function's, the description its docstring, the schema comes from its signature. A parameter of the type
Context is handed in, and the model does not know of it. A function that is not async runs in a thread, so it must end
by itself. Raise ToolFailed with what the model should know.
"""

import asyncio
import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PydanticUserError, ValidationError, create_model

from app.arguments import value_of
from app.errors import Misconfigured
from app.messages import JsonSchema, Tool
from app.tools.context import Context, Json
from app.tools.failures import ToolFailed

Function = TypeVar("Function", bound=Callable[..., Any])
Run = Callable[[str, Context], Awaitable[Json]]
READS = "__mindfu_reads__"


@dataclass(frozen=True)
class ServerTool:
    """One tool. run: takes the arguments as the model wrote them. reads: it may run beside others, and be remembered.

    `run` raises ToolFailed; anything else is a bug of the tool. timeout_s: of one call; None: as for all.
    """

    told: Tool
    run: Run
    reads: bool = False
    timeout_s: float | None = None

    @property
    def name(self) -> str:
        return self.told.name


def reads(function: Function) -> Function:
    """Say of a function that it changes nothing: its calls run side by side, and the same one is not made twice."""
    setattr(function, READS, True)
    return function


def from_function(function: Callable[..., Any], executor: Executor | None = None) -> ServerTool:
    """The tool of a function. executor: whose threads run it, if it is not async; None: asyncio's.

    Raises Misconfigured for one that no model could be told of.
    """
    name = getattr(function, "__name__", repr(function))
    description = inspect.getdoc(function)
    if not description:
        raise Misconfigured("tools.functions", f"'{name}' has no docstring", "It is what the model reads.")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
        handed = [each for each in parameters if hints[each] is Context]
        arguments = _model(name, parameters.values(), hints, handed)
        schema = _plain(arguments.model_json_schema())
    except (KeyError, NameError, TypeError, ValueError, PydanticUserError) as error:
        problem = f"the signature of '{name}' cannot be told to a model: {error}"
        raise Misconfigured("tools.functions", problem, "Give every parameter a type that JSON has.") from error

    async def run(text: str, context: Context) -> Json:
        given = _parsed(arguments, text)
        everything = given | dict.fromkeys(handed, context)
        if inspect.iscoroutinefunction(function):
            told = await function(**everything)
        else:
            loop = asyncio.get_running_loop()
            told = await loop.run_in_executor(executor, lambda: function(**everything))
        return told if isinstance(told, dict) else {"result": told}

    tool = Tool(name=name, description=description, parameters=schema)
    return ServerTool(tool, run, reads=bool(getattr(function, READS, False)))


def imported(path: str) -> Callable[..., Any]:
    """The function that `module:name` says. Raises Misconfigured."""
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "Write it as 'module:function', with the module on PYTHONPATH."
        raise Misconfigured("tools.functions", f"'{path}' cannot be imported: {error}", remedy) from error
    if not callable(found):
        raise Misconfigured("tools.functions", f"'{path}' is no function", "Name a function.")
    return typing.cast("Callable[..., Any]", found)


def by_name(tools: Iterable[ServerTool]) -> dict[str, ServerTool]:
    """Raises Misconfigured where two have one name."""
    found: dict[str, ServerTool] = {}
    for tool in tools:
        if tool.name in found:
            raise Misconfigured("tools", f"two tools are called '{tool.name}'", "Rename one of them.")
        found[tool.name] = tool
    return found


def _model(
    name: str, parameters: Iterable[inspect.Parameter], hints: dict[str, Any], handed: Sequence[str]
) -> type[BaseModel]:
    fields: dict[str, Any] = {
        each.name: (hints[each.name], ... if each.default is inspect.Parameter.empty else each.default)
        for each in parameters
        if each.name not in handed
    }
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _parsed(model: type[BaseModel], text: str) -> dict[str, Any]:
    """The arguments by name. Raises ToolFailed, with what is wrong with them."""
    try:
        value = value_of(text.strip() or "{}")
    except ValueError as error:
        raise ToolFailed(f"The arguments are not JSON: {error}.") from error
    try:
        parsed = model.model_validate(value)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}" for problem in error.errors()[:5]
        )
        raise ToolFailed(f"Wrong arguments: {'; '.join(problems)}.") from error
    return {name: getattr(parsed, name) for name in model.model_fields}


def _plain(schema: JsonSchema) -> JsonSchema:
    """Without the titles that pydantic makes up, which only cost tokens."""
    properties = {
        name: {key: value for key, value in field.items() if key != "title"}
        for name, field in schema.get("properties", {}).items()
    }
    return (
        {"type": "object", "properties": properties}
        | ({"required": schema["required"]} if schema.get("required") else {})
        | ({"$defs": schema["$defs"]} if "$defs" in schema else {})
        | {"additionalProperties": False}
    )
