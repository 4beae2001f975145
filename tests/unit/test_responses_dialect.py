"""The Responses dialect: every field of a request is handled, kept, or refused by its name."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.dialects.responses import InputRequest, ResponsesRequest
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Generate, JsonFormat, Message, NamedTool, Tool

READ = {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {"path": {}}}}
PATCH = {"type": "custom", "name": "patch", "description": "Patch."}
SEARCH = {"type": "web_search", "external_web_access": False}
BUNDLE = {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [READ]}


def parsed(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest.model_validate({"model": "m", "input": "hi"} | fields)


def generated(**fields: Any) -> Generate:
    return parsed(**fields).generate("req_1", "t", "m")


def test_a_text_is_a_message_of_the_user() -> None:
    """The shortest request there is."""
    assert generated() == Generate(
        request_id="req_1", tenant="t", model="m", messages=(Message(role="user", content="hi"),)
    )


def test_instructions_stand_before_the_history_and_the_input_behind() -> None:
    """They are the system prompt of one request."""
    history = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    said = parsed(instructions="Be brief.").generate("req_1", "t", "m", history).messages
    assert [message.content for message in said] == ["Be brief.", "a", "b", "hi"]
    assert said[0].role == "system"


def test_an_output_may_answer_a_call_of_the_response_before() -> None:
    """The client sends nothing else."""
    call = Message.model_validate({"role": "assistant", "tool_calls": [{"id": "c", "name": "f", "arguments": "{}"}]})
    output = {"type": "function_call_output", "call_id": "c", "output": "4"}
    assert parsed(input=[output]).generate("req_1", "t", "m", (call,)).messages[-1].tool_call_id == "c"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 7}, {"max_tokens": 7}),
        ({"reasoning": {"effort": "none"}}, {"thinking": False}),
        ({"reasoning": {"effort": "minimal"}}, {"thinking": True}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"thinking": True}),
        ({"reasoning": {"summary": "auto"}}, {"thinking": None}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"top_logprobs": 3}, {"logprobs": 3}),
        ({"top_logprobs": 0}, {"logprobs": None}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": 0}),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"]}, {"logprobs": None}),
        ({"text": {"format": {"type": "text"}}}, {"response_format": None}),
        ({"text": {"verbosity": "low"}}, {"response_format": None}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": JsonFormat()}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array"}, "strict": True}}},
            {"response_format": JsonFormat(json_schema={"type": "array"})},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "description": "A town."}}},
            {"response_format": JsonFormat(json_schema={"description": "A town."})},
        ),
        ({"tools": [], "tool_choice": None}, {"tools": (), "tool_choice": "auto"}),
    ],
)
def test_a_field_reaches_the_engine(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """In the engine's own words."""
    request = generated(**fields)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0), ("top_p", 0.5), ("top_k", 40), ("min_p", 0.1), ("repeat_penalty", 1.1),
        ("frequency_penalty", -1.0), ("presence_penalty", 2.0), ("seed", 7),
    ],
)  # fmt: skip
def test_sampling_is_taken_over(field: str, value: float) -> None:
    """OpenAI's two fields, and those that our chat completions have besides."""
    assert getattr(generated(**{field: value}).sampling, field) == value


def test_a_function_and_a_custom_tool_are_offered() -> None:
    """A custom tool is a function of one text to the model."""
    tools = generated(tools=[READ | {"strict": True, "description": None}, PATCH]).tools
    assert tools[0] == Tool(name="read", parameters=READ["parameters"], strict=True)
    assert (tools[1].name, tools[1].description) == ("patch", "Patch.")
    assert tools[1].parameters["required"] == ["input"]


def test_a_grammar_of_a_custom_tool_is_told_to_the_model() -> None:
    """It is not enforced, which the manual says."""
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    assert "lark grammar:\nstart: WORD" in generated(tools=[PATCH | {"format": grammar}]).tools[0].description


def test_tools_that_others_run_are_left_out_and_kept() -> None:
    """Codex offers them in every request, so they are no reason to refuse one."""
    request = parsed(tools=[SEARCH, READ, BUNDLE, {"type": "from_the_future"}])
    assert [tool.name for tool in request.generate("req_1", "t", "m").tools] == ["read"]
    assert [tool["type"] for tool in request.echo(0)["tools"]] == ["function"]
    kept = request.kept(request.echo(0))["tools_left_out"]
    assert [tool["type"] for tool in kept] == ["web_search", "namespace", "from_the_future"]


@pytest.mark.parametrize(
    ("choice", "shown", "expected"),
    [
        ("none", ["read", "patch"], "none"),
        ("required", ["read", "patch"], "required"),
        ({"type": "function", "name": "read"}, ["read", "patch"], NamedTool(name="read")),
        ({"type": "custom", "name": "patch"}, ["read", "patch"], NamedTool(name="patch")),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "read"}, SEARCH]},
            ["read"],
            "required",
        ),
    ],
)
def test_a_choice_among_tools(choice: Any, shown: list[str], expected: Any) -> None:
    """Of allowed tools the others are not shown at all."""
    request = generated(tools=[READ, PATCH, SEARCH], tool_choice=choice)
    assert ([tool.name for tool in request.tools], request.tool_choice) == (shown, expected)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "write"}, "tools": [READ]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [READ]}, "tool_choice"),
        ({"tool_choice": {"type": "web_search_preview"}, "tools": [SEARCH]}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}, "tools": [READ]}, "tool_choice.tools"),
        ({"tool_choice": {"type": "allowed_tools", "mode": [], "tools": []}, "tools": [READ]}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [READ | {"parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [READ | {"parameters": 5}]}, "tools[0].parameters"),
        ({"tools": [READ, READ]}, "tools[1].name"),
        ({"tools": [PATCH | {"format": {"type": "grammar", "syntax": "bnf", "definition": ""}}]}, "tools[0].format"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": "hi"}, "hi"]}, "input[1]"),
        ({"input": None}, "input"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_parameter(fields: dict[str, Any], param: str) -> None:
    """Before the engine hears of it."""
    with pytest.raises(InvalidRequest) as refusal:
        generated(**fields)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"model": ""}, {"model": None}, {"input": 5}, {"instructions": ["Be brief."]},
        {"temperature": 2.1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"top_p": 0}, {"top_p": 1.01},
        {"max_output_tokens": 0}, {"max_output_tokens": 1.5}, {"top_logprobs": 21}, {"max_tool_calls": 0},
        {"store": "true"}, {"stream": 1}, {"temperature": "0.5"}, {"max_output_tokens": "5"},
        {"max_output_tokens": 2**31}, {"stream_options": {}}, {"include": ["everything"]}, {"include": "x"},
        {"truncation": "middle"}, {"metadata": {"a": 1}}, {"metadata": {"a": "x" * 513}},
        {"metadata": {str(index): "" for index in range(17)}}, {"reasoning": {"effort": "extreme"}},
        {"text": {"verbosity": "silent"}}, {"text": {"format": {"type": "xml"}}}, {"text": {"form": {}}},
        {"text": {"format": {"type": "json_schema", "name": "n"}}},
        {"text": {"format": {"type": "json_schema", "schema": {}}}},
        {"text": {"format": {"type": "json_object", "name": "n", "schema": {}}}},
        {"tool_choice": 5}, {"tools": {}}, {"tools": ["read"]}, {"rag": {"top_k": 0}}, {"safety_identifier": "x" * 65},
        {"conversation": {}}, {"previous_response_id": 5}, {"seed": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused(fields: dict[str, Any]) -> None:
    """By the type of the body, so that the gateway names the field."""
    with pytest.raises(ValidationError):
        parsed(**fields)


@pytest.mark.parametrize("field", ["background", "context_management", "moderation", "prompt", "presence", "n", "stop"])
def test_what_is_not_done_is_refused_by_its_name(field: str) -> None:
    """Also what is unknown: it might change the answer."""
    with pytest.raises(UnsupportedOption, match=f"'{field}'") as refusal:
        parsed(**{field: {"id": "x"}}).require_known()
    assert refusal.value.param == field
    parsed(**{field: None}).require_known()


def test_background_may_be_false() -> None:
    """Clients that know no other way say so."""
    parsed(background=False, context_management=[], prompt=None).require_known()


def test_what_changes_nothing_is_kept() -> None:
    """All of it, for whoever reads the conversation later."""
    kept = {
        "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "prompt_cache_options": {"ttl": "30m"}, "service_tier": "flex", "client_metadata": {"a": "b"},
        "metadata": {"c": "d"}, "max_tool_calls": 3, "reasoning": {"effort": "low", "context": "auto"},
        "text": {"verbosity": "low"}, "truncation": "disabled",
    }  # fmt: skip
    request = parsed(**kept, instructions="Be brief.")
    request.require_known()
    assert request.kept({"tools": []}) == kept | {"instructed": True, "response": {"tools": []}}


def test_a_request_of_a_million_wrong_values_is_refused_at_the_first() -> None:
    """Pydantic would make an error of each."""
    many: list[Any] = [0] * 1_000_000
    for field in ("tools", "include"):
        with pytest.raises(ValidationError) as refusal:
            parsed(**{field: many})
        assert refusal.value.error_count() == 1
    for fields in ({"input": many}, {"input": [{"role": "user", "content": many}]}):
        with pytest.raises(InvalidRequest):
            generated(**fields)


def test_what_is_not_stored_is_kept_without_what_finds_it() -> None:
    """`store: false` is kept as such."""
    assert parsed(store=False).kept({"tools": []}) == {"store": False}


def test_the_echo_repeats_the_request_with_its_defaults() -> None:
    """Every key that the published schema requires, and the client's own words for its tools."""
    echo = parsed(tools=[READ], instructions="Be brief.", user="u", temperature=0.5).echo(7, dropped=2)
    assert echo["tools"] == [READ | {"description": None, "strict": False}]
    assert (echo["created_at"], echo["instructions"], echo["user"], echo["dropped_messages"]) == (
        7,
        "Be brief.",
        "u",
        2,
    )
    assert (echo["temperature"], echo["top_p"], echo["tool_choice"], echo["store"]) == (0.5, 1.0, "auto", True)
    assert (echo["text"], echo["truncation"], echo["metadata"]) == ({"format": {"type": "text"}}, "disabled", {})


def test_a_prompt_can_be_counted_without_a_model() -> None:
    """POST /v1/responses/input_tokens takes the fields that make a prompt, and no others."""
    assert InputRequest(input="hi").generate("req_1", "t", "m").messages[0].content == "hi"
    with pytest.raises(UnsupportedOption, match="'temperature'"):
        InputRequest.model_validate({"input": "hi", "temperature": 1}).require_known()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(["", "auto", "function", "message"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from([
            "type", "role", "content", "text", "id", "call_id", "name", "arguments", "output", "summary", "tools",
            "mode", "format", "schema", "effort", "parameters", "encrypted_content",
        ]),
        inner | st.sampled_from([
            "user", "assistant", "developer", "input_text", "output_text", "reasoning", "function_call",
            "function_call_output", "custom", "custom_tool_call", "item_reference", "allowed_tools", "json_schema",
        ]),
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
fields = st.sampled_from([*ResponsesRequest.model_fields, "background", "prompt", "anything"])
requests = st.dictionaries(fields, json_values, max_size=4)
items = st.lists(json_values, max_size=4)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(requests, items)
def test_whatever_comes_is_read_or_refused(body: dict[str, Any], sent: list[dict[str, Any]]) -> None:
    """Never anything but a refusal of ours or of the body's type, both of which are 400."""
    with suppress(ValidationError, InvalidRequest):
        request = ResponsesRequest.model_validate({"model": "m", "input": sent} | body)
        request.require_known()
        request.generate("req_1", "t", "m")
        request.kept(request.echo(0))
