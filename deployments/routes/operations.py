"""Models, embeddings, health and metrics."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app.dialects import openai
from app.dialects.events import Json
from app.errors import ModelNotFound
from deployments.calls import call
from deployments.routes.bodies import Route

if TYPE_CHECKING:
    from deployments.gateway import Gateway


def routes(gateway: "Gateway") -> APIRouter:
    """The operational routes of one gateway."""
    router = APIRouter(route_class=Route)

    @router.get("/v1/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """Every name that requests may put in `model`, the embedder's last."""
        await gateway.look()
        return {"object": "list", "data": list(_models(gateway).values())}

    @router.get("/v1/models/{name:path}", tags=["models"])
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        await gateway.look()
        served = _models(gateway)
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
    started, roots = gateway.started_at, {name: gateway.root(name) for name in gateway.names}
    chatting = {name: openai.language_model(name, started, gateway.cards[root], root) for name, root in roots.items()}
    embedder = openai.embedding_model(gateway.embedder_name, started, gateway.embedder_dimension)
    return chatting | {gateway.embedder_name: embedder}
