"""The conversation of `mindfu chat` where things go wrong: it says so in a line, and goes on."""

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

from app.client import Client
from deployments import cli_chat, cli_lines
from deployments.cli_client import connected, harmless
from deployments.cli_repl import Repl
from tests.command import mindfu
from tests.unit.test_client import DONE


class Typed:
    """Lines as they are typed; an exception is a key."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines: Iterator[str | BaseException] = iter(lines)

    def __call__(self, _: str) -> str:
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


def talk(*lines: str | BaseException, answer: httpx.Response | BaseException | None = None, **options: Any) -> str:
    """What is shown."""
    shown = io.StringIO()

    def answered(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, BaseException):
            raise answer
        return answer or httpx.Response(200, text=events({"token": "Hello you"}, DONE))

    client = Client("http://server:1", transport=httpx.MockTransport(answered))
    repl = Repl(client, Console(file=shown, width=200), Typed(*lines), options)
    while repl.turn():
        pass
    return shown.getvalue()


def events(*events: Any) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


def test_an_answer_is_followed_by_what_it_took():
    """Tokens, seconds, speed, model, device and tools."""
    assert talk("Hi") == (
        "Hello you\n3 + 2 tokens · 0.5 s · 4.0 tokens/s · demo · CPU · tools: lookup_hostname(a.org)\n"
    )


def test_thoughts_and_calls_stand_apart_from_the_text():
    """Each on lines of its own."""
    said = events({"reasoning": "Well"}, {"tool": "now()"}, {"token": "Hello"}, DONE)
    assert talk("Hi", answer=httpx.Response(200, text=said)).splitlines()[:3] == ["Well", "· now()", "Hello"]


def test_cited_sources_are_named():
    """Those that the answer marks, and no others; /sources shows all of them."""
    sources = [{"title": "Handbook", "score": 0.5, "text": "At 2:30."}, {"title": "Other", "score": 0.4, "text": "No."}]
    said = events({"token": "At 2:30 [1]"}, DONE | {"response": "At 2:30 [1]", "sources": sources})
    first, second = (
        talk("When?", answer=httpx.Response(200, text=said)),
        talk("When?", "/sources", answer=httpx.Response(200, text=said)),
    )
    assert "[1] Handbook\n" in first
    assert "Other" not in first
    assert "[2] Other, 0.4\nNo.\n" in second


def test_what_goes_wrong_is_said_and_the_conversation_goes_on():
    """A refusal, a stream that fails or breaks off, a command that does not exist."""
    assert "no such model" in talk("Hi", answer=httpx.Response(404, json={"error": {"message": "no such model"}}))
    failed = httpx.Response(200, text=events({"token": "He"}, {"error": {"message": "the engine broke"}}))
    assert talk("Hi", answer=failed).startswith("He")
    assert "the engine broke" in talk("Hi", answer=failed)
    assert "broke off" in talk("Hi", answer=httpx.Response(200, text=events({"token": "He"})))
    assert "There is no /stop" in talk("/stop", "Hi")
    assert "Hello you" in talk("/stop", "", "Hi")


def test_a_key_that_is_missing_is_told_with_its_variable():
    """And a server that went away with what to do."""
    refused = httpx.Response(401, json={"error": {"message": "Missing or unknown API key."}})
    assert "MINDFU_API_KEY" in talk("Hi", answer=refused)


def test_what_is_wrong_with_a_server_is_told_at_the_beginning():
    """It may answer all the same."""
    health = {"status": "degraded", "model_key": "demo", "version": "1", "parts": {"llm": "ok", "postgres": "away"}}
    transport = httpx.MockTransport(lambda _: httpx.Response(503, json=health))
    shown = io.StringIO()
    cli_chat._greet(Client("http://server:1", transport=transport), Console(file=shown, width=200))
    assert shown.getvalue() == (
        "MindFu 1 at http://server:1, model demo. /help lists commands.\nThe server is degraded. postgres: away\n"
    )


def test_ctrl_c_stops_an_answer_and_not_the_conversation():
    """At an empty line it does nothing."""
    assert "Hello you" in talk(KeyboardInterrupt(), "Hi")
    assert "Stopped." in talk("Hi", answer=KeyboardInterrupt())


def test_a_command_before_the_first_answer_says_what_is_missing():
    """There is nothing to rate or export yet."""
    for line in ("/rate up", "/export", "/sources"):
        assert "ask something first" in talk(line)


def test_for_programs_every_line_is_answered_by_an_object(capsys: pytest.CaptureFixture[str]):
    """A question with all of its answer, a command with what it says, and what failed with why; empty lines by none."""

    def answered(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/command":
            return httpx.Response(200, json={"status": "success", "message": "Tools are off."})
        return httpx.Response(200, text=events({"token": "Hello you"}, DONE))

    client = Client("http://server:1", transport=httpx.MockTransport(answered))
    status = cli_lines.converse(client, Typed("Hi", "", "/tools", "/rate 7", "/quit"), {})
    question, command, failure = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert status == 1
    assert (question["line"], question["answer"]["tokens_total"]) == ("Hi", DONE["tokens_total"])
    assert command == {"line": "/tools", "told": "Tools are off."}
    assert failure == {"line": "/rate 7", "error": "Rate by up or down, or by 1 to 5; a comment may follow."}


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\x1b[2J", "a\rb", "\x9b1m", "\x7f"])
def test_nothing_that_a_model_says_is_obeyed_by_the_terminal(text: str):
    """Escape sequences could rewrite what was said, or type for the user."""
    assert not set(harmless(text)) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}
    assert harmless("line\n\ttext é 你") == "line\n\ttext é 你"


def test_without_a_server_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """At once: at the address that somebody just typed there is nothing to wait for."""
    monkeypatch.delenv("MINDFU_URL", raising=False)
    assert mindfu("chat", "--url", "http://127.0.0.1:1") == 1
    told = capsys.readouterr().err
    assert "http://127.0.0.1:1 does not answer" in told
    assert "mindfu serve" in told
    assert mindfu("chat", "--url", "nonsense") == 1
    assert "'nonsense' is no URL of a server" in capsys.readouterr().err


def test_server_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    """The address may be given by an option instead; without either it is this machine's."""
    monkeypatch.setenv("MINDFU_URL", "http://elsewhere:1/v1")
    monkeypatch.setenv("MINDFU_API_KEY", "mf_secret")
    with connected(None) as client:
        assert client.url == "http://elsewhere:1"
        assert client._asking._http.headers["authorization"] == "Bearer mf_secret"
    with connected("https://third:2/") as client:
        assert client.url == "https://third:2"
    monkeypatch.delenv("MINDFU_URL")
    with connected(None) as client:
        assert client.url == "http://127.0.0.1:11434"
