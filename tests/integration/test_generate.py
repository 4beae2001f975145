"""The stage `generate`, against servers of both dialects on a socket: never paid twice, never over the budget."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidRequest, NothingToLearn
from train import generate, lines, stages
from train.generate import Generate

pytestmark = pytest.mark.integration

Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["place"]}}}


class Server:
    """Keeps what it was asked. reply: status and body to a request's body."""

    def __init__(self, reply: Reply) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append(body)
                outer.headers.append(dict(self.headers))
                status, told = reply(body)
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@contextmanager
def serving(reply: Reply) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def openai(
    body: dict[str, Any], text: str = "Yes.", reason: str = "stop", **message: Any
) -> tuple[int, dict[str, Any]]:
    said = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return 200, {"choices": [{"message": said, "finish_reason": reason}], "usage": usage, "model": body["model"]}


def prompts(folder: Path, *questions: str, tools: tuple[object, ...] = ()) -> Path:
    """Conversations that end with somebody's own answer, which is not asked."""
    folder.mkdir(exist_ok=True)
    told = [{"messages": [{"role": "user", "content": question}], "tools": tools} for question in questions]
    (folder / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    return folder


def generated(folder: Path, **changes: object) -> tuple[list[str], stages.Manifest]:
    parameters = Generate.model_validate({"model": "large", "concurrency": 1} | changes)
    made = stages.run(generate.STAGE, inputs={"data": folder}, parameters=parameters, home=folder.parent / "home")
    return [line.messages[-1].content for line in lines.read(made / "data.jsonl")], stages.manifest(made)


def test_answers_stand_behind_their_questions_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes back first; the key is sent, and only the answer is learnt."""
    monkeypatch.setenv("MINDFU_TEACHER_KEY", "secret")
    with serving(lambda body: openai(body, body["messages"][-1]["content"].upper() + ".")) as server:
        folder = prompts(tmp_path / "p", "a", "b", "c")
        texts, told = generated(folder, url=server.url, system="Be loud.", concurrency=3)
    assert texts == ["A.", "B.", "C."]
    assert told.counts == {"lines": 3, "tokens": 45, "requests": 3}
    assert server.asked[0]["messages"][0] == {"role": "system", "content": "Be loud."}
    assert {
        headers["authorization" if "authorization" in headers else "Authorization"] for headers in server.headers
    } == {"Bearer secret"}


def test_anthropic_answers_with_tools(tmp_path: Path) -> None:
    """A call in its dialect becomes a call in ours."""

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert body["tools"][0]["input_schema"] == WEATHER["function"]["parameters"]
        assert body["system"] == "Be brief."
        call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Bern"}}
        content = [{"type": "text", "text": "I look."}, call]
        return 200, {"content": content, "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 4}}

    with serving(reply) as server:
        folder = prompts(tmp_path / "p", "rain?", tools=(WEATHER,))
        parameters = Generate(url=server.url, model="m", dialect="anthropic", system="Be brief.")
        made = stages.run(generate.STAGE, inputs={"data": folder}, parameters=parameters, home=tmp_path / "home")
    [line] = lines.read(made / "data.jsonl")
    assert line.messages[-1].tool_calls[0].arguments == '{"place": "Bern"}'
    assert line.weights == (0, 0, 1)


def test_an_answer_that_does_not_satisfy_is_asked_for_again(tmp_path: Path) -> None:
    """So often and no more, then it is counted."""
    said = iter(["no json", '{"a": 1}', "{}", "{}"])
    schema = {"type": "object", "required": ["a"]}
    with serving(lambda body: openai(body, next(said))) as server:
        folder = prompts(tmp_path / "p", "one", "two")
        texts, told = generated(folder, url=server.url, json_schema=schema, tries=2)
    assert texts == ['{"a": 1}']
    assert told.dropped == {"answer does not satisfy the schema": 1}


def test_an_answer_that_was_cut_short_is_not_learnt(tmp_path: Path) -> None:
    """Nor what calls a tool that nobody offered."""
    call = [{"id": "1", "type": "function", "function": {"name": "rm", "arguments": "{}"}}]
    replies = iter([{"reason": "length"}, {"tool_calls": call, "reason": "tool_calls"}, {}])
    with serving(lambda body: openai(body, **next(replies))) as server:
        texts, told = generated(prompts(tmp_path / "p", "a", "b", "c"), url=server.url, tries=1)
    assert texts == ["Yes."]
    assert told.dropped == {"cut short": 1, "calls a tool that was not offered": 1}


def test_what_was_said_is_never_asked_for_again(tmp_path: Path) -> None:
    """A run that dies keeps its answers; the next one asks for the rest."""
    died = False

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal died
        if body["messages"][-1]["content"] == "c" and not died:
            died = True
            return 401, {"error": "no more"}
        return openai(body)

    with serving(reply) as server:
        folder = prompts(tmp_path / "p", "a", "b", "c")
        with pytest.raises(InvalidRequest, match="refuses: 401"):
            generated(folder, url=server.url)
        texts, told = generated(folder, url=server.url)
    assert texts == ["Yes."] * 3
    assert [body["messages"][-1]["content"] for body in server.asked] == ["a", "b", "c", "c"]
    assert told.counts["tokens"] == 45


def test_the_budget_is_never_exceeded(tmp_path: Path) -> None:
    """Room for two answers: the others are counted, and a larger budget goes on from there."""
    with serving(openai) as server:
        folder = prompts(tmp_path / "p", "a", "b", "c", "d")
        texts, told = generated(folder, url=server.url, max_tokens=5, budget_tokens=60)
        assert told.counts["tokens"] <= 60
        assert told.dropped == {"the budget is spent": 4 - len(texts)}
        asked = len(server.asked)
        texts, _ = generated(folder, url=server.url, max_tokens=5, budget_tokens=1000)
    assert len(texts) == 4
    assert len(server.asked) == 4 > asked


def test_a_busy_teacher_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 and 5xx pass."""
    monkeypatch.setattr("train.teacher.LONGEST_WAIT_S", 0.0)
    statuses = iter([429, 503])
    with serving(lambda body: (s, {}) if (s := next(statuses, 0)) else openai(body)) as server:
        assert generated(prompts(tmp_path / "p", "a"), url=server.url)[0] == ["Yes."]
    assert len(server.asked) == 3


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    """No address, no prompts, no model there."""
    with pytest.raises(InvalidRequest, match="is no http"):
        generated(prompts(tmp_path / "p", "a"), url="teacher.example.org")
    with pytest.raises(NothingToLearn, match="Found 0 prompts"):
        generated(prompts(tmp_path / "p"), url="http://127.0.0.1:1/v1")
    with serving(lambda _: (200, {"hello": 1})) as server, pytest.raises(InvalidRequest, match="none of OpenAI's"):
        generated(prompts(tmp_path / "p", "a"), url=server.url)
