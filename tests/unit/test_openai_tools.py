"""Tools of chat completions: what is offered, what must be called, and what an answer must look like."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.dialects.openai_tools import (
    Choice,
    FunctionDefinition,
    FunctionTool,
    Offer,
    ResponseFormat,
    answer_format,
    external,
    offered,
)
from app.errors import InvalidRequest
from app.messages import JsonFormat, NamedTool, Tool

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
F, G = Tool(name="f", description="looks", parameters=SCHEMA), Tool(name="g", strict=True)


def offer(choice: object = None) -> Offer:
    tools = [
        FunctionDefinition(name="f", description="looks", parameters=SCHEMA),
        FunctionDefinition(name="g", strict=True),
    ]
    return offered(tools, TypeAdapter(Choice | None).validate_python(choice), param="tool_choice")


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        (None, Offer((F, G), "auto")),
        ("none", Offer((F, G), "none")),
        ("required", Offer((F, G), "required")),
        (named("g"), Offer((F, G), NamedTool(name="g"))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("g")]}},
            Offer((G,), "required"),
        ),
    ],
)
def test_every_choice_of_openai_s_is_taken(choice: object, made: Offer):
    """Of allowed tools the others are not offered at all."""
    assert offer(choice) == made


@pytest.mark.parametrize(
    "choice",
    [named("h"), {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("f"), named("h")]}}],
)
def test_a_choice_of_what_is_not_there_is_refused(choice: object):
    """It names the tool and the field."""
    with pytest.raises(InvalidRequest, match="'h'") as refusal:
        offer(choice)
    assert refusal.value.param == "tool_choice"


def test_something_must_be_there_to_be_required():
    """Else the model could do nothing right."""
    with pytest.raises(InvalidRequest, match="no tools"):
        offered([], "required", param="tool_choice")


@pytest.mark.parametrize("choice", ["any", {"type": "custom", "custom": {"name": "f"}}, {"type": "allowed_tools"}, 1])
def test_other_choices_are_invalid(choice: object):
    """Custom tools are none of ours."""
    with pytest.raises(ValidationError):
        offer(choice)


@pytest.mark.parametrize("name", ["", "a b", "naïve", "f()", "x" * 129])
def test_a_tool_has_a_name_that_every_template_can_write(name: str):
    """Letters, digits, and _ . : / -"""
    with pytest.raises(ValidationError):
        FunctionDefinition(name=name)


def test_two_tools_of_one_name_and_parameters_of_no_object_are_refused():
    """Nobody could tell the one from the other, or name an argument."""
    with pytest.raises(InvalidRequest, match="Two tools are called 'f'"):
        offered([FunctionDefinition(name="f"), FunctionDefinition(name="f")], None, param="tool_choice")
    with pytest.raises(InvalidRequest, match="schema of an object"):
        offered([FunctionDefinition(name="f", parameters={"type": "array"})], None, param="tool_choice")


@pytest.mark.parametrize(
    ("wanted", "made"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonFormat()),
        ({"type": "json_schema", "json_schema": {"name": "p"}}, JsonFormat()),
        ({"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}, JsonFormat(json_schema=SCHEMA)),
        (
            {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA, "strict": True, "description": "d"}},
            JsonFormat(json_schema=SCHEMA | {"description": "d"}),
        ),
    ],
)
def test_an_answer_may_have_to_be_json(wanted: object, made: JsonFormat | None):
    """Any object, or what a schema says; a description is for the model, so it goes along."""
    assert answer_format(TypeAdapter(ResponseFormat | None).validate_python(wanted)) == made


tools = st.lists(
    st.builds(
        Tool,
        name=st.from_regex(r"[A-Za-z0-9_.:/-]{1,20}", fullmatch=True),
        description=st.text(max_size=9),
        parameters=st.dictionaries(
            st.text(max_size=5).filter(lambda key: key != "type"), st.text(max_size=5), max_size=3
        ),
        strict=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda tool: tool.name,
)


@settings(max_examples=100, deadline=None)
@given(tools)
def test_there_and_back_loses_nothing(offered_before: list[Tool]):
    """What a turn keeps of its tools can be offered again."""
    told = [FunctionTool.model_validate(external(tool)).function for tool in offered_before]
    assert offered(told, None, param="tool_choice").tools == tuple(offered_before)
