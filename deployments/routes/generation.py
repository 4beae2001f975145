"""POST /v1/chat/completions and /v1/completions, streamed and whole."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from app.dialects import openai
from app.errors import EngineFailed, MindFuError
from app.messages import Delta, Done, Generate, RagOptions
from deployments.answering import Ask, Opened
from deployments.routes.bodies import Route

if TYPE_CHECKING:
    from deployments.gateway import Gateway

log = logging.getLogger(__name__)
TENANT = "default"  # until keys carry tenants
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def routes(gateway: "Gateway") -> APIRouter:
    """The generating routes of one gateway."""
    router = APIRouter(tags=["generation"], route_class=Route)

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: openai.ChatRequest) -> Response:
        """Answer a chat, from the documents where they hold something."""
        generate = body.generate(request.state.request_id, TENANT, gateway.served(body.model))
        ask = _ask(request, body, generate, rag=body.rag)
        return await _respond(gateway, request, ask, body, openai.ChatRenderer)

    @router.post("/v1/completions")
    async def completions(request: Request, body: openai.CompletionRequest) -> Response:
        """Continue a text, without template and without retrieval."""
        generate = body.generate(request.state.request_id, TENANT, gateway.served(body.model))
        ask = _ask(request, body, generate, rag=False)
        return await _respond(gateway, request, ask, body, openai.CompletionRenderer)

    return router


def _ask(request: Request, body: openai.GenerationRequest, generate: Generate, *, rag: bool | RagOptions | None) -> Ask:
    return Ask(
        generate=generate,
        rag=rag,
        conversation_id=request.headers.get("x-conversation-id"),
        client=request.headers.get("user-agent"),
        extras=body.recorded() | {"x_request_id": request.state.x_request_id},
    )


async def _respond(
    gateway: "Gateway", request: Request, ask: Ask, body: openai.GenerationRequest, renderer: type[openai.ChatRenderer]
) -> Response:
    base_url = str(request.base_url)
    answer = gateway.answering.answer(ask)
    opened = await anext(answer)  # what can be refused is refused here, with its own status
    assert isinstance(opened, Opened)
    render = renderer(ask.generate.request_id, ask.generate.model, opened.sources, base_url)
    headers = {"x-conversation-id": opened.conversation_id} if opened.conversation_id else {}
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(answer, render, include_usage=include_usage)
        return EventStream(answer, events, headers | STREAM_HEADERS)
    text, done = await _whole(answer)
    return JSONResponse(render.whole(text, done), headers=headers)


class EventStream(StreamingResponse):
    """Server-sent events of an answer, which is closed with the response: a client may leave before the first event."""

    def __init__(self, answer: AsyncGenerator[Any], events: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        async with aclosing(self.answer):
            await super().__call__(scope, receive, send)


async def _whole(answer: AsyncGenerator[Any]) -> tuple[str, Done]:
    pieces: list[str] = []
    async for item in answer:
        if isinstance(item, Done):
            return "".join(pieces), item
        pieces.append(item.text)
    raise AssertionError  # an answer ends with Done or raises


async def _events(
    answer: AsyncGenerator[Any], render: openai.ChatRenderer, *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events. A late failure is an error event, never a cut connection."""
    pieces: list[str] = []
    for chunk in render.opening():
        yield _event(chunk)
    try:
        async for item in answer:
            if isinstance(item, Delta):
                pieces.append(item.text)
                yield _event(render.piece(item))
            else:
                for chunk in render.closing("".join(pieces), item, include_usage=include_usage):
                    yield _event(chunk)
    except MindFuError as exc:
        yield _event(openai.error(exc))
        return
    except Exception:  # the edge of the stream: the client gets an event, we get the traceback
        log.exception("an answer failed in mid-stream")
        yield _event(openai.error(EngineFailed("an internal error, see the server's log")))
        return
    yield b"data: [DONE]\n\n"


def _event(payload: openai.Json) -> bytes:
    return b"data: " + to_json(payload) + b"\n\n"
