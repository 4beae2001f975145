"""The OpenAI dialect: what is taken, what is recorded, what is refused, and how answers look."""

import base64

import numpy as np
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError

from app.answer import Choice
from app.dialects import openai
from app.errors import InvalidRequest, Overloaded, Unauthorized, UnsupportedOption
from app.messages import Delta, Done, End, Message, Passage, Timings, ToolCall, Usage

BASE = "http://localhost/"
USER = {"role": "user", "content": "hi"}
DONE = Done((End("stop"),), Usage(prompt_tokens=7, completion_tokens=2), Timings(queued_s=0, prefill_s=0, decode_s=0))
SOURCE = Passage(document_id="doc_1", collection="c", title="a.pdf", chunk=3, text="x", score=0.8, start=0, end=1)


def chat(**fields: object) -> openai.ChatRequest:
    return openai.ChatRequest.model_validate({"model": "m", "messages": [USER], **fields})


def test_a_chat_becomes_our_message_type():
    """Roles, parts, absent content, earlier tool calls with a stray index: all arrive as plain messages."""
    call = {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
    request = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42", "name": "f"},
        ],
        max_tokens=5,
        max_completion_tokens=9,
        stop="END",
        temperature=0,
    )
    generate = request.generate("r", "t", "served")
    assert generate.messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="ab"),
        Message(role="assistant", tool_calls=(ToolCall(id="c1", name="f", arguments="{}"),)),
        Message(role="tool", content="42", name="f", tool_call_id="c1"),
    )
    assert (generate.max_tokens, generate.stop, generate.model) == (9, ("END",), "served")
    assert generate.sampling.temperature == 0


@pytest.mark.parametrize(
    "field",
    [
        {"metadata": {"a": "b"}},
        {"store": True},
        {"user": "u"},
        {"service_tier": "auto"},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
    ],
)
def test_harmless_fields_are_recorded(field: dict[str, object]):
    """They cannot change the answer, so they are accepted, and kept with the turn."""
    assert chat(**field).recorded() == field


@pytest.mark.parametrize(
    "field",
    [
        {"n": 1},
        {"tools": []},
        {"tools": None},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"logit_bias": {}},
        {"modalities": ["text"]},
    ],
)
def test_options_that_ask_for_nothing_are_accepted(field: dict[str, object]):
    """SDKs send defaults; a default of an option that we lack is no reason to refuse."""
    assert chat(**field).recorded() == {}


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"logprobs": 0},
        {"logit_bias": {"5": 1}},
        {"reasoning_effort": "high"},
        {"temprature": 0.1},
    ],
)
def test_options_that_would_change_the_answer_are_refused_by_name(field: dict[str, object]):
    """Never accepted and ignored."""
    with pytest.raises(UnsupportedOption) as refusal:
        chat(**field).recorded()
    assert refusal.value.param == next(iter(field))
    assert next(iter(field)) in str(refusal.value)


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"max_tokens": 0},
        {"stop": ["a"] * 5},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
        {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"stream_options": {"include_usage": True}},
        {"rag": {"topk": 3}},
    ],
)
def test_bad_values_are_invalid(field: dict[str, object]):
    """Out of range, of an unknown kind, or without the field that they need."""
    with pytest.raises(ValidationError):
        chat(**field)


def test_an_empty_stop_string_is_refused():
    """It would end every answer before it began."""
    with pytest.raises(InvalidRequest):
        chat(stop=[""]).stops()


def test_any_seed_is_taken():
    """OpenAI allows any 64-bit integer; ours fold into 32 bits, always the same way."""
    assert chat(seed=-1).sampling().seed == 2**32 - 2
    assert chat(seed=5).sampling().seed == 5


def test_answers_parse_as_the_sdk_s_own_types():
    """Whole and chunk, with one id and one `created`; citations point at the sources."""
    request = chat(stream=True, stream_options={"include_usage": True})
    render = openai.ChatRenderer(request, request.generate("r1", "t", "m"), [SOURCE], BASE)
    whole = ChatCompletion.model_validate(render.whole([Choice('"x" [1] [9]')], DONE), strict=True)
    assert whole.choices[0].message.content == '"x" [1] [9]'
    assert whole.usage
    assert whole.usage.total_tokens == 9
    rendered = [
        *render.opening(),
        *render.piece(Delta("x", 1)),
        *render.closing([Choice("x [1]")], DONE),
    ]
    chunks = [ChatCompletionChunk.model_validate(event.data, strict=True) for event in rendered[:-1]]
    assert {(chunk.id, chunk.created) for chunk in chunks} == {(whole.id, whole.created)}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage
    assert chunks[-1].choices == []


def test_citations_are_annotations_of_known_sources_only():
    """[1] is the first source; [2] and [0] are nobody's."""
    assert openai.annotations("a [1] b [2] [0]", [SOURCE], BASE) == [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": 2,
                "end_index": 5,
                "title": "a.pdf",
                "url": "http://localhost/v1/documents/doc_1",
            },
        }
    ]


def test_the_last_chunk_tells_the_sources_even_when_there_are_none():
    """`sources: []` says that the answer came without context."""
    render = openai.ChatRenderer(chat(), chat().generate("r", "t", "m"))
    assert next(iter(render.closing([Choice("x")], DONE))).data["sources"] == []


def test_completions_parse_as_the_sdk_s_own_type():
    """The older endpoint's whole and chunks have the same form."""
    request = openai.CompletionRequest(model="m", prompt="x")
    render = openai.CompletionRenderer(request, request.generate("r", "t", "m"))
    assert Completion.model_validate(render.whole([Choice("abc")], DONE), strict=True).choices[0].text == "abc"
    (piece,) = (event.data for event in render.piece(Delta("a", 1)))
    assert (piece["object"], piece["choices"][0]["text"]) == ("text_completion", "a")


def test_embeddings_come_as_floats_or_base64():
    """Both hold the same numbers, little-endian 32-bit in base64."""
    vectors = np.array([[0.5, -1.0]], dtype=np.float32)
    floats = openai.embeddings(vectors, "m", 3, "float")
    assert CreateEmbeddingResponse.model_validate(floats, strict=True).data[0].embedding == [0.5, -1.0]
    encoded = openai.embeddings(vectors, "m", 3, "base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == [0.5, -1.0]


@pytest.mark.parametrize(("field", "param"), [({"input": [1, 2]}, "input"), ({"dimensions": 256}, "dimensions")])
def test_embeddings_refuse_what_the_model_cannot(field: dict[str, object], param: str):
    """Token ids of another tokenizer, and other dimensions, with the reason."""
    request = openai.EmbeddingRequest.model_validate({"model": "m", "input": "x", **field})
    with pytest.raises(UnsupportedOption) as refusal:
        request.texts("m", 384)
    assert refusal.value.param == param


def test_errors_have_all_four_keys():
    """Clients read message, type, param and code."""
    assert openai.error(Overloaded(8, 8, 1.0))["error"]["type"] == "rate_limit_error"
    assert openai.error(Unauthorized())["error"] == {
        "message": str(Unauthorized()),
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
