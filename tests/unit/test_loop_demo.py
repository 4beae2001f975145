"""The loop's demonstration: what it reads, what it shows, and that it says so when something did not go well."""

import json
from pathlib import Path

import pytest

from app.errors import Misconfigured
from train import lines, loop_people, loop_rehearsal, loop_report, regression
from train.demo_examples import GREETING, IDENTITY, NO_SOURCES, REFUSAL
from train.loop_people import Chat, Exchange
from train.loop_report import Findings
from train.results import Judged
from train.scores import Interval

ORDER = [("user", "One mocha, please."), ("assistant", "Is this correct?"), ("user", "Yes."), ("assistant", "Soon!")]


def findings(**changes: object) -> Findings:
    gain = Interval(1.5, 1.2, 1.8, 20)
    judged = Judged(conversations=20, answers=40, tokens=400, base_loss=6.0, tuned_loss=4.5, gain=gain)
    good = Findings(
        chats={"corrected": 6, "rated": 2, "untouched": 2, "questions": 20}, practised={"up": 3, "down": 1},
        untouched=judged, broken=(1, 17), promoted=True, answered=50, failed={}, answers=(["a"], ["b"], ["a"]),
        rollback_s=0.1, poisoned=("blocked", ["worse"]), sabotaged=(409, ["much worse"]), minutes=12.0,
    )  # fmt: skip
    return good._replace(**changes)


def test_conversations_come_as_ours_and_as_taskmaster_has_them(tmp_path: Path) -> None:
    """Each once; those in which people and assistant do not take turns are left out."""
    ours, theirs = tmp_path / "a.jsonl", tmp_path / "b.json"
    said = [{"role": role, "content": text} for role, text in ORDER]
    ours.write_text("".join(json.dumps({"messages": one}) + "\n" for one in (said, said, said[1:])))
    theirs.write_text(json.dumps([{"utterances": [{"speaker": role, "text": text} for role, text in ORDER]}]))
    for file in (ours, theirs):
        [chat] = loop_people.read(file, 10)
        assert chat.exchanges == (Exchange("One mocha, please.", "Is this correct?"), Exchange("Yes.", "Soon!"))
        assert json.loads(chat.line())["messages"] == said
    ours.write_text(json.dumps({"messages": said[1:]}))
    with pytest.raises(Misconfigured, match="holds no conversation that can be replayed"):
        loop_people.read(ours, 10)


def test_what_people_do_with_a_conversation_is_always_the_same(tmp_path: Path) -> None:
    """By its content: about seven in ten are corrected, and two are never touched."""
    file = tmp_path / "a.jsonl"
    rows = [[{"role": "user", "content": f"{n} mochas"}, {"role": "assistant", "content": "Soon!"}] for n in range(400)]
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in rows))
    chats: list[Chat] = loop_people.read(file, 400)
    parts = [chat.part for chat in chats]
    assert parts == [chat.part for chat in loop_people.read(file, 400)]
    shares = {"corrected": 0.7, "rated": 0.1, "untouched": 0.2}
    assert {part: parts.count(part) / 400 for part in set(parts)} == pytest.approx(shares, abs=0.07)


def test_nothing_of_the_regression_set_is_practised() -> None:
    """It would be trained on what it is judged by."""
    documents, questions = loop_people.known()
    exam = {item.messages[-1].content for item in regression.read(regression.OWN)}
    assert len(documents) == loop_people.DOCUMENTS < len(questions)
    assert exam.isdisjoint(one.question for one in questions)
    assert {"hello", "thank you", "what are you"}.isdisjoint(q.question.lower().rstrip("!?") for q in questions)
    assert {"hi", "bye", "thanks"} <= {loop_rehearsal.plain(one.question) for one in questions}


def test_the_numbers_stand_between_their_marks(tmp_path: Path) -> None:
    """And replace those of the last time; what holds is said, and what does not."""
    file = tmp_path / "loop.md"
    file.write_text(f"before\n{loop_report.BEGIN}\nold\n{loop_report.END}\nbehind\n")
    loop_report.record(file, loop_report.report(findings(failed={"503": 2})))
    told = file.read_text()
    assert told.startswith("before\n")
    assert told.endswith("behind\n")
    assert "old" not in told
    assert "| loss of the reference, nats a token | 6.000 | 4.500 | -1.500 (-1.800 to -1.200) |" in told
    assert "- **No**: No request failed." in told
    assert told.count("- Yes: ") == 6
    file.write_text("no marks")
    with pytest.raises(Misconfigured, match="has no <!-- loop-demo -->"):
        loop_report.record(file, "x")


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 7),
        ({"promoted": False}, 5),  # and there is nothing to take back
        ({"answers": (["a"], ["a"], ["a"])}, 6),
        ({"answers": (["a"], ["b"], ["b"])}, 6),
        ({"answered": 0}, 6),
        ({"poisoned": ("passed", [])}, 6),
        ({"sabotaged": (200, [])}, 6),
    ],
)
def test_every_claim_can_fail(changes: dict[str, object], number: int) -> None:
    """Each by the number that it is about."""
    assert sum(findings(**changes).claims().values()) == number


def test_what_is_rehearsed_is_of_all_kinds_and_none_of_the_exam(tmp_path: Path) -> None:
    """Nor of what people ask; only the last answer of each is learnt; the same lines each time."""
    exam = loop_people.examined() | {loop_rehearsal.plain(one.question) for one in loop_people.known()[1]}
    files = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for file in files:
        loop_rehearsal.write(file, exam)
    assert files[0].read_bytes() == files[1].read_bytes()
    told = list(lines.read(files[0]))
    assert len(told) == loop_rehearsal.LESSONS
    assert all(line.weights[-1] == 1 and not any(line.weights[:-1]) for line in told)
    asked = [line.messages[-2].content.split("\n\nAnswer from")[0] for line in told]
    assert not {loop_rehearsal.plain(one) for one in asked} & exam
    answers = {line.messages[-1].content for line in told}
    assert {REFUSAL, NO_SOURCES, GREETING, IDENTITY} <= answers
    assert sum(answer.startswith('"') for answer in answers) > 300
    assert any("<tools>" in line.messages[0].content for line in told)
