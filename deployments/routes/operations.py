"""Models, embeddings, health and metrics."""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app.dialects import anthropic_models, openai
from app.dialects.events import Json
from app.errors import ModelNotFound
from deployments.calls import call
from deployments.routes.bodies import Route

if TYPE_CHECKING:
    from deployments.gateway import Gateway

ANTHROPIC = "anthropic-version"  # the header that its clients send
Limit = Annotated[int, Query(ge=1, le=1000)]


def routes(gateway: "Gateway") -> APIRouter:
    """The operational routes of one gateway."""
    router = APIRouter(route_class=Route)

    @router.get("/v1/models", tags=["models"])
    async def models(
        request: Request, limit: Limit = 20, after_id: str | None = None, before_id: str | None = None
    ) -> dict[str, Any]:
        """Every name that requests may put in `model`, the embedder's last. In Anthropic's form for its clients, who
        send `anthropic-version`: in pages, and without the embedder.
        """
        await gateway.look()
        if ANTHROPIC in request.headers:
            return anthropic_models.page(list(_infos(gateway).values()), limit=limit, after=after_id, before=before_id)
        return {"object": "list", "data": list(_models(gateway).values())}

    @router.get("/v1/models/{name:path}", tags=["models"])
    async def model(request: Request, name: str) -> dict[str, Any]:
        """One model."""
        await gateway.look()
        served = _infos(gateway) if ANTHROPIC in request.headers else _models(gateway)
        if name not in served:
            raise ModelNotFound(name, tuple(served))
        return served[name]

    @router.post("/v1/embeddings", tags=["embeddings"])
    async def embeddings(body: openai.EmbeddingRequest) -> dict[str, Any]:
        """Embed texts with the model that the documents were embedded with."""
        name, dimension = gateway.embedder_name, gateway.embedder_dimension
        if body.model != name:
            raise ModelNotFound(body.model, (name,))
        vectors, tokens = await call("embedder", gateway.embedder, "embed", tuple(body.texts(name, dimension)))
        return openai.embeddings(vectors, name, tokens, body.encoding_format)

    @router.get("/health", tags=["operations"])
    async def health() -> Response:
        """200 when every part answers, 503 with the reason when one does not."""
        report = await gateway.health()
        return JSONResponse(report, 200 if report["status"] == "ok" else 503)

    @router.get("/metrics", tags=["operations"])
    async def metrics() -> Response:
        """Prometheus metrics of this gateway replica and of the engine behind it."""
        return Response(await gateway.readings(), media_type=CONTENT_TYPE_LATEST)

    return router


def _models(gateway: "Gateway") -> dict[str, Json]:
    chatting = {
        name: openai.language_model(name, gateway.started_at, gateway.cards[gateway.root(name)], gateway.adapter(name))
        for name in gateway.names
    }
    embedder = openai.embedding_model(gateway.embedder_name, gateway.started_at, gateway.embedder_dimension)
    return chatting | {gateway.embedder_name: embedder}


def _infos(gateway: "Gateway") -> dict[str, Json]:
    cards = {name: gateway.cards[gateway.root(name)] for name in gateway.names}
    return {name: anthropic_models.model(name, gateway.started_at, card) for name, card in cards.items()}
