"""The generating routes: answers as server-sent events, and what happens to them when something ends early."""

import json
from typing import Any

import httpx2
import pytest

from app.errors import ContextTooLong, EngineFailed
from app.messages import Delta
from tests.fakes import DONE, PLACE
from tests.server import Server

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "rag": False}
HEL, LO = Delta("Hel", 1), Delta("lo", 1)


def events(answer: httpx2.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_streamed_chat_is_a_role_its_pieces_its_end_and_done():
    """With the conversation's id in a header; usage only where it was asked for."""
    answer = await Server(HEL, LO, DONE).post(**CHAT, stream_options={"include_usage": True})
    role, hel, lo, last, usage, done = events(answer)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [hel["choices"][0]["delta"], lo["choices"][0]["delta"]] == [{"content": "Hel"}, {"content": "lo"}]
    assert (last["choices"][0]["finish_reason"], last["sources"]) == ("stop", [])
    assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 9, "[DONE]")
    assert answer.headers["x-conversation-id"] == PLACE.conversation_id


async def test_a_completion_is_not_a_conversation():
    """It is recorded with its prompt, and names none."""
    server = Server(HEL, LO, DONE)
    answer = await server.post("/v1/completions", model="m", prompt="Say")
    assert answer.json()["choices"][0]["text"] == "Hello"
    assert "x-conversation-id" not in answer.headers
    assert server.recorder.turns[0].messages[0].content == "Say"


@pytest.mark.parametrize("stream", [True, False])
async def test_several_prompts_are_answered_at_once_and_are_turns_of_their_own(stream: bool):
    """What LangChain sends for a list of texts: one answer each, by index."""
    server = Server(HEL, LO, DONE)
    answer = await server.post("/v1/completions", model="m", prompt=["a", "b"], stream=stream)
    chunks = events(answer)[:-1] if stream else [answer.json()]
    texts = {0: "", 1: ""}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "Hello", 1: "Hello"}
    assert sorted(turn.messages[0].content for turn in server.recorder.turns) == ["a", "b"]
    assert len({turn.request_id for turn in server.recorder.turns}) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_an_early_refusal_has_its_own_status(stream: bool):
    """A stream fails before its first byte where it can."""
    answer = await Server(ContextTooLong(9, 1, 5)).post(**CHAT | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("failure", "code"), [(EngineFailed("it broke"), "engine_failed"), (ValueError("secret detail"), "engine_failed")]
)
async def test_a_late_failure_is_an_error_event(failure: Exception, code: str):
    """Never a cut connection, never [DONE], and no detail of a bug."""
    answer = await Server(HEL, failure).post(**CHAT)
    *_, said, error = events(answer)
    assert said["choices"][0]["delta"] == {"content": "Hel"}
    assert error["error"]["code"] == code
    assert "secret" not in answer.text


@pytest.mark.parametrize("event", ["http.response.start", "http.response.body"])
async def test_a_client_that_leaves_at_any_event_frees_the_engine(event: str):
    """Before the first event too: the answer is closed with the response, and kept as cancelled."""
    server = Server(HEL, None)
    body = [{"type": "http.request", "body": json.dumps(CHAT).encode(), "more_body": False}]

    async def receive() -> dict[str, object]:
        return body.pop() if body else {"type": "http.disconnect"}

    async def send(sent: dict[str, Any]) -> None:
        if sent["type"] == event:
            raise OSError

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    path = {"path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": ""}
    scope = {"type": "http", "method": "POST", "scheme": "http", "headers": headers, "server": ("localhost", 80)}
    with pytest.raises(OSError):  # noqa: PT011 - our own, from `send`
        await server.app(scope | path, receive, send)
    await server.answering.close()
    assert server.engine.cancelled
    assert [turn.status for turn in server.recorder.turns] == ["cancelled"]
