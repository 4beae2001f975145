"""Memory as clients see it: through the whole gateway, whose model says what it was shown, so that leaks are seen."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.settings import RagSettings, Settings
from tests.gateway import MODEL, Whole, whole

pytestmark = pytest.mark.integration

SECRET = "The printer in the cellar answers on port 9100."
QUESTION = "On which port answers the printer in the cellar?"


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole(tmp_path_factory.mktemp("memory"), Settings(rag=RagSettings(memory=True))) as opened:
        yield opened


@pytest.fixture
async def tenants(gateway: Whole) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Two that have nothing as yet."""
    await gateway.gateway.recorder.pool.execute("delete from conversations")
    async with gateway.http(await gateway.key("us")) as us, gateway.http(await gateway.key("them")) as them:
        yield us, them


async def told(http: httpx.AsyncClient, *messages: str, **fields: Any) -> httpx.Response:
    """The last message of a chat is asked, those before it were said in turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
    answer = await http.post("/v1/chat/completions", json={"model": MODEL, "messages": said, **fields})
    assert answer.status_code == 200, answer.text
    return answer


async def remembered(gateway: Whole) -> None:
    """Wait until the librarian has nothing to remember or to forget any more."""
    left = "select exists (select from unremembered) or exists (select from forgotten)"
    async with asyncio.timeout(20):
        while await gateway.gateway.recorder.pool.fetchval(left):  # noqa: ASYNC110 - the librarian has no event for it
            await asyncio.sleep(0.05)


async def test_what_was_said_in_one_conversation_is_told_in_another(gateway, tenants):
    """With its conversation and date in `sources`; and not where the request says no, nor to another tenant."""
    us, them = tenants
    first = await told(us, SECRET)
    await remembered(gateway)
    answer = (await told(us, QUESTION)).json()
    assert SECRET in answer["choices"][0]["message"]["content"]
    (source,) = answer["sources"]
    assert source["collection"] == "conversations"
    assert source["conversation_id"] == first.headers["x-conversation-id"]
    assert source["title"].startswith("Conversation of 20")
    assert source["title"].endswith(SECRET)
    for http, rag in ((us, {"memory": False}), (us, False), (us, {"collections": ["default"]}), (them, True)):
        assert SECRET not in (await told(http, QUESTION, rag=rag)).text


async def test_a_conversation_is_not_told_what_it_said_itself(gateway, tenants):
    """It is in the prompt already; nothing of it is retrieved."""
    us, _ = tenants
    heard = (await told(us, SECRET)).json()["choices"][0]["message"]["content"]
    await remembered(gateway)
    assert (await told(us, SECRET, heard, QUESTION)).json()["sources"] == []


async def test_a_deleted_conversation_is_told_no_more_from_that_moment_on(gateway, tenants):
    """The very next answer knows nothing of it, though its vectors may still be there."""
    us, _ = tenants
    conversation = (await told(us, SECRET)).headers["x-conversation-id"]
    await remembered(gateway)
    assert (await us.delete(f"/v1/conversations/{conversation}")).status_code == 200
    assert SECRET not in (await told(us, QUESTION)).text
    await remembered(gateway)


async def test_every_dialect_remembers(gateway, tenants):
    """Streams say it too; each question here is a new conversation, and the secret was said in another dialect."""
    us, _ = tenants
    message = {"role": "user", "content": SECRET}
    said = await us.post("/v1/messages", json={"model": MODEL, "max_tokens": 50, "messages": [message]})
    assert said.status_code == 200, said.text
    await remembered(gateway)
    response = (await us.post("/v1/responses", json={"model": MODEL, "input": QUESTION})).json()
    assert [source["collection"] for source in response["sources"]] == ["conversations"]
    streamed = (await told(us, QUESTION, stream=True, rag={"collections": ["conversations"]})).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert SECRET in "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
