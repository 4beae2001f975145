"""Every request that a real client was seen to send, replayed at its full length against a running server."""

import json
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Server
from tests.captures import Capture, captures

pytestmark = pytest.mark.clients

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
EMBEDDINGS, COUNT, MODELS = "/v1/embeddings", "/v1/messages/count_tokens", "/v1/models"
SENT = [capture for path in (CHAT, RESPONSES, MESSAGES, EMBEDDINGS, COUNT, MODELS) for capture in captures(path)]
ENDS = {  # without these, one client or another repeats its request, fails, or shows nothing
    CHAT: ('"finish_reason":"', "data: [DONE]\n\n"),
    RESPONSES: ("event: response.output_item.done\n", "event: response.completed\n"),
    MESSAGES: ("event: content_block_stop\n", "event: message_delta\n", "event: message_stop\n"),
}
FIELDS = {
    CHAT: {"id", "object", "created", "model", "choices", "usage"},
    RESPONSES: {"id", "object", "created_at", "model", "output", "status", "usage"},
    MESSAGES: {"id", "type", "role", "model", "content", "stop_reason", "usage"},
    EMBEDDINGS: {"object", "data", "model", "usage"},
    COUNT: {"input_tokens"},
    MODELS: {"object", "data"},
}


def replay(server: Server, capture: Capture) -> httpx.Response:
    """Sent again, to our model."""
    model = "all-MiniLM-L6-v2" if capture.path == EMBEDDINGS else "mindfu-demo"
    body = capture.body and capture.body | {"model": model}
    with server.http() as http:
        url = f"{capture.path}?{capture.query}" if capture.query else capture.path
        headers = {
            name: value.encode("ascii", "ignore") for name, value in capture.headers.items()
        }  # long ones are cut
        return http.request(capture.method, url, json=body, headers=headers)


@pytest.mark.parametrize("capture", SENT, ids=str)
def test_a_recorded_request_is_answered(server: Server, capture: Capture):
    """With all that its client waits for; a stream holds no error, and only whole events."""
    answer = replay(server, capture)
    assert answer.status_code == 200, answer.text
    if not (capture.body or {}).get("stream"):
        assert FIELDS[capture.path] <= set(answer.json())
        return
    assert answer.headers["content-type"].startswith("text/event-stream")
    for end in ENDS[capture.path]:
        assert end in answer.text, answer.text[-500:]
    for event in answer.text.strip().split("\n\n"):
        *_, data = event.splitlines()
        assert data.startswith("data: ")
        told: Any = {} if data == "data: [DONE]" else json.loads(data.removeprefix("data: "))
        assert "error" not in told or told["error"] is None
