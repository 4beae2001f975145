"""Models, embeddings, health and metrics."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app.dialects import openai
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
        """Every name that requests may put in `model`."""
        return {"object": "list", "data": [_model(gateway, name) for name in gateway.names]}

    @router.get("/v1/models/{name:path}", tags=["models"])
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        if name not in gateway.names:
            raise ModelNotFound(name, gateway.names)
        return _model(gateway, name)

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


def _model(gateway: "Gateway", name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": gateway.started_at, "owned_by": "mindfu"}
