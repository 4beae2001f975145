"""A gateway whose model has no replica: it opens, says so, wakes nobody without need, and holds what is asked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from app.messages import Delta, Done, Generate, Measure, ModelCard
from app.settings import Settings
from deployments.waking import Standing
from tests.gateway import MODEL, WINDOW, Echo, Whole, whole

pytestmark = pytest.mark.integration

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "rag": False}


class Cluster(Echo):
    """A model that sleeps until it is asked for and a node is there; and what Serve says of it."""

    def __init__(self) -> None:
        self.node, self.asked, self.calls = asyncio.Event(), asyncio.Event(), 0

    async def look(self, _: object) -> Standing:
        return Standing(int(self.node.is_set()), starting=int(bool(self.calls)), nodeless=1, sleeps=True)

    async def cards(self) -> tuple[ModelCard, ...]:
        await self._come()
        return await super().cards()

    async def stats(self) -> dict[str, float]:
        await self._come()
        return {"slots": 8.0}

    async def check_health(self) -> None:
        await self._come()

    async def measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        await self._come()
        return await super().measure(request, texts)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done]:
        await self._come()
        async for item in super().generate(request):
            yield item

    async def _come(self) -> None:
        self.calls += 1
        self.asked.set()
        await self.node.wait()


@pytest.fixture
def cluster() -> Cluster:
    """Without a node."""
    return Cluster()


@pytest.fixture
async def gateway(postgres_home: Path, cluster: Cluster) -> AsyncIterator[Whole]:
    """Opened over it; requests are held for a minute."""
    async with opened(postgres_home, cluster, 60.0) as gateway:
        yield gateway


@pytest.fixture
async def impatient(postgres_home: Path, cluster: Cluster) -> AsyncIterator[Whole]:
    """The same; requests are held for a quarter of a second."""
    async with opened(postgres_home, cluster, 0.25) as gateway:
        yield gateway


def opened(home: Path, cluster: Cluster, wake_wait_s: float) -> AbstractAsyncContextManager[Whole]:
    return whole(home, Settings.model_validate({"gateway": {"wake_wait_s": wake_wait_s}}), cluster, cluster.look)


async def test_a_model_that_sleeps_is_not_woken_to_be_looked_at(gateway: Whole, cluster: Cluster):
    """Health checks, metrics and lists come every few seconds; a GPU node would never leave."""
    async with gateway.http() as http:
        health = await http.get("/health")
        models = (await http.get("/v1/models")).json()["data"]
        choice = (await http.get("/models")).json()["models"]
        metrics = (await http.get("/metrics")).text
    assert (health.status_code, health.json()["parts"]["llm"]) == (200, "asleep")
    assert health.json()["message"] == "the language model is asleep, and woken by the next request"
    assert (models[0]["id"], choice[0]["key"], choice[0]["loaded"]) == (MODEL, MODEL, False)
    assert "mindfu_engine_up 1.0" in metrics
    assert "mindfu_engine_replicas 0.0" in metrics
    assert cluster.calls == 0


async def test_a_request_wakes_it_is_held_and_answered(gateway: Whole, cluster: Cluster):
    """And from then on its own metadata are known."""
    async with gateway.http() as http:
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=ASK))
        await cluster.asked.wait()
        assert (await http.get("/health")).json()["parts"]["llm"] == "starting"
        cluster.node.set()
        assert (await asking).json()["choices"][0]["message"]["content"].endswith("hello")
        assert gateway.gateway.cards[MODEL].parameters == 1
        assert "mindfu_engine_slots 8.0" in (await http.get("/metrics")).text, "as somebody asked it just now"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_told_how_far_the_node_is(impatient: Whole, stream: bool):
    """After the set wait: a 503, when to ask again, and what is waited for; also in place of a stream."""
    async with impatient.http() as http:
        refused = await http.post("/v1/chat/completions", json=ASK | {"stream": stream})
        other = await http.post("/v1/messages", json={**ASK, "max_tokens": 5} | {"rag": False})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
    assert refused.json()["error"]["code"] == "starting"
    assert refused.json()["progress"]["part"] == "language model"
    assert refused.json()["progress"]["stage"].startswith("waiting for a node")
    assert (other.status_code, other.json()["progress"]["part"]) == (529, "language model")
    assert impatient.gateway.cards[MODEL].window == WINDOW
