"""Requests to chat completions and completions: every field handled, kept, or refused by its name."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.dialects.openai_requests import ChatRequest, CompletionRequest
from app.errors import InvalidRequest, MindFuError, UnsupportedOption
from app.messages import Generate, JsonFormat, NamedTool, Tool
from deployments.routes.refusals import refused

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def chat(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [USER], **fields})


def asked(**fields: object) -> Generate:
    return chat(**fields).generate("r", "t", "m")


def completion(**fields: object) -> Generate:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "x", **fields})
    return request.generates("r", "t", "m")[0]


@pytest.mark.parametrize(
    ("fields", "handled"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"stop": "END"}, {"stop": ("END",)}),
        ({"stop": []}, {"stop": ()}),
        ({"n": 3}, {"n": 3}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": None}),
        ({"tools": [TOOL]}, {"tools": (Tool(name="f"),), "tool_choice": "auto"}),
        ({"tools": []}, {"tools": ()}),
        ({"tools": [TOOL], "tool_choice": TOOL}, {"tool_choice": NamedTool(name="f")}),
        ({"tools": [TOOL], "parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"functions": [{"name": "f"}]}, {"tools": (Tool(name="f"),), "parallel_tool_calls": False}),
        ({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, {"tool_choice": NamedTool(name="f")}),
        ({"function_call": "none"}, {"tools": ()}),
        ({"response_format": {"type": "json_object"}}, {"response_format": JsonFormat()}),
        ({"reasoning_effort": "none"}, {"thinking": False}),
        ({"reasoning_effort": "low"}, {"thinking": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"thinking": False}),
        ({}, {"thinking": None, "max_tokens": None, "n": 1, "tools": ()}),
    ],
)
def test_an_option_reaches_the_engine(fields: dict[str, Any], handled: dict[str, Any]):
    """In MindFu's own terms."""
    assert asked(**fields).model_dump(include=set(handled)) == Generate(
        request_id="r", model="m", **handled
    ).model_dump(include=set(handled))


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"top_k": 40}, "top_k", 40),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"repeat_penalty": 1.1}, "repeat_penalty", 1.1),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"presence_penalty": 2}, "presence_penalty", 2.0),
        ({"logit_bias": {"5": -100, "7": 0.5}}, "logit_bias", {5: -100.0, 7: 0.5}),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"seed": 5}, "seed", 5),
        ({"seed": -1}, "seed", 2**32 - 2),  # any 64-bit integer folds into 32 bits, always the same way
        ({"seed": 2**63 - 1}, "seed", (2**63 - 1) % (2**32 - 1)),
    ],
)
def test_sampling_is_what_was_asked_for(fields: dict[str, Any], name: str, value: object):
    """The same on both endpoints; what is left out changes nothing."""
    assert getattr(asked(**fields).sampling, name) == value
    assert getattr(completion(**fields).sampling, name) == value


@pytest.mark.parametrize(
    "field",
    [
        {"metadata": {"a": "b"}},
        {"store": True},
        {"user": "u"},
        {"service_tier": "auto"},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
        {"prediction": {"type": "content", "content": "x"}},
    ],
)
def test_harmless_fields_are_kept(field: dict[str, object]):
    """They cannot change the answer, so they are accepted, and kept with the turn."""
    assert chat(**field).kept() == field
    assert chat(**dict.fromkeys(field)).kept() == {}


@pytest.mark.parametrize(
    "field", [{"modalities": ["text"]}, {"verbosity": "medium"}, {"audio": None}, {"web_search_options": None}]
)
def test_options_that_ask_for_nothing_are_accepted(field: dict[str, object]):
    """SDKs send defaults; a default of an option that we lack is no reason to refuse."""
    assert asked(**field) == asked()


@pytest.mark.parametrize(
    "field",
    [
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"web_search_options": {}},
        {"moderation": {"model": "x"}},
        {"verbosity": "low"},
        {"temprature": 0.1},
        {"best_of": 2},
    ],
)
def test_options_that_would_change_the_answer_are_refused_by_name(field: dict[str, object]):
    """Never accepted and ignored."""
    with pytest.raises(UnsupportedOption) as refusal:
        asked(**field)
    assert refusal.value.param == next(iter(field))
    assert next(iter(field)) in str(refusal.value)


@pytest.mark.parametrize(
    "field",
    [
        {"model": None},
        {"model": 1},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]}]},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"temperature": "0.5"},
        {"temperature": True},
        {"top_p": 0},
        {"top_k": 1.5},
        {"min_p": -0.1},
        {"repeat_penalty": 0},
        {"frequency_penalty": 3},
        {"presence_penalty": "x"},
        {"seed": 2**63},
        {"seed": 1.5},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"5": 101}},
        {"logit_bias": [5]},
        {"ignore_eos": 1},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 10**40},
        {"max_tokens": True},
        {"max_completion_tokens": 0},
        {"n": 0},
        {"n": 17},
        {"n": True},
        {"stop": ["a"] * 5},
        {"stop": 1},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"logprobs": 1},
        {"top_logprobs": 21},
        {"tools": {}},
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "any"},
        {"parallel_tool_calls": "no"},
        {"functions": [{}]},
        {"function_call": 1},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": "json"},
        {"reasoning_effort": "extreme"},
        {"chat_template_kwargs": {"tools": []}},
        {"metadata": {"a": 1}},
        {"metadata": {str(n): "x" for n in range(17)}},
        {"store": "no"},
        {"user": 1},
        {"service_tier": "gold"},
        {"prompt_cache_key": 1},
        {"prediction": {"content": "x"}},
        {"rag": {"topk": 3}},
        {"rag": "yes"},
    ],
)
def test_bad_values_are_invalid(field: dict[str, object]):
    """Of a wrong type, out of range, of an unknown kind, or without the field that they need: the field is named."""
    with pytest.raises(ValidationError) as refusal:
        chat(**field)
    problem = refusal.value.errors()[0]
    param = refused(problem | {"loc": ("body", *problem["loc"])}).param
    assert param
    assert param.startswith(next(iter(field)))


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [TOOL], "functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_options_that_do_not_go_together_are_refused(field: dict[str, object], param: str):
    """With the field that is wrong."""
    with pytest.raises(InvalidRequest) as refusal:
        asked(**field)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("fields", "handled"),
    [
        ({}, {"prompt": "x", "max_tokens": 16, "n": 1, "logprobs": None}),
        ({"prompt": ["y"], "max_tokens": 3}, {"prompt": "y", "max_tokens": 3}),
        ({"logprobs": 5}, {"logprobs": 5}),
        ({"n": 2, "best_of": 4}, {"n": 4, "logprobs": 0}),  # to know the best, log-probabilities are needed
        ({"n": 2, "best_of": 2}, {"n": 2, "logprobs": None}),
        ({"echo": False, "suffix": ""}, {"prompt": "x"}),
    ],
)
def test_an_option_of_completions_reaches_the_engine(fields: dict[str, Any], handled: dict[str, Any]):
    """16 tokens are OpenAI's default here."""
    assert completion(**fields).model_dump(include=set(handled)) == handled


def test_every_prompt_is_a_request_of_its_own():
    """With an id of its own, and all else alike: each is a turn."""
    request = CompletionRequest(model="m", prompt=["a", "b"], n=2)
    first, second = request.generates("r", "t", "m")
    assert (first.prompt, second.prompt, first.request_id, second.request_id) == ("a", "b", "r", "r-1")
    assert second == first.model_copy(update={"prompt": "b", "request_id": "r-1"})


@pytest.mark.parametrize("prompt", [[], 5, ["a", 1], None, [[1.5]]])
def test_a_prompt_is_text(prompt: object):
    """Or a list of texts that is not empty."""
    with pytest.raises(ValidationError):
        completion(prompt=prompt)


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 15}, "prompt"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"messages": []}, "messages"),
        ({"tools": [TOOL]}, "tools"),
        ({"rag": True}, "rag"),
    ],
)
def test_completions_refuse_by_name(field: dict[str, object], param: str):
    """Token ids of a foreign tokenizer, and what belongs to chats."""
    with pytest.raises(InvalidRequest) as refusal:
        completion(**field)
    assert refusal.value.param == param


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
NAMED = {"type": "function", "function": {"name": "f"}}
FULL: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [CALL], "function_call": CALL["function"]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        {"role": "function", "name": "f", "content": "4"},
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 1,
    "logit_bias": {"5": 1},
    "seed": 1,
    "stop": ["a"],
    "max_tokens": 5,
    "n": 2,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
    "functions": None,
    "function_call": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "logprobs": True,
    "top_logprobs": 3,
    "reasoning_effort": "low",
    "metadata": {"a": "b"},
    "rag": {"top_k": 3, "collections": ["a"]},
    "prompt": ["x"],
    "echo": True,
    "best_of": 3,
    "verbosity": None,
}
"""A request with something in every place."""

WORDS = st.sampled_from(["user", "assistant", "tool", "text", "image_url", "auto", "none", "required", "f", "c", "5"])
KEYS = st.sampled_from(["role", "content", "type", "name", "id", "schema", "parameters", "top_k", "mode", "5"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # bodies with those are no JSON
    | st.text(max_size=4)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=8,
)


def full(kind: type[ChatRequest | CompletionRequest]) -> dict[str, Any]:
    """A copy of the fields that an endpoint has."""
    mine = {name: value for name, value in FULL.items() if name in {*kind.model_fields, "verbosity"}}
    if kind is CompletionRequest:
        mine |= {"stream": False, "stream_options": None, "logprobs": None}
    copy: dict[str, Any] = json.loads(json.dumps(mine))
    return copy


@st.composite
def broken(draw: st.DrawFn, kind: type[ChatRequest | CompletionRequest]) -> dict[str, Any]:
    """The full request with some of its values replaced or taken away, at any depth."""
    request = full(kind)
    for _ in range(draw(st.integers(0, 4))):
        place: Any = request
        while True:
            step = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[step], dict | list) or not place[step] or draw(st.booleans()):
                break
            place = place[step]
        if isinstance(place, dict) and draw(st.booleans()):
            del place[step]
        else:
            place[step] = draw(VALUES)
        if not request:
            break
    return request


def outcome(kind: type[ChatRequest | CompletionRequest], request: dict[str, Any]) -> Generate | MindFuError:
    """What the route makes of a request."""
    try:
        asked = kind.model_validate(request)
        return asked.generate("r", "t", "m") if isinstance(asked, ChatRequest) else asked.generates("r", "t", "m")[-1]
    except ValidationError as exc:
        problem = exc.errors()[0]
        return refused(dict(problem) | {"loc": ("body", *problem["loc"])})
    except MindFuError as exc:
        return exc


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_all_of_it_at_once_is_translated(kind: type[ChatRequest | CompletionRequest]):
    """No two fields get into each other's way."""
    assert isinstance(outcome(kind, full(kind)), Generate)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_json_breaks_the_translator(kind: type[ChatRequest | CompletionRequest], data: st.DataObject):
    """Whatever comes, it is translated, or refused with a typed 4xx that names a field."""
    made = outcome(kind, data.draw(broken(kind)))
    if isinstance(made, MindFuError):
        assert made.status < 500
        assert made.param
        assert str(made)
    else:
        assert Generate.model_validate_json(made.model_dump_json()) == made
