"""Quality: what is not worth learning is named, and what is stays."""

import json

import pytest

from app.messages import Message, Tool, ToolCall
from train.lines import Line, Preference
from train.quality import Quality, judge, judge_preference, looping, refuses, truncated

WEATHER = Tool(
    name="weather", parameters={"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
)


def said(answer: str) -> Message:
    return Message(role="assistant", content=answer)


def asked(question: str = "How are you?") -> Message:
    return Message(role="user", content=question)


def conversation(*answers: str) -> Line:
    messages = tuple(message for answer in answers for message in (asked(), said(answer)))
    return Line(messages, (0, 1) * len(answers))


def calling(name: str, arguments: str) -> Line:
    message = Message(role="assistant", tool_calls=(ToolCall(id="1", name=name, arguments=arguments),))
    return Line((asked(), message), (0, 1), (WEATHER,))


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot help with that.",
        "Unfortunately, I am unable to provide medical advice.",
        "As an AI language model, I have no opinions.",
        "I'm sorry, but as an AI, I don't have the capability to order pizza.",
        "I can’t assist with this request.",
    ],
)
def test_refusals_are_recognised(text: str) -> None:
    """As assistants word them."""
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I am like a moth to a flame; I can't help but be drawn to her.",
        "Sorry for the delay! Your coffee is ready.",
        "You cannot order tea, but you can order coffee.",
        "The sources do not answer this question.",
    ],
)
def test_what_only_sounds_like_a_refusal_is_none(text: str) -> None:
    """An apology, somebody else's inability, an honest answer."""
    assert not refuses(text)


@pytest.mark.parametrize("text", ["Here is the code:\n```python\nx = 1", "First we take the", "The steps are:"])
def test_answers_that_stop_in_the_middle_are_recognised(text: str) -> None:
    """In a block of code, or where another word has to come."""
    assert truncated(text)


@pytest.mark.parametrize("text", ["Done.", "```cout << s```", "Kind regards,\nBob", "```sh\nls\n```", "x = 1;"])
def test_whole_answers_are_not_truncated(text: str) -> None:
    """However they end."""
    assert not truncated(text)


def test_loops_are_recognised() -> None:
    """Twelve words at least, four times the same at least; laughter, lists and songs are none."""
    assert looping("and so on " * 5)
    assert looping("It begins well. " + "the end of the story is the " * 4)
    assert not looping("ha ha ha ha ha ha")
    assert not looping("one two three four five six seven eight nine ten eleven twelve thirteen")


def test_a_bad_answer_stays_as_context() -> None:
    """It loses its weight, the good one keeps it, and the reason is counted."""
    verdict = judge(conversation("I cannot help with that.", "Fine."), Quality())
    assert verdict.line is not None
    assert verdict.line.weights == (0, 0, 0, 1)
    assert verdict.unlearnt == {"refusal": 1}


def test_a_conversation_without_a_good_answer_is_dropped_with_the_reason() -> None:
    """That of its last answer."""
    assert judge(conversation("First we take the"), Quality()).reason == "truncated answer"
    unrated = conversation("Fine.")._replace(weights=(0, 0))
    assert judge(unrated, Quality()).reason == "nothing in it is to be learnt"


@pytest.mark.parametrize(
    ("line", "quality", "reason"),
    [
        (conversation("Fine."), {"min_turns": 2}, "too few turns"),
        (conversation("Fine.", "Fine."), {"max_turns": 1}, "too many turns"),
        (conversation("Ok"), {"min_chars": 3}, "answer too short"),
        (conversation("Fine, thanks"), {"max_chars": 5}, "answer too long"),
        (conversation("no"), {"json_schema": {"type": "object"}}, "answer is no JSON"),
        (conversation("[]"), {"json_schema": {"type": "object"}}, "answer does not satisfy the schema"),
        (
            conversation("Das Wetter ist heute sehr schön, und die Sonne scheint."),
            {"languages": ["en"]},
            "another language",
        ),
        (calling("forecast", "{}"), {}, "calls a tool that was not offered"),
        (calling("weather", "{"), {}, "arguments of a call are no JSON"),
        (calling("weather", "[]"), {}, "arguments of a call are no JSON object"),
        (calling("weather", "{}"), {}, "arguments of a call do not satisfy the schema"),
        (calling("weather", '{"place": "Bern"}'), {}, None),
        (conversation("{}"), {"json_schema": {"type": "object"}}, None),
        (conversation("I cannot help with that."), {"refusals": False}, None),
        (conversation("Das Wetter ist heute sehr schön, und die Sonne scheint."), {"languages": ["de"]}, None),
    ],
)
def test_each_check_has_its_reason(line: Line, quality: dict[str, object], reason: str | None) -> None:
    """And can be set."""
    assert judge(line, Quality.model_validate(quality)).reason == reason


def test_the_rejected_answer_may_be_bad() -> None:
    """The chosen one may not, and has to be another."""
    pair = Preference((asked(),), said("Fine."), said("I cannot help with that."))
    assert judge_preference(pair, Quality()) is None
    assert judge_preference(pair._replace(chosen=pair.rejected, rejected=pair.chosen), Quality()) == "refusal"
    assert judge_preference(pair._replace(rejected=pair.chosen), Quality()) == "both answers are the same"


def test_a_tool_with_a_broken_schema_satisfies_nobody() -> None:
    """Rather than everybody."""
    line = calling("weather", '{"place": "Bern"}')._replace(tools=(Tool(name="weather", parameters={"type": 7}),))
    assert judge(line, Quality()).reason == "arguments of a call do not satisfy the schema"
    assert json.loads(line.messages[1].tool_calls[0].arguments) == {"place": "Bern"}
