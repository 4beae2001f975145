"""POST /v1/chat/completions and /v1/completions."""

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.dialects import openai
from deployments.routes.answers import ask_of, respond
from deployments.routes.bodies import Route

if TYPE_CHECKING:
    from deployments.gateway import Gateway

TENANT = "default"  # until keys carry tenants


def routes(gateway: "Gateway") -> APIRouter:
    """The generating routes of one gateway, OpenAI's."""
    router = APIRouter(tags=["generation"], route_class=Route)

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: openai.ChatRequest) -> Response:
        """Answer a chat, from the documents where they hold something."""
        generate = body.generate(request.state.request_id, TENANT, gateway.served(body.model))
        ask = ask_of(request, generate, rag=body.rag, extras=body.recorded())
        return await respond(
            gateway,
            ask,
            lambda opened: openai.ChatRenderer(body, generate, opened.sources, str(request.base_url)),
            stream=body.stream,
        )

    @router.post("/v1/completions")
    async def completions(request: Request, body: openai.CompletionRequest) -> Response:
        """Continue a text, without template and without retrieval."""
        generate = body.generate(request.state.request_id, TENANT, gateway.served(body.model))
        ask = ask_of(request, generate, rag=False, extras=body.recorded())
        return await respond(gateway, ask, lambda _: openai.CompletionRenderer(body, generate), stream=body.stream)

    return router
