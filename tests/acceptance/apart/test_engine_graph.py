"""The engine behind the real graph: models that take turns, and a replica that Serve replaces when its steps hang.

These need a server of their own. It has ended before the shared one starts: folders named before test_* come first.
"""

import asyncio
import signal

import httpx
import psutil
import pytest

from tests.acceptance.conftest import Server, running
from tests.gguf_factory import random_model

pytestmark = pytest.mark.integration

HANGS_S = 1e-9  # every step takes longer: whenever it is asked in the middle of one, the engine says that it hangs


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


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("engine")
    models = {"other": {"model": str(random_model(folder / "other.gguf")), "window": 256}}
    with running(folder, models=models, warm=1, step_timeout_s=HANGS_S) as server:
        yield server


async def ask(http: httpx.AsyncClient, model: str, max_tokens: int) -> int:
    return (await http.post("/v1/chat/completions", json=body(model, max_tokens))).status_code


async def test_models_take_turns_and_drop_nobody(graph: Server):
    """Room for one: requests for both, all at once, are all answered, and the list tells which one is there."""
    async with httpx.AsyncClient(base_url=graph.url, timeout=120) as http:
        asked = [ask(http, model, 60) for model in ("mindfu-demo", "other") * 4]
        assert await asyncio.gather(*asked) == [200] * 8
        listed = (await http.get("/v1/models")).json()["data"]
    assert {model["id"] for model in listed} >= {"mindfu-demo", "other"}
    assert sum(model["loaded"] for model in listed if model["id"] in ("mindfu-demo", "other")) == 1


async def test_a_replica_whose_steps_hang_is_replaced(graph: Server):
    """Serve asks three times, ten seconds apart; then another process answers."""
    before = graph.replica("LlamaCpp")
    async with httpx.AsyncClient(base_url=graph.url, timeout=120) as http:

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
    streamed = body("mindfu-demo", 1500) | {"stream": True}
    async with (
        httpx.AsyncClient(base_url=graph.url, timeout=120) as http,
        http.stream("POST", "/v1/chat/completions", json=streamed) as answer,
    ):
        lines = answer.aiter_lines()
        assert '"role"' in await anext(lines)
        graph.process.send_signal(signal.SIGINT)
        said = [line async for line in lines if line]
    assert said[-1] == "data: [DONE]", said[-2:]
    assert len(said) > 10
    while psutil.Process(graph.process.pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0.1)
