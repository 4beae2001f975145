"""Anthropic's POST /v1/messages and /v1/messages/count_tokens, and the greeting that its clients begin with."""

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.dialects.anthropic import CountRequest, MessagesRequest
from app.dialects.anthropic_answers import MessageRenderer
from app.dialects.events import Json
from app.messages import Measure
from deployments.answering import Opened
from deployments.calls import call
from deployments.routes.answers import ask_of, respond
from deployments.routes.bodies import Route
from deployments.routes.callers import tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway


def routes(gateway: "Gateway") -> APIRouter:
    """The routes of Anthropic's Messages API."""
    router = APIRouter(tags=["messages"], route_class=Route)

    @router.post("/v1/messages")
    async def messages(request: Request, body: MessagesRequest) -> Response:
        """Answer a chat, from the documents where they hold something."""
        kit = await gateway.tooling.kit(request.state.caller, body.server_tools, rag=body.rag)
        generate = body.generate(request.state.request_id, tenant(request), gateway.served(body.model), kit.tools)
        ask = ask_of(request, generate, rag=body.rag, extras=body.kept(), kit=kit)

        def renderer(opened: Opened) -> MessageRenderer:
            return MessageRenderer(generate, opened.sources)

        return await respond(gateway, ask, renderer, stream=body.stream)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request, body: CountRequest) -> Json:
        """The tokens of a prompt by the model's own tokenizer and template, without what retrieval would add."""
        kit = await gateway.tooling.kit(request.state.caller, body.server_tools)
        generate = body.generate(request.state.request_id, tenant(request), gateway.served(body.model), kit.tools)
        measure: Measure = await call("language model", gateway.llm, "measure", generate, ())
        return {"input_tokens": measure.prompt_tokens}

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def greeting() -> Json:
        """That somebody is here."""
        return {"name": "MindFu", "model": gateway.settings.llm.name, "documentation": "/docs"}

    return router
