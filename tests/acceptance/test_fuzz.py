"""Bad input of every kind, in every dialect, against the running server: refused in its shape, and nothing is left."""

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration

MODEL = "mindfu-demo"
HI: Any = [{"role": "user", "content": "hi"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": HI, "max_tokens": 4, "temperature": 0.5, "stop": ["x"]},
    "/v1/completions": {"model": MODEL, "prompt": "hi", "max_tokens": 4},
    "/v1/responses": {"model": MODEL, "input": "hi", "max_output_tokens": 16},
    "/v1/messages": {"model": MODEL, "messages": HI, "max_tokens": 4},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": HI},
    "/v1/embeddings": {"model": "all-MiniLM-L6-v2", "input": "hi"},
    "/v1/documents/query": {"query": "hi"},
    "/v1/feedback": {"request_id": "req_absent", "rating": "up"},
}
REQUIRED = {path: next(name for name in ("messages", "prompt", "input", "query", "rating") if name in body)
            for path, body in GOOD.items()}  # fmt: skip
NO_JSON = [
    b"", b"{", b"nul", b"\xff\xfe{}", b'{"a": "\xc3"}', b'{"a": "\\ud800"}', b"[]", b"1", b'"x"', b"null",
    b"[" * 1_000_000, b'{"a":' * 200_000, b'{"messages": NaN}', b'{"messages": 1e999}', b"{'a': 1}",
]  # fmt: skip
ODD = [
    None, True, -1, 10**30, -(10**30), 0.5, 1e308, "", "\0", "x" * 100_000, "\u202e\U0010ffff", [], [None], [[]], [1],
    {}, {"": None}, {"role": "user"}, [{"role": "nobody", "content": "x"}], [{"role": "tool", "content": "x"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    [{"role": "assistant", "tool_calls": [{"id": 1}]}], ["x"] * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: repr(body[:20]))
def test_what_is_no_request_is_a_4xx(server: Server, path: str, body: bytes):
    """In the dialect's shape, and fast."""
    with server.http() as http:
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    _refusal(path, answer.json())


@pytest.mark.parametrize("path", GOOD)
def test_odd_values_in_every_field_are_answered_or_refused(server: Server, path: str):
    """Each known field and an unknown one, one at a time: never a 5xx, and where refused nothing is recorded."""
    with server.http() as http:
        before = _recorded(http)
        for body in _odd(path):
            answer = http.post(path, json=body)
            assert answer.status_code < 500, (body, answer.text)
            if answer.status_code >= 400:
                _refusal(path, answer.json())
                assert _recorded(http) == before, body
            before = _recorded(http) if answer.status_code < 400 else before
        assert http.get("/health").json()["status"] == "ok"


def _odd(path: str) -> Iterator[dict[str, Any]]:
    good, pick = GOOD[path], random.Random(path)
    for name in (*good, "stream", "tools", "tool_choice", "temperature", "n", "unknown"):
        for value in pick.sample(ODD, 4):
            body = {**good, name: value}
            json.dumps(body)
            yield body
    yield {name: value for name, value in good.items() if name != REQUIRED[path]}


def _recorded(http: httpx.Client) -> object:
    """The conversation in which something was said last, and how much."""
    latest: list[dict[str, Any]] = http.get("/v1/conversations", params={"limit": 1}).json()["data"]
    return [(one["id"], one["turns"]) for one in latest]


def _refusal(path: str, told: dict[str, Any]) -> None:
    error = told["error"]
    assert error["message"]
    if path.startswith("/v1/messages"):
        assert (told["type"], set(error) >= {"type", "message"}) == ("error", True)
    else:
        assert set(error) == {"message", "type", "param", "code"}
