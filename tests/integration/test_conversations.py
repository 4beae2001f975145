"""The store of conversations, on a real PostgreSQL."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.conversations import Conversations, Turn
from app.errors import NotFound
from app.messages import Message, Passage, Sampling, Timings, ToolCall, Usage
from app.prompt import augment

pytestmark = pytest.mark.integration

START = datetime(2026, 1, 1, tzinfo=UTC)
numbers = count()

SYSTEM = Message(role="system", content="Be brief.")
PASSAGE = Passage(document_id="d", collection="c", title="T", chunk=0, text="It is 4.", score=0.5, start=0, end=8)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def turn(*messages: Message, answer: str | Message = "Yes.", **fields: Any) -> Turn:
    """A complete turn; each is a minute later than the one made before."""
    number = next(numbers)
    facts: dict[str, Any] = {
        "request_id": f"req-{number}",
        "model": "demo",
        "latency_s": 0.5,
        "status": "complete",
        "finish_reason": "stop",
        "created_at": START + timedelta(minutes=number),
    }
    answered = assistant(answer) if isinstance(answer, str) else answer
    return Turn(messages=messages, answer=answered, **(facts | fields))


@pytest.fixture
def store(pool: asyncpg.Pool) -> Conversations:
    return Conversations(pool)


async def chat(store: Conversations, *questions: str, **fields: Any) -> tuple[str, list[Message]]:
    """A client that resends everything. Returns its conversation and all that was said, answers included."""
    said: list[Message] = []
    for question in questions:
        said.append(user(question))
        kept = await store.record(turn(*said, answer=f"On {question}", **fields))
        said.append(assistant(f"On {question}"))
    assert kept.conversation_id is not None
    return kept.conversation_id, said


async def test_a_client_that_resends_everything_makes_one_conversation_of_small_turns(store: Conversations) -> None:
    """Three questions are three turns in a row, each keeping one message."""
    conversation_id, _ = await chat(store, "a", "b", "c")
    turns = (await store.get("default", conversation_id)).turns
    assert [turn.messages for turn in turns] == [(user("a"),), (user("b"),), (user("c"),)]
    assert [turn.parent_id for turn in turns] == [None, turns[0].id, turns[1].id]


async def test_every_fact_of_a_turn_comes_back(store: Conversations) -> None:
    """What the gateway hands over is what the store gives back."""
    given = turn(
        user("What is 2 + 2?"),
        answer=Message(role="assistant", tool_calls=(ToolCall(id="1", name="add", arguments='{"a": 2}'),)),
        adapter="v3",
        sources=(PASSAGE,),
        placement="system",
        sampling=Sampling(temperature=0.3, seed=7),
        stop=("\n\n", "END"),
        max_tokens=64,
        usage=Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=1, reasoning_tokens=2),
        timings=Timings(queued_s=0.1, prefill_s=0.2, decode_s=0.3),
        first_token_s=0.25,
        status="truncated",
        finish_reason="length",
        client="openai-python/3.52",
        extras={"store": True, "metadata": {"nested": [1, 2.5, None]}},
    )
    kept = await store.record(given)
    assert kept.conversation_id is not None
    (found,) = (await store.get("default", kept.conversation_id)).turns
    shared = set(found.__class__.model_fields) & set(Turn.model_fields)
    assert found.model_dump(include=shared) == given.model_dump(include=shared)


@pytest.mark.parametrize("prompts", [(), (SYSTEM,)])
async def test_a_turn_that_is_recorded_again_changes_nothing(
    store: Conversations, pool: asyncpg.Pool, prompts: tuple[Message, ...]
) -> None:
    """A replay after a lost reply, here eight at once, finds its request recorded; no empty conversation is left."""
    once = turn(*prompts, user("a"))
    kept = await asyncio.gather(*(store.record(once) for _ in range(8)))
    assert len(set(kept)) == 1
    assert await pool.fetchval("select count(*) from turns") == 1
    assert await pool.fetchval("select count(*) from conversations") == 1


async def test_a_first_message_opens_a_conversation_even_if_it_was_asked_before(store: Conversations) -> None:
    """Two people who both begin with "Hi" are not in one conversation."""
    first, second = await store.record(turn(user("Hi"))), await store.record(turn(user("Hi")))
    assert first.conversation_id != second.conversation_id


async def test_locate_tells_where_record_will_put_the_turn(store: Conversations) -> None:
    """The gateway can say the conversation's id before it knows the answer."""
    conversation_id, said = await chat(store, "a", "b")
    place = await store.locate("default", [SYSTEM, *said, user("c")])
    assert (place.conversation_id, place.new_messages) == (conversation_id, (user("c"),))
    kept = await store.record(turn(SYSTEM, *said, user("c"), conversation_id=place.conversation_id))
    assert kept.conversation_id == conversation_id
    assert (await store.get("default", conversation_id)).turns[-1].parent_id == place.parent_turn_id


async def test_a_new_conversation_gets_the_id_that_locate_gave(store: Conversations) -> None:
    """So that the header of the first answer is true."""
    place = await store.locate("default", [user("a")])
    kept = await store.record(turn(user("a"), conversation_id=place.conversation_id))
    assert kept.conversation_id == place.conversation_id


async def test_regenerating_and_editing_make_branches(store: Conversations) -> None:
    """Another answer to the same question, and another question, hang on the same parent."""
    conversation_id, said = await chat(store, "a", "b")
    await store.record(turn(*said[:2], user("b"), answer="Another"))
    await store.record(turn(*said[:2], user("b, but edited")))
    first, *branches = (await store.get("default", conversation_id)).turns
    assert [branch.parent_id for branch in branches] == [first.id] * 3


async def test_a_continuation_follows_the_branch_that_was_resent(store: Conversations) -> None:
    """Of two answers, the one in the history is the parent."""
    conversation_id, _ = await chat(store, "a")
    other = await store.record(turn(user("a"), answer="Other", conversation_id=conversation_id))
    place = await store.locate("default", [user("a"), assistant("Other"), user("b")])
    assert place.parent_turn_id == other.turn_id


async def test_of_two_equal_histories_the_latest_is_continued(store: Conversations) -> None:
    """Nothing tells them apart; the newer one is the likelier."""
    await store.record(turn(user("a"), answer="Same"))
    latest = await store.record(turn(user("a"), answer="Same"))
    assert (await store.locate("default", [user("a"), assistant("Same"), user("b")])).parent_turn_id == latest.turn_id


async def test_an_edited_answer_begins_anew(store: Conversations) -> None:
    """The model never said that: the whole history is new, and all of it is kept."""
    conversation_id, _ = await chat(store, "a")
    history = (user("a"), assistant("No, I never said so."), user("b"))
    kept = await store.record(turn(*history))
    assert kept.conversation_id not in (None, conversation_id)
    assert (await store.get("default", str(kept.conversation_id))).turns[0].messages == history


async def test_an_answer_without_content_is_never_continued(store: Conversations) -> None:
    """A failure is kept with its reason; the retry is its sibling, and an empty assistant message matches nothing."""
    conversation_id, said = await chat(store, "a")
    failed = turn(*said, user("b"), answer="", status="failed", error="it broke", finish_reason=None)
    await store.record(failed)
    await store.record(turn(*said, user("b")))
    first, second, third = (await store.get("default", conversation_id)).turns
    assert (second.status, second.error) == ("failed", "it broke")
    assert second.parent_id == third.parent_id == first.id
    place = await store.locate("default", [*said, user("b"), assistant(""), user("c")])
    assert place.parent_turn_id == first.id


async def test_a_cancelled_answer_is_continued_by_a_client_that_resends_its_part(store: Conversations) -> None:
    """What the client saw before it left is what it sends back; the turn stays marked."""
    kept = await store.record(turn(user("a"), answer="Once upon", status="cancelled", finish_reason=None))
    place = await store.locate("default", [user("a"), assistant("Once upon"), user("go on")])
    assert place.parent_turn_id == kept.turn_id
    whole = await store.locate("default", [user("a"), assistant("Once upon a time"), user("go on")])
    assert whole.parent_turn_id is None


async def test_a_named_conversation_wins_over_the_history(store: Conversations) -> None:
    """A message without history becomes another root of it; a history that fits hangs there, though others fit too."""
    named, said = await chat(store, "a")
    await chat(store, "a")
    root = await store.record(turn(user("z"), conversation_id=named))
    child = await store.record(turn(*said, user("b"), conversation_id=named))
    first, second, third = (await store.get("default", named)).turns
    assert (second.id, second.parent_id) == (root.turn_id, None)
    assert (third.id, third.parent_id) == (child.turn_id, first.id)


async def test_an_unknown_or_foreign_conversation_is_not_found(store: Conversations) -> None:
    """Strangers learn nothing: unknown, malformed and others' ids look the same in every method."""
    foreign, said = await chat(store, "a", tenant="them")
    for name in (foreign, str(uuid4()), "nonsense"):
        for attempt in (
            store.locate("us", said, name),
            store.get("us", name),
            store.delete("us", name),
            store.list("us", after=name),
        ):
            with pytest.raises(NotFound):
                await attempt
    for name in ((await store.get("them", foreign)).turns[0].id, str(uuid4()), "nonsense"):
        with pytest.raises(NotFound):
            await store.prompt_of("us", name)


async def test_tenants_share_no_history(store: Conversations) -> None:
    """The same words resent by another tenant open a conversation of their own; lists are separate."""
    ours, said = await chat(store, "a", tenant="us")
    assert (await store.locate("them", [*said, user("b")])).parent_turn_id is None
    await store.record(turn(*said, user("b"), tenant="them", conversation_id=ours))
    assert len((await store.get("us", ours)).turns) == 1
    assert ours not in [summary.id for summary in await store.list("them")]
    assert len(await store.list("them")) == 1


async def test_two_keys_that_begin_alike_have_two_conversations(store: Conversations) -> None:
    """Two people of one tenant who ask the same get the same answer, and one of them may delete what is theirs."""
    anns, bobs = ({"extras": {"key_id": key}} for key in ("ann", "bob"))
    ours, said = await chat(store, "a", **anns)
    assert (await store.locate("default", [*said, user("b")], None, "bob")).parent_turn_id is None
    assert (await store.locate("default", [*said, user("b")], None, "ann")).conversation_id == ours
    theirs = await store.record(turn(*said, user("b"), **bobs))
    assert theirs.conversation_id != ours
    named = await store.locate("default", [*said, user("b")], ours, "bob")
    assert named.parent_turn_id is not None  # whoever names a conversation of the tenant goes on with it


async def test_the_list_pages_from_the_latest_to_the_oldest(store: Conversations) -> None:
    """A page begins behind the id that the one before ended with; a new turn brings its conversation to the front."""
    ids = [(await chat(store, f"question  {number}"))[0] for number in range(5)]
    await store.record(turn(user("question  0"), assistant("On question  0"), user("and?")))
    first = await store.list("default", limit=3)
    rest = await store.list("default", limit=3, after=first[-1].id)
    assert [summary.id for summary in (*first, *rest)] == [ids[0], ids[4], ids[3], ids[2], ids[1]]
    assert (first[0].title, first[0].turns, first[0].model) == ("question 0", 2, "demo")


async def test_deletion_leaves_nothing_behind(store: Conversations, pool: asyncpg.Pool) -> None:
    """Turns go with their conversation, and system prompts that no other turn has."""
    doomed = await store.record(turn(SYSTEM, Message(role="system", content="Secret."), user("a")))
    kept = await store.record(turn(SYSTEM, user("a")))
    await store.delete("default", str(doomed.conversation_id))
    assert await pool.fetchval("select count(*) from turns") == 1
    assert await pool.fetchval("select array_agg(text) from texts") == ["Be brief."]
    assert (await store.prompt_of("default", kept.turn_id))[0] == SYSTEM


async def test_deleting_while_recording_neither_fails_nor_loses_a_system_prompt(store: Conversations) -> None:
    """Sixteen turns with one system prompt, every other conversation deleted meanwhile."""
    doomed = [await store.record(turn(SYSTEM, user("a"))) for _ in range(8)]
    recorded, _ = await asyncio.gather(
        asyncio.gather(*(store.record(turn(SYSTEM, user("b"))) for _ in range(16))),
        asyncio.gather(*(store.delete("default", str(kept.conversation_id)) for kept in doomed)),
    )
    for kept in recorded:
        assert await store.prompt_of("default", kept.turn_id) == (SYSTEM, user("b"))


@pytest.mark.parametrize("placement", ["system", "last_user"])
async def test_the_prompt_that_the_model_saw_is_told_to_the_letter(store: Conversations, placement: Any) -> None:
    """Through four turns of a client that changes the system prompt, moves it, trims answers and rewrites call ids."""
    call = ToolCall(id="call_1", name="look", arguments='{"q": 1.0}')
    resent = call.model_copy(update={"id": "x", "arguments": '{"q":1}'})
    now = Message(role="system", content="It is 12:01.", name="clock")
    a, b, c, d = (user(letter) for letter in "abcd")
    found = Message(role="tool", content="42", tool_call_id="x", name="look")
    turns = [
        turn(SYSTEM, a, answer=" Padded \n"),
        turn(now, a, assistant("Padded"), b, answer=Message(role="assistant", tool_calls=(call,))),
        turn(a, assistant("Padded"), b, Message(role="assistant", tool_calls=(resent,)), found, SYSTEM, answer="It."),
        turn(
            a, assistant(" Padded \n"), b, Message(role="assistant", tool_calls=(call,)), found, assistant("It."), c, d
        ),
    ]
    for plain in turns:
        given = plain.model_copy(update={"sources": (PASSAGE, PASSAGE), "placement": placement})
        kept = await store.record(given)
        sent = augment(given.messages, given.sources, placement)
        assert await store.prompt_of("default", kept.turn_id) == sent
    first, *others = (await store.get("default", str(kept.conversation_id))).turns
    assert [other.parent_id for other in others] == [first.id, others[0].id, others[1].id]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a\0b\x10c\x100\\u0000", id="NUL, DLE, and what looks like them"),
        pytest.param("👩🏽‍💻 é e\u0301 \U0010ffff \ufffe\u2028", id="beyond the basic plane"),
        pytest.param("Lorem 🎈 " * 120_000, id="a megabyte"),
        pytest.param("'; drop table turns; --", id="SQL"),
    ],
)
async def test_any_text_comes_back_as_it_was(store: Conversations, text: str) -> None:
    """In messages, answers, sources, settings, and every other column of text; and it is found again by its history."""
    source = PASSAGE.model_copy(update={"text": text})
    given = turn(
        Message(role="system", content=text, name=text),
        user(text),
        answer=f"x{text}",
        request_id=text[:99],
        tenant=text[:99],
        client=text[:99],
        error=text[:99],
        stop=(text[:9],),
        sources=(source,),
        extras={text[:9]: text},
    )
    kept = await store.record(given)
    conversation = await store.get(given.tenant, str(kept.conversation_id))
    shared = set(conversation.turns[0].__class__.model_fields) & set(Turn.model_fields) - {"messages"}
    assert conversation.turns[0].model_dump(include=shared) == given.model_dump(include=shared)
    assert await store.prompt_of(given.tenant, kept.turn_id) == augment(given.messages, given.sources)
    assert await store.record(given) == kept
    place = await store.locate(given.tenant, (*given.messages, given.answer, user("more")))
    assert place.parent_turn_id == kept.turn_id
