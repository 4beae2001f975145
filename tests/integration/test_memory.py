"""What was said in conversations is found again: by whom it may be, as long as it exists. On real stores."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.chunking import cut
from app.conversations import Conversations
from app.errors import Unavailable
from app.feedback import FeedbackStore
from app.memory import COLLECTION, Memory, memory_id, turn_of
from app.messages import Chunk, Message, Passage, Search
from app.recorder import Recorder
from app.spool import Spool
from deployments.recall import Recall
from deployments.remembering import Remembering
from deployments.vector_store import VectorStore
from tests.fakes import Handle
from tests.integration.test_conversations import START, assistant, chat, turn, user
from tests.library import retrieving

pytestmark = pytest.mark.integration


def pieces(text: str) -> tuple[Chunk, ...]:
    return cut(text, chunk_chars=512, overlap_chars=50)


class World(NamedTuple):
    """One database, one vector store. index: what the worker asks of the retriever, and a test may replace."""

    pool: asyncpg.Pool
    recorder: Recorder
    retriever: Any
    vectors: VectorStore

    @property
    def store(self) -> Conversations:
        return self.recorder.conversations

    @property
    def memory(self) -> Memory:
        return self.recorder.memory

    async def remember(self, retriever: Any = None) -> int:
        """Do all that is due, and say how much it was."""
        worker, done = Remembering(self.memory, retriever or self.retriever, pieces), 0
        async with self.memory.working() as work:
            assert work is not None
            while some := await worker.once(work):
                done += some
        return done

    async def recall(self, query: str, *, tenant: str = "default", held: str | None = None) -> tuple[Passage, ...]:
        search = Search(query=query, tenant=tenant, collections=(COLLECTION,), min_score=0.1)
        return await Recall(Handle(search=self.retriever.search), self.recorder).search(search, held)

    async def kept(self, tenant: str = "default") -> int:
        """Chunks in the vector store."""
        return await self.vectors.count(COLLECTION, tenant)


@pytest.fixture
async def world(pool: asyncpg.Pool, tmp_path: Path) -> AsyncIterator[World]:
    async with retrieving(tmp_path / "home") as (retriever, vectors):
        yield World(pool, Recorder(pool, Spool(tmp_path / "spool")), retriever, vectors)


async def only_turn(world: World, conversation: str) -> str:
    return (await world.store.get("default", conversation)).turns[0].id


async def test_what_was_said_is_found_with_its_date_and_conversation(world):
    """A passage of memory tells where it comes from."""
    said = turn(user("Which port does the printer use?"), answer="The printer listens on port 9100.", created_at=START)
    kept = await world.store.record(said)
    assert await world.remember() == 1
    (found,) = await world.recall("port of the printer")
    assert found.conversation_id == kept.conversation_id
    assert (found.collection, found.document_id) == (COLLECTION, memory_id(UUID(kept.turn_id), START))
    assert found.title == "Conversation of 2026-01-01: Which port does the printer use?"
    assert found.text == "User: Which port does the printer use?\n\nAssistant: The printer listens on port 9100."


async def test_no_conversation_is_remembered_to_itself(world):
    """Not even where it fits the question best: another one that fits less is found instead."""
    held, _ = await chat(world.store, "the colour of the bridge", "the colour of the bridge, again")
    other, _ = await chat(world.store, "what is the colour of that old boat")
    await world.remember()
    assert {found.conversation_id for found in await world.recall("colour of the bridge")} == {held, other}
    assert {found.conversation_id for found in await world.recall("colour of the bridge", held=held)} == {other}


async def test_no_tenant_remembers_for_another(world):
    """Not by the words of a search, nor by naming the other's turn to PostgreSQL."""
    theirs, _ = await chat(world.store, "the secret recipe", tenant="them")
    await world.remember()
    assert await world.recall("the secret recipe") == ()
    (found,) = await world.recall("the secret recipe", tenant="them")
    assert found.conversation_id == theirs
    assert await world.memory.told("default", [found]) == ()
    assert await world.memory.of_conversation("default", theirs) == ()


async def test_what_is_deleted_is_gone_at_once_and_its_vectors_a_little_later(world):
    """No search finds it from the moment of its deletion on, though its vectors are still there."""
    conversation, _ = await chat(world.store, "one thing", "another thing")
    await chat(world.store, "one thing that stays")
    await world.remember()
    await world.store.delete("default", conversation)
    assert await world.kept() == 3
    assert [found.title[-20:] for found in await world.recall("one thing")] == ["one thing that stays"]
    await world.remember()
    assert await world.kept() == 1


async def test_a_tenant_that_is_removed_is_forgotten(world):
    """However its rows go: here by hand, as an operator would."""
    await chat(world.store, "one thing", tenant="them")
    await world.remember()
    await world.pool.execute("delete from conversations where tenant = 'them'")
    assert await world.recall("one thing", tenant="them") == ()
    await world.remember()
    assert await world.kept("them") == 0


async def test_a_restart_loses_no_turn(world):
    """What one process recorded, and could not remember, another one remembers; and once only."""
    await chat(world.store, "one", "two", "three")

    class Away:
        async def index(self, _: object) -> int:
            raise Unavailable("embedder", "away")

    with pytest.raises(Unavailable):
        await world.remember(Away())
    assert await world.remember() == 3
    assert await world.remember() == 0
    assert await world.kept() == 3


async def test_one_worker_works_at_a_time(world):
    """Another process waits until the first one lets go, or its connection is lost."""
    async with world.memory.working() as mine:
        assert mine is not None
        async with world.memory.working() as theirs:
            assert theirs is None
    async with world.memory.working() as theirs:
        assert theirs is not None


async def test_the_worker_notices_new_turns_by_itself(world):
    """A turn is found a moment after it was recorded, and recording does not wait for that."""
    indexed = asyncio.Event()

    class Noticing:
        async def index(self, index: Any) -> int:
            indexed.set()
            return await world.retriever.index(index)

    working = asyncio.create_task(Remembering(world.memory, Noticing(), pieces, rest_s=0.01).forever())
    await chat(world.store, "a question")
    async with asyncio.timeout(10):
        await indexed.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_a_correction_takes_the_place_of_its_answer_and_a_bad_answer_is_forgotten(world):
    """Feedback reaches memory, also where it comes after the turn was remembered."""
    conversation, _ = await chat(world.store, "who keeps the keys")
    await world.remember()
    give, turn_id = FeedbackStore(world.pool).give, await only_turn(world, conversation)
    await give(turn_id, "", {"correction": assistant("Joan keeps the keys.")})
    await world.remember()
    assert [found.text for found in await world.recall("who keeps the keys")] == [
        "User: who keeps the keys\n\nAssistant: Joan keeps the keys."
    ]
    await give(turn_id, "", {"correction": None, "rating": -1.0})
    await world.remember()
    assert await world.recall("who keeps the keys") == ()
    assert await world.kept() == 0


@pytest.mark.parametrize(
    "facts",
    [
        {"answer": "", "status": "failed"},  # nothing was said
        {"answer": Message(role="assistant", content=" \n")},
    ],
)
async def test_some_turns_are_not_remembered(world, facts):
    """The queue is empty all the same."""
    await world.store.record(turn(user("remember me"), **facts))
    assert await world.remember() == 1
    assert await world.kept() == 0


async def test_of_equals_the_newest_comes_first(world):
    """The same question with the same answer at two times: what was said last is told."""
    for day in (1, 3, 2):
        said = turn(user("who has the key"), answer="Joan has it.", created_at=START + timedelta(days=day))
        await world.store.record(said)
    await world.remember()
    assert [found.title[16:26] for found in await world.recall("who has the key")] == ["2026-01-04"]


async def test_the_end_of_an_agents_work_is_remembered_with_its_task(world):
    """The turns between are calls and results; what the user had asked for stands before them."""
    call = Message.model_validate({"role": "assistant", "tool_calls": [{"id": "1", "name": "look", "arguments": "{}"}]})
    result = Message(role="tool", content="x = 1", tool_call_id="1")
    await world.store.record(turn(user("Rename x to y"), answer=call))
    await world.store.record(turn(user("Rename x to y"), call, result, answer="Renamed."))
    await world.remember()
    assert [found.text for found in await world.recall("rename x")] == ["User: Rename x to y\n\nAssistant: Renamed."]


async def test_a_turn_that_cannot_be_remembered_holds_nobody_up(world):
    """It is tried again later, each time later still."""
    await chat(world.store, "good", "bad")

    class Choosy:
        async def index(self, index: Any) -> int:
            if "bad" in index.chunks[0].text:
                raise ValueError("no")
            return await world.retriever.index(index)

    await world.remember(Choosy())
    assert await world.kept() == 1
    waiting = await world.pool.fetch("select failures, try_after > now() as later from unremembered")
    assert [tuple(row) for row in waiting] == [(1, True)]


async def test_what_is_deleted_while_it_is_remembered_leaves_nothing(world):
    """Neither a passage nor a vector, though it was written after the deletion."""
    conversation, _ = await chat(world.store, "short lived")

    class Slow:
        forget = staticmethod(world.retriever.forget)

        async def index(self, index: Any) -> int:
            await world.store.delete("default", conversation)
            return await world.retriever.index(index)

    await world.remember(Slow())
    assert await world.recall("short lived") == ()
    assert await world.kept() == 0


async def test_everything_can_be_remembered_anew(world, pool):
    """Of one tenant or of all; what is there already is replaced."""
    await chat(world.store, "a")
    await chat(world.store, "b", tenant="them")
    await world.remember()
    assert (await world.memory.again("them"), await world.memory.again()) == (1, 2)
    assert await world.remember() == 2
    assert (await world.kept(), await world.kept("them")) == (1, 1)


def test_ids_of_memory_order_by_time_and_name_their_turn():
    """Nothing else has such ids."""
    turn_id = uuid4()
    early, late = memory_id(turn_id, START), memory_id(turn_id, START + timedelta(milliseconds=1))
    assert early < late
    assert turn_of(early) == turn_id
    assert turn_of("doc_0000018bcfe56800aaaaaaaaaaaaaaaa") is None
    assert turn_of("mem_") is None


async def test_of_many_turns_the_latest_and_the_oldest_are_next(world):
    """However fast new ones come, none waits for ever."""
    await chat(world.store, *(f"question {number}" for number in range(9)))
    async with world.memory.working() as work:
        assert work is not None
        numbers = "select turns.id from turns order by number"
        turns = [row["id"] for row in await world.pool.fetch(numbers)]
        due = [one.turn_id for one in await work.unremembered(4)]
    assert due == [turns[8], turns[7], turns[1], turns[0]]
