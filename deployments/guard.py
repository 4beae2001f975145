"""The ASGI layer in front of every route: request ids, keys, the loopback rule, body sizes, counting.

Without a key only this machine may call, and only on purpose: a web page that the owner happens to visit can reach
loopback too (directly, or by DNS rebinding), so requests with a foreign Host or Origin are refused.
"""

import hmac
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders

from app.errors import Forbidden, MindFuError, TooLarge, Unauthorized
from deployments.metrics import Metrics
from deployments.routes.refusals import render

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PUBLIC = frozenset({"/health"})  # probes have no key
UPLOAD = "/v1/documents/upload"
MULTIPART_OVERHEAD = 64 * 1024  # bytes around an uploaded file


class Guard:
    """Wraps the application. api_key: None means that only this machine may call. Sizes: bytes."""

    def __init__(
        self, app: ASGIApp, *, api_key: SecretStr | None, max_body: int, max_upload: int, metrics: Metrics
    ) -> None:
        self.app, self.api_key = app, api_key
        self.max_body, self.max_upload = max_body, max_upload
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

        async def send_with_id(event: Event) -> None:
            nonlocal started
            if event["type"] == "http.response.start":
                started = True
                if request_id == own_id:  # else Serve's proxy, which set the request's, sets the answer's too
                    MutableHeaders(scope=event)["x-request-id"] = request_id
                route = getattr(scope.get("route"), "path", "unknown")
                self.metrics.requests.labels(route, event["status"]).inc()
            await send(event)

        try:
            self._check_caller(scope["path"], headers)
            body = await self._body(scope["path"], headers, receive)
        except MindFuError as exc:
            await render(exc, scope["path"], request_id)(scope, receive, send_with_id)
            return
        if body is None:
            return
        try:
            await self.app(scope, _replay(body, receive), send_with_id)
        except Exception:  # the edge of the application: a bug is logged here, and its text is shown to nobody
            log.exception("%s failed", request_id)
            if started:
                raise
            bug = MindFuError(f"An internal error. The server's log has it under {request_id}.")
            await render(bug, scope["path"], request_id)(scope, receive, send_with_id)

    def _check_caller(self, path: str, headers: Headers) -> None:
        if self.api_key is None:
            _check_local(headers)
            return
        if path in PUBLIC:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), self.api_key.get_secret_value().encode()):
            raise Unauthorized

    async def _body(self, path: str, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body. None: the client left while it sent."""
        if path in PUBLIC:
            return b""  # strangers cannot make us wait for one
        upload = path == UPLOAD
        limit = self.max_upload + MULTIPART_OVERHEAD if upload else self.max_body
        setting = "documents.max_bytes" if upload else "gateway.max_body_bytes"
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise TooLarge("The request body", int(announced), limit, "bytes", setting)
        chunks, size = [], 0
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


def _check_local(headers: Headers) -> None:
    what: Literal["Host", "Origin"]
    for what in ("Host", "Origin"):
        given = headers.get(what.lower())
        if given is None or (what == "Host" and not given):
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
