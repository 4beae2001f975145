"""The people of the loop's demonstration, against a whole gateway: what they teach is what a run would learn."""

from pathlib import Path

import asyncpg
import pytest

from app.conversations import Conversations
from app.postgres_home import PostgresHome
from tests.gateway import whole
from train import export, lines, loop_people
from train.loop_people import Chat, Exchange, Known, People

pytestmark = pytest.mark.integration


async def test_what_is_learnt_is_what_people_corrected_or_rated_up(
    pool: asyncpg.Pool, postgres_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of this test repeats what it hears: nobody who knows the references likes that."""
    monkeypatch.setenv("MINDFU_POSTGRES_URL", f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}")
    chats = [
        Chat((Exchange("A mocha.", "Is this correct?"), Exchange("Yes.", "Soon!")), "corrected"),
        Chat((Exchange("A latte.", "Coming up."),), "rated"),
        Chat((Exchange("A tea.", "We have none."),), "untouched"),
    ]
    async with whole(tmp_path) as gateway, gateway.http() as http:
        people = People(http)
        practised = await people.practise(
            [("hours.txt", "The desk opens at nine.")],
            [Known("When does the desk open?", "opens at nine", 2), Known("x", "y")],
        )
        done = await people.replay(chats)
        async with people.crowd(chats):
            assert len(await people.first_answers(chats)) == 3
    assert dict(practised) == {"up": 1, "down": 1}
    assert dict(done) == {"questions": 4, "corrected": 1, "rated": 1, "untouched": 1}
    assert (people.answered >= loop_people.CROWD, people.failed) == (True, {})
    wanted = [("default", found.id) for found in await Conversations(pool).list("default", limit=100)]
    read = await export.read(wanted, postgres_home, sources=True)
    told = [lines.parse(text) for row in read for text in row["lines"]]
    assert sorted(line.messages[-1].content for line in told if line.messages[-1].content[0] in "IS") == [
        "Is this correct?", "Soon!",
    ]  # fmt: skip
    [quoted] = [line for line in told if line.messages[-1].content[0] not in "IS"]
    assert "The desk opens at nine." in quoted.messages[0].content
