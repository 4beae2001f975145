"""Bad input of every kind through the whole gateway: wrong values at every place of a good request, in every dialect.

Each is answered or refused: refused in the dialect's shape, before any byte of a stream, and then nothing is recorded.
"""

import copy
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.gateway import MODEL, Whole, whole

pytestmark = pytest.mark.integration

HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA, "strict": False}
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}], "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 2,
        "stop": ["x"],
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "max_completion_tokens": 4,
        "temperature": 0.5,
        "seed": 1,
        "metadata": {"a": "b"},
        "rag": {"top_k": 3, "collections": ["default"], "min_score": 0.1},
    },
    "/v1/completions": {"model": MODEL, "prompt": ["hi", "you"], "max_tokens": 4, "stream": True, "echo": True},
    "/v1/responses": {
        "model": MODEL,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        ],
        "instructions": "Be brief.",
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        "reasoning": {"effort": "low"},
        "include": ["reasoning.encrypted_content"],
        "metadata": {"a": "b"},
        "stream": True,
        "max_output_tokens": 16,
        "truncation": "auto",
    },
    "/v1/messages": {
        "model": MODEL,
        "max_tokens": 4,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {"a": 1}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": "no", "is_error": True}],
            },
        ],
        "tools": [{"name": "weather", "description": "Of a city.", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["x"],
        "stream": True,
        "temperature": 0.5,
        "metadata": {"user_id": "a"},
    },
    "/v1/messages/count_tokens": {"model": MODEL, "messages": HI, "system": "Be brief."},
    "/v1/responses/input_tokens": {"model": MODEL, "input": "hi"},
    "/v1/embeddings": {"model": "words", "input": ["hi"], "encoding_format": "float", "dimensions": 64},
    "/v1/documents": {"content": "x y z", "metadata": {"a": 1}, "chunk": True, "collection": "default", "title": "t"},
    "/v1/documents/query": {"query": "hi", "top_k": 3, "min_score": 0.1, "collections": ["default"]},
    "/chat": {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Sunny."},
            {"role": "user", "content": [{"type": "text", "text": "And tomorrow?"}]},
        ],
        "system_prompt": "Be brief.",
        "session_id": "odd",
        "model": MODEL,
        "temperature": 0.5,
        "max_tokens": 4,
        "top_p": 0.5,
        "top_k": 3,
        "repeat_penalty": 1.1,
        "stream": True,
        "enable_tools": False,
        "rag": {"top_k": 3, "collections": ["default"], "min_score": 0.1},
    },
    "/generate": {"prompt": "hi", "max_tokens": 4, "temperature": 0.5, "model": MODEL, "stream": True, "rag": False},
    "/command": {"command": "system", "value": "Be brief."},
    "/model/switch": {"model_key": MODEL},
    "/v1/feedback": {"request_id": "req_absent", "rating": "up", "comment": "c", "correction": "d", "user": "u"},
}
ODD: list[Any] = [
    None, True, -1, 10**30, 0.5, "", "\0", "x" * 5000, "\u202e\U0010ffff", [], [None], [[1]], {}, {"": None},
    {"role": "nobody"}, [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
]  # fmt: skip
NO_JSON = {
    "empty": b"", "open": b"{", "word": b"nul", "bytes": b"\xff\xfe{}", "half a character": b'{"model": "\xc3"}',
    "half a surrogate pair": b'{"model": "\\ud800"}', "list": b"[]", "number": b"1", "text": b'"x"', "null": b"null",
    "brackets": b"[" * 1_000_000, "closed brackets": b"[" * 500_000 + b"]" * 500_000, "objects": b'{"a":' * 200_000,
    "NaN": b'{"temperature": NaN}', "infinity": b'{"top_k": 1e999}', "quotes": b"{'a': 1}",
    "twins": b'{"model": 1, "model": 2}', "values": b'{"input": [' + b"1," * 200_000 + b"1]}",
}  # fmt: skip


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole(tmp_path_factory.mktemp("odd")) as opened:
        yield opened


@pytest.fixture(scope="module")
async def http(gateway: Whole) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http() as client:
        yield client


@pytest.mark.parametrize("path", GOOD)
async def test_the_good_request_is_answered(http: httpx.AsyncClient, path: str):
    """Else what is wrong with it would hide what is tested below."""
    answer = await http.post(path, json=GOOD[path])
    assert answer.status_code in {200, 201} or path == "/v1/feedback", answer.text


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
async def test_what_is_no_request_is_a_400(http: httpx.AsyncClient, gateway: Whole, path: str, body: bytes):
    """Whatever bytes they are."""
    before = await _turns(gateway)
    answer = await http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    _refusal(path, answer)
    assert await _turns(gateway) == before


@pytest.mark.parametrize("path", GOOD)
async def test_odd_values_at_every_place_are_answered_or_refused(http: httpx.AsyncClient, gateway: Whole, path: str):
    """One at a time, and each place left out once: whoever is refused is told, and leaves no turn."""
    before, answered = await _turns(gateway), 0
    for place, body in _odd(GOOD[path]):
        answer = await http.post(path, json=body)
        assert answer.status_code < 500, (place, body, answer.text)
        if answer.status_code >= 400:
            _refusal(path, answer)
            assert answer.status_code == 404 or "/messages" in path or answer.json()["error"]["param"], (
                place,
                body,
                answer.text,
            )
        elif path == "/chat" and not body["messages"]:
            continue  # the session begins anew
        elif path in {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/chat", "/generate"}:
            assert "error" not in answer.text.split("data: ")[-1][:10], (place, answer.text)
            answered += 1
        elif path == "/v1/completions":
            answered += len(body["prompt"]) if isinstance(body["prompt"], list) else 1
    assert await _turns(gateway) == before + answered


def _odd(good: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    for place in _places(good):
        for value in (*ODD, ...):
            body = copy.deepcopy(good)
            holder: Any = body
            for step in place[:-1]:
                holder = holder[step]
            if value is ...:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            yield place, body
    yield ("unknown",), {**good, "unknown": 1}


def _places(value: Any, here: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in steps:
        yield (*here, step)
        yield from _places(item, (*here, step))


async def _turns(gateway: Whole) -> int:
    await gateway.gateway.answering.close()
    return int(await gateway.gateway.recorder.pool.fetchval("select count(*) from turns"))


def _refusal(path: str, answer: httpx.Response) -> None:
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert told["error"]["message"]
    if path.startswith("/v1/messages"):
        assert (set(told), told["type"]) == ({"type", "error", "request_id"}, "error")
    else:
        assert set(told["error"]) == {"message", "type", "param", "code"}
        json.dumps(told)
