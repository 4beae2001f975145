"""Chat with the history on the server, through the whole gateway on a real PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from engines import until

from app.errors import EngineFailed, MindFuError, Unavailable
from app.messages import Delta, Generate
from app.settings import ChatSettings, Settings
from tests.gateway import MODEL, Echo, Whole, whole
from tests.integration.test_conversations import turn, user

pytestmark = pytest.mark.integration


class Listener(Echo):
    """Answers `answer <n>`, and knows what it was shown. failing: how the next answers fail; sick: its health.

    hangs: no answer ends; left: one was given up; meeting: answers begin when as many as it wants are asked for.
    """

    def __init__(self) -> None:
        self.shown: list[list[str]] = []
        self.failing: list[MindFuError] = []
        self.sick: MindFuError | None = None
        self.hangs, self.left = False, False
        self.meeting: asyncio.Barrier | None = None

    async def check_health(self) -> None:
        if self.sick:
            raise self.sick

    async def generate(self, request: Generate):  # type: ignore[no-untyped-def]
        self.shown.append([f"{message.role}: {message.content}" for message in request.messages])
        if self.failing:
            raise self.failing.pop()
        if self.meeting:
            await self.meeting.wait()
        async with aclosing(super().generate(request)) as items:
            try:
                async for item in items:
                    yield Delta(f"answer {len(self.shown)}", 1) if isinstance(item, Delta) else item
                    if self.hangs:
                        await asyncio.Event().wait()
            finally:
                self.left = self.hangs


@pytest.fixture
def llm() -> Listener:
    return Listener()


@pytest.fixture
async def gateway(postgres_home: Path, pool: asyncpg.Pool, llm: Listener) -> AsyncIterator[Whole]:
    chat = ChatSettings(max_conversation_tokens=64, system_prompt="Be brief.")
    async with whole(postgres_home, Settings(chat=chat), llm=llm) as opened:
        yield opened


@pytest.fixture
async def http(gateway: Whole) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http() as client:
        yield client


async def said(http: httpx.AsyncClient, text: str | None, **fields: Any) -> dict[str, Any]:
    """The answer to one more message; None: to no message at all."""
    messages = [] if text is None else [{"role": "user", "content": text}]
    answer = await http.post("/chat", json={"messages": messages, "rag": False, **fields})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_minimal_client_is_a_loop_of_messages(http: httpx.AsyncClient, llm: Listener):
    """It sends what is new, and the model knows what was said before."""
    assert [(await said(http, text))["response"] for text in ("one", "two")] == ["answer 1", "answer 2"]
    assert llm.shown[-1] == ["system: Be brief.", "user: one", "assistant: answer 1", "user: two"]


async def test_every_field_of_an_answer_is_told(http: httpx.AsyncClient):
    """Tokens by the model's count, where it ran, and where the turn was kept."""
    told = await said(http, "hello there")
    conversation = (await http.get(f"/v1/conversations/{told['conversation_id']}")).json()
    assert {name: told[name] for name in told if name not in {"conversation_id", "request_id"}} == {
        "response": "answer 1", "tokens_input": 4, "tokens_generated": 1, "tokens_total": 5, "generation_time": 0.0,
        "tokens_per_second": 0.0, "device": "CPU", "tools_used": [], "finish_reason": "stop", "model_key": MODEL,
        "session_id": "default", "dropped_messages": 0, "sources": [],
    }  # fmt: skip
    assert conversation["turns"][0]["messages"][0]["content"] == "hello there"
    rated = await http.post("/v1/feedback", json={"request_id": told["request_id"], "rating": "up"})
    assert rated.json()["turn_id"] == conversation["turns"][0]["id"]


async def test_no_messages_begin_the_session_anew(http: httpx.AsyncClient, llm: Listener):
    """The conversation before stays what it was, and the next one is another."""
    first = await said(http, "one")
    reset = await said(http, None)
    assert (reset["response"], reset["tokens_total"], reset["conversation_id"]) == ("", 0, None)
    assert (await said(http, "two"))["conversation_id"] != first["conversation_id"]
    assert llm.shown[-1] == ["system: Be brief.", "user: two"]


async def test_a_client_that_keeps_the_history_sends_all_of_it(http: httpx.AsyncClient, llm: Listener):
    """What it sends is the whole conversation, and goes on in the one that it was recorded in."""
    first = await said(http, "one")
    history = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first["response"]},
        {"role": "user", "content": "two"},
    ]
    second = (await http.post("/chat", json={"messages": history, "rag": False})).json()
    assert second["conversation_id"] == first["conversation_id"]
    assert llm.shown[-1][1:] == ["user: one", "assistant: answer 1", "user: two"]
    assert len((await said(http, "three"))["response"]) > 0
    assert len(llm.shown[-1]) == 1 + 5


@pytest.mark.parametrize(
    "name", [{"json": {"session_id": "s"}}, {"headers": {"x-session-id": "s"}}, {"headers": {"cookie": "session_id=s"}}]
)
async def test_sessions_are_told_apart_by_their_names(http: httpx.AsyncClient, llm: Listener, name: dict[str, Any]):
    """In the body, a header or a cookie."""
    await said(http, "to default")
    body = {"messages": [{"role": "user", "content": "to s"}], "rag": False} | name.get("json", {})
    answer = await http.post("/chat", json=body, headers=name.get("headers"))
    assert answer.json()["session_id"] == "s"
    assert llm.shown[-1] == ["system: Be brief.", "user: to s"]


async def test_a_session_is_its_keys_own(gateway: Whole, llm: Listener):
    """Two keys, of one tenant or of two, have a default session each."""
    for tenant in ("acme", "acme", "other"):
        async with gateway.http(await gateway.key(tenant)) as http:
            await said(http, "hello")
            assert llm.shown[-1] == ["system: Be brief.", "user: hello"]


async def test_a_session_survives_a_restart(postgres_home: Path, pool: asyncpg.Pool):
    """Another gateway on the same database goes on with it."""
    for number, llm in enumerate((Listener(), Listener())):
        async with whole(postgres_home, llm=llm) as gateway, gateway.http() as http:
            await said(http, f"question {number}")
    assert llm.shown == [["user: question 0", "assistant: answer 1", "user: question 1"]]


async def test_old_turns_are_left_out_of_the_prompt_and_stay_in_the_conversation(
    http: httpx.AsyncClient, llm: Listener, gateway: Whole
):
    """As many as are beyond `max_conversation_tokens`, whole turns, the oldest first; the system prompt stays."""
    for number in range(6):
        told = await said(http, f"question {number} " + "word " * 20)
    assert told["dropped_messages"] == 8  # 22 + 2 tokens a turn, 64 in all
    assert [line.split(" word")[0] for line in llm.shown[-1]] == [
        "system: Be brief.", "user: question 4", "assistant: answer 5", "user: question 5",
    ]  # fmt: skip
    turns = (await http.get(f"/v1/conversations/{told['conversation_id']}")).json()["turns"]
    assert [turn["parent_id"] for turn in turns] == [None, *(turn["id"] for turn in turns[:-1])]
    kept = await gateway.gateway.conversations.prompt_of("default", turns[-1]["id"])
    assert [f"{message.role}: {message.content}" for message in kept] == llm.shown[-1]


async def test_a_request_may_bring_its_own_system_prompt(http: httpx.AsyncClient, llm: Listener):
    """For itself alone; one among the messages stays with the session."""
    await said(http, "one", system_prompt="Shout.")
    await said(http, "two")
    assert [shown[0] for shown in llm.shown] == ["system: Shout.", "system: Be brief."]
    system = {"role": "system", "content": "Whisper."}
    body = {"messages": [system, {"role": "user", "content": "one"}], "session_id": "s", "rag": False}
    assert (await http.post("/chat", json=body)).status_code == 200
    await said(http, "two", session_id="s")
    assert llm.shown[-1] == ["system: Whisper.", "user: one", "assistant: answer 3", "user: two"]


async def test_a_question_that_got_no_answer_is_not_in_the_history(http: httpx.AsyncClient, llm: Listener):
    """Whoever still wants to know asks again."""
    await said(http, "one")
    llm.failing.append(EngineFailed("it broke"))
    failed = await http.post("/chat", json={"messages": [{"role": "user", "content": "two"}], "rag": False})
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_failed")
    await said(http, "two")
    assert llm.shown[-1][1:] == ["user: one", "assistant: answer 1", "user: two"]


async def test_a_deleted_conversation_is_forgotten(http: httpx.AsyncClient, llm: Listener, pool: asyncpg.Pool):
    """With the names of the sessions that were there, which begin anew."""
    first = await said(http, "one")
    await http.delete(f"/v1/conversations/{first['conversation_id']}")
    assert await pool.fetchval("select count(*) from sessions") == 0
    await said(http, "two")
    assert llm.shown[-1][1:] == ["user: two"]


async def test_a_session_goes_on_with_the_conversation_that_is_named(http: httpx.AsyncClient, llm: Listener):
    """By x-conversation-id; from then on without it. One that is not there is a 404."""
    first = await said(http, "one", session_id="a")
    body = {"messages": [{"role": "user", "content": "two"}], "session_id": "b", "rag": False}
    answer = await http.post("/chat", json=body, headers={"x-conversation-id": first["conversation_id"]})
    assert answer.json()["conversation_id"] == first["conversation_id"]
    await said(http, "three", session_id="b")
    assert len(llm.shown[-1]) == 1 + 5
    gone = {"x-conversation-id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff"}
    assert (await http.post("/chat", json=body, headers=gone)).status_code == 404


async def test_an_answer_streams_as_json_events(http: httpx.AsyncClient):
    """Tokens as they come, and at the end all that the whole answer tells."""
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "rag": False}
    answer = await http.post("/chat", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert events[0] == {"token": "answer 1"}
    assert (events[-1]["done"], events[-1]["response"], events[-1]["session_id"]) == (True, "answer 1", "default")
    reset = await http.post("/chat", json={"messages": [], "stream": True})
    assert json.loads(reset.text.removeprefix("data: "))["response"] == ""


@pytest.mark.parametrize(
    ("event", "known"),
    [("http.response.start", []), ("http.response.body", ["user: one", "assistant: answer 1"])],
)
async def test_a_client_that_leaves_frees_the_model(
    gateway: Whole, http: httpx.AsyncClient, llm: Listener, event: str, known: list[str]
):
    """Before the first word the question is no part of the history; after it, what was told by then is."""
    llm.hangs = True
    body = {"messages": [{"role": "user", "content": "one"}], "stream": True, "rag": False}
    sent = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> dict[str, object]:
        return sent.pop() if sent else {"type": "http.disconnect"}

    async def send(told: MutableMapping[str, Any]) -> None:
        if told["type"] == event:
            raise OSError

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    path = {"path": "/chat", "raw_path": b"/chat", "query_string": b"", "root_path": ""}
    scope = {"type": "http", "method": "POST", "scheme": "http", "headers": headers, "server": ("localhost", 80)}
    with pytest.raises(OSError):  # noqa: PT011 - our own, from `send`
        await gateway.app(scope | path, receive, send)
    await gateway.gateway.answering.close()
    await until(lambda: llm.left)
    llm.hangs = False
    await said(http, "two")
    assert llm.shown[-1][1:] == [*known, "user: two"]


async def test_two_requests_at_once_are_branches(http: httpx.AsyncClient, llm: Listener):
    """Of the one conversation: neither answer is lost."""
    first = await said(http, "one")
    llm.meeting = asyncio.Barrier(2)
    told = await asyncio.gather(said(http, "left"), said(http, "right"))
    assert {one["conversation_id"] for one in told} == {first["conversation_id"]}
    turns = (await http.get(f"/v1/conversations/{first['conversation_id']}")).json()["turns"]
    assert [turn["parent_id"] for turn in turns] == [None, turns[0]["id"], turns[0]["id"]]


async def test_generate_answers_one_prompt_without_a_history(http: httpx.AsyncClient, llm: Listener):
    """With the server's system prompt, whole and streamed."""
    await said(http, "before")
    told = (await http.post("/generate", json={"prompt": "hi", "max_tokens": 5, "temperature": 0.7})).json()
    assert (told["response"], told["tokens_generated"]) == ("answer 2", 1)
    assert "session_id" not in told
    assert llm.shown[-1] == ["system: Be brief.", "user: hi"]
    streamed = await http.post("/generate", json={"prompt": "hi", "stream": True})
    assert '"token":"answer 3"' in streamed.text


async def test_the_settings_defaults_reach_the_engine(gateway: Whole, http: httpx.AsyncClient):
    """Those of the checklist; a request's own values win."""
    seen: list[Generate] = []
    engine = gateway.gateway.answering

    async def answer(ask):  # type: ignore[no-untyped-def]
        seen.append(ask.generate)
        async with aclosing(type(engine).answer(engine, ask)) as items:
            async for item in items:
                yield item

    engine.answer = answer  # type: ignore[method-assign]
    await said(http, "hi")
    await said(http, "hi", temperature=0, max_tokens=7, top_p=0.5, top_k=3, repeat_penalty=1)
    values = [(s.temperature, s.top_p, s.top_k, s.repeat_penalty) for s in (one.sampling for one in seen)]
    assert values == [(0.7, 0.9, 40, 1.1), (0, 0.5, 3, 1)]
    assert [(one.max_tokens, one.clip) for one in seen] == [(2048, True), (7, True)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "hi"}]}, "messages[0].tool_call_id"),
        ({"messages": [], "temperature": 2.5}, "temperature"),
        ({"messages": [], "max_tokens": 0}, "max_tokens"),
        ({"messages": [], "top_p": 0}, "top_p"),
        ({"messages": [], "top_k": -1}, "top_k"),
        ({"messages": [], "repeat_penalty": "1"}, "repeat_penalty"),
        ({"messages": [], "session_id": ""}, "session_id"),
        ({"messages": [], "session_id": "x" * 129}, "session_id"),
        ({"messages": [], "session_id": "\0"}, "session_id"),
        ({"messages": [], "enable_tools": "yes"}, "enable_tools"),
        ({"messages": [], "model": "nobody"}, "model"),
        ({"messages": [], "mirostat": 2}, "mirostat"),
        ({"messages": [{"role": "user", "content": "hi"}], "rag": {"topk": 1}}, "rag"),
    ],
)
async def test_a_malformed_request_is_refused_by_name(http: httpx.AsyncClient, body: dict[str, Any], param: str):
    """And the server goes on."""
    answer = await http.post("/chat", json=body)
    assert answer.status_code in {400, 404}
    assert answer.json()["error"]["param"] == param


async def test_a_model_that_is_away_is_a_503_and_the_health_says_why(http: httpx.AsyncClient, llm: Listener):
    """With the time to wait; the server goes on, and so does the session when the model is back."""
    away = Unavailable("language model", "its process ended and is being replaced")
    llm.failing.append(away)
    answer = await http.post("/chat", json={"messages": [{"role": "user", "content": "hi"}], "rag": False})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "2"
    llm.sick = away
    health = await http.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "degraded")
    assert "llm: The language model is not available" in health.json()["message"]
    llm.sick = None
    assert (await http.get("/health")).json()["message"] == "every part answers"
    assert (await said(http, "hi"))["response"]


async def test_a_history_that_nobody_knows_is_a_503(gateway: Whole, http: httpx.AsyncClient):
    """While turns wait to be recorded. A client that brings the whole conversation is answered."""
    await said(http, "one")
    recorder = gateway.gateway.recorder
    with recorder.spool.replaying():
        recorder.spool.add(turn(user("It waits.")))
        answer = await http.post("/chat", json={"messages": [{"role": "user", "content": "two"}], "rag": False})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        brought = [{"role": "assistant", "content": "Ask."}, {"role": "user", "content": "two"}]
        answer = await http.post("/chat", json={"messages": brought, "rag": False})
        assert (answer.status_code, answer.json()["conversation_id"]) == (200, None)
    await until(lambda: recorder.pending() == 0)
