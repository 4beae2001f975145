"""No call is too odd to be told: what models write as arguments, and what clients send back, breaks no answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.arguments import value_of
from app.llama.arrange import object_arguments
from app.llama.template import _call_as_template_sees
from app.messages import Delta, Done, End, Message, ToolCall, ToolCallDelta
from tests.fakes import DONE
from tests.server import Server

DEEP = '{"a":' * 2000 + "1" + "}" * 2000
ODD = ['{"ci', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', DEEP, '{"a": 1' + "0" * 5000 + "}", "[1]", "null", ""]
FUNCTION: Any = {"name": "f", "parameters": {"type": "object"}}


@pytest.mark.parametrize("arguments", ODD[:-3], ids=lambda text: text[:16])
def test_what_could_not_be_written_again_has_no_value(arguments: str):
    """Python's own parser takes some of these, and gives up on others in its own way."""
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds, all of them it
        value_of(arguments)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


@given(st.recursive(PLAIN, lambda some: st.lists(some) | st.dictionaries(TEXT, some)))
def test_a_value_is_read_as_it_was_written(value: Any):
    """By whatever JSON library."""
    assert value_of(json.dumps(value)) == value_of(json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.parametrize("arguments", ODD, ids=lambda text: text[:16])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"tools": [{"type": "function", "function": FUNCTION}]}),
        ("/v1/messages", {"max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_odd_call_of_a_model_is_told(path: str, body: dict[str, Any], arguments: str, *, stream: bool):
    """Whole and streamed; the client sees what the model wrote."""
    call = Delta("", 1, tool_calls=(ToolCallDelta(0, arguments, id="c", name="f"),))
    server = Server(call, Done((End("tool_calls"),), DONE.usage, DONE.timings))
    answer = await server.post(path, model="m", messages=[{"role": "user", "content": "hi"}], stream=stream, **body)
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text.split("data: ")[-1][:10]
    assert len(server.recorder.turns) == 1


@pytest.mark.parametrize("arguments", ODD, ids=lambda text: text[:16])
def test_an_odd_call_that_a_client_sends_back_is_shown_to_the_model(arguments: str):
    """As text, where it is no object."""
    call = ToolCall(id="c", name="f", arguments=arguments)
    assert _call_as_template_sees(call, str)["function"]["name"] == "f"
    (message,) = object_arguments([Message(role="assistant", tool_calls=(call,))])
    assert isinstance(json.loads(message.tool_calls[0].arguments), dict)
