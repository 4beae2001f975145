"""Chat completions: every object is what OpenAI publishes, parses strictly, and says what the model said."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic_core import to_json

from app.answer import Choice, gather
from app.dialects.events import Event
from app.dialects.openai_chat import LEAST_LOGPROB, PADDED_TO, ChatRenderer
from app.dialects.openai_requests import ChatRequest
from app.errors import EngineFailed
from app.messages import (
    Alternative,
    Delta,
    Done,
    End,
    Passage,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.openai_schema import validate

USAGE = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=4, reasoning_tokens=2)
SOURCE = Passage(document_id="doc_1", collection="c", title="a.pdf", chunk=3, text="x", score=0.8, start=0, end=1)
CALL = ToolCallDelta(0, '{"a"', id="c0", name="f")


def done(*reasons: Any) -> Done:
    return Done(tuple(End(reason) for reason in reasons), USAGE, Timings(queued_s=0, prefill_s=0, decode_s=0))


def renderer(*sources: Passage, **fields: object) -> ChatRenderer:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    request = ChatRequest.model_validate(asked | fields)
    generate = request.generate("r1", "t", "m")
    return ChatRenderer(request, generate, fingerprint="fp_1", sources=sources, base_url="http://localhost/")


def whole(render: ChatRenderer, deltas: list[Delta], end: Done) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(to_json(render.whole(gather(deltas, len(end.ends)), end)))
    validate("CreateChatCompletionResponse", body)
    ChatCompletion.model_validate(body, strict=True)
    return body


def streamed(render: ChatRenderer, deltas: list[Delta], end: Done) -> list[dict[str, Any]]:
    events = [*render.opening()]
    for delta in deltas:
        events += render.piece(delta)
    events += render.closing(gather(deltas, len(end.ends)), end)
    assert events.pop() == Event("[DONE]")
    chunks: list[dict[str, Any]] = [json.loads(to_json(event.data)) for event in events]
    for chunk in chunks:
        validate("CreateChatCompletionStreamResponse", chunk)
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    return chunks


def test_a_whole_answer_says_everything_about_itself():
    """Text, citations, sources, usage with its details, and what answered."""
    body = whole(renderer(SOURCE), [Delta('"x" [1]', 4, reasoning="hm")], done("stop"))
    (choice,) = body["choices"]
    assert choice["message"]["content"] == '"x" [1]'
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["message"]["annotations"][0]["url_citation"]["url"] == "http://localhost/v1/documents/doc_1"
    assert (choice["finish_reason"], choice["logprobs"], body["sources"][0]["document_id"]) == ("stop", None, "doc_1")
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert (body["id"], body["object"], body["system_fingerprint"]) == ("chatcmpl-r1", "chat.completion", "fp_1")


def test_a_stream_is_the_role_the_pieces_and_the_end():
    """Reasoning apart from text; the sources with the last piece, also when there are none."""
    chunks = streamed(renderer(), [Delta("", 1, reasoning="hm"), Delta("Hel", 1), Delta("lo", 1)], done("length"))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "hm"},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, None, "length"]
    assert [chunk.get("sources") for chunk in chunks] == [None, None, None, None, []]
    assert all("usage" not in chunk and "obfuscation" not in chunk for chunk in chunks)


def test_usage_comes_once_and_last_where_it_was_asked_for():
    """In a chunk without choices; the others say null."""
    *others, last = streamed(renderer(stream_options={"include_usage": True}), [Delta("x", 1)], done("stop"))
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 12)
    assert {chunk["usage"] for chunk in others} == {None}


def test_a_call_is_told_whole_with_arguments_as_text():
    """No text beside it is null, as with OpenAI."""
    body = whole(renderer(), [Delta("", 1, tool_calls=(CALL, ToolCallDelta(0, ": 1}")))], done("tool_calls"))
    (choice,) = body["choices"]
    call = {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert (choice["message"]["tool_calls"], choice["message"]["content"]) == ([call], None)
    assert choice["finish_reason"] == "tool_calls"


def test_a_call_is_streamed_in_pieces():
    """Id, type and name with the first one only, the arguments as they come; clients concatenate."""
    other = ToolCallDelta(1, "", id="c1", name="g")
    deltas = [Delta("", 1, tool_calls=(CALL,)), Delta("", 2, tool_calls=(ToolCallDelta(0, ": 1}"), other))]
    _, first, second, last = streamed(renderer(), deltas, done("tool_calls"))
    assert first["choices"][0]["delta"] == {
        "tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}]
    }
    assert second["choices"][0]["delta"]["tool_calls"] == [
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_who_asks_in_the_older_form_is_answered_in_it():
    """`functions` in, `function_call` out, whole and streamed."""
    deltas = [Delta("", 1, tool_calls=(CALL,)), Delta("", 1, tool_calls=(ToolCallDelta(0, ": 1}"),))]
    body = whole(renderer(functions=[{"name": "f"}]), deltas, done("tool_calls"))
    assert body["choices"][0]["message"]["function_call"] == {"name": "f", "arguments": '{"a": 1}'}
    assert "tool_calls" not in body["choices"][0]["message"]
    assert body["choices"][0]["finish_reason"] == "function_call"
    _, first, second, last = streamed(renderer(functions=[{"name": "f"}]), deltas, done("tool_calls"))
    assert first["choices"][0]["delta"] == {"function_call": {"name": "f", "arguments": '{"a"'}}
    assert second["choices"][0]["delta"] == {"function_call": {"arguments": ": 1}"}}
    assert last["choices"][0]["finish_reason"] == "function_call"


def test_several_answers_are_told_apart_by_their_index():
    """Each with its own role, end and citations; the sources once, with the last end."""
    deltas = [Delta("b [1]", 1, 1), Delta("a", 1, 0)]
    body = whole(renderer(n=2), deltas, done("stop", "length"))
    assert [choice["message"]["content"] for choice in body["choices"]] == ["a", "b [1]"]
    chunks = streamed(renderer(SOURCE, n=2), deltas, done("stop", "length"))
    told = [(chunk["choices"][0]["index"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]
    assert told == [(0, None), (1, None), (1, None), (0, None), (0, "stop"), (1, "length")]
    assert [len(chunk["choices"][0]["delta"]["annotations"]) for chunk in chunks[-2:]] == [0, 1]
    assert ["sources" in chunk for chunk in chunks[-2:]] == [False, True]


def test_logprobs_come_with_their_tokens():
    """With the bytes, and the likeliest others; what is impossible is a number all the same."""
    euro = Alternative("�", b"\xe2", float("-inf"))
    deltas = [Delta("", 1, logprobs=(TokenLogprob(euro, (Alternative("a", b"a", -0.5),)),)), Delta("€", 1)]
    told = {
        "token": "�",
        "logprob": LEAST_LOGPROB,
        "bytes": [0xE2],
        "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
    }
    asked = {"logprobs": True, "top_logprobs": 1}
    assert whole(renderer(**asked), deltas, done("stop"))["choices"][0]["logprobs"] == {
        "content": [told],
        "refusal": None,
    }
    _, first, second, _ = streamed(renderer(**asked), deltas, done("stop"))
    assert first["choices"][0]["logprobs"]["content"] == [told]
    assert second["choices"][0]["logprobs"] is None


def test_sizes_of_chunks_tell_nothing_where_that_is_asked_for():
    """Every chunk of the answer is padded to a multiple of 64 bytes."""
    render = renderer(stream_options={"include_obfuscation": True})
    for event in (*render.opening(), *render.piece(Delta("secret", 1)), *render.piece(Delta("s", 1))):
        assert len(to_json(event.data)) % PADDED_TO == 0


def test_a_service_tier_is_answered_with_the_one_that_there_is():
    """Whatever was asked for."""
    assert whole(renderer(service_tier="flex"), [], done("stop"))["service_tier"] == "default"


def test_a_piece_that_shows_nothing_is_no_chunk():
    """Such as one that holds back half a character."""
    assert list(renderer().piece(Delta("", 1))) == []


def test_a_late_failure_is_an_error_object_and_no_end():
    """Clients that wait for [DONE] know that the answer is not whole."""
    (event,) = renderer().error(EngineFailed("it broke"))
    validate("ErrorResponse", event.data)
    assert event.framed().startswith(b'data: {"error":')


pieces = st.lists(
    st.builds(
        Delta,
        text=st.text(max_size=4),
        tokens=st.just(1),
        reasoning=st.text(max_size=4),
        tool_calls=st.lists(
            st.builds(ToolCallDelta, index=st.integers(0, 2), arguments=st.text(max_size=4)), max_size=2
        ).map(tuple),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(pieces)
def test_a_stream_adds_up_to_the_whole(deltas: list[Delta]):
    """The official client's own accumulator finds what the engine said, however it was cut."""
    begun = [ToolCallDelta(index, "", id=f"c{index}", name="f") for index in range(3)]
    deltas = [Delta("", 1, tool_calls=tuple(begun)), *deltas]
    state = ChatCompletionStreamState()
    for chunk in streamed(renderer(), deltas, done("tool_calls")):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    message = state.get_final_completion().choices[0].message
    (choice,) = gather(deltas)
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
    )
    reasoning = (message.model_extra or {}).get("reasoning_content", "")
    assert Choice(message.content or "", reasoning, calls) == choice
