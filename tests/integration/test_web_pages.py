"""Web pages, and refusals for want of a rest, through the whole gateway."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.keys import Limits
from app.settings import GatewaySettings, Settings
from tests.gateway import MODEL, Whole, whole

pytestmark = pytest.mark.integration

PAGE, EVIL = "https://chat.example.org", "https://evil.example"
HI: Any = [{"role": "user", "content": "hi"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": HI},
    "/v1/completions": {"model": MODEL, "prompt": "hi"},
    "/v1/responses": {"model": MODEL, "input": "hi"},
    "/v1/messages": {"model": MODEL, "messages": HI, "max_tokens": 9},
    "/v1/embeddings": {"model": "words", "input": "hi"},
}


@pytest.fixture(scope="module")
async def closed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    """As it is shipped."""
    async with whole(tmp_path_factory.mktemp("closed")) as opened:
        yield opened


@pytest.fixture(scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    """Open to one page."""
    settings = Settings(gateway=GatewaySettings(cors_origins=(PAGE,)))
    async with whole(tmp_path_factory.mktemp("opened"), settings) as opened:
        yield opened


def preflight(origin: str) -> dict[str, str]:
    """What a browser asks before a page's request, without any key."""
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }


def granted(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000", "null"])
async def test_no_page_may_call_where_none_is_configured(closed: Whole, origin: str):
    """Neither a preflight nor an answer grants anything, refusals included."""
    async with closed.http() as http:
        asked = await http.options("/v1/chat/completions", headers=preflight(origin))
        answer = await http.post("/v1/chat/completions", json=ASKED["/v1/chat/completions"], headers={"origin": origin})
    assert (asked.status_code >= 400, granted(asked), granted(answer)) == (True, {}, {})


async def test_a_configured_page_may_call_and_read_what_it_is_told(opened: Whole):
    """The preflight needs no key, the request does; its ids and limits can be read, of a refusal as well."""
    key = await opened.key("acme", limits=Limits(requests_per_minute=1000))
    async with opened.http(key) as http:
        asked = await http.options("/v1/messages", headers=preflight(PAGE) | {"authorization": ""})
        answer = await http.post("/v1/messages", json=ASKED["/v1/messages"], headers={"origin": PAGE})
        refused = await http.post("/v1/messages", json={}, headers={"origin": PAGE, "authorization": ""})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    assert (answer.status_code, refused.status_code) == (200, 401)
    readable = answer.headers["access-control-expose-headers"].split(", ")
    told = {"x-request-id", "x-conversation-id", "anthropic-ratelimit-requests-remaining"}
    assert told <= set(readable) & set(answer.headers)
    assert refused.headers["access-control-allow-origin"] == PAGE


async def test_a_stranger_can_read_the_documentation_and_nothing_else(closed: Whole):
    """And /docs asks for the key that the other routes need."""
    await closed.key("acme")
    async with closed.http("none") as http:
        found = {path: (await http.get(path)).status_code for path in ("/", "/docs", "/openapi.json", "/v1/models")}
        document = (await http.get("/openapi.json")).json()
    assert found == {"/": 200, "/docs": 200, "/openapi.json": 200, "/v1/models": 401}
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


async def test_another_page_may_not(opened: Whole):
    """Its preflight is refused; nor does an answer say that it may be read."""
    async with opened.http(await opened.key("acme")) as http:
        asked = await http.options("/v1/chat/completions", headers=preflight(EVIL))
        answer = await http.get("/v1/models", headers={"origin": EVIL})
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in granted(asked) | granted(answer)


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    "limits", [Limits(requests_per_minute=1), Limits(tokens_per_minute=1)], ids=["requests", "tokens"]
)
async def test_a_key_that_did_what_it_may_is_told_when_to_come_back(closed: Whole, path: str, limits: Limits):
    """A 429 in the dialect's shape, with the time to wait and the limits in the dialect's headers."""
    if path == "/v1/embeddings" and limits.tokens_per_minute:
        pytest.skip("embeddings charge no tokens")
    async with closed.http(await closed.key("acme", limits=limits)) as http:
        answers = [await http.post(path, json=ASKED[path]) for _ in range(3)]  # a minute may begin between two of them
    assert answers[0].status_code == 200
    refused = next(answer for answer in answers if answer.status_code != 200)
    kind = "requests" if limits.requests_per_minute else "tokens"
    form = f"anthropic-ratelimit-{kind}-%s" if path == "/v1/messages" else f"x-ratelimit-%s-{kind}"
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (refused.headers[form % "limit"], refused.headers[form % "remaining"]) == ("1", "0")
    assert refused.headers[form % "reset"]
    error = refused.json()["error"]
    assert error["type"] == "rate_limit_error"
    assert f"may make 1 {kind} per minute" in error["message"]


async def test_a_place_is_free_again_when_an_answer_ends(closed: Whole):
    """A refused one included; else a key would lock itself out."""
    async with closed.http(await closed.key("acme", limits=Limits(streams=1))) as http:
        for body in (ASKED["/v1/chat/completions"], {}, ASKED["/v1/chat/completions"]):
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == (200 if body else 400)
