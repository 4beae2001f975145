"""One branch of a conversation, as text and as a line to fine-tune with."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.export import branch, text, training_line
from app.messages import Message, Tool, ToolCall
from app.turns import Conversation, Feedback, RecordedTurn
from train.recorded import with_sources

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SYSTEM = Message(role="system", content="Be brief.")
WEATHER = Tool(name="weather", description="Of a city.", parameters={"type": "object"})
CALL = Message(role="assistant", tool_calls=(ToolCall(id="c1", name="weather", arguments='{"city": "Bern"}'),))
RESULT = Message(role="tool", content="sunny", tool_call_id="c1")


def turn(number: int, parent: int | None = None, *, answer: str | Message = "Yes.", **fields: Any) -> RecordedTurn:
    facts: dict[str, Any] = {
        "messages": (Message(role="user", content=f"Question {number}"),),
        "answer": Message(role="assistant", content=answer) if isinstance(answer, str) else answer,
        "status": "complete",
    }
    return RecordedTurn(
        id=str(UUID(int=number)),
        parent_id=None if parent is None else str(UUID(int=parent)),
        request_id=f"req_{number}",
        model="demo",
        latency_s=0.1,
        created_at=NOW,
        **(facts | fields),
    )


def judged(rating: float | None = None, correction: str | None = None) -> tuple[Feedback, ...]:
    message = None if correction is None else Message(role="assistant", content=correction)
    return (Feedback(author="", rating=rating, correction=message, created_at=NOW, updated_at=NOW),)


def numbers(*turns: RecordedTurn) -> list[int]:
    return [UUID(turn.id).int for turn in branch(turns)]


def line(*turns: RecordedTurn) -> Any:
    told = training_line(branch(turns))
    return told and json.loads(told)


def test_an_unjudged_fork_takes_the_branch_that_went_on_last() -> None:
    """Regenerated answers are siblings, and the latest is the one that the person kept; so is a new beginning."""
    assert numbers(turn(1), turn(2, 1), turn(3, 1)) == [1, 3]
    assert numbers(turn(1), turn(2, 1), turn(3, 1), turn(4, 2)) == [1, 2, 4]
    assert numbers(turn(1), turn(2)) == [2]


def test_calls_of_the_servers_tools_are_learnt_with_what_came_of_them() -> None:
    """Before the answer, which is what was said last; prompts keep their places; a failed step teaches nothing."""
    cut = ToolCall(id="c0", name="weather", arguments="{")
    wrong = CALL.model_copy(update={"content": "Let me see.", "tool_calls": (cut,)})
    refused = Message(role="tool", content='{"status":"error","error":"no"}', tool_call_id="c0")
    on_the_way = (wrong, refused, CALL, RESULT)
    kept = [message.model_dump(mode="json") for message in on_the_way]
    run = {"id": "c1", "name": "weather", "arguments": '{"city": "Bern"}', "status": "success", "round": 2}
    facts: Any = {"extras": {"steps": kept, "tool_runs": [run | {"duration_s": 0.1}]}}
    asked = turn(1, answer="Let me see.\n\nSunny.", **facts)
    told = json.loads(training_line(branch((asked, turn(2, 1))), [(2, SYSTEM)]) or "")
    assert [(message["role"], message["content"], message.get("weight")) for message in told["messages"]] == [
        ("user", "Question 1", None),
        ("assistant", "Let me see.", 0),
        ("tool", '{"status":"error","error":"no"}', None),
        ("assistant", None, None),
        ("tool", "sunny", None),
        ("assistant", "Sunny.", None),
        ("system", "Be brief.", None),
        ("user", "Question 2", None),
        ("assistant", "Yes.", None),
    ]
    corrected = line(turn(1, answer="Let me see.\n\nSunny.", feedback=judged(None, "Rain."), **facts))
    assert [message["content"] for message in corrected["messages"]] == ["Question 1", "Rain."]
    spoken = text(Conversation(id="c", title="t", created_at=NOW, updated_at=NOW, turns=(asked,)))
    assert "(called weather(Bern))" in spoken
    liked = Conversation(
        id="c", title="t", created_at=NOW, updated_at=NOW, turns=(asked.model_copy(update={"feedback": judged(1)}),)
    )
    (taught,) = with_sources(liked, {asked.id: asked.messages}, "t")
    assert [message.content for message in taught.messages] == [
        "Question 1",
        *(m.content for m in on_the_way),
        "Sunny.",
    ]
    assert taught.weights == (0, 0, 0, 1, 0, 1)


def test_what_was_corrected_stands_corrected_before_later_answers() -> None:
    """Answer by answer, also where two were the same; what nobody corrected, and what clients changed, stays."""

    def user(text: str) -> Message:
        return Message(role="user", content=text)

    first = turn(1, answer="Hello.", feedback=judged(None, "One mocha?"))
    second = turn(2, 1, answer="Hello.", feedback=judged(None, "Soon!"))
    third = turn(3, 2, answer="Hello.")
    fourth = turn(4, 3, answer="Bye.", feedback=judged(1))
    said = [Message(role="assistant", content=text) for text in ("Hello.", "Hello. ", "Hello.")]
    request = (SYSTEM, *(m for n, one in enumerate(said, 1) for m in (user(f"Question {n}"), one)), user("Question 4"))
    told = Conversation(id="c", title="t", created_at=NOW, updated_at=NOW, turns=(first, second, third, fourth))
    asked = {one.id: one.messages for one in (first, second)} | {fourth.id: request}
    *_, line = with_sources(told, asked, "t")
    assert [message.content for message in line.messages if message.role == "assistant"] == [
        "One mocha?", "Soon!", "Hello.", "Bye.",
    ]  # fmt: skip
    assert line.weights == (0, 0, 0, 0, 0, 0, 0, 0, 1)
    changed = {**asked, fourth.id: (user("Question 1"), Message(role="assistant", content="Tea."), user("Question 4"))}
    *_, line = with_sources(told, changed, "t")
    assert line.messages[1].content == "Tea."


def test_a_rating_decides_a_fork() -> None:
    """Up wins over what came later, down loses against what was not judged, and a correction is as good as up."""
    assert numbers(turn(1), turn(2, 1, feedback=judged(1)), turn(3, 1)) == [1, 2]
    assert numbers(turn(1), turn(2, 1), turn(3, 1, feedback=judged(-1))) == [1, 2]
    assert numbers(turn(1), turn(2, 1, feedback=judged(-1, "No.")), turn(3, 1)) == [1, 2]
    assert numbers(turn(1), turn(2, 1), turn(3, 2, feedback=judged(1)), turn(4, 1)) == [1, 2, 3]


def test_a_line_has_messages_as_openai_fine_tunes_with_them() -> None:
    """The system prompt at its place, calls with their results, and the tools; no reasoning, no passages."""
    first = turn(1, answer=CALL, extras={"tools": [WEATHER.model_dump(mode="json")]})
    thought = Message(role="assistant", content="Sunny.", reasoning="Hm.")
    path = branch([first, turn(2, 1, messages=(RESULT,), answer=thought)])
    assert json.loads(training_line(path, [(0, SYSTEM)]) or "") == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Question 1"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
                ],
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Sunny."},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}},
            }
        ],
    }


def test_a_correction_stands_for_the_answer() -> None:
    """Also where the answer failed, and in the middle."""
    told = line(turn(1, status="failed", answer="", feedback=judged(-1, "Right.")), turn(2, 1))
    assert [message["content"] for message in told["messages"]] == ["Question 1", "Right.", "Question 2", "Yes."]
    assert "weight" not in told["messages"][1]


def test_nobody_learns_from_what_was_cut_short_or_judged_bad() -> None:
    """In the middle it has no weight, at the end it is left out, and alone it makes no line."""
    cut = {"status": "truncated"}
    told = line(turn(1, **cut), turn(2, 1), turn(3, 2, status="cancelled"), turn(4, 3, feedback=judged(-1)))
    assert [(message["role"], message.get("weight", 1)) for message in told["messages"]] == [
        ("user", 1),
        ("assistant", 0),
        ("user", 1),
        ("assistant", 1),
    ]
    assert line(turn(1, **cut)) is None
    assert line(turn(1, answer=" ")) is None


def test_text_is_for_people() -> None:
    """Who said what, what was called, and what was thought of it."""
    turns = (turn(1, answer=CALL), turn(2, 1, messages=(RESULT,), feedback=judged(-1, "Sunny, 20 °C.")))
    told = text(Conversation(id="an-id", title="Weather", created_at=NOW, updated_at=NOW, turns=turns))
    assert told == (
        "# Weather\nan-id, 2026-01-01 00:00 UTC\n\nuser: Question 1\n\n"
        'assistant: [calls weather {"city": "Bern"}]\n\ntool: sunny\n\nassistant: Sunny, 20 °C.\n\n'
        "(corrected; rated -1)\n\n"
    )
