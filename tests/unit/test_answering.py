"""The life of a request: what is passed on in which order, and what is kept of it, however it ends."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
from ray.exceptions import RayTaskError

from app.errors import ContextTooLong, EngineFailed
from app.messages import (
    Delta,
    Done,
    End,
    Generate,
    Measure,
    Message,
    Passage,
    RagOptions,
    Search,
    Tool,
    ToolCall,
    ToolCallDelta,
)
from app.settings import RagSettings
from app.tools.kit import Kit
from app.tools.loop import ToolLoop
from app.tools.outcome import Outcome
from app.tools.runner import Runner, ToolRun
from deployments.answering import SEAMS, Answering, Ask, Opened
from deployments.metrics import Metrics
from tests.fakes import DONE, PLACE, Handle, Recorder, Streamed

HI = Message(role="user", content="hi")
HEL, LO = Delta("Hel", 1), Delta("lo", 1)
LENGTH = Done((End("length"),), DONE.usage, DONE.timings)


def ask(*, rag: bool | RagOptions = False, max_tokens: int | None = None) -> Ask:
    return Ask(Generate(request_id="r", model="m", messages=(HI,), max_tokens=max_tokens), rag=rag)


def answering(*items: Delta | Done | Exception | None, recorder: Recorder | None = None, **parts: Any) -> Answering:
    engine = Streamed(items)
    return Answering(
        Handle(generate=lambda _: engine, measure=parts.get("measure")),
        Handle(search=parts.get("search")),
        recorder or Recorder(),
        RagSettings(),
        parts.get("timeout_s", 30.0),
        Metrics(),
    )


def engine_of(answers: Answering) -> Streamed:
    return answers.llm.generate.remote(None)


@pytest.mark.parametrize(("last", "status"), [(DONE, "complete"), (LENGTH, "truncated")])
async def test_the_turn_is_kept_before_the_end_is_passed_on(last: Done, status: str):
    """Opened, the deltas, Done; whoever has seen Done finds the turn recorded, with its usage."""
    answers = answering(HEL, LO, last)
    seen = []
    async for item in answers.answer(ask()):
        seen.append(item)
        assert bool(answers.recorder.turns) == isinstance(item, Done)
    assert seen == [Opened((), PLACE.conversation_id), HEL, LO, last]
    (turn,) = answers.recorder.turns
    assert (turn.status, turn.answer.content, turn.usage, turn.error) == (status, "Hello", last.usage, None)
    assert turn.conversation_id == PLACE.conversation_id


async def test_a_turn_keeps_what_the_model_was_offered_and_all_that_it_said():
    """Reasoning and calls in the answer, the other answers and the tools beside it: training needs them."""
    call = ToolCallDelta(0, "{}", id="c", name="f")
    done = Done((End("tool_calls"), End("stop")), DONE.usage, DONE.timings)
    answers = answering(Delta("", 1, reasoning="hm", tool_calls=(call,)), Delta("no", 1, choice=1), done)
    generate = Generate(request_id="r", model="m", messages=(HI,), tools=(Tool(name="f"),), n=2)
    _ = [item async for item in answers.answer(Ask(generate, rag=False, extras={"user": "u"}))]
    (turn,) = answers.recorder.turns
    assert turn.answer == Message(
        role="assistant", reasoning="hm", tool_calls=(ToolCall(id="c", name="f", arguments="{}"),)
    )
    assert (turn.status, turn.finish_reason) == ("complete", "tool_calls")
    assert turn.extras == {
        "user": "u",
        "tools": [{"name": "f"}],
        "n": 2,
        "alternatives": [{"role": "assistant", "content": "no"}],
    }


async def test_a_client_that_closes_the_answer_stops_the_engine():
    """What it was sent is kept, as cancelled; `close` waits for that."""
    answers = answering(HEL, None)
    answer = answers.answer(ask())
    assert [await anext(answer), await anext(answer)] == [Opened((), PLACE.conversation_id), HEL]
    await answer.aclose()
    await answers.close()
    (turn,) = answers.recorder.turns
    assert (turn.status, turn.answer.content) == ("cancelled", "Hel")
    assert engine_of(answers).cancelled


async def test_a_client_that_leaves_between_two_tokens_stops_the_engine():
    """The same for a request that is cancelled while it waits."""
    answers = answering(HEL, None)
    told = asyncio.Event()

    async def request() -> None:
        async for item in answers.answer(ask()):
            if item is HEL:
                told.set()

    client = asyncio.create_task(request())
    await told.wait()
    client.cancel()
    await asyncio.wait([client])
    await answers.close()
    assert client.cancelled()
    assert [turn.status for turn in answers.recorder.turns] == ["cancelled"]
    assert engine_of(answers).cancelled


@pytest.mark.parametrize(
    ("failure", "raised", "error"),
    [
        (RayTaskError("f", "remote traceback", EngineFailed("it broke")), EngineFailed, str(EngineFailed("it broke"))),
        (RayTaskError("f", "remote traceback", ValueError("bug")), RayTaskError, "RayTaskError"),
    ],
)
async def test_a_late_failure_keeps_what_there_was(failure: Exception, raised: type[Exception], error: str):
    """As failed, with the reason, but never with the traceback of another process."""
    answers = answering(HEL, failure)
    with pytest.raises(raised):
        _ = [item async for item in answers.answer(ask())]
    await answers.close()
    (turn,) = answers.recorder.turns
    assert (turn.status, turn.answer.content, turn.error) == ("failed", "Hel", error)


async def test_a_stream_without_a_final_record_failed():
    """An engine that falls silent did not finish."""
    answers = answering(HEL)
    with pytest.raises(EngineFailed, match="without a final record"):
        _ = [item async for item in answers.answer(ask())]


async def test_a_refusal_before_the_first_token_is_raised_as_it_is_and_no_turn():
    """The caller gets its own error, before Opened."""
    answers = answering(RayTaskError("f", "remote traceback", ContextTooLong(9, 1, 5)))
    with pytest.raises(ContextTooLong):
        await anext(answers.answer(ask()))
    await answers.close()
    assert answers.recorder.turns == []


async def test_an_answer_has_one_deadline():
    """For the engine, and for the parts that are asked before it."""

    async def never(_: Search) -> None:
        await asyncio.Event().wait()

    slow = answering(HEL, None, timeout_s=0.05)
    with pytest.raises(EngineFailed, match=r"no answer within 0\.05 s"):
        _ = [item async for item in slow.answer(ask())]
    await slow.close()
    assert [turn.status for turn in slow.recorder.turns] == ["failed"]
    assert engine_of(slow).cancelled
    with pytest.raises(EngineFailed, match="no answer within"):
        await anext(answering(HEL, search=never, timeout_s=0.05).answer(ask(rag=True)))


async def test_a_turn_that_cannot_be_kept_has_no_end():
    """An answer that ended was kept, so one that was not does not end."""
    answers = answering(HEL, DONE, recorder=Recorder(OSError("disk full")))
    answer = answers.answer(ask())
    assert [await anext(answer), await anext(answer)] == [Opened((), PLACE.conversation_id), HEL]
    with pytest.raises(OSError, match="disk full"):
        await anext(answer)


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "clip", "kept"),
    [
        # Window 1000, fence 20 + SEAMS 8, passages of 100, 300 and 50 tokens.
        (0, None, False, (0, 1, 2)),  # half of 1000 free is 500: 472 for passages
        (200, None, False, (0, 2)),  # half of 800 is 400: 372
        (0, 822, False, (0, 2)),  # 178 are left beside the answer: 150
        (0, 823, False, (0,)),  # 149
        (0, 1000, False, ()),  # none are left
        (1200, None, False, ()),  # the prompt alone is too long: the engine says so, with both numbers
        (0, 1000, True, (0, 1, 2)),  # /chat's default of 2048 left the small model without any source
        (200, 600, True, (0, 2)),  # as where nobody says how long: half of 800
        (0, 100, True, (0, 1, 2)),  # 900 are left
    ],
)
async def test_passages_fit_beside_prompt_and_answer(
    prompt_tokens: int, max_tokens: int | None, clip: bool, kept: tuple[int, ...]
):
    """The best that fit go in; the sources that are named are those that the model saw. clip: the answer yields."""
    assert SEAMS == 8
    found = tuple(
        Passage(document_id="d", collection="c", title="t", chunk=n, text=f"text {n}", score=0.9, start=0, end=1)
        for n in range(3)
    )
    prompts = []

    async def search(_: Search) -> tuple[Passage, ...]:
        return found

    async def measure(_: Generate, texts: tuple[str, ...]) -> Measure:
        assert texts[1] == "\n\n[1] t\ntext 0"
        return Measure(prompt_tokens=prompt_tokens, text_tokens=(20, 100, 300, 50), window=1000)

    answers = answering(search=search, measure=measure)
    answers.llm = Handle(generate=lambda prompt: prompts.append(prompt) or Streamed([DONE]), measure=measure)
    asked = ask(rag=True, max_tokens=max_tokens)
    asked = replace(asked, generate=asked.generate.model_copy(update={"clip": clip}))
    opened, _ = [item async for item in answers.answer(asked)]
    assert opened.sources == tuple(found[n] for n in kept)
    assert [n for n in range(3) if f"text {n}" in prompts[0].messages[0].content] == list(kept)
    assert answers.recorder.turns[0].messages == (HI,), "the turn keeps what the client sent"


async def test_a_request_chooses_its_retrieval():
    """What it says wins, what it leaves out comes from the settings."""
    searches = []

    async def search(wanted: Search) -> tuple[Passage, ...]:
        searches.append(wanted)
        return ()

    answers = answering(DONE, search=search)
    _ = [item async for item in answers.answer(ask(rag=RagOptions(top_k=2)))]
    assert searches == [Search(query="hi", top_k=2, min_score=0.3, collections=("default",))]


@pytest.mark.parametrize(
    ("setting", "asked", "collections"),
    [
        (False, True, ("default",)),
        (True, True, ("default", "conversations")),
        (False, RagOptions(memory=True), ("default", "conversations")),
        (True, RagOptions(memory=False), ("default",)),
        (True, RagOptions(collections=("a",)), ("a",)),  # named alone, they are meant alone
        (True, RagOptions(collections=("a",), memory=True), ("a", "conversations")),
        (False, RagOptions(collections=("conversations",)), ("conversations",)),
    ],
)
async def test_memory_is_searched_where_it_is_wanted(setting: bool, asked: Any, collections: tuple[str, ...]):
    """Beside documents, by setting or by request, and never for the conversation that is held."""
    searches = []

    async def search(wanted: Search) -> tuple[Passage, ...]:
        searches.append(wanted)
        return ()

    answers = answering(DONE, search=search)
    answers.rag = RagSettings(memory=setting)
    _ = [item async for item in answers.answer(ask(rag=asked))]
    without = ("mem_of_the_held_one",) if "conversations" in collections else ()
    assert [(wanted.collections, wanted.without) for wanted in searches] == [(collections, without)]


async def test_without_the_database_an_answer_comes_from_documents_alone():
    """What may be told of conversations cannot be known then."""
    searches = []

    async def search(wanted: Search) -> tuple[Passage, ...]:
        searches.append(wanted.collections)
        return ()

    async def nowhere(*_: object) -> None:
        return None

    for wanted in (RagOptions(memory=True), RagOptions(collections=("conversations",))):
        answers = answering(DONE, search=search)
        answers.recorder.locate = nowhere
        _ = [item async for item in answers.answer(ask(rag=wanted))]
    assert searches == [("default",)]


async def test_a_client_that_leaves_before_the_first_token_left_a_turn():
    """The model was asked, so it is kept, as cancelled and empty; so is an engine that breaks at once, as failed."""
    answers = answering(None)
    waiting = asyncio.create_task(anext(answers.answer(ask())))
    for _ in range(20):  # until it waits for the engine
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await answers.close()
    broken = answering(EngineFailed("at once"))
    with pytest.raises(EngineFailed):
        await anext(broken.answer(ask()))
    await broken.close()
    kept = [*answers.recorder.turns, *broken.recorder.turns]
    assert [(turn.status, turn.answer.content) for turn in kept] == [("cancelled", ""), ("failed", "")]


async def test_calls_of_the_servers_tools_are_passed_on_and_kept_and_followed_by_no_shadow():
    """With what the model saw of them. A shadow would do what they did a second time."""

    class Shadows:
        followed: ClassVar[list[str]] = []

        def follow(self, *_: object) -> None:
            self.followed.append("asked again")

        async def close(self) -> None: ...

    async def make(*_: str) -> Outcome:
        return Outcome(succeeded=True, text="{}")

    call = Delta("", 1, tool_calls=(ToolCallDelta(0, "{}", id="c", name="look"),))
    rounds = [Streamed([call, Done((End("tool_calls"),), DONE.usage, DONE.timings)]), Streamed([HEL, LO, DONE])]
    answers = answering()
    answers.llm, answers.shadows = Handle(generate=lambda _: rounds.pop(0)), Shadows()
    kit = Kit((Tool(name="look"),), partial(ToolLoop, runner=Runner({"look": True}, make), iterations=5))
    asked = replace(ask(), kit=kit)
    told = [item async for item in answers.answer(asked)]
    assert [item.line() for item in told if isinstance(item, ToolRun)] == ["look()"]
    (turn,) = answers.recorder.turns
    assert (turn.answer, turn.usage) == (Message(role="assistant", content="Hello"), told[-1].usage)
    assert turn.extras["server_tools"] == ["look"]
    assert [step["role"] for step in turn.extras["steps"]] == ["assistant", "tool"]
    assert Shadows.followed == []
    answers.llm = Handle(generate=lambda _: Streamed([HEL, DONE]))
    _ = [item async for item in answers.answer(ask())]
    assert len(Shadows.followed) == 1
