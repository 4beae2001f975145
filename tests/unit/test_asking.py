"""Requests to a server: asked again while it is busy or away, and never twice where that would do something twice."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from app.asking import Answered, Asking, retry_after_s
from app.errors import InvalidRequest, Unavailable

Said = httpx.Response | Exception


class Server:
    """Answers in order, the last one for ever."""

    def __init__(self, *answers: Said) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.waited: list[float] = []
        self.told: list[tuple[str, float]] = []

    def asking(self, **options: Any) -> Asking:
        return Asking(
            "http://server:1/v1/",
            "secret",
            transport=httpx.MockTransport(self._answer),
            sleep=self.waited.append,
            waiting=lambda reason, pause_s: self.told.append((reason, pause_s)),
            **options,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://server:1/chat"
        assert request.headers["authorization"] == "Bearer secret"
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def busy(status: int = 503, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "the model loads"}}, headers=headers)


FINE = httpx.Response(200, json={"fine": True})


def test_it_waits_1_2_4_8_16_seconds():
    """Six tries in all; then the reason is told."""
    server = Server(httpx.ConnectError("connection refused"))
    with pytest.raises(Unavailable, match=r"server:1 does not answer \(connection refused\)"):
        server.asking().ask("POST", "/chat")
    assert (server.asked, server.waited) == (6, [1, 2, 4, 8, 16])
    assert server.told[0] == ("http://server:1 does not answer (connection refused)", 1)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int):
    """It said that it did nothing."""
    server = Server(busy(status), busy(status), FINE)
    assert server.asking().ask("POST", "/chat").json() == {"fine": True}
    assert server.waited == [1, 2]
    assert server.told == [("the model loads", 1), ("the model loads", 2)]


def test_it_waits_as_long_as_the_server_asks_for():
    """But never shorter than its own pause."""
    server = Server(busy(**{"retry-after": "7"}), busy(**{"retry-after": "1"}), FINE)
    server.asking().ask("GET", "/chat")
    assert server.waited == [7, 2]


def test_a_server_that_asks_for_too_long_is_not_waited_for():
    """Somebody sits in front of a terminal."""
    server = Server(busy(**{"retry-after": "3600"}))
    with pytest.raises(Unavailable, match=r"the model loads\. Retry in 3600 s"):
        server.asking().ask("GET", "/chat")
    assert server.waited == []


def test_a_pause_may_be_named_by_its_end():
    """As RFC 9110 allows; what is no time is none."""
    now = datetime(2026, 11, 21, 9, 0, 0, tzinfo=UTC)
    assert retry_after_s("Sat, 21 Nov 2026 09:00:12 GMT", now) == 12
    assert retry_after_s("Sat, 21 Nov 2026 08:00:00 GMT", now) == 0
    assert [retry_after_s(text) for text in ("3", "", "soon", "-1")] == [3, 0, 0, 0]


@pytest.mark.parametrize(("method", "tries"), [("POST", 1), ("GET", 6), ("DELETE", 6)])
def test_what_may_have_been_done_is_not_done_twice(method: str, tries: int):
    """The connection broke when the request was out: only those that may be repeated are."""
    server = Server(httpx.ReadError("reset by peer"))
    with pytest.raises(Unavailable, match="reset by peer"):
        server.asking().ask(method, "/chat")
    assert server.asked == tries


def test_a_silent_server_is_told_with_the_seconds():
    """Those that the caller gave it."""
    server = Server(httpx.ReadTimeout("timed out"))
    with pytest.raises(Unavailable, match="silent for 30 s"):
        server.asking().ask("POST", "/chat")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 500])
def test_a_refusal_is_final_and_in_the_servers_words(status: int):
    """It would say the same again."""
    server = Server(httpx.Response(status, json={"error": {"message": "no such model"}}))
    with pytest.raises(Answered, match="no such model") as refusal:
        server.asking().ask("GET", "/chat")
    assert (refusal.value.http_status, server.waited) == (status, [])


def test_an_answer_that_is_not_ours_is_told_by_its_status():
    """Of a proxy, or of another program on that port."""
    server = Server(httpx.Response(404, text="<html>nginx</html>"))
    with pytest.raises(Answered, match="the server answered 404"):
        server.asking().ask("GET", "/chat")


@pytest.mark.parametrize("url", ["server:1", "ftp://server", "", "http://[::1"])
def test_what_is_no_url_is_refused(url: str):
    """Before anything is waited for."""
    with pytest.raises(InvalidRequest, match="no URL of a server"):
        Asking(url, sleep=lambda _: pytest.fail("it waited")).ask("GET", "/health")


def test_a_stream_is_asked_for_with_the_same_patience():
    """Its refusals have their message, too."""
    server = Server(busy(), httpx.Response(200, text="a\nb\n"))
    with server.asking().stream("POST", "/chat") as answer:
        assert list(answer.iter_lines()) == ["a", "b"]
    assert server.waited == [1]
    refusing = Server(httpx.Response(400, json={"error": {"message": "empty"}}))
    with pytest.raises(Answered, match="empty"), refusing.asking().stream("POST", "/chat"):
        pytest.fail("it was refused")


def test_a_stream_that_breaks_is_told():
    """What came until then stays with whoever read it."""
    with pytest.raises(Unavailable, match="closed early"), Server(FINE).asking().stream("POST", "/chat"):
        raise httpx.RemoteProtocolError("closed early")
