"""The client of a server: what it sends, what it reads, and what it says where a server says something odd."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.asking import Answered
from app.client import Answer, Client, Piece
from app.errors import InvalidRequest, Unavailable

DONE: dict[str, Any] = {
    "done": True, "response": "Hello you", "tokens_input": 3, "tokens_generated": 2, "tokens_total": 5,
    "generation_time": 0.5, "tokens_per_second": 4.0, "device": "CPU", "tools_used": ["lookup_hostname(a.org)"],
    "model_key": "demo", "session_id": "s", "conversation_id": "c", "request_id": "req_1", "dropped_messages": 0,
    "finish_reason": "stop", "sources": [], "from_the_future": 1,
}  # fmt: skip


class Server:
    """Answers every request with the same, and keeps what it was sent."""

    def __init__(self, answer: httpx.Response | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answer, self.requests = answer, list[httpx.Request]()

    def client(self) -> Client:
        return Client("http://server:1", "secret", session="s", transport=httpx.MockTransport(self._answer))

    @property
    def sent(self) -> Any:
        return json.loads(self.requests[-1].content)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer if isinstance(self.answer, httpx.Response) else self.answer(request)


def stream(*events: Any) -> Server:
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Server(httpx.Response(200, text=f": a comment\n\n{lines}"))


def test_a_message_is_answered_piece_by_piece():
    """Text, thoughts and calls as they come, then all of it with what it took; new kinds of events are let pass."""
    server = stream({"reasoning": "hm"}, {"tool": "now()"}, {"new": 1}, {"token": "Hello"}, {"token": " you"}, DONE)
    *pieces, answer = server.client().stream_message("Hi", temperature=0, enable_tools=True)
    assert pieces == [
        Piece("reasoning", "hm"), Piece("tool", "now()"), Piece("token", "Hello"), Piece("token", " you"),
    ]  # fmt: skip
    assert isinstance(answer, Answer)
    assert (answer.response, answer.tokens_total, answer.tools_used) == ("Hello you", 5, ("lookup_hostname(a.org)",))
    assert server.sent == {
        "messages": [{"role": "user", "content": "Hi"}], "session_id": "s", "stream": True, "temperature": 0,
        "enable_tools": True,
    }  # fmt: skip


def test_a_whole_answer_is_waited_for():
    """By the same stream, so that only silence is limited and not the length of an answer."""
    assert stream({"token": "Hello you"}, DONE).client().send_message("Hi").response == "Hello you"


def test_an_answer_that_fails_or_ends_early_is_told():
    """In the server's words; a stream without its end is none."""
    with pytest.raises(Answered, match="the engine broke"):
        stream({"token": "He"}, {"error": {"message": "the engine broke"}}).client().send_message("Hi")
    with pytest.raises(Unavailable, match="broke off"):
        stream({"token": "He"}).client().send_message("Hi")


def test_sessions_without_a_name_are_new_ones():
    """So that two programs do not talk into each other's."""
    assert Client().session != Client().session


def test_commands_tell_without_a_value_and_set_with_one():
    """0 layers and no tools are values, too."""
    server = Server(httpx.Response(200, json={"status": "success", "message": "It is 0.", "current_value": 0}))
    client = server.client()
    assert client.send_command("layers").current_value == 0
    assert server.sent == {"command": "layers"}
    client.send_command("layers", 0)
    assert server.sent == {"command": "layers", "value": 0}
    client.send_command("tools", value=False)
    assert server.sent == {"command": "tools", "value": False}


def test_a_model_is_switched_to():
    """By its key."""
    server = Server(httpx.Response(200, json={"status": "success", "message": "ok", "model_key": "big"}))
    server.client().switch_model("big")
    assert (server.requests[-1].url.path, server.sent) == ("/model/switch", {"model_key": "big"})


def test_health_is_told_also_where_it_is_bad():
    """At once: a server that says 503 there is not busy."""
    report = {"status": "degraded", "model_key": "demo", "parts": {"llm": "ok", "postgres": "away"}, "version": "1"}
    server = Server(httpx.Response(503, json=report))
    assert server.client().health().parts == {"llm": "ok", "postgres": "away"}
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"hello": 1})])
def test_what_is_no_server_of_ours_is_named(answer: httpx.Response):
    """Whatever it answers."""
    client = Server(answer).client()
    for ask in (client.health, client.models, lambda: client.search("x"), lambda: client.send_command("mem")):
        with pytest.raises(InvalidRequest, match="http://server:1 is no MindFu server"):
            ask()


def test_the_export_for_finetuning_is_whole_or_not_there(tmp_path: Path):
    """One line for each conversation; a file from before stays until the new one is complete."""
    file = tmp_path / "training_data.jsonl"
    file.write_text("old")
    server = Server(httpx.Response(200, text='{"messages": []}\n{"messages": []}\n'))
    assert server.client().export_for_finetuning(file, rating="up") == 2
    assert file.read_text().count("\n") == 2
    assert dict(server.requests[-1].url.params) == {"format": "jsonl", "rating": "up"}

    def broken(_: httpx.Request) -> httpx.Response:
        def body():  # type: ignore[no-untyped-def]
            yield b'{"messages": []}\n'
            raise httpx.ReadError("cut")

        return httpx.Response(200, content=body())

    with pytest.raises(Unavailable, match="cut"):
        Server(broken).client().export_for_finetuning(file)
    assert file.read_text().count("\n") == 2
    assert list(tmp_path.iterdir()) == [file]


def test_a_rating_names_the_answer():
    """With what is said of it."""
    server = Server(httpx.Response(200, json={"object": "feedback"}))
    server.client().rate("req_1", rating="up", comment="yes")
    assert server.sent == {"request_id": "req_1", "rating": "up", "comment": "yes"}


def test_passages_are_found():
    """Best first, with where they stand."""
    found = {
        "document_id": "doc_1",
        "title": "T",
        "chunk": 0,
        "score": 0.5,
        "text": "It runs.",
        "collection": "default",
    }
    server = Server(httpx.Response(200, json={"object": "list", "data": [found]}))
    (passage,) = server.client().search("when", top_k=3, collections=["docs"])
    assert (passage.title, passage.text) == ("T", "It runs.")
    assert server.sent == {"query": "when", "top_k": 3, "collections": ["docs"]}
