"""The Responses API of a running server, through OpenAI's own client."""

from typing import Any

import openai
import pytest

from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration

ASK: dict[str, Any] = {"model": "mindfu-demo", "temperature": 0, "max_output_tokens": 24, "extra_body": {"rag": False}}


def test_a_response_is_made_streamed_continued_and_deleted(server: Server):
    """Greedy text is the same whole and streamed; the next response knows it; what is deleted is gone."""
    with server.openai() as client:
        made = client.responses.create(input="What is Ray?", **ASK)
        with client.responses.stream(input="What is Ray?", **ASK) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == made.output_text
        assert client.responses.retrieve(made.id).output_text == made.output_text

        second = client.responses.create(input="And what is Serve?", previous_response_id=made.id, **ASK)
        said = [item.content[0].text for item in client.responses.input_items.list(second.id, order="asc")]
        assert said == ["What is Ray?", made.output_text, "And what is Serve?"]
        assert second.usage
        assert made.usage
        assert second.usage.input_tokens > made.usage.input_tokens
        assert second.conversation == made.conversation

        client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)


def test_the_tokens_of_a_prompt_are_those_that_the_answer_reports(server: Server):
    """By the model's own tokenizer."""
    with server.openai() as client:
        counted = client.responses.input_tokens.count(
            model="mindfu-demo", input="What is Ray?", instructions="Be brief."
        )
        made = client.responses.create(input="What is Ray?", instructions="Be brief.", **ASK)
    assert made.usage
    assert counted.input_tokens == made.usage.input_tokens


def test_a_tool_round_trip(server: Server):
    """The model must call, the client answers the call, the model goes on."""
    weather: Any = {
        "type": "function",
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    ask = ASK | {"max_output_tokens": 200, "tools": [weather]}
    with server.openai() as client:
        first = client.responses.create(input="What is the weather in Bern?", tool_choice="required", **ask)
        call = next(item for item in first.output if item.type == "function_call")
        assert (call.name, call.status) == ("get_weather", "completed")
        output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": '{"weather": "rain"}'}]
        second = client.responses.create(input=output, previous_response_id=first.id, tool_choice="none", **ask)
    assert second.output_text
    assert second.conversation == first.conversation
