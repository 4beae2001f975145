"""Conversations from elsewhere become conversations here: with their dates, marked, and once."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.conversations import Conversations
from app.export import branch, training_line
from app.feedback import FeedbackStore
from app.imports import Imports, Kept
from app.log_files import find
from app.logs import Session, record
from app.messages import Delta, Done, End, Generate, Message, Timings, ToolCallDelta, Usage
from app.postgres_home import PostgresHome
from app.stats import counted
from app.turns import Conversation
from tests.gateway import MODEL, Echo, whole
from tests.integration.test_conversations import chat, turn, user

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
VIBE = ROOT / "tests" / "data" / "vibe-session"


@pytest.fixture
def store(pool: asyncpg.Pool) -> Conversations:
    return Conversations(pool)


@pytest.fixture
def imports(pool: asyncpg.Pool) -> Imports:
    return Imports(pool, "default")


def session(*said: str, **fields: Any) -> Session:
    """Questions and answers in turn."""
    roles = ("user", "assistant")
    read = record({"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]})
    assert isinstance(read, Session)
    return read.model_copy(update={"key": "s1", "began": datetime(2025, 5, 1, 12, tzinfo=UTC), **fields})


async def all_of(store: Conversations) -> list[Conversation]:
    return [await store.get("default", summary.id) for summary in await store.list("default")]


async def test_a_session_becomes_a_conversation_with_its_dates(imports, store):
    """Its turns lie between its beginning and its end, and say where they come from."""
    given = session("a", "b", "c", "d", ended=datetime(2025, 5, 1, 14, tzinfo=UTC), model="devstral", client="vibe")
    assert await imports.keep(given, "logs/s1", None) == Kept(2, 0)
    (kept,) = await all_of(store)
    assert [(one.messages[0].content, one.answer.content) for one in kept.turns] == [("a", "b"), ("c", "d")]
    assert [one.created_at.replace(microsecond=0) for one in kept.turns] == [
        datetime(2025, 5, 1, 13, tzinfo=UTC), datetime(2025, 5, 1, 14, tzinfo=UTC)
    ]  # fmt: skip
    assert {(one.model, one.client, one.status) for one in kept.turns} == {("devstral", "vibe", "complete")}
    assert kept.turns[0].extras["imported"] == {"format": "openai", "from": "logs/s1", "session": "s1"}


async def test_a_log_that_grew_adds_what_is_new(imports, store):
    """Importing again changes nothing; importing more goes on."""
    assert await imports.keep(session("a", "b"), "x", None) == Kept(1, 0)
    assert await imports.keep(session("a", "b"), "x", None) == Kept(0, 1)
    assert await imports.keep(session("a", "b", "c", "d"), "moved", None) == Kept(1, 1)
    (kept,) = await all_of(store)
    assert len(kept.turns) == 2


async def test_what_was_recorded_when_it_was_said_is_not_imported_again(imports, store):
    """A client logs what it asked us."""
    await chat(store, "a", "b")
    assert await imports.keep(session("a", "On a", "b", "On b"), "x", None) == Kept(0, 2)
    assert len(await all_of(store)) == 1


async def test_of_a_session_that_went_on_elsewhere_the_rest_is_added(imports, store):
    """Its beginning was held here, and stays there once; another import changes nothing."""
    await chat(store, "a", "b")
    longer = session("a", "On a", "b", "On b", "c", "On c, by another model")
    assert await imports.keep(longer, "x", None) == Kept(1, 2)
    assert await imports.keep(longer, "x", None) == Kept(0, 3)
    (kept,) = await all_of(store)
    assert [one.answer.content for one in kept.turns] == ["On a", "On b", "On c, by another model"]


async def test_what_vibe_said_through_us_and_kept_is_there_once(postgres_home, pool, store):
    """The requests of a session of Mistral Vibe, shaped as captured, through the gateway; then its own folder of it."""
    (found,) = find(str(VIBE))
    assert isinstance(found.what, Session)
    asked, called, result, answered = found.what.messages
    (call,) = called.tool_calls
    tool = {"name": "bash", "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}}
    fixed = {"model": MODEL, "stream": True, "tools": [{"type": "function", "function": tool}]}
    function = {"name": call.name, "arguments": call.arguments}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are Vibe, and it is noon."},
        {"role": "user", "content": asked.content},
        {
            "role": "assistant",
            "content": called.content,
            "tool_calls": [{"id": call.id, "index": 0, "type": "function", "function": function}],
        },
        {"role": "tool", "content": result.content, "name": call.name, "tool_call_id": call.id},
    ]
    async with whole(postgres_home, llm=Says(called, answered)) as gateway, gateway.http() as http:
        for end in (2, 4):
            said = await http.post("/v1/chat/completions", json={**fixed, "messages": messages[:end]})
            assert said.status_code == 200
            assert "[DONE]" in said.text
        assert await Imports(pool, "default").keep(found.what, found.where, None) == Kept(0, 2)
    assert [len(kept.turns) for kept in await all_of(store)] == [2]


class Says(Echo):
    """A model that gives these answers, one after the other."""

    def __init__(self, *answers: Message) -> None:
        self._answers = iter(answers)

    async def generate(self, request: Generate):  # type: ignore[no-untyped-def]
        answer = next(self._answers)
        calls = (ToolCallDelta(n, one.arguments, one.id, one.name) for n, one in enumerate(answer.tool_calls))
        yield Delta(answer.content, 1, tool_calls=tuple(calls))
        end = End("tool_calls" if answer.tool_calls else "stop")
        yield Done((end,), Usage(prompt_tokens=1, completion_tokens=1), Timings(queued_s=0, prefill_s=0, decode_s=0))


async def test_sessions_that_begin_alike_stay_apart(imports, store):
    """A common greeting makes no common conversation, of which an export would tell one branch only."""
    await imports.keep(session("hi", "Hello.", "a", "b"), "x", None)
    await imports.keep(session("hi", "Hello.", "c", "d", key="s2"), "x", None)
    assert sorted(len(kept.turns) for kept in await all_of(store)) == [2, 2]


async def test_an_answer_of_weight_0_is_judged_bad(imports, store):
    """It is kept for reading, and nobody learns from it."""
    await imports.keep(session("a", "wrong", "b", "right", bad=frozenset({1})), "x", None)
    (kept,) = await all_of(store)
    line = json.loads(training_line(branch(kept.turns)))
    assert [message.get("weight") for message in line["messages"]] == [None, 0, None, None]


async def test_without_a_date_a_session_is_as_old_as_its_file(imports, store):
    """Not as young as its import."""
    await imports.keep(session("a", "b", began=None), "x", datetime(2024, 2, 2, tzinfo=UTC))
    assert (await all_of(store))[0].turns[0].created_at.date().isoformat() == "2024-02-02"


async def test_our_own_export_comes_back_as_it_was(pool, store):
    """Branches, facts and feedback, for another tenant; and here it changes nothing."""
    conversation, said = await chat(store, "a", "b")
    await store.record(turn(*said[:2], user("b, again"), answer="Other."))
    exported = await store.get("default", conversation)
    await FeedbackStore(pool).give(exported.turns[0].id, "joan", {"rating": 1.0, "comment": "good"})
    exported = await store.get("default", conversation)
    read = record(json.loads(exported.model_dump_json()))
    assert read == exported
    assert await Imports(pool, "default").keep(read, "x", None) == Kept(0, 3)
    assert await Imports(pool, "them").keep(read, "x", None) == Kept(3, 0)
    assert await Imports(pool, "them").keep(read, "x", None) == Kept(0, 3)
    (there,) = [await store.get("them", summary.id) for summary in await store.list("them")]
    assert [one.answer for one in there.turns] == [one.answer for one in exported.turns]
    assert [one.created_at for one in there.turns] == [one.created_at for one in exported.turns]
    assert [one.parent_id is None for one in there.turns] == [True, False, False]
    assert [(said.author, said.rating) for said in there.turns[0].feedback] == [("joan", 1.0)]


async def test_clearing_forgets_what_was_imported_and_nothing_else(imports, store, pool):
    """A conversation that went on here is not only imported any more."""
    await chat(store, "held here")
    await imports.keep(session("a", "b"), "x", None)
    await imports.keep(session("c", "d", key="s2"), "x", None)
    await Imports(pool, "them").keep(session("e", "f"), "x", None)
    messages = session("c", "d", "and on", "yes").messages
    await store.record(turn(*messages[:3], answer="yes"))
    assert await imports.clear() == 1
    assert sorted(kept.title for kept in await all_of(store)) == ["c", "held here"]
    assert (await counted(pool, "them"))["conversations"]["conversations"] == 1


def test_one_command_imports_a_folder_and_another_tells_how_much_there_is(pool, postgres_home, tmp_path):
    """A session that Mistral Vibe 3.0.2 wrote, and lines of JSON, with a report of what was skipped and why; `copy`
    brought the folder here.
    """
    url = f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}&port=5432"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    shutil.copytree(VIBE, tmp_path / "there" / "session")
    (tmp_path / "there" / "a.jsonl").write_text(f"{json.dumps(good)}\n{{\n")

    def mindfu(*arguments: str) -> Any:
        ran = subprocess.run(
            [sys.executable, "-m", "deployments.cli", *arguments, "--json"],
            capture_output=True, text=True, timeout=60, cwd=ROOT, check=True,
            env={**os.environ, "MINDFU_POSTGRES_URL": url, "MINDFU_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        return json.loads(ran.stdout)

    there, here = str(tmp_path / "there"), str(tmp_path / "here")
    assert mindfu("copy", there, here) == {"copied": 5, "same": 0}
    assert mindfu("copy", there, here) == {"copied": 0, "same": 5}
    report = mindfu("ingest-logs", here)
    assert (report["sessions"], report["conversations"], report["turns"]) == ({"openai": 1, "vibe": 1}, 2, 3)
    assert report["waiting_to_be_remembered"] == 3
    (skipped,) = report["skipped"]
    assert skipped["where"].endswith("a.jsonl:2")
    assert "no JSON" in skipped["why"]
    again = mindfu("ingest-logs", "--clear", here)
    assert (again["cleared"], again["turns"]) == (2, 3)
    stats = mindfu("stats")
    assert (stats["conversations"]["imported_turns"], stats["memory"]["waiting"]) == (3, 3)
    assert stats["files"] == {"files": 0, "bytes": 0, "vector_stores": 0}
    assert stats["disk"]["postgres"] > 0
