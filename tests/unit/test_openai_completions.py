"""OpenAI's older completions: every object is what OpenAI publishes, and says what the model said."""

import json
from typing import Any

from openai.types import Completion
from pydantic_core import to_json

from app.answer import gather
from app.dialects.events import Event
from app.dialects.openai_completions import CompletionRenderer
from app.dialects.openai_requests import CompletionRequest
from app.messages import Alternative, Delta, Done, End, Timings, TokenLogprob, Usage
from tests.openai_schema import validate


def done(*reasons: Any) -> Done:
    usage = Usage(prompt_tokens=7, completion_tokens=5)
    return Done(tuple(End(reason) for reason in reasons), usage, Timings(queued_s=0, prefill_s=0, decode_s=0))


def token(text: str, logprob: float, *others: str) -> TokenLogprob:
    top = tuple(Alternative(other, other.encode(), -1.0) for other in others)
    return TokenLogprob(Alternative(text, text.encode(), logprob), top)


def renderer(**fields: object) -> CompletionRenderer:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "Say: "} | fields)
    return CompletionRenderer(request, request.generates("r1", "t", "m"), fingerprint="fp_1")


def whole(render: CompletionRenderer, deltas: list[Delta], end: Done) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(to_json(render.whole(gather(deltas, len(end.ends)), end)))
    validate("CreateCompletionResponse", body)
    Completion.model_validate(body, strict=True)
    return body


def streamed(render: CompletionRenderer, deltas: list[Delta], end: Done) -> list[dict[str, Any]]:
    events = [*render.opening()]
    for delta in deltas:
        events += render.piece(delta)
    events += render.closing(gather(deltas, len(end.ends)), end)
    assert events.pop() == Event("[DONE]")
    chunks: list[dict[str, Any]] = [json.loads(to_json(event.data)) for event in events]
    for chunk in chunks:  # OpenAI publishes no schema of chunks, and sends null until the end: the rest is the whole's
        choices = [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        validate("CreateCompletionResponse", {k: v for k, v in chunk.items() if v is not None} | {"choices": choices})
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    return chunks


def test_a_whole_text():
    """With what answered, why it ended and what it cost."""
    body = whole(renderer(), [Delta("Hel", 1), Delta("lo", 1)], done("stop"))
    assert body["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    assert (body["id"], body["object"], body["usage"]["total_tokens"]) == ("cmpl-r1", "text_completion", 12)


def test_chunks_look_like_the_whole():
    """The last one has the reason; usage where it was asked for."""
    render = renderer(stream=True, stream_options={"include_usage": True})
    *chunks, usage = streamed(render, [Delta("Hel", 1), Delta("lo", 1)], done("length"))
    told = [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]
    assert told == [("Hel", None), ("lo", None), ("", "length")]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 12)


def test_the_prompt_is_echoed_before_each_text():
    """Once, whole and streamed."""
    deltas, end = [Delta("a", 1, 0), Delta("b", 1, 1)], done("stop", "stop")
    assert [choice["text"] for choice in whole(renderer(echo=True, n=2), deltas, end)["choices"]] == [
        "Say: a",
        "Say: b",
    ]
    chunks = streamed(renderer(echo=True, n=2, stream=True), deltas, end)
    texts = dict.fromkeys((0, 1), "")
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "Say: a", 1: "Say: b"}


def test_logprobs_have_completions_own_form():
    """Offsets count characters of the text; the token that came is among the likeliest, though it was none."""
    deltas = [
        Delta("né", 2, logprobs=(token("n", -1.0, "n"), token("é", -2.0, "e"))),
        Delta("!", 1, logprobs=(token("!", -1.0, "!"),)),
    ]
    body = whole(renderer(logprobs=1), deltas, done("stop"))
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["n", "é", "!"],
        "token_logprobs": [-1.0, -2.0, -1.0],
        "top_logprobs": [{"n": -1.0}, {"é": -2.0, "e": -1.0}, {"!": -1.0}],
        "text_offset": [0, 1, 2],
    }
    first, second, _ = streamed(renderer(logprobs=1, stream=True), deltas, done("stop"))
    assert first["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    assert second["choices"][0]["logprobs"]["text_offset"] == [2]


def test_a_character_of_several_tokens_has_one_offset():
    """It begins with its first byte."""
    parts = tuple(TokenLogprob(Alternative("�", bytes([byte]), -1.0), ()) for byte in "€".encode())
    told = whole(renderer(logprobs=0), [Delta("€x", 4, logprobs=(*parts, token("x", -1.0)))], done("stop"))
    assert told["choices"][0]["logprobs"]["text_offset"] == [0, 1, 1, 1]


def test_the_best_of_several_is_the_likeliest_per_token():
    """Not the shortest; and who did not ask for log-probabilities is told none."""
    deltas = [
        Delta("worst", 1, 0, logprobs=(token("worst", -3.0),)),
        Delta("best of all", 3, 1, logprobs=(token("best", -1.0), token(" of", -1.0), token(" all", -1.0))),
        Delta("good", 1, 2, logprobs=(token("good", -2.0),)),
    ]
    body = whole(renderer(n=2, best_of=3), deltas, done("stop", "length", "stop"))
    told = [(choice["index"], choice["text"], choice["finish_reason"]) for choice in body["choices"]]
    assert told == [(0, "best of all", "length"), (1, "good", "stop")]
    assert body["choices"][0]["logprobs"] is None


def test_several_prompts_are_answered_in_their_order():
    """Each with its own echo and its own best."""
    asked = {"prompt": ["1: ", "2: "], "n": 1, "best_of": 2, "echo": True}
    texts, likely = ["a", "b", "c", "d"], [-1.0, -2.0, -2.0, -1.0]
    deltas = [Delta(text, 1, n, logprobs=(token(text, likely[n]),)) for n, text in enumerate(texts)]
    body = whole(renderer(**asked), deltas, done("stop", "stop", "stop", "length"))
    told = [(choice["index"], choice["text"], choice["finish_reason"]) for choice in body["choices"]]
    assert told == [(0, "1: a", "stop"), (1, "2: d", "length")]
    chunks = streamed(renderer(**asked | {"best_of": None, "stream": True}), [Delta("x", 1, 1)], done("stop", "stop"))
    assert [(chunk["choices"][0]["index"], chunk["choices"][0]["text"]) for chunk in chunks] == [
        (0, "1: "), (1, "2: "), (1, "x"), (0, ""), (1, ""),
    ]  # fmt: skip
