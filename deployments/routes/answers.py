"""One answer as an HTTP response, streamed or whole, in any dialect.

    ask = ask_of(request, generate, rag=body.rag, extras=body.kept())
    return await respond(gateway, ask, lambda opened: SomeRenderer(generate, opened), stream=body.stream)

What can be refused is refused before the first byte, with its own status; what fails later is an event of the stream.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.answer import Choice, gather
from app.dialects.events import Renderer
from app.errors import EngineFailed, MindFuError
from app.messages import Delta, Done, Generate, RagOptions
from app.tools.kit import NONE, Kit
from app.tools.runner import ToolRun
from deployments.answering import Ask, Opened
from deployments.together import Answer

if TYPE_CHECKING:
    from deployments.gateway import Gateway

log = logging.getLogger(__name__)
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def ask_of(
    request: Request,
    generate: Generate,
    *,
    rag: bool | RagOptions | None,
    extras: dict[str, Any],
    kit: Kit = NONE,
) -> Ask:
    """A parsed request with what its HTTP headers say. extras: what is only kept with the turn."""
    return Ask(
        generate=generate,
        rag=rag,
        conversation_id=request.headers.get("x-conversation-id"),
        client=request.headers.get("user-agent"),
        key=request.state.caller.key,
        kit=kit,
        extras=extras | {"x_request_id": request.state.x_request_id},
    )


async def respond(
    gateway: "Gateway", ask: Ask, renderer: Callable[[Opened], Renderer], *, stream: bool | None
) -> Response:
    """Answer. renderer: makes the dialect's renderer, once nothing can be refused any more."""
    asked = replace(ask, stream=bool(stream))
    return await send(gateway.answering.answer(asked), ask.generate.n, renderer, stream=stream)


async def send(
    answer: Answer, choices: int, renderer: Callable[[Opened], Renderer], *, stream: bool | None
) -> Response:
    """Send an answer that begins only now. choices: how many it has."""
    opened = await anext(answer)  # what can be refused is refused here, with its own status
    assert isinstance(opened, Opened)
    render = renderer(opened)
    headers = {"x-conversation-id": opened.conversation_id} if opened.conversation_id else {}
    if stream:
        return EventStream(answer, _events(answer, render, choices), headers | STREAM_HEADERS)
    gathered, done = await _whole(answer, render, choices)
    return JSONResponse(render.whole(gathered, done), headers=headers)


class EventStream(StreamingResponse):
    """Server-sent events of an answer, which is closed with the response: a client may leave before the first event."""

    def __init__(self, answer: Answer, events: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        async with aclosing(self.answer):
            await super().__call__(scope, receive, send)


async def _whole(answer: Answer, render: Renderer, n: int) -> tuple[tuple[Choice, ...], Done]:
    deltas: list[Delta] = []
    async for item in answer:
        if isinstance(item, Done):
            return gather(deltas, n), item
        if isinstance(item, ToolRun):
            render.ran(item)
        else:
            assert isinstance(item, Delta)
            deltas.append(item)
    raise AssertionError  # an answer ends with Done or raises


async def _events(answer: Answer, render: Renderer, n: int) -> AsyncIterator[bytes]:
    """Server-sent events. A late failure is an error event, never a cut connection."""
    deltas: list[Delta] = []
    for event in render.opening():
        yield event.framed()
    try:
        async for item in answer:
            if isinstance(item, ToolRun):
                render.ran(item)
                continue
            if isinstance(item, Delta):
                deltas.append(item)
                events = render.piece(item)
            else:
                assert isinstance(item, Done)
                events = render.closing(gather(deltas, n), item)
            for event in events:
                yield event.framed()
    except MindFuError as exc:
        for event in render.error(exc):
            yield event.framed()
    except Exception:  # the edge of the stream: the client gets an event, we get the traceback
        log.exception("an answer failed in mid-stream")
        for event in render.error(EngineFailed("an internal error, see the server's log")):
            yield event.framed()
