"""What OpenAI's clients send and expect: recorded requests, the official SDK, and input that nobody should send."""

import json
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from app.dialects.openai_requests import ChatRequest, CompletionRequest
from app.errors import ContextTooLong, EngineFailed, Overloaded, Unavailable
from app.messages import Delta, Done, End, JsonFormat, NamedTool, ToolCallDelta
from tests.captures import Capture, captures
from tests.fakes import DONE
from tests.openai_schema import validate
from tests.server import Server
from tests.unit.test_openai_requests import broken

HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = [
    Delta("", 1, tool_calls=(ToolCallDelta(0, "", id="call_1", name="weather"),)),
    Delta("", 2, tool_calls=(ToolCallDelta(0, '{"city": "Bern"}'),)),
]
CALLED = Done((End("tool_calls"),), DONE.usage, DONE.timings)


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.parametrize("capture", captures("/v1/chat/completions"), ids=str)
async def test_what_real_clients_send_is_answered(capture: Capture):
    """Every recorded request, whole or streamed as it asks, ends well and is what OpenAI publishes."""
    server = Server(Delta("Hello", 1), DONE)
    async with server.http() as http:
        answer = await http.post(capture.path, json=capture.body, headers=capture.headers)
    assert answer.status_code == 200, answer.text
    assert len(server.asked[0].tools) == len(capture.body.get("tools", ()))
    if capture.body.get("stream"):
        *chunks, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert done == "[DONE]"
        for chunk in chunks:
            validate("CreateChatCompletionStreamResponse", json.loads(chunk))
    else:
        validate("CreateChatCompletionResponse", answer.json())


async def test_the_official_client_gets_text_whole_and_streamed():
    """With its own strict parser."""
    server = Server(Delta("Hel", 1), Delta("lo", 1), DONE)
    async with server.openai() as client:
        whole = await client.chat.completions.create(model="m", messages=HI)
        async with client.chat.completions.stream(
            model="m", messages=HI, stream_options={"include_usage": True}
        ) as stream:
            streamed = await stream.get_final_completion()
    for answer in (whole, streamed):
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello", "stop")
        assert answer.usage
        assert answer.usage.total_tokens == 9


async def test_the_official_client_gets_a_call_and_sends_its_result():
    """A round trip as its documentation shows it, with the message that came going back as it is."""
    server = Server(*CALL, CALLED)
    async with server.openai() as client:
        asked = await client.chat.completions.create(
            model="m", messages=HI, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}
        )
        (call,) = asked.choices[0].message.tool_calls or ()
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        message: Any = asked.choices[0].message
        await client.chat.completions.create(model="m", messages=[*HI, message, result], tools=[WEATHER])
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Bern"}')
    first, second = server.asked
    assert first.tool_choice == NamedTool(name="weather")
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[1].tool_calls[0].arguments == '{"city": "Bern"}'
    assert second.messages[2].tool_call_id == call.id


async def test_the_official_client_streams_a_call():
    """Its helper tells the arguments while they come."""
    server = Server(*CALL, CALLED)
    async with (
        server.openai() as client,
        client.chat.completions.stream(model="m", messages=HI, tools=[WEATHER]) as stream,
    ):
        told = [event.arguments async for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = await stream.get_final_completion()
    assert told[-1] == '{"city": "Bern"}'
    assert final.choices[0].finish_reason == "tool_calls"


async def test_the_official_client_parses_an_answer_into_a_class():
    """The class's schema reaches the engine."""
    server = Server(Delta('{"name": "Ada", "age": 36}', 9), DONE)
    async with server.openai() as client:
        answer = await client.chat.completions.parse(model="m", messages=HI, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    (request,) = server.asked
    assert isinstance(request.response_format, JsonFormat)
    assert request.response_format.json_schema
    assert request.response_format.json_schema["required"] == ["name", "age"]


async def test_the_official_client_completes_a_text():
    """The older endpoint, whole and streamed."""
    server = Server(Delta("Hel", 1), Delta("lo", 1), DONE)
    async with server.openai() as client:
        whole = await client.completions.create(model="m", prompt="Say", echo=True)
        assert whole.choices[0].text == "SayHello"
    async with server.http() as http:  # the official client's strict parser refuses the null that OpenAI itself sends
        body = {"model": "m", "prompt": "Say", "stream": True}
        assert (await http.post("/v1/completions", json=body)).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ContextTooLong(9, 1, 5), openai.BadRequestError),
        (Overloaded(8, 8, 1.0), openai.RateLimitError),
        (Unavailable("language model", "it restarts"), openai.InternalServerError),
        (EngineFailed("it broke"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_official_client_raises_the_right_error(failure: Exception, kind: type[Exception], *, stream: bool):
    """Before the first byte there is a status, for streams too."""
    async with Server(failure).openai() as client:
        with pytest.raises(kind) as raised:
            await client.chat.completions.create(model="m", messages=HI, stream=stream)
    validate("ErrorResponse", {"error": raised.value.body})


async def test_the_official_client_raises_a_late_failure():
    """An error event in mid-stream is no end."""
    async with Server(Delta("Hel", 1), EngineFailed("it broke")).openai() as client:
        with pytest.raises(openai.APIError, match="it broke"):
            _ = [chunk async for chunk in await client.chat.completions.create(model="m", messages=HI, stream=True)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": None}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"n": 10**30}, "n"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"temprature": 1}, "temprature"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_bad_input_is_a_400_that_names_the_parameter(fields: dict[str, object], param: str, *, stream: bool):
    """Before any byte of a stream; nothing reaches the engine, and nothing is recorded."""
    server = Server(Delta("Hello", 1), DONE)
    answer = await server.post(**{"model": "m", "messages": HI, "stream": stream} | fields)
    assert answer.status_code == 400, answer.text
    validate("ErrorResponse", answer.json())
    assert answer.json()["error"]["param"] == param
    assert (server.asked, server.recorder.turns) == ([], [])


@settings(max_examples=150, deadline=None)
@given(st.data())
async def test_no_body_is_a_5xx(data: st.DataObject):
    """Requests broken at any depth, and bytes that are hardly JSON: a 4xx in OpenAI's shape, or an answer."""
    path, kind = data.draw(
        st.sampled_from([("/v1/chat/completions", ChatRequest), ("/v1/completions", CompletionRequest)])
    )
    body = bytearray(json.dumps(data.draw(broken(kind))).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    server = Server(Delta("x", 1), DONE)
    async with server.http() as http:
        answer = await http.post(path, content=bytes(body), headers={"content-type": "application/json"})
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        validate("ErrorResponse", answer.json())
