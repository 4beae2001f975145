"""The stage `export`: what people taught is learnt, what nobody judged is context, and nothing is told twice."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
import pyarrow.parquet
import pytest

from app.conversations import Conversations
from app.errors import NothingToLearn
from app.feedback import FeedbackStore
from app.messages import Message, Passage, Tool
from app.turns import Turn
from train import export, lines, stages
from train.export import Export

pytestmark = pytest.mark.integration

TOOL = Tool(name="weather", parameters={"type": "object"})
PASSAGE = Passage(
    document_id="d", collection="c", title="Shop", chunk=0, text="Tea costs 3.", score=1.0, start=0, end=12
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


async def record(pool: asyncpg.Pool, *messages: Message, answer: str, **fields: object) -> str:
    """Record a turn. Returns its id."""
    turn = Turn.model_validate(
        {
            "request_id": f"req_{uuid4()}",
            "messages": messages,
            "answer": assistant(answer),
            "model": "demo",
            "latency_s": 1.0,
            "status": "complete",
            "created_at": datetime.now(UTC),
        }
        | fields
    )
    return (await Conversations(pool).record(turn)).turn_id


async def exported(home: Path, **changes: object) -> Path:
    """The folder of an export. In a thread, as the stage is a program of its own."""
    parameters = Export.model_validate(changes)
    return await asyncio.to_thread(stages.run, export.STAGE, inputs={}, parameters=parameters, home=home)


def said(folder: Path) -> list[list[tuple[str, int]]]:
    """Contents and weights of each line."""
    told = lines.read(folder / "data.jsonl")
    return [list(zip((m.content for m in line.messages), line.weights, strict=True)) for line in told]


async def test_only_what_people_taught_is_learnt(pool: asyncpg.Pool, postgres_home: Path) -> None:
    """A corrected answer is replaced, one rated up stays, one that nobody judged is context."""
    judged = FeedbackStore(pool)
    first = (Message(role="system", content="Be kind."), user("tea?"))
    wrong = await record(pool, *first, answer="No.", extras={"tools": [TOOL.model_dump()]})
    unrated = (*first, assistant("No."), user("milk?"))
    await record(pool, *unrated, answer="Maybe.")
    good = await record(pool, *unrated, assistant("Maybe."), user("sugar?"), answer="Yes.")
    await judged.give(wrong, "", {"correction": assistant("Here is tea.")})
    await judged.give(good, "", {"rating": 1.0})
    folder = await exported(postgres_home)
    expected = [
        ("Be kind.", 0),
        ("tea?", 0),
        ("Here is tea.", 1),
        ("milk?", 0),
        ("Maybe.", 0),
        ("sugar?", 0),
        ("Yes.", 1),
    ]
    assert said(folder) == [expected]
    [line] = lines.read(folder / "data.jsonl")
    assert [tool.name for tool in line.tools] == ["weather"]
    assert line.metadata["turns"] == [wrong, line.metadata["turns"][1], good]
    assert line.metadata["tenant"] == "default"
    [pair] = lines.read_preferences(folder / "preferences.jsonl")
    assert (pair.chosen.content, pair.rejected.content) == ("Here is tea.", "No.")
    assert [message.content for message in pair.prompt] == ["Be kind.", "tea?"]


async def test_answers_to_the_same_question_make_a_preference(pool: asyncpg.Pool, postgres_home: Path) -> None:
    """Rated up before rated down; the line tells the better branch."""
    judged = FeedbackStore(pool)
    await judged.give(await record(pool, user("tea?"), answer="Yes."), "", {"rating": 1.0})
    await judged.give(await record(pool, user("hi"), answer="Hello."), "", {"rating": 1.0})
    opened = user("tea?")
    conversation = (await Conversations(pool).list("default"))[1].id
    down = await record(pool, opened, answer="No.", conversation_id=conversation)
    await judged.give(down, "", {"rating": -1.0})
    folder = await exported(postgres_home)
    [pair] = lines.read_preferences(folder / "preferences.jsonl")
    assert (pair.chosen.content, pair.rejected.content) == ("Yes.", "No.")
    assert [("tea?", 0), ("Yes.", 1)] in said(folder)


async def test_sources_stand_before_the_answer_where_they_are_wanted(pool: asyncpg.Pool, postgres_home: Path) -> None:
    """As the model saw them."""
    turn = await record(pool, user("tea?"), answer="It costs 3.", sources=[PASSAGE])
    await FeedbackStore(pool).give(turn, "", {"rating": 1.0})
    [plain] = said(await exported(postgres_home))
    [behind] = said(await exported(postgres_home, sources=True))
    assert plain[0] == ("tea?", 0)
    assert "Tea costs 3." in behind[0][0]
    assert behind[1] == ("It costs 3.", 1)


async def test_an_export_is_made_anew_only_when_something_changed(pool: asyncpg.Pool, postgres_home: Path) -> None:
    """Turns or feedback."""
    turn = await record(pool, user("tea?"), answer="Yes.")
    await FeedbackStore(pool).give(turn, "", {"rating": 1.0})
    first = await exported(postgres_home, parquet=True)
    assert await exported(postgres_home, parquet=True) == first
    await FeedbackStore(pool).give(turn, "", {"correction": assistant("With pleasure.")})
    second = await exported(postgres_home, parquet=True)
    assert second != first
    assert said(second) == [[("tea?", 0), ("With pleasure.", 1)]]
    table = pyarrow.parquet.read_table(second / "data.parquet").to_pylist()
    assert json.loads(table[0]["messages"])[1]["content"] == "With pleasure."


async def test_what_is_wanted_is_chosen(pool: asyncpg.Pool, postgres_home: Path) -> None:
    """By tenant, model, rating and date."""
    for number, fields in enumerate(({}, {"tenant": "acme"}, {"model": "other"})):
        turn = await record(pool, user(f"tea {number}?"), answer=f"Yes, {number}.", **fields)
        await FeedbackStore(pool).give(turn, "", {"rating": 1.0})
    assert len(said(await exported(postgres_home))) == 2
    assert said(await exported(postgres_home, tenants=["acme"])) == [[("tea 1?", 0), ("Yes, 1.", 1)]]
    assert said(await exported(postgres_home, model="other")) == [[("tea 2?", 0), ("Yes, 2.", 1)]]
    assert len(said(await exported(postgres_home, tenants=["default", "acme"], rating="up"))) == 3
    with pytest.raises(NothingToLearn):
        await exported(postgres_home, before="2020-01-01T00:00:00Z")


async def test_unrated_answers_alone_are_nothing_to_learn(pool: asyncpg.Pool, postgres_home: Path) -> None:
    """Unless they came from elsewhere; said in a sentence with both numbers."""
    await record(pool, user("tea?"), answer="Yes.")
    with pytest.raises(NothingToLearn, match=r"Found 0 rated or corrected answers in 1 conversations, needed 1\. Rate"):
        await exported(postgres_home)
    await record(pool, user("milk?"), answer="No.", extras={"imported": {"format": "vibe"}})
    assert said(await exported(postgres_home)) == [[("milk?", 0), ("No.", 1)]]
