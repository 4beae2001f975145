"""Chats of OpenAI clients over a real PostgreSQL: what they send back a little differently is the same conversation."""

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.messages import Delta, Done, End, Tool, ToolCallDelta
from app.recorder import Recorder
from app.spool import Spool
from tests.fakes import DONE
from tests.server import Server

pytestmark = pytest.mark.integration

USER = {"role": "user", "content": "What is the weather in Bern?"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = ToolCallDelta(0, '{"city": "Bern", "days": 1}', id="call_1", name="weather")
CALLS = (
    Delta("", 9, reasoning="I should look.", tool_calls=(CALL,)),
    Done((End("tool_calls"),), DONE.usage, DONE.timings),
)


def resent(**fields: object) -> dict[str, object]:
    """The assistant's message, as a client keeps it."""
    function = {"name": "weather", "arguments": '{"days":1,"city":"Bern"}'}
    call = {"id": "call_1", "type": "function", "index": 0, "function": function}
    return {"role": "assistant", "tool_calls": [call], **fields}


@pytest.mark.parametrize(
    "back",
    [
        pytest.param(resent(), id="no content key, arguments in another spelling"),
        pytest.param(resent(content=None, reasoning_content="I should look."), id="with its reasoning"),
        pytest.param(resent(content=""), id="empty content"),
    ],
)
async def test_a_result_continues_the_conversation_that_called_for_it(
    pool: asyncpg.Pool, tmp_path: Path, back: dict[str, Any]
):
    """The second turn hangs on the first and adds the result only; both know the tools that were offered."""
    recorder = Recorder(pool, Spool(tmp_path))
    asking = Server(*CALLS, recorder=recorder)
    first = await asking.post(model="m", messages=[USER], tools=[TOOL])
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    telling = Server(Delta("It is sunny.", 3), DONE, recorder=recorder)
    second = await telling.post(model="m", messages=[USER, back, result], tools=[TOOL])
    conversation = first.headers["x-conversation-id"]
    assert second.headers["x-conversation-id"] == conversation
    called, told = (await recorder.conversations.get("default", conversation)).turns
    assert called.answer.reasoning == "I should look."
    assert called.answer.tool_calls[0].arguments == CALL.arguments
    assert (called.status, called.finish_reason) == ("complete", "tool_calls")
    assert (told.parent_id, [message.role for message in told.messages]) == (called.id, ["tool"])
    for turn in (called, told):
        assert [Tool.model_validate(tool) for tool in turn.extras["tools"]] == [
            Tool(name="weather", parameters={"type": "object"})
        ]


async def test_the_older_form_of_calls_continues_too(pool: asyncpg.Pool, tmp_path: Path):
    """Without any id."""
    recorder = Recorder(pool, Spool(tmp_path))
    functions = [TOOL["function"]]
    first = await Server(*CALLS, recorder=recorder).post(model="m", messages=[USER], functions=functions)
    message = first.json()["choices"][0]["message"]
    result = {"role": "function", "name": "weather", "content": "sunny"}
    telling = Server(Delta("It is sunny.", 3), DONE, recorder=recorder)
    second = await telling.post(model="m", messages=[USER, message, result], functions=functions)
    assert second.status_code == 200, second.text
    assert second.headers["x-conversation-id"] == first.headers["x-conversation-id"]
