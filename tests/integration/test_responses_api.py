"""The Responses API over a real PostgreSQL, through OpenAI's own client; only the model is a stand-in."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx2
import openai
import pytest
from pydantic import BaseModel

from app.conversations import Conversations, Turn, _keep
from app.errors import ContextTooLong, ModelNotFound
from app.messages import Delta, Done, End, FinishReason, Generate, Measure, Message, Timings, ToolCallDelta, Usage
from app.recorder import Recorder
from app.responses import Responses
from app.settings import RagSettings
from app.spool import Spool
from app.turns import Answered
from deployments.answering import Answering
from deployments.metrics import Metrics
from deployments.routes import responses
from tests.captures import Capture, captures
from tests.fakes import NO_TOOLS, Handle, Streamed
from tests.openai_schema import validate, validate_event
from tests.server import application

pytestmark = pytest.mark.integration

WEATHER = {
    "type": "function",
    "name": "weather",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = Delta("", 3, tool_calls=(ToolCallDelta(0, '{"city": "Bern"}', id="call_1", name="weather"),))


def ends(reason: FinishReason = "stop") -> Done:
    usage = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=1, reasoning_tokens=1)
    return Done((End(reason),), usage, Timings(queued_s=0, prefill_s=0, decode_s=0))


class Server:
    """The routes over a model that gives the answers in their order. window: of ten tokens a message."""

    def __init__(self, pool: asyncpg.Pool, spool: Path, window: int = 1000) -> None:
        self.answers: list[Sequence[Delta | Done | Exception]] = []
        self.asked: list[Generate] = []
        self.window = window
        self.recorder = Recorder(pool, Spool(spool))
        self.conversations = Conversations(pool)
        metrics = Metrics()
        llm = Handle(generate=self.generate, measure=self.measure)
        self.answering = Answering(llm, Handle(), self.recorder, RagSettings(enabled=False), 30.0, metrics)
        gateway = SimpleNamespace(
            answering=self.answering,
            responses=Responses(pool),
            recorder=self.recorder,
            llm=llm,
            settings=SimpleNamespace(llm=SimpleNamespace(name="m")),
            served=self.served,
            tooling=NO_TOOLS,
        )
        app = application(responses.routes(gateway), metrics=metrics)
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://localhost")
        self.client = openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key="none",
            max_retries=0,
            http_client=self.http,
            _strict_response_validation=True,
        )

    def says(self, *items: str | Delta | Done | Exception, reason: FinishReason = "stop") -> None:
        """Its next answer."""
        told: list[Delta | Done | Exception] = [Delta(item, 1) if isinstance(item, str) else item for item in items]
        self.answers.append([*told, ends(reason)])

    def generate(self, request: Generate) -> Streamed:
        self.asked.append(request)
        return Streamed(self.answers.pop(0))

    async def measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        sizes = tuple(10 for _ in texts)
        return Measure(prompt_tokens=10 * len(request.messages), text_tokens=sizes, window=self.window)

    def served(self, model: str) -> str:
        if model != "m":
            raise ModelNotFound(model, ("m",))
        return model

    def said(self) -> list[str]:
        """What the model was asked last."""
        return [message.content for message in self.asked[-1].messages]


@pytest.fixture
async def server(pool: asyncpg.Pool, tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(pool, tmp_path)
    yield server
    await server.http.aclose()


async def test_a_response_is_told_again_by_its_id(server: Server) -> None:
    """The same object to the letter."""
    server.says(Delta("", 1, reasoning="Hm."), "Hello", CALL, reason="tool_calls")
    body = {"model": "m", "input": "hi", "tools": [WEATHER], "metadata": {"a": "b"}, "instructions": "Be brief."}
    made = (await server.http.post("/v1/responses", json=body)).json()
    validate("Response", made)
    again = (await server.http.get(f"/v1/responses/{made['id']}")).json()
    assert again == made
    assert [item["type"] for item in made["output"]] == ["reasoning", "message", "function_call"]
    assert made["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}


async def test_the_sdk_reads_a_response(server: Server) -> None:
    """And finds it again, with its conversation."""
    server.says("Hello ", "there")
    made = await server.client.responses.create(model="m", input="hi")
    assert (made.output_text, made.status, made.usage and made.usage.total_tokens) == ("Hello there", "completed", 9)
    again = await server.client.responses.retrieve(made.id, include=["reasoning.encrypted_content"])
    assert again.output_text == "Hello there"
    assert made.conversation
    assert len((await server.conversations.get("default", made.conversation.id)).turns) == 1


async def test_the_sdk_follows_a_stream(server: Server) -> None:
    """Its helper refuses a stream whose events do not fit together."""
    server.says(Delta("", 1, reasoning="Hm."), "It ", "is.", CALL, reason="tool_calls")
    async with server.client.responses.stream(model="m", input="hi", tools=[WEATHER]) as stream:  # type: ignore[list-item]
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "It is."
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "It is."
    assert (await server.client.responses.retrieve(final.id)).output_text == "It is."


class Town(BaseModel):
    name: str


async def test_the_sdk_parses_a_structured_answer(server: Server) -> None:
    """The schema reaches the engine, and the text becomes the client's own type."""
    server.says('{"name": "Bern"}')
    parsed = await server.client.responses.parse(model="m", input="A town?", text_format=Town)
    assert parsed.output_parsed == Town(name="Bern")
    form = server.asked[0].response_format
    assert form
    assert form.json_schema
    assert form.json_schema["properties"]["name"]["type"] == "string"


async def test_a_chain_of_responses_is_one_conversation(server: Server) -> None:
    """The model sees all of it, instructions only of the response that they came with; each turn keeps what is new."""
    server.says("one")
    server.says("two")
    server.says("three")
    first = await server.client.responses.create(model="m", input="a", instructions="Be brief.")
    developer: Any = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "b"}]
    second = await server.client.responses.create(model="m", input=developer, previous_response_id=first.id)
    assert server.said() == ["a", "one", "Be kind.", "b"]
    third = await server.client.responses.create(
        model="m", input="c", previous_response_id=second.id, instructions="Be loud."
    )
    assert server.said() == ["Be loud.", "a", "one", "Be kind.", "b", "two", "c"]
    assert (third.previous_response_id, third.instructions) == (second.id, "Be loud.")
    assert first.conversation
    turns = (await server.conversations.get("default", first.conversation.id)).turns
    assert [[message.content for message in turn.messages] for turn in turns] == [["a"], ["b"], ["c"]]


async def test_two_answers_to_one_response_are_two_branches(server: Server) -> None:
    """Going on twice from the same response."""
    for text in ("one", "left", "right"):
        server.says(text)
    first = await server.client.responses.create(model="m", input="a")
    for _ in range(2):
        await server.client.responses.create(model="m", input="b", previous_response_id=first.id)
        assert server.said() == ["a", "one", "b"]
    assert first.conversation
    turns = (await server.conversations.get("default", first.conversation.id)).turns
    assert [turn.parent_id for turn in turns] == [None, turns[0].id, turns[0].id]


async def test_equal_beginnings_of_two_conversations_stay_apart(server: Server) -> None:
    """The response that is named decides, not the text."""
    for text in ("one", "one", "two"):
        server.says(text)
    first = await server.client.responses.create(model="m", input="a")
    await server.client.responses.create(model="m", input="a")
    third = await server.client.responses.create(model="m", input="b", previous_response_id=first.id)
    assert third.conversation == first.conversation


async def test_a_tool_round_trip(server: Server) -> None:
    """A call, its output alone in the next request, an answer."""
    server.says(CALL, reason="tool_calls")
    server.says("It rains.")
    first = await server.client.responses.create(model="m", input="Weather in Bern?", tools=[WEATHER])  # type: ignore[list-item]
    (call,) = first.output
    assert call.type == "function_call"
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = await server.client.responses.create(model="m", input=output, previous_response_id=first.id)
    assert second.output_text == "It rains."
    assert [(message.role, message.content) for message in server.asked[-1].messages] == [
        ("user", "Weather in Bern?"),
        ("assistant", ""),
        ("tool", "rain"),
    ]
    with pytest.raises(openai.BadRequestError, match="No tool output found for function call call_1"):
        await server.client.responses.create(model="m", input="And?", previous_response_id=first.id)


async def test_a_client_that_keeps_its_own_history_makes_one_conversation(server: Server) -> None:
    """It sends back the items of the answer as they came, reasoning included."""
    server.says(Delta("", 1, reasoning="Hm."), "one")
    server.says("two")
    first = await server.client.responses.create(
        model="m", input="a", store=False, include=["reasoning.encrypted_content"]
    )
    sent: Any = [{"role": "user", "content": "a"}, *first.output, {"role": "user", "content": "b"}]
    second = await server.client.responses.create(model="m", input=sent, store=False)
    assert server.asked[-1].messages[1] == Message(role="assistant", content="one", reasoning="Hm.")
    assert second.conversation == first.conversation


async def test_a_conversation_is_continued_by_its_id(server: Server) -> None:
    """At its latest turn; instructions of that one stay behind, stored or not."""
    server.says("one")
    server.says("two")
    first = await server.client.responses.create(model="m", input="a", store=False, instructions="Be brief.")
    assert first.conversation
    second = await server.client.responses.create(model="m", input="b", conversation=first.conversation.id)
    assert server.said() == ["a", "one", "b"]
    assert second.conversation == first.conversation
    with pytest.raises(openai.BadRequestError, match="both say what to go on from"):
        await server.client.responses.create(
            model="m", input="b", conversation=first.conversation.id, previous_response_id=second.id
        )


async def test_an_item_is_named_instead_of_sent(server: Server) -> None:
    """Of the output and of the input of a stored response."""
    server.says("one")
    server.says("two")
    first = await server.client.responses.create(model="m", input="a")
    asked = (await server.client.responses.input_items.list(first.id)).data
    named: Any = [{"type": "item_reference", "id": item.id} for item in (asked[0], first.output[0])]
    await server.client.responses.create(model="m", input=[*named, {"role": "user", "content": "b"}])
    assert server.said() == ["a", "one", "b"]
    for unknown in ("msg_nobody_0", "x", f"{first.output[0].id}9"):
        lost: Any = [{"type": "item_reference", "id": unknown}]
        with pytest.raises(openai.BadRequestError, match=f"Item with id '{unknown}' not found"):
            await server.client.responses.create(model="m", input=lost)


async def test_the_input_items_come_in_pages(server: Server) -> None:
    """All that the model was asked, but the instructions; the latest first."""
    server.says("one")
    server.says("two")
    first = await server.client.responses.create(model="m", input="a")
    second = await server.client.responses.create(
        model="m", input="b", previous_response_id=first.id, instructions="Be brief."
    )
    path = f"/v1/responses/{second.id}/input_items"
    page = (await server.http.get(path, params={"limit": 2})).json()
    validate("ResponseItemList", page)
    assert [item["content"][0]["text"] for item in page["data"]] == ["b", "one"]
    assert (page["has_more"], page["last_id"]) == (True, page["data"][1]["id"])
    rest = (await server.http.get(path, params={"limit": 2, "after": page["last_id"]})).json()
    assert ([item["content"][0]["text"] for item in rest["data"]], rest["has_more"]) == (["a"], False)
    items = [item async for item in server.client.responses.input_items.list(second.id, order="asc", limit=1)]
    assert [item.id for item in items] == [item["id"] for item in (*rest["data"], *reversed(page["data"]))]
    assert (await server.http.get(path, params={"after": "msg_x"})).status_code == 404
    assert (await server.http.get(path, params={"limit": 0})).status_code == 400


async def test_what_is_not_stored_is_not_found(server: Server) -> None:
    """Not by its id, and not as what to go on from; the conversation keeps it."""
    server.says("one")
    made = await server.client.responses.create(model="m", input="a", store=False)
    assert made.store is False
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refusal:
        await server.client.responses.create(model="m", input="b", previous_response_id=made.id)
    assert refusal.value.body == {
        "message": f"Previous response with id '{made.id}' not found.",
        "type": "invalid_request_error",
        "param": "previous_response_id",
        "code": "previous_response_not_found",
    }
    assert made.conversation
    assert (await server.conversations.get("default", made.conversation.id)).turns[0].extras["store"] is False


async def test_another_tenant_finds_nothing(server: Server, pool: asyncpg.Pool) -> None:
    """Neither reads nor deletes, nor goes on from it."""
    server.says("one")
    made = await server.client.responses.create(model="m", input="a")
    assert made.conversation
    await pool.execute("update turns set tenant = 'other'")
    await pool.execute("update conversations set tenant = 'other'")
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.input_items.list(made.id)
    with pytest.raises(openai.BadRequestError):
        await server.client.responses.create(model="m", input="b", previous_response_id=made.id)
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.create(model="m", input="b", conversation=made.conversation.id)
    assert await pool.fetchval("select count(*) from turns") == 1


async def test_a_deleted_response_is_gone(server: Server, pool: asyncpg.Pool) -> None:
    """With its turn, its system prompt and, when it was the last, its conversation."""
    server.says("one")
    made = await server.client.responses.create(model="m", input="a", instructions="Be brief.")
    answer = await server.http.delete(f"/v1/responses/{made.id}")
    assert answer.json() == {"id": made.id, "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.delete(made.id)
    counts = [await pool.fetchval(f"select count(*) from {table}") for table in ("turns", "texts", "conversations")]
    assert counts == [0, 0, 0]


async def test_a_deleted_response_stays_the_history_of_those_behind_it(server: Server, pool: asyncpg.Pool) -> None:
    """It is only not found any more, and goes with the last of them."""
    server.says("one")
    server.says("two")
    server.says("three")
    first = await server.client.responses.create(model="m", input="a")
    second = await server.client.responses.create(model="m", input="b", previous_response_id=first.id)
    await server.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.retrieve(first.id)
    third = await server.client.responses.create(model="m", input="c", previous_response_id=second.id)
    assert server.said() == ["a", "one", "b", "two", "c"]
    await server.client.responses.delete(second.id)
    assert await pool.fetchval("select count(*) from turns") == 3
    await server.client.responses.delete(third.id)
    assert await pool.fetchval("select count(*) from turns") == 0


async def test_a_response_is_not_deleted_under_a_turn_that_is_being_recorded(
    server: Server, pool: asyncpg.Pool
) -> None:
    """The deletion waits, and then sees that somebody went on from it."""
    server.says("one")
    made = await server.client.responses.create(model="m", input="a")
    assert made.conversation
    (turn,) = (await server.conversations.get("default", made.conversation.id)).turns
    given = {name: getattr(turn, name) for name in Answered.model_fields if name != "id"}
    given |= {"request_id": "req_later", "messages": (*turn.messages, turn.answer, Message(role="user", content="b"))}
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await _keep(connection, Turn(**given))
        deletion = asyncio.create_task(server.client.responses.delete(made.id))
        while not await pool.fetchval("select count(*) from pg_locks where not granted"):  # noqa: ASYNC110 - only PostgreSQL knows
            await asyncio.sleep(0.01)
        await transaction.commit()
    await deletion
    assert await pool.fetchval("select count(*) from turns") == 2
    with pytest.raises(openai.NotFoundError):
        await server.client.responses.retrieve(made.id)


async def test_a_prompt_that_does_not_fit_names_the_input(server: Server) -> None:
    """In this dialect there are no `messages`."""
    server.says(ContextTooLong(3000, 100, 2048))
    with pytest.raises(openai.BadRequestError) as refusal:
        await server.client.responses.create(model="m", input="a", stream=True)
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "input")
    assert "maximum context length is 2048 tokens" in refusal.value.message


async def test_a_response_that_failed_late_is_told_as_failed(server: Server) -> None:
    """In the stream, and by its id."""
    server.says("It ", ValueError("secret detail"))
    answer = await server.http.post("/v1/responses", json={"model": "m", "input": "a", "stream": True})
    frames = [json.loads(frame.split("\ndata: ")[1]) for frame in answer.text.strip().split("\n\n")]
    for frame in frames:
        validate_event(frame)
    assert [frame["type"] for frame in frames][-2:] == ["response.output_text.delta", "response.failed"]
    assert "secret" not in answer.text
    await server.answering.close()  # a failure is told before it is recorded
    kept = (await server.http.get(f"/v1/responses/{frames[-1]['response']['id']}")).json()
    validate("Response", kept)
    assert (kept["status"], kept["error"]["code"]) == ("failed", "server_error")
    assert kept["output"][0]["content"][0]["text"] == "It "


async def test_events_have_names_and_no_done_behind_them(server: Server) -> None:
    """As OpenAI sends them."""
    server.says("one")
    answer = await server.http.post("/v1/responses", json={"model": "m", "input": "a", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = answer.text.strip().split("\n\n")
    assert frames[0].startswith("event: response.created\ndata: {")
    assert frames[-1].startswith("event: response.completed\ndata: {")


async def test_truncation_leaves_out_the_oldest_turns(server: Server) -> None:
    """A window of 40 tokens keeps 10 for the answer, so three messages of ten."""
    for text in ("one", "two", "three"):
        server.says(text)
    server.window = 40
    first = await server.client.responses.create(model="m", input="a")
    second = await server.client.responses.create(
        model="m", input="b", previous_response_id=first.id, truncation="auto"
    )
    assert server.said() == ["a", "one", "b"]
    third = await server.client.responses.create(
        model="m", input="c", previous_response_id=second.id, truncation="auto", instructions="Be brief."
    )
    assert server.said() == ["Be brief.", "c"]
    assert third.to_dict()["dropped_messages"] == 4
    assert third.conversation == first.conversation


async def test_the_tokens_of_a_prompt_are_counted(server: Server) -> None:
    """With all that it goes on from."""
    server.says("one")
    first = await server.client.responses.create(model="m", input="a")
    counted = await server.client.responses.input_tokens.count(
        input="b", previous_response_id=first.id, instructions="Be brief."
    )
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 40)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "", {"model": "gpt-9", "input": "a"}, 404, "model"),
        ("POST", "", {"input": "a"}, 400, "model"),
        ("POST", "", {"model": "m"}, 400, "input"),
        ("POST", "", {"model": "m", "input": 5}, 400, "input"),
        ("POST", "", {"model": "m", "input": [5]}, 400, "input[0]"),
        ("POST", "", {"model": "m", "input": [{"type": "telepathy"}]}, 400, "input[0].type"),
        ("POST", "", {"model": "m", "input": "a", "background": True}, 400, "background"),
        ("POST", "", {"model": "m", "input": "a", "temperature": 9}, 400, "temperature"),
        ("POST", "", {"model": "m", "input": "a", "text": {"format": {"type": "xml"}}}, 400, "text.format.type"),
        ("POST", "", {"model": "m", "input": "a", "previous_response_id": "x\u0000"}, 400, "previous_response_id"),
        ("POST", "", {"model": "m", "input": "a", "conversation": "conv_1"}, 404, None),
        ("POST", "/input_tokens", {"input": "a", "temperature": 1}, 400, "temperature"),
        ("GET", "/resp_x", None, 404, None),
        ("GET", "/resp_x?stream=true", None, 400, "stream"),
        ("GET", "/resp_x?include=everything", None, 400, "include[0]"),
        ("GET", "/resp_%00", None, 404, None),
        ("GET", "/nothing", None, 404, None),
        ("DELETE", "/resp_x", None, 404, None),
        ("POST", "/resp_x/cancel", None, 404, None),
        ("GET", "/resp_x/input_items", None, 404, None),
    ],
)
async def test_a_refusal_has_its_status_and_its_parameter(
    server: Server, method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    """In OpenAI's shape, before any event of a stream."""
    if body and not path:
        body |= {"stream": True}
    answer = await server.http.request(method, f"/v1/responses{path}", json=body)
    assert answer.status_code == status, answer.text
    validate("ErrorResponse", answer.json())
    assert answer.json()["error"]["param"] == param


async def test_a_response_that_the_client_waited_for_cannot_be_cancelled(server: Server) -> None:
    """There is nothing in the background."""
    server.says("one")
    made = await server.client.responses.create(model="m", input="a")
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        await server.client.responses.cancel(made.id)


async def test_a_response_that_waits_to_be_recorded_is_not_denied(server: Server) -> None:
    """503 with a time to wait, while turns are in the spool."""
    server.says("one")
    made = await server.client.responses.create(model="m", input="a", store=False)
    assert made.conversation
    turn = (await server.conversations.get("default", made.conversation.id)).turns[0]
    given = {name: getattr(turn, name) for name in Answered.model_fields}
    server.recorder.spool.add(Turn(messages=turn.messages, **given))
    answer = await server.http.get(f"/v1/responses/{made.id}")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_while_postgres_is_away_nothing_stored_is_denied(server: Server, pool: asyncpg.Pool) -> None:
    """503; what needs nothing stored is answered as ever."""
    await pool.close()
    for method, path in (("GET", "/resp_x"), ("DELETE", "/resp_x"), ("GET", "/resp_x/input_items")):
        assert (await server.http.request(method, f"/v1/responses{path}")).status_code == 503
    body = {"model": "m", "input": "a"}
    again = await server.http.post("/v1/responses", json=body | {"previous_response_id": "resp_x"})
    assert (again.status_code, again.json()["error"]["code"]) == (503, "unavailable")
    server.says("one")
    assert (await server.http.post("/v1/responses", json=body)).json()["status"] == "completed"


@pytest.mark.parametrize("capture", captures("/v1/responses"), ids=str)
async def test_what_real_clients_send_is_answered(server: Server, capture: Capture) -> None:
    """Every captured request has a 2xx, and the events without which these clients show nothing."""
    server.says("I look.", Delta("", 1, tool_calls=(ToolCallDelta(0, "{}", id="call_9", name="f"),)))
    answer = await server.http.post("/v1/responses", json=capture.body | {"model": "m"}, headers=capture.headers)
    assert answer.status_code == 200, answer.text
    if not capture.body.get("stream"):
        validate("Response", answer.json())
        return
    frames = [json.loads(frame.split("\ndata: ")[1]) for frame in answer.text.strip().split("\n\n")]
    for frame in frames:
        validate_event(frame)
    done = [frame["item"]["type"] for frame in frames if frame["type"] == "response.output_item.done"]
    assert done == ["message", "function_call"]
    assert frames[-1]["type"] == "response.completed"
