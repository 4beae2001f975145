"""The engine behind the real graph: models that take turns, and a replica that Serve replaces when its steps hang; and
how a server ends and begins again.

These need servers of their own. They have ended before the shared one starts: folders named before test_* come first.
"""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.conftest import STOP_S, Server, running
from tests.gguf_factory import random_model

pytestmark = pytest.mark.integration

HANGS_S = 1e-9  # every step takes longer: whenever it is asked in the middle of one, the engine says that it hangs
OFTEN = {"LlamaCpp": {"health_check_period_s": 4}}  # asked; by default every ten seconds
ENV = {"MINDFU_API_KEY": "secret"}
KEY = {"authorization": "Bearer secret"}
TALK = {"messages": [{"role": "user", "content": "What are you?"}], "rag": False}


def body(model: str, max_tokens: int) -> dict[str, object]:
    chat = [{"role": "user", "content": "Say the alphabet."}]
    return {
        "model": model,
        "messages": chat,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "rag": False,
    }


def client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=120, headers=KEY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one server after another keeps everything."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def graph(folder: Path) -> Iterator[Server]:
    models = {"other": {"model": str(random_model(folder / "other.gguf")), "window": 256}}
    with running(folder, env=ENV, deployments=OFTEN, models=models, warm=1, step_timeout_s=HANGS_S) as server:
        yield server


async def ask(http: httpx.AsyncClient, model: str, max_tokens: int) -> int:
    return (await http.post("/v1/chat/completions", json=body(model, max_tokens))).status_code


async def ended(server: Server) -> None:
    """When it has, by itself. Its exit status is left for who started it."""
    async with asyncio.timeout(STOP_S):
        while psutil.Process(server.process.pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.1)


async def test_models_take_turns_and_drop_nobody(graph: Server):
    """Room for one: requests for both, all at once, are all answered, and the list tells which one is there."""
    async with client(graph) as http:
        asked = [ask(http, model, 20) for model in ("mindfu-demo", "other") * 4]
        assert await asyncio.gather(*asked) == [200] * 8
        listed = (await http.get("/v1/models")).json()["data"]
    assert {model["id"] for model in listed} >= {"mindfu-demo", "other"}
    assert sum(model["loaded"] for model in listed if model["id"] in ("mindfu-demo", "other")) == 1


async def test_a_replica_whose_steps_hang_is_replaced(graph: Server):
    """Serve asks three times; then another process answers."""
    before = graph.replica("LlamaCpp")
    async with client(graph) as http:

        async def busy() -> None:
            while psutil.pid_exists(before.pid):
                await ask(http, "mindfu-demo", 1500)

        await asyncio.wait_for(asyncio.gather(*(busy() for _ in range(4))), 120)
        for _ in range(90):
            if await ask(http, "mindfu-demo", 5) == 200:
                break
            await asyncio.sleep(1)
    assert graph.replica("LlamaCpp").pid != before.pid


async def test_an_answer_that_runs_when_the_server_is_to_end_is_complete(graph: Server):
    """Ctrl-C in the middle of a stream: it goes on to its end, and then the server ends."""
    streamed = body("mindfu-demo", 600) | {"stream": True}
    async with client(graph) as http:
        said = await http.post("/chat", json=TALK | {"max_tokens": 8, "session_id": "work"})
        assert said.status_code == 200, said.text
        await http.post("/command", json={"command": "system", "value": "Be brief."})
        async with http.stream("POST", "/v1/chat/completions", json=streamed) as answer:
            lines = answer.aiter_lines()
            assert '"role"' in await anext(lines)
            graph.process.send_signal(signal.SIGINT)
            chunks = [line async for line in lines if line]
    assert chunks[-1] == "data: [DONE]", chunks[-2:]
    assert len(chunks) > 10
    await ended(graph)


async def test_a_session_goes_on_after_a_restart_and_a_shutdown_lets_it_finish(graph: Server, folder: Path):
    """What was said and what was set is there again; POST /shutdown waits for the answer, and is nobody else's."""
    with running(folder, env=ENV, as_json=True) as server:
        async with client(server) as http:
            before = (await http.get("/v1/conversations", params={"limit": 1000})).json()["data"]
            told = (await http.post("/command", json={"command": "system"})).json()
            assert told["current_value"] == "Be brief."
            assert (await http.post("/shutdown", headers={"authorization": ""})).status_code == 401
            talk = TALK | {"max_tokens": 100, "session_id": "work", "stream": True}
            async with http.stream("POST", "/chat", json=talk) as answer:
                lines = (json.loads(line.removeprefix("data: ")) async for line in answer.aiter_lines() if line)
                events = [await anext(lines)]
                assert (await http.post("/shutdown")).json()["status"] == "success"
                events += [event async for event in lines]
        assert events[-1]["done"] is True
        (conversation,) = [one for one in before if one["id"] == events[-1]["conversation_id"]]
        assert conversation["turns"] == 1
        await ended(server)
