"""The routes of conversations and feedback over a real PostgreSQL."""

import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from app.conversations import Conversations
from app.feedback import FeedbackStore
from app.forgetting import Forgetting
from app.messages import Message, Tool
from app.recorder import Recorder
from app.spool import Spool
from deployments.routes import callers, conversations, refusals
from tests.integration.test_conversations import START, SYSTEM, assistant, chat, turn, user

pytestmark = pytest.mark.integration

Http = httpx2.AsyncClient


@pytest.fixture
def recorder(pool: asyncpg.Pool, tmp_path: Path) -> Recorder:
    return Recorder(pool, Spool(tmp_path))


@pytest.fixture
def store(recorder: Recorder) -> Conversations:
    return recorder.conversations


@pytest.fixture
async def http(recorder: Recorder) -> AsyncIterator[Http]:
    app = FastAPI()
    refusals.register(app)
    app.dependency_overrides[callers.tenant] = lambda: "default"
    feedback = FeedbackStore(recorder.pool)
    gateway: Any = SimpleNamespace(
        recorder=recorder,
        conversations=recorder.conversations,
        feedback=feedback,
        forgetting=Forgetting(recorder.pool),
    )
    app.include_router(conversations.routes(gateway))

    async def known(scope: Scope, receive: Receive, send: Send) -> None:  # what the guard says of each request
        scope["state"] = {"x_request_id": "req_0"}
        await app(scope, receive, send)

    transport = httpx2.ASGITransport(known, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def listed(http: Http, **filters: Any) -> list[str]:
    answer = await http.get("/v1/conversations", params=filters)
    assert answer.status_code == 200, answer.text
    return [found["title"] for found in answer.json()["data"]]


async def test_pages_follow_each_other(http: Http, store: Conversations) -> None:
    """The latest first, and each once."""
    for name in "abc":
        await chat(store, name)
    first = (await http.get("/v1/conversations", params={"limit": 2})).json()
    rest = (await http.get("/v1/conversations", params={"limit": 2, "after": first["last_id"]})).json()
    assert [found["title"] for found in first["data"] + rest["data"]] == ["c", "b", "a"]
    assert (first["has_more"], rest["has_more"]) == (True, False)


async def test_filters_narrow_the_list(http: Http, store: Conversations) -> None:
    """By the time of the latest turn, by a model of any turn, by words, and all of them together."""
    early, late = START + timedelta(days=1), START + timedelta(days=2)
    await store.record(turn(user("early birds"), created_at=early))
    await store.record(turn(user("late"), created_at=late, model="other", answer="Owls fly at night."))
    assert await listed(http, **{"from": late.isoformat()}) == ["late"]
    assert await listed(http, to="2026-01-03") == ["early birds"]
    assert await listed(http, model="other") == ["late"]
    assert await listed(http, q="owls night") == ["late"]
    assert await listed(http, q='"night fly"') == []
    assert await listed(http, q="birds or owls") == ["late", "early birds"]
    assert await listed(http, q="birds", model="other") == []
    assert await listed(http, q="!&|():* \\ ' \0") == []


async def test_words_are_found_by_an_index(store: Conversations, pool: asyncpg.Pool) -> None:
    """A search does not read every turn."""
    await chat(store, "a needle")
    query = "select id from turns where turn_words(answer, messages) @@ websearch_to_tsquery('simple', 'needle')"
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("set local enable_seqscan = off")
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {query}"))
        assert "turns_by_words" in plan
        assert len(await connection.fetch(query)) == 1


@pytest.mark.parametrize("joint", [" ", "-", ".", "/", "@", "_", "\0"])
async def test_no_turn_has_too_many_words_to_be_kept(store: Conversations, joint: str) -> None:
    """PostgreSQL refuses to index a megabyte of words: a turn of two is kept, and found by those at its beginning."""
    letters = random.Random(0)
    words = [
        "".join(chr(letters.randrange(0x10400, 0x1044F)) for _ in range(letters.randrange(1, 9))) for _ in range(20_000)
    ]
    await store.record(turn(user("x"), answer=f"findable {joint.join(words)}"))
    await store.record(turn(user("x"), answer=joint.join(f"{number:x}" for number in range(20_000))))
    assert len(await store.list("default")) == 2


async def test_feedback_by_any_of_a_turn_s_names(http: Http, store: Conversations) -> None:
    """The turn's id, the request's in each dialect, and the x-request-id that the client chose."""
    conversation, _ = await chat(store, "a", request_id="req_1f", extras={"x_request_id": "mine"})
    kept = (await store.get("default", conversation)).turns[0]
    names = [{"turn_id": kept.id}, *({"request_id": name} for name in ("chatcmpl-req_1f", "resp_1f", "mine"))]
    for name in names:
        answer = await http.post("/v1/feedback", json={**name, "rating": "up"})
        assert (answer.status_code, answer.json().get("turn_id")) == (200, kept.id), answer.text
    (one,) = (await store.get("default", conversation)).turns[0].feedback
    assert one.rating == 1


async def test_the_last_word_of_each_author_wins(http: Http, store: Conversations) -> None:
    """What is not said anew stays, null withdraws, and two people have two opinions."""
    conversation, _ = await chat(store, "a")
    turn_id = (await store.get("default", conversation)).turns[0].id
    said: list[dict[str, Any]] = [
        {"rating": "up", "comment": "fine \0"},
        {"rating": "down"},
        {"rating": "down"},
        {"stars": 5, "user": "ann", "correction": "No."},
        {"correction": None, "user": "ann"},
    ]
    for opinion in said:
        assert (await http.post("/v1/feedback", json={"turn_id": turn_id, **opinion})).status_code == 200
    (told,) = (await http.get(f"/v1/conversations/{conversation}")).json()["turns"]
    seen = [(one["author"], one["rating"], one["comment"], one["correction"]) for one in told["feedback"]]
    assert seen == [("", -1.0, "fine \0", None), ("ann", 1.0, None, None)]


async def test_ratings_filter_the_list(http: Http, store: Conversations) -> None:
    """Up, down, and not judged at all; a comment is no rating."""
    for name, opinion in (("a", {"rating": "up"}), ("b", {"rating": -0.5}), ("c", {"comment": "Hm."})):
        await chat(store, name, request_id=f"req_{name}")
        await http.post("/v1/feedback", json={"request_id": f"req_{name}", **opinion})
    assert [await listed(http, rating=rating) for rating in ("up", "down", "none")] == [["a"], ["b"], ["c"]]


async def test_a_turn_that_is_not_there_is_a_404(http: Http, store: Conversations) -> None:
    """Also another tenant's, and what is no id at all."""
    await chat(store, "a", request_id="req_theirs", tenant="other")
    for name in ({"request_id": "req_theirs"}, {"request_id": "\0"}, {"turn_id": "x"}, {"turn_id": "\0"}):
        answer = await http.post("/v1/feedback", json={**name, "rating": "up"})
        assert answer.status_code == 404, answer.text


async def test_a_shared_request_id_is_ambiguous(http: Http, store: Conversations) -> None:
    """Clients may send one x-request-id twice; a guess would judge the wrong answer."""
    for name in "ab":
        await chat(store, name, extras={"x_request_id": "mine"})
    answer = await http.post("/v1/feedback", json={"request_id": "mine", "rating": "up"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "request_id")


async def test_feedback_on_a_turn_that_waits_in_the_spool_is_to_be_sent_again(
    http: Http, store: Conversations, recorder: Recorder
) -> None:
    """It is not unknown, only not recorded yet; once it is, the feedback is kept."""
    waiting = turn(user("a"), request_id="req_1")
    recorder.spool.add(waiting)
    opinion = {"request_id": "req_1", "rating": "up"}
    early = await http.post("/v1/feedback", json=opinion)
    assert (early.status_code, early.headers["retry-after"]) == (503, "2")
    assert await recorder._replay_once()
    assert (await http.post("/v1/feedback", json=opinion)).json()["turn_id"] == waiting.id


async def test_deleting_a_conversation_takes_everything(http: Http, store: Conversations, pool: asyncpg.Pool) -> None:
    """Turns, feedback, system prompts; a stranger's delete takes nothing."""
    kept = await store.record(turn(SYSTEM, user("a"), request_id="req_1"))
    await http.post("/v1/feedback", json={"request_id": "req_1", "rating": "up"})
    assert (await http.delete(f"/v1/conversations/{kept.conversation_id}")).json()["deleted"]
    assert (await http.delete(f"/v1/conversations/{kept.conversation_id}")).status_code == 404
    for table in ("conversations", "turns", "feedback", "texts", "system_prompts"):
        assert await pool.fetchval(f"select count(*) from {table}") == 0, table


async def test_exports(http: Http, store: Conversations, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format holds every conversation, whatever the page: filtered, streamed, the latest first."""
    monkeypatch.setattr(conversations, "PAGE", 1)
    tools = {"tools": [Tool(name="f", parameters={"type": "object"}).model_dump(mode="json")]}
    await store.record(turn(SYSTEM, user("a"), answer="wrong", request_id="req_1", extras=tools))
    await store.record(turn(SYSTEM, user("a"), assistant("wrong"), Message(role="user", content="b")))
    await store.record(turn(user("c"), answer="", status="failed"))
    await http.post("/v1/feedback", json={"request_id": "req_1", "correction": "right"})
    answer = await http.get("/v1/conversations/export", params={"format": "jsonl"})
    assert answer.headers["content-type"] == "application/jsonl"
    (line,) = [json.loads(line) for line in answer.text.splitlines()]
    assert [message["content"] for message in line["messages"]] == ["Be brief.", "a", "right", "b", "Yes."]
    assert line["tools"][0]["function"]["name"] == "f"
    whole = (await http.get("/v1/conversations/export", params={"format": "json"})).json()
    assert [(found["title"], len(found["turns"])) for found in whole] == [("c", 1), ("a", 2)]
    plain = await http.get("/v1/conversations/export", params={"format": "text", "q": "b"})
    assert plain.text.startswith("# a\n")
    assert "assistant: right" in plain.text
    nothing = {"from": "2030-01-01"}
    assert (await http.get("/v1/conversations/export", params={"format": "json", **nothing})).json() == []
    assert (await http.get("/v1/conversations/export", params=nothing)).text == ""


async def test_conversations_are_exported_by_their_ids(http: Http, store: Conversations) -> None:
    """In the order that was asked for; an unknown one is a 404 before anything is sent, and filters do not mix in."""
    for name in "abc":
        await chat(store, name)
    ids = {found["title"]: found["id"] for found in (await http.get("/v1/conversations")).json()["data"]}
    named = {"format": "json", "id": [ids["a"], ids["c"]]}
    whole = (await http.get("/v1/conversations/export", params=named)).json()
    assert [found["title"] for found in whole] == ["a", "c"]
    lines = (await http.get("/v1/conversations/export", params={"id": ids["b"]})).text.splitlines()
    assert [json.loads(line)["messages"][-2]["content"] for line in lines] == ["b"]
    unknown = await http.get("/v1/conversations/export", params={"id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff"})
    assert unknown.status_code == 404
    mixed = await http.get("/v1/conversations/export", params={"id": ids["b"], "q": "b"})
    assert (mixed.status_code, mixed.json()["error"]["param"]) == (400, "id")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=x", "after=x", "after=%00", "from=yesterday", "from=9999-12-31T23:59:59-23:59", "rating=meh",
     "from=0001-01-01T00:00:00%2B23:59", "q="],
)  # fmt: skip
async def test_bad_filters_are_the_caller_s_fault(http: Http, query: str) -> None:
    """4xx with the name of what is wrong."""
    answer = await http.get(f"/v1/conversations?{query}")
    assert answer.status_code in {400, 404}, answer.text
