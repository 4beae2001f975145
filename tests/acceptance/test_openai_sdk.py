"""OpenAI's endpoints of the running server: what comes is what OpenAI publishes, whatever was asked for."""

import json
import math
from typing import Any

import openai
import pytest

from tests.acceptance.conftest import Server
from tests.captures import Capture, captures
from tests.openai_schema import validate

pytestmark = pytest.mark.integration

MODEL = "mindfu-demo"
HI: Any = [{"role": "user", "content": "Say hello."}]
SHORT: Any = {"model": MODEL, "messages": HI, "max_tokens": 8, "temperature": 0, "extra_body": {"rag": False}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
        },
    },
}
FITTING = [capture for capture in captures("/v1/chat/completions") if len(json.dumps(capture.body)) < 2000]


def test_models_tell_their_window_and_what_they_can(server: Server):
    """The listed names are found one by one; the rest is a 404."""
    with server.http() as http:
        listed = http.get("/v1/models").json()
        validate("ListModelsResponse", listed)
        models = {model["id"]: model for model in listed["data"]}
        assert http.get(f"/v1/models/{MODEL}:base").json() == models[f"{MODEL}:base"]
        assert http.get("/v1/models/gpt-9").json()["error"]["code"] == "model_not_found"
    assert models[MODEL]["context_window"] == 2048
    assert models["all-MiniLM-L6-v2"]["capabilities"]["embeddings"]


def test_a_chat_streams_what_it_answers_whole(server: Server):
    """The same text, one id and one time for all chunks, usage at the end, and the same fingerprint."""
    with server.openai() as client:
        whole = client.chat.completions.create(**SHORT)
        chunks = list(client.chat.completions.create(**SHORT, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        validate("CreateChatCompletionStreamResponse", chunk.model_dump(exclude_unset=True))
    validate("CreateChatCompletionResponse", whole.model_dump(exclude_unset=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_several_answers_come_by_index(server: Server):
    """Whole and streamed, each with its own end."""
    with server.openai() as client:
        whole = client.chat.completions.create(**SHORT, n=3)
        chunks = list(client.chat.completions.create(**SHORT, n=3, stream=True))
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == 1, "greedy"
    ended = {chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason}
    assert ended == {0, 1, 2}


def test_several_prompts_are_continued_by_index(server: Server):
    """With the prompt before each, and log-probabilities in the form of completions."""
    asked: Any = {"model": MODEL, "prompt": ["One two", "The"], "max_tokens": 4, "temperature": 0}
    with server.openai() as client:
        echoed = client.completions.create(**asked, echo=True)
        likely = client.completions.create(**asked, logprobs=2)
    assert [choice.text.startswith(prompt) for choice, prompt in zip(echoed.choices, asked["prompt"], strict=True)] == [
        True,
        True,
    ]
    told = likely.choices[0].logprobs
    assert told
    assert told.tokens
    assert "".join(told.tokens) == likely.choices[0].text
    assert told.text_offset
    assert told.text_offset[1] == len(told.tokens[0])


def test_logprobs_are_those_of_the_tokens_that_came(server: Server):
    """Greedy takes the likeliest; probabilities are such."""
    with server.openai() as client:
        answer = client.chat.completions.create(**SHORT, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    validate("CreateChatCompletionResponse", answer.model_dump(exclude_unset=True))
    assert choice.logprobs
    assert choice.logprobs.content
    for token in choice.logprobs.content:
        assert token.token == token.top_logprobs[0].token
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.001
    assert "".join(token.token for token in choice.logprobs.content).startswith(choice.message.content or "")


def test_a_tool_that_must_be_called_is_called_and_its_result_is_read(server: Server):
    """A whole round trip in one conversation, by the official client; the arguments are the schema's."""
    with server.openai() as client:
        asking = client.chat.completions.with_raw_response.create(
            **SHORT | {"max_tokens": 200}, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
        )
        message: Any = asking.parse().choices[0].message
        (call,) = message.tool_calls
        assert asking.parse().choices[0].finish_reason == "tool_calls"
        assert isinstance(json.loads(call.function.arguments)["city"], str)
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
        telling = client.chat.completions.with_raw_response.create(
            **SHORT | {"messages": [*HI, message, result], "max_tokens": 16}, tools=[WEATHER]
        )
    assert telling.headers["x-conversation-id"] == asking.headers["x-conversation-id"]


def test_an_answer_that_must_be_json_is(server: Server):
    """Of the schema that was sent, whatever the model would have liked to say."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    with server.openai() as client:
        answer = client.chat.completions.create(**SHORT | {"max_tokens": 100}, response_format=wanted)
    assert set(json.loads(answer.choices[0].message.content or "")) == {"name", "age"}


@pytest.mark.parametrize("capture", FITTING, ids=str)
def test_what_real_clients_send_is_answered(server: Server, capture: Capture):
    """Recorded requests that fit the demo model's window, on which clients set no limit."""
    with server.http() as http:
        answer = http.post(capture.path, json=capture.body | {"model": MODEL, "max_tokens": 64, "rag": False})
    assert answer.status_code == 200, answer.text
    assert "finish_reason" in answer.text


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"n": 17}, 400, "n"),
        ({"logit_bias": {"999999999": 1}}, 400, "logit_bias"),
        ({"stop": ""}, 400, "stop"),
        ({"max_tokens": 10**6}, 400, None),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, 400, "messages[0].tool_call_id"),
        ({"model": "gpt-9"}, 404, "model"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_first_byte(
    server: Server, fields: dict[str, Any], status: int, param: str | None
):
    """A stream too has a status of its own."""
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": MODEL, "messages": HI, "stream": True} | fields)
    validate("ErrorResponse", answer.json())
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert param is None or answer.json()["error"]["param"] == param


def test_the_server_answers_after_all_of_that(server: Server):
    """And healthily."""
    with server.http() as http:
        assert http.get("/health").json()["status"] == "ok"
    with server.openai() as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**SHORT, audio={"voice": "alloy", "format": "wav"})
