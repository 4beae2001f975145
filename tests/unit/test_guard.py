"""Who may call, how much they may send, and what they are told otherwise."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.routing import Route

from app.dialects.openai_requests import ChatRequest
from app.keyring import Caller
from deployments.guard import Guard, scope_of
from deployments.metrics import Metrics
from deployments.routes import bodies, refusals
from tests.fakes import Keyring
from tests.gateway import bare

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def application(api_key: str | None = None) -> tuple[FastAPI, Metrics]:
    app, metrics = FastAPI(), Metrics()
    keyring = Keyring({api_key: Caller()} if api_key else None)
    app.add_middleware(Guard, keyring=keyring, limiter=None, max_body=2000, max_upload=5000, metrics=metrics)
    refusals.register(app)
    app.router.route_class = bodies.Route

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> int:
        return len(body.messages)

    @app.post("/v1/documents/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("secret detail")

    return app, metrics


def client(app: FastAPI, host: str = "localhost:11434") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=f"http://{host}")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic sesame"}, 401),
        ({"authorization": "Bearer sesamé".encode()}, 401),
        ({"authorization": "Bearer sesame"}, 200),
        ({"authorization": "bearer sesame"}, 200),
        ({"x-api-key": "sesame"}, 200),
    ],
)
async def test_a_key_opens_and_nothing_else_does(headers: dict[str, str | bytes], status: int):
    """The stranger first, then the wrong key in its forms, then the right one in the forms that clients send."""
    app, _ = application("sesame")
    async with client(app, "mindfu.example") as http:
        answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == status
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


async def test_health_needs_no_key_and_no_body():
    """Probes of load balancers have none. A stranger who announces a body and does not send it holds nothing up."""
    app, _ = application("sesame")

    async def withheld():
        raise AssertionError
        yield

    async with client(app) as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.request("GET", "/health", content=withheld())).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:11434"}, 200),
        ({"host": "[::1]:11434"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "rebound.evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://[x"}, 403),
    ],
)
async def test_without_a_key_only_local_clients_are_answered(headers: dict[str, str], status: int):
    """A web page that the owner visits cannot talk to the server: neither directly nor by DNS rebinding."""
    app, _ = application()
    async with client(app) as http:
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == status
        assert (await http.get("/health", headers=headers)).status_code == status


async def test_a_body_over_the_limit_is_refused_with_both_numbers():
    """Announced or streamed, before it is parsed; uploads have their own limit."""
    app, _ = application()

    async def streamed():
        for _ in range(30):
            yield b" " * 100

    async with client(app) as http:
        announced = await http.post("/v1/chat/completions", content=b"x" * 3000)
        chunked = await http.post("/v1/chat/completions", content=streamed())
        upload = await http.post("/v1/documents/upload", content=b"x" * 3000)
    assert announced.status_code == chunked.status_code == 413
    assert "3000" in announced.json()["error"]["message"]
    assert "2000" in announced.json()["error"]["message"]
    assert upload.json() == 3000


async def test_a_body_that_never_ends_is_given_up():
    """A drip of bytes holds a request for as long as a body may take, and no longer."""
    app, metrics = application()
    first, sent = [{"type": "http.request", "body": b"{", "more_body": True}], []

    async def receive() -> dict[str, object]:
        return first.pop() if first else await asyncio.Future()

    async def send(event: dict[str, object]) -> None:
        sent.append(event)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    guard = Guard(app, keyring=Keyring(), limiter=None, max_body=9, max_upload=9, metrics=metrics, body_s=0.01)
    await guard(scope, receive, send)
    assert sent[0]["status"] == 408
    assert b"within 0.01 s, 1 bytes" in sent[1]["body"]


async def test_a_client_that_leaves_while_it_sends_reaches_no_route():
    """Half a body is nobody's request: nothing is run, and nothing is answered."""
    app, metrics = application()
    events = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, object]:
        return next(events)

    async def send(event: dict[str, object]) -> None:
        raise AssertionError(event)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await Guard(app, keyring=Keyring(), limiter=None, max_body=9, max_upload=9, metrics=metrics)(scope, receive, send)
    assert list(events) == []


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (b"{", None, "not JSON"),
        (b"[1]", None, "JSON object"),
        (b'{"model": "m"}', "messages", "Missing required parameter"),
        (b'{"model": "m", "messages": [{"role": "user", "content": 5}]}', "messages[0].content", "valid"),
        (b'{"model": "m", "messages": [{"role": "wizard"}]}', "messages[0].role", "'user'"),
        (b'{"model": "m", "messages": [{"role": "user"}], "temperature": NaN}', "temperature", "finite"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', None, "invalid unicode"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}', None, "hex escape"),
        (b'{"model": "m", "messages": [{"role": "user"}], "user": "\\udc00"}', None, "lone leading surrogate"),
        (
            b'{"model": "m", "messages": [{"role": "user"}], "metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
            None,
            "limit",
        ),
        (b'{"model": ' + b"[" * 90 + b"]" * 90 + b"}", "model", "valid"),
        (
            b'{"stream_options": {}, "model": "m", "messages": [{"role": "user"}]}',
            "stream_options",
            "only allowed when",
        ),
    ],
)
async def test_a_bad_body_is_a_400_that_names_the_parameter(body: bytes, param: str | None, said: str):
    """In OpenAI's shape with all four keys, whatever was wrong."""
    app, _ = application()
    async with client(app) as http:
        answer = await http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


async def test_nesting_beyond_the_parser_is_a_400():
    """A megabyte of brackets neither kills the server nor answers 500."""
    app, _ = application()
    app.user_middleware[0].kwargs["max_body"] = 2**21
    async with client(app) as http:
        body = b"[" * 500_000 + b"]" * 500_000
        answer = await http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "recursion limit" in answer.json()["error"]["message"]


async def test_a_bug_shows_an_id_and_no_detail():
    """The caller gets what to quote, the log gets the traceback."""
    app, metrics = application()
    async with client(app) as http:
        answer = await http.get("/bug")
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert metrics.registry.get_sample_value("mindfu_requests_total", {"route": "/bug", "status": "500"}) == 1


async def test_unknown_routes_and_methods_have_the_same_error_shape():
    """404 and 405 look like every other error, and have a request id."""
    app, _ = application()
    async with client(app) as http:
        absent, wrong = await http.get("/v1/absent"), await http.get("/v1/chat/completions")
    assert (absent.status_code, wrong.status_code) == (404, 405)
    assert {"message", "type", "param", "code"} == set(absent.json()["error"]) == set(wrong.json()["error"])
    assert absent.headers["x-request-id"].startswith("req_")


def test_every_route_needs_a_scope_but_those_that_tell_nothing():
    """A new route that nobody gave one would be open to every key."""
    paths = {route.path for route in bare().routes if isinstance(route, Route)}
    free = {path for path in paths if scope_of(path) is None}
    assert free == {"/", "/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}


@pytest.mark.parametrize(("origin", "status"), [("https://chat.example.org", 200), ("https://evil.example", 403)])
async def test_only_configured_pages_may_call(origin: str, status: int):
    """Their origin passes the guard where there are no keys; every other one is refused as before."""
    app, metrics = FastAPI(), Metrics()
    limits = {"max_body": 9, "max_upload": 9, "metrics": metrics, "origins": ("https://chat.example.org",)}
    app.add_middleware(Guard, keyring=Keyring(), limiter=None, **limits)
    refusals.register(app)

    @app.get("/v1/models")
    async def models() -> list[str]:
        return []

    async with client(app) as http:
        assert (await http.get("/v1/models", headers={"origin": origin})).status_code == status
