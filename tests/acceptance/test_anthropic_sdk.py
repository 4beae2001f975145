"""The anthropic SDK against a running MindFu."""

import anthropic
import pytest

from tests.acceptance.conftest import Server

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: anthropic.types.ToolParam = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}


@pytest.fixture
def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def test_an_answer_streamed_and_whole_is_the_same(client: anthropic.Anthropic):
    """Greedy, so that both are; the tokens counted are those that were read."""
    asked = {"model": "mindfu-demo", "max_tokens": 200_000, "messages": QUESTION, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert whole.content[0].text == streamed.content[0].text != ""
    counted = client.messages.count_tokens(model="mindfu-demo", messages=QUESTION).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_a_tool_is_called_and_its_result_read(client: anthropic.Anthropic):
    """A forced call has the arguments that its schema asks for; the result comes back in the next turn."""
    asked = {"model": "mindfu-demo", "max_tokens": 200, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    one = {"type": "any", "disable_parallel_tool_use": True}
    first = client.messages.create(**asked, messages=QUESTION, tool_choice=one)
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use"
    assert isinstance(call.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees and sunny"}
    turns = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(**asked, messages=turns, tool_choice={"type": "none"})
    assert second.stop_reason in {"end_turn", "max_tokens"}


def test_a_prompt_that_is_too_long_is_refused_in_anthropics_words(client: anthropic.Anthropic):
    """With both numbers, before the first byte."""
    turns = [{"role": "user", "content": "word " * 10_000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
        client.messages.create(model="mindfu-demo", max_tokens=10, messages=turns, stream=True)


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic):
    """A 404 in Anthropic's shape."""
    with pytest.raises(anthropic.NotFoundError, match="mindfu-demo"):
        client.messages.create(model="claude-none", max_tokens=10, messages=QUESTION)
