"""The ASGI layer in front of every route: request ids, keys and what they may do, the loopback rule, body sizes.

Who calls stands in `request.state.caller`, and nothing behind this layer knows a tenant from anywhere else. Without
any key only this machine may call, and only on purpose: a web page that the owner happens to visit can reach
loopback too (directly, or by DNS rebinding), so requests with a foreign Host or Origin are refused.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from app.errors import Forbidden, MindFuError, RateLimited, ScopeMissing, TooLarge, TooSlow, Unauthorized, Unavailable
from app.keyring import Caller
from app.keys import Limits
from app.keys import Scope as KeyScope
from app.limits import Limiter, Standing
from deployments.metrics import Metrics
from deployments.routes.refusals import render

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PUBLIC = frozenset({"/", "/health", "/docs", "/openapi.json"})  # probes and browsers have no key
UPLOADS = frozenset({"/v1/documents/upload", "/v1/files"})
EXACTLY: Mapping[str, KeyScope] = {"/models": "chat"}
NEEDED: tuple[tuple[str, KeyScope], ...] = (
    ("/chat", "chat"),
    ("/generate", "chat"),
    ("/command", "chat"),  # and `admin` to set something
    ("/model", "admin"),
    ("/shutdown", "admin"),
    ("/v1/documents", "documents"),
    ("/v1/files", "documents"),
    ("/v1/vector_stores", "documents"),
    ("/v1/fine_tuning", "train"),
    ("/v1/tools", "tools"),
    ("/train", "train"),
    ("/models", "train"),
    ("/metrics", "admin"),
    ("/v1/models", "chat"),
    ("/v1", "chat"),
)  # the first that fits
LIMITED = frozenset({
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/chat", "/generate",
})  # fmt: skip
RATES = tuple((kind, what) for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset"))
TOLD = (
    "x-request-id", "request-id", "x-conversation-id", "retry-after",
    *(f"x-ratelimit-{what}-{kind}" for kind, what in RATES),
    *(f"anthropic-ratelimit-{kind}-{what}" for kind, what in RATES),
)  # fmt: skip
"""The headers of answers that web pages may read, beside those that all may."""
BODY_S, UPLOAD_S = 60.0, 600.0  # that a body may take to arrive: a drip of bytes must not hold a request for ever
MULTIPART_OVERHEAD = 64 * 1024  # bytes around an uploaded file


NOBODY = Caller(tenant="", scopes=frozenset())


class Callers(Protocol):
    """What tells callers by what they show; see app/keyring.py."""

    async def caller(self, shown: str) -> Caller | None: ...


class Guard:
    """Wraps the application. origins: web pages that may call where there are no keys. Sizes: bytes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keyring: Callers,
        limiter: Limiter | None,
        max_body: int,
        max_upload: int,
        metrics: Metrics,
        origins: tuple[str, ...] = (),
        body_s: float = BODY_S,
        upload_s: float = UPLOAD_S,
    ) -> None:
        self.app, self.keyring, self.limiter, self.origins = app, keyring, limiter, origins
        self.max_body, self.max_upload = max_body, max_upload
        self.body_s, self.upload_s = body_s, upload_s
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own_id = f"req_{uuid.uuid4().hex}"  # a client may choose its x-request-id, so a turn is never known by that
        request_id = headers.get("x-request-id") or own_id
        scope.setdefault("state", {}).update(request_id=own_id, x_request_id=request_id)
        started = False
        standing: dict[str, str] = {}

        async def send_with_id(event: Event) -> None:
            nonlocal started
            if event["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=event).update(standing)
                if request_id == own_id:  # else Serve's proxy, which set the request's, sets the answer's too
                    MutableHeaders(scope=event)["x-request-id"] = request_id
                route = getattr(scope.get("route"), "path", "unknown")
                self.metrics.requests.labels(route, event["status"]).inc()
            await send(event)

        try:
            caller = scope["state"]["caller"] = await self._caller(scope["path"], headers)
            body = await self._body(scope["path"], headers, receive)
            if body is not None:
                async with self._within_limits(caller, scope["path"], own_id, standing):
                    await self.app(scope, _replay(body, receive), send_with_id)
        except MindFuError as exc:
            await render(exc, scope["path"], request_id)(scope, receive, send_with_id)
        except Exception:  # the edge of the application: a bug is logged here, and its text is shown to nobody
            log.exception("%s failed", request_id)
            if started:
                raise
            bug = MindFuError(f"An internal error. The server's log has it under {request_id}.")
            await render(bug, scope["path"], request_id)(scope, receive, send_with_id)

    @asynccontextmanager
    async def _within_limits(
        self, caller: Caller, path: str, request_id: str, standing: dict[str, str]
    ) -> AsyncIterator[None]:
        """Count a request where its key has limits. standing: takes the headers that tell them. Raises RateLimited."""
        if caller.key is None or not caller.limits or self.limiter is None or path not in LIMITED:
            yield
            return
        try:
            async with self.limiter.held(caller.key, request_id) as counted:
                if counted:
                    standing.update(told(caller.limits, counted, path))
                yield
        except RateLimited as exc:
            if exc.standing:
                standing.update(told(caller.limits, exc.standing, path))
            raise

    async def _caller(self, path: str, headers: Headers) -> Caller:
        """Who calls. Raises Unauthorized, Forbidden, ScopeMissing, Unavailable."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        shown = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        try:
            caller = await self.keyring.caller(shown)
        except (Unauthorized, Unavailable):
            if path in PUBLIC:
                return NOBODY
            raise
        if caller is None:
            _check_local(headers, self.origins)
            return Caller(anonymous=True)
        scope = scope_of(path)
        if scope and not caller.may(scope):
            raise ScopeMissing(scope, tuple(sorted(caller.scopes)))
        return caller

    async def _body(self, path: str, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body. None: the client left while it sent."""
        if path in PUBLIC:
            return b""  # strangers cannot make us wait for one
        upload = path in UPLOADS
        limit = self.max_upload + MULTIPART_OVERHEAD if upload else self.max_body
        setting = "documents.max_bytes" if upload else "gateway.max_body_bytes"
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise TooLarge("The request body", int(announced), limit, "bytes", setting)
        chunks, size = [], 0
        limit_s = self.upload_s if upload else self.body_s
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        return None
                    chunks.append(event.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise TooLarge("The request body", size, limit, "bytes", setting)
                    if not event.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise TooSlow(size, limit_s) from None


def scope_of(path: str) -> KeyScope | None:
    """The scope that a path needs, None where any key will do: the one place that says so."""
    beneath = (scope for prefix, scope in NEEDED if path == prefix or path.startswith(prefix + "/"))
    return EXACTLY.get(path) or next(beneath, None)


def told(limits: Limits, counted: Standing, path: str) -> Mapping[str, str]:
    """The headers that tell a key's limits, as the path's dialect names them."""
    found: dict[str, str] = {}
    for kind, limit, used in (
        ("requests", limits.requests_per_minute, counted.requests),
        ("tokens", limits.tokens_per_minute, counted.tokens),
    ):
        if limit is None:
            continue
        left, reset_s = max(0, limit - used), counted.reset_s
        if path.startswith("/v1/messages"):
            at = (datetime.now(UTC) + timedelta(seconds=reset_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
            values, form = (limit, left, at), f"anthropic-ratelimit-{kind}-%s"
        else:
            values, form = (limit, left, f"{reset_s:.3f}s"), f"x-ratelimit-%s-{kind}"
        found |= {form % name: str(value) for name, value in zip(("limit", "remaining", "reset"), values, strict=True)}
    return found


def _check_local(headers: Headers, origins: tuple[str, ...]) -> None:
    what: Literal["Host", "Origin"]
    for what in ("Host", "Origin"):
        given = headers.get(what.lower())
        if given is None or (what == "Host" and not given) or (what == "Origin" and given in origins):
            continue
        if _hostname(given) not in LOOPBACK:
            raise Forbidden(what, given)


def _hostname(given: str) -> str | None:
    try:
        return urlsplit(given if "//" in given else f"//{given}").hostname
    except ValueError:  # such as [::1 without its other bracket
        return None


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Event:
        nonlocal sent
        if sent:
            return await receive()  # the disconnect, when it comes
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
