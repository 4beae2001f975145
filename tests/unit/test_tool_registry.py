"""A tool is a function: its schema comes from its signature, its description from its docstring."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from app.errors import Misconfigured
from app.tools.catalogue import BUILT_IN
from app.tools.context import Context
from app.tools.failures import ToolFailed
from app.tools.registry import by_name, from_function, imported, reads

CONTEXT: Any = object()


@reads
def get_weather(
    location: Annotated[str, Field(description="A city.")], unit: Literal["C", "F"] = "C", days: int = 1
) -> dict[str, Any]:
    """Tell the weather at a place."""
    return {"status": "success", "temp": 21, "condition": f"sunny in {location}", "unit": unit, "days": days}


async def whose(context: Context, greeting: str = "hello") -> str:
    """Tell what it was handed."""
    assert context is CONTEXT
    return greeting


def test_a_function_tells_the_model_what_it_takes():
    """Types, defaults, descriptions, and what is required."""
    told = from_function(get_weather).told
    assert (told.name, told.description) == ("get_weather", "Tell the weather at a place.")
    assert told.parameters == {
        "type": "object",
        "properties": {
            "location": {"description": "A city.", "type": "string"},
            "unit": {"default": "C", "enum": ["C", "F"], "type": "string"},
            "days": {"default": 1, "type": "integer"},
        },
        "required": ["location"],
        "additionalProperties": False,
    }


async def test_a_function_is_called_with_what_the_model_wrote():
    """Plain functions and async ones; what is no object is told as its `result`; "7" is as good as 7."""
    weather = from_function(get_weather)
    assert weather.reads
    assert (await weather.run('{"location": "Bern", "days": "7"}', CONTEXT))["days"] == 7
    other = from_function(whose)
    assert not other.reads
    assert other.told.parameters["properties"].keys() == {"greeting"}
    assert await other.run("", CONTEXT) == {"result": "hello"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("{}", "location: Field required"),
        ('{"location": 3}', "location: Input should be a valid string"),
        ('{"location": "Bern", "unit": "K"}', "unit: Input should be 'C' or 'F'"),
        ('{"location": "Bern", "context": 1}', "context: Extra inputs are not permitted"),
        ("[1]", "arguments: Input should be"),
        ('{"location": ', "The arguments are not JSON"),
        ('{"location": "\\ud800"}', "The arguments are not JSON"),
    ],
)
async def test_wrong_arguments_are_named(arguments, reason):
    """So that the model can try again."""
    with pytest.raises(ToolFailed, match=reason):
        await from_function(get_weather).run(arguments, CONTEXT)


def test_what_no_model_could_be_told_of_is_refused_at_start():
    """No docstring, a parameter without a type, one of a type that JSON does not have, two of one name."""

    def silent(path: str) -> str:
        return path

    def untyped(path) -> str:
        """Do something."""
        return str(path)

    def odd(path: memoryview) -> str:
        """Do something."""
        return str(path)

    for function in (silent, untyped, odd):
        with pytest.raises(Misconfigured, match=function.__name__):
            from_function(function)
    with pytest.raises(Misconfigured, match="two tools are called 'get_weather'"):
        by_name([from_function(get_weather)] * 2)
    for path in ("nowhere:f", "json:nothing", "json", "json:__name__"):
        with pytest.raises(Misconfigured, match=r"tools\.functions"):
            imported(path)
    assert imported("json:dumps").__name__ == "dumps"


def test_the_fifteen_tools_are_there():
    """Each with its parameters; those that change nothing are known."""
    tools = by_name(map(from_function, BUILT_IN))
    required = {name: tool.told.parameters.get("required", []) for name, tool in tools.items()}
    assert required == {
        "lookup_hostname": ["hostname"],
        "measure_http_latency": ["hostname"],
        "read_file": ["path"],
        "write_file": ["path", "lines"],
        "list_contents": ["path"],
        "search_files": ["path", "pattern"],
        "calculate_directory_size": ["path"],
        "get_file_info": ["path"],
        "create_directory": ["path"],
        "move_file": ["source", "dest"],
        "copy_file": ["source", "dest"],
        "delete_file": ["path"],
        "get_current_directory": [],
        "find_in_files": ["path", "search_text"],
        "search_documents": ["query"],
    }
    changing = {name for name, tool in tools.items() if not tool.reads}
    assert changing == {"write_file", "create_directory", "move_file", "copy_file", "delete_file"}
