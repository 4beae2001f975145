"""POST /v1/chat/completions and /v1/completions."""

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.dialects.openai_chat import ChatRenderer
from app.dialects.openai_completions import CompletionRenderer
from app.dialects.openai_requests import ChatRequest, CompletionRequest
from deployments.answering import Opened
from deployments.routes.answers import ask_of, respond, send
from deployments.routes.bodies import Route
from deployments.routes.callers import tenant
from deployments.together import together

if TYPE_CHECKING:
    from deployments.gateway import Gateway


def routes(gateway: "Gateway") -> APIRouter:
    """The generating routes of one gateway, OpenAI's."""
    router = APIRouter(tags=["generation"], route_class=Route)

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a chat, from the documents where they hold something."""
        kit = await gateway.tooling.kit(request.state.caller, body.server_tools, rag=body.rag)
        generate = body.generate(request.state.request_id, tenant(request), gateway.served(body.model), kit.tools)
        ask = ask_of(request, generate, rag=body.rag, extras=body.kept(), kit=kit)

        base_url = str(request.base_url)

        def renderer(opened: Opened) -> ChatRenderer:
            fingerprint = gateway.fingerprint(generate, opened.adapter)
            return ChatRenderer(body, generate, fingerprint=fingerprint, sources=opened.sources, base_url=base_url)

        return await respond(gateway, ask, renderer, stream=body.stream)

    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue texts, without template and without retrieval."""
        prompts = body.generates(request.state.request_id, tenant(request), gateway.served(body.model))
        asks = [ask_of(request, prompt, rag=False, extras=body.kept()) for prompt in prompts]
        answers = [gateway.answering.answer(replace(ask, stream=bool(body.stream))) for ask in asks]
        answer = answers[0] if len(answers) == 1 else together(answers, prompts[0].n)

        def renderer(opened: Opened) -> CompletionRenderer:
            return CompletionRenderer(body, prompts, fingerprint=gateway.fingerprint(prompts[0], opened.adapter))

        return await send(answer, len(prompts) * prompts[0].n, renderer, stream=body.stream)

    return router
