"""Requests made from our own OpenAPI document, odd ones among them, to every route of the whole gateway: no 5xx."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings

from tests.gateway import MODEL, Whole, bare, whole

pytestmark = pytest.mark.integration


class Apart:
    """The gateway in a thread of its own, because what makes the requests is not async. ids: of what is there."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.stack = AsyncExitStack()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What it gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def open(self, home: Path) -> None:
        gateway: Whole = await self.stack.enter_async_context(whole(home))
        self.http: httpx.AsyncClient = await self.stack.enter_async_context(gateway.http())
        document = await self.http.post("/v1/documents", json={"content": "It is there."})
        response = await self.http.post("/v1/responses", json={"model": MODEL, "input": "hi"})
        self.ids = {
            "model": MODEL,
            "name": MODEL,
            "document_id": document.json()["id"],
            "id_": response.json()["id"],
            "previous_response_id": response.json()["id"],
            "request_id": response.json()["id"],
            "conversation_id": response.json()["conversation"]["id"],
        }

    def status(self, case: schemathesis.Case) -> int:
        """Of the answer to a request."""
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
        headers = [
            (name, value.encode("latin-1") if isinstance(value, str) else value) for name, value in sent.headers.items()
        ]
        answer = self.run(self.http.request(sent.method, sent.url, content=sent.body, headers=headers))
        return int(answer.status_code)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    apart = Apart()
    apart.thread.start()
    apart.run(apart.open(tmp_path_factory.mktemp("schema")))
    yield apart
    apart.run(apart.stack.aclose())
    apart.loop.call_soon_threadsafe(apart.loop.stop)
    apart.thread.join()
    apart.loop.close()


RANDOM = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": False}}})  # else it is 5,500 requests
schema = schemathesis.openapi.from_dict(bare().openapi(), config=RANDOM)


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_nothing_that_our_schema_describes_breaks_the_gateway(case: schemathesis.Case, apart: Apart) -> None:
    """Right or wrong by the schema, of what is there or not: an answer, or a refusal that is the caller's."""
    assert apart.status(case) < 500
    if case.method == "DELETE":
        return
    case.path_parameters = {name: apart.ids.get(name, value) for name, value in (case.path_parameters or {}).items()}
    if isinstance(case.body, dict):
        case.body = {name: apart.ids.get(name, value) for name, value in case.body.items()}
    assert apart.status(case) < 500
