"""Crowds, departing clients, and parts that die."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from app.postgres_home import PostgresHome
from tests.acceptance.conftest import START_S, Server

pytestmark = pytest.mark.integration

LONG = {
    "model": "mindfu-demo",
    "messages": [{"role": "user", "content": "What are you?"}],
    "stream": True,
    "max_tokens": 300,
    "temperature": 1.5,
    "rag": False,
}


async def stream(client: httpx.AsyncClient, *, leave_after: int | None = None) -> list[dict[str, object] | str]:
    """The events of one streamed answer; with leave_after, the client hangs up after so many."""
    events: list[dict[str, object] | str] = []
    async with client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line:
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
            if leave_after is not None and len(events) >= leave_after:
                break
    return events


async def eventually(condition: Callable[[], bool], within_s: float) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if await asyncio.to_thread(condition):
            return True
        await asyncio.sleep(0.1)
    return False


def client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=180, limits=httpx.Limits(max_connections=100))


async def test_32_streams_finish_when_half_of_the_clients_leave(server: Server):
    """Those that stay get their end, those that leave free their slots: none is in use a moment later."""
    async with client(server) as http:
        results = await asyncio.gather(
            *(stream(http, leave_after=None if index % 2 else 3) for index in range(32)), return_exceptions=True
        )
    assert not [result for result in results if isinstance(result, BaseException)]
    assert all(result[-1] == "[DONE]" for index, result in enumerate(results) if index % 2)
    assert await eventually(lambda: server.metric("mindfu_engine_slots_in_use") == 0, 20)


async def test_a_dying_engine_ends_its_streams_with_an_error_event_and_is_replaced(server: Server):
    """The stream says that it broke; the next request that is not refused succeeds."""
    engine, endless = server.replica("LlamaCpp"), LONG | {"ignore_eos": True, "max_tokens": 1500}
    async with client(server) as http:

        async def broken() -> list[dict[str, object] | str]:
            events: list[dict[str, object] | str] = []
            async with http.stream("POST", "/v1/chat/completions", json=endless) as answer:
                async for line in answer.aiter_lines():
                    if line:
                        events.append(json.loads(line.removeprefix("data: ")) if "[DONE]" not in line else "[DONE]")
                        if len(events) == 1:
                            engine.kill()
            return events

        events = await broken()
        assert "error" in events[-1], events[-3:]
        assert "[DONE]" not in events

        async def answers() -> bool:
            plain = LONG | {"stream": False, "max_tokens": 5}
            answer = await http.post("/v1/chat/completions", json=plain)
            assert answer.status_code in {200, 503}, answer.text
            return answer.status_code == 200

        deadline = time.monotonic() + START_S
        while not await answers():
            assert time.monotonic() < deadline, "the engine did not come back"
            await asyncio.sleep(0.5)


async def test_killing_postgresql_under_load_loses_no_turn_that_ended(server: Server):
    """Eight clients ask while the database dies at its hardest: whatever ended is kept, once, when it is back."""
    ended: list[str] = []
    postgres = PostgresHome(server.home)

    async with client(server) as http:

        async def asks() -> None:
            for _ in range(12):
                body = LONG | {"stream": False, "max_tokens": 4}
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                ended.append(answer.json()["id"].removeprefix("chatcmpl-"))

        clients = [asyncio.create_task(asks()) for _ in range(8)]
        assert await eventually(lambda: len(ended) > 20, 60)
        pid = postgres.postmaster()
        assert pid
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*clients)

        async def kept() -> Counter[str]:
            listed = (await http.get("/v1/conversations", params={"limit": 1000})).json()["data"]
            pages = [(await http.get(f"/v1/conversations/{entry['id']}")).json() for entry in listed]
            return Counter(turn["request_id"] for page in pages for turn in page["turns"])

        assert await eventually(lambda: server.metric("mindfu_spooled_turns") == 0, 60)
        counts = await kept()
    assert len(ended) == 96
    assert {counts[request_id] for request_id in ended} == {1}
    assert postgres.postmaster() != pid
