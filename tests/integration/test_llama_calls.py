"""Calls, thoughts and given forms, from the request to the last delta, of models that would rather say other things."""

import json
from pathlib import Path
from typing import Any

import pytest
from engines import asked, running
from gguf_factory import CHATML, chain_model, vocabulary

from app.errors import InvalidRequest
from app.llama.engine import Engine
from app.messages import Delta, Done, Generate, JsonFormat, NamedTool, Sampling, Tool

pytestmark = pytest.mark.integration

HERMES = '{% if tools %}<tools>{{ tools | tojson }}</tools> <tool_call>{"name": x, "arguments": y}{% endif %}' + CHATML
CODER = "{% if tools %}<tool_call><function=x><parameter=y>{% endif %}" + CHATML
GLM = "{% if tools %}<tool_call>x<arg_key>y</arg_key><arg_value>z</arg_value>{% endif %}" + CHATML
THINKS = CHATML + "<think>{{ '\n' }}"
UNIT = {"type": "object", "properties": {"unit": {"enum": ["c"]}}, "required": ["unit"], "additionalProperties": False}
TOOL = Tool(name="weather", parameters=UNIT)
STRICT = Tool(name="weather", parameters=UNIT, strict=True)


def tokens(*parts: str) -> list[int]:
    """A part that is a token is one, others are their letters."""
    names = vocabulary()[0]
    return [names.index(name) for part in parts for name in ([part] if part in names else part)]


def says(folder: Path, *parts: str, template: str = HERMES) -> Path:
    return chain_model(folder / "model.gguf", tokens(*parts), template=template)


async def told(engine: Engine, request: Generate) -> tuple[str, str, list[tuple[str | None, Any]], Done]:
    """(reasoning, text, calls, end) of the first answer. A call that was cut short has its arguments as text."""
    items = [item async for item in engine.generate(request)]
    done = items.pop()
    assert isinstance(done, Done)
    deltas = [item for item in items if isinstance(item, Delta)]
    pieces = [call for delta in deltas for call in delta.tool_calls]
    calls = [
        (begun.name, parsed("".join(piece.arguments for piece in pieces if piece.index == begun.index)))
        for begun in pieces
        if begun.id
    ]
    return "".join(delta.reasoning for delta in deltas), "".join(delta.text for delta in deltas), calls, done


def parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


async def test_a_call_of_a_strict_function_is_held_to_its_schema(tmp_path: Path):
    """The model begins it and would go on with nonsense; what came before it is free."""
    with running(says(tmp_path, "hi", "<tool_call>", "xyz"), window=1024) as engine:
        request = asked(tools=(STRICT,), parallel_tool_calls=False)
        assert (await told(engine, request))[1:3] == ("hi", [("weather", {"unit": "c"})])
        free = asked(tools=(TOOL,), max_tokens=12)
        _, text, calls, done = await told(engine, free)
        assert text.startswith("hi<tool_call>xyzhi")
        assert (calls, done.finish_reason) == ([], "length")


async def test_behind_a_strict_call_the_model_is_free_again(tmp_path: Path):
    """To talk, and to call once more."""
    with running(says(tmp_path, "hi", "<tool_call>", "xyz"), window=1024) as engine:
        _, text, calls, done = await told(engine, asked(tools=(STRICT,), max_tokens=400))
        assert text.startswith("hihi")
        assert calls[:2] == [("weather", {"unit": "c"})] * 2
        assert done.finish_reason == "length"


@pytest.mark.parametrize("choice", ["required", NamedTool(name="weather")])
async def test_a_call_that_is_asked_for_comes(choice: Any, tmp_path: Path):
    """Whatever the model would rather say."""
    other = Tool(name="other", parameters={"type": "object", "required": ["much"]})
    tools = (TOOL, other) if choice != "required" else (TOOL,)
    with running(says(tmp_path, "abc", "<|im_end|>"), window=1024) as engine:
        request = asked(tools=tools, tool_choice=choice, parallel_tool_calls=False)
        _, text, calls, done = await told(engine, request)
        assert (text, calls, done.finish_reason) == ("", [("weather", {"unit": "c"})], "tool_calls")


@pytest.mark.parametrize("template", [CODER, GLM], ids=["coder", "glm"])
async def test_xml_calls_are_held_to_their_schema_too(template: str, tmp_path: Path):
    """Forced ones, and those of a strict function that the model begins with nonsense. What is free is read."""
    with running(says(tmp_path, "hi", "<tool_call>", "xyz", template=template), window=1024) as engine:
        for request in (asked(tools=(STRICT,)), asked(tools=(TOOL,), tool_choice="required")):
            one = request.model_copy(update={"parallel_tool_calls": False})
            assert (await told(engine, one))[2:3] == ([("weather", {"unit": "c"})],)
        _, text, calls, done = await told(engine, asked(tools=(TOOL,), max_tokens=12))
        assert text.startswith("hi<tool_call>xyzhi")
        assert (calls, done.finish_reason) == ([], "length")


async def test_arguments_come_while_they_are_written(tmp_path: Path):
    """Many pieces, of which the first has id and name; a call that max_tokens cuts says so, and is no JSON."""
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 500}}, "required": ["text"]}
    with running(says(tmp_path, "hi"), window=1024) as engine:
        request = asked(tools=(Tool(name="write", parameters=schema),), tool_choice="required", max_tokens=120)
        items = [item async for item in engine.generate(request)]
    pieces = [call for item in items if isinstance(item, Delta) for call in item.tool_calls]
    assert [piece.name for piece in pieces[:3]] == ["write", None, None]
    assert [piece.id is None for piece in pieces[:3]] == [False, True, True]
    assert len(pieces) > 5
    assert "hihihi" in "".join(piece.arguments for piece in pieces)
    assert isinstance(items[-1], Done)
    assert items[-1].finish_reason == "length"


async def test_no_call_comes_where_none_may(tmp_path: Path):
    """tool_choice none: the mark is text, and the tools are not shown to the model."""
    with running(says(tmp_path, "hi", "<tool_call>", "<|im_end|>"), window=1024) as engine:
        request = asked(tools=(STRICT,), tool_choice="none")
        assert (await told(engine, request))[1:3] == ("hi<tool_call>", [])
        shown = (await engine.measure(request.model_copy(update={"tool_choice": "auto"}), [])).prompt_tokens
        assert shown > (await engine.measure(request, [])).prompt_tokens + 20


async def test_an_answer_has_the_form_that_was_asked_for(tmp_path: Path):
    """Also where functions are offered: then it may be a call instead."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with running(says(tmp_path, "abc", "<|im_end|>"), window=1024) as engine:
        request = asked(response_format=JsonFormat(json_schema=schema), max_tokens=100)
        _, text, _, done = await told(engine, request)
        assert json.loads(text)["ok"] in (True, False)
        assert done.finish_reason == "stop"
        _, text, calls, _ = await told(engine, request.model_copy(update={"tools": (TOOL,), "max_tokens": 200}))
        assert calls[:1] == [("weather", {"unit": "c"})] or json.loads(text)["ok"] in (True, False)


async def test_thoughts_that_the_template_began_are_told_apart_and_counted(tmp_path: Path):
    """Five letters of them, and the mark that ends them."""
    model = says(tmp_path, "m</think>yo", "<|im_end|>", template=THINKS)
    with running(model) as engine:
        reasoning, text, _, done = await told(engine, asked())
        assert (reasoning, text, done.finish_reason) == ("m", "yo", "stop")
        assert 1 <= done.usage.reasoning_tokens < done.usage.completion_tokens


async def test_a_form_comes_behind_the_thoughts(tmp_path: Path):
    """A template that always thinks is let think."""
    model = says(tmp_path, "m</think>yo", "<|im_end|>", template=THINKS)
    with running(model) as engine:
        format_ = JsonFormat(json_schema={"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
        reasoning, text, _, done = await told(engine, asked(response_format=format_, max_tokens=200))
        assert (reasoning, json.loads(text), done.finish_reason) == ("m", {"a": 1}, "stop")


async def test_what_ends_an_answer_is_said(tmp_path: Path):
    """The stop string, by its name."""
    with running(says(tmp_path, "abcdef")) as engine:
        _, text, _, done = await told(engine, asked(stop=("de", "zz")))
        assert (text, done.ends[0].stop, done.ends[0].finish_reason) == ("abc", "de", "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": NamedTool(name="none")}, "tool_choice"),
        ({"tools": (), "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required", "sampling": Sampling(ignore_eos=True)}, "ignore_eos"),
        ({"sampling": Sampling(logit_bias={99_999: 1.0})}, "logit_bias"),
        ({"response_format": JsonFormat(json_schema={"not": {}})}, "response_format.json_schema.schema.not"),
        ({"tools": (Tool(name="f", parameters={"not": {}}, strict=True),)}, "tools[0].function.parameters.not"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_its_name(fields: dict[str, Any], param: str, tmp_path: Path):
    """Before the first item."""
    with running(says(tmp_path, "abc"), window=1024) as engine:
        with pytest.raises(InvalidRequest) as refusal:
            await told(engine, asked(**{"tools": (TOOL,), **fields}))
        assert refusal.value.param == param
