"""The tool loop: one answer to the client, however often the model is asked."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from app.answer import gather
from app.errors import ContextTooLong
from app.messages import (
    Delta,
    Done,
    End,
    FinishReason,
    Generate,
    Message,
    Timings,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from app.tools.loop import ToolLoop
from app.tools.outcome import Outcome
from app.tools.runner import Runner, ToolRun

ASKED = Generate(
    request_id="r",
    model="m",
    messages=(Message(role="user", content="hi"),),
    tools=(Tool(name="look"), Tool(name="own")),
)


def call(name: str, index: int = 0, arguments: str = "{}") -> Delta:
    return Delta("", 1, tool_calls=(ToolCallDelta(index, arguments, id=f"{name}{index}", name=name),))


def done(reason: FinishReason = "stop", tokens: int = 2) -> Done:
    return Done(
        (End(reason),), Usage(prompt_tokens=10, completion_tokens=tokens), Timings(queued_s=1, prefill_s=2, decode_s=3)
    )


CALLED = done("tool_calls")


class Model:
    """Says one thing after the other. Notes what it was asked."""

    def __init__(self, *rounds: Sequence[Delta | Done] | Exception) -> None:
        self.rounds, self.asked = list(rounds), list[Generate]()
        self.open = 0

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done]:
        self.asked.append(request)
        said = self.rounds.pop(0)
        self.open += 1
        try:
            if isinstance(said, Exception):
                raise said
            for item in said:
                yield item
        finally:
            self.open -= 1


async def made(name: str, arguments: str) -> Outcome:
    return Outcome(succeeded=True, text=f'"{name} {arguments}"')


def loop(model: Model, **more: Any) -> ToolLoop:
    return ToolLoop(model.generate, Runner({"look": True, "write": False}, made), **more)


async def items(loop: ToolLoop, asked: Generate = ASKED) -> list[Delta | ToolRun | Done]:
    return [item async for item in loop.answer(asked)]


async def test_the_model_is_told_what_its_calls_came_to_until_it_answers():
    """Its own message with the calls, then a result for each, by the ids of the calls."""
    model = Model(
        [Delta("Let me see.", 1), call("look", 0), call("look", 1, '{"x":1}'), CALLED], [Delta("It is so.", 1), done()]
    )
    looping = loop(model)
    told = await items(looping)
    spoken = Message(
        role="assistant",
        content="Let me see.",
        tool_calls=(
            ToolCall(id="look0", name="look", arguments="{}"),
            ToolCall(id="look1", name="look", arguments='{"x":1}'),
        ),
    )
    results = (
        Message(role="tool", content='"look {}"', name="look", tool_call_id="look0"),
        Message(role="tool", content='"look {\\"x\\":1}"'.replace("\\", ""), name="look", tool_call_id="look1"),
    )
    assert model.asked[0] == ASKED
    assert model.asked[1].messages == (*ASKED.messages, spoken, *results)
    assert looping.messages == [spoken, *results]
    assert (
        [run.id for run in told if isinstance(run, ToolRun)] == ["look0", "look1"] == [run.id for run in looping.runs]
    )


async def test_to_the_client_it_is_one_answer():
    """One text with a pause between its parts, no calls of ours, the end of the last round, the tokens of all."""
    model = Model([Delta("Let me see.", 1), call("look"), CALLED], [Delta("It", 1), Delta(" is.", 1), done()])
    told = await items(loop(model))
    (choice,) = gather(item for item in told if isinstance(item, Delta))
    assert (choice.text, choice.tool_calls) == ("Let me see.\n\nIt is.", ())
    assert told[-1] == Done(
        (End("stop"),), Usage(prompt_tokens=20, completion_tokens=4), Timings(queued_s=2, prefill_s=4, decode_s=6)
    )
    assert sum(item.tokens for item in told if isinstance(item, Delta)) == 4


async def test_thoughts_come_before_words():
    """Those of all rounds until the first words are told as one; later ones are the model's own."""
    first = [Delta("", 1, reasoning="Hm."), call("look"), CALLED]
    second = [Delta("", 1, reasoning="So."), Delta("Wait.", 1), call("look"), CALLED]
    third = [Delta("", 1, reasoning="Secretly."), Delta("Done.", 1), done()]
    looping = loop(Model(first, second, third))
    (choice,) = gather(item for item in await items(looping) if isinstance(item, Delta))
    assert (choice.reasoning, choice.text) == ("Hm.\n\nSo.", "Wait.\n\nDone.")
    assert [message.reasoning for message in looping.messages if message.role == "assistant"] == ["Hm.", "So."]


async def test_a_call_of_the_clients_own_tool_ends_the_answer():
    """It is told as its first call; ours beside it did not run, because the client's result comes first."""
    said = [call("look", 0), call("own", 1), Delta("", 1, tool_calls=(ToolCallDelta(1, "!"),)), CALLED]
    looping = loop(Model(said))
    told = await items(looping)
    (choice,) = gather(item for item in told if isinstance(item, Delta))
    assert choice.tool_calls == (ToolCall(id="own1", name="own", arguments="{}!"),)
    assert (told[-1], looping.runs) == (CALLED, [])


async def test_a_tool_that_the_request_does_not_offer_is_not_run():
    """Though the server has it: `allowed_tools` may have left it out."""
    looping = loop(Model([call("write"), CALLED], [done()]))
    await items(looping)
    assert [(run.status, "There are: look." in run.result) for run in looping.runs] == [("error", True)]


async def test_after_the_last_round_the_model_must_answer():
    """With what it has, and without tools."""
    model = Model(*[[call("look", arguments=f'{{"n":{n}}}'), CALLED] for n in range(2)], [Delta("Enough.", 1), done()])
    told = await items(loop(model, iterations=2))
    assert [asked.tool_choice for asked in model.asked] == ["auto", "auto", "none"]
    assert sum(isinstance(item, ToolRun) for item in told) == 2


@pytest.mark.parametrize(("choice", "next_"), [("required", "auto"), ("none", "none")])
async def test_what_had_to_be_called_was_called(choice, next_):
    """A call is required of the first round only, else it would never answer."""
    model = Model([call("look"), CALLED], [done()])
    await items(loop(model), ASKED.model_copy(update={"tool_choice": choice}))
    assert [asked.tool_choice for asked in model.asked] == [choice, next_]


async def test_max_tokens_are_those_of_all_rounds():
    """5 less 2 are 3 for the second; with none left the answer was cut short."""
    asked = ASKED.model_copy(update={"max_tokens": 5})
    model = Model([call("look"), CALLED], [done()])
    await items(loop(model), asked)
    assert [(one.max_tokens, one.clip) for one in model.asked] == [(5, False), (3, True)]
    model = Model([call("look"), done("tool_calls", tokens=5)])
    told = await items(loop(model), asked)
    assert isinstance(told[-1], Done)
    assert told[-1].finish_reason == "length"


async def test_results_that_do_not_fit_the_window_are_taken_back():
    """The model is told so, and what is kept is what it saw; without results it is the request that is too long."""
    model = Model([call("look"), CALLED], ContextTooLong(99, 0, 50), [Delta("Too much.", 1), done()])
    looping = loop(model)
    await items(looping)
    assert "99 tokens of 50" in model.asked[2].messages[-1].content
    assert looping.messages == list(model.asked[2].messages[1:])
    with pytest.raises(ContextTooLong):
        await items(loop(Model(ContextTooLong(99, 0, 50))))


async def test_an_answer_that_is_cut_short_runs_nothing():
    """A call may be half of one then."""
    looping = loop(Model([call("look", arguments='{"pa'), done("length")]))
    assert isinstance((await items(looping))[-1], Done)
    assert looping.runs == []


async def test_a_stream_without_an_end_has_none():
    """Whoever reads on says so."""
    assert not any(isinstance(item, Done) for item in await items(loop(Model([Delta("x", 1)]))))


async def test_a_client_that_leaves_stops_the_model():
    """In whatever round."""
    model = Model([call("look"), CALLED], [Delta("a", 1), Delta("b", 1), done()])
    answer = loop(model).answer(ASKED)
    async for item in answer:
        if isinstance(item, Delta) and item.text:
            break
    assert model.open == 1
    await answer.aclose()
    assert model.open == 0
